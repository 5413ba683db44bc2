"""Rows of whole files: tokens per second of prompt and decoding, load time, memory, memory roof.

Every file runs in a process of its own (`contender`). Several files, and the memory roof, are timed
in alternation: roof, first file, roof, second file, ..., roof, first file, ... so that ratios come
from neighbours in time.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from os import PathLike
from typing import Any

from gwq_export.bench import contender, starts
from gwq_export.bench.files import context
from gwq_export.bench.roof import DeviceRoofs, Roof, Roofs
from gwq_export.bench.runs import Runs
from gwq_export.errors import GwqError
from gwq_export.format.reader import Reader
from gwq_export.machine import default_threads, kept_on
from gwq_export.native.cuda import devices, pool_of
from gwq_export.runtime.page_cache import read_anew
from gwq_export.runtime.placement import check_layers
from gwq_export.sensors.watch import Watch

PROMPT, GEN = 512, 128  # tokens, unless asked for


@dataclass(frozen=True)
class Plan:
    """What is run: a prompt of each of `prompts` tokens, and `gen` tokens decoded, with each of
    `depths` tokens in the context. 0 leaves a test out; None: PROMPT and GEN, or what fits.

    threads: counts; None: as many as there are CPUs. cpus: {count: those that it is kept on}.
    """

    prompts: Sequence[int | None] = (None,)
    gen: int | None = None
    depths: Sequence[int] = (0,)
    threads: Sequence[int | None] = (None,)
    cpus: Mapping[int, Sequence[int] | None] = field(default_factory=dict)
    repeats: int = 5

    def fitting(self, readers: Iterable[Reader]) -> "Plan":
        """The same with every length a number. Raises GwqError where one does not fit a file."""
        limits = {str(reader.path): context(reader) for reader in readers}
        path = min(limits, key=lambda path: limits[path])
        limit = limits[path]
        room = max(1, limit - max(self.depths))
        prompts = [min(PROMPT, room) if p is None else p for p in self.prompts]
        gen = max(0, min(GEN, room - 1)) if self.gen is None else self.gen
        if min(*prompts, gen, *self.depths) < 0 or not any((*prompts, gen)) or self.repeats < 1:
            raise GwqError(
                "nothing to measure: give -p or -n a positive number, --depth none below 0, and -r"
                " at least 1"
            )
        fitting = Plan(prompts, gen, self.depths, self.threads, self.cpus, self.repeats)
        if fitting.ctx > limit:
            raise GwqError(
                f"{path}: -p, -n and --depth need a context of {fitting.ctx} and the model's is"
                f" {limit}; use smaller numbers"
            )
        return fitting

    @property
    def ctx(self) -> int:
        """Tokens of the context that the tests need; lengths are numbers."""
        return max(self.depths) + max(*(p or 0 for p in self.prompts), (self.gen or 0) + 1)

    @property
    def each(self) -> list[tuple[int, int, int]]:
        """[(prompt, gen, depth)]; lengths are numbers."""
        return [
            (prompt or 0, gen or 0, depth)
            for depth in self.depths
            for prompt, gen in (*((p, 0) for p in self.prompts), (0, self.gen))
            if prompt or gen
        ]


def readers(
    path: str | PathLike[str], against: Sequence[str | PathLike[str]]
) -> list[tuple[Reader, list[str]]]:
    """[(reader, engines)] of the file and of those to compare it with. Raises GwqError."""
    files = [(Reader(path), ["gwq"])]
    for reader in map(contender.open_file, against):
        files.append((reader, contender.engines(reader)))
    return files


def model_rows(
    path: str | PathLike[str],
    plan: Plan | None = None,
    against: Sequence[str | PathLike[str]] = (),
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
    emit: Callable[[dict[str, Any]], None] = lambda row: None,
    device: str = "cpu",
    gpu_layers: int | None = None,
    watch: Watch | None = None,
    roofs: Roofs | DeviceRoofs | None = None,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Time a file; returns rows, and those of the roof (`Roofs.rows`). Raises GwqError.

    emit: is given every row as soon as it is measured. device, gpu_layers: as for
    `gwq_export.load`; another device than the CPU is measured against its own memory roof, without
    `against`. watch and roofs: those of earlier calls, else new ones.

    Rows of every test at each thread count, of `path` and of every file in `against` on every
    engine that runs it: llama-bench's names, and medians of bytes, memory and time.
    "times_as_fast": how many times as fast as the row's file the first file is, run by neighbouring
    run: median and quartiles; None for itself.
    """
    if device != "cpu" and against:
        raise GwqError("--against runs on the CPU: leave it out, or use --device cpu")
    check_layers(gpu_layers, device != "cpu")
    files = readers(path, against)
    plan = (plan or Plan()).fitting(reader for reader, _ in files)
    pool = None if device == "cpu" else pool_of(device)
    if roofs is None:
        roofs = Roofs() if pool is None else DeviceRoofs(pool)
    counts = [t or default_threads() for t in plan.threads] if pool is None else [1]
    rows: list[dict[str, Any]] = []
    done = 0
    total = len(plan.each) * len(counts) * plan.repeats

    def step() -> None:
        nonlocal done
        done += 1
        progress("bench", done, total)

    with ExitStack() as outer:
        if watch is None:
            watch = outer.enter_context(Watch(gpu=gpu_of(device)))
            watch.rest(progress)
        setting = {"gpu_info": getattr(pool, "name", ""), "power_mode": watch.power_mode()}
        for t in counts:
            cpus = plan.cpus.get(t)
            setting |= {"n_threads": t, "cpus": cpus}
            with kept_on(cpus), ExitStack() as stack:
                roof = roofs.made(t, progress)
                contenders = _contenders(files, t, plan.ctx, device, gpu_layers, stack, progress)
                prompts: dict[contender.Contender, Runs] = {}
                for prompt, gen, depth in plan.each:
                    timed = [Runs(c, prompt, gen, depth, cold) for c, cold in contenders]
                    states = _time(timed, roof, watch, plan.repeats, step)
                    for runs in timed:
                        if prompt:
                            prompts[runs.c] = runs
                        of_prompt = prompts.get(runs.c)
                        rows.append(runs.row(timed[0], of_prompt, setting, watch, states))
                        emit(rows[-1])
    return rows, roofs.rows()


def _time(
    timed: list[Runs],
    roof: Roof | DeviceRoofs,
    watch: Watch,
    repeats: int,
    step: Callable[[], None],
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Run by turns, with the roof between; returns the device's states before and after.

    step: called after every turn.
    """
    for runs in timed:
        runs.run()  # the first run warms caches
    first = watch.state()
    before = roof.now()
    for _ in range(repeats):
        for runs in timed:
            seconds = runs.watched(watch)
            after = roof.now()
            runs.beside.add(seconds, before, after)
            before = after
        step()
    return first, watch.state()


def gpu_of(device: str) -> str | None:
    """Where the GPU that a device names is on the PCI bus; None for the CPU, or where it is not."""
    number = device.partition(":")[2]
    if not device.startswith("cuda"):
        return None
    found = devices()
    at = int(number) if number.isdecimal() else 0
    return found[at]["bus"] if at < len(found) else None


def _contenders(
    files: list[tuple[Reader, list[str]]],
    threads: int,
    ctx: int,
    device: str,
    gpu_layers: int | None,
    stack: ExitStack,
    progress: Callable[[str, int, int], None],
) -> list[tuple[contender.Contender, dict[str, Any]]]:
    """[(contender, its cold start)] of all files and engines, closed with the stack."""
    cold = {}
    steps = sum(len(names) + 1 for _, names in files)
    done = 0
    # before any of them is mapped for good
    for reader, names in files:
        for name in names:
            progress("load", done, steps)
            cold[reader, name] = starts.start(reader, name, threads, ctx, True, device, gpu_layers)
            done += 1
    found = []
    for reader, names in files:
        progress("load", done, steps)
        for part in reader.parts:
            read_anew(part.path)
        for c in contender.start(reader, names, threads, ctx, device, gpu_layers):
            stack.callback(c.close)
            found.append((c, cold.get((reader, c.engine), NOT_COLD)))
        done += 1
    progress("load", steps, steps)
    return found


NOT_COLD = {"start_ns": None, "why_not": "only the engine as it runs by default is started so"}
