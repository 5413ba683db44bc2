"""Charts as inline SVG for a page that reads on a phone, on light and on dark ground. Colours are
the page's CSS variables.

A chart is WIDTH units wide and takes the width of its column. Every text is escaped here.
"""

import math
from html import escape

WIDTH = 360  # of a phone's screen: text in a chart is about as large there as it says here
LABEL, MARGIN = (
    26,
    18,
)  # units left and right of a heat map: for the numbers of its rows, and for what its last heading needs
CHARACTER, ROW = 6, 18  # units: width of a letter of small text, height of a row of a heat map


def text(value):
    """A text for HTML and XML: escaped, and without the characters that XML forbids."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in str(value))
    return escape(clean, quote=True)


def _svg(height, label, body):
    return f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{text(label)}">{"".join(body)}</svg>'


def heat_map(label, rows, columns, values, show, log=False):
    """A heat map. values: {(row, column): number >= 0}; show(number) -> its text in the cell; log:
    shade by the logarithm.
    """
    present = [v for v in values.values() if v > 0]
    low, high = (min(present), max(present)) if present else (0, 1)
    top, width = (
        12 + CHARACTER * 0.75 * max(len(str(c)) for c in columns),
        (WIDTH - LABEL - MARGIN) / len(columns),
    )

    def shade(v):
        if v <= 0:
            return 0.0
        part = math.log(v / low) / math.log(high / low) if log and high > low else v / high
        return 0.05 + 0.55 * part  # never so strong that text on it would be hard to read

    body = []
    for x, column in enumerate(columns):
        at = LABEL + (x + 0.5) * width
        body.append(
            f'<text class="s" transform="translate({at:.1f} {top - 5:.1f}) rotate(-45)">{text(column)}</text>'
        )
    for y, row in enumerate(rows):
        at = top + y * ROW
        body.append(
            f'<text class="s" x="{LABEL - 5}" y="{at + 12:.1f}" text-anchor="end">{text(row)}</text>'
        )
        for x, column in enumerate(columns):
            if (row, column) not in values:
                continue
            v = values[row, column]
            left = LABEL + x * width
            box = f'x="{left:.1f}" y="{at:.1f}" width="{width - 1:.1f}" height="{ROW - 1}"'
            body.append(f"<g><title>{text(row)} {text(column)}: {text(show(v))}</title>")
            body.append(f'<rect class="a" fill-opacity="{shade(v):.2f}" {box}/>')
            if width > CHARACTER * len(show(v)):
                body.append(
                    f'<text class="s" x="{left + width / 2:.1f}" y="{at + 12:.1f}" text-anchor="middle">{text(show(v))}</text>'
                )
            body.append("</g>")
    return _svg(top + len(rows) * ROW, label, body)


def bars(label, rows):
    """Horizontal bars: rows [(name, number >= 0, its text)]; name and text stand above the bar."""
    high, body = max([v for _, v, _ in rows if v > 0], default=1), []
    for i, (name, value, shown) in enumerate(rows):
        y, room = i * 30, WIDTH - CHARACTER * (len(shown) + 2)
        name = name if len(name) * CHARACTER < room else name[: int(room / CHARACTER) - 1] + "…"
        body.append(
            f'<text x="0" y="{y + 12}">{text(name)}</text><text x="{WIDTH}" y="{y + 12}" text-anchor="end">{text(shown)}</text>'
            f'<rect class="b" x="0" y="{y + 17}" width="{WIDTH}" height="7" rx="2"/>'
            f'<rect class="a" x="0" y="{y + 17}" width="{max(0.0, value) / high * WIDTH:.1f}" height="7" rx="2"/>'
        )
    return _svg(30 * len(rows), label, body)


def profile(label, counts, height=22):
    """A row of thin bars: how counts lie along a matrix, from its first row or column to its last."""
    width, high = WIDTH / 2 / len(counts), max(*counts, 1)
    path = "".join(
        f"M{(i + 0.5) * width:.1f} {height}v{-height * c / high:.1f}"
        for i, c in enumerate(counts)
        if c
    )
    return (
        f'<svg class="f" viewBox="0 0 {WIDTH // 2} {height}" preserveAspectRatio="none" role="img" aria-label="{text(label)}">'
        f'<path class="l" d="{path}M0 {height}" stroke-width="{width * 0.8:.1f}"/></svg>'
    )
