"""A small arm64 Debian with Python in a folder; QEMU runs its programs, one process each.

`fetch` makes it: apt brings Debian's packages (70 MB) and pip the wheels for aarch64 (28 MB) of
what gwq-export needs. Nothing of this system changes: apt gets folders of its own, and the kernel
learns in a user namespace of its own which program runs those of another machine (binfmt_misc,
Linux 6.7; where the whole system knows it already, any Linux).

    python -m tests.support.arm64        # fetch it, which takes a minute or two
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.paths import ROOT

SUITE = "bookworm"  # of Debian, as of Raspberry Pi OS
PYTHON = "3.11"  # its Python
GLIBC = 36  # its C library: 2.36
PACKAGES = ("python3-minimal", "python3-venv", "gcc", "libc6-dev", "dash", "coreutils")
MIRROR = os.environ.get("GWQ_DEBIAN_MIRROR", "http://deb.debian.org/debian")
KEYS = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
HOME = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "gwq-export" / "arm64"
TOOLS = ("unshare", "chroot", "apt-get", "dpkg-deb", "tar")

# In a namespace of its own: tell the kernel about arm64's programs, then run one as root of `root`.
# The magic is that of 64-bit little-endian ELF files, executable or shared, for machine 183. F:
# the emulator is opened now, so the folder need not hold it.
ENTER = r"""
set -e
root=$1 emulator=$2 files=$3 tmp=$4
shift 4
if ! grep -qs enabled /proc/sys/fs/binfmt_misc/qemu-aarch64; then
    mount -t binfmt_misc none "$root/mnt"
    magic='\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00\x02\x00\xb7\x00'
    mask='\xff\xff\xff\xff\xff\xff\xff\x00\xff\xff\xff\xff\xff\xff\xff\xff\xfe\xff\xff\xff'
    echo ":gwq-aarch64:M::$magic:$mask:$emulator:F" > "$root/mnt/register"
fi
if [ -n "$tmp" ]; then
    mount --bind "$tmp" "$root/tmp"
else
    mount -t tmpfs none "$root/tmp"
fi
mount --rbind /dev "$root/dev"
mount -t proc proc "$root/proc"
mount --bind "$files" "$root/files"
exec chroot "$root" /usr/bin/env -i HOME=/tmp PATH=/env/bin:/usr/bin:/bin "$@"
"""


def emulator() -> str | None:
    """QEMU's path, linked statically, as it has to run in the folder."""
    return shutil.which("qemu-aarch64-static")


def _literal(name: str) -> list[str]:
    """A list of pyproject.toml."""
    found = re.search(rf"^{name} = (\[.*?\])", (ROOT / "pyproject.toml").read_text(), re.M | re.S)
    assert found is not None
    return list(ast.literal_eval(found[1]))


def requirements() -> list[str]:
    """What pip needs to install the package there, from a wheel or from source."""
    return [*_literal("requires"), *_literal("dependencies")]


def _stamp() -> str:
    parts = [SUITE, PYTHON, *PACKAGES, *requirements()]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def missing() -> str | None:
    """Why nothing can be run there, in a sentence; None where everything is ready."""
    if emulator() is None:
        return "needs qemu-aarch64-static (Debian: qemu-user-static)"
    made = HOME / "made"
    if not made.exists() or made.read_text() != _stamp():
        return "needs an arm64 Debian: run `python -m tests.support.arm64`"
    return _cannot_enter()


@functools.cache
def _cannot_enter() -> str | None:
    done = run(["/bin/true"], check=False)
    if done.returncode == 0:
        return None
    reason = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
    return f"this system runs no arm64 programs in a user namespace: {reason}"


def run(
    command: Sequence[str | Path],
    cpu: str = "cortex-a72",
    files: Path | None = None,
    tmp: Path | None = None,
    check: bool = True,
    root: Path | None = None,
) -> subprocess.CompletedProcess[str]:
    """Run a program of the folder, emulated as on `cpu`, with /env/bin first in its PATH.

    files, tmp: folders of this machine, which are /files and /tmp there; without `tmp`, what is
    written to /tmp is gone when it ends. root: the folder; None: the one that `fetch` made. Raises
    CalledProcessError.
    """
    enter = ["unshare", "--user", "--map-root-user", "--mount", "--pid", "--fork", "--kill-child"]
    root = root or HOME / "root"
    folders = [str(files or HOME / "wheels"), str(tmp or "")]
    script = ["sh", "-c", ENTER, "sh", str(root), emulator() or "", *folders]
    return subprocess.run(
        [*enter, *script, f"QEMU_CPU={cpu}", *map(str, command)],
        capture_output=True,
        text=True,
        check=check,
        env={"PATH": os.environ["PATH"] + os.pathsep + "/usr/sbin"},
    )


def _apt(folder: Path, *arguments: str) -> None:
    """apt-get for arm64, with all that it keeps in `folder`."""
    options = {
        "APT::Architecture": "arm64",
        "APT::Architectures": "arm64",
        "APT::Install-Recommends": "false",
        "APT::Sandbox::User": "root",
        "Dir::State": folder / "state",
        "Dir::State::status": folder / "state" / "status",
        "Dir::Cache": folder / "cache",
        "Dir::Etc::parts": "-",
        "Dir::Etc::sourcelist": folder / "sources.list",
        "Dir::Etc::sourceparts": "-",
        "Debug::NoLocking": "true",
    }
    given = [f"-o{name}={value}" for name, value in options.items()]
    subprocess.run(["apt-get", "-qq", *given, *arguments], check=True, stdout=sys.stderr)


def _packages(folder: Path) -> list[Path]:
    """Download Debian's packages, those that they need included."""
    for name in ("state/lists/partial", "cache/archives/partial"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    (folder / "state" / "status").touch()  # nothing is installed yet
    (folder / "sources.list").write_text(f"deb [signed-by={KEYS}] {MIRROR} {SUITE} main\n")
    _apt(folder, "update")
    _apt(folder, "install", "-y", "--download-only", *PACKAGES)
    return sorted((folder / "cache" / "archives").glob("*.deb"))


def _wheels(folder: Path) -> None:
    """Download wheels of all requirements, as that Python takes them."""
    platforms = [f"manylinux_2_{minor}_aarch64" for minor in range(GLIBC, 16, -1)]
    platforms += ["manylinux2014_aarch64"]  # the former name of manylinux_2_17
    given = [f"--platform={name}" for name in platforms]
    given += ["--only-binary=:all:", "--implementation=cp", f"--python-version={PYTHON}"]
    command = [sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *given]
    subprocess.run([*command, *requirements()], check=True, stdout=sys.stderr)


def _unpack(packages: Sequence[Path], root: Path) -> None:
    """Unpack Debian's packages. Their scripts do not run: what is used works without."""
    for name in ("bin", "sbin", "lib"):
        (root / "usr" / name).mkdir(parents=True)
        (root / name).symlink_to(f"usr/{name}")
    for name in ("dev", "proc", "tmp", "mnt", "files"):
        (root / name).mkdir()
    for package in packages:
        archive = subprocess.Popen(["dpkg-deb", "--fsys-tarfile", package], stdout=subprocess.PIPE)
        tar = ["tar", "-x", "-C", root, "--keep-directory-symlink", "--no-same-owner"]
        subprocess.run(tar, stdin=archive.stdout, check=True)
        if archive.wait():
            raise subprocess.CalledProcessError(archive.returncode, archive.args)


def fetch() -> None:
    """Make the folder, unless it is there: packages, and /env with the requirements installed.

    Raises SystemExit with a sentence, CalledProcessError.
    """
    lacking = [name for name in TOOLS if not shutil.which(name, path=os.environ["PATH"] + ":/sbin")]
    lacking += [] if KEYS.exists() else [str(KEYS)]
    lacking += [] if emulator() else ["qemu-aarch64-static"]
    if lacking:
        raise SystemExit(
            f"an arm64 Debian cannot be made here, as {', '.join(lacking)} is missing: on Debian,"
            " apt-get install qemu-user-static"
        )
    made = HOME / "made"
    if made.exists() and made.read_text() == _stamp():
        return
    part = HOME / "root.part"
    made.unlink(missing_ok=True)
    for folder in (part, HOME / "root", HOME / "wheels"):
        shutil.rmtree(folder, ignore_errors=True)
    _wheels(HOME / "wheels")
    _unpack(_packages(HOME / "apt"), part)
    run(["python3", "-m", "venv", "/env"], root=part)
    pip = ["pip", "install", "-q", "--no-index", "--find-links", "/files"]
    run([*pip, *requirements()], files=HOME / "wheels", root=part)
    part.replace(HOME / "root")
    made.write_text(_stamp())


if __name__ == "__main__":
    try:
        fetch()
    except subprocess.CalledProcessError as e:
        raise SystemExit(f"{e}\n{e.stderr or ''}".rstrip()) from None
