"""How fast a CUDA device is: rows of one table, for tests/support/device_check.py."""

import time

import numpy as np

from gwq_export.bench.cases import Case
from gwq_export.bench.files import decode_bytes
from gwq_export.bench.kernels import kernel_rows
from gwq_export.errors import GwqError
from gwq_export.format.types import ffi
from gwq_export.native.cuda import DeviceBytes, devices
from gwq_export.native.library import check
from gwq_export.runtime.model import Model
from tests.support.device_peers import Cublas, Energy, Missing
from tests.support.random_llama import write_llama

HEADING = ("what", "tokens", "time", "tokens/s", "GB/s", "of copy rate", "also")
OUTLIERS = 0.0025
PROMPT = 512


def head():
    """Begin the table."""
    print(f"\n| {' | '.join(HEADING)} |\n|{' --- |' * len(HEADING)}", flush=True)


def line(what, tokens, seconds, rate="", gbps="", share="", also=""):
    """A row of the table."""
    unit, factor = ("ms", 1e3) if seconds >= 1e-3 else ("us", 1e6)
    cells = what, tokens, f"{seconds * factor:.1f} {unit}", rate, gbps, share, also
    print(f"| {' | '.join(map(str, cells))} |", flush=True)


def copy_rate(device, nbytes, repeats):
    """GB/s read and written by copies of `nbytes` in the device's memory, the best of them."""
    a, b = (DeviceBytes(device.lib, nbytes) for _ in range(2))
    best = 0.0
    for _ in range(repeats):
        device.wait()
        start = time.perf_counter()
        for _ in range(4):
            check(device.lib.gwq_cuda_copy(b.ptr, a.ptr, nbytes), "copy")
        device.wait()
        best = max(best, 4 * 2 * nbytes / (time.perf_counter() - start) / 1e9)
    return best


def products(kinds, shape, tokens, copy, working_set, index):
    """Rows of matrices times few and many tokens, out of memory, beside the copy rate.

    kinds: [(type, share of outliers)].
    """
    for type, outliers in kinds:
        one = None
        for n in tokens:
            case = Case("gemm" if n > 1 else "gemv", type, shape, n, outliers)
            (row,), _ = kernel_rows(
                [case], repeats=3, working_set=working_set, device=f"cuda:{index}"
            )
            seconds = row["ns"] / 1e9
            one = one or seconds
            also = f"{seconds / one:.2f} of one token" if n > tokens[0] else ""
            if n >= 64:
                also += f", {row['gflops'] / 1e3:.1f} TFLOPS"
            name = f"{type}, {outliers:.2%} outliers, {shape[0]} x {shape[1]}"
            share = f"{row['gbps'] / copy:.0%}"
            line(name, n, seconds, "", f"{row['gbps']:.0f}", share, also)


def cublas_products(device, shape, tokens, copy, working_set):
    """The same of FP16 matrices by cuBLAS. Raises Missing."""
    peer = Cublas(device)
    check_cublas(device, peer)
    rows, cols = shape
    matrices = [halves(device, shape) for _ in range(1 + working_set // (2 * rows * cols))]
    for n in tokens:
        x, y = halves(device, (n, cols)), halves(device, (n, rows))

        def run(x=x, y=y, n=n):
            for w in matrices:
                peer.multiply(address(w), address(x), address(y), rows, cols, n)

        seconds = seconds_of(y, run) / len(matrices)
        gbps = 2 * rows * cols / seconds / 1e9
        also = f"{2 * rows * cols * n / seconds / 1e12:.1f} TFLOPS" if n >= 64 else ""
        name = f"cuBLAS f16, {rows} x {cols}"
        line(name, n, seconds, "", f"{gbps:.0f}", f"{gbps / copy:.0%}", also)


def halves(device, shape):
    """FP16 numbers of the device's memory, zeros; two of them in the place of a float."""
    return device.floats((int(np.prod(shape)) + 1) // 2)


def address(floats):
    """Of numbers in the device's memory, as an integer."""
    return int(ffi.cast("uintptr_t", floats.ptr))


def check_cublas(device, peer):
    """Whether it is called as it wants to be."""
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(s).astype(np.float16) for s in ((48, 64), (2, 64)))
    held = [device.floats(a.view(np.float32)) for a in (w, x)]
    y = halves(device, (2, 48))
    peer.multiply(address(held[0]), address(held[1]), address(y), 48, 64, 2)
    got = y.array.view(np.float16).reshape(2, 48).astype(np.float32)
    want = x.astype(np.float32) @ w.astype(np.float32).T
    if not np.abs(got - want).max() < 0.02 * np.abs(want).max():
        raise Missing("cuBLAS: its products are not what they have to be")


def seconds_of(mark, run, seconds=0.2):
    """Seconds of a run, of as many as fill `seconds`. mark: what reading waits for."""
    run()
    _ = mark.array
    count, start = 0, time.perf_counter()
    while count == 0 or time.perf_counter() - start < seconds:
        run()
        _ = mark.array
        count += 1
    return (time.perf_counter() - start) / count


def model(folder, name, shape, layers, gen, least, copy, index):
    """Rows of a whole file of random weights: loading, a prompt, decoding, energy.

    Decoded are `gen` tokens after the prompt, again and again for `least` seconds. Raises Missing
    where the folder has no room for the file.
    """
    path = folder / f"{name}.gguf"
    try:
        write_llama(path, shape, layers, "gwq4", OUTLIERS)
    except GwqError as e:
        raise Missing(f"{e}") from None
    start = time.perf_counter()
    loaded = Model(path, device=f"cuda:{index}")
    load = time.perf_counter() - start
    session = loaded.session(PROMPT + gen + 8)
    ids = np.arange(3, 3 + min(PROMPT, 8 * gen))
    read = 0.0
    for _ in range(2):  # the first run makes room
        session.rewind()
        start = time.perf_counter()
        session.scores(ids, best=1)
        read = time.perf_counter() - start
    placement = loaded.weights.placement
    where = f"{placement.layers} of {layers + 1} layers on the device, loaded in {load:.1f} s"
    name += " gwq4"
    line(f"{name}, prompt to first token", len(ids), read, f"{len(ids) / read:.0f}", also=where)
    for _ in range(3):
        session.scores([5], best=1)
    joules, (seconds, made) = metered(index, decode, session, gen, least)
    each = seconds / made
    gbps = decode_bytes(loaded.weights.reader) / each / 1e9
    also = joules if isinstance(joules, str) else f"{joules / made:.3f} J per token"
    share = f"{gbps / copy:.0%}"
    line(f"{name}, decoding", made, each, f"{1 / each:.1f}", f"{gbps:.0f}", share, also)
    path.unlink()


def decode(session, gen, least):
    """(seconds, tokens) of `gen` tokens, one after another, and again until `least` have passed."""
    start, made, pos = time.perf_counter(), 0, session.pos
    while True:
        for _ in range(gen):
            session.scores([5], best=1)
        made += gen
        if (seconds := time.perf_counter() - start) >= least:
            return seconds, made
        session.rewind(pos)


def metered(index, run, *args):
    """(joules, or why there are none; what `run` returns)"""
    try:
        with Energy(devices()[index]["bus"]) as energy:
            value = run(*args)
    except Missing as e:
        return f"energy: {e}", run(*args)
    return energy.joules, value
