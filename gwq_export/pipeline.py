"""The pipeline: Hugging Face model -> plan -> gradients -> quantized tensors -> GGUF, one tensor at a time.

Sizes follow from shapes and outlier counts, so the header is written first and every tensor goes to its place as
soon as its block's gradients exist (last block first).
"""

import logging
import re
import resource
import sys
import time
import zlib
from dataclasses import dataclass, replace
from pathlib import Path

from gwq_export import GwqError
from gwq_export.arch import gguf_name
from gwq_export.format import TYPES, tensor_type

log = logging.getLogger("gwq_export")

CALIBRATION = Path(__file__).parent / "data" / "calibration.txt"
EXPORT_TYPES = [name for name in TYPES if name not in ("i8", "i32")]
PRESETS = {  # name -> (samples, what it says about a recipe)
    # GWQ (arXiv 2411.00850) as its abstract describes it: the gradient of one sample picks 1 % of the weights, the others are
    # rounded to the nearest of a uniform grid
    "paper": (1, {"saliency": "grad", "outliers": 0.01, "table": "grid", "curvature": False, "feedback": False, "sweeps": 0}),
    "default": (32, {"saliency": "loss", "outliers": 0.0025}),
}


@dataclass(frozen=True)
class Entry:
    """One weight of the plan: where it comes from and how it is stored. heads: permute rows for this head count."""

    name: str  # GGUF
    source: str  # Hugging Face
    shape: tuple
    recipe: object
    linear: bool  # a decoder linear
    heads: int = 0


def permute(array, heads):
    """Rows of Q or K from transformers' order (halves of a head turn together) to llama.cpp's (neighbours do)."""
    if not heads:
        return array
    half = array.shape[0] // heads // 2
    return array.reshape(heads, 2, half, -1).swapaxes(1, 2).reshape(array.shape)


def plan(source, recipe, overrides=()):
    """Entries in file order. `recipe` is for the decoder's linears; overrides: (regex, TensorType) on GGUF names.

    Embedding and head take Q8_0 beside tile types (F16 where 32 does not divide the width), else the same type.
    """
    arch = source.arch
    heads = source.heads if arch.rope == "pairs" else {}  # only llama.cpp's pairs need Q and K in another order
    f32, entries = tensor_type("f32"), []

    def add(name, hf, matrix, linear=False, head_count=0):
        shape = source.shape(hf)
        kind = recipe.type if linear else _end_type(recipe.type, shape) if matrix else f32
        if matrix:
            for pattern, override in overrides:
                if pattern.search(name):
                    kind = override
        if not kind.bits:
            kind.nbytes(*shape) if len(shape) == 2 else None  # refuses a width the type cannot hold
        seed = zlib.crc32(f"{recipe.seed}/{name}".encode())
        entries.append(Entry(name, hf, shape, replace(recipe, type=kind, seed=seed), linear, head_count))

    add("token_embd.weight", arch.embed, True)
    for i in range(source.layers):
        for row, hf in source.block(i).items():
            add(gguf_name(i, row), hf, row.linear, row.linear, heads.get(row.heads, 0))
    add("output_norm.weight", arch.norm, False)
    if not source.tied:
        add("output.weight", arch.head, True)
    for pattern, _ in overrides:
        if not any(pattern.search(e.name) for e in entries if len(e.shape) == 2):
            raise GwqError(f"--tensor-type {pattern.pattern}: no matrix has such a name; `gwq-info` lists the names")
    return entries


def _end_type(type, shape):
    if not type.bits:
        return type
    return tensor_type("f16" if shape[-1] % TYPES["q8_0"].unit else "q8_0")


def _overrides(pairs):
    """("REGEX=TYPE", ...) as (compiled regex, TensorType)."""
    out = []
    for text in pairs:
        pattern, _, name = text.rpartition("=")
        if not pattern or name.lower() not in EXPORT_TYPES:
            raise GwqError(f"--tensor-type {text}: expected REGEX=TYPE with TYPE one of {', '.join(EXPORT_TYPES)}")
        try:
            out.append((re.compile(pattern), tensor_type(name)))
        except re.error as e:
            raise GwqError(f"--tensor-type {text}: {pattern!r} is no regular expression ({e})") from None
    return out


def _options(preset, type, outliers, saliency, samples, ctx, seed):
    """Checked recipe and calibration size."""
    from gwq_export.quantize import MAX_OUTLIERS, Recipe
    from gwq_export.saliency import SALIENCY

    if preset not in PRESETS:
        raise GwqError(f"--preset {preset}: choose one of {', '.join(PRESETS)}")
    usual, chosen = PRESETS[preset]
    samples = usual if samples is None else samples
    given = {"saliency": saliency, "outliers": outliers}
    chosen = chosen | {k: v for k, v in given.items() if v is not None}
    saliency, outliers = chosen["saliency"], chosen["outliers"]
    if type not in EXPORT_TYPES:  # in lower case
        raise GwqError(f"--type {type}: choose one of {', '.join(EXPORT_TYPES)}")
    if not 0 <= outliers <= MAX_OUTLIERS:
        raise GwqError(f"--outliers {outliers:g}: give a fraction from 0 to {MAX_OUTLIERS}, such as 0.01 for 1 %")
    if saliency not in SALIENCY:
        raise GwqError(f"--saliency {saliency}: choose one of {', '.join(SALIENCY)}")
    if samples < 1 or ctx < 2:
        raise GwqError("--samples must be at least 1 and --ctx at least 2")
    if not 0 <= seed < 1 << 32:
        raise GwqError(f"--seed {seed}: give a number from 0 to {2**32 - 1}")
    return Recipe(tensor_type(type), seed=seed, **chosen), samples


def _calibration(tokenizer, calib, samples, ctx, seed):
    from gwq_export.calibrate import Calibration, sample_tokens

    path = Path(calib or CALIBRATION)
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(f"--calib {path}: cannot be read as UTF-8 text ({e}); give a text file") from None
    if not text.strip():
        raise GwqError(f"--calib {path}: the text is empty; give a longer one")
    ids = tokenizer.encode(text, special=False, bos=False)
    found = Calibration(sample_tokens(ids, samples, ctx, seed, tokenizer.bos if tokenizer.add_bos else None))
    if len(found.tokens) < samples:
        log.warning("the calibration text gives %d samples of %d tokens, not %d", *found.tokens.shape, samples)
    return found


def _device(name):
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise GwqError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise GwqError(f"--device {name}: choose cpu or cuda")
    return name


def peak_rss():
    """Largest resident size of this process so far, bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def export(model, out, *, type="gwq4", outliers=None, saliency=None, preset="default", tensor_type=(), calib=None, samples=None,
           ctx=512, seed=0, device="cpu", revision=None, tokenizer_pre=None, dry_run=False, progress=None):  # fmt: skip
    """Quantize a Hugging Face model (folder or hub id) into the GGUF file `out`.

    type: of the decoder's linear layers (EXPORT_TYPES). outliers: fraction of each kept in FP16; saliency: name of a
    rule in saliency.SALIENCY; both by default the preset's. tensor_type: "REGEX=TYPE" strings, later ones win. calib: UTF-8
    text file, default the bundled text; samples x ctx tokens of it are used. progress(phase, done, total) is called
    as work goes on. dry_run: plan only.

    Returns {"out", "bytes", "params", "bpw", "bpw_linear", "outlier_fraction", "seconds", "peak_rss_bytes"} and, when
    calibrated, "calibration_tokens" and "calibration_loss" (nats per token). Raises GwqError.
    """
    started = time.monotonic()
    try:
        import safetensors  # noqa: F401
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as e:
        raise GwqError(f'export needs {e.name}: install it with pip install "gwq-export[export]"') from None
    from gwq_export import metadata as keys
    from gwq_export.source import Source, resolve
    from gwq_export.tokenizer import Tokenizer
    from gwq_export.vocabulary import to_metadata
    from gwq_export.writer import file_size

    progress = progress or (lambda phase, done, total: None)
    type = type.lower()
    recipe, samples = _options(preset, type, outliers, saliency, samples, ctx, seed)
    overrides, device = _overrides([tensor_type] if isinstance(tensor_type, str) else tensor_type), _device(device)
    source = Source(resolve(model, revision))
    limit = source.integer("max_position_embeddings")
    if ctx > limit:
        log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, limit)
        ctx = limit
    entries = plan(source, recipe, overrides)
    tokens = to_metadata(source.folder, source.vocab, **({"pre": tokenizer_pre} if tokenizer_pre else {}))
    name = str(model) if source.folder != Path(model) else source.folder.resolve().name  # a hub id, or a folder's name
    header = keys.general_keys(source, name, type) | keys.config_keys(source) | tokens
    calibration, tiles = None, [e for e in entries if e.recipe.type.bits]
    if any(e.recipe.statistics for e in tiles):
        calibration = _calibration(Tokenizer(tokens), calib, samples, ctx, seed)
    if tiles:
        header |= keys.provenance_keys(recipe, calibration, preset=preset, seed=seed, source_name=name, source_revision=revision)
    factors = keys.rope_factors(source)
    layout = [(name, TYPES[kind], shape) for e in entries for name, kind, shape in e.recipe.tensors(e.name, e.shape)]
    if factors is not None:
        layout.append(("rope_freqs.weight", TYPES["f32"], factors.shape))
    result = {"out": str(out)} | _sizes(entries, file_size(header, layout))
    if not dry_run:
        _write(out, header, layout, entries, source, calibration, factors, device, progress)
    result |= {"seconds": round(time.monotonic() - started, 3), "peak_rss_bytes": peak_rss()}
    if calibration and calibration.losses:
        loss = sum(calibration.losses) / len(calibration.losses)
        result |= {"calibration_tokens": calibration.tokens.numel(), "calibration_loss": loss}
    return result


def _weights(entry):
    return entry.shape[0] * (entry.shape[1] if len(entry.shape) == 2 else 1)


def _sizes(entries, nbytes):
    """The size fields of the result."""
    params = sum(map(_weights, entries))
    linear = [e for e in entries if e.linear]
    stored = sum(_stored_bytes(e) for e in linear)
    tiles = [e for e in entries if e.recipe.type.bits]
    kept = sum(e.recipe.outlier_count(e.shape) for e in tiles)
    return {
        "bytes": nbytes,
        "params": params,
        "bpw": 8 * nbytes / params,
        "bpw_linear": 8 * stored / sum(map(_weights, linear)),
        "outlier_fraction": kept / sum(map(_weights, tiles)) if tiles else 0.0,
    }


def _stored_bytes(entry):
    return sum(TYPES[kind].nbytes(*shape) if len(shape) == 2 else TYPES[kind].nbytes(1, *shape)
               for _, kind, shape in entry.recipe.tensors(entry.name, entry.shape))  # fmt: skip


def _write(out, header, layout, entries, source, calibration, factors, device, progress):
    """Quantize and write every tensor: those that need gradients block by block as these appear, then the others."""
    from gwq_export.calibrate import gradients
    from gwq_export.encoder import Curvatures
    from gwq_export.native import Pool
    from gwq_export.writer import Writer

    calibrated = {e.source: e for e in entries if e.recipe.statistics}
    others = [e for e in entries if not e.recipe.statistics]
    pool = Pool()
    with Writer(out, header, layout) as writer:
        if factors is not None:
            writer.write("rope_freqs.weight", factors)
        if calibrated:
            statistics = sorted({s for e in calibrated.values() for s in e.recipe.statistics})
            ends = [e.source for e in calibrated.values() if not e.linear]
            curvatures = Curvatures()
            for name, weight, found in gradients(source, calibration, statistics, ends, device, progress):
                if name in calibrated:
                    _store(writer, calibrated[name], weight, curvatures.put(found), pool)
        done, total = 0, sum(map(_weights, others))
        for entry in others:
            _store(writer, entry, source.tensor(entry.source).numpy(), {}, pool)
            done += _weights(entry)
            progress("write", done, total)


def _store(writer, entry, weight, statistics, pool):
    from gwq_export.quantize import quantize

    weight = permute(weight, entry.heads)
    statistics = {s: a if s == "hessian" else permute(a, entry.heads) for s, a in statistics.items()}
    try:
        parts = quantize(weight, statistics, entry.recipe, pool.ptr)
    except GwqError as e:
        raise GwqError(f"{entry.name}: {e}") from None
    for (name, _, _), data in zip(entry.recipe.tensors(entry.name, entry.shape), parts, strict=True):
        writer.write(name, data)
