"""Where the time of a token goes."""

import json

import pytest

from gwq_export.bench.ops_profile import profile_rows
from gwq_export.cli import main


def test_rows_of_a_token(exported, tiny):
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    rows = profile_rows(path, prompt=20, gen=4, threads=2, repeats=2)
    by_op = {(r["op"], r["type"]): r for r in rows}
    layers = by_op["attention", None]["calls"]
    assert layers == by_op["activate+matmul+add", "gwq4"]["calls"] > 1
    assert by_op["embed", None]["calls"] == 1
    assert by_op["rope", None]["calls"] == 2 * layers == by_op["cache", None]["calls"]
    products = [r for r in rows if "matmul" in r["op"]]
    assert all(r["shape"] and r["gbps"] > 0 for r in products)
    assert sum(r["calls"] for r in products) == 4 * layers + 1
    assert sum(r["share"] for r in rows) == pytest.approx(1)
    assert all(r["ns"] > 0 and r["threads"] == 2 for r in rows)
    assert rows == sorted(rows, key=lambda r: -r["ns"])


def test_the_command(exported, tiny, capsys):
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    options = ["--ops-profile", "-p", "8", "-n", "2", "-r", "1", "-t", "1"]
    assert main("bench", [str(path), *options]) == 0
    text = capsys.readouterr().out
    assert text.startswith("| op | type | rows x columns | calls | us | share | GB/s |")
    assert "| rmsnorm+matmul | gwq4 |" in text
    assert main("bench", [str(path), *options, "-o", "json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["calls"] >= 1


@pytest.mark.parametrize(
    "options, words",
    [
        (["--kernels"], "give either a GGUF file or --kernels"),
        (["-t", "1,2"], "with one thread count"),
        (["-p", "0"], "-p lie in 1..255"),
        (["-p", "256"], "-p lie in 1..255"),
        (["-n", "0"], "-n must be at least 1"),
    ],
)
def test_what_cannot_be(exported, tiny, capsys, options, words):
    path, _ = exported(tiny("llama"), type="gwq4", outliers=0.02, samples=2, ctx=64)
    assert main("bench", [str(path), "--ops-profile", *options]) != 0
    assert words in capsys.readouterr().err


def test_experts(exported, tiny):
    path, _ = exported(tiny("mixtral"), type="gwq4", samples=2, ctx=64)
    by_op = {r["op"]: r for r in profile_rows(path, prompt=8, gen=1)}
    layers = by_op["attention"]["calls"]
    assert by_op["route"]["calls"] == layers
    assert by_op["activate+matmul"]["calls"] % layers == 0
