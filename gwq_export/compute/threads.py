"""Work spread over the CPUs in such a way that no result depends on how many there are."""

import contextlib
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import torch

from gwq_export.machine import default_threads

MOST = 2**27  # floats that the items at work may need together: 512 MiB


@contextlib.contextmanager
def one_thread_each():
    """Torch's own functions use one thread as long as this lasts."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def _pool(threads):
    return ThreadPoolExecutor(threads)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # threads do not survive a fork


def each(work, items, floats=1):
    """[work(item) for item in items], several at a time: of `floats` numbers that each needs, as
    many as MOST has room for, but one at least. `work` does not call `each`.
    """
    threads, few = min(default_threads(), len(items)), max(1, MOST // floats)
    if min(threads, few) < 2:
        return [work(item) for item in items]
    run, step = _pool(default_threads()).map, few if few < threads else len(items)
    return [result for i in range(0, len(items), step) for result in run(work, items[i : i + step])]


def batches(count):
    """Ranges that make up `count`, of as many as run at a time, but not more than 8: they share the
    memory.
    """
    step = min(default_threads(), 8)
    return [range(count)[i : i + step] for i in range(0, count, step)]
