"""The study that says where the time of an export goes."""

import subprocess
import sys
from types import SimpleNamespace

import torch

from studies.export_profile import PHASES, operations
from tests.support.paths import ROOT


def test_every_phase_is_timed_and_compared(tiny, tmp_path, calib):
    """In a process of its own, whose functions report to a clock."""
    options = ["--bpw", "4.5", "--tune", "1", "--samples", "8", "--ctx", "32", "--calib", calib]
    command = [sys.executable, "-m", "studies.export_profile", "--dir", tmp_path]
    done = subprocess.run(
        [*command, tiny("llama"), "--", *options], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    rows = [line.strip("| ").split(" | ") for line in done.stdout.splitlines() if "|" in line]
    phases = {name: values for name, *values in rows}
    assert {"import", "forward", "backward", "encode: feedback", "predict: search"} <= set(phases)
    assert {"tuning", "statistics on disk", "all"} <= set(phases) <= {*PHASES, *KNOWN}
    for name in ("forward", "backward", "encode: sweep", "predict: search"):
        assert len(phases[name]) == 4, f"{name} has a floor"


KNOWN = {"phase", "---", "import", "rest", "all"}


def test_operations_of_a_dense_model():
    """2 for each weight and token forward, 4 backward: the block runs again, and its input alone
    is differentiated.
    """

    class Plan:
        def __init__(self, name, shape, linear=True):
            self.name, self.shape, self.linear = name, shape, linear
            self.weights = shape[0] * shape[1]
            self.recipe = type("Recipe", (), {"encoded": True})

    plans = [
        Plan("token_embd.weight", (50, 8), linear=False),
        Plan("blk.0.attn_q.weight", (8, 8)),
        Plan("blk.0.ffn_down.weight", (8, 24)),
    ]
    calibration = SimpleNamespace(tokens=torch.zeros(2, 5))
    found = operations(SimpleNamespace(calibration=calibration, plans=plans), False)
    assert found["forward"] == ("float32", 2 * 10 * 256)
    assert found["backward"] == ("float32", 4 * 10 * 256)
    assert found["head"] == ("float32", 4 * 10 * 400)
    assert found["encode: sweep"] == ("float32", 2 * (8 * 8**2 + 8 * 24**2))
    dtype, flop = found["factor of the curvature"]
    assert dtype == "float64" and round(3 * flop) == 2 * (8**3 + 24**3)
