"""A quick export."""

import json

import pytest

from tests.support.cli import command
from tests.support.paths import REFERENCE


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A quick export: (path, JSON result)."""
    path = tmp_path_factory.mktemp("cli") / "m.gguf"
    done = command(
        "export", REFERENCE, "--out", path, "--type", "gwq4", "--samples", 1, "--ctx", 128, "--json"
    )
    assert done.returncode == 0, done.stderr
    return path, json.loads(done.stdout.splitlines()[-1])
