"""Writing: a file under its name is whole, and what goes wrong leaves what was there."""

import errno
import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.format.writer import Writer, file_size
from tests.support.gguf_files import ONE, leftovers, write


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, GwqError])
@pytest.mark.parametrize("old", [None, b"the old file"])
def test_a_crash_leaves_what_was_there(tmp_path, error, old):
    path = tmp_path / "a.gguf"
    if old:
        path.write_bytes(old)
    with pytest.raises(error), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        assert Path(w.part).stat().st_size == w.nbytes == file_size({}, ONE)
        raise error
    assert leftovers(path) == (["a.gguf"] if old else [])
    assert not old or path.read_bytes() == old


def test_a_stale_part_is_replaced(tmp_path):
    (tmp_path / "a.gguf.part").write_bytes(b"x" * 9999)
    path = write(tmp_path / "a.gguf", {}, ONE, {"n": bytes(12), "m": bytes(16)})
    assert leftovers(path) == ["a.gguf"] and path.stat().st_size == file_size({}, ONE)


def test_two_writers_of_one_name(tmp_path):
    path = tmp_path / "a.gguf"
    first, second = Writer(path, {"a": 1}, ONE), Writer(path, {"a": 2}, ONE)
    for w in (first, second):
        w.write("n", bytes(12))
        w.write("m", bytes(16))
    with pytest.raises(GwqError, match="another export"):
        first.close()
    second.close()
    assert Reader(path).metadata["a"] == 2 and leftovers(path) == ["a.gguf"]


def test_no_space(tmp_path, monkeypatch):
    path = tmp_path / "a.gguf"
    path.write_bytes(b"old")
    with monkeypatch.context() as m:
        m.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 10, 100))
        with pytest.raises(GwqError, match=f"needs {file_size({}, ONE)} bytes and 100 are free"):
            Writer(path, {}, ONE)
    pwrite = os.pwrite
    calls = []

    def full(*args):
        calls.append(args)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return pwrite(*args)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(GwqError, match="No space left"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        w.write("m", bytes(16))
    assert leftovers(path) == ["a.gguf"] and path.read_bytes() == b"old"


def test_failing_flush(tmp_path, monkeypatch):
    def fail(fd):
        raise OSError(errno.EIO, "Input/output error")

    path = tmp_path / "a.gguf"
    w = Writer(path, {}, [])
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(GwqError, match="Input/output"):
        w.close()
    assert leftovers(path) == []


def test_short_writes_are_continued(tmp_path, monkeypatch):
    pwrite = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: pwrite(fd, data[:5], at))
    path = write(
        tmp_path / "a.gguf",
        {"k": "v"},
        ONE,
        {"n": np.arange(3, dtype=np.float32), "m": np.ones((2, 4), np.float16)},
    )
    assert Reader(path).tensors["n"].dequantize().tolist() == [0, 1, 2]
    assert Reader(path).tensors["m"].dequantize().sum() == 8


def test_places_that_cannot_be_written(tmp_path):
    (tmp_path / "folder").mkdir()
    for path in (
        tmp_path / "folder",
        tmp_path / "absent" / "a.gguf",
        os.devnull,
        tmp_path / ("x" * 300),
    ):
        with pytest.raises(GwqError) as caught:
            Writer(path, {}, ONE)
        assert Path(path).name[:9] in str(caught.value) or "absent" in str(caught.value)
    assert leftovers(tmp_path / "folder") == ["folder"] and Path(os.devnull).is_char_device()


def test_faults_of_the_caller(tmp_path):
    path = tmp_path / "a.gguf"
    with pytest.raises(ValueError, match="same name"):
        Writer(path, {}, [ONE[0], ONE[0]])
    for bad in (
        ("", TYPES["f32"], (1,)),
        ("x" * 64, TYPES["f32"], (1,)),
        ("n", TYPES["f32"], ()),
        ("n", TYPES["f32"], (0, 4)),
    ):
        with pytest.raises(ValueError, match="cannot be written"):
            Writer(path, {}, [bad])
    with pytest.raises(GwqError, match=r"tensor n.*32"):
        Writer(path, {}, [("n", TYPES["q8_0"], (2, 33))])
    for value in (None, {}, [1, 2], np.zeros((2, 2)), np.array(["a"]), 1j, b"x"):
        with pytest.raises(ValueError, match="metadata k"):
            Writer(path, {"k": value}, [])
    with pytest.raises(GwqError, match="UTF-8"):
        Writer(path, {"k": "\ud800"}, [])
    with pytest.raises(ValueError, match="tensor n"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(11))
    for part in (0, 1):
        with pytest.raises(ValueError, match="twice"), Writer(path, {}, ONE) as w:
            w.write("n", bytes(4), part, 3)
            w.write("n", bytes(4), part, 3)
    with pytest.raises(ValueError, match="never written: m, n"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(4), 0, 3)
        w.write("n", bytes(4), 2, 3)
    with pytest.raises(ValueError, match="twice"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
        w.write("n", bytes(12))
    with pytest.raises(ValueError, match="never written: m"), Writer(path, {}, ONE) as w:
        w.write("n", bytes(12))
    assert leftovers(path) == []
