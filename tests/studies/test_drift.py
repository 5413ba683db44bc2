"""studies/drift: the page that it writes."""

import pytest

from studies import drift


def test_page(tiny, tmp_path, monkeypatch):
    kept = ["neither (`--fast`)", "both (default)", "both, half of the correction"]
    monkeypatch.setattr(drift, "VARIANTS", {name: drift.VARIANTS[name] for name in kept})
    options = ["--types", "gwq2", "--seeds", "1", "--characters", "2000", "--ctx", "64"]
    out = tmp_path / "page.md"
    drift.main([str(tiny("llama")), *options, "--out", str(out)])
    page = out.read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row[0].removeprefix("| ") for row in rows] == kept
    klds = [float(row[1].split()[0]) for row in rows]
    assert len(set(klds)) == 3 and rows[0][1].endswith("(1.00)")
    ratio = float(rows[1][1].split("(")[1].rstrip(")"))
    assert ratio == pytest.approx(klds[1] / klds[0], abs=0.01)
