"""Small files that are well formed: what mutations and fuzz targets start from."""

from __future__ import annotations

import json
import logging
import os
import shutil
import struct
from pathlib import Path

from gwq_export.bench import record
from gwq_export.tokenizer.build import JSON_KEY
from gwq_export.tokenizer.from_hf import to_metadata
from tests.support import tokenizers
from tests.support.models import TINY_MODELS, save_tiny
from tests.support.random_llama import write_llama

SHAPE = {"dim": 64, "ffn": 96, "heads": 4, "kv_heads": 2, "vocab": 480}
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% else %}<|im_end|>"
    "{{ m['role'] + ': ' + m['content'] | trim }}\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
# name -> (tokenizer, its tokenizer.json too, type of the matrices, outliers, experts)
RANDOM = {
    "bpe": (tokenizers.byte_level, False, "gwq4", 0.02, 0),
    "bpe-json": (tokenizers.byte_level, True, "gwq5", 0.01, 0),
    "sentencepiece": (tokenizers.sentencepiece, False, "gwq3", 0.02, 0),
    "sentencepiece-json": (tokenizers.gemma, True, "q8_0", 0, 0),
    "unigram": (tokenizers.unigram, False, "gwq2", 0.02, 0),
    "unigram-json": (tokenizers.unigram, True, "f16", 0, 0),
    "experts": (tokenizers.byte_level, False, "gwq6", 0, 3),
    "none": (None, False, "iq4_nl", 0, 0),
}
# name -> (small model, type of the export)
EXPORTED = {
    "gpt2": ("gpt2", "gwq4"),
    "gemma2": ("gemma2", "gwq3"),
    "longrope": ("longrope", "gwq5"),
    "qwen2moe": ("qwen2moe", "gwq2"),
    "cohere2": ("cohere2", "q8_0"),
    "bridge": ("llama", "bridge"),
}
SIZES = {"vocab_size": 480, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2}
SIZES |= {"num_attention_heads": 4, "num_key_value_heads": 2}
# models that are recorded: (shape, type of the matrices, outliers), and exported ones
TOY = {"dim": 64, "ffn": 64, "heads": 2, "kv_heads": 1, "vocab": 32}
RECORDED = {
    "gwq2": (TOY, "gwq2", 0.02),
    "gwq4": (TOY, "gwq4", 0.02),
    "gwq5": (TOY, "gwq5", 0.02),
    "q8_0": (TOY, "q8_0", 0),
    "experts": (TOY | {"experts": 2}, "gwq3", 0),
}
RECORDED_EXPORTS = ("gpt2", "qwen2moe", "gemma2")


def write_random(folder: Path) -> None:
    """Models of random tiles with tokenizers of every family: a second or two."""
    for name, (make, as_json, type, outliers, experts) in RANDOM.items():
        keys = {}
        if make is not None:
            native = make()
            source = tokenizers.save(folder / f"{name}.tokenizer", native)
            keys = to_metadata(source, SHAPE["vocab"]) | {"tokenizer.chat_template": TEMPLATE}
            if as_json:
                keys |= {JSON_KEY: native.to_str()}
            shutil.rmtree(source)
        shape = SHAPE | ({"experts": experts} if experts else {})
        write_llama(folder / f"{name}.gguf", shape, 1, type, outliers, keys)


def write_exported(folder: Path) -> None:
    """Exports of small models of several architectures: half a minute."""
    for name in ("TRANSFORMERS_VERBOSITY", "HF_HUB_DISABLE_PROGRESS_BARS", "HF_HUB_OFFLINE"):
        os.environ.setdefault(name, "error" if name.endswith("VERBOSITY") else "1")
    import gwq_export

    logging.getLogger("gwq_export").setLevel(logging.ERROR)  # of matrices so small
    for name, (model, type) in EXPORTED.items():
        config, settings = TINY_MODELS[model]
        source = save_tiny(folder / f"{name}.model", config, sizes=SIZES, **settings)
        out = folder / f"{name}.gguf"
        outliers = {"outliers": 0.02} if type.startswith("gwq") else {}
        gwq_export.export(source, out, type=type, samples=1, ctx=64, **outliers)
        shutil.rmtree(source)


def write_records(folder: Path) -> None:
    """What the fuzz target `record` takes, of the models that are there."""
    out = folder / "record"
    out.mkdir(exist_ok=True)
    models = {name: folder / f"{name}.gguf" for name in RECORDED_EXPORTS}
    for name, (shape, type, outliers) in RECORDED.items():
        models[name] = out / f"{name}.gguf"
        write_llama(models[name], shape, 1, type, outliers)
    for name, model in models.items():
        if model.exists():
            path = out / f"{name}.pass"
            record.record(model, path, prompts=(9,), gen=2, depths=())
            data = path.read_bytes()
            bytes = struct.pack("<IB", len(data), 0) + data + model.read_bytes()
            (out / name).write_bytes(bytes)
            path.unlink()
    for name in RECORDED:
        models[name].unlink()


def seeds(folder: Path, exported: bool) -> list[Path]:
    """The files of a folder, made where they are not there.

    exported: those that take longer too.
    """
    folder.mkdir(parents=True, exist_ok=True)
    names = [*RANDOM, *(EXPORTED if exported else ())]
    done = folder / "made.json"
    if not done.exists() or set(json.loads(done.read_text())) < set(names):
        write_random(folder)
        if exported:
            write_exported(folder)
        write_records(folder)
        done.write_text(json.dumps(names))
    return [folder / f"{name}.gguf" for name in names]
