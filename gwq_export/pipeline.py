"""The pipeline: Hugging Face model -> plan -> gradients -> quantized tensors -> GGUF, one tensor at a time.

Sizes follow from shapes and outlier counts, so the header is written first and every tensor goes to its place as
soon as its block's gradients exist (last block first).
"""

import json
import logging
import math
import resource
import sys
import time
from pathlib import Path

from gwq_export import GwqError
from gwq_export.container import Reader
from gwq_export.format import TYPES
from gwq_export.plan import budget_bytes, options, overrides_of, permute, permute_statistics, plan, sizes, stored_bytes, weights
from gwq_export.texts import check_output, save

log = logging.getLogger("gwq_export")

CALIBRATION = Path(__file__).parent / "data" / "calibration.txt"


def _read_ids(tokenizer, path, flag):
    """Token ids of a text file. Raises GwqError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(f"{flag} {path}: cannot be read as UTF-8 text ({e}); give a text file") from None
    if not text.strip():
        raise GwqError(f"{flag} {path}: the text is empty; give a longer one")
    return tokenizer.encode(text, special=False, bos=False)


def _bos(tokenizer):
    return tokenizer.bos if tokenizer.add_bos else None


def draw_calibration(tokenizer, calib, samples, ctx, seed):
    """A Calibration of samples x ctx tokens of the text file calib, None for the bundled one. Raises GwqError."""
    from gwq_export.calibrate import Calibration, sample_tokens

    ids = _read_ids(tokenizer, calib or CALIBRATION, "--calib")
    found = Calibration(sample_tokens(ids, samples, ctx, seed, _bos(tokenizer)))
    if len(found.tokens) < samples:
        log.warning("the calibration text gives %d samples of %d tokens, not %d", *found.tokens.shape, samples)
    return found


def draw_held_out(tokenizer, text, calib, calibration, ctx, seed):
    """Windows for `verify`: of the text file `text`, else of what calibration (None: nothing) left of its own. Raises GwqError."""
    from gwq_export.verify import held_out

    ids = _read_ids(tokenizer, text or calib or CALIBRATION, "--verify-text" if text else "--calib")
    return held_out(ids, None if text else calibration, ctx, seed, _bos(tokenizer))


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


def export(model, out, *, type=None, outliers=None, saliency=None, preset="default", bpw=None, size=None, tensor_type=(),
           exclude=(), calib=None, samples=None, ctx=512, seed=0, device="cpu", revision=None, tokenizer_pre=None, dry_run=False,
           verify=False, verify_text=None, max_kld=None, report=None, report_only=False, card=None, progress=None):  # fmt: skip
    """Quantize a Hugging Face model (folder or hub id) into the GGUF file `out`.

    type: of the decoder's linear layers (plan.EXPORT_TYPES), default gwq4. outliers: fraction of each kept in FP16; saliency:
    name of a rule in saliency.SALIENCY; both by default the preset's. bpw (bits per weight of the whole file) or size (bytes,
    or text such as "640MiB"): a budget, under which type and outliers of every matrix are chosen. tensor_type:
    "REGEX=TYPE" strings, later ones win; exclude: regular expressions of matrices that stay F16, whatever else is asked.
    calib: UTF-8 text file, default the bundled text; samples x ctx tokens of it are
    used. progress(phase, done, total) is called as work goes on. dry_run: calibrate and plan, write nothing. verify: compare
    the finished file with the model on text that calibration did not see (or the file verify_text), and raise GwqError, with the
    file kept, when the KL divergence is above max_kld (nats per token, default verify.MAX_KLD). report: a page (HTML) to write,
    card: a model card (Markdown). report_only: measure what every type would cost each matrix, write that as the report (HTML, or
    JSON by its suffix) and no file; out may be None.

    Returns {"out", "bytes", "params", "bpw", "bpw_linear", "outlier_fraction", "seconds", "peak_rss_bytes"}; when calibrated,
    "calibration_tokens" and "calibration_loss" (nats per token); with a budget or dry_run also "predicted_loss" (nats per
    token that quantization adds), "calibration_ppl", "predicted_ppl" (of the calibration text) and "plan" ([{"name", "type",
    "outliers", "bytes", "loss"}]); with verify, "verify" (see verify.verify); with report_only only "sensitivities" ([{"name",
    "shape", "choices": [{"type", "outliers", "bytes", "loss"}]}]) and what is known of model and calibration. Raises GwqError.
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
    budgeted = bpw is not None or size is not None
    if budgeted and (type is not None or preset != "default"):
        raise GwqError("--bpw and --size choose the types themselves: leave out --type and --preset, or fix tensors with --tensor-type")
    verify = verify or verify_text is not None or max_kld is not None
    _check_outputs(out, dry_run, verify, report, report_only, card)
    type = (type or "gwq4").lower()
    recipe, samples = options(preset, type, outliers, saliency, samples, ctx, seed)
    tensor_type, exclude = ([x] if isinstance(x, str) else x for x in (tensor_type, exclude))
    overrides, device = overrides_of(tensor_type, exclude), _device(device)
    source = Source(resolve(model, revision))
    limit = source.integer("max_position_embeddings")
    if ctx > limit:
        log.warning("--ctx %d is longer than the model's context: cut to %d", ctx, limit)
        ctx = limit
    entries = plan(source, recipe, overrides)
    budget = budget_bytes(bpw, size, sum(map(weights, entries)))
    tokens = to_metadata(source.folder, source.vocab, **({"pre": tokenizer_pre} if tokenizer_pre else {}))
    name = str(model) if source.folder != Path(model) else source.folder.resolve().name  # a hub id, or a folder's name
    header = keys.general_keys(source, name, "mixed" if budgeted else type) | keys.config_keys(source) | tokens
    calibration, tiles = None, [e for e in entries if e.recipe.type.bits]
    if budgeted or report_only or any(e.recipe.statistics for e in tiles):
        calibration = draw_calibration(Tokenizer(tokens), calib, samples, ctx, seed)
    windows = draw_held_out(Tokenizer(tokens), verify_text, calib, calibration, ctx, seed) if verify else None
    if tiles:
        header |= keys.provenance_keys(recipe, calibration, preset=preset, seed=seed, source_name=name, source_revision=revision,
                                       budget_bytes=budget)  # fmt: skip
    factors = keys.rope_factors(source)

    def laid_out(entries):
        layout = [(name, TYPES[kind], shape) for e in entries for name, kind, shape in e.recipe.tensors(e.name, e.shape)]
        return layout if factors is None else [*layout, ("rope_freqs.weight", TYPES["f32"], factors.shape)]

    found = {}
    if report_only:
        return _sensitivities(source, entries, calibration, outliers, device, progress, name, report)
    if calibration and (budgeted or dry_run):
        from gwq_export.survey import fit, survey

        offers = survey(source, entries, calibration, budgeted, outliers, device, progress)
        if budgeted:
            entries = fit(entries, offers, budget, lambda entries: file_size(header, laid_out(entries)))
        found = _predicted(entries, offers, calibration)
    result = {"out": str(out)} | sizes(entries, file_size(header, laid_out(entries))) | found
    if not dry_run:
        _write(out, header, laid_out(entries), entries, source, calibration, factors, device, progress)
    result |= {"seconds": round(time.monotonic() - started, 3), "peak_rss_bytes": peak_rss()}
    if calibration and calibration.losses:
        result |= {"calibration_tokens": calibration.tokens.numel(), "calibration_loss": calibration.loss}
    return result if dry_run else _finish(out, source, entries, result, model, windows, max_kld, report, card, device, progress)


def _check_outputs(out, dry_run, verify, report, report_only, card):
    """Raises GwqError for options of what comes after the file that cannot be together, or for names that cannot be written."""
    if out is None and not report_only:
        raise GwqError("--out FILE.gguf is missing: give the name of the file to write")
    if report_only and (dry_run or verify or card):
        raise GwqError("--report-only writes no model: leave out --dry-run, --verify and --card")
    if dry_run and (verify or report or card):
        raise GwqError("--dry-run writes nothing: leave out --verify, --report and --card, or use --report-only")
    for path, flag in ((report, "--report"), (card, "--card")):
        if path is not None:
            check_output(path, flag)


def _finish(out, source, entries, result, model, windows, max_kld, report, card, device, progress):
    """What is asked for once the file is there: comparison, page and card; `result` with what was found."""
    if windows is not None:
        from gwq_export.verify import judge, verify

        result |= {"verify": verify(out, source, entries, windows, device, progress)}
    if report is not None:
        from gwq_export.facts import gather
        from gwq_export.report import page

        save(report, page(gather(Reader(out)) | result), "--report")
    if card is not None:
        from gwq_export.card import card as text

        save(card, text(Reader(out), source, str(model), result), "--card")
    if windows is not None:
        judge(out, result["verify"], max_kld)
    return result


def _sensitivities(source, entries, calibration, fraction, device, progress, name, report):
    """What every type would cost each matrix, nats per token; written to `report` unless that is None."""
    from gwq_export.survey import survey

    offers = survey(source, entries, calibration, True, fraction, device, progress)
    rows = [{"name": e.name, "shape": list(e.shape), "choices": [_choice(c) for c in offers[e.name]]} for e in entries if e.name in offers]
    found = {"name": name, "arch": source.arch.gguf, "params": sum(map(weights, entries)), "calibration_tokens": calibration.tokens.numel(),
             "calibration_sha256": calibration.hash, "calibration_ppl": math.exp(calibration.loss), "sensitivities": rows}  # fmt: skip
    if report is not None:
        from gwq_export.report import page

        save(report, json.dumps(found, indent=1) + "\n" if str(report).endswith(".json") else page(found), "--report")
    return found


def _choice(c):
    return {"type": c.recipe.type.name, "outliers": c.recipe.outliers, "bytes": c.nbytes, "loss": c.loss}


def _predicted(entries, offers, calibration):
    """What the survey says of the entries' recipes."""
    from gwq_export.survey import loss_of

    losses = {e.name: loss_of(e, offers[e.name]) for e in entries if e.name in offers}
    before, added = calibration.loss, sum(losses.values())
    rows = [{"name": e.name, "type": e.recipe.type.name, "outliers": e.recipe.outlier_count(e.shape), "bytes": stored_bytes(e),
             "loss": losses.get(e.name)} for e in entries]  # fmt: skip
    return {"predicted_loss": added, "calibration_ppl": math.exp(before), "predicted_ppl": math.exp(before + added), "plan": rows}


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
            curvatures = Curvatures(calibration.tokens.numel())
            for name, weight, found in gradients(source, calibration, statistics, ends, device, progress):
                if name in calibrated:
                    _store(writer, calibrated[name], weight, curvatures.put(found), pool)
        done, total = 0, sum(map(weights, others))
        for entry in others:
            _store(writer, entry, source.tensor(entry.source).numpy(), {}, pool)
            done += weights(entry)
            progress("write", done, total)


def _store(writer, entry, weight, statistics, pool):
    from gwq_export.quantize import quantize

    weight = permute(weight, entry.heads)
    statistics = permute_statistics(statistics, entry.heads)
    try:
        parts = quantize(weight, statistics, entry.recipe, pool.ptr)
    except GwqError as e:
        raise GwqError(f"{entry.name}: {e}") from None
    for (name, _, _), data in zip(entry.recipe.tensors(entry.name, entry.shape), parts, strict=True):
        writer.write(name, data)
