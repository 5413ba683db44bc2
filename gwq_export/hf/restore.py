"""A GGUF file of this package back as an ordinary Hugging Face folder.

Its weights are those that the runtime computes with, as floats. Tensors are decoded one at a time
and written to safetensors shards whose headers are known beforehand. The folder gets its name when
it is whole.
"""

from __future__ import annotations

import json
import os
import shutil
import struct
from collections.abc import Callable
from math import prod
from pathlib import Path
from typing import Any

from gwq_export.arch.config import Config, read_config
from gwq_export.arch.spec import Arch
from gwq_export.errors import GwqError, about
from gwq_export.files import as_json, check_space, sync_folder, write_synced
from gwq_export.format.ggml_types import encode_ggml
from gwq_export.format.reader import Reader
from gwq_export.format.types import TensorType, tensor_type
from gwq_export.hf.config_from_gguf import config_json
from gwq_export.hf.gguf_checkpoint import Checkpoint
from gwq_export.hf.model_class import QUANTIZED
from gwq_export.tokenizer.to_hf import tokenizer_files

# torch's name of a type -> safetensors', ours
DTYPES = {
    "float32": ("F32", "f32"),
    "float16": ("F16", "f16"),
    "bfloat16": ("BF16", "bf16"),
}
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

Progress = Callable[[str, int, int], None]  # (phase, done, total)


def _no_progress(phase: str, done: int, total: int) -> None:
    pass


def restore(
    reader: Reader,
    folder: str | os.PathLike[str],
    dtype: str = "float32",
    config_from: str | os.PathLike[str] | None = None,
    progress: Progress = _no_progress,
) -> dict[str, Any]:
    """Write the model of an open file to the new folder `folder`.

    dtype: name in DTYPES. config_from: a Hugging Face folder whose config and tokenizer files are
    copied; without it they are made from the file's keys. Returns {"folder", "bytes", "files"}.
    Raises GwqError, and then leaves nothing behind.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise GwqError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    check_folder(folder)
    config = read_config(reader)
    heads = {"heads": config.heads, "kv_heads": config.kv_heads}
    checkpoint = Checkpoint(reader, config.arch, config.layers, config.dims, heads)
    if config_from:
        files = _copied_files(Path(config_from), dtype)
    else:
        files = made_files(reader, config, dtype)
    type = tensor_type(DTYPES[dtype][1])
    weights = sum(prod(p.shape) for p in checkpoint.places.values()) * type.unit_bytes
    check_space([(folder.absolute().parent, weights, str(folder))])
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        for name, data in files.items():
            write_synced(part / name, data)
        _write_weights(checkpoint, config.arch, part, dtype, progress)
        if folder.exists():
            folder.rmdir()
        sync_folder(str(part))
        part.rename(folder)
        sync_folder(str(folder.absolute().parent))
    except OSError as e:
        raise GwqError(
            f"cannot write {folder}: {e.strerror or e}; free space or choose another name"
        ) from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    names = sorted(p.name for p in folder.iterdir())
    return {
        "folder": str(folder),
        "bytes": sum((folder / name).stat().st_size for name in names),
        "files": names,
    }


def check_folder(folder: str | os.PathLike[str]) -> None:
    """Raise GwqError when no new folder can be made there."""
    folder = Path(folder)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise GwqError(f"{folder} exists already and is not an empty folder: choose another name")
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise GwqError(f"the folder {parent} does not exist: create it or choose another name")


# --- config and tokenizer -------------------------------------------------------------------------


def made_files(reader: Reader, config: Config, dtype: str) -> dict[str, bytes]:
    """{file name: bytes} of config and tokenizer files, made from the keys of an open file.

    Raises GwqError where the keys do not suffice.
    """
    config_file = as_json(config_json(reader, config, dtype))
    return {"config.json": config_file} | tokenizer_files(reader.metadata)


def _copied_files(source: Path, dtype: str) -> dict[str, bytes]:
    """{file name: bytes} of config and tokenizer files, from a Hugging Face folder."""
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config.pop("dtype", None)
        config.pop(QUANTIZED, None)  # the weights that are written are plain
        if isinstance(config.get("text_config"), dict):
            raise GwqError(
                f"--config-from {source}: that model has more parts than text, the file has not:"
                " leave --config-from out, or give the folder of the text model alone"
            )
        files = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
        return files | {"config.json": as_json(config | {"torch_dtype": dtype})}
    except (OSError, ValueError, AttributeError) as e:
        raise GwqError(
            f"--config-from {source}: config.json cannot be read ({e}); "
            "give the folder of a Hugging Face model"
        ) from None


# --- weights --------------------------------------------------------------------------------------


def _write_weights(
    checkpoint: Checkpoint, arch: Arch, folder: Path, dtype: str, progress: Progress
) -> None:
    """model.safetensors, or shards of at most SHARD bytes with their index."""
    dtype_code, type_name = DTYPES[dtype]
    type = tensor_type(type_name)
    sizes = {name: prod(place.shape) * type.unit_bytes for name, place in checkpoint.places.items()}
    total = sum(sizes.values())
    shards = _shards(sizes)
    files = ["model.safetensors"]
    if len(shards) > 1:
        files = [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    done = 0
    for file, shard in zip(files, shards, strict=True):
        with open(folder / file, "wb") as f:
            f.write(_shard_header(checkpoint, arch, shard, sizes, dtype_code))
            for name in shard:
                f.write(_encoded(checkpoint, name, type))
                done += sizes[name]
                progress("write", done, total)
            f.flush()
            os.fsync(f.fileno())
    if len(shards) > 1:
        weight_map = {
            arch.saved_name(name): file
            for file, shard in zip(files, shards, strict=True)
            for name in shard
        }
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _shards(sizes: dict[str, int]) -> list[list[str]]:
    """Names of the tensors of each shard. sizes: bytes of each tensor."""
    shards: list[list[str]] = [[]]
    room = SHARD
    for name, size in sizes.items():
        if shards[-1] and size > room:
            shards.append([])
            room = SHARD
        shards[-1].append(name)
        room -= size
    return shards


def _shard_header(
    checkpoint: Checkpoint, arch: Arch, shard: list[str], sizes: dict[str, int], dtype_code: str
) -> bytes:
    """The length of the JSON, and the JSON, padded with spaces to HEADER_UNIT."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name in shard:
        end = at + sizes[name]
        header[arch.saved_name(name)] = {
            "dtype": dtype_code,
            "shape": list(checkpoint.places[name].checkpoint_shape),
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % HEADER_UNIT)
    return struct.pack("<Q", len(text)) + text


def _encoded(checkpoint: Checkpoint, name: str, type: TensorType) -> memoryview:
    """The bytes (uint8) of a tensor."""
    values = checkpoint.read(name)
    with about(f"{checkpoint.reader.path}: tensor {checkpoint.places[name].gguf}"):
        return encode_ggml(type, values).data
