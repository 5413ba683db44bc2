"""A fixed set of measurements of a file on this device, step by step.

What is measured goes into the document at once, so that nothing is lost with an interruption.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from gwq_export.bench import document, starts
from gwq_export.bench.contender import Contender
from gwq_export.bench.files import context
from gwq_export.bench.models import Plan, gpu_of, model_rows, readers
from gwq_export.bench.roof import DeviceRoofs, Roofs
from gwq_export.bench.sustained import Sustained
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.machine import default_threads, kept_on
from gwq_export.native.cuda import pool_of
from gwq_export.sensors.processors import thread_counts
from gwq_export.sensors.watch import Watch

# The set: changing it makes results incomparable with those of other versions.
STARTS = 3  # cold ones, and warm ones
SWEEP = 32  # tokens decoded with each thread count, and at each depth
PROMPTS = (16, 128, 512)  # tokens
GEN = 128  # tokens decoded after one another
DEPTHS = (512, 2048)  # tokens in the context
REPEATS = 3
MINUTES = 5.0  # of decoding without a pause
PROBE = (16, 4)  # tokens of a prompt and decoded ones, from which the time left is told

Progress = Callable[[str, int, int], None]


@dataclass
class Job:
    """A suite on its way. rates: tokens/s of prompts and of decoding, so far as known.

    threads: counts that the user wants tried; None: those that the device suggests.
    """

    path: str | PathLike[str]
    reader: Reader
    against: Sequence[str | PathLike[str]]
    device: str
    threads: list[int | None] | None
    minutes: float
    watch: Watch
    roofs: Roofs | DeviceRoofs
    found: dict[str, Any]
    progress: Progress
    rates: tuple[float, float] = (0.0, 0.0)
    load: float = 0.0
    counts: dict[int, list[int] | None] = field(default_factory=dict)
    best: int = 1

    @property
    def cpus(self) -> list[int] | None:
        """Those that the best number of threads is kept on."""
        return self.counts.get(self.best)

    def rows(self, step: str, plan: Plan, against: Sequence[str | PathLike[str]] = ()) -> None:
        """Measure rows of a step."""
        _, roof = model_rows(
            *(self.path, plan, against, self.progress),
            lambda row: self.found["rows"].append(document.row(row, step)),
            *(self.device, None, self.watch, self.roofs),
        )
        self.found["roof"] = roof

    def room(self, tokens: Sequence[int], beside: int = 0) -> list[int]:
        """Those lengths that fit the context with `beside` more tokens."""
        return [n for n in tokens if n + beside <= context(self.reader)]

    @property
    def gen(self) -> int:
        """Tokens decoded after one another."""
        return min(GEN, context(self.reader) - 1)

    @property
    def sweep(self) -> int:
        """Tokens decoded with each thread count."""
        return min(SWEEP, context(self.reader) - 1)


@dataclass(frozen=True)
class Step:
    """A step of a suite. seconds: about how long it will take. why_not: why it is left out."""

    title: str
    run: Callable[[Job], None]
    seconds: Callable[[Job], float]
    why_not: Callable[[Job], str | None] = lambda job: None


def _starts(job: Job) -> None:
    ctx = min(context(job.reader), sum(PROBE))
    for i in range(2 * STARTS):
        cold = i < STARTS
        job.progress("starts", i, 2 * STARTS)
        with kept_on(job.cpus):
            found = starts.start(job.reader, "gwq", job.best, ctx, cold, job.device)
        job.found["starts"].append({"engine": "gwq", "cold": cold} | found)
    job.progress("starts", 2 * STARTS, 2 * STARTS)


def _threads(job: Job) -> None:
    plan = Plan([0], job.sweep, threads=list(job.counts), cpus=job.counts, repeats=REPEATS)
    job.rows("threads", plan)
    speed = {r["n_threads"]: r["median_ts"] for r in job.found["rows"] if r["step"] == "threads"}
    job.best = max(speed, key=lambda count: speed[count])
    job.found["best_threads"] = job.best
    job.rates = job.rates[0], speed[job.best]


def _speed(job: Job) -> None:
    prompts = job.room(PROMPTS) or [min(PROMPTS[0], context(job.reader))]
    job.rows("speed", _plan(job, prompts, job.gen, (0,)), job.against)
    of_prompts = [r["median_ts"] for r in job.found["rows"] if r["n_prompt"]]
    job.rates = max(of_prompts), job.rates[1]


def _depth(job: Job) -> None:
    depths = job.room(DEPTHS, job.sweep + 1)
    job.rows("depth", _plan(job, [0], job.sweep, depths), job.against)


def _plan(job: Job, prompts: Sequence[int], gen: int, depths: Sequence[int]) -> Plan:
    return Plan(prompts, gen, depths, [job.best], job.counts, REPEATS)


def _sustained(job: Job) -> None:
    ctx = min(context(job.reader), 1 + 512)
    with kept_on(job.cpus):
        c = Contender("gwq", job.reader, job.best, ctx, device=job.device)
    try:
        decoding = Sustained(c, job.best, ctx, job.watch)
        try:
            decoding.run(job.minutes, job.progress)
        finally:
            job.found["sustained"] = decoding.result()
    finally:
        c.close()


def _time(job: Job, prompt: float, gen: float) -> float:
    """Seconds of so many tokens of prompts, and decoded ones, on each of the engines."""
    return (1 + len(job.against)) * (prompt / job.rates[0] + gen / job.rates[1])


RUNS = 1 + REPEATS  # the first warms caches
STEPS = {
    "threads": Step(
        "thread sweep",
        _threads,
        lambda job: len(job.counts) * (2 * job.load + RUNS * job.sweep / job.rates[1]),
        lambda job: None if len(job.counts) > 1 else "there is one thread count to try",
    ),
    "starts": Step("from start to first token", _starts, lambda job: 2 * STARTS * job.load),
    "speed": Step(
        "prompts and decoding",
        _speed,
        lambda job: 2 * job.load + RUNS * _time(job, sum(job.room(PROMPTS)), job.gen),
    ),
    "depth": Step(
        "depth of the context",
        _depth,
        lambda job: (
            2 * job.load
            + _time(job, sum(job.room(DEPTHS, job.sweep + 1)), RUNS * job.sweep * len(DEPTHS))
        ),
        lambda job: (
            None
            if job.room(DEPTHS, job.sweep + 1)
            else f"the model's context is {context(job.reader)} tokens"
        ),
    ),
    "sustained": Step(
        "decoding without a pause", _sustained, lambda job: 60 * job.minutes + 2 * job.load
    ),
}
# name of a suite -> its steps, in their order
SUITES = {"edge": list(STEPS), "sustained": ["sustained"]}


def run_suite(
    name: str,
    path: str | PathLike[str],
    against: Sequence[str | PathLike[str]],
    device: str,
    threads: list[int | None] | None,
    minutes: float | None,
    progress: Progress,
    say: Callable[[str], None],
    save: Callable[[dict[str, Any]], None],
) -> dict[str, Any]:
    """Run a suite of SUITES; returns its document. Raises GwqError where nothing can be measured.

    threads: counts to try; None: those that the device suggests. minutes: of decoding without a
    pause; None: MINUTES. say: is given a line before every step. save: is given the document after
    every step, and when the run is interrupted.
    """
    reader = readers(path, against)[0][0]  # a file that cannot be read is said at once
    pool = None if device == "cpu" else pool_of(device)
    roofs = Roofs() if pool is None else DeviceRoofs(pool)
    with Watch(gpu=gpu_of(device), patient=True) as watch:
        found = document.new(name, reader, watch, getattr(pool, "name", ""))
        titles = {step: STEPS[step].title for step in SUITES[name]}
        found["steps"] = [
            {"step": s, "title": title, "state": "waiting", "seconds": None, "why": None}
            for s, title in titles.items()
        ]
        job = Job(
            *(path, reader, against, device, threads),
            *(MINUTES if minutes is None else minutes, watch, roofs, found, progress),
        )
        try:
            watch.rest(progress)
            _probe(job)
            for i, told in enumerate(found["steps"]):
                job.progress = _numbered(progress, i + 1, len(titles))
                left = sum(STEPS[s["step"]].seconds(job) for s in found["steps"][i:])
                say(f"step {i + 1} of {len(titles)}: {told['title']} (about {_span(left)} left)")
                told["state"] = "running"
                save(found)
                _take(job, told)
                save(found)
            states = [told["state"] for told in found["steps"]]
            found["complete"] = not {"failed", "waiting"} & set(states)
            if "done" not in states:
                raise GwqError(f"{path}: {found['steps'][-1]['why']}")
        except BaseException:
            for told in found["steps"]:
                if told["state"] == "running":
                    told["state"] = "interrupted"
            raise
        finally:
            save(found)
    return found


def _probe(job: Job) -> None:
    """Find out which thread counts there are to try, and about how fast the file runs."""
    limit = default_threads()
    suggested = dict(thread_counts(job.found["device"]["clusters"], limit)) or {limit: None}
    asked = [t or limit for t in job.threads or ()]
    job.counts = {t: suggested.get(t) for t in asked} if asked else suggested
    if job.device != "cpu":
        job.counts = {1: None}
    job.best = job.found["best_threads"] = max(job.counts)
    job.progress("load", 0, 1)
    start = time.perf_counter()
    ctx = min(context(job.reader), sum(PROBE))
    prompt, gen = min(PROBE[0], ctx), min(PROBE[1], ctx - 1)
    c = Contender("gwq", job.reader, job.best, ctx, device=job.device)
    try:
        job.load = time.perf_counter() - start
        c.run(prompt, gen)
        seconds = c.run(prompt, gen)
        job.rates = prompt / seconds[0], gen / seconds[1]
    finally:
        c.close()
    job.progress("load", 1, 1)


def _take(job: Job, told: dict[str, Any]) -> None:
    """Take one step; told: what the document says of it."""
    step = STEPS[told["step"]]
    if why := step.why_not(job):
        told |= {"state": "skipped", "why": why}
        return
    start = time.perf_counter()
    try:
        step.run(job)
        told["state"] = "done"
    except GwqError as e:
        job.progress(step.title, 1, 1)  # Ctrl-C ends engines, too: then that is the reason
        paths = [job.path, *job.against]
        told |= {"state": "failed", "why": document.without_folders(str(e), paths)}
    finally:
        told["seconds"] = round(time.perf_counter() - start, 3)


def _numbered(progress: Progress, number: int, total: int) -> Progress:
    return lambda phase, done, of: progress(f"{number}/{total} {phase}", done, of)


def _span(seconds: float) -> str:
    """A duration, roughly."""
    return f"{seconds / 60:.0f} min" if seconds >= 90 else f"{max(1, round(seconds))} s"
