"""Kernels and models on a CUDA device, checked and timed: what `tools/gpu-check` runs.

    python -m tests.support.device_check [--small] [--device N]

It needs neither torch nor the network. Where something is wrong it says what and ends with
status 1. --small: little data, for a quick look, or for the library's host build.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from gwq_export.bench.cases import MATRIX_TYPES, random_bytes
from gwq_export.bench.files import decode_bytes
from gwq_export.bench.roof import DeviceRoofs
from gwq_export.errors import GwqError
from gwq_export.format import types as fmt
from gwq_export.native.cuda import Cuda
from gwq_export.native.matrix import Linear, Matrix
from gwq_export.native.ops import Ops
from gwq_export.runtime.model import Model
from tests.native.test_matmul import BOUND, expect
from tests.support import half_products
from tests.support.kernel_cases import SHAPES, activations, make, patterns, width_fits
from tests.support.random_llama import LLAMA_1B, LLAMA_7B, TINY, write_llama

TOKENS = (1, 2, 3, 4, 6, 8, 12, 17, 70)
LARGE = (8192, 8192)
HUGE = (28672, 16384)


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


def check_kernels(device, shapes):
    """Weights to the bit, products within their bound, the same alone and together, and again."""
    count = worst = 0
    for name in MATRIX_TYPES:
        for rows, cols in shapes:
            for pattern in patterns(name) if width_fits(name, cols) else ():
                case = make(name, rows, cols, pattern)
                what = f"{name} {rows}x{cols} {pattern.__name__}"
                matrix = on_device(device, case)
                out = device.floats(case.shape)
                device.lib.gwq_dequantize(device.ptr, matrix.struct, 0, rows, out.ptr)
                if not np.array_equal(out.array.view(np.uint32), case.full.view(np.uint32)):
                    raise Wrong(f"{what}: decoded weights differ")
                x = activations(max(TOKENS), cols)
                x[-1, cols // 2] = 5000  # massive
                first = None
                for n in TOKENS:
                    (got,) = product(device, [matrix], x[:n])
                    if n > half_products.GEMV_TOKENS:
                        y, size = half_products.expect(case, x[:n])
                        # tensor cores may cut off what they add, each 8 columns at the least
                        bound, first = BOUND + cols / 8 * 2.0**-23, got[0]
                    else:
                        y, size = expect(case, x[:n])
                        bound, first = BOUND, got[0] if first is None else first
                    far = np.abs(got - y) / (bound * size + 1e-30)
                    worst = max(worst, far.max())
                    if far.max() > 1:
                        raise Wrong(f"{what}: {n} tokens are {far.max():.1f} bounds off")
                    if not np.array_equal(got[0], first):
                        raise Wrong(f"{what}: {n} tokens change the first one's bits")
                count += 1
    print(f"{count} matrices: decoded to the bit, products within {worst:.2f} of their bound")


def check_model(folder, layers):
    """A random model on the device and on the CPU."""
    for kind in ("gwq4", "gwq2", "f16"):
        path = folder / f"small-{kind}.gguf"
        write_llama(path, TINY, layers, kind, 0.01)
        of_cpu, of_cuda = (Model(path, device=d) for d in ("cpu", "cuda"))
        ids = np.random.default_rng(1).integers(0, of_cpu.config.vocab, 24)
        a, b, again = of_cpu.logits(ids), of_cuda.logits(ids), of_cuda.logits(ids)
        session = of_cuda.session(64)
        steps = np.concatenate([session.forward([i]) for i in ids.tolist()])
        off = np.abs(np.stack([b, steps]) - a).max() / np.abs(a).max()
        if not off < 0.03:
            raise Wrong(f"{kind} model: logits are {off:.3f} of their range from the CPU's")
        if not np.array_equal(b, again):
            raise Wrong(f"{kind} model: a second run has other bits")
        print(f"{kind} model: logits within {off:.1e} of the CPU's, runs repeat to the bit")


def seconds_each(device, run, seconds=0.5):
    """Seconds of one `run`, of many in a row; the device is waited for at the end alone."""
    mark = device.floats(1)
    run()
    _ = mark.array
    count = 1
    while True:
        start = time.perf_counter()
        for _ in range(count):
            run()
        _ = mark.array
        took = time.perf_counter() - start
        if took >= seconds:
            return took / count
        count = max(count + 1, int(count * min(10, 1.2 * seconds / max(took, 1e-6))))


def heading(*columns):
    """Begin a table."""
    print(f"\n| {' | '.join(columns)} |\n|{' --- |' * len(columns)}")


def time_products(device, shapes, roof, seconds, working_set):
    """Rows of products, codes of the activations included, beside the device's read rate.

    Matrices of `working_set` bytes in turn, so that no cache has them.
    """
    rng = np.random.default_rng(0)
    for shape in shapes:
        for name, outliers in (
            ("gwq4", 0.0),
            ("gwq4", 0.0025),
            ("gwq3", 0.0025),
            ("gwq2", 0.0025),
            ("f16", 0.0),
        ):
            data = random_bytes(fmt.TYPES[name], shape, outliers, rng)
            made = Matrix("random", fmt.TYPES[name], shape, *data)
            copies = [Linear([device.matrix(made)]) for _ in range(1 + working_set // made.nbytes)]
            one = None
            for n in (1, 4, 8):
                ops = Ops(device)
                x, y = device.floats(activations(n, shape[1])), device.floats((n, shape[0]))

                def run(ops=ops, x=x, y=y, n=n, copies=copies):
                    for linear in copies:
                        linear(ops, x.ptr, n, y.ptr)

                each = seconds_each(device, run, seconds) / len(copies)
                one = one or each
                gbps = made.nbytes / each / 1e9
                print(
                    f"| {name}, {outliers:.2%} outliers | {shape[0]} x {shape[1]} | {n} |"
                    f" {each * 1e6:.1f} | {gbps:.0f} | {gbps / roof:.0%} | {each / one:.2f} |",
                    flush=True,
                )


def time_models(folder, shapes, roof, gen):
    """Rows of whole models: a decode step, and a prompt."""
    for name, shape, layers, kind in shapes:
        path = folder / f"{name}.gguf"
        write_llama(path, shape, layers, kind, 0.0025)
        start = time.perf_counter()
        model = Model(path, device="cuda")
        load = time.perf_counter() - start
        session = model.session(600)
        prompt = np.arange(3, 3 + min(512, 8 * gen))
        session.forward(prompt[:8])
        start = time.perf_counter()
        session.forward(prompt)
        read = time.perf_counter() - start
        for _ in range(3):
            session.forward([5])
        start = time.perf_counter()
        for _ in range(gen):
            session.forward([5])
        each = (time.perf_counter() - start) / gen
        gbps = decode_bytes(model.weights.reader) / each / 1e9
        cells = f"{name}, {kind} | {load:.1f} | {len(prompt) / read:.0f} | {1 / each:.1f}"
        print(f"| {cells} | {gbps:.0f} | {gbps / roof:.0%} |", flush=True)
        del session, model
        path.unlink()


def main():
    """Check, then time."""
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("--small", action="store_true", help="little data")
    p.add_argument("--device", type=int, default=0, help="number of the device (default 0)")
    args = p.parse_args()
    try:
        device = Cuda(args.device)
    except GwqError as e:
        sys.exit(f"{e}")
    print(device.name)
    roofs = DeviceRoofs(device, (1 << 22) if args.small else (1 << 30)).made(1)
    roof = max(roofs.now() for _ in range(3 if args.small else 20))
    try:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            check_kernels(device, SHAPES[3:4] if args.small else SHAPES)
            check_model(folder, 2)
            print(f"\nRead rate of the device: {roof:.0f} GB/s")
            heading("product", "shape", "tokens", "us", "GB/s", "of read rate", "of one token")
            if args.small:
                time_products(device, [(64, 256)], roof, 0.001, 1)
            else:
                time_products(device, [LARGE, HUGE], roof, 0.3, 256 << 20)
            heading("model", "load, s", "prompt, t/s", "decode, t/s", "GB/s", "of read rate")
            models = [("1.1B", LLAMA_1B, 22, "gwq4"), ("7B", LLAMA_7B, 32, "gwq4")]
            small = [("small", TINY, 2, "gwq4")]
            time_models(folder, small if args.small else models, roof, 3 if args.small else 100)
    except Wrong as e:
        sys.exit(f"WRONG: {e}")


if __name__ == "__main__":
    main()
