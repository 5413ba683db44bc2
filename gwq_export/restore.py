"""A GGUF file of this package back as an ordinary Hugging Face folder: the weights that the runtime computes with, as floats.

Tensors are decoded one at a time and written to safetensors shards whose headers are known beforehand. The folder gets its
name when it is whole.
"""

import json
import os
import shutil
import struct
from math import prod
from pathlib import Path

import numpy as np

from gwq_export import GwqError, tokenizer
from gwq_export.arch import ARCHS, gguf_name
from gwq_export.format import encode_stock, tensor_type
from gwq_export.plan import unpermute

DTYPES = {"float32": ("F32", "f32"), "float16": ("F16", "f16"), "bfloat16": ("BF16", "bf16")}  # torch's name -> safetensors', ours
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


def restore(reader, folder, dtype="float32", config_from=None, progress=lambda phase, done, total: None):
    """Write the model of an open file (container.Reader) to the new folder `folder`; returns {"folder", "bytes", "files"}.

    dtype: name in DTYPES. config_from: a Hugging Face folder whose config and tokenizer files are copied; without it they are
    made from the file's keys. Raises GwqError, and then leaves nothing behind.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise GwqError(f"--dtype {dtype}: choose one of {', '.join(DTYPES)}")
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise GwqError(f"{folder} exists already and is not an empty folder: choose another name")
    if not folder.absolute().parent.is_dir():
        raise GwqError(f"the folder {folder.absolute().parent} does not exist: create it or choose another name")
    names = _hf_names(reader, _row_of(reader))
    files = _copied_files(config_from, dtype) if config_from else _made_files(reader, dtype)
    part = folder.with_name(folder.name + ".part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir()
        for name, data in files.items():
            (part / name).write_bytes(data)
        _write_shards(reader, names, part, dtype, progress)
        if folder.exists():
            folder.rmdir()
        part.rename(folder)
    except OSError as e:
        raise GwqError(f"cannot write {folder}: {e.strerror or e}; free space or choose another name") from None
    finally:
        shutil.rmtree(part, ignore_errors=True)
    made = sorted(p.name for p in folder.iterdir())
    return {"folder": str(folder), "bytes": sum((folder / f).stat().st_size for f in made), "files": made}


def _row_of(reader):
    """(Hugging Face class name, Arch) of a file: the first row of ARCHS that says the same of sliding windows."""
    arch = reader.metadata.get("general.architecture")
    window = f"{arch}.attention.sliding_window" in reader.metadata
    rows = [(name, row) for name, row in ARCHS.items() if row.gguf == arch and bool(row.window) == window]
    if not rows:
        raise GwqError(
            f"{reader.path}: architecture {arch!r} is not supported; supported: {', '.join(sorted({a.gguf for a in ARCHS.values()}))}"
        )
    return rows[0]


def _hf_names(reader, row):
    """{GGUF name: (Hugging Face name, heads by which rows were permuted)} of every tensor. Raises GwqError for an unknown one."""
    _, arch = row
    blocks, heads = _key(reader, "block_count"), {"heads": _key(reader, "attention.head_count"), "kv_heads": 0}
    heads["kv_heads"] = _key(reader, "attention.head_count_kv", heads["heads"])
    known = {"token_embd.weight": (arch.embed, 0), "output_norm.weight": (arch.norm, 0), "output.weight": (arch.head, 0)}
    for i in range(blocks):
        for r in arch.block:
            known[gguf_name(i, r)] = f"{arch.layers}.{i}.{r.hf}", heads.get(r.heads, 0) if arch.rope == "pairs" else 0
    known["rope_freqs.weight"] = None  # follows from the config
    names = {}
    for name, tensor in reader.tensors.items():
        if tensor.companion:
            continue
        if name not in known:
            raise GwqError(f"{reader.path}: tensor {name} has no place in a Hugging Face model of {arch.gguf}; use a file of gwq-export")
        if known[name]:
            names[name] = known[name]
    return names


def _key(reader, name, default=None):
    """A positive integer of the architecture's keys."""
    key = f"{reader.metadata['general.architecture']}.{name}"
    value = reader.metadata.get(key, default)
    if type(value) is not int or not 0 < value < 1 << 31:
        raise GwqError(f"{reader.path}: metadata key {key} is {value!r}, which cannot be; export the model again")
    return value


def _write_shards(reader, names, folder, dtype, progress):
    """model.safetensors, or shards of at most SHARD bytes with their index."""
    code, kind = DTYPES[dtype][0], tensor_type(DTYPES[dtype][1])
    size = {name: prod(reader.tensors[name].shape) * kind.unit_bytes for name in names}
    shards = [[]]
    for name in names:
        if shards[-1] and sum(size[n] for n in shards[-1]) + size[name] > SHARD:
            shards.append([])
        shards[-1].append(name)
    files = ["model.safetensors"] if len(shards) == 1 else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    total, done = sum(size.values()), 0
    for file, shard in zip(files, shards, strict=True):
        header, at = {"__metadata__": {"format": "pt"}}, 0
        for name in shard:
            header[names[name][0]] = {"dtype": code, "shape": list(reader.tensors[name].shape), "data_offsets": [at, at + size[name]]}
            at += size[name]
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % HEADER_UNIT)
        with open(folder / file, "wb") as f:
            f.write(struct.pack("<Q", len(text)) + text)
            for name in shard:
                try:
                    values = unpermute(reader.tensors[name].dequantize(), names[name][1])
                    f.write(encode_stock(kind, values))
                except GwqError as e:
                    raise GwqError(f"{reader.path}: tensor {name}: {e}") from None
                done += size[name]
                progress("write", done, total)
            f.flush()
            os.fsync(f.fileno())
    if len(shards) > 1:
        weight_map = {names[n][0]: file for file, shard in zip(files, shards, strict=True) for n in shard}
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))


def _copied_files(config_from, dtype):
    """{file name: bytes} from a Hugging Face folder."""
    source = Path(config_from)
    try:
        config = json.loads((source / "config.json").read_text(encoding="utf-8"))
        config.pop("dtype", None)
        files = {name: (source / name).read_bytes() for name in COPIED if (source / name).is_file()}
        return files | {"config.json": _json(config | {"torch_dtype": dtype})}
    except (OSError, ValueError, AttributeError) as e:
        raise GwqError(f"--config-from {source}: config.json cannot be read ({e}); give the folder of a Hugging Face model") from None


def _json(value):
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _made_files(reader, dtype):
    """{file name: bytes}: config and tokenizer from the keys."""
    return {"config.json": _json(_config(reader, dtype))} | _tokenizer_files(reader)


def _config(reader, dtype):
    """config.json in the layout that transformers 4 and 5 read."""
    if "rope_freqs.weight" in reader.tensors:
        raise GwqError(f"{reader.path}: its rope factors have no name in config.json: give the source model's folder with --config-from")
    name, arch = _row_of(reader)
    meta, prefix, tensors = reader.metadata, arch.gguf, reader.tensors
    heads = _key(reader, "attention.head_count")
    config = {
        "architectures": [name],
        "model_type": name.removesuffix("ForCausalLM").lower(),
        "hidden_act": "silu",
        "hidden_size": _key(reader, "embedding_length"),
        "intermediate_size": _key(reader, "feed_forward_length"),
        "num_hidden_layers": _key(reader, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": _key(reader, "attention.head_count_kv", heads),
        "head_dim": _key(reader, "attention.key_length", _key(reader, "embedding_length") // heads),
        "max_position_embeddings": _key(reader, "context_length"),
        "rms_norm_eps": _short(meta.get(f"{prefix}.attention.layer_norm_rms_epsilon", 1e-6)),
        "rope_theta": _short(meta.get(f"{prefix}.rope.freq_base", 10000.0)),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_output.bias" in tensors,
        "torch_dtype": dtype,
    }
    if arch.window:
        config[arch.window] = _key(reader, "attention.sliding_window")
    if meta.get(f"{prefix}.rope.scaling.type") == "linear":
        config["rope_scaling"] = {"rope_type": "linear", "factor": _short(meta[f"{prefix}.rope.scaling.factor"])}
    special = {name: meta.get(f"tokenizer.ggml.{tokenizer.KEY_NAMES.get(name, name)}_token_id") for name in ("bos", "eos", "pad")}
    return config | {f"{name}_token_id": id for name, id in special.items() if type(id) is int}


def _short(value):
    """The shortest decimal number that is this float32."""
    return float(str(np.float32(value)))


def _tokenizer_files(reader):
    """tokenizer.json, tokenizer_config.json and generation_config.json from the keys."""
    meta = reader.metadata
    native, tokens = tokenizer.build(meta), meta["tokenizer.ggml.tokens"]
    ids = {name: meta.get(f"tokenizer.ggml.{tokenizer.KEY_NAMES.get(name, name)}_token_id") for name in ("bos", "eos", "unk", "pad")}
    ids = {name: id for name, id in ids.items() if type(id) is int and id < len(tokens)}
    ends = {name: bool(meta.get(f"tokenizer.ggml.add_{name}_token")) and name in ids for name in ("bos", "eos")}
    if tokenizer.JSON_KEY not in meta and any(ends.values()):
        from tokenizers.processors import TemplateProcessing

        before, after = (f"{tokens[ids[name]]}" if ends[name] else "" for name in ("bos", "eos"))
        parts = [p for p in (before, "$A", after) if p]
        pair = [*parts, *(p.replace("$A", "$B:1") for p in parts)]
        known = [(tokens[ids[name]], ids[name]) for name in ends if ends[name]]
        native.post_processor = TemplateProcessing(single=parts, pair=pair, special_tokens=known)
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    config |= {f"{name}_token": tokens[id] for name, id in ids.items()} | {f"add_{name}_token": on for name, on in ends.items()}
    if limit := meta.get(f"{meta['general.architecture']}.context_length"):
        config["model_max_length"] = limit
    if template := meta.get("tokenizer.chat_template"):
        config["chat_template"] = template
    stops = [ids["eos"]] if "eos" in ids else []
    stops += [meta["tokenizer.ggml.eot_token_id"]] if "tokenizer.ggml.eot_token_id" in meta else []
    generation = {"eos_token_id": stops if len(stops) > 1 else stops[0]} if stops else {}
    generation |= {f"{name}_token_id": ids[name] for name in ("bos", "pad") if name in ids}
    return {"tokenizer.json": native.to_str().encode(), "tokenizer_config.json": _json(config), "generation_config.json": _json(generation)}
