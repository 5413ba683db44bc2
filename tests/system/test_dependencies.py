"""What the package needs: each with its reason in docs/reliability.md, and with a free licence."""

import re
from importlib.metadata import PackageNotFoundError, metadata, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.support.paths import ROOT

tomllib = pytest.importorskip("tomllib", reason="needs Python 3.11 to read pyproject.toml")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
USERS = {"runtime": PROJECT["dependencies"]} | {
    extra: needed for extra, needed in PROJECT["optional-dependencies"].items() if extra != "test"
}
FREE = re.compile(
    r"\b(0?BSD|MIT|Apache|MPL|Mozilla|PSF|Python Software|ISC|Zlib|CC0|Unlicense|HPND|CNRI)\b", re.I
)
BINDING = re.compile(r"\bA?GPL|General Public|\bSSPL\b|non-?commercial|proprietary", re.I)


def name_of(requirement):
    return Requirement(requirement).name


def licence(name):
    """All that a package says of its licence."""
    m = metadata(name)
    of_classifiers = [c for c in m.get_all("Classifier") or [] if c.startswith("License ::")]
    short = (m.get("License") or "").strip().partition("\n")[0]
    return " ".join([m.get("License-Expression") or "", short, *of_classifiers]).strip()


def installed(names):
    """The packages that are here of these and of all that they need."""
    found, left = set(), [canonicalize_name(name) for name in names]
    while left:
        name = left.pop()
        try:
            needed = requires(name) or []
        except PackageNotFoundError:
            continue
        if name not in found:
            found.add(name)
            for requirement in map(Requirement, needed):
                if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                    left.append(canonicalize_name(requirement.name))
    return sorted(found)


def test_every_package_has_its_reason():
    page = (ROOT / "docs" / "reliability.md").read_text()
    table = re.findall(r"^\| (\S+) \| (\S+) \| .+ \|$", page, re.MULTILINE)
    listed = {(user, name) for name, user in table if user in USERS}
    first = {}
    for user, needed in USERS.items():
        for requirement in needed:
            first.setdefault(name_of(requirement), user)
    assert listed == {(user, name) for name, user in first.items()}


def test_no_licence_binds_the_users():
    names = installed([name_of(r) for needed in USERS.values() for r in needed])
    assert {"numpy", "cffi", "jinja2", "tokenizers", "tqdm"} < set(names)
    for name in names:
        if name.startswith(("nvidia-", "cuda-")):
            continue  # of torch's build for CUDA, which the page names
        said = licence(name)
        assert FREE.search(said), f"{name} says {said!r}: look at its licence"
        assert " OR " in said or not BINDING.search(said.replace("LGPL", "")), (name, said)
