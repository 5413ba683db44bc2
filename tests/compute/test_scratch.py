"""Results on the disk that leave no trace."""

import os

import numpy as np
import pytest

from gwq_export.compute import scratch
from gwq_export.compute.scratch import SMALL, Scratch

LARGE = np.arange(SMALL, dtype=np.float32)


def test_results_come_back(tmp_path):
    with Scratch(tmp_path) as results:
        results.put("large", LARGE, LARGE[:3].astype(np.int64), np.array(7))
        results.put("small", LARGE[:3])
        results.put("slice", LARGE.reshape(-1, 8)[:, ::2])
        assert not list(tmp_path.iterdir())  # no name that a killed run would leave behind
        for _ in range(2):
            first, second, number = results.need("large")
            assert np.array_equal(first, LARGE) and second.tolist() == [0, 1, 2]
            assert int(number) == 7 and number.shape == ()
        first[:] = 0  # a copy
        assert np.array_equal(results.need("large")[0], LARGE)
        assert np.array_equal(results.need("slice")[0], LARGE.reshape(-1, 8)[:, ::2])
        assert "large" in results and "small" in results
        assert results.get("other") is None and "other" not in results
        results.put("large", LARGE[:1])  # now small
        assert results.need("large")[0].tolist() == [0]
        results.drop("small")
        assert "small" not in results


def test_sections_do_not_collide(tmp_path):
    with Scratch(tmp_path) as results:
        results.put("a", LARGE)
        section = results.section("other")
        section.put("a", LARGE + 1)
        assert results.need("a")[0][0] == 0 and section.need("a")[0][0] == 1


def test_what_is_dropped_gives_its_file_back(tmp_path):
    def opened() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = opened()
    with Scratch(tmp_path) as results:
        for name in ("a", "b", "c"):
            results.put(name, LARGE)
        assert opened() == before + 3
        results.drop("b")
        results.put("c", LARGE)
        results.section("other").put("c", LARGE)
        assert opened() == before + 3
    assert opened() == before


@pytest.mark.parametrize("place", ["missing", "full"])
def test_a_disk_that_takes_nothing(tmp_path, monkeypatch, place):
    """Results stay in memory."""
    if place == "full":
        if not os.path.exists("/dev/full"):
            pytest.skip("needs /dev/full")
        full = "/dev/full"
        monkeypatch.setattr(scratch.tempfile, "TemporaryFile", lambda dir: open(full, "r+b", 0))  # noqa: SIM115 it stays open
    with Scratch(tmp_path / "missing" if place == "missing" else tmp_path) as results:
        results.put("a", LARGE)
        assert results.need("a")[0] is LARGE
