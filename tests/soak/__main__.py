"""tools/soak: what holds after many loads, with many threads, many models and many tokens."""

from __future__ import annotations

import argparse
import gc
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np

import gwq_export
from gwq_export.runtime.model import Model
from tests.support.paths import REFERENCE

GROWTH = 1.05  # of resident memory, at most
SETTLED = 0.01  # of a trial, at least 100 rounds of it: from there on memory may not grow
PROMPT = list(range(5, 25))


class Trial(NamedTuple):
    """run(file, count) returns (whether it holds, what is printed). count: of the long form."""

    run: Callable[[Path, int], tuple[bool, str]]
    count: int


def resident() -> int:
    """Bytes of memory that this process has now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGESIZE")


def growth(rounds: int, step: Callable[[int], None]) -> float:
    """Resident memory after `rounds` calls of step(i), as a ratio to that once it has settled."""
    settled = min(rounds - 1, max(100, int(SETTLED * rounds)))
    before = 0
    for i in range(rounds):
        step(i)
        if i == settled:
            gc.collect()
            before = resident()
    gc.collect()
    return resident() / before


def reloads(file: Path, count: int) -> tuple[bool, str]:
    """Load the file, compute a token and forget both, `count` times."""
    expected = gwq_export.load(file).session().forward(PROMPT)
    wrong = 0

    def step(i: int) -> None:
        nonlocal wrong
        wrong += not np.array_equal(gwq_export.load(file).session().forward(PROMPT), expected)

    grown = growth(count, step)
    return grown <= GROWTH and not wrong, f"{count} loads: memory x {grown:.3f}, {wrong} wrong"


def threads(file: Path, count: int) -> tuple[bool, str]:
    """24 threads ask one loaded model at the same time; each asks `count` times."""
    model = gwq_export.load(file, threads=2)

    def answer(i: int) -> str:
        ids = [3 + (7 * i + k) % 500 for k in range(5 + i % 11)]
        return model.generate(ids, n=12, temp=0.8 * (i % 2), seed=i)

    asked = range(24 * count)
    alone = [answer(i) for i in asked]
    with ThreadPoolExecutor(24) as pool:
        together = list(pool.map(answer, asked))
    wrong = sum(a != b for a, b in zip(alone, together, strict=True))
    return not wrong, f"24 threads: {len(asked)} answers, {wrong} unlike those of one thread"


def models(file: Path, count: int) -> tuple[bool, str]:
    """`count` models are loaded at the same time and compute in turn."""
    loaded: list[Model] = [gwq_export.load(file, threads=1 + i % 3) for i in range(count)]
    sessions = [model.session(64) for model in loaded]
    alone = gwq_export.load(file).session(64)
    expected = [alone.forward([token])[0] for token in PROMPT]
    wrong = 0
    for at, token in enumerate(PROMPT):
        for session in sessions:
            wrong += not np.array_equal(session.forward([token])[0], expected[at])
    return not wrong, f"{count} models at once: {wrong} of {count * len(PROMPT)} logits wrong"


def tokens(file: Path, count: int) -> tuple[bool, str]:
    """`count` tokens in one session: when its context is full, its second half is read again."""
    session = gwq_export.load(file).session(128)
    seen = list(PROMPT)
    row = session.forward(seen)[0]
    read, bad = len(seen), 0

    def step(i: int) -> None:
        nonlocal row, read, bad
        bad += not np.isfinite(row).all()
        seen.append(int(row.argmax()) if i % 3 else 3 + i % 900)
        if session.pos == session.ctx:
            del seen[: session.ctx // 2]
            session.rewind()
            row = session.forward(seen)[0]
            read = len(seen)
        else:
            row = session.forward(seen[-1:])[0]

    grown = growth(count, step)
    fresh = gwq_export.load(file).session(128)
    again = fresh.forward(seen[:read])[0]
    for token in seen[read:]:
        again = fresh.forward([token])[0]
    bad += not np.array_equal(again, row)
    held = grown <= GROWTH and not bad
    return held, f"{count} tokens: memory x {grown:.3f}, {bad} logits wrong"


TRIALS = {  # name -> trial
    "reloads": Trial(reloads, 10_000),
    "threads": Trial(threads, 40),
    "models": Trial(models, 200),
    "tokens": Trial(tokens, 100_000),
}


def main(argv: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    p = argparse.ArgumentParser(prog="tools/soak", description=(__doc__ or "").split(": ")[1])
    p.add_argument("names", nargs="*", metavar="TRIAL", help=f"of {', '.join(TRIALS)}; all of them")
    p.add_argument("--file", type=Path, help="a GGUF file (default: the bundled model in gwq4)")
    p.add_argument("--count", type=int, help="rounds of each trial")
    args = p.parse_args(argv)
    if unknown := [name for name in args.names if name not in TRIALS]:
        p.error(f"there is no trial {unknown[0]}: choose from {', '.join(TRIALS)}")
    failed = 0
    with TemporaryDirectory() as folder:
        file = args.file
        if file is None:
            file = Path(folder) / "model.gguf"
            gwq_export.export(REFERENCE, file, type="gwq4", samples=2, ctx=64, fast=True)
        for name in args.names or TRIALS:
            trial = TRIALS[name]
            start = time.monotonic()
            held, said = trial.run(file, args.count or trial.count)
            failed += not held
            seconds = time.monotonic() - start
            print(f"{name}: {'holds' if held else 'FAILS'}: {said} ({seconds:.0f} s)", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
