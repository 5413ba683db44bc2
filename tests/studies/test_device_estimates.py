"""Estimates of devices: the lower of two limits, from the figures that the pages have."""

import pytest

from studies import device_estimates as study
from tests.support.paths import ROOT

PAGE = """
| type | neon | dotprod |
| --- | --- | --- |
| gwq4 | 0.5 | 0.25 |

| instructions | AVX2 |
| --- | --- |
| gwq4, 1 token | 0.3 |
"""


def test_figures_of_a_page():
    assert study.cell(PAGE, "dotprod", "gwq4") == 0.25
    assert study.cell(PAGE, "AVX2", "gwq4, 1 token") == 0.3
    with pytest.raises(ValueError, match="'AVX2' and a row 'gwq4'"):
        study.cell(PAGE, "AVX2", "gwq4")


def test_the_lower_limit_counts():
    device = study.Device("", cores=4, ghz=2, isa="neon", per_cycle=0.5, gbps=10)
    memory, instructions = study.limits(device, 1e9, per_weight=0.5)
    assert memory == pytest.approx(10 / (study.BITS / 8)) and instructions == pytest.approx(8)
    assert study.expected(memory, instructions) == "6-8"
    assert study.expected(memory, 100) == "6-12"
    assert study.expected(memory, 3) == "3"


def test_the_page_has_the_table_as_it_is_printed():
    table = study.table()
    assert len(table.splitlines()) == 2 + len(study.DEVICES)
    assert table in (ROOT / "docs" / "edge.md").read_text(encoding="utf-8")
