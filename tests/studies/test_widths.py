"""Budgets for narrow matrices, as studies/widths measures them."""

import pytest

from studies.widths import ratios


@pytest.mark.parametrize("cols", [33, 64, 96, 128, 130])
def test_a_budget_is_no_worse_than_a_ggml_type_of_its_size(cols):
    for name, (ratio, taken) in ratios(cols, rows=48).items():
        assert ratio <= 1 + 1e-9, (name, taken)
