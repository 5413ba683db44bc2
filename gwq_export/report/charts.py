"""Charts as inline SVG for a page that reads on a phone, on a light and on a dark ground.

A chart is WIDTH units wide and takes the width of its column. Colours are the CSS variables of
`html`. Every text is escaped here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from gwq_export.report.html import text

WIDTH = 360  # of a phone's screen: text in a chart is about as large there as it says here
LABEL = 26  # units left of a heat map, for the numbers of its rows
MARGIN = 18  # units right of a heat map, for what its last heading needs
CHARACTER = 6  # units: width of a letter of small text
ROW = 18  # units: height of a row of a heat map
BAR = 30  # units: height of a bar with its text
LINE = 110  # units: height of a line chart without its texts
FEW = 12  # points of a line that are marked, if there are no more


def _svg(height: float, label: str, body: Iterable[str]) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{text(label)}">'
        f"{''.join(body)}</svg>"
    )


def _shading(values: Iterable[float], log: bool) -> Callable[[float], float]:
    """Value -> opacity of its cell: never so strong that text on it would be hard to read."""
    present = [v for v in values if v > 0]
    low, high = (min(present), max(present)) if present else (0, 1)

    def opacity(v: float) -> float:
        if v <= 0:
            return 0.0
        part = math.log(v / low) / math.log(high / low) if log and high > low else v / high
        return 0.05 + 0.55 * part

    return opacity


def heat_map(
    label: str,
    rows: Sequence[object],
    columns: Sequence[object],
    values: Mapping[tuple, float],
    show: Callable[[float], str],
    log: bool = False,
) -> str:
    """A heat map.

    values: {(row, column): number >= 0}; show(number) -> its text in the cell; log: shade by the
    logarithm.
    """
    opacity = _shading(values.values(), log)
    top = 12 + CHARACTER * 0.75 * max(len(str(c)) for c in columns)
    width = (WIDTH - LABEL - MARGIN) / len(columns)
    body = []
    for x, column in enumerate(columns):
        at = LABEL + (x + 0.5) * width
        body.append(
            f'<text class="s" transform="translate({at:.1f} {top - 5:.1f}) rotate(-45)">'
            f"{text(column)}</text>"
        )
    for y, row in enumerate(rows):
        at = top + y * ROW
        body.append(
            f'<text class="s" x="{LABEL - 5}" y="{at + 12:.1f}" text-anchor="end">'
            f"{text(row)}</text>"
        )
        for x, column in enumerate(columns):
            if (row, column) not in values:
                continue
            value = values[row, column]
            shown = show(value)
            left = LABEL + x * width
            box = f'x="{left:.1f}" y="{at:.1f}" width="{width - 1:.1f}" height="{ROW - 1}"'
            body.append(f"<g><title>{text(row)} {text(column)}: {text(shown)}</title>")
            body.append(f'<rect class="a" fill-opacity="{opacity(value):.2f}" {box}/>')
            if width > CHARACTER * len(shown):
                body.append(
                    f'<text class="s" x="{left + width / 2:.1f}" y="{at + 12:.1f}" '
                    f'text-anchor="middle">{text(shown)}</text>'
                )
            body.append("</g>")
    return _svg(top + len(rows) * ROW, label, body)


def bars(label: str, rows: Sequence[tuple[str, float, str]]) -> str:
    """Horizontal bars: rows [(name, number >= 0, its text)]; name and text stand above the bar."""
    high = max([value for _, value, _ in rows if value > 0], default=1)
    body = []
    for i, (name, value, shown) in enumerate(rows):
        y = i * BAR
        room = WIDTH - CHARACTER * (len(shown) + 2)
        if len(name) * CHARACTER >= room:
            name = name[: int(room / CHARACTER) - 1] + "…"
        width = max(0.0, value) / high * WIDTH
        body.append(
            f'<text x="0" y="{y + 12}">{text(name)}</text>'
            f'<text x="{WIDTH}" y="{y + 12}" text-anchor="end">{text(shown)}</text>'
            f'<rect class="b" x="0" y="{y + 17}" width="{WIDTH}" height="7" rx="2"/>'
            f'<rect class="a" x="0" y="{y + 17}" width="{width:.1f}" height="7" rx="2"/>'
        )
    return _svg(BAR * len(rows), label, body)


def line(
    label: str,
    points: Sequence[tuple[float, float]],
    show: Callable[[float], str],
    ends: tuple[str, str],
    from_zero: bool = False,
) -> str:
    """A line through points (x, y), x rising.

    show: number -> its text, at the highest and the lowest y. ends: texts at the first and the last
    x. from_zero: the ground is 0, not the lowest y.
    """
    if not points:
        return _svg(ROW, label, [f'<text x="0" y="12">{text("nothing measured")}</text>'])
    high = max(y for _, y in points)
    low = 0.0 if from_zero else min(y for _, y in points)
    left = CHARACTER * (max(len(show(high)), len(show(low))) + 1)
    first, last = points[0][0], points[-1][0]

    def x(value: float) -> float:
        return left + (WIDTH - left - 2) * ((value - first) / (last - first) if last > first else 0)

    def y(value: float) -> float:
        return 8 + LINE * (1 - ((value - low) / (high - low) if high > low else 0.5))

    ground = y(low) if high > low else 8 + LINE
    path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in points)
    body = [
        f'<text class="s" x="{left - 5}" y="{y(high) + 4:.1f}" text-anchor="end">'
        f"{text(show(high))}</text>",
        f'<line class="g" x1="{left}" x2="{WIDTH}" y1="{ground:.1f}" y2="{ground:.1f}"/>',
        f'<polyline class="l" fill="none" stroke-width="1.5" points="{path}"/>',
        f'<text class="s" x="{left}" y="{LINE + 24}">{text(ends[0])}</text>',
        f'<text class="s" x="{WIDTH}" y="{LINE + 24}" text-anchor="end">{text(ends[1])}</text>',
    ]
    if len(points) <= FEW:
        body += [f'<circle class="a" cx="{x(a):.1f}" cy="{y(b):.1f}" r="2.5"/>' for a, b in points]
    if high > low:
        body.append(
            f'<text class="s" x="{left - 5}" y="{ground + 4:.1f}" text-anchor="end">'
            f"{text(show(low))}</text>"
        )
    return _svg(LINE + 30, label, body)


def profile(label: str, counts: Sequence[int], height: int = 22) -> str:
    """A row of thin bars: counts along a matrix, from its first row or column to its last."""
    width = WIDTH / 2 / len(counts)
    high = max(*counts, 1)
    path = "".join(
        f"M{(i + 0.5) * width:.1f} {height}v{-height * c / high:.1f}"
        for i, c in enumerate(counts)
        if c
    )
    return (
        f'<svg class="f" viewBox="0 0 {WIDTH // 2} {height}" preserveAspectRatio="none" '
        f'role="img" aria-label="{text(label)}">'
        f'<path class="l" d="{path}M0 {height}" stroke-width="{width * 0.8:.1f}"/></svg>'
    )
