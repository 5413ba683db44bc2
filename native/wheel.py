"""What a wheel says of itself: the platform whose systems can load its libraries, read off them,
and the same bytes from the same sources.

A manylinux tag (PEP 600) names the oldest glibc that has every function a library asks for. It
follows from the ELF file: sections .gnu.version_r (versions of functions) and .dynamic (libraries
that have to be there).
"""

from __future__ import annotations

import re
import struct
import time
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

# e_machine -> (machine of a tag, the oldest glibc that manylinux knows on it)
MACHINES = {62: ("x86_64", 5), 183: ("aarch64", 17)}
GLIBC = re.compile(r"GLIBC_2\.(\d+)(?:\.\d+)?")
# A system of a manylinux tag has more, but these are all that our libraries may need.
OF_GLIBC = re.compile(r"(lib(c|m|pthread|dl|rt)\.so\.\d|ld-linux[\w-]*\.so\.\d)")
EARLIEST = 315532800  # seconds since 1970: 1980 began, the first time that an archive can state

_VERSION_NEEDS, _DYNAMIC = 0x6FFFFFFE, 6  # sh_type
_NEEDED = 1  # d_tag


@dataclass(frozen=True)
class Needs:
    """What a shared library asks of the system that loads it.

    machine: e_machine of its ELF header. libraries: their names. versions: of functions of theirs,
    such as "GLIBC_2.34".
    """

    machine: int
    libraries: frozenset[str]
    versions: frozenset[str]


def needs(library: Path) -> Needs | None:
    """What a library needs; None for anything but a 64-bit little-endian ELF file."""
    data = library.read_bytes()
    if data[:6] != b"\x7fELF\x02\x01":
        return None
    (machine,) = struct.unpack_from("<H", data, 18)
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    # sh_type, sh_offset, sh_size, sh_link
    sections = [
        (*struct.unpack_from("<4xI16x2Q", data, at), *struct.unpack_from("<I", data, at + 40))
        for at in range(table, table + count * size, size)
    ]

    def name(at: int) -> str:
        return data[at : data.index(0, at)].decode()

    libraries: set[str] = set()
    versions: set[str] = set()
    for kind, offset, nbytes, link in sections:
        names = sections[link][1]
        if kind == _DYNAMIC:
            entries = struct.iter_unpack("<2Q", data[offset : offset + nbytes])
            libraries |= {name(names + value) for tag, value in entries if tag == _NEEDED}
        elif kind == _VERSION_NEEDS:
            versions |= {name(names + at) for at in _version_names(data, offset)}
    return Needs(machine, frozenset(libraries), frozenset(versions))


def _version_names(data: bytes, at: int) -> Iterator[int]:
    """Where the names of a section of type SHT_GNU_verneed lie in its string table."""
    more_files = 1
    while more_files:
        # vn_cnt, vn_aux, vn_next of a library
        count, first, more_files = struct.unpack_from("<2xH4x2I", data, at)
        version = at + first
        for _ in range(count):
            text, step = struct.unpack_from("<8x2I", data, version)  # vna_name, vna_next
            yield text
            version += step
        at += more_files


def platform_tag(libraries: Sequence[Path], otherwise: str) -> str:
    """The platform of a wheel that carries these libraries.

    "manylinux_2_34_x86_64" where glibc alone is needed; with other libraries "linux_x86_64", which
    promises nothing. `otherwise`: of what is no ELF file of a known machine, or lacks glibc.
    """
    found = [needs(library) for library in libraries]
    if not found or any(n is None or n.machine not in MACHINES for n in found):
        return otherwise
    known = [n for n in found if n is not None]
    if len({n.machine for n in known}) > 1:
        raise SystemExit("native/wheel.py: libraries of several machines: remove build/ and retry")
    machine, minor = MACHINES[known[0].machine]
    if not all(OF_GLIBC.fullmatch(name) for n in known for name in n.libraries):
        musl = any(name.startswith("libc.musl") for n in known for name in n.libraries)
        return otherwise if musl else f"linux_{machine}"
    for version in (v for n in known for v in n.versions):
        glibc = GLIBC.fullmatch(version)
        if glibc is None:
            return f"linux_{machine}"
        minor = max(minor, int(glibc[1]))
    return f"manylinux_2_{minor}_{machine}"


def _place(name: str) -> tuple[bool, bool, str]:
    """Sorts the names of a wheel: what it says of itself comes last, as PEP 427 recommends."""
    return ".dist-info/" in name, name.endswith("/RECORD"), name


def normalize(wheel: Path, seconds: int = EARLIEST) -> None:
    """Write a wheel anew so that its bytes follow from the names and contents of its files.

    Members are sorted and bear one time; modes do not depend on the umask. seconds: that time since
    1970, UTC; what an archive cannot state becomes the earliest that it can.
    """
    date = time.gmtime(max(seconds, EARLIEST))[:6]
    part = wheel.with_suffix(".part")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(part, "w") as new:
        for name in sorted(old.namelist(), key=_place):
            member = zipfile.ZipInfo(name, date)
            member.create_system = 3  # Unix, where external_attr holds st_mode
            member.external_attr = (0o100755 if name.endswith(".so") else 0o100644) << 16
            member.compress_type = zipfile.ZIP_DEFLATED
            new.writestr(member, old.read(name), compresslevel=9)
    part.replace(wheel)
