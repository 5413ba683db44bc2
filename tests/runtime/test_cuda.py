"""Whole models by the CUDA library, on the host over native/cuda/shim.h, beside the CPU's."""

import ctypes
import json

import numpy as np
import pytest

import gwq_export
from gwq_export.errors import GwqError, NoMemory
from gwq_export.native import cuda
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime import kv_cache
from tests.support.cli import assert_one_line, call
from tests.support.models import TINY_MODELS

IDS = np.random.default_rng(5).integers(3, 200, 80)
PROMPT = "The city lay by the river"

pytestmark = pytest.mark.usefixtures("cuda_device")


@pytest.fixture(scope="module")
def bundled(exported):
    """Path of the bundled model at 4 bits, with the default outliers."""
    return exported(type="gwq4")[0]


def steps(model, calls):
    """Logits of a session's forward calls [(ids, keep)], one after another."""
    session = model.session(100)
    return [session.forward(ids, keep=keep) for ids, keep in calls]


CALLS = [(IDS[:1], 1), (IDS[1:12], 5), (IDS[12:13], 1), (IDS[13:16], 2), (IDS[16:22], 6)]


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture(tiny, exported, name):
    """In float32 only the order of sums differs. With int8 activations a code may, where a number
    lies between two: one of 127 steps of the largest in its block.
    """
    for options, bound in (
        ({"type": "f32"}, 2e-4),
        ({"type": "gwq4", "outliers": 0.02, "samples": 2, "ctx": 64}, 0.03),
    ):
        path, _ = exported(tiny(name), **options)
        of_cpu = steps(gwq_export.load(path, threads=1), CALLS)
        of_cuda = steps(gwq_export.load(path, device="cuda"), CALLS)
        for a, b in zip(of_cpu, of_cuda, strict=True):
            assert np.abs(a - b).max() <= bound * np.abs(a).max(), (name, options)


def test_the_bundled_model(bundled):
    """Logits of a prompt, and the text that greedy decoding gives.

    Where the CPU multiplies outliers by codes of 16 bits, a number that lies between two codes of 8
    bits may get the other one.
    """
    of_cpu, of_cuda = (gwq_export.load(bundled, device=d) for d in ("cpu", "cuda"))
    ids = of_cpu.prompt_ids(PROMPT)
    a, b = of_cpu.logits(ids), of_cuda.logits(ids)
    assert (
        np.abs(a - b).max() < 0.02 * np.abs(a).max() and (a.argmax(1) == b.argmax(1)).mean() > 0.9
    )
    text = of_cpu.generate(PROMPT, n=20)
    assert text.strip() and of_cuda.generate(PROMPT, n=20) == text


def test_several_tokens_get_what_each_gets(bundled):
    """To the bit, so that tokens computed ahead do not change a text; and so does every run."""
    model = gwq_export.load(bundled, device="cuda")
    alone = steps(model, [(IDS[i : i + 1], 1) for i in range(MAX_TOKENS)])
    for n in range(2, MAX_TOKENS + 1):
        (together,) = steps(model, [(IDS[:n], n)])
        assert np.array_equal(together, np.concatenate(alone[:n]))
    again = steps(model, [(IDS[i : i + 1], 1) for i in range(MAX_TOKENS)])
    assert np.array_equal(alone, again)


def test_the_order_of_threads_changes_no_bit(bundled, shim):
    model = gwq_export.load(bundled, device="cuda")
    forward = steps(model, [(IDS[:3], 3)])
    shim.gwq_shim_reverse(1)
    assert np.array_equal(forward, steps(gwq_export.load(bundled, device="cuda"), [(IDS[:3], 3)]))


@pytest.mark.parametrize("cache", ["f16", "q8_0", "f32"])
def test_a_cache_that_grows(bundled, monkeypatch, cache):
    """Programs are captured anew where it moves, and what it held is still there."""
    model = gwq_export.load(bundled, device="cuda", cache=cache)
    calls = [([i], 1) for i in IDS[:20].tolist()]
    want = steps(model, calls)
    monkeypatch.setattr(kv_cache, "FIRST", 4)
    assert np.array_equal(steps(model, calls), want)


def test_times_of_a_program(tiny, exported):
    path, _ = exported(tiny("llama"), type="f32")
    session = gwq_export.load(path, device="cuda").session(20)
    want = session.forward([5])
    session.rewind()
    (program,) = session.token_programs()
    times = np.zeros(len(program.ops), np.int64)
    program.run(np.array([5], np.int32), 0, times)
    assert (times > 0).all()
    assert np.array_equal(session._programs[1, 1][1].array, want)


def test_a_damaged_weight_is_said(tiny, exported):
    """A router's scores that are not finite: the device says so after the run, and goes on."""
    path, _ = exported(tiny("qwen3moe"), type="f32")
    model = gwq_export.load(path, device="cuda")
    session = model.session(20)
    want = session.forward([7])
    norm = model.weights.layers[0].ffn_norm.weight
    before = norm.array
    norm.array = np.full_like(before, np.nan)
    with pytest.raises(GwqError, match="a number is not finite"):
        session.forward([7])
    norm.array = before
    session.rewind()
    assert np.array_equal(session.forward([7]), want)


# --- what can be wrong with a machine ---


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
    for devices, capability, words in (
        (-1, 90, "the driver of the shim is too old: install or update the NVIDIA driver"),
        (0, 90, "this machine has no CUDA device"),
        (1, 61, "(compute capability 6.1) is older than 7.5"),
    ):
        shim.gwq_shim_machine(devices, capability)
        refused(capsys, bundled, words)
    shim.gwq_shim_machine(1, 75)
    refused(capsys, bundled, "this machine has 1 CUDA device; choose another", "cuda:1")
    for name in ("cuda:", "cuda:x", "tpu"):
        refused(capsys, bundled, f"--device {name} is not known", name)


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


def test_the_command(bundled, capsys):
    run = "run", bundled, "-p", PROMPT, "-n", 8, "--temp", 0, "--json"
    results = []
    for device in ("cpu", "cuda"):
        status, out, _ = call(capsys, *run, "--device", device)
        assert status == 0
        results.append(json.loads(out.splitlines()[-1])["text"])
    assert results[0] == results[1]


def test_evaluation(bundled, capsys, tmp_path):
    (tmp_path / "text").write_text(PROMPT * 20)
    ppl = []
    for device in ("cpu", "cuda"):
        options = "--text", tmp_path / "text", "--ctx", 32, "--json", "--device", device
        status, out, _ = call(capsys, "eval", bundled, *options)
        assert status == 0
        ppl.append(json.loads(out.splitlines()[-1])["ppl"])
    assert abs(ppl[0] - ppl[1]) < 1e-2 * ppl[0]


def test_the_list_of_devices(capsys, shim):
    status, out, _ = call(capsys, "info", "--devices", "--json")
    found = json.loads(out.splitlines()[-1])
    assert status == 0 and "cuda:0  host shim, compute capability 9.0" in out
    assert found["cuda"][0]["usable"] and found["why_no_cuda"] is None
    shim.gwq_shim_machine(-1, 90)
    status, out, _ = call(capsys, "info", "--devices")
    assert status == 0 and "no CUDA device: " in out and "install or update" in out
    status, _, err = call(capsys, "info")
    assert_one_line("info", status, err, "FILE.gguf is missing")


def test_the_bench(bundled, capsys, monkeypatch):
    monkeypatch.setattr("gwq_export.bench.roof.WORKING_SET", 1 << 20)
    bench = "bench", bundled, "-p", 4, "-n", 2, "-r", 1, "--json", "--device", "cuda"
    status, out, err = call(capsys, *bench)
    assert status == 0, err
    prompt, decoded = json.loads(out.splitlines()[-1])["rows"]
    assert decoded["gpu_info"] == "host shim" and decoded["backends"] == "gwq-cuda"
    assert decoded["n_gpu_layers"] == 5
    assert prompt["avg_ts"] > 0 and decoded["gbps"] > 0 and decoded["roof_gbps"] > 0
    status, _, err = call(capsys, *bench, "--against", bundled)
    assert_one_line("bench", status, err, "--against runs on the CPU")
