"""A few seconds of tools/fuzz: whole files, the native targets, and that a fault would be found."""

import os
import random
import shutil
import subprocess
import sys

import pytest

from gwq_export.format.reader import Reader
from native.build_fuzz import TARGETS, build_fuzzer
from tests.fuzz import native
from tests.fuzz.campaign import Campaign
from tests.fuzz.files import Files
from tests.fuzz.gguf import pack, parse
from tests.fuzz.mutations import CHOICES
from tests.fuzz.seeds import seeds
from tests.fuzz.worker import bases, file_of
from tests.support.paths import DATA, ROOT

FILES = 400
EXECUTIONS = 2000


@pytest.fixture(scope="module")
def campaign(tmp_path_factory):
    found = Campaign(tmp_path_factory.mktemp("fuzz"))
    seeds(found.seeds, exported=False)
    return found


def test_files_are_put_together_as_they_were(campaign):
    paths = [*sorted(campaign.seeds.glob("*.gguf")), *sorted((DATA / "golden").glob("*.gguf"))]
    assert len(paths) > 10
    for path in paths:
        assert pack(parse(path.read_bytes())) == path.read_bytes(), path
        Reader(path).check()


def test_every_mutation_changes_a_file(campaign):
    files = bases(campaign.seeds)
    bridge = files[0].copy()
    bridge.deltas = files[1].copy()
    for mutation in CHOICES:
        changed = 0
        for seed in range(15):
            for file in (files[seed % len(files)], bridge):
                copy = file.copy()
                mutation(copy, random.Random(seed))
                changed += pack(copy) != pack(file.copy())
        assert changed > 2, mutation.__name__


def test_a_file_follows_from_its_number(campaign):
    files = bases(campaign.seeds)
    assert [file_of(n, files) for n in range(20)] == [file_of(n, files) for n in range(20)]


def test_mutated_files_run_or_are_refused(campaign):
    files = Files(campaign, say=False)
    files.run(None, FILES)
    c = campaign.of("files")
    assert c.findings == [], [(campaign.findings / f).with_suffix(".txt") for f in c.findings]
    assert c.runs == FILES and FILES / 5 < c.refused < FILES * 0.9


def broken(tmp_path, campaign, fault):
    """The counts of a short run with a fault in the reader."""
    folder = tmp_path / "broken"
    (folder / "seeds").mkdir(parents=True)
    shutil.copy(campaign.seeds / "none.gguf", folder / "seeds")
    hook = tmp_path / "sitecustomize.py"  # which Python imports first
    hook.write_text(
        "import os, sys, time\n"
        "from gwq_export.format import split\n"
        "was = split.later_parts\n"
        "def later_parts(path, metadata):\n"
        f"    {fault}\n"
        "    return was(path, metadata)\n"
        "split.later_parts = later_parts\n"
    )
    found = Campaign(folder)
    Files(found, say=False).run(None, 3)
    return found


@pytest.mark.parametrize(
    "fault, kind",
    [
        ("raise KeyError('no')", "status"),
        ("'.fuzz' in path and os.abort()", "crash"),
        ("while '.fuzz' in path: pass", "slow"),
        ("bytes(3 << 30 if '.fuzz' in path else 0)", "memory"),
    ],
)
def test_faults_are_found(tmp_path, monkeypatch, campaign, fault, kind):
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{ROOT}")
    monkeypatch.setattr("tests.fuzz.files.MANY", 1)
    found = broken(tmp_path, campaign, fault)
    (name,) = found.of("files").findings
    assert name.startswith(kind) and (found.findings / name).stat().st_size
    assert Campaign(found.folder).of("files") == found.of("files")  # as the next run reads it


def test_the_command(campaign):
    command = [sys.executable, "-m", "tests.fuzz", "--target", "files", "--count", "5"]
    before = campaign.of("files").runs
    done = subprocess.run(
        [*command, "--folder", campaign.folder, "--random"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    assert f"begins after {before:,} executions" in done.stdout
    assert done.stdout.splitlines()[-1].split()[:2] == ["files", f"{before + 5:,}"]


@pytest.mark.parametrize("target", TARGETS)
def test_native_targets(campaign, target):
    if why_not := native.why_not():
        pytest.skip(why_not)
    fuzzer = native.Native(campaign, target, say=False)
    fuzzer.run(None, EXECUTIONS)
    c = campaign.of(target)
    assert c.findings == [], [campaign.findings / f"{f}.txt" for f in c.findings]
    assert c.runs >= EXECUTIONS


@pytest.mark.parametrize("target", TARGETS)
def test_the_corpus_without_a_fuzzer(tmp_path, target):
    """What the fuzzer has found, by a compiler that has none: that takes a minute to build."""
    if native.why_not() is None:
        pytest.skip("the fuzzer runs it")
    program = build_fuzzer(target, replay=True)
    count = native.unpack(target, tmp_path)
    assert count > 20
    done = subprocess.run([program, *tmp_path.iterdir()], capture_output=True, text=True)
    assert done.returncode == 0 and f"{count} inputs" in done.stderr, done.stderr[-3000:]
