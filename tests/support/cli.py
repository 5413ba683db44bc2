"""The commands, run in a process of their own or in this one."""

import subprocess
import sys

from gwq_export.cli import main


def command(name, *args, **options):
    return subprocess.run(
        [sys.executable, "-m", "gwq_export.cli", name, *map(str, args)],
        capture_output=True,
        text=True,
        **options,
    )


def call(capsys, name, *args):
    """(exit status, stdout, stderr) of a command run in this process."""
    try:
        status = main(name, [str(a) for a in args])
    except SystemExit as e:
        status = e.code
    out, err = capsys.readouterr()
    return status, out, err


def assert_one_line(name, status, err, words):
    lines = [line for line in err.splitlines() if line.strip()]
    assert status == 2 and len(lines) == 1, err
    assert lines[0].startswith(f"gwq-{name}: error: ") and words in lines[0], lines[0]
