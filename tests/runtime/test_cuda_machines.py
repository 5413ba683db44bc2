"""What can be wrong with a machine that is to run a model on its GPU: one sentence for each."""

import ctypes
import os
import subprocess
import sys

import numpy as np
import pytest

import gwq_export
from gwq_export.errors import GwqError, NoMemory
from gwq_export.native import cuda
from tests.support.cli import assert_one_line, call
from tests.support.forward import IDS, PROMPT

pytestmark = pytest.mark.usefixtures("cuda_device")


def refused(capsys, path, words, device="cuda"):
    status, _, err = call(capsys, "run", path, "-p", PROMPT, "-n", 1, "--device", device)
    assert_one_line("run", status, err, words)


def test_no_library(bundled, monkeypatch, capsys):
    monkeypatch.setenv("GWQ_CUDA_LIBRARY", "/nowhere/libgwq_cuda.so")
    cuda.cuda_lib.cache_clear()
    refused(capsys, bundled, "/nowhere/libgwq_cuda.so is missing: build it with")


def test_a_library_of_other_headers(bundled, monkeypatch, capsys, tmp_path):
    monkeypatch.setenv("GWQ_CUDA_LIBRARY", str(tmp_path / "lib.so"))
    (tmp_path / "lib.so").write_bytes(b"no library")
    cuda.cuda_lib.cache_clear()
    refused(capsys, bundled, "cannot be opened")


def test_machines_that_cannot(bundled, shim, capsys):
    for driver, devices, capability, words in (
        (0, -1, 90, "there is no NVIDIA driver: install or update the NVIDIA driver, or use"),
        (12040, -1, 90, "the NVIDIA driver is of CUDA 12.4, but the library of 13.0: install or"),
        (13000, 0, 90, "this machine has no CUDA device; use --device cpu"),
        (13000, 1, 61, "(compute capability 6.1) is older than 7.5"),
    ):
        shim.gwq_shim_driver(driver, 1)
        shim.gwq_shim_machine(devices, capability)
        refused(capsys, bundled, words)
    shim.gwq_shim_machine(1, 75)
    refused(capsys, bundled, "this machine has 1 CUDA device; choose another", "cuda:1")
    for name in ("cuda:", "cuda:x", "tpu"):
        refused(capsys, bundled, f"--device {name} is not known", name)


def test_a_library_that_was_built_for_other_gpus(bundled, cuda_library, tmp_path, capsys):
    """In a process of its own: a device that was opened stays so."""
    code = """
import ctypes, os, sys
ctypes.CDLL(os.environ["GWQ_CUDA_LIBRARY"]).gwq_shim_driver(13000, 0)
from gwq_export.cli import main
sys.exit(main("run", sys.argv[1:]))
"""
    words = "-p", "x", "-n", "1", "--device", "cuda"
    done = subprocess.run(
        [sys.executable, "-c", code, bundled, *words],
        capture_output=True,
        text=True,
        env=os.environ | {"GWQ_CUDA_LIBRARY": str(cuda_library)},
    )
    said = "host shim (compute capability 9.0) is none of those that the library was built for"
    assert_one_line("run", done.returncode, done.stderr, said)
    assert "the shim has no code for this device" in done.stderr


def test_memory_that_the_system_has_too(shim, monkeypatch):
    """Of a Jetson's memory CUDA calls free what the page cache has not."""
    monkeypatch.setattr(cuda, "free_memory", lambda: 7 << 30)
    shim.gwq_shim_memory(ctypes.c_size_t(1 << 30))
    assert cuda.room_of(0) == 1 << 30
    shim.gwq_shim_integrated(1)
    assert cuda.room_of(0) == 7 << 30


def test_no_room_for_the_cache(bundled, shim):
    model = gwq_export.load(bundled, device="cuda")
    session = model.session(2000)
    session.forward(IDS[:3])
    want = session.forward(IDS[3:4])
    session.rewind(3)
    shim.gwq_shim_memory(ctypes.c_size_t(1 << 18))
    with pytest.raises(NoMemory, match=r"the KV cache \(f16\) of 1900 positions takes"):
        session._reserve(1900)
    shim.gwq_shim_memory(ctypes.c_size_t(1 << 30))
    assert np.array_equal(session.forward(IDS[3:4]), want)


def test_memory_is_given_back(bundled, shim):
    shim.gwq_shim_room.restype = ctypes.c_size_t
    before = shim.gwq_shim_room()
    model = gwq_export.load(bundled, device="cuda")
    session = model.session(50)
    session.forward(IDS[:9])
    session.forward(IDS[9:10])
    assert shim.gwq_shim_room() < before - (3 << 20)
    del model, session
    assert shim.gwq_shim_room() > before - (1 << 16)  # what programs keep


def test_heads_that_are_too_long(tiny, exported, monkeypatch):
    monkeypatch.setattr("gwq_export.runtime.weights.MAX_HEAD", 8)
    path, _ = exported(tiny("llama"), type="f32")
    with pytest.raises(GwqError, match=r"llama with attention heads of .* more than the CUDA"):
        gwq_export.load(path, device="cuda")
