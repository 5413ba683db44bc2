"""One self-contained page about a run of gwq-bench --suite edge: figures, plots, conditions.

No scripts, nothing from the network; charts in SVG, and every figure in a table too.
"""

from __future__ import annotations

import statistics
from typing import Any

from gwq_export.report import html, measurements

Data = dict[str, Any]
BUSY = 0.5  # programs that ran before, per CPU, from which on that is said


def page(found: Data) -> str:
    """The page as HTML text (well-formed XML too). found: a document, see edge.schema.json."""
    sections = (
        _summary(found),
        _device(found),
        measurements.speed(found),
        measurements.threads(found),
        measurements.depth(found),
        measurements.starts(found),
        measurements.sustained(found),
        measurements.energy(found),
        _sensors(found),
        _steps(found),
    )
    name = found["model"]["name"] or found["model"]["file"]
    board = found["device"]["board"] or next(iter(found["device"]["cores"]), "a device")
    footer = f"Measured {found['created']} by gwq-export {found['software']['gwq_export']}."
    return html.document(f"{name} on {board}", sections, footer)


def _medians(found: Data, cold: bool) -> float | None:
    """Nanoseconds from the start of the process to the first token."""
    times = [s["start_ns"] for s in found["starts"] if s["cold"] == cold and s["start_ns"]]
    return statistics.median(times) if times else None


def _summary(found: Data) -> str:
    own = [r for r in found["rows"] if r["times_as_fast"] is None and r["step"] == "speed"]
    decoded = next((r for r in own if r["n_gen"]), None)
    prompts = [r for r in own if r["n_prompt"]]
    facts: dict[str, object] = {}
    if decoded:
        facts["Decoding"] = measurements.number(decoded["median_ts"], "tokens/s")
        facts["Of the memory roof"] = html.percent(decoded["of_roof"])
    if prompts:
        longest = prompts[-1]
        name = f"Prompt of {longest['n_prompt']}"
        facts[name] = measurements.number(longest["median_ts"], "tokens/s")
    for name, cold in (("First token, cold", True), ("First token, warm", False)):
        if (ns := _medians(found, cold)) is not None:
            facts[name] = measurements.milliseconds(ns)
    if decoded:
        facts["Peak memory"] = html.size(decoded["peak_bytes"])
        joules = decoded["joules_per_token"]
        facts["Energy of a token"] = measurements.number(joules, "J") if joules else "not measured"
        if decoded["localscore"]:
            facts["LocalScore's formula"] = measurements.number(decoded["localscore"])
    if (sustained := found["sustained"]) and sustained["kept"] is not None:
        facts["Speed left at the end"] = html.percent(sustained["kept"])
    notes = [] if found["complete"] else ["The run was not completed: see the steps at the end."]
    device = found["device"]
    if (load := device["load_average"] or 0) > BUSY * device["cpus"]:
        notes.append(f"Other programs ran before it (load {load:g} on {device['cpus']} CPUs).")
    return "".join(f"<p>{html.text(note)}</p>" for note in notes) + html.tiles(facts)


def _device(found: Data) -> str:
    device, model, software = found["device"], found["model"], found["software"]
    clusters = [
        f"{len(c['cpus'])}"
        + (f" of capacity {c['capacity']:.0f}" if c["capacity"] else "")
        + (f" up to {c['max_mhz']:.0f} MHz" if c["max_mhz"] else "")
        for c in device["clusters"]
    ]
    quota = device["cpu_quota"]
    memory = device["memory_bytes"]
    rows: dict[str, object] = {
        "Board": device["board"] or "not told",
        "Cores": ", ".join(f"{n} x {name}" for name, n in device["cores"].items()) or "not told",
        "GPU that computes": device["gpu"] or "none",
        "Clusters": "; ".join(clusters),
        "CPUs": f"{device['usable_cpus']} of {device['cpus']} may be used",
        "CPU quota": "none" if quota is None else f"{quota:g} CPUs",
        "Threads by default": device["default_threads"],
        "Load before": "not told" if device["load_average"] is None else device["load_average"],
        "Memory": html.size(memory) if memory else "not told",
        "Governor": device["governor"] or "not told",
        "Power mode": device["power_mode"] or "none",
        "System": f"{device['os']}, Linux {device['kernel']}, {device['architecture']}",
        "Model": f"{model['file']}: {model['type']}, {model['params'] / 1e6:.1f} M parameters, "
        f"{html.size(model['bytes'])}",
        "Software": f"gwq-export {software['gwq_export']} ({software['isa']}), "
        + ("without Python" if software["python"] == "none" else f"Python {software['python']}"),
    }
    return html.section("Device and model", "", html.facts("What ran where", rows))


def _sensors(found: Data) -> str:
    missing = {m["sensor"]: m["why"] for m in found["sensors"]["missing"]}
    if not missing:
        return ""
    table = html.facts("Sensors that are missing", missing)
    return html.section("Not measured", "What this device does not tell, and why.", table)


def _steps(found: Data) -> str:
    rows = [
        [
            html.text(s["title"]),
            html.text(s["state"]),
            "" if s["seconds"] is None else f"{s['seconds']:.0f} s",
            html.text(s["why"] or ""),
        ]
        for s in found["steps"]
    ]
    head = ["step", "state", "took", "why"]
    return html.section("Steps", "", html.table("Steps of the run", head, rows))
