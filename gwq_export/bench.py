"""Speed of a model and of the kernels, as tokens/s, GB/s and share of what the machine can read from memory.

Model rows carry llama-bench's JSON names. The roof is measured here, in alternation with what it is compared to: the
best of several stream counts and prefetch distances over a buffer far larger than the caches.
"""

import platform
import statistics
import time
from datetime import datetime, timezone
from functools import partial

import numpy as np

from gwq_export import GwqError, __version__, open_gguf
from gwq_export.format import ENTRY_MAX, TABLE, TYPES
from gwq_export.generate import Model
from gwq_export.model import BATCH
from gwq_export.native import F32, Linear, Matrix, Ops, Pool, isa, read_roof
from gwq_export.side_table import outlier_bytes, pack_outliers

ROOF_BYTES = 256 << 20  # beyond the last-level cache of desktop CPUs
ROOF_READS = [(streams, ahead) for streams in (1, 2, 4, 8) for ahead in (512, 2048, 4096)]
SHAPES = [(2048, 2048), (4096, 11008)]
KERNELS = [("f16", 0.0), ("q8_0", 0.0), *((t.name, f) for t in TYPES.values() if t.bits for f in (0.0, 0.01))]


def cpu_name():
    """The CPU as the operating system calls it."""
    try:
        with open("/proc/cpuinfo") as f:
            for line in f:
                if line.startswith(("model name", "Model")):
                    return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


class Roof:
    """Best read rate seen so far, GB/s, by number of threads."""

    def __init__(self):
        self.buffer, self.best = np.ones(ROOF_BYTES, np.uint8), {}  # ones: pages must be there

    def measure(self, pool):
        for streams, ahead in ROOF_READS:
            start = time.perf_counter()
            read_roof(pool, self.buffer, streams, ahead)
            rate = self.buffer.nbytes / (time.perf_counter() - start) / 1e9
            self.best[pool.threads] = max(rate, self.best.get(pool.threads, 0))
        return self.best[pool.threads]


def _timed(run, repeats):
    """Nanoseconds of each call, after one warm-up call."""
    run()
    samples = []
    for _ in range(repeats):
        start = time.perf_counter_ns()
        run()
        samples.append(time.perf_counter_ns() - start)
    return samples


def _run_tokens(session, prompt, generated):
    """A prompt in one go, then tokens one by one, in a fresh context."""
    session.rewind()
    if len(prompt):
        session.forward(prompt)
    for token in generated:
        session.forward([token])


def decode_bytes(model):
    """Bytes of weights read for one token: every matrix, of the embedding only a row (unless it is the head too)."""
    w = model.weights
    linears = [w.head, *(linear for layer in w.layers for linear in (layer.qkv, layer.attn_output, layer.gate_up, layer.ffn_down))]
    return sum(m.nbytes for linear in linears for m in linear.matrices)


def model_rows(path, prompt=512, gen=128, threads=(None,), repeats=5, progress=lambda phase, done, total: None, base=False):
    """Rows for `pp<prompt>` and `tg<gen>` at each thread count; 0 leaves a test out. Raises GwqError."""
    tests = [(p, g) for p, g in ((prompt, 0), (0, gen)) if p or g]
    if not tests or repeats < 1 or min(prompt, gen) < 0:
        raise GwqError("nothing to measure: give -p or -n a positive number, and -r at least 1")
    roof, rows = Roof(), []
    for t in threads:
        model = Model(open_gguf(path, base), threads=t)
        if max(prompt, gen) > model.config.ctx:
            raise GwqError(f"-p {prompt} -n {gen}: the model's context is {model.config.ctx}; use smaller numbers")
        reader, pool, rng = model.weights.reader, model.weights.pool, np.random.default_rng(0)
        ids = rng.integers(0, model.config.vocab, max(prompt, gen))
        params = sum(int(np.prod(x.shape)) for x in reader.tensors.values() if not x.companion)
        for p, g in tests:
            session = model.session(max(p, g))
            roof.measure(pool)
            samples = _timed(partial(_run_tokens, session, ids[:p], ids[:g]), repeats)
            limit = roof.measure(pool)
            speed = [(p + g) * 1e9 / s for s in samples]
            row = {
                "build_commit": __version__, "build_number": 0, "cpu_info": cpu_name(), "gpu_info": "", "backends": f"gwq-{isa()}",
                "model_filename": str(path), "model_type": model_type(reader), "model_size": reader.nbytes, "model_n_params": params,
                "n_batch": BATCH, "n_ubatch": BATCH, "n_threads": pool.threads, "type_k": "f32", "type_v": "f32", "n_gpu_layers": 0,
                "n_prompt": p, "n_gen": g, "n_depth": 0, "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
                "avg_ns": int(statistics.mean(samples)), "stddev_ns": int(statistics.pstdev(samples)),
                "avg_ts": statistics.mean(speed), "stddev_ts": statistics.pstdev(speed), "samples_ns": samples, "samples_ts": speed,
            }  # fmt: skip
            if g:
                rate = decode_bytes(model) * statistics.median(speed) / 1e9
                row |= {"bytes_per_token": decode_bytes(model), "gbps": rate, "roof_gbps": limit, "of_roof": rate / limit}
            else:
                row |= {"bytes_per_token": None, "gbps": None, "roof_gbps": limit, "of_roof": None}
            rows.append(row)
            progress("bench", len(rows), len(tests) * len(threads))
    return rows


def model_type(reader):
    """ "llama gwq4" or the like: architecture and the type that holds most of the weights."""
    size = {}
    for t in reader.tensors.values():
        size[t.type.name] = size.get(t.type.name, 0) + (0 if t.companion else int(np.prod(t.shape)))
    return f"{reader.metadata.get('general.architecture')} {max(size, key=size.get)}"


def random_matrix(type, shape, outliers, rng):
    """A Matrix of random bytes with finite scales and `outliers` of its weights in a side-table: for speed only."""
    rows, cols = shape
    data = rng.integers(0, 256, type.nbytes(rows, cols), np.uint8)
    fields = {"f16": data[1::2], "q8_0": data[1 :: type.unit_bytes]}  # upper bytes of FP16 values
    if type.bits:
        data[:TABLE] &= ENTRY_MAX
        fields[type.name] = data[TABLE + 1 : type.head_bytes(rows) : 2]
    if type.name in fields:
        fields[type.name] &= 0xBF  # keeps the exponent far from infinity
    table = None
    if count := round(outliers * rows * cols):
        at = np.sort(rng.choice(rows * cols, count, replace=False))
        records, offsets = pack_outliers(at // cols, at % cols, rng.normal(size=count).astype(np.float16), shape)
        assert (records.size, offsets.size) == outlier_bytes(rows, cols, count)
        table = records, offsets
    return Matrix("random", type, shape, data, table)


def kernel_rows(threads=(None,), repeats=5, working_set=400 << 20, progress=lambda phase, done, total: None):
    """GEMV rows {"op", "type", "shape", "outliers", "isa", "threads", "gbps", "roof_gbps", "of_roof", "gweights"}.

    Each matrix shape is repeated until `working_set` bytes are read in turn, so that no cache serves them.
    """
    roof, rows, rng = Roof(), [], np.random.default_rng(0)
    total = len(SHAPES) * len(KERNELS) * len(threads)
    for shape in SHAPES:
        for name, outliers in KERNELS:
            one = random_matrix(TYPES[name], shape, outliers, rng)
            copies = [one] + [_copy(one) for _ in range(working_set // one.nbytes)]
            for t in threads:
                pool = Pool(t)
                ops, x, y = Ops(pool), F32(rng.normal(size=(1, shape[1]))), F32((1, shape[0]))
                linears = [Linear([m]) for m in copies]

                roof.measure(pool)
                nbytes = sum(m.nbytes for m in copies)
                rate = nbytes / statistics.median(_timed(partial(_run_linears, linears, ops, x, y), repeats))
                limit = roof.measure(pool)
                rows.append({
                    "op": "gemv", "type": name, "shape": list(shape), "outliers": outliers, "isa": isa(), "threads": pool.threads,
                    "gbps": rate, "roof_gbps": limit, "of_roof": rate / limit, "gweights": rate * shape[0] * shape[1] / one.nbytes,
                    "cpu_info": cpu_name(),
                })  # fmt: skip
                progress("kernels", len(rows), total)
    return rows


def _run_linears(linears, ops, x, y):
    for linear in linears:
        linear(ops, x.ptr, 1, y.ptr)


def _copy(m):
    data, *table = [a.copy() for a in m._keep]
    return Matrix(m.name, m.type, (m.rows, m.cols), data, tuple(table) or None)


def markdown(rows):
    """The rows as a Markdown table, in llama-bench's columns for models."""
    if "op" in rows[0]:
        head = ["op", "type", "rows x columns", "outliers", "isa", "threads", "GB/s", "roof GB/s", "of roof", "Gweights/s"]
        body = [[r["op"], r["type"], f"{r['shape'][0]}x{r['shape'][1]}", f"{r['outliers']:.1%}", r["isa"], r["threads"], f"{r['gbps']:.1f}",
                 f"{r['roof_gbps']:.1f}", f"{r['of_roof']:.0%}", f"{r['gweights']:.1f}"] for r in rows]  # fmt: skip
    else:
        head = ["model", "size", "params", "backend", "threads", "test", "t/s", "GB/s", "of roof"]
        body = [[r["model_type"], f"{r['model_size'] / 2**20:.2f} MiB", f"{r['model_n_params'] / 1e6:.2f} M", r["backends"], r["n_threads"],
                 f"pp{r['n_prompt']}" if r["n_prompt"] else f"tg{r['n_gen']}", f"{r['avg_ts']:.2f} ± {r['stddev_ts']:.2f}",
                 f"{r['gbps']:.1f}" if r["gbps"] else "", f"{r['of_roof']:.0%}" if r["of_roof"] else ""] for r in rows]  # fmt: skip
    lines = [head, ["---"] * len(head), *body]
    return "\n".join("| " + " | ".join(str(c) for c in line) + " |" for line in lines)
