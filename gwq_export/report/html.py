"""The HTML that a report is made of: style, document, sections, figures, tables, numbers as text.

Everything is well-formed XML too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root {
  color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e;
  --line: #d1d9e0; --fill: #eef1f4; --accent: #0a5fc4;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #0d1117; --ink: #f0f6fc; --soft: #9198a1;
    --line: #3d444d; --fill: #1b212a; --accent: #74b4ff;
  }
}
* { box-sizing: border-box }
body {
  margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--page); color: var(--ink);
  font: 1rem/1.5 system-ui, sans-serif;
}
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 }
h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { max-width: 44rem; margin: .5rem 0 }
.soft, figcaption { color: var(--soft); font-size: .875rem }
.grid {
  display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr))
}
.tiles {
  display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr));
  margin: 1rem 0; padding: 0;
}
.tiles div { background: var(--fill); border-radius: .4rem; padding: .6rem .8rem }
.tiles dt { color: var(--soft); font-size: .8rem }
.tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 }
figcaption { margin-bottom: .4rem }
svg { display: block; width: 100%; height: auto }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif }
svg .s { font-size: 11px }
svg .a { fill: var(--accent) }
svg .b { fill: var(--fill) }
svg .l { stroke: var(--accent) }
svg .g { stroke: var(--line) }
svg.f { width: 7rem; height: 1.2rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem }
.scroll:focus-visible { outline: 2px solid var(--accent) }
table { border-collapse: collapse; font-size: .85rem; width: 100% }
caption { text-align: left; padding: .5rem .7rem; color: var(--soft) }
th, td {
  text-align: right; padding: .3rem .7rem; border-top: 1px solid var(--line);
  white-space: nowrap; font-weight: 400;
}
thead th { border-top: 0; color: var(--soft) }
th:first-child, td:first-child, .facts td { text-align: left }
.facts { table-layout: fixed }
.facts th, .facts td { white-space: normal; overflow-wrap: anywhere }
summary { cursor: pointer; margin: 1rem 0 .5rem }
"""


def text(value: object) -> str:
    """A text for HTML and XML: escaped, and without the characters that XML forbids."""
    clean = "".join(c if c.isprintable() else "\ufffd" for c in str(value))
    return escape(clean, quote=True)


def document(title: str, sections: Iterable[str], footer: str) -> str:
    """A whole page. title and footer are plain text, sections are HTML; empty ones are left out."""
    shown = [section for section in sections if section]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{CSS}</style></head><body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(shown)
        + f'\n<p class="soft">{text(footer)}</p>\n</body></html>\n'
    )


def section(title: str, note: str, *body: str) -> str:
    """A section; title and note are plain text, body is HTML."""
    return f"<section><h2>{text(title)}</h2><p>{text(note)}</p>{''.join(body)}</section>"


def figure(caption: str, chart: str) -> str:
    """A chart (HTML) under its caption (plain text)."""
    return f"<figure><figcaption>{text(caption)}</figcaption>{chart}</figure>"


def grid(*figures: str) -> str:
    """Figures beside each other where the screen is wide enough."""
    return f'<div class="grid">{"".join(figures)}</div>'


def tiles(facts: dict[str, object]) -> str:
    """{name: value}, as plain text, in large print."""
    cells = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in facts.items())
    return f'<dl class="tiles">{cells}</dl>'


def table(caption: str, head: Sequence[str], rows: Iterable[Sequence[str]], kind: str = "") -> str:
    """A table that scrolls by itself.

    caption and head are plain text; the cells of rows are HTML, and the first of each names the
    row. kind: a CSS class.
    """
    head_row = ""
    if head:
        cells = "".join(f'<th scope="col">{text(h)}</th>' for h in head)
        head_row = f"<thead><tr>{cells}</tr></thead>"
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{cell}</td>" for cell in rest)}</tr>'
        for first, *rest in rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{kind}"><caption>{text(caption)}</caption>'
        f"{head_row}<tbody>{body}</tbody></table></div>"
    )


def facts(caption: str, rows: dict[str, object]) -> str:
    """A table of {name: value}, as plain text, without a head."""
    return table(caption, (), [(text(k), text(v)) for k, v in rows.items()], "facts")


def percent(share: float) -> str:
    """A share in three digits at most: 0.25%, 4.8%, 100%."""
    if share >= 0.0995 or not share:
        return f"{share:.0%}"
    if share >= 0.00995:
        return f"{share:.1%}"
    return f"{share:.2%}"


def size(n: int) -> str:
    """Bytes with a binary unit."""
    if n >= 2**30:
        return f"{n / 2**30:.2f} GiB"
    if n >= 2**20:
        return f"{n / 2**20:.2f} MiB"
    return f"{n / 2**10:.1f} KiB"
