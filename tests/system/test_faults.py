"""Faults from outside: full disks, files that cannot be read, models that change on the way."""

import builtins
import errno
import os
import shutil

import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.errors import NoMemory
from gwq_export.files import save
from gwq_export.format.foreign import _gguf
from gwq_export.hf.model_class import ModelClass
from gwq_export.hf.shards import Shards
from gwq_export.hf.source import Source
from tests.support.paths import REFERENCE
from tests.support.random_llama import TINY, write_llama

WEIGHTS = "model.safetensors"


@pytest.fixture
def folder(tmp_path):
    """A copy of a model that may be changed."""
    return shutil.copytree(REFERENCE, tmp_path / "model")


def touched(folder):
    path = folder / WEIGHTS
    os.utime(path, ns=(1, os.stat(path).st_mtime_ns + 10**9))


def replaced(folder):
    """Which is read from then on."""
    other = folder / "other"
    shutil.copy(folder / WEIGHTS, other)
    os.replace(other, folder / WEIGHTS)


def damaged(folder):
    """So that reading it fails: that is not why."""
    os.truncate(folder / WEIGHTS, os.path.getsize(folder / WEIGHTS) + 8)


def one_more(folder):
    shutil.copy(folder / WEIGHTS, folder / "model-00002-of-00002.safetensors")


@pytest.mark.parametrize("change", [touched, replaced, damaged, one_more])
def test_a_model_that_is_changed_while_it_is_exported(tmp_path, folder, change):
    """There is no file then, whatever was read before."""
    changed = []

    def progress(phase, done, total):
        if phase == "write" and not changed:
            changed.append(phase)
            change(folder)

    out = tmp_path / "m.gguf"
    with pytest.raises(GwqError, match=r"safetensors of .* was changed while it was exported"):
        gwq_export.export(folder, out, type="f16", progress=progress)
    assert changed and sorted(p.name for p in tmp_path.iterdir()) == ["model"]


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.EACCES, "Permission denied.*see to its permissions and its disk"),
        (errno.EIO, "Input/output error.*see to its permissions and its disk"),
        (errno.ENOENT, "No such file.*download the model again"),
        (errno.ENOMEM, "not enough memory"),
    ],
)
def test_a_shard_that_cannot_be_read(folder, monkeypatch, number, words):
    opens = builtins.open

    def failing(path, *args, **kwargs):
        if str(path).endswith(".safetensors"):
            raise OSError(number, os.strerror(number), str(path))
        return opens(path, *args, **kwargs)

    source = Source(folder)
    monkeypatch.setattr(builtins, "open", failing)
    with pytest.raises(GwqError, match=words) as caught:
        Shards(folder, source.arch, source.config)
    assert WEIGHTS in str(caught.value)
    assert isinstance(caught.value, NoMemory) == (number == errno.ENOMEM)


@pytest.mark.parametrize("raised", [MemoryError(), ImportError("x: failed to map segment from y")])
def test_a_lack_of_memory_is_not_the_configs_fault(monkeypatch, raised):
    from transformers import AutoConfig

    def failing(*args, **kwargs):
        raise raised

    monkeypatch.setattr(AutoConfig, "from_pretrained", failing)
    with pytest.raises(NoMemory) as caught:
        ModelClass({"model_type": "llama"}, REFERENCE / "config.json")
    assert "config.json" not in str(caught.value)


@pytest.mark.parametrize(
    "raised, kind, words",
    [
        (
            ModuleNotFoundError("No module named 'torch'", name="torch"),
            GwqError,
            "needs torch: pip",
        ),
        (
            ImportError("libtorch.so: failed to map segment", name="_C"),
            NoMemory,
            "not enough memory",
        ),
        (
            ImportError("undefined symbol: x", name="_C"),
            GwqError,
            r"not load \(undefined symbol: x\)",
        ),
    ],
)
def test_a_package_that_does_not_load_is_not_missing(monkeypatch, raised, kind, words):
    """As gguf, which reading its types needs."""
    original = builtins.__import__

    def failing(name, *args, **kwargs):
        if name == "gguf":
            raise raised
        return original(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", failing)
    with pytest.raises(GwqError, match=words) as caught:
        _gguf()
    assert type(caught.value) is kind
    assert ("pip install" in str(caught.value)) == (kind is GwqError)


@pytest.fixture
def small_files():
    """No file may get longer than 64 KiB, which writing meets as it meets a full disk."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_gguf_file_that_gets_too_long(tmp_path, small_files):
    with pytest.raises(GwqError, match="File too large; free space"):
        write_llama(tmp_path / "m.gguf", TINY, 2, "f16", 0)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("old", [None, "old"])
def test_a_small_file_that_gets_too_long(tmp_path, small_files, old):
    path = tmp_path / "page.html"
    if old:
        path.write_text(old)
    with pytest.raises(
        GwqError, match=r"--report .*page\.html: cannot be written \(File too large"
    ):
        save(path, "x" * 100_000, "--report")
    assert [p.name for p in tmp_path.iterdir()] == (["page.html"] if old else [])
    assert not old or path.read_text() == old


def test_a_small_file_that_is_interrupted(tmp_path, monkeypatch):
    def strike(number):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", strike)
    with pytest.raises(KeyboardInterrupt):
        save(tmp_path / "page.html", "x", "--report")
    assert not list(tmp_path.iterdir())


def test_a_file_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """And its name before it is said to be there: a power cut leaves the old file or the new."""
    steps = []
    fsync, replace = os.fsync, os.replace

    def synced(number):
        is_folder = os.path.isdir(f"/proc/self/fd/{number}")
        steps.append("folder" if is_folder else "file")
        fsync(number)

    def renamed(*args):
        steps.append("name")
        replace(*args)

    if not os.path.isdir("/proc/self/fd"):
        pytest.skip("no /proc")
    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    save(tmp_path / "page.html", "x", "--report")
    assert steps == ["file", "name", "folder"]
    steps.clear()
    write_llama(tmp_path / "m.gguf", TINY, 1, "f16", 0)
    assert steps == ["file", "name", "folder"]
