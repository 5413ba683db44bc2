"""One self-contained page about a file: its size, its outliers, how it was made and, when that was
measured, how good it is.

`page(data)` draws what there is: data is what `facts.gather` found in a file, joined with what an
export returned, or the sensitivities of `--report-only`. No scripts, nothing from the network;
charts in SVG, and every figure in a table too.
"""

from gwq_export.report.charts import bars, heat_map, profile, text
from gwq_export.report.facts import DENSEST, place
from gwq_export.version import __version__

CSS = """
:root { color-scheme: light dark; --page: #fff; --ink: #1f2328; --soft: #59636e; --line: #d1d9e0; --fill: #eef1f4; --accent: #0a5fc4 }
@media (prefers-color-scheme: dark) {
  :root { --page: #0d1117; --ink: #f0f6fc; --soft: #9198a1; --line: #3d444d; --fill: #1b212a; --accent: #74b4ff }
}
* { box-sizing: border-box }
body { margin: 0 auto; max-width: 62rem; padding: 1rem; background: var(--page); color: var(--ink); font: 1rem/1.5 system-ui, sans-serif }
h1, h2, h3 { line-height: 1.25; overflow-wrap: anywhere }
h1 { font-size: 1.5rem; margin: 0 } h2 { font-size: 1.2rem; margin: 2.5rem 0 .5rem }
p { max-width: 44rem; margin: .5rem 0 } .soft, figcaption { color: var(--soft); font-size: .875rem }
.grid { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)) }
.tiles { display: grid; gap: .5rem; grid-template-columns: repeat(auto-fit, minmax(8.5rem, 1fr)); margin: 1rem 0; padding: 0 }
.tiles div { background: var(--fill); border-radius: .4rem; padding: .6rem .8rem }
.tiles dt { color: var(--soft); font-size: .8rem } .tiles dd { margin: 0; font-size: 1.15rem; font-weight: 600; overflow-wrap: anywhere }
figure { margin: 0; min-width: 0 } figcaption { margin-bottom: .4rem } svg { display: block; width: 100%; height: auto }
svg text { fill: var(--ink); font: 12px system-ui, sans-serif } svg .s { font-size: 11px }
svg .a { fill: var(--accent) } svg .b { fill: var(--fill) } svg .l { stroke: var(--accent) } svg.f { width: 7rem; height: 1.2rem }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: .4rem }
.scroll:focus-visible { outline: 2px solid var(--accent) }
table { border-collapse: collapse; font-size: .85rem; width: 100% } caption { text-align: left; padding: .5rem .7rem; color: var(--soft) }
th, td { text-align: right; padding: .3rem .7rem; border-top: 1px solid var(--line); white-space: nowrap; font-weight: 400 }
thead th { border-top: 0; color: var(--soft) } th:first-child, td:first-child, .facts td { text-align: left }
.facts { table-layout: fixed }
.facts th, .facts td { white-space: normal; overflow-wrap: anywhere } summary { cursor: pointer; margin: 1rem 0 .5rem }
"""


def page(data):
    """The page as HTML text (well-formed XML too)."""
    title = f"{data.get('name') or 'A model'}: " + (
        "sensitivity report" if "sensitivities" in data else "quantization report"
    )
    parts = [
        section(data)
        for section in (
            _summary,
            _quality,
            _errors,
            _outliers,
            _size,
            _sensitivity,
            _facts,
            _tensors,
        )
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"/>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"/>'
        f"<title>{text(title)}</title><style>{CSS}</style></head><body>\n<h1>{text(title)}</h1>\n"
        + "\n".join(p for p in parts if p)
        + f'\n<p class="soft">Made by gwq-export {__version__}.</p>\n</body></html>\n'
    )


def _section(title, note, *body):
    return f"<section><h2>{text(title)}</h2><p>{text(note)}</p>{''.join(body)}</section>"


def _figure(caption, chart):
    return f"<figure><figcaption>{text(caption)}</figcaption>{chart}</figure>"


def _grid(*figures):
    return f'<div class="grid">{"".join(figures)}</div>'


def _table(caption, head, rows, kind=""):
    """A table that scrolls by itself; rows: cells that are HTML already, the first of each names
    the row.
    """
    heads = "".join(f'<th scope="col">{text(h)}</th>' for h in head)
    body = "".join(
        f'<tr><th scope="row">{first}</th>{"".join(f"<td>{c}</td>" for c in rest)}</tr>'
        for first, *rest in rows
    )
    head = f"<thead><tr>{heads}</tr></thead>" if head else ""
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{text(caption)}">'
        f'<table class="{kind}"><caption>{text(caption)}</caption>'
        f"{head}<tbody>{body}</tbody></table></div>"
    )


def _percent(share):
    """Three digits at most: 0.25%, 4.8%, 100%."""
    return (
        f"{share:.0%}"
        if share >= 0.0995 or not share
        else f"{share:.1%}"
        if share >= 0.00995
        else f"{share:.2%}"
    )


def _bytes(n):
    return (
        f"{n / 2**30:.2f} GiB"
        if n >= 2**30
        else f"{n / 2**20:.2f} MiB"
        if n >= 2**20
        else f"{n / 2**10:.1f} KiB"
    )


def _summary(data):
    tiles = {"Parameters": f"{data['params'] / 1e6:.2f} M", "Architecture": data["arch"]}
    if "bytes" in data:
        tiles |= {"File": _bytes(data["bytes"]), "Bits per weight": f"{data['bpw']:.3f}"}
    if "bpw_linear" in data:
        tiles["In the decoder's linears"] = f"{data['bpw_linear']:.3f}"
    if kept := sum(t["outliers"] for t in data.get("tensors", ())):
        tiles["FP16 outliers"] = f"{kept:,}"
    if quality := data.get("verify"):
        tiles |= {
            "KL divergence": f"{quality['kld_mean']:.4f}",
            "Same top token": f"{quality['top1_agreement']:.1%}",
        }
    cells = "".join(f"<div><dt>{text(k)}</dt><dd>{text(v)}</dd></div>" for k, v in tiles.items())
    return f'<dl class="tiles">{cells}</dl>'


def _quality(data):
    if "verify" not in data:
        return ""
    q, speed = data["verify"], data["verify"]["speed"]
    rows = {
        "Perplexity of the source": f"{q['ppl_against']:.4f}",
        "Perplexity of the file": f"{q['ppl']:.4f}",
        "Ratio": f"{q['ppl_ratio']:.4f} ± {q['ppl_ratio_error']:.4f}",
        "KL divergence, mean (nats per token)": f"{q['kld_mean']:.6f} ± {q['kld_error']:.6f}",
        "KL divergence, median": f"{q['kld_median']:.6f}",
        "KL divergence, 99 % quantile": f"{q['kld_p99']:.4f}",
        "Same top token": f"{q['top1_agreement']:.2%} ± {q['top1_error']:.2%}",
        "Held-out text": f"{q['windows']} windows of {q['ctx']}, {q['tokens']} tokens scored",
        f"Decoding ({speed['cpu']}, threads: {speed['threads']})": f"{speed['decode_tps']:.1f} tokens per second",
        "Prompt processing": f"{speed['prompt_tps']:.1f} tokens per second",
    }
    note = "The file as the runtime runs it against the source in float32, on text that calibration did not see. Speed is one quick run."
    return _section(
        "Quality",
        note,
        _table("Quality and speed", (), [(text(k), text(v)) for k, v in rows.items()], "facts"),
    )


def _by_block(label, caption, tensors, value, show, log=False):
    """A figure with a heat map of value(tensor), or "" when no tensor of a block has one."""
    cells = {
        (t["block"], t["matrix"]): value(t)
        for t in tensors
        if t["block"] is not None and value(t) is not None
    }
    if not cells:
        return ""
    rows, present = sorted({b for b, _ in cells}), {m for _, m in cells}
    columns = list(dict.fromkeys(t["matrix"] for t in tensors if t["matrix"] in present))
    return _figure(caption, heat_map(label, rows, columns, cells, show, log))


def _errors(data):
    found = {t["name"]: t for t in data.get("verify", {}).get("tensors", ())}
    losses = {row["name"]: row["loss"] for row in data.get("plan", ())}
    if not found and not losses:
        return ""
    tensors = [
        t | found.get(t["name"], {}) | {"loss": losses.get(t["name"])}
        for t in data["tensors"]
        if len(t["shape"]) > 1
    ]
    error, figures = (lambda t: t.get("output_error")), []
    figures.append(
        _by_block(
            "Output error",
            "Error of each matrix's outputs, of their size",
            tensors,
            error,
            _percent,
        )
    )
    measured = sorted((t for t in tensors if error(t) is not None), key=error, reverse=True)[:10]
    if measured:
        figures.append(
            _figure(
                "The largest",
                bars(
                    "Largest output errors",
                    [(t["name"], error(t), _percent(error(t))) for t in measured],
                ),
            )
        )
    figures.append(
        _by_block(
            "Predicted loss",
            "Loss that each matrix adds, as predicted (nats per token)",
            tensors,
            lambda t: t["loss"],
            lambda v: f"{v:.0e}",
            log=True,
        )
    )
    note = "Root mean square of the error over root mean square of the value, for the inputs that the held-out text gives the matrix."
    return _section(
        "Error by tensor",
        note if found else "Predicted by the sensitivities that chose the types.",
        _grid(*figures),
    )


def _outliers(data):
    matrices = [t for t in data.get("tensors", ()) if len(t["shape"]) > 1]
    tensors = [t for t in matrices if t["outliers"]]
    if not tensors:
        return ""
    figures = [
        _by_block(
            "Outliers",
            "Share of a matrix's weights kept in FP16",
            matrices,
            lambda t: t["outliers"] / t["params"],
            _percent,
        )
    ]
    for name in ("row", "column"):
        caption = f"Share of a matrix's outliers in its densest {DENSEST:.0%} of {name}s"
        figures.append(
            _by_block(
                f"Concentration by {name}",
                caption,
                matrices,
                lambda t, name=name: t.get(f"{name}_share"),
                _percent,
            )
        )
    rows = [
        (
            text(t["name"]),
            f"{t['outliers']:,}",
            *(
                cell
                for name in ("row", "column")
                for cell in (
                    profile(f"outliers along the {name}s of {t['name']}", t[f"{name}s"]),
                    _percent(t[f"{name}_share"]),
                )
            ),
        )
        for t in tensors
    ]
    table = _table(
        "Outliers of each matrix",
        (
            "tensor",
            "outliers",
            "along its rows",
            f"densest {DENSEST:.0%}",
            "along its columns",
            f"densest {DENSEST:.0%}",
        ),
        rows,
    )
    note = (
        "If outliers were spread evenly, the densest 1 % would hold little more than 1 % of them. Columns are inputs of a matrix, rows its "
        "outputs, in the file's order (llama.cpp's order of Q and K)."
    )
    return _section(
        "Where outliers are",
        note,
        _grid(*figures),
        f"<details><summary>Every matrix</summary>{table}</details>",
    )


def _size(data):
    if "tensors" not in data:
        return ""
    types = {}
    for t in data["tensors"]:
        types[t["type"]] = types.get(t["type"], 0) + t["bytes"]
    whole = sum(types.values())
    largest = sorted(data["tensors"], key=lambda t: -t["bytes"])[:10]

    def rows(pairs):
        return [(name, n, f"{_bytes(n)}, {_percent(n / whole)}") for name, n in pairs]

    return _section(
        "Size by tensor",
        "Side-tables count with their matrix.",
        _grid(
            _figure(
                "By type",
                bars("Bytes by type", rows(sorted(types.items(), key=lambda item: -item[1]))),
            ),
            _figure(
                "The largest tensors",
                bars("Largest tensors", rows((t["name"], t["bytes"]) for t in largest)),
            ),
            _by_block(
                "Bits per weight",
                "Bits per weight of each matrix",
                [t for t in data["tensors"] if len(t["shape"]) > 1],
                lambda t: 8 * t["bytes"] / t["params"],
                lambda v: f"{v:.2f}",
            ),
        ),
    )


def _sensitivity(data):
    if "sensitivities" not in data:
        return ""
    tensors, types = [], {}
    for row in data["sensitivities"]:
        best = {}
        for c in row["choices"]:
            best[c["type"]] = min(best.get(c["type"], c), c, key=lambda c: c["loss"])
            types[c["type"]] = None
        tensors.append({"name": row["name"], "best": best} | place(row["name"]))
    figures = [
        _by_block(
            f"Loss as {type}",
            f"Loss that each matrix adds as {type}, with the outliers that suit it best (nats per token)",
            tensors,
            lambda t, type=type: t["best"][type]["loss"] if type in t["best"] else None,
            lambda v: f"{v:.0e}",
            log=True,
        )
        for type in types
    ]
    rows = [
        (
            text(t["name"]),
            *(f"{t['best'][type]['loss']:.3e}" if type in t["best"] else "" for type in types),
        )
        for t in tensors
    ]
    note = "To second order, each matrix by itself: what storing it so would add to the loss on the calibration text."
    return _section(
        "Sensitivity",
        note,
        _grid(*figures),
        _table("Predicted loss, nats per token", ("tensor", *types), rows),
    )


def _facts(data):
    rows = dict(data.get("keys", {}))
    names = {
        "calibration_tokens": "calibration tokens",
        "calibration_sha256": "calibration hash",
        "calibration_loss": "calibration loss",
        "calibration_ppl": "perplexity of the calibration text",
        "predicted_ppl": "the same after quantization, predicted",
        "outlier_fraction": "outliers, of the quantized weights",
        "seconds": "export took (seconds)",
    }
    rows |= {name: data[key] for key, name in names.items() if key in data}
    if "peak_rss_bytes" in data:
        rows["peak memory of the export"] = _bytes(data["peak_rss_bytes"])
    shown = [(text(k), text(f"{v:.6g}" if isinstance(v, float) else v)) for k, v in rows.items()]
    return (
        _section(
            "How it was made",
            "From the file's keys, and from the export.",
            _table("Facts", (), shown, "facts"),
        )
        if shown
        else ""
    )


def _tensors(data):
    if "tensors" not in data:
        return ""
    errors = {t["name"]: t for t in data.get("verify", {}).get("tensors", ())}

    def cell(t, key):
        value = errors.get(t["name"], {}).get(key)
        return "" if value is None else f"{value:.3%}"

    head = ["tensor", "type", "shape", "bytes", "bits per weight", "outliers"] + (
        ["weight error", "output error"] if errors else []
    )
    rows = []
    for t in data["tensors"]:
        size = f"{t['bytes']:,}", f"{8 * t['bytes'] / t['params']:.3f}", f"{t['outliers']:,}"
        measured = (cell(t, "weight_error"), cell(t, "output_error")) if errors else ()
        rows.append(
            (text(t["name"]), text(t["type"]), " × ".join(map(str, t["shape"])), *size, *measured)
        )
    return _section("All tensors", "Every figure of the charts.", _table("All tensors", head, rows))
