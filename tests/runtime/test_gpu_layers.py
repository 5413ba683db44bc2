"""A model of which some layers run on a device, the host build of the CUDA library, others not."""

import ctypes
import json

import numpy as np
import pytest

import gwq_export
from gwq_export.errors import GwqError, NoMemory
from gwq_export.native.cuda import DeviceF32
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime import placement
from gwq_export.runtime.buffers import BATCH, DEVICE_BATCH
from tests.support.cli import assert_one_line, call
from tests.support.models import TINY_MODELS
from tests.support.nearness import assert_near

IDS = np.random.default_rng(5).integers(3, 200, 80)
PROMPT = "The city lay by the river"
CALLS = [(IDS[:1], 1), (IDS[1:12], 5), (IDS[12:13], 1), (IDS[13:16], 2), (IDS[16:60], 0)]
CALLS += [(IDS[60:61], 0), (IDS[61:67], 6)]
BLOCKS = 4  # of the bundled model
MIB = 1 << 20

pytestmark = pytest.mark.usefixtures("cuda_device")


@pytest.fixture
def room(shim, monkeypatch):
    """room(bytes): what the device has free; without an argument, what it has."""
    monkeypatch.setattr(placement, "MARGIN", 0)
    shim.gwq_shim_room.restype = ctypes.c_size_t

    def room(count=None):
        if count is not None:
            shim.gwq_shim_memory(ctypes.c_size_t(count))
        return shim.gwq_shim_room()

    return room


def steps(model, calls=CALLS):
    session = model.session(100)
    return [session.forward(ids, keep=keep) for ids, keep in calls]


@pytest.mark.parametrize("layers", range(BLOCKS + 2))
def test_any_number_of_layers(bundled, layers):
    """Logits within the bound of int8 activations, the same text."""
    of_cpu = gwq_export.load(bundled)
    split = gwq_export.load(bundled, device="cuda", gpu_layers=layers)
    on_device = [part.pool.on_device for part in split.weights.parts]
    assert on_device == {0: [False], BLOCKS + 1: [True]}.get(layers, [False, True])
    assert sum(len(part.layers) for part in split.weights.parts) == BLOCKS
    assert len(split.weights.parts[-1].layers) == (max(0, layers - 1) if layers else BLOCKS)
    assert_near(steps(of_cpu), steps(split), 0.02)
    assert of_cpu.generate(PROMPT, n=20) == split.generate(PROMPT, n=20)


@pytest.mark.parametrize("name", TINY_MODELS)
def test_every_architecture(tiny, exported, name):
    """In float32 only the order of sums differs."""
    path, _ = exported(tiny(name), type="f32")
    whole = steps(gwq_export.load(path, threads=1, cache="f32"))
    for layers in (1, 2):
        model = gwq_export.load(path, device="cuda", cache="f32", gpu_layers=layers)
        split = steps(model)
        for a, b in zip(whole, split, strict=True):
            if a.size:
                assert np.abs(a - b).max() <= 2e-4 * np.abs(a).max()


def test_what_is_made_crosses_once_each_way(bundled, monkeypatch):
    model = gwq_export.load(bundled, device="cuda", gpu_layers=3)
    session = model.session(100)
    session.forward(IDS[:1])
    crossings = []
    for name in ("put", "fetch"):
        real = getattr(DeviceF32, name)
        monkeypatch.setattr(
            DeviceF32,
            name,
            lambda self, array, real=real, name=name: (
                crossings.append((name, array.shape)),
                real(self, array),
            ),
        )
    session.forward(IDS[1:2])
    c = model.config
    assert crossings == [("put", (1, c.dim)), ("fetch", (1, c.vocab))]


def test_several_tokens_get_what_each_gets(bundled):
    model = gwq_export.load(bundled, device="cuda", gpu_layers=3)
    alone = steps(model, [(IDS[i : i + 1], 1) for i in range(MAX_TOKENS)])
    for n in range(2, MAX_TOKENS + 1):
        (together,) = steps(model, [(IDS[:n], n)])
        assert np.array_equal(together, np.concatenate(alone[:n]))


def test_a_pass_that_is_cut_short(bundled, monkeypatch):
    """Whether the layers of the device have run or not."""
    for layers in (1, 3):
        model = gwq_export.load(bundled, device="cuda", gpu_layers=layers)
        session, whole = model.session(20), model.session(20)
        want = [whole.forward(IDS[:3]), whole.forward(IDS[3:5])]
        assert np.array_equal(session.forward(IDS[:3]), want[0])
        for cache in (session._cache, session.parts[1].cache):
            with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
                m.setattr(type(cache), "append", interrupted(cache, type(cache).append))
                session.forward([7, 8, 9, 10, 11, 12, 13])
            assert session.pos == 3
        assert np.array_equal(session.forward(IDS[3:5]), want[1])
        session.rewind(3)
        assert np.array_equal(session.forward(IDS[3:5]), want[1])


def interrupted(cache, real):
    def append(self, ids):
        if self is cache:
            raise KeyboardInterrupt
        real(self, ids)

    return append


# --- as many as fit ---


def plan(path, **options):
    return gwq_export.load(path, device="cuda", **options).weights.placement


def test_as_many_as_fit(bundled, room):
    """Each layer comes when there is room for it and a session, which then takes no more."""
    room(1 << 30)
    whole = plan(bundled)
    assert whole.layers == BLOCKS + 1 and whole.embedding and whole.first == 0
    taken = []
    for layers in range(1, BLOCKS + 2):
        wanted = plan(bundled, gpu_layers=layers)
        need = wanted.weights + wanted.work
        room(need)
        found = plan(bundled)
        assert found.layers >= layers  # the last one may come with an embedding that is the head
        taken.append(need)
        room(need - 1)
        assert plan(bundled).layers == layers - 1
        room(1 << 30)
    assert taken == sorted(taken)


@pytest.mark.parametrize("cache", ["f16", "f32"])
def test_a_session_takes_what_was_planned(tiny, exported, room, cache):
    """Also a full context, a long prompt, all logits, every program; and not much less."""
    for name, layers in (
        ("llama", 3),
        ("llama", 2),
        ("longrope", 1),
        ("mixtral", 2),
        ("gpt2", None),
    ):
        path, _ = exported(tiny(name), type="gwq4", outliers=0.02, samples=2, ctx=64)
        room(1 << 30)
        model = gwq_export.load(path, device="cuda", cache=cache, gpu_layers=layers)
        found = model.weights.placement
        assert found.room - room() == found.weights
        session = model.session()
        for most, logits in ((DEVICE_BATCH, False), (BATCH, True)):
            n = min(most, model.ctx - 21)
            session.rewind()
            session.forward(np.arange(n) % 90 + 3, keep=n if logits else 1)
        for k in range(1, MAX_TOKENS + 1):
            session.forward(IDS[:k], keep=k)
        session._reserve(model.ctx)
        session.forward(IDS[:1])
        used = found.room - room()
        assert used <= found.weights + found.work, name
        assert used > found.weights + 0.3 * found.work, name
        del model, session


def test_the_context_counts(bundled, room):
    room(1 << 30)
    short, long = plan(bundled, ctx=32), plan(bundled)
    assert long.work > short.work
    room(short.weights + short.work)
    assert plan(bundled, ctx=32).layers == BLOCKS + 1 > plan(bundled).layers


def test_no_room_at_all(bundled, room, capsys):
    want = gwq_export.load(bundled).generate(PROMPT, n=10)
    room(1 << 18)
    run = "run", bundled, "-p", PROMPT, "-n", 10, "--raw", "--device", "cuda"
    status, out, err = call(capsys, *run)
    assert status == 0 and want.strip() in out
    assert f"none of the {BLOCKS + 1} layers; all run on the CPU" in err
    status, _, err = call(capsys, *run, "-ngl", 2)
    assert_one_line("run", status, err, "do not fit the GPU's memory (tensor ")
    assert "give fewer --gpu-layers, or use --device cpu" in err


def test_a_draft_model_gets_its_place_first(bundled, exported, room):
    smaller = exported(type="gwq2")[0]
    room(1 << 30)
    alone, guess = plan(bundled, ctx=64), plan(smaller, ctx=64)
    room(alone.weights + alone.work + guess.weights + guess.work)
    both = gwq_export.load(bundled, device="cuda", draft=smaller, ctx=64)
    assert both.weights.placement.layers == both.draft.placement.layers == BLOCKS + 1
    room(alone.weights + alone.work + guess.weights + guess.work - 1)
    del both
    room(alone.weights + alone.work + guess.weights + guess.work - 1)
    both = gwq_export.load(bundled, device="cuda", draft=smaller, ctx=64)
    assert both.draft.placement.layers == BLOCKS + 1 > both.weights.placement.layers > 0
    assert both.draft.pool is both.weights.pool
    want = gwq_export.load(bundled, ctx=64).generate(PROMPT, n=20)
    assert both.generate(PROMPT, n=20) == want


def test_a_cache_that_outgrows_the_device(bundled, room):
    room(1 << 30)
    model = gwq_export.load(bundled, device="cuda", gpu_layers=2)
    session = model.session(2000)
    session.forward(IDS[:3])
    room(1 << 18)
    with pytest.raises(NoMemory, match=r"the KV cache \(f16\) of 1900 positions"):
        session._reserve(1900)
    room(1 << 30)
    assert session.forward(IDS[3:4]).shape == (1, model.config.vocab)


# --- the commands ---


@pytest.mark.parametrize(
    "options, words",
    [
        (["--device", "cuda", "--gpu-layers", "-1"], "give a number from 0, or leave it out"),
        (["--gpu-layers", "2"], "--gpu-layers 2 goes with --device cuda"),
        (["--device", "cuda", "--gpu-layers", "x"], "invalid int value: 'x'"),
    ],
)
@pytest.mark.parametrize("command", ["run", "eval", "bench"])
def test_impossible_values(bundled, capsys, tmp_path, command, options, words):
    (tmp_path / "text").write_text(PROMPT)
    needs = {"run": ["-p", PROMPT], "eval": ["--text", tmp_path / "text"], "bench": []}[command]
    status, _, err = call(capsys, command, bundled, *needs, *options)
    assert_one_line(command, status, err, words)


def test_more_than_there_are_is_all(bundled):
    assert plan(bundled, gpu_layers=99).layers == BLOCKS + 1
    with pytest.raises(GwqError, match="goes with --device cuda"):
        gwq_export.load(bundled, gpu_layers=0)


def test_what_is_said(bundled, capsys, tmp_path):
    run = "run", bundled, "-p", PROMPT, "-n", 8, "--json", "--device", "cuda"
    status, whole, err = call(capsys, *run)
    assert status == 0
    assert f"[host shim: all {BLOCKS + 1} layers, and the embedding, " in err
    status, split, err = call(capsys, *run, "--gpu-layers", 2)
    assert status == 0
    assert "[host shim: 2 of 5 layers, block 3 and the head, " in err
    assert "; the embedding and blocks 0 to 2 run on the CPU]" in err
    texts = [json.loads(out.splitlines()[-1])["text"] for out in (whole, split)]
    assert texts[0] == texts[1]
    (tmp_path / "text").write_text(PROMPT * 20)
    options = "--text", tmp_path / "text", "--ctx", 32, "--device", "cuda", "-ngl", 1
    status, _, err = call(capsys, "eval", bundled, *options)
    assert status == 0 and "1 of 5 layers, the head, " in err


def test_what_would_run_where(bundled, capsys, room):
    room(1 << 30)
    status, out, _ = call(capsys, "info", "--devices", bundled, "--json")
    assert status == 0 and "\ncuda:0: all 5 layers, and the embedding, " in out
    assert set(json.loads(out.splitlines()[-1])["placements"]) == {"cuda:0"}
    room(plan(bundled, gpu_layers=3).weights + plan(bundled, gpu_layers=3).work)
    status, out, _ = call(capsys, "info", "--devices", bundled)
    assert "\ncuda:0: 3 of 5 layers, blocks 2 to 3 and the head, " in out
    assert plan(bundled).layers == 3
    status, _, err = call(capsys, "info", "--devices", "/nowhere.gguf")
    assert_one_line("info", status, err, "/nowhere.gguf")


def test_the_bench(bundled, capsys, monkeypatch):
    monkeypatch.setattr("gwq_export.bench.roof.WORKING_SET", 1 << 20)
    bench = "bench", bundled, "-p", 8, "-n", 2, "-r", 1, "-t", 1, "--json", "--device", "cuda"
    for options, layers in (((), BLOCKS + 1), (("-ngl", 2), 2), (("-ngl", 0), 0)):
        status, out, err = call(capsys, *bench, *options)
        assert status == 0, err
        rows = json.loads(out.splitlines()[-1])["rows"]
        assert [row["n_gpu_layers"] for row in rows] == [layers] * 2
