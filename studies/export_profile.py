"""Where the time of an export goes, beside the least that its arithmetic takes.

    studies/export_profile MODEL [-- OPTIONS OF gwq-export]

Exports MODEL into a temporary folder, with the options after `--` (by default --type gwq3 --samples
4 --ctx 512), and prints for each phase its seconds, the CPU seconds of all threads, and a floor:
the phase's floating-point operations at the measured rate of products, all threads together. The
floor of the code search is what the same calls take, all threads together. A phase's
seconds leave out those of phases within it. Prints Markdown.
"""

import argparse
import functools
import importlib
import inspect
import math
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from gwq_export.bench.tables import table
from gwq_export.compute.linalg import COLUMNS
from gwq_export.compute.products import multiply
from gwq_export.compute.threads import each, one_thread_each
from gwq_export.machine import cpu_name, default_threads, size
from gwq_export.native.library import Pool, isa
from gwq_export.pipeline.options import ExportOptions
from gwq_export.pipeline.tuning_steps import divided

INPUTS = ("attn_q.weight", "attn_output.weight", "ffn_up.weight", "ffn_down.weight")
ROWS = 512  # of the search that is timed by itself
DEFAULT = ["--type", "gwq3", "--samples", "4", "--ctx", "512"]


@dataclass
class Phase:
    """What was spent in a phase, without what is within it."""

    seconds: float = 0.0
    cpu: float = 0.0


class Clock:
    """Gives every moment of the main thread to the innermost phase that is under way."""

    def __init__(self) -> None:
        self.phases: dict[str, Phase] = {}
        self.searched: dict[tuple[Any, bool, bool], int] = {}  # (type, fits, feeds back) -> weights
        self._stack = ["rest"]
        self._last = time.perf_counter(), time.process_time()
        self._thread = threading.get_ident()
        self._stopped = False

    def _turn(self) -> Phase:
        now = time.perf_counter(), time.process_time()
        phase = self.phases.setdefault(self._stack[-1], Phase())
        phase.seconds += now[0] - self._last[0]
        phase.cpu += now[1] - self._last[1]
        self._last = now
        return phase

    def inside(self, name: str, work: Callable[[], Any]) -> Any:
        """work(), in the phase of this name; other threads go on in whatever phase there is."""
        if self._stopped or threading.get_ident() != self._thread:
            return work()
        self._turn()
        if "tuning" in self._stack and not name.startswith("tuning"):
            name = self._stack[-1]  # its passes are its own
        self._stack.append(name)
        try:
            return work()
        finally:
            self._turn()
            self._stack.pop()

    def stop(self) -> None:
        """Give the current phase its time so far; what comes is not timed."""
        self._turn()
        self._stopped = True


# phase -> the functions whose time it is, "module:name"
PHASES = {
    "open and plan": ["pipeline.run:prepare"],
    "read weights": ["hf.source:Source.tensor"],
    "hidden states on disk": ["compute.scratch:Scratch.put", "compute.scratch:Scratch.get"],
    "forward": ["calibration.block_pass:BlockPass.forward"],
    "head": ["calibration.block_pass:BlockPass.at_the_end"],
    "head and embedding's statistics": ["calibration.gradients:_end_gradients"],
    "backward": ["calibration.block_pass:BlockPass.backward"],
    "x x^T": ["calibration.statistics:add_gram", "calibration.gradients:add_gram"],
    "factor of the curvature": ["quantization.curvature:cholesky_inverse"],
    "make and cast the curvature": ["quantization.curvature:Curvature.factor"],
    "choose outliers": ["quantization.quantize:select"],
    "encode: lay out": ["quantization.quantize:encode"],
    "encode: turn U": ["quantization.feedback:_in_coding_order"],
    "predict: search": ["quantization.loss_model:encode"],
    "encode: feedback": ["quantization.encoder:_encode_with_feedback"],
    "encode: sweep": ["quantization.matrix_codes:MatrixCodes.sweep"],
    "encode: refit": ["quantization.tile_codes:TileCodes.refit"],
    "pack": ["quantization.quantize:_pack", "quantization.quantize:pack_outliers"],
    "statistics": ["calibration.statistics:Totals.factor", "calibration.statistics:Totals.finish"],
    "load blocks": ["calibration.block_model:BlockModel.load"],
    "values beneath outliers": ["quantization.quantize:_values_at"],
    "round": ["quantization.quantize:_encode_ggml"],
    "rest of quantize": ["pipeline.tensors:quantize"],
    "predict losses": ["pipeline.sensitivity:_offers"],
    "statistics on disk": [
        "pipeline.statistics_store:StatisticsStore.put",
        "pipeline.statistics_store:StatisticsStore.get",
    ],
    "allocate": ["pipeline.sensitivity:fit"],
    "tuning": ["pipeline.tuning:Tuning.run", "pipeline.tuning:Tuning.tensors"],
    "tuning: decode": ["pipeline.tuned_blocks:TunedSource.open"],
    "tuning: project": ["pipeline.tuned_blocks:TunedBlock.project"],
    "write": ["format.writer:Writer.write"],
    "release memory": ["pipeline.run:release_memory"],
}


def _owner(place: str) -> tuple[Any, str]:
    """(what has the attribute, its name) of "module:name"."""
    module, _, path = place.partition(":")
    *outer, name = path.split(".")
    owner = importlib.import_module(f"gwq_export.{module}")
    for part in outer:
        owner = getattr(owner, part)
    return owner, name


def watch(clock: Clock) -> None:
    """Make the functions of PHASES report to the clock."""
    for phase, places in PHASES.items():
        for place in places:
            owner, name = _owner(place)
            found = owner.__dict__[name]
            if isinstance(found, functools.cached_property):
                found.func = _timed(clock, phase, found.func)
            else:
                setattr(owner, name, _timed(clock, phase, found))


def _timed(clock: Clock, phase: str, work: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(work)
    def call(*args: Any, **kwargs: Any) -> Any:
        return clock.inside(phase, lambda: work(*args, **kwargs))

    @functools.wraps(work)
    def walk(*args: Any, **kwargs: Any) -> Iterator[Any]:
        items = work(*args, **kwargs)
        end = object()
        while (item := clock.inside(phase, lambda: next(items, end))) is not end:
            yield item

    return walk if inspect.isgeneratorfunction(work) else call


def count_searches(clock: Clock) -> None:
    """Count the weights that the native encoder is given, by type and by what is asked."""
    from gwq_export.quantization.matrix_codes import MatrixCodes

    work = MatrixCodes._encode_columns
    lock = threading.Lock()

    @functools.wraps(work)
    def call(
        self: Any, type: Any, first: int, target: np.ndarray, lanes: slice | None, *args: Any
    ) -> np.ndarray:
        fit, fed = (arg is not None for arg in args[2:4])
        key = type, fit, fed
        count = target[:, lanes or slice(None)].size
        with lock:
            clock.searched[key] = clock.searched.get(key, 0) + count
        return work(self, type, first, target, lanes, *args)

    MatrixCodes._encode_columns = call


# --- floors ---------------------------------------------------------------------------------------


def product_rate(dtype: str, threads: int) -> float:
    """Floating-point operations per second of products of this type, one to a thread."""
    import torch

    kind = getattr(torch, dtype)
    a, b = torch.ones(512, 2048, dtype=kind), torch.ones(2048, 2048, dtype=kind)
    count = 8 * threads
    with one_thread_each():
        seconds = [_seconds(lambda: each(lambda _: multiply(a, b), range(count))) for _ in range(7)]
    return count * 2 * a.numel() * len(b) / float(np.median(seconds))


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def search_seconds(type: Any, fit: bool, fed: bool) -> float:
    """Seconds per weight of one thread that searches for the codes of 64 rows again and again."""
    from gwq_export.quantization.encoder import TileCodes
    from gwq_export.quantization.recipe import TABLES

    rng = np.random.default_rng(0)
    step = TileCodes.step
    w = rng.standard_normal((step, ROWS)).astype(np.float32) * 1024
    ones = np.ones(step, np.float32)
    table = np.asarray(TABLES["trellis"][type.name], np.float32)
    codes = TileCodes(type, table, np.ones(ROWS, np.float32), w, None, Pool(1).ptr)
    feedback = (rng.standard_normal((step, step)) / 16).astype(np.float32) if fed else None
    options = {"feedback": feedback, "cost": ones}
    codes.run(0, w, column_weight=ones, **options)  # scales, for the calls that keep them
    if fit:
        options["column_weight"] = ones
    seconds = [_seconds(lambda: codes.run(0, w.copy(), **options)) for _ in range(50)]
    return float(np.median(seconds)) / w.size


def operations(job: Any, tuned: bool) -> dict[str, tuple[str, float]]:
    """{phase: (dtype, floating-point operations)} of an export of a dense model."""
    tokens = job.calibration.tokens.numel()
    linear = sum(p.weights for p in job.plans if p.linear)
    head = math.prod(next(p.shape for p in job.plans if p.name == "token_embd.weight"))
    coded = [p.shape for p in job.plans if p.linear and p.recipe.encoded]
    inputs = [p.shape[1] for p in job.plans if p.name.endswith(INPUTS)]
    products = float(sum(r * c * c for r, c in coded))
    found = {
        "forward": ("float32", 2.0 * tokens * linear),
        "backward": ("float32", 4.0 * tokens * linear),
        "head": ("float32", 4.0 * tokens * head),
        "x x^T": ("float32", float(sum(tokens * c * (c + COLUMNS) for c in inputs))),
        "factor of the curvature": ("float64", sum(2 / 3 * c**3 for c in inputs)),
        "encode: feedback": ("float32", products),
        "encode: sweep": ("float32", 2 * products),
        "encode: refit": ("float32", 2 * products),
    }
    if tuned:
        windows, ctx = job.tune_tokens.shape
        of_step, judges = divided(windows, ctx, job.tune_steps)
        # a step: forward, backward with gradients of weights; judges twice, the model itself once
        passes = 8 * sum(map(len, of_step)) + 4 * len(judges) + 2 * windows
        found["tuning"] = ("float32", float(passes) * ctx * linear)
    return found


def rows(clock: Clock, job: Any, tuned: bool, threads: int) -> list[list[Any]]:
    """A row for each phase, the longest first: seconds, CPU seconds, floor, ratio."""
    rate = {dtype: product_rate(dtype, threads) for dtype in ("float32", "float64")}
    floors = {phase: n / rate[d] for phase, (d, n) in operations(job, tuned).items()}
    for (type, fit, fed), weights in clock.searched.items():
        phase = "encode: feedback" if fit and fed else "encode: sweep" if fed else "predict: search"
        found = weights * search_seconds(type, fit, fed) / threads
        floors[phase] = floors.get(phase, 0) + found
    out = []
    for name, phase in sorted(clock.phases.items(), key=lambda item: -item[1].seconds):
        floor = floors.get(name)
        ratio = "" if floor is None or not phase.seconds else f"{phase.seconds / floor:.1f}"
        shown = "" if floor is None else f"{floor:.1f}"
        out.append([name, f"{phase.seconds:.1f}", f"{phase.cpu:.1f}", shown, ratio])
    total = [sum(getattr(p, kind) for p in clock.phases.values()) for kind in ("seconds", "cpu")]
    out.append(["all", *(f"{t:.1f}" for t in total), f"{sum(floors.values()):.1f}", ""])
    print(" ".join(f"{d}: {r / 1e9:.0f} GFLOP/s." for d, r in rate.items()))
    return out


def parser() -> argparse.ArgumentParser:
    """Arguments of the study."""
    p = argparse.ArgumentParser(prog="studies/export_profile", description=__doc__.split("\n")[0])
    p.add_argument("model", metavar="MODEL")
    p.add_argument("--dir", help="where the temporary folder goes")
    p.add_argument("options", nargs="*", metavar="OPTION", help="of gwq-export, after --")
    return p


def main() -> None:
    """Measure and print."""
    args = parser().parse_args()
    clock = Clock()
    given = args.options or DEFAULT
    jobs = []
    seconds = _seconds(lambda: importlib.import_module("gwq_export.pipeline.run"))
    clock.phases["import"] = Phase(seconds, seconds)
    watch(clock)
    count_searches(clock)
    from gwq_export.commands import export as command
    from gwq_export.pipeline import run

    prepare = run.prepare
    run.prepare = lambda *a: jobs.append(prepare(*a)) or jobs[-1]
    with tempfile.TemporaryDirectory(dir=args.dir) as folder:
        asked = command.parser().parse_args([args.model, "-o", f"{folder}/out.gguf", *given])
        options = ExportOptions(**{f.name: getattr(asked, f.name) for f in fields(ExportOptions)})
        result = run.export(args.model, asked.out, options)
    threads = asked.threads or default_threads()
    clock.stop()
    found = rows(clock, jobs[0], "tuned_kld" in result, threads)
    print(
        f"{result['params'] / 1e6:.0f} M weights, {' '.join(given)}: {result['seconds']:.0f} s,"
        f" {size(result['peak_rss_bytes'])}, {threads} threads, {isa()}, {cpu_name()}\n"
    )
    print(table(["phase", "seconds", "CPU seconds", "floor", "ratio"], found))


if __name__ == "__main__":
    main()
