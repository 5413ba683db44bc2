"""Whole models by the CUDA library, on the host over native/cuda/shim.h, beside the CPU's."""

import ctypes
import json

import numpy as np
import pytest

import gwq_export
from gwq_export.bench import cases, kernels
from gwq_export.errors import GwqError, NoMemory
from gwq_export.native import cuda
from gwq_export.native.cuda import Cuda, DeviceF32
from gwq_export.native.library import Pool
from gwq_export.native.ops import Ops
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime import kv_cache
from gwq_export.runtime.sampling import Sampling
from tests.support.cli import assert_one_line, call
from tests.support.models import TINY_MODELS
from tests.support.nearness import assert_near

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
# mixtures -> share of tokens that may get another expert (`assert_near`)
REROUTED = dict.fromkeys(
    ("mixtral", "qwen3moe", "qwen3moe-plain", "qwen2moe", "qwen2moe-normed"), 0.25
)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture(tiny, exported, name):
    """In float32 only the order of sums differs. With int8 activations a code may, where a number
    lies between two: one of 127 steps of the largest in its block. After a prompt of more than 6
    tokens more of them do, whose products see FP16 numbers (activations that are not rounded to
    codes at all would be 0.07 away).
    """
    for options, bound, rerouted in (
        ({"type": "f32"}, 1e-4, 0),
        ({"type": "gwq4", "outliers": 0.02, "samples": 2, "ctx": 64}, 0.04, REROUTED.get(name, 0)),
    ):
        path, _ = exported(tiny(name), **options)
        of_cpu = steps(gwq_export.load(path, threads=1), CALLS)
        of_cuda = steps(gwq_export.load(path, device="cuda"), CALLS)
        assert_near(of_cpu, of_cuda, bound, rerouted)


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
    assert np.array_equal(session.parts[0]._programs[1, 1][1].array, want)


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


# --- sampling ---

SAMPLINGS = [
    {},
    {"temp": 0.8, "seed": 3},
    {"temp": 1.5, "top_k": 7, "top_p": 0.9, "seed": 4},
    {"temp": 1.2, "top_k": 5, "min_p": 0.1, "seed": 5, "repeat_penalty": 1.3},
    {"repeat_penalty": 1.5, "repeat_last_n": -1},
    {"temp": 1.0, "top_k": 9, "seed": 6, "repeat_penalty": 0.7},
    {"temp": 1.0, "top_k": 0, "seed": 7},
]


@pytest.mark.parametrize("options", SAMPLINGS, ids=str)
def test_the_best_logits_are_enough(bundled, monkeypatch, options):
    """The text that all of them give; and where that can be, no others cross."""
    model = gwq_export.load(bundled, device="cuda")
    ids = model.prompt_ids(PROMPT)
    sampling = Sampling(**options)
    fetched, real = [], DeviceF32.fetch
    monkeypatch.setattr(
        DeviceF32, "fetch", lambda self, out: (fetched.append(out.shape), real(self, out))
    )
    found = list(model.tokens(model.session(60), ids, 30, sampling))
    few = sampling.enough(60) > 0
    assert bool(fetched) != few
    monkeypatch.setattr(Sampling, "enough", lambda self, before: 0)
    assert list(model.tokens(model.session(60), ids, 30, sampling)) == found
    assert len(found) == 30 and fetched
    assert few == ("top_k" not in options or options["top_k"] not in (0, 9))


def test_a_draft_model_sends_two(bundled, exported, monkeypatch):
    """They are its largest logits; and the text is that of the large model."""
    smaller = exported(type="gwq2")[0]
    model = gwq_export.load(bundled, device="cuda", draft=smaller, lookup=False)
    ids = model.prompt_ids(PROMPT)
    logits = gwq_export.load(smaller, device="cuda").logits(ids)[-1]
    want = gwq_export.load(bundled).generate(PROMPT, n=24)
    session, drafter = model.session(60), model.drafter(60)
    monkeypatch.setattr(DeviceF32, "fetch", None)
    (two,) = model.drafter(60).session.scores(ids, best=2)
    assert np.array_equal(two.ids, np.argsort(-logits, kind="stable")[:2])
    assert np.array_equal(two.values, logits[two.ids])
    found = list(model.tokens(session, ids, 24, drafter=drafter))
    assert model.tokenizer.decode(found).strip() == want.strip()


def test_logits_that_are_not_finite(bundled):
    model = gwq_export.load(bundled, device="cuda")
    norm = model.weights.parts[-1].norm.weight
    norm.array = np.full_like(norm.array, np.nan)
    with pytest.raises(GwqError, match="the model's logits: a number is not finite"):
        model.session(20).scores([5], best=3)


# --- mixtures of experts ---


@pytest.mark.parametrize("name", ["mixtral", "qwen3moe"])
def test_prompts_of_a_mixture(tiny, exported, name):
    """A batch of any length gets what each of its tokens gets alone."""
    for type in ("f32", "gwq4"):
        path, _ = exported(tiny(name), type=type, samples=2, ctx=64)
        model = gwq_export.load(path, device="cuda")
        session = model.session(100)
        alone = np.concatenate([session.forward([i]) for i in IDS[:40].tolist()])
        of_cpu = gwq_export.load(path, threads=1).logits(IDS[:40])
        bound, rerouted = (1e-4, 0) if type == "f32" else (0.02, REROUTED[name])
        for n in (2, MAX_TOKENS, MAX_TOKENS + 1, 17, 40):
            together = model.logits(IDS[:n])
            if n <= MAX_TOKENS:
                assert np.array_equal(together, alone[:n])
            assert_near([of_cpu[:n]], [together], bound, rerouted)


def test_a_mixture_reads_a_prompt_at_once(tiny, exported, monkeypatch):
    """Each expert multiplies all its tokens together, and no activation crosses."""
    path, _ = exported(tiny("mixtral"), type="f32")
    model = gwq_export.load(path, device="cuda")
    calls, real = [], Cuda.combine
    monkeypatch.setattr(
        Cuda, "combine", lambda self, *a: (calls.append(a[2].shape), real(self, *a))
    )
    session = model.session(100)
    session.scores(IDS[:1], best=1)  # makes room
    monkeypatch.setattr(DeviceF32, "put", None)
    session.scores(IDS[:50], best=1)
    c = model.config
    # the last layer computes only the token whose logits are wanted
    assert calls == [(n, c.experts_used) for n in [50] * (c.layers - 1) + [1]]


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


def test_kernels_on_the_device():
    """One as a graph, one by one where there are more tokens than a program has."""
    small = [
        cases.Case("gemv", "gwq3", (64, 256), 1, 0.01),
        cases.Case("gemm", "f16", (64, 256), 8),
        cases.Case("attention", "q8_0", (40, 128), 2),
        cases.Case("add", "f32", (8, 256), 8),
    ]
    rows, roof = kernels.kernel_rows(small, repeats=2, working_set=100_000, device="cuda")
    assert [row["op"] for row in rows] == ["gemv", "gemm", "attention", "add"]
    for row in rows:
        assert row["isa"] == "cuda" and row["gpu_info"] == "host shim"
        assert row["ns"] > 0 and row["of_roof"] > 0 and len(row["samples_ns"]) == 2
    assert roof[0]["gbps"] > 0


def test_a_program_of_kernels_is_what_they_compute(monkeypatch):
    """Every call of it writes what the CPU's writes."""
    case = cases.Case("gemv", "gwq4", (64, 256), 2, 0.01)
    results = []
    for pool in (Pool(1), Cuda()):
        ops = Ops(pool)
        made, real = [], pool.floats
        with monkeypatch.context() as m:
            m.setattr(
                pool, "floats", lambda x, made=made, real=real: made.append(real(x)) or made[-1]
            )
            calls, _, _ = cases.build(case, ops, 50_000)
        y = made[1]
        runs, each = kernels._runs(case, ops, calls)
        next(runs)()
        assert each == (len(calls) if pool.on_device else 1) and len(calls) > 1
        results.append(y.array.copy())
    assert np.abs(results[0] - results[1]).max() < 0.02 * np.abs(results[0]).max() > 0


def test_profile_of_the_device(bundled, capsys):
    options = "--ops-profile", "-p", 4, "-n", 2, "-r", 1, "--device", "cuda"
    status, out, err = call(capsys, "bench", bundled, *options)
    assert status == 0 and out.rstrip().endswith("cuda, host shim"), err
    status, out, _ = call(capsys, "bench", bundled, *options, "-ngl", 2, "--json")
    rows = json.loads(out.splitlines()[-1])["rows"]
    attention = {row["isa"]: row["calls"] for row in rows if row["op"] == "attention"}
    assert attention.pop("cuda") == 1 and list(attention.values()) == [3]
    status, _, err = call(capsys, "bench", "--kernels", "--device", "cuda", "-ngl", 2)
    assert_one_line("bench", status, err, "--gpu-layers goes with a file")
