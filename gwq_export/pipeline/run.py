"""The pipeline: Hugging Face model -> plan -> gradients -> quantized tensors -> GGUF, one tensor at
a time.

Sizes follow from shapes and outlier counts, so the header is written first and every tensor goes to
its place as soon as its block's gradients exist (last block first).
"""

import logging
import math
import time
from functools import partial
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.version import __version__

try:
    import safetensors  # noqa: F401
    import torch  # noqa: F401
    import transformers  # noqa: F401
except ImportError as e:
    message = f'export needs {e.name}: install it with pip install "gwq-export[export]"'
    raise GwqError(message) from None

from gwq_export.calibration.text import CALIBRATION, draw_calibration, draw_held_out
from gwq_export.format import bridge
from gwq_export.format.types import TYPES
from gwq_export.machine import peak_rss
from gwq_export.pipeline.options import budget_bytes, options, overrides_of
from gwq_export.pipeline.plan import plan, sizes, stored_bytes, weights

log = logging.getLogger("gwq_export")
# options that change nothing of what a work folder holds
_ASIDE = (
    "out",
    "work_dir",
    "dry_run",
    "progress",
    "verify",
    "verify_text",
    "max_kld",
    "report",
    "card",
)


def _device(name):
    import torch

    if name == "cuda" and not torch.cuda.is_available():
        raise GwqError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if name not in ("cpu", "cuda"):
        raise GwqError(f"--device {name}: choose cpu or cuda")
    return name


def export(
    model,
    out,
    *,
    type=None,
    outliers=None,
    saliency=None,
    preset="default",
    bpw=None,
    size=None,
    tensor_type=(),
    stock=None,
    exclude=(),
    imatrix=None,
    base=None,
    calib=None,
    samples=None,
    ctx=512,
    seed=0,
    device="cpu",
    revision=None,
    tokenizer_pre=None,
    work_dir=None,
    norms=True,
    dry_run=False,
    verify=False,
    verify_text=None,
    max_kld=None,
    report=None,
    report_only=False,
    card=None,
    progress=None,
):
    """Quantize a Hugging Face model (folder or hub id) into the GGUF file `out`.

    type: of the decoder's linear layers (plan.EXPORT_TYPES), default gwq4. outliers: fraction of
    each kept in FP16; saliency: name of a rule in saliency.SALIENCY; both by default the preset's.
    bpw (bits per weight of the whole file) or size (bytes, or text such as "640MiB"): a budget,
    under which type and outliers of every matrix are chosen. tensor_type: "REGEX=TYPE" strings,
    later ones win; exclude: regular expressions of matrices that stay F16, whatever else is asked.
    stock: in the place of type, a ggml type of format.LEVELS whose scales and codes are found like
    those of tiles; with type "bridge" FP16 deltas follow (docs/bridge.md). base: a GGUF file of the
    same model, in any ggml type or of gwq-export, that the weights are taken from in the place of
    the folder's. calib: UTF-8 text file, default the bundled text; samples x ctx tokens of it are
    used. imatrix: a file for llama-quantize --imatrix, written beside. work_dir: folder for what is
    finished, from which the same call goes on after a kill; emptied in the end. norms: tune them
    where that is worthwhile (norms.worthwhile); False: never. progress(phase, done, total) is
    called as work goes on. dry_run: calibrate and plan, write nothing but to work_dir. verify:
    compare the finished file with the model on text that calibration did not see (or the file
    verify_text), and raise GwqError, with the file kept, when the KL divergence is above max_kld
    (nats per token, default verify.MAX_KLD). report: a page (HTML) to write, card: a model card
    (Markdown). report_only: measure what every type would cost each matrix, write that as the
    report (HTML, or JSON by its suffix) and no file; out may be None.

    Returns {"out", "bytes", "params", "bpw", "bpw_linear", "outlier_fraction", "seconds",
    "peak_rss_bytes"}; when calibrated, "calibration_tokens" and "calibration_loss" (nats per
    token); where norms were tuned "norms_kld", the KL divergence of the calibration windows that
    judge, (before, after); with a budget or dry_run also "predicted_loss" (nats per token that
    quantization adds), "calibration_ppl", "predicted_ppl" (of the calibration text) and "plan"
    ([{"name", "type", "outliers", "bytes", "loss"}]); with dry_run "estimated_seconds" and
    "estimated_peak_rss_bytes" of the export; with verify, "verify" (see verify.verify); with
    report_only only "sensitivities" ([{"name", "shape", "choices": [{"type", "outliers", "bytes",
    "loss"}]}]) and what is known of model and calibration. Raises GwqError.
    """
    asked, started = {k: v for k, v in locals().items() if k not in _ASIDE}, time.monotonic()
    from gwq_export.compute.results import Memory, Workdir
    from gwq_export.compute.threads import one_thread_each
    from gwq_export.files import check_place
    from gwq_export.format.writer import file_size
    from gwq_export.hf.config_to_gguf import config_keys, rope_factors
    from gwq_export.hf.gguf_source import GGUFSource
    from gwq_export.hf.hub import commit, resolve
    from gwq_export.hf.source import Source
    from gwq_export.native.library import Pool
    from gwq_export.pipeline.artifacts import finish, write_sensitivities
    from gwq_export.pipeline.estimate import Estimate
    from gwq_export.pipeline.imatrix import write_imatrix
    from gwq_export.pipeline.norm_tuning import share, worthwhile
    from gwq_export.pipeline.options import check_outputs
    from gwq_export.pipeline.provenance import general_keys, provenance_keys
    from gwq_export.pipeline.tensors import encode, read, write
    from gwq_export.tokenizer.from_hf import to_metadata
    from gwq_export.tokenizer.tokenizer import Tokenizer

    progress = progress or (lambda phase, done, total: None)
    budgeted = bpw is not None or size is not None
    if budgeted and (type is not None or stock is not None or preset != "default"):
        raise GwqError(
            "--bpw and --size choose the types themselves: leave out --type, --stock and --preset, or fix tensors with --tensor-type"
        )
    verify = verify or verify_text is not None or max_kld is not None
    check_outputs(out, dry_run, verify, report, report_only, card, imatrix, base)
    recipe, samples = options(preset, type, outliers, saliency, samples, ctx, seed, stock)
    tensor_type, exclude = ([x] if isinstance(x, str) else x for x in (tensor_type, exclude))
    overrides, device = overrides_of(tensor_type, exclude), _device(device)
    writes = not dry_run and not report_only
    if writes:
        check_place(out)
    folder = resolve(model, revision, weights=base is None)
    source = Source(folder) if base is None else GGUFSource(folder, base)
    limit = source.integer("max_position_embeddings")
    if ctx > limit:
        log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, limit)
        ctx = limit
    entries = plan(source, recipe, overrides)
    budget = budget_bytes(bpw, size, sum(map(weights, entries)))
    tokens = to_metadata(source.folder, source.vocab, tokenizer_pre)
    source.check_vocabulary(tokens)
    name = (
        str(model) if source.folder != Path(model) else source.folder.resolve().name
    )  # a hub id, or a folder's name
    header = (
        general_keys(source, name, "mixed" if budgeted else recipe.type.name)
        | config_keys(source)
        | tokens
    )
    calibration, tiles = None, [e for e in entries if e.recipe.encoded]
    if budgeted or imatrix or report_only or any(e.recipe.statistics for e in tiles):
        calibration = draw_calibration(Tokenizer(tokens), calib, samples, ctx, seed)
    windows = (
        draw_held_out(Tokenizer(tokens), verify_text, calib, calibration, ctx, seed)
        if verify
        else None
    )
    if tiles and recipe.type.levels and recipe.outliers:
        header[bridge.VERSION_KEY] = np.uint32(bridge.VERSION)
    if tiles:
        header |= provenance_keys(
            recipe,
            calibration,
            preset=preset,
            seed=seed,
            source_name=name,
            budget_bytes=budget,
            source_revision=commit(source.folder),
            norms_tuned=False,
        )
    header |= {f"gwq.{key}": value for key, value in source.provenance.items()}
    factors = rope_factors(source)

    def laid_out(entries):
        layout = [
            (name, TYPES[kind], shape)
            for e in entries
            for name, kind, shape in e.recipe.tensors(e.name, e.shape)
        ]
        return layout + [(name, TYPES["f32"], array.shape) for name, array in factors.items()]

    found, pool = {}, Pool()
    estimate = Estimate(partial(encode, pool)) if dry_run else None
    with (
        one_thread_each(),
        Workdir(work_dir, _identity(asked, source, calibration)) if work_dir else Memory() as work,
    ):
        _check_space(
            out, budget or file_size(header, laid_out(entries)), source, calibration, work, writes
        )
        if calibration and (report_only or (tiles and (budgeted or dry_run))):
            from gwq_export.pipeline.sensitivity import fit, sensitivities

            free = budgeted or report_only
            offers = sensitivities(
                source,
                entries,
                calibration,
                free,
                outliers,
                device,
                progress,
                work.section("sensitivity"),
                estimate,
            )
            if report_only:
                work.clear()
                return write_sensitivities(report, name, source, entries, calibration, offers)
            if budgeted:
                entries = fit(
                    entries, offers, budget, lambda entries: file_size(header, laid_out(entries))
                )
            found = _predicted(entries, offers, calibration)
        result = {"out": str(out)} | sizes(entries, file_size(header, laid_out(entries))) | found
        tuned = norms and worthwhile(entries, result["bpw_linear"], calibration)
        if tiles:
            header["gwq.norms_tuned"] = tuned
        if dry_run:
            for e in entries:
                if not e.recipe.statistics:
                    estimate.sample(e, partial(read, source, e.sources[0]), {})
            after = share(*calibration.tokens.shape) if tuned else 0
            result |= {
                "estimated_seconds": estimate.seconds(entries, budgeted, after),
                "estimated_peak_rss_bytes": peak_rss(),
            }
        else:
            if imatrix:
                write_imatrix(imatrix, source, calibration, calib or CALIBRATION, device, progress)
            kld = write(
                out,
                header,
                laid_out(entries),
                factors,
                entries,
                source,
                calibration,
                device,
                progress,
                work.section("tensors"),
                pool,
                tuned,
            )
            result |= {"norms_kld": kld} if kld else {}
            work.clear()
    if calibration:
        _warn_of_experts(calibration.reached)
    result |= {"seconds": round(time.monotonic() - started, 3), "peak_rss_bytes": peak_rss()}
    if calibration and calibration.losses:
        result |= {
            "calibration_tokens": calibration.tokens.numel(),
            "calibration_loss": calibration.loss,
        }
    return (
        result
        if dry_run
        else finish(
            out, source, entries, result, model, windows, max_kld, report, card, device, progress
        )
    )


def _warn_of_experts(reached):
    """Name the experts that calibration says little of; reached: {matrix of an expert: tokens}."""
    from gwq_export.calibration.statistics import ENOUGH

    experts = {name.rsplit(".", 2)[0]: tokens for name, tokens in reached.items()}
    few = [name for name, tokens in experts.items() if tokens < ENOUGH]
    if few:
        log.warning(
            "%d of %d experts met fewer than %d calibration tokens and are quantized by their weights alone; more --samples "
            "reach more of them: %s%s",
            len(few),
            len(experts),
            ENOUGH,
            ", ".join(few[:8]),
            ", ..." if few[8:] else "",
        )


def _predicted(entries, offers, calibration):
    """What the sensitivity pass says of the entries' recipes."""
    from gwq_export.pipeline.sensitivity import loss_of

    losses = {e.name: loss_of(e, offers[e.name]) for e in entries if e.name in offers}
    before, added = calibration.loss, sum(losses.values())
    rows = [
        {
            "name": e.name,
            "type": e.recipe.type.name,
            "outliers": e.recipe.outlier_count(e.shape),
            "bytes": stored_bytes(e),
            "loss": losses.get(e.name),
        }
        for e in entries
    ]
    return {
        "predicted_loss": added,
        "calibration_ppl": math.exp(before),
        "predicted_ppl": math.exp(before + added),
        "plan": rows,
    }


def _identity(asked, source, calibration):
    """What a work folder must agree with: the options and the versions and files that decide what
    comes out.
    """
    import torch

    versions = {"gwq-export": __version__, "torch": torch.__version__}
    return asked | {
        "versions": versions,
        "files": source.files,
        "calibration": calibration and calibration.hash,
    }


def _check_space(out, nbytes, source, calibration, work, writes):
    """Raise GwqError when the disks have no room for what an export is going to write."""
    from gwq_export.compute.results import check_space

    wanted = [(Path(out).absolute().parent, nbytes, str(out))] if writes else []
    if work.folder:
        states = (
            (source.layers + 4) * calibration.tokens.numel() * source.dims["dim"] * 4
            if calibration
            else 0
        )
        wanted.append(
            (
                work.folder,
                max(0, states + nbytes * writes - work.nbytes),
                f"--work-dir {work.folder}",
            )
        )
    check_space(wanted)
