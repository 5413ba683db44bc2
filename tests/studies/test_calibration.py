"""studies/calibration: the page that it writes."""

import json

import pytest

from studies import calibration


def test_page(tiny, tmp_path):
    prose, chats = tmp_path / "prose.txt", tmp_path / "lines.jsonl"
    prose.write_text("Some text to calibrate on, again and again. " * 60)
    chats.write_text("".join(json.dumps({"text": f"Line {i} of many."}) + "\n" for i in range(99)))
    args = [str(tiny("llama")), "--row", f"prose=2:{prose}", "--row", f"both=4:{prose},{chats}"]
    args += ["--on", f"prose={prose}", "--on", f"lines={chats}", "--ctx", "32", "--windows", "3"]
    out = tmp_path / "page.md"
    calibration.main([*args, "--out", str(out)])
    page = out.read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert [row[:2] for row in rows] == [["| prose", "64"], ["| both", "128"]]
    for column in (2, 3):
        first, second = (float(row[column].split()[0]) for row in rows)
        ratio = float(rows[1][column].split("(")[1].rstrip(")"))
        assert rows[0][column].endswith("(1.00)")
        assert ratio == pytest.approx(second / first, abs=0.01)
    assert "3 of prose, 3 of lines" in page


@pytest.mark.parametrize("text", ["prose", "prose=few:a.txt", "prose=3", "=3:a", "prose=3:"])
def test_a_row_that_is_none(text, capsys):
    with pytest.raises(SystemExit):
        calibration.parser().parse_args(["m", "--row", text, "--on", "a=b"])
    assert "is not NAME=" in capsys.readouterr().err
