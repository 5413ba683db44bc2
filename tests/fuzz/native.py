"""The native targets (native/fuzz): built with Clang's libFuzzer, and run."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
import zipfile
from pathlib import Path

from native.build_fuzz import build_fuzzer
from tests.fuzz.campaign import Campaign
from tests.support.paths import DATA

SECONDS = 5  # that an input may take
MEMORY = 2048  # MiB
LONGEST = {"matrix": 4096, "product": 4096, "record": 1 << 18}  # bytes of an input
CORPUS = DATA / "fuzz"  # TARGET.zip: inputs that reach all the code that some hours have found
MANY = 10  # findings, after which there is no point in going on
UNITS = re.compile(r"stat::number_of_executed_units: (\d+)")
AT = re.compile(r"^#(\d+)\t", re.M)
WRITTEN = re.compile(r"Test unit written to (\S+)")


def why_not() -> str | None:
    """Why there is no fuzzer on this machine; None where there is one."""
    if not shutil.which("clang"):
        return "clang is not installed (Debian: apt-get install clang)"
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder, "a.c")
        source.write_text("int LLVMFuzzerTestOneInput(const char *p, long n) { return !p + !n; }\n")
        command = ["clang", "-fsanitize=fuzzer,address", source, "-o", f"{folder}/a"]
        if subprocess.run(command, capture_output=True).returncode:
            return "clang has no fuzzer runtime (Debian: apt-get install libclang-rt-14-dev)"
    return None


def unpack(target: str, folder: Path) -> int:
    """Put the inputs of tests/data into a folder; returns how many there are."""
    path = CORPUS / f"{target}.zip"
    if not path.exists():
        return 0
    with zipfile.ZipFile(path) as z:
        z.extractall(folder)
        return len(z.namelist())


def pack(target: str, folder: Path, most: int) -> int:
    """Keep the smallest inputs of a folder in tests/data, up to `most` bytes; returns how many."""
    CORPUS.mkdir(exist_ok=True)
    kept = 0
    with zipfile.ZipFile(CORPUS / f"{target}.zip", "w", zipfile.ZIP_DEFLATED, compresslevel=9) as z:
        for path in sorted(folder.iterdir(), key=lambda p: (p.stat().st_size, p.name)):
            info = zipfile.ZipInfo(path.name[:16])  # of a fixed time
            info.compress_type = zipfile.ZIP_DEFLATED
            z.writestr(info, path.read_bytes())
            kept += 1
            if z.fp is not None and z.fp.tell() > most:
                break
    return kept


class Native:
    """A native target in a campaign."""

    def __init__(self, campaign: Campaign, target: str, say: bool = True) -> None:
        self.campaign = campaign
        self.target = target
        self.counts = campaign.of(target)
        self.corpus = campaign.corpus(target)
        self.say = say
        if not any(self.corpus.iterdir()):
            unpack(target, self.corpus)

    def run(self, seconds: float | None, count: int | None) -> None:
        """Run for some seconds, or a number of executions; on after findings, up to MANY."""
        program = build_fuzzer(self.target)
        start = time.monotonic()
        left = count
        while len(self.counts.findings) < MANY:
            rest = None if seconds is None else seconds - (time.monotonic() - start)
            if (rest is not None and rest < 1) or (left is not None and left < 1):
                break
            runs, found = self._once(program, rest, left)
            left = None if left is None else left - max(runs, 1)
            if not found:
                break
        self.campaign.save(self.target)

    def _once(self, program: Path, seconds: float | None, count: int | None) -> tuple[int, bool]:
        """(executions, whether it ended with a finding)."""
        limits = [f"-max_total_time={int(seconds)}"] if seconds is not None else []
        limits += [f"-runs={count}"] if count is not None else []
        command = [
            str(program),
            *limits,
            f"-timeout={SECONDS}",
            f"-rss_limit_mb={MEMORY}",
            f"-max_len={LONGEST[self.target]}",
            f"-artifact_prefix={self.campaign.findings}/{self.target}-",
            "-print_final_stats=1",
            "-reload=0",
            "-close_fd_mask=2",  # what the program says of damaged files
            str(self.corpus),
        ]
        seeds = self.campaign.seeds / self.target
        command += [str(seeds)] if seeds.is_dir() else []
        start = time.monotonic()
        text = ""
        # libFuzzer takes the largest size of a process for its own, which Linux carries over from
        # the one that started it: a shell between them is small
        with subprocess.Popen(
            ["sh", "-c", '"$@"; exit $?', "sh", *command],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            errors="replace",
            start_new_session=True,
            env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0:allocator_may_return_null=1"},
        ) as process:
            try:
                assert process.stderr is not None
                for line in process.stderr:
                    text += line
                    if self.say and AT.match(line) and "pulse" in line:
                        print(f"{self.target}: {line.strip()}", flush=True)
            except KeyboardInterrupt:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGINT)
                text += process.stderr.read() if process.stderr else ""
                raise
            finally:
                units = UNITS.findall(text) or AT.findall(text) or ["0"]
                self.counts.runs += int(units[-1])
                self.counts.seconds += time.monotonic() - start
                self.campaign.save(self.target)
        if process.returncode == 0:
            return int(units[-1]), False
        files = WRITTEN.findall(text)
        name = Path(files[-1]).name if files else f"{self.target}-{int(time.time())}"
        self.counts.findings.append(name)
        (self.campaign.findings / f"{name}.txt").write_text(text[-20000:])
        if self.say:
            summary = re.findall(r"SUMMARY.*|broken promise.*", text) or ["?"]
            print(f"{self.target}: finding {name}: {summary[-1]}", flush=True)
        self.campaign.save(self.target)
        return int(units[-1]), True

    def minimise(self) -> None:
        """Leave in the corpus only inputs that reach code which smaller ones do not."""
        program = build_fuzzer(self.target)
        with tempfile.TemporaryDirectory(dir=self.campaign.folder) as folder:
            command = [str(program), "-merge=1", "-close_fd_mask=2", folder, str(self.corpus)]
            seeds = self.campaign.seeds / self.target
            subprocess.run(
                [*command, *([str(seeds)] if seeds.is_dir() else [])],
                check=True,
                capture_output=True,
                env=os.environ | {"ASAN_OPTIONS": "detect_leaks=0"},
            )
            for path in self.corpus.iterdir():
                path.unlink()
            for path in Path(folder).iterdir():
                shutil.move(path, self.corpus / path.name)
