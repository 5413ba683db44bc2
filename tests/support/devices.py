"""Devices of other kinds: their files and what their programs print, as systems for the sensors."""

from gwq_export.sensors.system import System
from tests.support.paths import DATA

DEVICES = {path.stem: path for path in sorted((DATA / "devices").glob("*.txt"))}


def entries(text):
    """[(path, or "$ " and a command line; content)] of a file in tests/data/devices."""
    found = []
    for line in text.splitlines():
        if line.startswith("    "):
            found[-1][1].append(line[4:])
        elif not line.startswith("#"):
            found.append((line, []))
    return [(name, "\n".join(lines)) for name, lines in found]


def device(name, folder, changes=()):
    """The System of a device, its files written below `folder`.

    changes: {path or "$ " command line: content}, or None where it is missing.
    """
    there = dict(entries(DEVICES[name].read_text())) | dict(changes)
    programs = {}
    for key, text in there.items():
        if text is None:
            continue
        if key.startswith("$ "):
            programs[key[2:]] = text
        else:
            path = folder / key[1:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"{text}\n")

    def run(*command):
        return programs.get(" ".join(command))

    def stream(*command):
        while (line := run(*command)) is not None:
            yield line

    return System(folder, run, stream)


def change(system, path, text):
    """Write a file of the device anew."""
    (system.root / path.lstrip("/")).write_text(f"{text}\n")
