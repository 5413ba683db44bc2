"""One table of options: the Python signature, the command line, the docs and the work folder."""

import inspect
import re
from dataclasses import fields

import pytest

import gwq_export
from gwq_export.commands.export import parser
from gwq_export.pipeline.flags import flag, option_page
from gwq_export.pipeline.options import ExportOptions
from studies.paths import ROOT

FIELDS = {f.name: f for f in fields(ExportOptions)}
PAGE = ROOT / "docs" / "export.md"


def test_the_face_has_every_option():
    """Name, default and type; lists may also be given as one string."""
    parameters = dict(inspect.signature(gwq_export.export).parameters)
    assert list(parameters)[:2] == ["model", "out"] and list(parameters)[-1] == "progress"
    for name in ("model", "out", "progress"):
        del parameters[name]
    assert list(parameters) == list(FIELDS)
    for name, parameter in parameters.items():
        assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
        assert parameter.default == FIELDS[name].default
        hint = str(FIELDS[name].type).replace("collections.abc.", "").replace("pathlib.", "")
        hint = hint.replace("<class '", "").replace("'>", "")
        alone = re.fullmatch(r"Sequence\[(.*)\]", hint)
        expected = f"{alone[1]} | {hint}" if alone else hint
        assert parameter.annotation == expected.replace("typing.", "")


def test_the_command_line_has_every_option():
    """What a flag gives is what the Python call takes, and its default is the call's."""
    plain = parser().parse_args(["model", "--out", "x.gguf"])
    assert ExportOptions(**{n: getattr(plain, n) for n in FIELDS}) == ExportOptions()
    samples = {
        "switch": [],
        "off": [],
        "list": ["a=f16"],
        str: ["text"],
        int: ["3"],
        float: ["2.5"],
    }
    for name, option in FIELDS.items():
        kind = option.metadata["kind"]
        value = samples.get(kind, ["1%"])
        args = parser().parse_args(["model", flag(option), *value])
        expected = {"switch": True, "off": False, "list": value}.get(kind)
        if expected is None:
            expected = kind(value[0])
        assert getattr(args, name) == expected, name


def test_docs_show_the_table():
    """Written by tools/option_page."""
    text = PAGE.read_text(encoding="utf-8")
    shown = text.partition("<!-- options: begin -->")[2].partition("<!-- options: end -->")[0]
    assert shown.strip() == option_page().strip()


def test_identity_is_what_changes_the_work():
    usual = ExportOptions().identity()
    aside = {"threads", "work_dir", "dry_run", "verify", "verify_text", "max_kld", "report", "card"}
    assert set(FIELDS) - set(usual) == aside
    assert ExportOptions(report="x.html", verify=True).identity() == usual
    assert ExportOptions(seed=1).identity() != usual


@pytest.mark.parametrize("name", ["tensor_type", "exclude"])
def test_one_string_is_a_list_of_one(name):
    assert getattr(ExportOptions(**{name: "a=f16"}), name) == ["a=f16"]


def test_help_names_every_keyword_with_its_type():
    text = str(inspect.signature(gwq_export.export))
    assert "outliers: 'float | None' = None" in text and "**" not in text
