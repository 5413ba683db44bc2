"""gwq-export: gradient-aware low-bit quantization of Hugging Face models to GGUF, and its runtime.

    gwq_export.export("model_folder", "model.gguf", type="gwq4")
    model = gwq_export.load("model.gguf")
    print(model.generate("Once upon a time", n=32))

Importing this package imports neither torch nor transformers; only `export` does, when called.
"""

from __future__ import annotations

from gwq_export.errors import GwqError
from gwq_export.version import __version__

TYPE_CHECKING = False  # True to type checkers; importing typing takes longer than all of this
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path
    from typing import Any

    from gwq_export.format.reader import Reader
    from gwq_export.runtime.model import Model

__all__ = ["GwqError", "__version__", "export", "load", "open_gguf"]


def export(
    model: str | Path,
    out: str | Path | None,
    *,
    type: str | None = None,
    bpw: float | None = None,
    size: str | int | None = None,
    outliers: float | None = None,
    saliency: str | None = None,
    preset: str = "default",
    tensor_type: str | Sequence[str] = (),
    exclude: str | Sequence[str] = (),
    stock: str | None = None,
    tune: int | None = None,
    fast: bool = False,
    norms: bool = True,
    base: str | Path | None = None,
    lora: str | Path | None = None,
    revision: str | None = None,
    tokenizer_pre: str | None = None,
    calib: str | Path | Sequence[str | Path] = (),
    samples: int | None = None,
    ctx: int | None = None,
    seed: int = 0,
    device: str = "cpu",
    threads: int | None = None,
    work_dir: str | Path | None = None,
    dry_run: bool = False,
    imatrix: str | Path | None = None,
    verify: bool = False,
    verify_text: str | Path | None = None,
    max_kld: float | None = None,
    report: str | Path | None = None,
    report_only: bool = False,
    card: str | Path | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, Any]:
    """Quantize the model `model` (a folder, a hub id or a GGUF file) into the GGUF file `out`.

    Size and types:
    type: one type for all of the decoder's linear layers: gwq6, gwq5, gwq4, gwq3, gwq2, q8_0, q4_0,
        iq4_nl, f16, bf16, f32, or bridge (a ggml type with FP16 deltas, docs/bridge.md)
    bpw: bits per weight of the whole file: type and outliers of every matrix are chosen under it;
        4.5 where no other argument names types or size
    size: the same by size, bytes or text such as "640MiB"
    outliers: fraction of each matrix that stays FP16; None: the preset's, 0.0025
    saliency: rule that picks these weights; None: the preset's, "loss"
    preset: "default", or "paper" for the published recipe
    tensor_type: "REGEX=TYPE" strings on GGUF names; later ones win
    exclude: regular expressions of matrices that stay F16, whatever else is asked for
    stock: in place of `type`, "q4_0" or "iq4_nl" with scales and codes chosen by the calibration
    tune: steps that tune scales, tables, outliers and norms in the end; 0: none; None: where that
        is worthwhile (below 4 bits), one for every 7168 calibration tokens. norms=False: tune=0
    fast: find codes in less time, further from the model

    Model and calibration:
    base: a GGUF file of the same model, in any type, from which the weights are taken
    lora: folder of a LoRA adapter (PEFT) that is added to the weights
    revision: of the hub's model
    tokenizer_pre: name of the pre-tokenizer to write where it is not recognised
    calib: UTF-8 text file, .jsonl file of chats ({"messages": [{"role", "content"}, ...]} in
        every line), or a list of such; none: the bundled text. samples x ctx tokens of it are used
    samples: None: the preset's, 32
    ctx: tokens per sample, cut to the model's context; None: 512
    seed: of the draw of samples, and of random rules
    device: where gradients are computed, "cpu" or "cuda"

    The run, and what lies beside the file:
    threads: None: as many CPUs as this process may use; the bytes do not depend on it
    work_dir: folder for what is finished, from which the same call goes on after a kill; emptied in
        the end
    dry_run: calibrate and plan; write nothing but to work_dir
    imatrix: also write a file for llama-quantize --imatrix
    verify: compare the finished file with the model on text that calibration did not see
    verify_text: text for it; implies verify
    max_kld: with verify, raise GwqError above this KL divergence, nats per token (default 1.0); the
        file is kept
    report: a page (HTML) to write
    report_only: measure what every type would cost each matrix, write that as the report (HTML, or
        JSON by its suffix) and no file; out may be None
    card: a model card (Markdown) to write
    progress(phase, done, total): called as work goes on

    Returns {"out", "bytes", "params", "bpw", "bpw_linear", "outlier_fraction", "seconds",
    "peak_rss_bytes"}; when calibrated, "calibration_tokens" and "calibration_loss" (nats per
    token); where the file was tuned, "tuned_kld", its KL divergence (before, after) on text that
    neither calibration nor tuning has seen; with a budget or dry_run, "predicted_loss" (nats per
    token that quantization adds), "calibration_ppl", "predicted_ppl" (of the calibration text) and
    "plan" ([{"name", "type", "outliers", "bytes", "loss"}]); with dry_run, "estimated_seconds" and
    "estimated_peak_rss_bytes"; with verify, "verify" (see `pipeline.verify.verify`); with
    report_only, only what is known of model and calibration, and "sensitivities" ([{"name",
    "shape", "choices": [{"type", "outliers", "bytes", "loss"}]}]). Raises GwqError.
    """
    from gwq_export.pipeline.options import ExportOptions, StrPath
    from gwq_export.pipeline.run import export

    options = ExportOptions(
        type=type,
        bpw=bpw,
        size=size,
        outliers=outliers,
        saliency=saliency,
        preset=preset,
        tensor_type=tensor_type,
        exclude=exclude,
        stock=stock,
        tune=tune,
        fast=fast,
        norms=norms,
        base=base,
        lora=lora,
        revision=revision,
        tokenizer_pre=tokenizer_pre,
        calib=[calib] if isinstance(calib, StrPath) else calib,
        samples=samples,
        ctx=ctx,
        seed=seed,
        device=device,
        threads=threads,
        work_dir=work_dir,
        dry_run=dry_run,
        imatrix=imatrix,
        verify=verify,
        verify_text=verify_text,
        max_kld=max_kld,
        report=report,
        report_only=report_only,
        card=card,
    )
    return export(model, out, options, progress)


def load(
    path: str | Path,
    device: str = "cpu",
    threads: int | None = None,
    ctx: int | None = None,
    base: bool = False,
    cache: str | None = None,
    lookup: bool = True,
    draft: str | Path | None = None,
    gpu_layers: int | None = None,
) -> Model:
    """Open a GGUF file for inference.

    device: "cpu", or "cuda" ("cuda:N"), a GPU. gpu_layers: how many layers run there, as llama.cpp
    counts them: the head first, then the last blocks; None: as many as fit its memory. threads:
    None: as many CPUs as this process may use. ctx: tokens at most, None: the model's context.
    base: of a bridge file, only the part that llama.cpp runs. cache: type of the KV cache, f16 (the
    default), q8_0 or f32. lookup: compute likely next tokens ahead where a text repeats itself; the
    text is the same without. draft: the GGUF file of a smaller model with the same vocabulary, to
    compute likely next tokens ahead by; the text is the same without. Returns a
    `runtime.model.Model`. Raises GwqError.
    """
    from gwq_export.runtime.model import Model

    file = open_gguf(path, base)
    return Model(file, device, threads, ctx, cache, lookup, draft, gpu_layers)


def open_gguf(path: str | Path, base: bool = False) -> Reader:
    """Open a GGUF file as data: a `format.reader.Reader`. base: as for `load`. Raises GwqError."""
    from gwq_export.format.reader import Reader

    return Reader(path, base=base)
