"""The page: well-formed, self-contained, safe against hostile names, and it fits a phone."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.format.outliers import unpack_outliers
from gwq_export.report.charts import bars, heat_map, line, profile
from gwq_export.report.facts import gather
from gwq_export.report.page import page
from tests.support.browser import browser
from tests.support.paths import REFERENCE

HOSTILE = "</title><script>alert(1)</script>&amp;\"'\x00\x1b[31m\ufffe http://evil.example/x.js"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """{kind: (HTML, data)}: of an export with everything, of a file alone, and of sensitivities."""
    folder = tmp_path_factory.mktemp("report")
    options = {"samples": 2, "ctx": 64, "outliers": 0.002}
    result = gwq_export.export(
        REFERENCE,
        folder / "m.gguf",
        size="3300KiB",
        verify=True,
        report=folder / "all.html",
        **options,
    )
    found = gwq_export.export(
        REFERENCE, None, report_only=True, report=folder / "only.html", **options
    )
    data = gather(gwq_export.open_gguf(folder / "m.gguf"))
    return {
        "all": ((folder / "all.html").read_text(), data | result),
        "file": (page(data), data),
        "sensitivities": ((folder / "only.html").read_text(), found),
    }


KINDS = ("all", "file", "sensitivities")


def parse(text):
    assert text.startswith("<!DOCTYPE html>\n<html")
    return ElementTree.fromstring(text.split("\n", 1)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_well_formed_and_self_contained(pages, kind):
    root = parse(pages[kind][0])
    assert {e.tag for e in root.iter()}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "base"}
    )
    values = [v for e in root.iter() for v in e.attrib.values()] + [root.find("head/style").text]
    assert not any("url(" in v or "@import" in v or "//" in v for v in values)
    for svg in root.iter("svg"):
        assert svg.get("aria-label") and svg.get("role") == "img"
    for table in root.iter("table"):
        assert table.find("caption").text and all(row[0].get("scope") for row in table.iter("tr"))


def test_a_page_says_what_was_measured(pages):
    for kind, there, missing in [
        (
            "all",
            {
                "Quality",
                "Error by tensor",
                "Where outliers are",
                "Size by tensor",
                "How it was made",
                "All tensors",
            },
            {"Sensitivity"},
        ),
        (
            "file",
            {"Where outliers are", "Size by tensor", "How it was made", "All tensors"},
            {"Quality", "Error by tensor"},
        ),
        ("sensitivities", {"Sensitivity", "How it was made"}, {"Quality", "All tensors"}),
    ]:
        titles = {h.text for h in parse(pages[kind][0]).iter("h2")}
        assert there <= titles and not missing & titles
    text, data = pages["all"]
    verify = data["verify"]
    assert f"{verify['kld_mean']:.6f}" in text and f"{verify['ppl']:.4f}" in text
    rows = {
        row[0].text: [c.text or "" for c in row][1:]
        for row in list(parse(text).iter("table"))[-1].iter("tr")
    }
    reader = gwq_export.open_gguf(data["out"])
    for t, errors in zip(
        (t for t in reader.tensors.values() if not t.companion), verify["tensors"], strict=True
    ):
        table = sum(
            reader.tensors[t.name + s].nbytes
            for s in (".outliers", ".outlier_offsets")
            if t.outlier_count
        )
        assert rows[t.name][:3] == [
            t.type.name,
            " × ".join(map(str, t.shape)),
            f"{t.nbytes + table:,}",
        ]
        assert rows[t.name][4:6] == [f"{t.outlier_count:,}", f"{errors['weight_error']:.3%}"]


def test_where_outliers_are(pages):
    data = pages["file"][1]
    reader = gwq_export.open_gguf(pages["all"][1]["out"])
    t = next(t for t in data["tensors"] if t["outliers"] and t["block"] == 2)
    row, column, _ = unpack_outliers(*reader.tensors[t["name"]].outliers, tuple(t["shape"]))
    counts = np.sort(np.bincount(column, minlength=t["shape"][1]))
    densest = round(0.01 * t["shape"][1])
    assert t["column_share"] == pytest.approx(counts[-densest:].sum() / len(row))
    assert sum(t["rows"]) == sum(t["columns"]) == len(row)
    edges = np.linspace(0, t["shape"][0], len(t["rows"]) + 1)
    assert t["rows"] == np.histogram(row, edges)[0].tolist()
    assert sum(t["bytes"] for t in data["tensors"]) == sum(
        t.nbytes for t in reader.tensors.values()
    )


def test_names_are_escaped(pages):
    """Whatever a file or a result holds becomes text."""
    _, data = pages["all"]
    evil = json.loads(
        json.dumps(data).replace(
            "blk.2.ffn_up.weight", json.dumps("blk.2." + HOSTILE + ".weight")[1:-1]
        )
    )
    evil |= {"name": HOSTILE, "arch": HOSTILE, "keys": {HOSTILE: HOSTILE}}
    for text in (page(evil), page(pages["sensitivities"][1] | {"name": HOSTILE})):
        root = parse(text)
        assert not list(root.iter("script")) and "alert(1)" in root.find("head/title").text
        assert "<script" not in text and "\x1b" not in text
    table = heat_map(HOSTILE, [HOSTILE], [HOSTILE], {(HOSTILE, HOSTILE): 1.0}, lambda v: HOSTILE)
    curve = line(HOSTILE, [(0, 1), (1, 2)], lambda v: HOSTILE, (HOSTILE, HOSTILE))
    rest = bars(HOSTILE, [(HOSTILE, 1.0, HOSTILE)]), profile(HOSTILE, [0, 2]), curve
    for chart in (table, *rest):
        assert not list(ElementTree.fromstring(chart).iter("script"))


def test_charts_of_nothing_and_of_one():
    """No division by zero, no mark without a value."""
    for values in ({}, {(0, "a"): 0.0}, {(0, "a"): 2.0}, {(0, "a"): 1e-9, (1, "a"): 1.0}):
        for log in (False, True):
            root = ElementTree.fromstring(
                heat_map("map", [0, 1], ["a"], values, lambda v: f"{v:g}", log)
            )
            shades = [float(r.get("fill-opacity")) for r in root.iter("rect")]
            assert len(shades) == len(values) and all(0 <= s <= 1 for s in shades)
            assert shades == sorted(shades)
    root = ElementTree.fromstring(bars("bars", [("a", 2.0, "2"), ("b", 1.0, "1"), ("c", 0.0, "0")]))
    assert [float(r.get("width")) for r in root.iter("rect") if r.get("class") == "a"] == [
        360,
        180,
        0,
    ]


@pytest.mark.parametrize("kind", KINDS)
def test_in_a_browser(pages, tmp_path, kind):
    scroll, client, console = browser(tmp_path, pages[kind][0], 360)
    assert scroll <= client <= 360 and console == []


def test_lines():
    """From the lowest to the highest, or from zero; no division by zero."""

    def heights(values, from_zero=False):
        points = list(enumerate(values))
        root = ElementTree.fromstring(line("l", points, str, ("a", "b"), from_zero))
        path = root.find("polyline").get("points").split()
        assert len(path) == len(values)
        return [float(p.split(",")[1]) for p in path], [t.text for t in root.iter("text")]

    (top, bottom), texts = heights([20.0, 10.0])
    assert (top, bottom) == (8, 118) and texts == ["20.0", "a", "b", "10.0"]
    (top, middle), texts = heights([20.0, 10.0], True)
    assert (top, middle) == (8, 63) and texts[-1] == "0.0"
    assert heights([5.0])[0] == heights([5.0, 5.0])[0][:1] == [63]
    assert "nothing measured" in line("l", [], str, ("a", "b"))


def test_the_browser_test_can_fail(tmp_path):
    scroll, client, console = browser(
        tmp_path, "<p style='width:500px'>x</p><script>console.error('bad')</script>", 360
    )
    assert scroll > client and len(console) == 1


def test_outputs_are_checked_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setattr("gwq_export.hf.hub.resolve", lambda *a: pytest.fail("work began"))
    (tmp_path / "dir").mkdir()
    for options, words in [
        ({"report": tmp_path / "none" / "r.html"}, "--report .*does not exist"),
        ({"report": tmp_path / "dir"}, "is a folder"),
        ({"card": tmp_path / "dir"}, "--card .* is a folder"),
        ({"dry_run": True, "report": tmp_path / "r"}, "--dry-run writes nothing"),
        ({"report_only": True, "verify": True}, "--report-only writes no model"),
        ({"out": None}, "--out FILE.gguf is missing"),
    ]:
        with pytest.raises(GwqError, match=words):
            gwq_export.export(REFERENCE, **{"out": tmp_path / "m.gguf"} | options)
    assert [Path(p).name for p in tmp_path.iterdir()] == ["dir"]
