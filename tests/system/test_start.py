"""A start imports what it uses: on a small device every package is a part of a second."""

import json
import subprocess
import sys

import pytest

NUMERIC = {"numpy", "_cffi_backend"}
TEXT = {*NUMERIC, "tokenizers"}
CHAT = {*TEXT, "jinja2", "markupsafe"}
CODE = """
import sys
before = set(sys.modules)
from gwq_export import cli
assert not sys.argv[1:] or cli.main(sys.argv[1], sys.argv[2:]) == 0
import json
loaded = {name.split(".")[0] for name in set(sys.modules) - before}
print(json.dumps(sorted(loaded - {"gwq_export"} - sys.stdlib_module_names)))
"""


@pytest.mark.parametrize(
    "arguments, packages",
    [
        ([], set()),
        (["info", "FILE"], NUMERIC),
        (["info", "--devices"], NUMERIC),
        (["run", "FILE", "--raw", "-p", "The city", "-n", "1"], TEXT),
        (["run", "FILE", "-p", "The city", "-n", "1"], CHAT),
    ],
    ids=lambda x: " ".join(x[:3]) if isinstance(x, list) else "",
)
def test_packages(exported, arguments, packages):
    path, _ = exported(type="gwq4")
    command = [sys.executable, "-c", CODE, *(str(path) if a == "FILE" else a for a in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout.splitlines()[-1])) == packages
