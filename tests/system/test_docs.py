"""The documentation: links and paths lead somewhere, commands have the flags they show."""

import os
import re
import shlex
from importlib import import_module

import pytest

from gwq_export.cli import COMMANDS
from native import build
from tests.support.paths import NATIVE, ROOT

PACKAGE = ROOT / "gwq_export"
DOCS = ROOT / "docs"
PAGES = [
    path
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(DOCS.rglob("*.md")))
    if path.exists()
]
each_page = pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))

FENCE = re.compile(r"^ *```\w*\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
SPAN = re.compile(r"(?<!`)`([^`]+)`(?!`)")
LINK = re.compile(r"\]\(([^()\s]+)\)")
PATH = re.compile(r"[\w.-]+(/[\w.-]+)*/?")
PLACEHOLDER = re.compile(r"(?<![A-Z])[A-Z]{2,}(?![A-Z])")  # FAMILY.py, encode_ISA.c
CAPITALS = ("README", "CONTRIBUTING", "SECURITY", "LICENSE")  # files that are called so


def spans(text):
    """What stands in single backticks, each on one line."""
    return [" ".join(span.split()) for span in SPAN.findall(FENCE.sub("", text))]


def without_spans(text):
    return SPAN.sub("", FENCE.sub("", text))


def anchors(text):
    """Anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ +(.+)$", FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page):
    for link in LINK.findall(without_spans(page.read_text())):
        if re.match(r"\w+:", link):
            continue  # of the web
        name, _, anchor = link.partition("#")
        target = (page.parent / name) if name else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text())):
            yield link


def looks_like_a_path(word):
    """Whether a word in backticks names a file of this repository, and not a made-up one."""
    if not PATH.fullmatch(word) or "/" not in word.rstrip("/"):
        return False
    if any(name not in CAPITALS for name in PLACEHOLDER.findall(word)):
        return False
    first = word.split("/")[0]
    if first in (".", ".."):
        return False  # seen from elsewhere
    return any((place / first).is_dir() for place in (ROOT, PACKAGE, NATIVE, DOCS))


def broken_paths(page):
    for span in spans(page.read_text()):
        for word in span.split():
            word = word.rstrip(",;:")
            places = (ROOT, page.parent, PACKAGE, NATIVE)
            if looks_like_a_path(word) and not any((p / word).exists() for p in places):
                yield word


def command_lines(text):
    """[word, ...] of every command of ours in code blocks and in backticks."""
    lines = [
        line for block in FENCE.findall(text) for line in block.replace("\\\n", " ").split("\n")
    ]
    for line in [*lines, *spans(text)]:
        if not re.match(r"(\$ )?(gwq-\w+|tools/\w+|studies/\w+|git clone|python\d? -m gwq)", line):
            continue
        part = []
        for word in [*shlex.split(line.removeprefix("$ "), comments=True), "&&"]:
            if word not in ("&&", "||", "|", ";"):
                part.append(word)
            elif part:
                yield part
                part = []


def flags_of(name):
    """The flags of `gwq-NAME` or `studies/NAME`."""
    if name == build.PROGRAM:
        text = (NATIVE / build.PROGRAM_FOLDER / "options.c").read_text()
        return set(re.findall(r'"(--?\w+)"', text))
    kind, _, name = name.replace("gwq-", "gwq/").partition("/")
    folder = f"gwq_export.commands.{COMMANDS[name]}" if kind == "gwq" else f"studies.{name}"
    return import_module(folder).parser()._option_string_actions


def mistakes(words):
    """What is wrong with a command line."""
    name, *arguments = words
    if words[:3] == ["python", "-m", "gwq_export.cli"]:
        name, *arguments = [f"gwq-{words[3]}", *words[4:]]
    if name.startswith(("tools/", "studies/")) and not os.access(ROOT / name, os.X_OK):
        if (ROOT / name).is_file() and not arguments:
            return []  # a file that is named, not run
        return [f"{name} is no program"]
    if not name.startswith(("gwq-", "studies/")):
        return []
    ours = [build.PROGRAM, *(f"gwq-{command}" for command in COMMANDS)]
    if name.startswith("gwq-") and name not in ours:
        return [f"{name} is no command"]
    known = flags_of(name)
    flags = [a.split("=")[0] for a in arguments if re.match(r"--?[a-zA-Z]", a)]
    return [f"{name} has no {flag}" for flag in flags if flag not in known]


@each_page
def test_links_lead_somewhere(page):
    assert not list(broken_links(page))


@each_page
def test_paths_exist(page):
    assert not list(broken_paths(page))


@each_page
def test_commands_have_these_flags(page):
    found = {" ".join(words): mistakes(words) for words in command_lines(page.read_text())}
    assert not {line: wrong for line, wrong in found.items() if wrong}


def test_the_readme_fits_a_screen_or_three():
    readme = (ROOT / "README.md").read_bytes()
    assert len(readme.splitlines()) <= 150
    assert len(readme) <= 8192


def test_these_checks_see_mistakes(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A page\n"
        "[good](page.md#a-page) [web](https://example.org/x) [bad](none.md) [bad](page.md#b)\n"
        "`gwq_export/cli.py` `format/tiles.py` `native/none.c` `arch/FAMILY.py`\n"
        "`tests/none\n--quick` `a/b` `docs/results/none.md`\n"
    )
    assert list(broken_links(page)) == ["none.md", "page.md#b"]
    assert list(broken_paths(page)) == ["native/none.c", "tests/none", "docs/results/none.md"]
    lines = command_lines(
        "```\n$ gwq-run m.gguf -n 3 --wrong  # a remark --not a flag\n"
        "tools/none && tools/test -k x\nls --all\n```\n`studies/compare --bpw=4 --wrong`\n"
        "`gwq-none` `studies/ggml.py` `studies/none.py`\n"
    )
    found = [mistake for words in lines for mistake in mistakes(words)]
    assert found == [
        "gwq-run has no --wrong",
        "tools/none is no program",
        "studies/compare has no --wrong",
        "gwq-none is no command",
        "studies/none.py is no program",
    ]
