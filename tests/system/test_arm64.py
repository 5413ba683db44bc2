"""The wheel of aarch64, installed by pip and run in an emulated arm64 Debian.

tools/check_arm64 does more: every dependency, figures, an install from source.
"""

import json
import shutil

import pytest

from tests.support import arm64
from tests.support.arm64_check import CPUS
from tests.support.cli import call
from tests.support.wheels import CROSS, build

PROMPT = "The city"
TOKENS = 12
SCRIPT = f"""
set -e
pip install -q --no-index --no-deps --no-compile --target /tmp/site /files/*.whl
export PYTHONPATH=/tmp/site
for cpu in "$@"; do
    export QEMU_CPU=$cpu
    /tmp/site/bin/gwq-info --devices --json | tail -n 1
    /tmp/site/bin/gwq-run /files/model.gguf -p "{PROMPT}" -n {TOKENS} --json | tail -n 1
done
"""


def test_the_wheel_on_arm64(tmp_path, exported, capsys):
    """Each kind of core gets its instruction set and writes the text that this machine writes."""
    if why := arm64.missing():
        pytest.skip(why)
    if not shutil.which(CROSS):
        pytest.skip(f"needs {CROSS} (Debian: gcc-aarch64-linux-gnu)")
    build(tmp_path, env={"CC": CROSS})
    path, _ = exported(type="gwq4")
    shutil.copy(path, tmp_path / "model.gguf")
    cpus = ["cortex-a72", "max"]
    done = arm64.run(["sh", "-c", SCRIPT, "sh", *cpus], files=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["cpu"]["isa"] for line in lines[::2]] == [CPUS[cpu][0] for cpu in cpus]
    status, out, err = call(capsys, "run", path, "-p", PROMPT, "-n", TOKENS, "--json")
    assert status == 0, err
    here = json.loads(out.splitlines()[-1])
    assert here["tokens"] == TOKENS
    assert [line["text"] for line in lines[1::2]] == [here["text"]] * len(cpus)
