"""What an export gives beside the file: a comparison with the source, a page, a model card."""

import json
import math
import time
from collections.abc import Callable
from typing import Any

from gwq_export.errors import GwqError
from gwq_export.files import save
from gwq_export.format.reader import Reader
from gwq_export.pipeline.job import Job
from gwq_export.pipeline.sensitivity import Offers
from gwq_export.pipeline.verify import judge, verify
from gwq_export.quantization.allocate import Choice
from gwq_export.report.card import card
from gwq_export.report.facts import gather
from gwq_export.report.page import page


def finish(job: Job, result: dict[str, Any], progress: Callable[[str, int, int], None]) -> None:
    """Make what is asked for once the file is there; adds to `result` what that found.

    Raises GwqError, with that as its `result`, when the comparison finds damage.
    """
    options, out = job.options, job.out
    assert out is not None  # check_options has seen to it
    if job.held_out is not None:
        started = time.monotonic()
        result["verify"] = verify(
            out, job.source, job.plans, job.held_out, options.device, progress
        )
        result["verify"]["seconds"] = round(time.monotonic() - started, 3)
    if options.report is not None:
        save(options.report, page(gather(Reader(out)) | result), "--report")
    if options.card is not None:
        save(options.card, card(Reader(out), job.source, str(job.model), result), "--card")
    if job.held_out is not None:
        try:
            judge(out, result["verify"], options.max_kld)
        except GwqError as e:
            e.result = result
            raise


def write_sensitivities(job: Job, offers: Offers) -> dict[str, Any]:
    """What every type would cost each matrix, in nats per token; written to --report if given."""
    calibration = job.calibration
    assert calibration is not None  # --report-only always draws one
    result = {
        "name": job.name,
        "arch": job.source.arch.gguf,
        "params": sum(p.weights for p in job.plans),
        "calibration_tokens": calibration.tokens.numel(),
        "calibration_sha256": calibration.hash,
        "calibration_ppl": math.exp(calibration.loss),
        "sensitivities": [
            {
                "name": p.name,
                "shape": list(p.shape),
                "choices": [_choice(c) for c in offers[p.name]],
            }
            for p in job.plans
            if p.name in offers
        ],
    }
    report = job.options.report
    if report is not None:
        as_json = str(report).endswith(".json")
        text = json.dumps(result, indent=1) + "\n" if as_json else page(result)
        save(report, text, "--report")
    return result


def _choice(choice: Choice) -> dict[str, Any]:
    return {
        "type": choice.recipe.type.name,
        "outliers": choice.recipe.outliers,
        "bytes": choice.nbytes,
        "loss": choice.loss,
    }
