"""Sections of a report that compare a model's matrices: heat maps by block, bars, tables.

Each takes the data of `page.page` and returns HTML, "" where the data does not have it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from gwq_export.report import html
from gwq_export.report.charts import bars, heat_map, profile
from gwq_export.report.facts import DENSEST, place

LARGEST = 10  # tensors in a bar chart
Data = dict[str, Any]


def _by_block(
    label: str,
    caption: str,
    tensors: list[Data],
    value: Callable[[Data], float | None],
    show: Callable[[float], str],
    log: bool = False,
) -> str:
    """A figure with a heat map of value(tensor), or "" when no tensor of a block has one."""
    cells: dict[tuple[int, str], float] = {}
    for t in tensors:
        number = value(t)
        if t["block"] is not None and number is not None:
            cells[t["block"], t["matrix"]] = number
    if not cells:
        return ""
    rows = sorted({block for block, _ in cells})
    present = {matrix for _, matrix in cells}
    columns = list(dict.fromkeys(t["matrix"] for t in tensors if t["matrix"] in present))
    return html.figure(caption, heat_map(label, rows, columns, cells, show, log))


def _matrices(data: Data) -> list[Data]:
    return [t for t in data.get("tensors", ()) if len(t["shape"]) > 1]


def _scientific(number: float) -> str:
    return f"{number:.0e}"


def errors(data: Data) -> str:
    """Error of each matrix: measured by --verify, and as predicted."""
    measured = {t["name"]: t for t in data.get("verify", {}).get("tensors", ())}
    losses = {row["name"]: row["loss"] for row in data.get("plan", ())}
    if not measured and not losses:
        return ""
    tensors = [
        t | measured.get(t["name"], {}) | {"loss": losses.get(t["name"])} for t in _matrices(data)
    ]
    figures = [
        _by_block(
            "Output error",
            "Error of each matrix's outputs, of their size",
            tensors,
            lambda t: t.get("output_error"),
            html.percent,
        )
    ]
    by_name = [(t["name"], t["output_error"]) for t in tensors if t.get("output_error") is not None]
    largest = sorted(by_name, key=lambda item: item[1], reverse=True)[:LARGEST]
    if largest:
        rows = [(name, error, html.percent(error)) for name, error in largest]
        figures.append(html.figure("The largest", bars("Largest output errors", rows)))
    figures.append(
        _by_block(
            "Predicted loss",
            "Loss that each matrix adds, as predicted (nats per token)",
            tensors,
            lambda t: t["loss"],
            _scientific,
            log=True,
        )
    )
    note = "Predicted by the sensitivities that chose the types."
    if measured:
        note = (
            "Root mean square of the error over root mean square of the value, "
            "for the inputs that the held-out text gives the matrix."
        )
    return html.section("Error by tensor", note, html.grid(*figures))


def outliers(data: Data) -> str:
    """How many weights of each matrix are outliers, and where in it they are."""
    matrices = _matrices(data)
    with_outliers = [t for t in matrices if t["outliers"]]
    if not with_outliers:
        return ""
    figures = [
        _by_block(
            "Outliers",
            "Share of a matrix's weights kept in FP16",
            matrices,
            lambda t: t["outliers"] / t["params"],
            html.percent,
        ),
        _by_block(
            "Concentration by row",
            f"Share of a matrix's outliers in its densest {DENSEST:.0%} of rows",
            matrices,
            lambda t: t.get("row_share"),
            html.percent,
        ),
        _by_block(
            "Concentration by column",
            f"Share of a matrix's outliers in its densest {DENSEST:.0%} of columns",
            matrices,
            lambda t: t.get("column_share"),
            html.percent,
        ),
    ]
    table = html.table(
        "Outliers of each matrix",
        (
            "tensor",
            "outliers",
            "along its rows",
            f"densest {DENSEST:.0%}",
            "along its columns",
            f"densest {DENSEST:.0%}",
        ),
        [
            (
                html.text(t["name"]),
                f"{t['outliers']:,}",
                profile(f"outliers along the rows of {t['name']}", t["rows"]),
                html.percent(t["row_share"]),
                profile(f"outliers along the columns of {t['name']}", t["columns"]),
                html.percent(t["column_share"]),
            )
            for t in with_outliers
        ],
    )
    note = (
        "If outliers were spread evenly, the densest 1 % would hold little more than 1 % of them. "
        "Columns are inputs of a matrix, rows its outputs, in the file's order "
        "(llama.cpp's order of Q and K)."
    )
    return html.section(
        "Where outliers are",
        note,
        html.grid(*figures),
        f"<details><summary>Every matrix</summary>{table}</details>",
    )


def sizes(data: Data) -> str:
    """Which types and tensors take how many bytes."""
    if "tensors" not in data:
        return ""
    by_type: dict[str, int] = {}
    for t in data["tensors"]:
        by_type[t["type"]] = by_type.get(t["type"], 0) + t["bytes"]
    total = sum(by_type.values())

    def rows(sizes: Iterable[tuple[str, int]]) -> list[tuple[str, float, str]]:
        return [(name, n, f"{html.size(n)}, {html.percent(n / total)}") for name, n in sizes]

    types = sorted(by_type.items(), key=lambda item: -item[1])
    tensors = sorted(((t["name"], t["bytes"]) for t in data["tensors"]), key=lambda item: -item[1])
    figures = [
        html.figure("By type", bars("Bytes by type", rows(types))),
        html.figure("The largest tensors", bars("Largest tensors", rows(tensors[:LARGEST]))),
        _by_block(
            "Bits per weight",
            "Bits per weight of each matrix",
            _matrices(data),
            lambda t: 8 * t["bytes"] / t["params"],
            lambda bits: f"{bits:.2f}",
        ),
    ]
    note = "Side-tables count with their matrix."
    return html.section("Size by tensor", note, html.grid(*figures))


def sensitivity(data: Data) -> str:
    """The loss that each matrix would add in each type, as --report-only predicts it."""
    if "sensitivities" not in data:
        return ""
    tensors = []
    types: dict[str, None] = {}  # in the order of their first use
    for row in data["sensitivities"]:
        loss: dict[str, float] = {}  # by type, with the outliers that suit it best
        for choice in row["choices"]:
            type = choice["type"]
            loss[type] = min(loss.get(type, choice["loss"]), choice["loss"])
            types[type] = None
        tensors.append({"name": row["name"], "losses": loss} | place(row["name"]))

    def loss_as(type: str) -> Callable[[Data], float | None]:
        return lambda t: t["losses"].get(type)

    figures = [
        _by_block(
            f"Loss as {type}",
            f"Loss that each matrix adds as {type}, "
            "with the outliers that suit it best (nats per token)",
            tensors,
            loss_as(type),
            _scientific,
            log=True,
        )
        for type in types
    ]

    def cell(t: Data, type: str) -> str:
        return f"{t['losses'][type]:.3e}" if type in t["losses"] else ""

    rows = [(html.text(t["name"]), *(cell(t, type) for type in types)) for t in tensors]
    table = html.table("Predicted loss, nats per token", ("tensor", *types), rows)
    note = (
        "To second order, each matrix by itself: "
        "what storing it so would add to the loss on the calibration text."
    )
    return html.section("Sensitivity", note, html.grid(*figures), table)
