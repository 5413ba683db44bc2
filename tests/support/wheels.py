"""Builds wheels, as pip has them built."""

import os
import subprocess
import sys

from tests.support.paths import ROOT

CROSS = "aarch64-linux-gnu-gcc"
BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


def build(out, sources=ROOT, **options):
    """A wheel of the sources in a folder, as pip has it built.

    In this repository setuptools gets a build folder of its own: other tests may build, too.
    """
    out.mkdir(parents=True, exist_ok=True)
    env = {k: v for k, v in os.environ.items() if k not in ("SOURCE_DATE_EPOCH", "GWQ_CUDA")}
    env |= options.pop("env", {})
    if sources == ROOT:
        config = out / "setup.cfg"
        config.write_text(f"[build]\nbuild_base = {out / 'build'}\n[egg_info]\negg_base = {out}\n")
        env["DIST_EXTRA_CONFIG"] = str(config)
    command = [sys.executable, "-c", BUILD, out]
    done = subprocess.run(
        command, cwd=sources, env=env, capture_output=True, text=True, check=False, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = out.glob("*.whl")
    return wheel
