"""A plot of KL divergence over bits per weight, as SVG that reads on light and on dark pages."""

import math
from html import escape
from itertools import pairwise

# where a label may lie beside its point: (dx, dy, text-anchor), best first
SIDES = [
    (9, 4, "start"),
    (-9, 4, "end"),
    (0, -11, "middle"),
    (0, 20, "middle"),
    (9, -9, "start"),
    (-9, 17, "end"),
    (9, 17, "start"),
]
LETTER = 6.6  # width of a letter of a label
WIDTH, HEIGHT = 760, 520
LEFT, RIGHT, TOP, BOTTOM = 72, 24, 56, 56
PLOT_WIDTH = WIDTH - LEFT - RIGHT
PLOT_HEIGHT = HEIGHT - TOP - BOTTOM
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
    rules.append(f".grid {{ stroke: {colours['grid']} }}")
    rules.append(f".axis {{ stroke: {colours['soft']}; fill: none }}")
    rules.append(f".halo {{ fill: {colours['page']}; stroke: {colours['page']} }}")
    for i, colour in enumerate(colours["series"]):
        rules.append(f".mark{i} {{ fill: {colour} }}")
        rules.append(f".line{i} {{ fill: none; stroke: {colour}; stroke-width: 2 }}")
    return "\n".join(rules)


STYLE = f"""text {{ font: 13px system-ui, sans-serif }}
.small {{ font-size: 11.5px }}
.title {{ font-size: 15px; font-weight: 600 }}
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
        corner = f'x="{x - 5:.1f}" y="{y - 5:.1f}"'
        return f'<rect class="mark{series}" {corner} width="10" height="10"/>'
    if series == 2:
        return f'<path class="line{series}" d="M{x - 5:.1f} {y - 5:.1f}l10 10m0 -10l-10 10"/>'
    return f'<path class="mark{series}" d="M{x:.1f} {y - 6:.1f}l6 6l-6 6l-6 -6z"/>'


def text_at(x, y, text, classes, anchor="start"):
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"'
    return f'<text class="{classes}" {place}>{escape(text)}</text>'


def label(x, y, text, anchor, colour, size="small"):
    """Text over a halo in the page's colour."""
    halo = text_at(x, y, text, f"halo {size}", anchor)
    return halo + text_at(x, y, text, f"{colour} {size}", anchor)


def along(spots, step=8):
    """Points of a line, at most `step` apart."""
    for (x, y), (u, v) in pairwise(spots):
        n = max(1, math.ceil(math.hypot(u - x, v - y) / step))
        yield from ((x + (u - x) * i / n, y + (v - y) * i / n) for i in range(n))


def overlap(a, b):
    """Whether boxes (left, top, right, bottom) share a point."""
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def placed(labels, line=()):
    """[(x, y, text, anchor, series)] of labels [(x, y, text, series)], where they hide little.

    line: points of a line that labels keep clear of, as of each other and of all points.
    """
    boxes = [(x - 6, y - 6, x + 6, y + 6) for x, y, _, _ in labels]
    boxes += [(x - 3, y - 3, x + 3, y + 3) for x, y in along(line)]
    out = []
    for x, y, text, series in labels:
        if not text:
            continue
        width = LETTER * len(text)
        best = None
        sides = SIDES[1::2] + SIDES[::2] if series < 2 else SIDES  # ours go below first
        for dx, dy, anchor in sides:
            left = x + dx - {"start": 0, "middle": width / 2, "end": width}[anchor]
            box = (left, y + dy - 11, left + width, y + dy + 2)
            best = best or (dx, dy, anchor, box)
            inside = box[0] > LEFT and box[2] < WIDTH - 4
            if inside and not any(overlap(box, b) for b in boxes):
                best = dx, dy, anchor, box
                break
        dx, dy, anchor, box = best
        boxes.append(box)
        out.append((x + dx, y + dy, text, anchor, series))
    return out


class Axes:
    """Bits per weight from left to right, the logarithm of the KL divergence from the bottom up."""

    def __init__(self, points):
        bits = [p[0] for p in points]
        logs = [math.log10(p[1]) for p in points]
        span = max(logs) - min(logs)
        self.x0 = math.floor(min(bits) * 4) / 4
        self.x1 = math.ceil(max(bits) * 4) / 4
        self.y0 = min(logs) - 0.08 * span - 0.05
        self.y1 = max(logs) + 0.06 * span + 0.05

    def at(self, bits, kld):
        """(x, y) on the page."""
        x = LEFT + (bits - self.x0) / (self.x1 - self.x0) * PLOT_WIDTH
        y = TOP + (self.y1 - math.log10(kld)) / (self.y1 - self.y0) * PLOT_HEIGHT
        return x, y

    def drawn(self):
        """Grid, numbers, axes and their names."""
        out = []
        below = TOP + PLOT_HEIGHT
        for k in range(round((self.x1 - self.x0) * 4) + 1):
            bits = self.x0 + k / 4
            x, _ = self.at(bits, 1)
            out.append(f'<path class="grid" d="M{x:.1f} {TOP}V{below}"/>')
            if bits * 2 % 1 == 0:
                out.append(text_at(x, below + 20, f"{bits:g}", "soft", "middle"))
        for power in range(math.floor(self.y0), math.ceil(self.y1) + 1):
            for digit in (1, 2, 5):
                value = digit * 10.0**power
                _, y = self.at(self.x0, value)
                if TOP <= y <= below:
                    out.append(f'<path class="grid" d="M{LEFT} {y:.1f}h{PLOT_WIDTH}"/>')
                    out.append(text_at(LEFT - 8, y + 4, f"{value:g}", "soft", "end"))
        out.append(f'<path class="axis" d="M{LEFT} {TOP}V{below}H{LEFT + PLOT_WIDTH}"/>')
        name = "bits per weight of the decoder's linear layers, side-tables included"
        out.append(text_at(LEFT + PLOT_WIDTH / 2, HEIGHT - 14, name, "ink", "middle"))
        middle = TOP + PLOT_HEIGHT / 2
        out.append(
            f'<text class="ink" x="18" y="{middle}" text-anchor="middle" '
            f'transform="rotate(-90 18 {middle})">KL divergence, nats per token (log scale)</text>'
        )
        return out


def plot(curves, title):
    """SVG of at most four {series: [(bits, KL divergence, label)]}; the first is a line."""
    axes = Axes([p for series in curves.values() for p in series])
    size = f'viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}"'
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">',
        f"<title>{escape(title)}</title><style>{STYLE}</style>",
        f'<rect class="page" width="{WIDTH}" height="{HEIGHT}" rx="6"/>',
        text_at(LEFT, 28, title, "ink title"),
        *axes.drawn(),
    ]
    labels = []
    line = ()
    for series, points in enumerate(curves.values()):
        spots = [axes.at(bits, kld) for bits, kld, _ in points]
        line = line or spots
        if series == 0 and len(spots) > 1:
            path = "L".join(f"{x:.1f} {y:.1f}" for x, y in spots)
            out.append(f'<path class="line0" d="M{path}"/>')
        out += [marker(series, x, y) for x, y in spots]
        labels += [(x, y, p[2], series) for (x, y), p in zip(spots, points, strict=True)]
    for x, y, text, anchor, series in placed(labels, line):
        out.append(label(x, y, text, anchor, f"mark{series}"))
    for series, name in enumerate(curves):
        x = LEFT + PLOT_WIDTH - 220
        y = TOP + 20 + 22 * series
        out.append(marker(series, x, y - 4))
        out.append(label(x + 14, y, name, "start", "ink", "key"))
    return "\n".join([*out, "</svg>"]) + "\n"
