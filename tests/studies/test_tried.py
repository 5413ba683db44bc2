"""studies/candidates and studies/windows: what was tried and left out."""

import numpy as np
import pytest

from studies import candidates, windows


def test_candidates(tiny, tmp_path, capsys, monkeypatch):
    (tmp_path / "t.txt").write_text("A text to compare on, long enough for a window. " * 30)
    kept = ["default", "of 3"]
    made = {name: candidates.variants()[name] for name in kept}
    monkeypatch.setattr(candidates, "variants", lambda: made)
    options = ["--types", "gwq2", "--seeds", "1", "--ctx", "64", "--text", str(tmp_path / "t.txt")]
    candidates.main([str(tiny("llama")), *options])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if "(" in line]
    assert [row[0].removeprefix("| ") for row in rows] == kept * 2
    klds = [float(row[1].split()[0]) for row in rows[:2]]
    assert klds[0] != klds[1] and rows[0][1].endswith("(1.00)")


def test_a_candidate_never_costs_more():
    """Of each row the best by e H e^T is kept, with its own scales and codes."""
    from gwq_export.format.types import TYPES
    from gwq_export.quantization.curvature import Curvature

    rng = np.random.default_rng(0)
    weight = rng.standard_normal((32, 256)).astype(np.float32)
    x = rng.standard_normal((600, 256)).astype(np.float32)
    h = Curvature(x.T @ x / 600, 600)
    levels = np.linspace(-63, 63, 16).astype(np.float32)
    rest = (np.ones(32, np.float32), None, True, 1, candidates.encoder.ffi.NULL)
    one = candidates.ENCODE_ROWS(weight, TYPES["gwq4"], levels, h, *rest)
    best = candidates.best_of(candidates.HEADROOMS)(weight, TYPES["gwq4"], levels, h, *rest)
    cost = [
        np.einsum("ij,jk,ik->i", e, h.matrix, e)
        for e in (one.values - weight, best.values - weight)
    ]
    assert (cost[1] <= cost[0] * 1.001).all() and cost[1].sum() < 0.999 * cost[0].sum()
    assert not np.array_equal(best.row_scales, one.row_scales)


@pytest.mark.parametrize(("bits", "width"), [(2, 4), (2, 5), (3, 4)])
def test_the_search_is_the_best_of_all_rings(bits, width):
    """Against all codes of a short ring, by the definition of a window."""
    rng = np.random.default_rng(width)
    x, table = rng.standard_normal((5, 4)), rng.standard_normal(1 << width)
    codes = np.array(np.meshgrid(*[range(1 << bits)] * 4)).reshape(4, -1).T
    before = np.roll(codes, 1, 1) | np.roll(codes, 2, 1) << bits
    all_windows = (codes | before << bits) & ((1 << width) - 1)
    losses = np.square(x[:, None] - table[all_windows]).sum(2)
    found = windows.search(x, table, bits)
    assert np.allclose(np.square(x - table[found]).sum(1), losses.min(1))


def test_wider_windows_lose_less(capsys, monkeypatch):
    monkeypatch.setattr(windows, "WINDOWS", {2: (2, 4)})
    windows.main(["--rings", "200", "--restarts", "1"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines()[2:]]
    assert float(rows[0][3]) > 1.1 * float(rows[1][3]) and rows[1][4].startswith("1.00")
