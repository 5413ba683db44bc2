"""Builds wheels, as pip has them built."""

import os
import subprocess
import sys

from tests.support.paths import ROOT

CROSS = "aarch64-linux-gnu-gcc"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build(out, sources=ROOT, **options):
    """A wheel of the sources in a folder, as pip has it built."""
    out.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("SOURCE_DATE_EPOCH", "GWQ_CUDA")}
    env |= options.pop("env", {})
    command = [sys.executable, "-c", BUILD, out]
    done = subprocess.run(
        command, cwd=sources, env=env, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel
