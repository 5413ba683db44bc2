"""Files that are written to, cut short or replaced while a model is made of them."""

import gc
import os
import subprocess
import sys

import numpy as np
import pytest

from gwq_export import GwqError
from gwq_export.format.reader import Reader
from gwq_export.runtime.model import Model
from tests.support.cli import command
from tests.support.random_llama import TINY, write_llama

TOKENS = np.arange(40)


@pytest.fixture
def path(tmp_path):
    write_llama(tmp_path / "m.gguf", TINY, 2, "gwq4", 0.01)
    return tmp_path / "m.gguf"


def overwrite(path, at, data):
    """In place, as `dd conv=notrunc` does."""
    with open(path, "r+b") as f:
        f.seek(at)
        f.write(data)
    later = os.stat(path).st_mtime_ns + 10**9  # file systems keep time in steps
    os.utime(path, ns=(later, later))


def test_a_file_that_is_written_to_is_refused(path):
    reader = Reader(path)
    model = Model(reader, threads=2)
    before = model.logits(TOKENS)
    overwrite(path, os.path.getsize(path) - 64, bytes(8))
    for call in (
        lambda: model.logits(TOKENS),
        lambda: list(model.tokens(model.session(), [1, 2, 3], 4)),
        reader.check_unchanged,
    ):
        with pytest.raises(GwqError, match=r"m\.gguf has been changed since it was opened"):
            call()
    assert np.isfinite(before).all()


def test_a_file_that_is_cut_short_is_refused(path):
    model = Model(path, threads=2)
    os.truncate(path, 5000)
    with pytest.raises(GwqError, match="changed since it was opened"):
        model.logits(TOKENS)


def test_a_file_that_is_replaced_or_deleted_stays(path, tmp_path):
    """Its name goes to another file, as when it is exported again."""
    model = Model(path, threads=2)
    before = model.logits(TOKENS)
    write_llama(tmp_path / "new.gguf", TINY, 2, "f16", 0)
    os.replace(tmp_path / "new.gguf", path)
    assert np.array_equal(model.logits(TOKENS), before)
    path.unlink()
    assert np.array_equal(model.logits(TOKENS), before)


def test_files_are_closed(path):
    def opened():
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    Model(path, threads=1).logits(TOKENS)
    before = opened()
    for _ in range(20):
        Model(path, threads=1)
        with Reader(path) as reader:
            reader.check_unchanged()
        del reader
    assert opened() <= before


# In the time between the look at a file and its use: nobody looks. What comes out is thrown away by
# the look afterwards, so the program must only come to it.
SCRIPT = """
import os, sys
import numpy as np
from gwq_export import GwqError
from gwq_export.format.mapped import MappedFile
from gwq_export.runtime.model import Model

path, what, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
model = Model(path, threads=threads)
looks = MappedFile.check
MappedFile.check = lambda self: None
if what == "cut":
    os.truncate(path, os.path.getsize(path) // 3)
else:
    rng = np.random.default_rng(int(what))
    with open(path, "r+b") as f:
        f.seek(8192)
        f.write(rng.bytes(os.path.getsize(path) - 8192))
for tokens in ([5], np.arange(40)):
    try:
        model.logits(tokens)
    except GwqError as e:
        print(e)
MappedFile.check = looks
"""


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("what", ["cut", "0", "1", "2"])
def test_a_change_amid_a_computation_ends_nothing(path, what, threads):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, path, what, str(threads)], capture_output=True, text=True
    )
    assert done.returncode == 0, (done.returncode, done.stderr)
    if what == "cut":
        said = f"{path} could not be read any more"
        assert len(done.stdout.splitlines()) == 2
        assert all(line.startswith(said) for line in done.stdout.splitlines())


ELSEWHERE = """
import mmap, os, sys
from gwq_export.runtime.model import Model

model = Model(sys.argv[1], threads=1)
with open(sys.argv[2], "r+b") as f:
    f.truncate(1 << 16)
    other = mmap.mmap(f.fileno(), 0)
    f.truncate(0)
print(other[5000])
"""


def test_a_fault_elsewhere_is_what_it_was(path, tmp_path):
    (tmp_path / "x").touch()
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, path, tmp_path / "x"], capture_output=True, text=True
    )
    assert done.returncode == -7 and done.stdout == ""


CHECK = """
import os, sys
from gwq_export.cli import main
from gwq_export.format.reader import Reader

def cut(self, *args):
    os.truncate(sys.argv[1], os.path.getsize(sys.argv[1]) // 3)
    check(self, *args)

check = Reader.check
Reader.check = cut
sys.exit(main("info", [sys.argv[1], "--check"]))
"""


def test_a_check_of_a_file_that_is_cut_short(path):
    done = subprocess.run([sys.executable, "-c", CHECK, path], capture_output=True, text=True)
    assert done.returncode == 2, (done.returncode, done.stderr)
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("gwq-info: error: ")


@pytest.mark.parametrize(
    "old, new, words",
    [
        (b"{% for m in messages %}", b"{% fro m in messages %}", "chat template is none"),
        (b"gpt2", b"gpt9", "tokenizer model 'gpt9' is not supported"),
    ],
)
def test_check_says_what_a_run_would(tmp_path, exported, old, new, words):
    raw = exported(type="f32")[0].read_bytes()
    assert raw.count(old) == 1
    (tmp_path / "m.gguf").write_bytes(raw.replace(old, new))
    done = command("info", tmp_path / "m.gguf", "--check")
    assert done.returncode == 2 and words in done.stderr
    assert len(done.stderr.splitlines()) == 1, done.stderr
