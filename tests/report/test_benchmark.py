"""The page of a benchmark: well-formed, self-contained, and it shows what was measured."""

import copy
import json
from xml.etree import ElementTree

import pytest

from gwq_export.bench import suite
from gwq_export.report.benchmark import page
from tests.support.browser import browser

HOSTILE = "</title><script>alert(1)</script>&amp;\"'\x00\x1b[31m\ufffe"


@pytest.fixture(scope="module")
def found(exported):
    """A document of the bundled model, with sensors that this machine may not have."""
    quick = {"STARTS": 1, "SWEEP": 2, "PROMPTS": (4, 8), "GEN": 3, "DEPTHS": (8, 16)}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (quick | {"REPEATS": 2, "MINUTES": 0.05}).items():
            patch.setattr(suite, name, value)
        patch.setattr("gwq_export.bench.roof.WORKING_SET", 4 << 20)
        quiet = lambda *step: None  # noqa: E731
        path = exported(type="gwq4")[0]
        found = suite.run_suite("edge", path, (), "cpu", [1, 2], None, quiet, quiet, quiet)
    energy = {
        **{"meter": "INA3221", "covers": "the whole module", "method": "volts x amperes"},
        **{"hz": 10.0, "seconds": 3.0, "watts": 9.0, "idle_watts": 6.0},
        **{"joules_per_token": 0.125, "tokens_per_joule": 8.0},
    }
    for r in found["rows"]:
        r |= {"energy": [energy], "joules_per_token": 0.125, "celsius_before": 41.0}
        r |= {"celsius_after": 87.4, "mhz_before": 2400.0, "mhz_after": 1500.0}
    found["sustained"]["energy"] = [energy]
    for i, p in enumerate(found["sustained"]["points"]):
        p |= {"celsius": 50.0 + i, "mhz": 2400.0 - i, "watts": 9.0}
    return found


def parse(text):
    assert text.startswith("<!DOCTYPE html>\n<html")
    return ElementTree.fromstring(text.split("\n", 1)[1])


def test_well_formed_and_self_contained(found):
    root = parse(page(found))
    assert {e.tag for e in root.iter()}.isdisjoint(
        {"script", "link", "img", "iframe", "object", "base"}
    )
    values = [v for e in root.iter() for v in e.attrib.values()] + [root.find("head/style").text]
    assert not any("url(" in v or "@import" in v or "//" in v for v in values)
    labels = [svg.get("aria-label") for svg in root.iter("svg")]
    assert len(labels) == 7 and all(labels)  # bars, threads, depth, and four over time


def test_it_shows_what_was_measured(found):
    root = parse(page(found))
    titles = [h.text for h in root.iter("h2")]
    assert titles == [
        *("Device and model", "Speed", "Threads", "Depth of the context", "Start", "Sustained"),
        *("Energy", "Not measured", "Steps"),
    ]
    tiles = {d[0].text: d[1].text for d in root.iter("div") if len(d) == 2 and d[0].tag == "dt"}
    assert tiles["Energy of a token"] == "0.125 J"
    assert {"Decoding", "Prompt of 8", "First token, warm", "LocalScore's formula"} <= set(tiles)
    cells = [c.text for c in root.iter("td")]
    assert "2400 to 1500" in cells and "41 to 87" in cells


def test_what_is_missing_is_said(found):
    bare = copy.deepcopy(found)
    bare |= {"rows": [], "starts": [], "sustained": None, "complete": False}
    root = parse(page(bare))
    text = "".join(root.itertext())
    assert "The run was not completed" in text and "No sensor of this device" in text
    assert not list(root.iter("svg"))
    busy = copy.deepcopy(found)
    busy["device"] |= {"load_average": 7.5, "cpus": 4}
    assert "Other programs ran before it (load 7.5 on 4 CPUs)." in page(busy)
    busy["device"]["load_average"] = 1.0
    assert "Other programs" not in page(busy)
    for p in (points := copy.deepcopy(found["sustained"]))["points"]:
        p |= {"celsius": None, "mhz": None, "watts": None}
    text = "".join(parse(page(found | {"sustained": points})).itertext())
    assert text.count("not told by this system") >= 3


def test_names_are_escaped(found):
    evil = json.loads(json.dumps(found).replace("model.gguf", json.dumps(HOSTILE)[1:-1]))
    evil["model"]["name"] = evil["device"]["board"] = HOSTILE
    text = page(evil)
    assert not list(parse(text).iter("script")) and "<script" not in text and "\x1b" not in text


def test_in_a_browser(found, tmp_path):
    scroll, client, console = browser(tmp_path, page(found), 360)
    assert scroll <= client <= 360 and console == []
