"""Kernels and models on a CUDA device, checked and timed: what `tools/gpu-check` runs.

    python -m tests.support.device_check [--small] [--device N] [--seconds S] [--start TIME]

It needs neither torch nor the network. Where something is wrong it says what and ends with
status 1; what there is no time for is said, the less important first. --small: little data, for a
quick look, or for the library's host build.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gwq_export.bench.cases import MATRIX_TYPES
from gwq_export.bench.roof import DeviceRoofs
from gwq_export.errors import GwqError
from gwq_export.native.cuda import Cuda
from gwq_export.native.library import check
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import Ops, top
from gwq_export.native.program import MAX_TOKENS
from gwq_export.runtime.model import Model
from tests.native.test_matmul import BOUND, expect
from tests.support import device_times as times
from tests.support import half_products
from tests.support.device_peers import Missing
from tests.support.kernel_cases import SHAPES, activations, make, patterns, width_fits
from tests.support.random_llama import LLAMA_1B, LLAMA_7B, TINY, write_llama

TOKENS = (1, 2, 3, 4, 6, 8, 12, 17, 70)
LARGE = (8192, 8192)
HUGE = (28672, 16384)
MODELS = [
    {"kind": "gwq4"},
    {"kind": "gwq2", "cache": "q8_0"},
    {"kind": "f16", "cache": "f32"},
    {"kind": "gwq4", "gpu_layers": 2},
    {"kind": "gwq4", "experts": 4},
]


class Wrong(Exception):
    """A result that is not what it has to be."""


def on_device(device, case):
    """A kernel case as a Matrix of the device."""
    return device.matrix(Matrix("case", case.type, case.shape, case.data, case.outliers))


def product(device, matrices, x):
    """y (n, rows) of each matrix."""
    n = len(x)
    ops, inputs = Ops(device), device.floats(x)
    ys = [device.floats((n, m.rows)) for m in matrices]
    Linear(matrices)(ops, inputs.ptr, n, *(y.ptr for y in ys))
    return [y.array for y in ys]


def check_kernels(device, shapes, seconds):
    """Weights to the bit, products within their bound, the same alone and together, and again.

    seconds: after which no further matrix is begun; they come in an order that mixes all kinds.
    """
    cases = [
        (name, rows, cols, pattern)
        for name in MATRIX_TYPES
        for rows, cols in shapes
        for pattern in (patterns(name) if width_fits(name, cols) else ())
    ]
    np.random.default_rng(0).shuffle(cases)
    end = time.perf_counter() + seconds
    count = worst = 0
    for case in cases:
        if time.perf_counter() > end:
            break
        worst = max(worst, check_matrix(device, *case))
        count += 1
    print(
        f"{count} of {len(cases)} matrices: decoded to the bit,"
        f" products within {worst:.2f} of their bound",
        flush=True,
    )


def check_matrix(device, name, rows, cols, pattern):
    """How far its products are off at most, in bounds."""
    case = make(name, rows, cols, pattern)
    what = f"{name} {rows}x{cols} {pattern.__name__}"
    matrix = on_device(device, case)
    out = device.floats(case.shape)
    check(device.lib.gwq_dequantize(device.ptr, matrix.struct, 0, rows, out.ptr), what)
    if not np.array_equal(out.array.view(np.uint32), case.full.view(np.uint32)):
        raise Wrong(f"{what}: decoded weights differ")
    x = activations(max(TOKENS), cols)
    x[-1, cols // 2] = 5000  # massive
    few = half_products.GEMV_TOKENS
    together = {}  # a token's bits are those of any number of neighbours up to MAX_TOKENS
    worst = 0.0
    for n in TOKENS:
        (got,) = product(device, [matrix], x[:n])
        y, size = (expect if n <= few else half_products.expect)(case, x[:n])
        # tensor cores may cut off what they add, each 8 columns at the least
        bound = BOUND + (0 if n <= few else cols / 8 * 2.0**-23)
        far = np.abs(got - y) / (bound * size + 1e-30)
        worst = max(worst, far.max())
        if far.max() > 1:
            raise Wrong(f"{what}: {n} tokens are {far.max():.1f} bounds off")
        first = together.setdefault(n <= MAX_TOKENS or n, got[0])
        if not np.array_equal(got[0], first):
            raise Wrong(f"{what}: {n} tokens change the first one's bits")
    return worst


def check_best(device):
    """The largest numbers are those that the CPU picks."""
    rng = np.random.default_rng(0)
    for n in (1000, 32000, 262144):
        for x in (rng.standard_normal(n), rng.integers(-9, 9, n)):
            x = x.astype(np.float32)
            held = device.floats(x)
            for k in (1, 40, 300):
                if not np.array_equal(device.best(held.ptr, n, k).ids, top(x, k)):
                    raise Wrong(f"the {k} largest of {n} numbers are others than the CPU's")
    print("largest numbers: those of the CPU", flush=True)


def check_model(folder, kind, device, **options):
    """A random model on the device and on the CPU; options: of the file's shape, or of loading."""
    shape = TINY | {k: options.pop(k) for k in ("experts",) if k in options}
    path = folder / "small.gguf"
    write_llama(path, shape, 3, kind, 0.01)
    of_cpu = Model(path, cache=options.get("cache"))
    of_cuda = Model(path, device, **options)
    what = f"{kind} model {shape.get('experts', '')} {options or ''}".strip()
    ids = np.random.default_rng(1).integers(0, of_cpu.config.vocab, 300)
    a, b, again = of_cpu.logits(ids), of_cuda.logits(ids), of_cuda.logits(ids)
    session = of_cuda.session(400)
    steps = np.concatenate([session.forward([i]) for i in ids[:24].tolist()])
    size = np.abs(a).max()
    off = max(np.abs(b - a).max(), np.abs(steps - a[:24]).max()) / size
    if not off < 0.03:
        raise Wrong(f"{what}: logits are {off:.3f} of their range from the CPU's")
    if not np.array_equal(b, again):
        raise Wrong(f"{what}: a second run has other bits")
    session.rewind(18)
    if not np.array_equal(session.forward(ids[18:24], keep=6), steps[18:]):
        raise Wrong(f"{what}: several tokens at once have other bits than one by one")
    path.unlink()
    print(f"{what}: logits within {off:.1e} of the CPU's, runs repeat to the bit", flush=True)


class Budget:
    """The time there is. seconds: from `start` on, of time.time()."""

    def __init__(self, seconds, start):
        self.end = start + seconds

    @property
    def left(self):
        """Seconds."""
        return self.end - time.time()

    def run(self, what, needs, step):
        """Run a step that takes about `needs` seconds, or say that there is no time for it."""
        if self.left < needs:
            print(f"skipped, as {max(0, self.left):.0f} s are left: {what}", flush=True)
            return
        try:
            step()
        except Missing as e:
            print(f"left out: {what}: {e}", flush=True)


def steps(device, index, folder, small, budget):
    """[(what, seconds that it takes about, function)], the most important first."""
    where = f"cuda:{index}"
    shapes = SHAPES[3:4] if small else SHAPES
    large, huge = ((64, 256),) * 2 if small else (LARGE, HUGE)
    few, many = (1, 4), ((8,) if small else (8, 16, 64, 512))
    set_bytes, gen, least = (1 << 20, 3, 0.3) if small else (256 << 20, 600, 4)
    copies = (1 << 22, 2) if small else (1 << 30, 10)
    first = TINY if small else LLAMA_7B
    second = TINY if small else LLAMA_1B
    copy = [1.0]  # GB/s, once it was measured

    def begin():
        copy[0] = times.copy_rate(device, *copies)
        roof = DeviceRoofs(device, copies[0]).made(1)
        read = max(roof.now() for _ in range(copies[1]))
        print(f"\nCopy rate {copy[0]:.0f} GB/s (read and written), read rate {read:.0f} GB/s")
        times.head()

    def products(kinds, shape, tokens):
        return lambda: times.products(kinds, shape, tokens, copy[0], set_bytes, index)

    def whole(name, shape, layers):
        return lambda: times.model(folder, name, shape, layers, gen, least, copy[0], index)

    main_kinds = [("gwq4", 0.0), ("gwq4", times.OUTLIERS)]
    low_kinds = [("gwq3", times.OUTLIERS), ("gwq2", times.OUTLIERS)]
    checks = [
        ("weights and products", 5, lambda: check_kernels(device, shapes, budget.left / 3)),
        ("the largest numbers", 5, lambda: check_best(device)),
    ]
    for options in MODELS:
        name = f"model {options}"
        checks.append((name, 10, lambda o=options: check_model(folder, device=where, **o)))
    return [
        *checks,
        ("copy rate", 5, begin),
        ("gwq4 products", 10, products(main_kinds, large, few)),
        ("a model of the shape of 7B", 60, whole("7B", first, 2 if small else 32)),
        ("gwq3 and gwq2 products", 10, products(low_kinds, large, few)),
        ("large products", 40, products([*main_kinds[1:], *low_kinds], huge, few)),
        ("a model of 1.1B", 25, whole("1.1B", second, 2 if small else 22)),
        ("gwq4 products of many tokens", 15, products(main_kinds[1:], large, many)),
        (
            "cuBLAS",
            10,
            lambda: times.cublas_products(device, large, few + many, copy[0], set_bytes),
        ),
        ("large products of many tokens", 40, products(main_kinds[1:], huge, many)),
    ]


def main():
    """Check, then time."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--small", action="store_true", help="little data")
    p.add_argument("--device", type=int, default=0, help="number of the device (default 0)")
    p.add_argument("--seconds", type=float, default=530, help="time for all (default 530)")
    p.add_argument("--start", type=float, default=time.time(), help="when it began, seconds")
    args = p.parse_args()
    budget = Budget(args.seconds, args.start)
    try:
        device = Cuda(args.device)
        with tempfile.TemporaryDirectory() as name:
            print(f"{device.name}, {budget.left:.0f} s", flush=True)
            for step in steps(device, args.device, Path(name), args.small, budget):
                budget.run(*step)
    except GwqError as e:
        sys.exit(f"{e}")
    except Wrong as e:
        sys.exit(f"WRONG: {e}")
    print(f"\ndone, {budget.left:.0f} s left")


if __name__ == "__main__":
    main()
