"""Work spread over the CPUs in such a way that no result depends on how many there are."""

from __future__ import annotations

import contextlib
import functools
import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from gwq_export import machine
from gwq_export.machine import default_threads

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_FLOATS = 2**27  # floats that the items in progress may need together: 512 MiB
BATCH = 8  # items of a batch at most
_here = threading.local()  # working: this is a thread of the pool


@contextlib.contextmanager
def cpus(threads: int | None = None) -> Iterator[None]:
    """Limit everything inside the `with` block, torch included, to so many threads.

    None: as many as the process may use. Torch by itself looks at the affinity mask, but not at a
    container's quota.
    """
    before = torch.get_num_threads()
    with machine.threads(threads):
        torch.set_num_threads(threads or min(before, default_threads()))
        try:
            yield
        finally:
            torch.set_num_threads(before)


@contextlib.contextmanager
def one_thread_each() -> Iterator[None]:
    """Limit torch's own functions to one thread inside the `with` block.

    Torch splits long sums by its number of threads, so that their last bits depend on it.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(threads: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def each(work: Callable[[Item], Result], items: Sequence[Item], floats: int = 1) -> list[Result]:
    """Return `[work(item) for item in items]`, computed on several CPUs at a time.

    floats: how many floats one item needs while it is worked on. As many items run at a time as
    fit into MAX_FLOATS floats, but at least one. An exception of `work` is passed on. Where `work`
    calls `each`, its items come one after another. Torch's own functions use as many threads in
    each thread as they do in the caller.
    """
    threads = min(default_threads(), len(items))
    fit_in_memory = max(1, MAX_FLOATS // floats)
    if min(threads, fit_in_memory) < 2 or getattr(_here, "working", False):
        return [work(item) for item in items]
    pool = _pool(default_threads())
    as_here = functools.partial(_in_pool, torch.get_num_threads(), work)
    step = fit_in_memory if fit_in_memory < threads else len(items)
    return [
        result
        for first in range(0, len(items), step)
        for result in pool.map(as_here, items[first : first + step])
    ]


def _in_pool(torch_threads: int, work: Callable[[Item], Result], item: Item) -> Result:
    """work(item), where torch's functions use so many threads.

    Torch keeps the count for each thread: one of the pool would keep what it first saw. The pool's
    threads must not wait for others of the pool, so `each` is told where it is.
    """
    if torch.get_num_threads() != torch_threads:
        torch.set_num_threads(torch_threads)
    _here.working = True
    try:
        return work(item)
    finally:
        _here.working = False


def batches(count: int) -> list[range]:
    """Split `range(count)` into runs of as many items as are computed at a time.

    A run has at most 8 items, because the results of a run are in memory together.
    """
    step = min(default_threads(), BATCH)
    return [range(count)[first : first + step] for first in range(0, count, step)]
