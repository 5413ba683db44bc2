"""studies/ablation: its tables and its plot, on the bundled model at the smallest extent."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from gwq_export.calibration.sources import CALIBRATION
from gwq_export.evaluation.perplexity import PROTOCOLS, score
from gwq_export.evaluation.predictors import module_logits
from studies import ablation
from studies.ablation_lab import Lab, default
from studies.ablation_svg import plot
from tests.support.paths import DATA, REFERENCE

SECTIONS = "ABCEF"  # D needs the shared data


def table(page, heading):
    """Cells of the first table below a heading, without the head."""
    lines = page[page.index(heading) :].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| ---")) + 1
    rows = [line.strip("| ").split(" | ") for line in lines[first : lines.index("", first)]]
    return [[cell.replace("\\|", "|").strip() for cell in row] for row in rows]


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """Folder of what --quick writes, over a page that someone annotated."""
    out = tmp_path_factory.mktemp("ablation")
    (out / "ablation.md").write_text("<!-- reading C -->\nEvery step pays.\n<!-- end -->\n")
    ablation.main(
        [
            "--quick",
            "--models",
            "gwq-reference",
            "--out",
            str(out),
            "--saved",
            str(out / "rows.jsonl"),
        ]
    )
    return out


def test_the_page_has_its_parts(quick):
    page = (quick / "ablation.md").read_text()
    for section in SECTIONS:
        assert f"\n## {section}. " in page and f"<!-- reading {section} -->\n" in page
    assert "<!-- reading C -->\nEvery step pays.\n<!-- end -->" in page
    assert [row[0] for row in table(page, "## A.")] == [
        "no outliers",
        "`random`",
        "`loss` (default)",
    ]
    assert "3,145,728 weights" in page and "`studies/ablation --quick" in page


def test_the_ladder_climbs(quick):
    rows = table((quick / "ablation.md").read_text(), "## C.")
    kld = [float(row[2]) for row in rows]
    assert "preset `paper`" in rows[1][0] and "allocation" in rows[-1][0]
    assert kld[-1] < kld[-3] < kld[1] < kld[0]  # allocated, no outliers yet, preset paper, plain
    bits = [float(row[1]) for row in rows]
    assert bits[-2] == pytest.approx(bits[-1], abs=0.002) and bits[-1] < bits[1]


def test_decode_speed_is_of_this_world(quick):
    for _, gweights, *ratios in table(
        (quick / "ablation.md").read_text(), "one thread, 2048 x 2048"
    ):
        assert 0.01 < float(gweights) < 1000 and all(0.1 < float(ratio) < 2 for ratio in ratios)


def test_budgets_are_met(quick):
    rows = table((quick / "ablation.md").read_text(), "## B.")
    bits, kld = np.array([[float(cell) for cell in row[1:3]] for row in rows]).T
    assert bits[1] == bits[2]
    assert np.abs(bits[3:5] - bits[2]).max() < 0.01
    assert (bits[3:5] <= bits[2]).all()
    assert kld[5] < kld[4] < kld[2] < kld[0]


def test_files_agree(quick):
    for _, here, decoded, *runtime in table((quick / "ablation.md").read_text(), "## F."):
        assert float(decoded) == pytest.approx(float(here), rel=1e-3)
        assert [float(v) for v in runtime] == pytest.approx([float(here)] * 2, rel=0.1)


def test_the_plot_is_whole(quick):
    root = ElementTree.parse(quick / "ablation.svg").getroot()
    text = [t.text for t in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"gwq2", "preset paper", "default preset, one type"} <= set(text)
    assert not re.search("nan|inf", (quick / "ablation.svg").read_text())


def test_labels_stay_apart():
    points = [(2 + i / 4, 0.1 / (i + 1), f"type{i}") for i in range(8)]
    labels = re.findall(
        r'mark1 small" x="([0-9.]+)" y="([0-9.]+)" text-anchor="(\w+)">type',
        plot({"a": [], "b": points}, "x"),
    )
    assert len(labels) == 8 and len(set(labels)) == 8


def test_the_measure_is_the_products(quick):
    """KL divergence and perplexity ratio are those of gwq_export.evaluation.perplexity, and known
    rows are not measured again.
    """
    lab = Lab(
        REFERENCE,
        CALIBRATION,
        DATA / "eval.txt",
        samples=4,
        count=2,
        seeds=1,
        saved=quick / "rows.jsonl",
    )
    entries = lab.uniform(default("gwq2"), 0)
    row = lab.measure(entries, 0)
    assert not lab._statistics  # from the file
    lab.known.clear()
    again = lab.measure(entries, 0)
    assert (again.bpw, again.kld, again.ppl_ratio) == pytest.approx(
        (row.bpw, row.kld, row.ppl_ratio)
    )
    found = score(
        module_logits(lab.model),
        lab.rows,
        PROTOCOLS["llama.cpp"].scored(lab.ctx),
        module_logits(lab.original),
    )
    assert (found["kld_mean"], found["ppl_ratio"]) == pytest.approx(
        (row.kld, row.ppl_ratio), rel=1e-4
    )
