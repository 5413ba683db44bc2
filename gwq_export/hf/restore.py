"""A GGUF file of this package back as an ordinary Hugging Face folder: the weights that the runtime
computes with, as floats.

Tensors are decoded one at a time and written to safetensors shards whose headers are known
beforehand. The folder gets its name when it is whole.
"""

import json
import os
import shutil
import struct
from math import prod
from pathlib import Path

from gwq_export.arch.config import read_config
from gwq_export.errors import GwqError, about
from gwq_export.files import as_json
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.types import tensor_type
from gwq_export.hf.config_from_gguf import _config
from gwq_export.hf.gguf_checkpoint import Checkpoint
from gwq_export.tokenizer.to_hf import tokenizer_files


def made_files(reader, config, dtype):
    """{file name: bytes} for an open file, its Config and the weights' type.

    Raises GwqError where the keys do not suffice.
    """
    return {"config.json": as_json(_config(reader, config, dtype))} | tokenizer_files(reader.metadata)


DTYPES = {
    "float32": ("F32", "f32"),
    "float16": ("F16", "f16"),
    "bfloat16": ("BF16", "bf16"),
}  # torch's name -> safetensors', ours
SHARD = 5_000_000_000  # bytes of weights per file, as on the Hub
HEADER_UNIT = 8  # bytes: data of a safetensors file starts at a multiple of it
COPIED = [
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "chat_template.jinja",
    "generation_config.json",
]


def restore(
    reader, folder, dtype="float32", config_from=None, progress=lambda phase, done, total: None
):
    """Write the model of an open file (container.Reader) to the new folder `folder`; returns
    {"folder", "bytes", "files"}.

    dtype: name in DTYPES. config_from: a Hugging Face folder whose config and tokenizer files are
    copied; without it they are made from the file's keys. Raises GwqError, and then leaves nothing
    behind.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise GwqError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise GwqError(f"{folder} exists already and is not an empty folder: choose another name")
    if not folder.absolute().parent.is_dir():
        raise GwqError(
            f"the folder {folder.absolute().parent} does not exist: create it or choose another name"
        )
    config = read_config(reader)
    heads = {"heads": config.heads, "kv_heads": config.kv_heads}
    checkpoint = Checkpoint(reader, config.arch, config.layers, config.dims, heads)
    files = _copied_files(config_from, dtype) if config_from else made_files(reader, config, dtype)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        _write_shards(checkpoint, config.arch, part, dtype, progress)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as e:
        raise GwqError(
            f"cannot write {folder}: {e.strerror or e}; free space or choose another name"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    made = sorted(p.name for p in folder.iterdir())
    return {
        "folder": str(folder),
        "bytes": sum((folder / f).stat().st_size for f in made),
        "files": made,
    }


def _write_shards(checkpoint, arch, folder, dtype, progress):
    """model.safetensors, or shards of at most SHARD bytes with their index."""
    code, kind = DTYPES[dtype][0], tensor_type(DTYPES[dtype][1])
    places = checkpoint.places
    size = {name: prod(place.shape) * kind.unit_bytes for name, place in places.items()}
    shards, room = [[]], SHARD
    for name in places:
        if shards[-1] and size[name] > room:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size[name]
    files = (
        ["model.safetensors"]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    total, done = sum(size.values()), 0
    for file, shard in zip(files, shards, strict=True):
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name in shard:
            offsets = [at, at + size[name]]
            header[arch.saved_name(name)] = {
                "dtype": code,
                "shape": list(places[name].checkpoint_shape),
                "data_offsets": offsets,
            }
            at += size[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % HEADER_UNIT)
        with open(folder / file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name in shard:
                values = checkpoint.read(name)
                with about(f"{checkpoint.reader.path}: tensor {places[name].gguf}"):
                    f.write(encode_ggml(kind, values))
                done += size[name]
                progress("write", done, total)
            f.flush()
            os.fsync(f.fileno())
    if len(shards) > 1:
        weight_map = {
            arch.saved_name(n): file
            for file, shard in zip(files, shards, strict=True)
            for n in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _copied_files(config_from, dtype):
    """{file name: bytes} from a Hugging Face folder."""
    source = Path(config_from)
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config.pop("dtype", None)
        files = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
        return files | {"config.json": as_json(config | {"torch_dtype": dtype})}
    except (OSError, ValueError, AttributeError) as e:
        raise GwqError(
            f"--config-from {source}: config.json cannot be read ({e}); give the folder of a Hugging Face model"
        ) from None
