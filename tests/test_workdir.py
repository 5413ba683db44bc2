"""Exports that go on after a kill: nothing is computed twice, and the file is that of an undisturbed run, to the bit."""

import contextlib
import os
import random
from collections import Counter

import pytest

import gwq_export

CHANGES = ("replace", "unlink", "fsync", "ftruncate", "pwrite", "mkdir", "open")  # the steps between which a kill can fall


class Killed(BaseException):
    """Stands for SIGKILL: nothing is changed on the disk after it."""


@contextlib.contextmanager
def killed_after(steps):
    """Let `steps` changes of the file system pass and refuse all that follow. Yields a list that holds their number in the end."""
    left = [steps]

    def guarded(change):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as m:
        for name in CHANGES:
            m.setattr(os, name, guarded(getattr(os, name)))
        yield left


@pytest.fixture
def counted(monkeypatch):
    """Counts, by seed of the recipe (one per tensor), how often a tensor was quantized to the end."""
    from gwq_export import quantize

    original, counts = quantize.quantize, Counter()

    def count(weight, statistics, recipe, pool):
        parts = original(weight, statistics, recipe, pool)
        counts[recipe.seed] += 1
        return parts

    monkeypatch.setattr(quantize, "quantize", count)
    return counts


CASES = {
    "gwq3": {"type": "gwq3", "samples": 2, "ctx": 16},
    "budget": {"bpw": 6.0, "outliers": 0.001, "samples": 1, "ctx": 16},  # surveys embedding and head, too
}


@pytest.mark.parametrize("case, kills", [("gwq3", 12), ("budget", 12)])
def test_killed_at_any_step_it_goes_on_to_the_same_bytes(tmp_path, tiny, counted, case, kills):
    out, work, options = tmp_path / "m.gguf", tmp_path / "work", CASES[case]
    gwq_export.export(tiny("llama"), tmp_path / "whole.gguf", **options)
    whole, tensors = (tmp_path / "whole.gguf").read_bytes(), len(counted)
    with killed_after(1 << 30) as left:
        gwq_export.export(tiny("llama"), out, work_dir=work, **options)
    steps = (1 << 30) - left[0]
    assert out.read_bytes() == whole and not list(work.iterdir())
    out.unlink()
    counted.clear()
    rng, happened = random.Random(case), 0
    for _ in range(10 * kills):
        try:
            with killed_after(rng.randrange(2 * steps // kills) if happened < kills else 1 << 30):
                gwq_export.export(tiny("llama"), out, work_dir=work, **options)
            break
        except Killed:
            happened += 1
            assert not out.exists() or out.read_bytes() == whole
    assert happened >= kills / 2 and out.read_bytes() == whole
    assert not list(work.iterdir()) and sorted(p.name for p in tmp_path.iterdir()) == ["m.gguf", "whole.gguf", "work"]
    assert len(counted) == tensors and sum(counted.values()) <= tensors + happened, counted  # the one in hand is lost
