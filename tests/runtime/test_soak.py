"""Short forms of tools/soak, and that it notices what it looks for."""

import sys

import numpy as np
import pytest

from gwq_export.runtime.session import Session
from tests.soak import __main__ as soak

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
COUNTS = {"reloads": 120, "threads": 1, "models": 12, "tokens": 300}


@pytest.fixture
def file(exported):
    return exported(type="gwq4", samples=2, ctx=64, fast=True)[0]


@pytest.mark.parametrize("name", soak.TRIALS)
def test_holds(file, name, capsys):
    args = [name, "--file", str(file), "--count", str(COUNTS[name])]
    assert soak.main(args) == 0
    assert capsys.readouterr().out.startswith(f"{name}: holds: ")


@pytest.mark.parametrize("bytes_each, grows", [(1 << 20, True), (0, False)])
def test_memory_that_stays_is_noticed(monkeypatch, bytes_each, grows):
    """Beside 100 MiB that are there before; how much this process has is another matter."""
    kept = []
    monkeypatch.setattr(soak, "resident", lambda: (100 << 20) + sum(map(len, kept)))
    grown = soak.growth(150, lambda i: kept.append(bytes(bytes_each)))
    assert (grown > soak.GROWTH) == grows


def test_resident_memory_is_that_of_this_process():
    before = soak.resident()
    kept = np.ones(64 << 20, np.uint8)
    assert soak.resident() - before > 0.9 * kept.nbytes


def test_wrong_logits_are_noticed(file, monkeypatch, capsys):
    forward = Session.forward
    calls = iter(range(1 << 30))

    def sometimes_wrong(self, tokens, keep=1):
        return forward(self, tokens, keep) + (next(calls) % 7 == 6)

    monkeypatch.setattr(Session, "forward", sometimes_wrong)
    for name in ("reloads", "models"):
        assert soak.main([name, "--file", str(file), "--count", "20"]) == 1
        assert "FAILS" in capsys.readouterr().out


def test_a_trial_that_is_none(capsys):
    with pytest.raises(SystemExit):
        soak.main(["nothing"])
    assert "there is no trial nothing: choose from reloads" in capsys.readouterr().err
