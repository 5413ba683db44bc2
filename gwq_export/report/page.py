"""One self-contained page about a file: its size, its outliers, how it was made and how good it is.

No scripts, nothing from the network; charts in SVG, and every figure in a table too.
"""

from __future__ import annotations

from typing import Any

from gwq_export.report import html, matrices
from gwq_export.version import __version__

Data = dict[str, Any]


def page(data: Data) -> str:
    """The page as HTML text (well-formed XML too); it shows what there is.

    data: what `facts.gather` found in a file, joined with what an export returned, or the
    sensitivities of `--report-only`.
    """
    kind = "sensitivity report" if "sensitivities" in data else "quantization report"
    sections = (
        _summary(data),
        _quality(data),
        matrices.errors(data),
        matrices.outliers(data),
        matrices.sizes(data),
        matrices.sensitivity(data),
        _facts(data),
        _tensors(data),
    )
    title = f"{data.get('name') or 'A model'}: {kind}"
    return html.document(title, sections, f"Made by gwq-export {__version__}.")


def _summary(data: Data) -> str:
    facts: dict[str, object] = {
        "Parameters": f"{data['params'] / 1e6:.2f} M",
        "Architecture": data["arch"],
    }
    if "bytes" in data:
        facts["File"] = html.size(data["bytes"])
        facts["Bits per weight"] = f"{data['bpw']:.3f}"
    if "bpw_linear" in data:
        facts["In the decoder's linears"] = f"{data['bpw_linear']:.3f}"
    if outliers := sum(t["outliers"] for t in data.get("tensors", ())):
        facts["FP16 outliers"] = f"{outliers:,}"
    if quality := data.get("verify"):
        facts["KL divergence"] = f"{quality['kld_mean']:.4f}"
        facts["Same top token"] = f"{quality['top1_agreement']:.1%}"
    return html.tiles(facts)


def _quality(data: Data) -> str:
    if "verify" not in data:
        return ""
    q = data["verify"]
    speed = q["speed"]
    decoding = f"Decoding ({speed['cpu']}, threads: {speed['threads']})"
    rows: dict[str, object] = {
        "Perplexity of the source": f"{q['ppl_against']:.4f}",
        "Perplexity of the file": f"{q['ppl']:.4f}",
        "Ratio": f"{q['ppl_ratio']:.4f} ± {q['ppl_ratio_error']:.4f}",
        "KL divergence, mean (nats per token)": f"{q['kld_mean']:.6f} ± {q['kld_error']:.6f}",
        "KL divergence, median": f"{q['kld_median']:.6f}",
        "KL divergence, 99 % quantile": f"{q['kld_p99']:.4f}",
        "Same top token": f"{q['top1_agreement']:.2%} ± {q['top1_error']:.2%}",
        "Held-out text": f"{q['windows']} windows of {q['ctx']}, {q['tokens']} tokens scored",
        decoding: f"{speed['decode_tps']:.1f} tokens per second",
        "Prompt processing": f"{speed['prompt_tps']:.1f} tokens per second",
    }
    note = (
        "The file as the runtime runs it against the source in float32, "
        "on text that calibration did not see. Speed is one quick run."
    )
    return html.section("Quality", note, html.facts("Quality and speed", rows))


def _facts(data: Data) -> str:
    """The file's keys, and facts of its export."""
    names = {
        "calibration_tokens": "calibration tokens",
        "calibration_sha256": "calibration hash",
        "calibration_loss": "calibration loss",
        "calibration_ppl": "perplexity of the calibration text",
        "predicted_ppl": "the same after quantization, predicted",
        "outlier_fraction": "outliers, of the quantized weights",
        "seconds": "export took (seconds)",
    }
    facts = dict(data.get("keys", {}))
    facts |= {name: data[key] for key, name in names.items() if key in data}
    if "peak_rss_bytes" in data:
        facts["peak memory of the export"] = html.size(data["peak_rss_bytes"])
    if not facts:
        return ""
    rows = {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in facts.items()}
    note = "From the file's keys, and from the export."
    return html.section("How it was made", note, html.facts("Facts", rows))


def _tensors(data: Data) -> str:
    """Every tensor, with its errors where they were measured."""
    if "tensors" not in data:
        return ""
    errors = {t["name"]: t for t in data.get("verify", {}).get("tensors", ())}

    def error(t: Data, key: str) -> str:
        value = errors.get(t["name"], {}).get(key)
        return "" if value is None else f"{value:.3%}"

    head = ["tensor", "type", "shape", "bytes", "bits per weight", "outliers"]
    if errors:
        head += ["weight error", "output error"]
    rows = []
    for t in data["tensors"]:
        row = [
            html.text(t["name"]),
            html.text(t["type"]),
            " × ".join(map(str, t["shape"])),
            f"{t['bytes']:,}",
            f"{8 * t['bytes'] / t['params']:.3f}",
            f"{t['outliers']:,}",
        ]
        if errors:
            row += [error(t, "weight_error"), error(t, "output_error")]
        rows.append(row)
    table = html.table("All tensors", head, rows)
    return html.section("All tensors", "Every figure of the charts.", table)
