"""What an export gives beside the file: a comparison with the source, a page, a model card."""

import json
import math
from pathlib import Path

from gwq_export import GwqError
from gwq_export.container import Reader
from gwq_export.plan import weights
from gwq_export.texts import check_output, save


def check_outputs(out, dry_run, verify, report, report_only, card, imatrix, base):
    """Raises GwqError for options of what comes after the file that cannot be together, or for names that cannot be written."""
    if out is None and not report_only:
        raise GwqError("--out FILE.gguf is missing: give the name of the file to write")
    if report_only and (dry_run or verify or card):
        raise GwqError("--report-only writes no model: leave out --dry-run, --verify and --card")
    if dry_run and (verify or report or card):
        raise GwqError("--dry-run writes nothing: leave out --verify, --report and --card, or use --report-only")
    if imatrix and report_only:
        raise GwqError("--report-only writes no model: leave out --imatrix, or use --dry-run")
    if imatrix and Path(imatrix).absolute() == Path(out).absolute():
        raise GwqError(f"--imatrix {imatrix}: that is the name of the model's file; give another one")
    if base and out and Path(base).resolve() == Path(out).resolve():
        raise GwqError(f"--base {base}: that is the file to be written; give --out another name")
    for path, flag in ((report, "--report"), (card, "--card")):
        if path is not None:
            check_output(path, flag)


def finish(out, source, entries, result, model, windows, max_kld, report, card, device, progress):
    """What is asked for once the file is there: comparison, page and card; `result` with what was found.

    Raises GwqError, with that as its `result`, when the comparison finds damage.
    """
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
        try:
            judge(out, result["verify"], max_kld)
        except GwqError as e:
            e.result = result
            raise
    return result


def write_sensitivities(report, name, source, entries, calibration, offers):
    """What every type would cost each matrix (`offers` of a survey), nats per token; written to `report` unless that is None."""
    rows = [{"name": e.name, "shape": list(e.shape), "choices": [_choice(c) for c in offers[e.name]]} for e in entries if e.name in offers]
    found = {"name": name, "arch": source.arch.gguf, "params": sum(map(weights, entries)), "calibration_tokens": calibration.tokens.numel(),
             "calibration_sha256": calibration.hash, "calibration_ppl": math.exp(calibration.loss), "sensitivities": rows}  # fmt: skip
    if report is not None:
        from gwq_export.report import page

        save(report, json.dumps(found, indent=1) + "\n" if str(report).endswith(".json") else page(found), "--report")
    return found


def _choice(c):
    return {"type": c.recipe.type.name, "outliers": c.recipe.outliers, "bytes": c.nbytes, "loss": c.loss}
