"""A plot of KL divergence over bits per weight, as SVG text that reads on light and on dark pages."""

import math
from html import escape
from itertools import pairwise

SIDES = [
    (9, 4, "start"),
    (-9, 4, "end"),
    (0, -11, "middle"),
    (0, 20, "middle"),
    (9, -9, "start"),
    (-9, 17, "end"),
    (9, 17, "start"),
]
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 760, 520, 72, 24, 56, 56
LIGHT = {
    "page": "#ffffff",
    "ink": "#1f2328",
    "soft": "#59636e",
    "grid": "#d8dee4",
    "series": ("#0969da", "#1a7f37", "#bc4c00", "#8250df"),
}
DARK = {
    "page": "#0d1117",
    "ink": "#f0f6fc",
    "soft": "#9198a1",
    "grid": "#30363d",
    "series": ("#58a6ff", "#3fb950", "#f0883e", "#bc8cff"),
}


def style(colours):
    """CSS rules that give the classes their colours."""
    rules = [f".{name} {{ fill: {colours[name]} }}" for name in ("page", "ink", "soft")]
    rules.append(
        f".grid {{ stroke: {colours['grid']} }} .axis {{ stroke: {colours['soft']}; fill: none }}"
    )
    rules.append(f".halo {{ fill: {colours['page']}; stroke: {colours['page']} }}")
    for i, c in enumerate(colours["series"]):
        rules.append(
            f".mark{i} {{ fill: {c} }} .line{i} {{ fill: none; stroke: {c}; stroke-width: 2 }}"
        )
    return "\n".join(rules)


STYLE = f"""text {{ font: 13px system-ui, sans-serif }} .small {{ font-size: 11.5px }} .title {{ font-size: 15px; font-weight: 600 }}
.halo {{ stroke-width: 4px; stroke-linejoin: round }}
{style(LIGHT)}
@media (prefers-color-scheme: dark) {{
{style(DARK)}
}}"""


def marker(series, x, y):
    """A shape for each series, so that they are told apart without colour."""
    if series == 0:
        return f'<circle class="mark{series}" cx="{x:.1f}" cy="{y:.1f}" r="4"/>'
    if series == 1:
        return (
            f'<rect class="mark{series}" x="{x - 5:.1f}" y="{y - 5:.1f}" width="10" height="10"/>'
        )
    if series == 2:
        return f'<path class="line{series}" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>'
    return f'<path class="mark{series}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'


def label(x, y, text, anchor, colour, size="small"):
    """Text over a halo in the page's colour."""
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
    return f'<text class="halo {size}" {place}<text class="{colour} {size}" {place}'


def along(spots, step=8):
    """Points of a line, at most `step` apart."""
    for (x, y), (u, v) in pairwise(spots):
        n = max(1, math.ceil(math.hypot(u - x, v - y) / step))
        yield from ((x + (u - x) * i / n, y + (v - y) * i / n) for i in range(n))


def placed(labels, line=()):
    """[(x, y, text, anchor, series)] of labels [(x, y, text, series)], moved to where they hide as
    little as can be.
    """
    out, boxes = (
        [],
        [(x - 6, y - 6, x + 6, y + 6) for x, y, _, _ in labels]
        + [(x - 3, y - 3, x + 3, y + 3) for x, y in along(line)],
    )

    def free(box):
        return not any(
            box[0] < b[2] and b[0] < box[2] and box[1] < b[3] and b[1] < box[3] for b in boxes
        )

    for x, y, text, series in labels:
        if not text:
            continue
        width, best = 6.6 * len(text), None
        for dx, dy, anchor in (
            SIDES[1::2] + SIDES[::2] if series < 2 else SIDES
        ):  # ours go below first
            left = x + dx - {"start": 0, "middle": width / 2, "end": width}[anchor]
            box = (left, y + dy - 11, left + width, y + dy + 2)
            best = best or (dx, dy, anchor, box)
            if free(box) and box[0] > LEFT and box[2] < WIDTH - 4:
                best = dx, dy, anchor, box
                break
        dx, dy, anchor, box = best
        boxes.append(box)
        out.append((x + dx, y + dy, text, anchor, series))
    return out


def plot(curves, title):
    """SVG of {series: [(bits, KL divergence, label)]}; the first is drawn as a line, at most four."""
    points = [p for series in curves.values() for p in series]
    x0, x1 = (
        math.floor(min(p[0] for p in points) * 4) / 4,
        math.ceil(max(p[0] for p in points) * 4) / 4,
    )
    y0, y1 = (math.log10(f(p[1] for p in points)) for f in (min, max))
    y0, y1 = y0 - 0.08 * (y1 - y0) - 0.05, y1 + 0.06 * (y1 - y0) + 0.05
    width, height = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def at(bits, kld):
        return LEFT + (bits - x0) / (x1 - x0) * width, TOP + (y1 - math.log10(kld)) / (
            y1 - y0
        ) * height

    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">',
        f'<title>{escape(title)}</title><style>{STYLE}</style><rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        f'<text class="ink title" x="{LEFT}" y="28">{escape(title)}</text>',
    ]
    for k in range(round((x1 - x0) * 4) + 1):
        x, _ = at(x0 + k / 4, 1)
        out.append(f'<path class="grid" d="M{x:.1f} {TOP}V{TOP + height}"/>')
        if (x0 + k / 4) * 2 % 1 == 0:
            out.append(
                f'<text class="soft" x="{x:.1f}" y="{TOP + height + 20}" text-anchor="middle">{x0 + k / 4:g}</text>'
            )
    for power in range(math.floor(y0), math.ceil(y1) + 1):
        for digit in (1, 2, 5):
            value = digit * 10.0**power
            _, y = at(x0, value)
            if TOP <= y <= TOP + height:
                out.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{width}"/>')
                out.append(
                    f'<text class="soft" x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
                )
    out.append(f'<path class="axis" d="M{LEFT} {TOP}V{TOP + height}H{LEFT + width}"/>')
    out.append(
        f'<text class="ink" x="{LEFT + width / 2}" y="{HEIGHT - 14}" text-anchor="middle">'
        "bits per weight of the decoder's linear layers, side-tables included</text>"
    )
    middle = TOP + height / 2
    out.append(
        f'<text class="ink" x="18" y="{middle}" text-anchor="middle" transform="rotate(-90 18 {middle})">'
        "KL divergence, nats per token (log scale)</text>"
    )
    labels, first = [], ()
    for series, (_, line) in enumerate(curves.items()):
        spots = [at(bits, kld) for bits, kld, _ in line]
        first = first or spots
        if series == 0 and len(spots) > 1:
            out.append(
                '<path class="line0" d="M' + "L".join(f"{x:.1f} {y:.1f}" for x, y in spots) + '"/>'
            )
        out += [marker(series, x, y) for x, y in spots]
        labels += [(x, y, label, series) for (x, y), (_, _, label) in zip(spots, line, strict=True)]
    out += [
        label(x, y, text, anchor, f"mark{series}")
        for x, y, text, anchor, series in placed(labels, first)
    ]
    for series, name in enumerate(curves):
        x, y = LEFT + width - 220, TOP + 20 + 22 * series
        out.append(marker(series, x, y - 4) + label(x + 14, y, name, "start", "ink", "key"))
    return "\n".join([*out, "</svg>"]) + "\n"
