"""An export does nothing twice: planning reads headers, and a model is calibrated once."""

from collections import Counter

import numpy as np
import pytest

import gwq_export
from gwq_export.calibration.block_pass import BlockPass
from gwq_export.hf import shards
from gwq_export.pipeline.job import prepare
from gwq_export.pipeline.options import ExportOptions
from gwq_export.quantization import curvature
from gwq_export.quantization.loss_model import OFFERED, Sample
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies.synthetic import LLAMA_7B, write_llama


@pytest.mark.parametrize("options", [{"type": "gwq4"}, {"bpw": 3.5}])
def test_planning_reads_only_headers(tmp_path, monkeypatch, options):
    """Of a folder of Llama 7B's shape, each of them once; the text is encoded once, too."""
    folder = tmp_path / "7b"
    write_llama(folder, 32, LLAMA_7B, hollow=True)
    opened = Counter()

    def counted(path):
        opened[path.name] += 1
        return opening(path)

    opening = shards.open_file
    monkeypatch.setattr(shards, "open_file", counted)
    monkeypatch.setattr(shards.Shards, "read", None)  # no weight is read
    encoded = counting(monkeypatch, Tokenizer, "encode")
    job = prepare(folder, tmp_path / "m.gguf", ExportOptions(dry_run=True, **options))
    assert encoded == [1]
    assert len(opened) == 33 and set(opened.values()) == {1}
    assert sum(p.weights for p in job.plans) == 6_738_415_616
    assert job.file_bytes() > 2**30


def counting(monkeypatch, owner, name):
    """How often a function is called from now on: [times]."""
    work = getattr(owner, name)
    times = [0]

    def call(*args, **kwargs):
        times[0] += 1
        return work(*args, **kwargs)

    monkeypatch.setattr(owner, name, call)
    return times


@pytest.mark.parametrize("options", [{"type": "gwq4"}, {"bpw": 6.0}])
def test_one_calibration(tmp_path, monkeypatch, tiny, calib, options):
    """Under a budget, too, each block runs forward once and backward once."""
    folder = tiny("llama")
    forward = counting(monkeypatch, BlockPass, "forward")
    backward = counting(monkeypatch, BlockPass, "backward")
    job = prepare(folder, tmp_path / "m.gguf", ExportOptions(calib=calib, samples=2, ctx=32))
    gwq_export.export(folder, tmp_path / "m.gguf", calib=calib, samples=2, ctx=32, **options)
    assert forward == [1] and backward == [job.source.layers]


def test_scores_are_put_in_order_once(monkeypatch):
    """For all fractions of outliers that a budget offers, with the thresholds of each."""
    rng = np.random.default_rng(0)
    weight = rng.standard_normal((80, 96)).astype(np.float32)
    statistics = {
        "hessian": np.eye(96, dtype=np.float32),
        "rows": rng.uniform(1, 2, 80).astype(np.float32),
    }
    sample = Sample(weight, statistics)
    times = counting(monkeypatch, np, "partition")
    shares = sorted({f for fractions in OFFERED.values() for f in fractions if f})
    for share in (*shares, 0.3):  # more than is offered
        count = round(share * weight.size)
        found = sample._outliers(count)
        threshold = np.sort(sample.score.ravel())[-count]
        assert np.array_equal(found, (sample.score >= threshold)[sample.rows])
        assert times == [1 if share < 0.3 else 2]
    assert sample._outliers(0) is None


def test_matrices_with_the_same_inputs_share_a_factor(monkeypatch):
    times = counting(monkeypatch, curvature, "cholesky_inverse")
    hessian = np.eye(64, dtype=np.float32)
    curvatures = curvature.Curvatures(100)
    for _ in range(3):
        statistics = curvatures.put({"hessian": hessian, "rows": np.ones(16, np.float32)})
        assert statistics["hessian"].factor.shape == (64, 64)
    assert times == [1]


def test_a_budget_factorizes_each_hessian_twice(tmp_path, monkeypatch, tiny, calib):
    """For the choice and for the codes: matrices with the same inputs are neighbours in both."""
    times = counting(monkeypatch, curvature, "cholesky_inverse")
    options = {"bpw": 6.0, "fast": True, "calib": calib, "samples": 2, "ctx": 32}
    gwq_export.export(tiny("llama"), tmp_path / "m.gguf", **options)
    inputs = 3 * len(["q, k, v", "output", "gate, up", "down"]) + len(["embedding", "head"])
    assert inputs < times[0] <= 2 * inputs
