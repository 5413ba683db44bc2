"""studies/claims: the table of the paper's claims, on a few tokens."""

import json
import subprocess
import sys

import numpy as np
import pytest

from studies import claims, claims_rows
from studies.paths import DATA
from tests.support.paths import ROOT

ITEMS = {
    "piqa": {
        "query": "To open a door,",
        "choices": ["turn the handle", "turn the page"],
        "gold": 0,
    },
    "arc_easy": {
        "query": "What do plants need?",
        "choices": ["light", "paper", "shoes"],
        "gold": 0,
    },
    "winogrande": {
        "context_options": ["Ann fell, so Ann", "Ann fell, so Bob"],
        "continuation": "was hurt.",
        "gold": 0,
    },
    "hellaswag_2000": {
        "query": "A man sits down. He",
        "choices": ["reads", "melts", "rains", "is tall"],
        "gold": 0,
    },
}


@pytest.fixture
def data(tmp_path):
    """A folder like ../shared/data, as small as it may be."""
    text = (DATA / "eval.txt").read_text(encoding="utf-8")
    for name in ("text", "tasks"):
        (tmp_path / "data" / name).mkdir(parents=True)
    (tmp_path / "data/text/wiki.test.raw").write_text(text[:4000], encoding="utf-8")
    lines = [json.dumps({"text": part}) for part in (text[5000:7000], text[8000:10000])]
    (tmp_path / "data/text/c4_sample_1000.jsonl").write_text("\n".join(lines), encoding="utf-8")
    for name, item in ITEMS.items():
        (tmp_path / f"data/tasks/{name}.jsonl").write_text(
            json.dumps(item) + "\n", encoding="utf-8"
        )
    return tmp_path / "data"


def test_every_claim_has_a_row_with_a_figure_or_a_reason(data, tmp_path):
    out = tmp_path / "claims.md"
    subprocess.run(
        [sys.executable, "-m", "studies.claims", "--quick", "--data", data, "--out", out],
        check=True,
        capture_output=True,
        cwd=ROOT,
    )
    text = out.read_text(encoding="utf-8")
    rows = [
        [cell.strip() for cell in line.replace("\\|", "").split("|")[1:-1]]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    assert {len(row) for row in rows} == {len(claims_rows.COLUMNS) + 4}
    found = {row[0]: row for row in rows}
    for claim in (
        "low-bit format",
        "lower perplexity",
        "higher zero-shot accuracy",
        "one calibration set is enough",
        "faster",
    ):
        assert found[claim][-2][0].isdigit(), claim
    assert found["gradients locate outliers better than the Hessian"][3][0].isdigit()
    for claim, reason in claims.UNCHECKED.items():
        assert found[claim][1] == "not checked" and found[claim][-1] == reason
    assert found["lower perplexity"][1] == "WikiText-2" and any(row[1] == "C4" for row in rows)
    assert "KL divergence with outliers by |gradient|" in text and "not measured: no" not in text


def test_without_data_the_rows_that_are_missing_are_named(tmp_path):
    ((name, text, _),) = claims_rows.texts(tmp_path)
    assert name.endswith("eval.txt") and text
    (row,) = claims_rows.task_rows(tmp_path, 1, None, [])
    assert "zero-shot" in row and "not measured" in row


def test_divergences_are_compared_with_their_ranges():
    a = {"gwq4": np.array([0.9, 1.1]), "gwq3": np.array([0.5, 0.5])}
    b = {"gwq4": np.array([1.0]), "gwq3": np.array([1.0])}
    assert claims_rows.changed(a, b) == "+0 % at gwq4 (ranges overlap) and -50 % at gwq3"


def test_remembered_logits_are_computed_once():
    calls = []

    def logits(ids, keep, reuse=False):
        calls.append(ids)
        yield np.ones((keep, 4), np.float32)

    predictor = claims_rows.remembered(claims_rows.Predictor(8, logits))
    first, second = (list(predictor.logits([1, 2, 3], 2)) for _ in range(2))
    assert len(calls) == 1 and np.array_equal(first, second)
