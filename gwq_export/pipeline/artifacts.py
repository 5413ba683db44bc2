"""What an export gives beside the file: a comparison with the source, a page, a model card."""

import json
import math

from gwq_export.errors import GwqError
from gwq_export.files import save
from gwq_export.format.reader import Reader
from gwq_export.pipeline.plan import weights


def finish(out, source, entries, result, model, windows, max_kld, report, card, device, progress):
    """What is asked for once the file is there: comparison, page and card; `result` with what was
    found.

    Raises GwqError, with that as its `result`, when the comparison finds damage.
    """
    if windows is not None:
        from gwq_export.pipeline.verify import judge, verify

        result |= {"verify": verify(out, source, entries, windows, device, progress)}
    if report is not None:
        from gwq_export.report.facts import gather
        from gwq_export.report.page import page

        save(report, page(gather(Reader(out)) | result), "--report")
    if card is not None:
        from gwq_export.report.card import card as text

        save(card, text(Reader(out), source, str(model), result), "--card")
    if windows is not None:
        try:
            judge(out, result["verify"], max_kld)
        except GwqError as e:
            e.result = result
            raise
    return result


def write_sensitivities(report, name, source, entries, calibration, offers):
    """What every type would cost each matrix (`offers` of a sensitivity pass), nats per token; written to
    `report` unless that is None.
    """
    rows = [
        {"name": e.name, "shape": list(e.shape), "choices": [_choice(c) for c in offers[e.name]]}
        for e in entries
        if e.name in offers
    ]
    found = {
        "name": name,
        "arch": source.arch.gguf,
        "params": sum(map(weights, entries)),
        "calibration_tokens": calibration.tokens.numel(),
        "calibration_sha256": calibration.hash,
        "calibration_ppl": math.exp(calibration.loss),
        "sensitivities": rows,
    }
    if report is not None:
        from gwq_export.report.page import page

        save(
            report,
            json.dumps(found, indent=1) + "\n" if str(report).endswith(".json") else page(found),
            "--report",
        )
    return found


def _choice(c):
    return {
        "type": c.recipe.type.name,
        "outliers": c.recipe.outliers,
        "bytes": c.nbytes,
        "loss": c.loss,
    }
