"""Kills that tests can place: between any two changes of the file system."""

import contextlib
import os

import pytest

# the steps between which a kill can fall
CHANGES = ("replace", "unlink", "fsync", "ftruncate", "pwrite", "mkdir", "open")


class Killed(BaseException):
    """Stands for SIGKILL: nothing is changed on the disk after it."""


@contextlib.contextmanager
def killed_after(steps):
    """Let `steps` changes of the file system pass and refuse all that follow.

    Yields a list that holds their number in the end.
    """
    left = [steps]

    def guarded(change):
        def call(*args, **kwargs):
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return change(*args, **kwargs)

        return call

    with pytest.MonkeyPatch.context() as m:
        for name in CHANGES:
            m.setattr(os, name, guarded(getattr(os, name)))
        yield left
