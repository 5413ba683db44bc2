"""How many CPUs and how much memory a process may use: affinity masks and containers' limits."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from gwq_export import cgroups, machine
from gwq_export.compute.threads import cpus

MIB = 1 << 20


def files(folder, **texts):
    """Write files of a control group; "__" in a name is a dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def process(tmp_path, groups, *mounts):
    """A folder like /proc/self. mounts: (root, mount point, type, options)."""
    proc = tmp_path / "proc"
    proc.mkdir()
    (proc / "cgroup").write_text("".join(f"{line}\n" for line in groups))
    lines = [
        f"{i} 1 0:{i} {root} {str(at).replace(' ', chr(92) + '040')} rw,nosuid shared:{i} - "
        f"{type} {type} {options}\n"
        for i, (root, at, type, options) in enumerate(mounts, 30)
    ]
    (proc / "mountinfo").write_text("1 0 8:1 / / rw - ext4 /dev/sda rw\n" + "".join(lines))
    return proc


@pytest.mark.parametrize(
    "outer, inner, expected",
    [
        ("max 100000", "150000 100000", 1.5),
        ("50000 100000", "400000 100000", 0.5),  # of an ancestor
        ("max 100000", "max 100000", None),
        ("max 100000", "nonsense", None),
        ("max 100000", "100 0", None),
    ],
)
def test_quotas_of_version_2(tmp_path, outer, inner, expected):
    top = tmp_path / "a tree"  # the top has no cpu.max
    files(top / "user", cpu__max=outer)
    files(top / "user" / "job", cpu__max=inner)
    proc = process(tmp_path, ["0::/user/job"], ("/", top, "cgroup2", "rw,nsdelegate"))
    assert cgroups.cpu_quota(proc) == expected


@pytest.mark.parametrize(
    "root, path",
    [
        ("/", "/docker/x/job"),  # seen from the machine
        ("/docker/x", "/docker/x/job"),  # from a container without a namespace of its own
        ("/docker/x", "/docker/x"),
        ("/docker/x", "/../elsewhere"),  # of another namespace: only the top is known
        ("/docker/x", "/docker/xy"),
    ],
)
def test_quotas_of_version_1(tmp_path, root, path):
    top = tmp_path / "cpu"
    outer = top / "docker" / "x" if root == "/" else top
    files(outer, cpu__cfs_quota_us=250000, cpu__cfs_period_us=100000)
    files(outer / "job", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    files(top / "elsewhere", cpu__cfs_quota_us=1000, cpu__cfs_period_us=100000)
    files(top / "y", cpu__cfs_quota_us=1000, cpu__cfs_period_us=100000)
    proc = process(
        tmp_path,
        ["5:memory:/m", f"3:cpu,cpuacct:{path}", "0::/unified"],
        (root, top, "cgroup", "rw,cpu,cpuacct"),
        ("/", tmp_path / "unified", "cgroup2", "rw"),
    )
    assert cgroups.cpu_quota(proc) == 2.5


def test_a_machine_without_control_groups(tmp_path):
    assert cgroups.cpu_quota(tmp_path / "none") is None
    assert cgroups.free_memory(tmp_path / "none") is None


@pytest.mark.parametrize(
    "quota, mask, expected",
    [(0.5, 8, 1), (1.5, 8, 2), (3, 8, 3), (3, 2, 2), (None, 8, 8), (None, 5000, 256)],
)
def test_threads_by_default(monkeypatch, quota, mask, expected):
    monkeypatch.setattr(machine, "_quota", lambda: quota)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: range(mask))
    assert machine.default_threads() == expected
    with machine.threads(7):
        assert machine.default_threads() == 7
        with machine.threads(None):
            assert machine.default_threads() == 7
    assert machine.default_threads() == expected


def test_torch_obeys_too(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(machine, "_quota", lambda: 0.5)
    with cpus():
        assert torch.get_num_threads() == 1
    with cpus(3):
        assert torch.get_num_threads() == machine.default_threads() == 3
    assert torch.get_num_threads() == before


def test_free_memory(tmp_path):
    """The least that the group or an ancestor has left; pages of files count as free."""
    top = tmp_path / "2"
    stat = f"anon 1\nactive_file {8 * MIB}\ninactive_file {2 * MIB}"
    files(top / "a", memory__max=100 * MIB, memory__current=90 * MIB, memory__stat=stat)
    files(top / "a" / "b", memory__max="max", memory__current=50 * MIB, memory__stat=stat)
    proc = process(tmp_path, ["0::/a/b"], ("/", top, "cgroup2", "rw"))
    assert cgroups.free_memory(proc) == 20 * MIB
    old = tmp_path / "1"
    stat = f"active_file 0\ninactive_file 0\ntotal_active_file {MIB}\ntotal_inactive_file {MIB}"
    files(
        old,
        memory__limit_in_bytes=10 * MIB,
        memory__usage_in_bytes=7 * MIB,
        memory__stat=stat,
    )
    (tmp_path / "second").mkdir()
    proc = process(tmp_path / "second", ["4:memory:/"], ("/", old, "cgroup", "rw,memory"))
    assert cgroups.free_memory(proc) == 5 * MIB
    assert 0 < machine.free_memory() < 1 << 50


def test_a_command_starts_no_more_threads(exported):
    """Not even numpy's, which are there as soon as it is imported."""
    code = f"""
import os
from gwq_export import cli, machine
machine._quota = lambda: 0.5
assert cli.main("run", [{str(exported(type="f16")[0])!r}, "-p", "The", "-n", "2"]) == 0
import numpy
print(len(os.listdir("/proc/self/task")))
"""
    environment = {k: v for k, v in os.environ.items() if not k.endswith("_NUM_THREADS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines()[-1] == "1", done.stderr


@pytest.mark.parametrize("quota, expected", [(50000, "1"), (-1, None)])
def test_a_group_of_this_machine(quota, expected):
    """Where this test may make one."""
    group = Path(f"/sys/fs/cgroup/cpu/gwq-test-{os.getpid()}")
    try:
        group.mkdir()
    except OSError:
        pytest.skip("no groups of version 1 can be made here")
    try:
        (group / "cpu.cfs_quota_us").write_text(str(quota))
        code = (
            f"import os; open({str(group / 'cgroup.procs')!r}, 'w').write(str(os.getpid()))\n"
            "from gwq_export.machine import default_threads; print(default_threads())"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == (expected or str(machine.default_threads())), done.stderr
    finally:
        for _ in range(100):
            try:
                group.rmdir()
                break
            except OSError:
                os.sched_yield()
