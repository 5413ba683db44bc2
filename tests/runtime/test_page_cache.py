"""How a file comes into the page cache."""

import os

import numpy as np
import pytest

import gwq_export
from gwq_export.runtime import page_cache


@pytest.fixture
def cold():
    """cold(path): drop a file from the page cache; skips where the system keeps it."""

    def drop(path):
        with open(path, "r+b") as f:
            os.fsync(f.fileno())
            os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if page_cache.resident(path) > 0.2:
            pytest.skip("this file system does not drop pages, or does not tell")

    return drop


def test_a_cold_file_is_read_through(tmp_path, cold):
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    assert page_cache.resident(path) == 1
    cold(path)
    page_cache.bring_in(path)
    assert page_cache.resident(path) == 1


def test_a_file_is_read_anew(tmp_path, cold, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(bytes(8 << 20))
    cold(path)  # or skips
    page_cache.read_through(path)
    with open(path, "r+b") as f:
        f.write(b"not on the disk yet")
    left = []
    monkeypatch.setattr(page_cache, "read_through", lambda p: left.append(page_cache.resident(p)))
    page_cache.read_anew(path)
    assert len(left) == 1 and left[0] < 0.2


@pytest.mark.parametrize("share, free", [(1.0, 1 << 30), (0.0, 1 << 10)])
def test_what_is_left_alone(tmp_path, monkeypatch, share, free):
    """A warm file, and one that memory has no room for."""
    path = tmp_path / "file"
    path.write_bytes(bytes(1 << 20))
    monkeypatch.setattr(page_cache, "resident", lambda path: share)
    monkeypatch.setattr(page_cache, "free_memory", lambda: free)
    monkeypatch.setattr(page_cache, "read_through", None)
    page_cache.bring_in(path)


def test_a_system_that_does_not_tell(tmp_path, monkeypatch):
    (tmp_path / "empty").touch()
    assert page_cache.resident(tmp_path / "empty") == 1  # which cannot be mapped
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    path = tmp_path / "file"
    path.write_bytes(b"1")
    assert page_cache.resident(path) == 1


def test_every_file_of_a_model_is_brought_in(tiny, exported, monkeypatch):
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    seen = []
    monkeypatch.setattr("gwq_export.runtime.weights.bring_in", seen.append)
    model = gwq_export.load(path)
    assert seen == [part.path for part in model.weights.reader.parts] and seen


def test_a_model_that_is_cold(tiny, exported, cold):
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    expected = gwq_export.load(path).logits([5, 6, 7])
    cold(path)
    assert np.array_equal(gwq_export.load(path).logits([5, 6, 7]), expected)
