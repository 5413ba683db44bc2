"""What the control groups of this process leave it of CPUs and memory: a container's limits.

A process belongs to a group of every controller, and the limits of the group's ancestors hold for
it too. Version 1 mounts every controller by itself, version 2 all of them as one tree, and a
machine may have both. The kernel says where in /proc/self/cgroup and /proc/self/mountinfo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc/self")


def cpu_quota(proc: Path = PROC) -> float | None:
    """CPUs (1.5: one and a half) that the process may use on average; None: no limit.

    proc: the folder of a process in /proc.
    """
    quotas = []
    for folder in _groups(proc, "cpu"):
        limit = _words(folder / "cpu.max")  # version 2: quota and period in us, or "max" and period
        if not limit:
            limit = _words(folder / "cpu.cfs_quota_us") + _words(folder / "cpu.cfs_period_us")
        if len(limit) == 2 and limit[0].isdecimal() and limit[1].isdecimal() and int(limit[1]):
            quotas.append(int(limit[0]) / int(limit[1]))
    return min(quotas, default=None)


def free_memory(proc: Path = PROC) -> int | None:
    """Bytes that the process's groups may still take; None: no limit.

    Pages of files can be dropped, so these count as free.
    """
    free = []
    for folder in _groups(proc, "memory"):
        limit = _words(folder / "memory.max") or _words(folder / "memory.limit_in_bytes")
        used = _words(folder / "memory.current") or _words(folder / "memory.usage_in_bytes")
        if limit and used and limit[0].isdecimal():
            free.append(max(0, int(limit[0]) - int(used[0]) + _file_pages(folder)))
    return min(free, default=None)


def _file_pages(folder: Path) -> int:
    """Bytes of files that a memory group holds, with those of the groups in it."""
    words = _words(folder / "memory.stat")
    facts = dict(zip(words[::2], words[1::2], strict=False))
    kinds = ("active_file", "inactive_file")
    # in version 1 these are the group's own, and "total_..." counts the groups in it
    return sum(int(facts.get(f"total_{kind}", facts.get(kind, 0))) for kind in kinds)


def _words(file: Path) -> list[str]:
    """The words of a small file; none where it cannot be read."""
    try:
        return file.read_text().split()
    except (OSError, ValueError):
        return []


def _groups(proc: Path, controller: str) -> Iterator[Path]:
    """Folders of the process's group of a controller and of its ancestors, as far as mounted."""
    try:
        groups = (proc / "cgroup").read_text().splitlines()
        mounts = (proc / "mountinfo").read_text().splitlines()
    except (OSError, ValueError):
        return
    paths: dict[str, str] = {}  # controllers, "" in version 2 -> path of the group
    for line in groups:
        _, controllers, path = line.split(":", 2)
        paths |= dict.fromkeys(controllers.split(","), path)
    for line in mounts:
        # id, parent, device, root, mount point, options ..., "-", type, source, options
        before, _, after = line.partition(" - ")
        type, _, options = after.split(" ", 2)
        name = {"cgroup": controller, "cgroup2": ""}.get(type)
        if name is None or name not in paths or (name and name not in options.split(",")):
            continue
        root, mounted_at = (_unescaped(word) for word in before.split(" ")[3:5])
        top = folder = Path(mounted_at)
        path = paths[name]
        # another namespace's path is not below the root that is mounted here: then only the top
        if ".." not in path.split("/") and f"{path}/".startswith(f"{root.rstrip('/')}/"):
            folder = top / path[len(root.rstrip("/")) :].lstrip("/")
        yield folder
        while folder != top:
            folder = folder.parent
            yield folder


def _unescaped(word: str) -> str:
    """A path of mountinfo, where blanks and the like are octal."""
    for code in ("040", "011", "012", "134"):
        word = word.replace(f"\\{code}", chr(int(code, 8)))
    return word
