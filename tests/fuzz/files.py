"""Whole files: workers that take mutated ones through the commands, and a watch over them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from tests.fuzz.campaign import Campaign
from tests.fuzz.worker import FINE, bases, file_of

AT_ONCE = 1000  # files of a worker, so that what it leaks does not count as a file's
STUCK = 120.0  # seconds without a line, of a process that takes no processor time either
MANY = 20  # findings, after which there is no point in going on


class Files:
    """The target `files`: mutated files by their numbers, from the first that was not run yet."""

    def __init__(self, campaign: Campaign, say: bool = True) -> None:
        self.campaign = campaign
        self.counts = campaign.of("files")
        self.say = say
        self._lock = threading.Lock()
        self._next = self.counts.runs
        self._end: int | None = None
        self._deadline = float("inf")
        self._stop = False

    def run(self, seconds: float | None, count: int | None, jobs: int = 1) -> None:
        """Run for some seconds, or a number of files, by `jobs` workers."""
        start = time.monotonic()
        if seconds is not None:
            self._deadline = start + seconds
        if count is not None:
            self._end = self._next + count
        threads = [threading.Thread(target=self._work, daemon=True) for _ in range(jobs)]
        try:
            for thread in threads:
                thread.start()
            while any(thread.is_alive() for thread in threads):
                time.sleep(0.2)
        finally:
            self._stop = True
            for thread in threads:
                thread.join(30)
            self.counts.seconds += time.monotonic() - start
            self.campaign.save("files")

    @property
    def _over(self) -> bool:
        many = len(self.counts.findings) >= MANY
        return self._stop or many or time.monotonic() >= self._deadline

    def _work(self) -> None:
        while not self._over:
            with self._lock:
                first = self._next
                size = AT_ONCE if self._end is None else min(AT_ONCE, self._end - first)
                self._next += size
            if size <= 0:
                return
            last = first + size
            while first < last and not self._over:
                first = self._worker(first, last)
            with self._lock:
                self.campaign.save("files")
                if self.say:
                    c = self.counts
                    found = f"{len(c.findings)} findings"
                    print(f"files: {c.runs:,} run, {c.refused:,} refused, {found}", flush=True)

    def _worker(self, first: int, last: int) -> int:
        """Run files first .. last - 1 in a process; returns the first that was not run."""
        command = [sys.executable, "-m", "tests.fuzz.worker", str(self.campaign.seeds)]
        with subprocess.Popen(
            [*command, str(first), str(last - first)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,  # Ctrl-C is this process's own
        ) as process:
            try:
                for line in self._lines(process):
                    number, outcome, words = json.loads(line)
                    self._count(number, outcome, words)
                    first = number + 1
                    if self._over:
                        break
                if self._over:
                    return first
                status = process.wait()
            finally:
                if process.poll() is None:
                    process.kill()
                left = f"{self.campaign.seeds}/{process.pid}.fuzz"
                if os.path.exists(left):
                    os.unlink(left)
            if status == 0 and first == last:
                return first
            assert process.stderr is not None
            words = process.stderr.read().decode(errors="replace")
            if status > 0 or first == last:
                raise RuntimeError(f"a worker ended with status {status}: {words}")
            slow = -status == signal.SIGPROF
            what = "slow" if slow else "stuck" if -status == signal.SIGKILL else "crash"
            self._count(first, what, f"{signal.Signals(-status).name}\n{words}")
            return first + 1

    def _lines(self, process: subprocess.Popen[bytes]):
        """What a worker writes, until it ends, says nothing for long, or there is no time left."""
        assert process.stdout is not None
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            heard = time.monotonic()
            rest = b""
            while not self._over:
                if not selector.select(timeout=0.5):
                    if time.monotonic() - heard > STUCK:
                        process.kill()
                        return
                    continue
                data = os.read(process.stdout.fileno(), 1 << 16)
                heard = time.monotonic()
                if not data:
                    return
                *lines, rest = (rest + data).split(b"\n")
                yield from lines

    def _count(self, number: int, outcome: str, words: str) -> None:
        with self._lock:
            self.counts.runs += 1
            self.counts.refused += outcome == "refused"
            if outcome in FINE:
                return
            path = self.campaign.findings / f"{outcome}-{number}.gguf"
            path.write_bytes(file_of(number, bases(self.campaign.seeds)))
            path.with_suffix(".txt").write_text(words)
            self.counts.findings.append(path.name)
            if self.say:
                last = words.strip().splitlines()[-1:] or [""]
                print(f"files: {outcome} with {path}: {last[0][:200]}", flush=True)


def replay(path: Path) -> tuple[str, str]:
    """What becomes of a file: as `worker.outcome_of`, in this process."""
    from tests.fuzz.worker import outcome_of

    return outcome_of(0, str(path))
