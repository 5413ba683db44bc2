"""The timed runs of one engine with one file in one test, and the row that they make."""

import statistics
from datetime import datetime, timezone
from typing import Any

import numpy as np

from gwq_export.bench.contender import Contender
from gwq_export.bench.files import decode_bytes, model_type, params
from gwq_export.bench.roof import Beside
from gwq_export.machine import cpu_name
from gwq_export.sensors.throttling import between
from gwq_export.sensors.watch import Watch, Window


def localscore(prompt_tps: float, gen_tps: float, first_token_s: float) -> float:
    """LocalScore's formula: 10 times the geometric mean of tokens/s of the prompt, tokens/s of
    decoding, and 1000 / time to the first token in ms.
    """
    return 10 * float(np.cbrt(prompt_tps * gen_tps / first_token_s))


def quartiles(values: list[float]) -> list[float]:
    """[median, lower quartile, upper quartile]"""
    return [float(q) for q in np.quantile(values, [0.5, 0.25, 0.75])]


class Runs:
    """The runs of one contender in one test.

    prompt: tokens of a prompt; gen: tokens decoded, if it is 0. depth: tokens in the context before
    them. cold: of `starts.start`.
    """

    def __init__(
        self, c: Contender, prompt: int, gen: int, depth: int, cold: dict[str, Any]
    ) -> None:
        self.c = c
        self.prompt = prompt
        self.gen = gen if not prompt else 0
        self.depth = depth
        self.cold = cold
        self.tokens = prompt or gen
        self.beside = Beside(decode_bytes(c.reader) * (self.gen or 1))
        self.windows: list[Window] = []

    def run(self) -> float:
        """Run the test once; returns seconds."""
        seconds = self.c.run(self.prompt, self.gen, self.depth)
        return seconds[1] if self.gen else seconds[0]

    def watched(self, watch: Watch) -> float:
        """As `run`, with the energy that it takes."""
        with watch.window(self.windows):
            return self.run()

    @property
    def median(self) -> float:
        """Seconds of a run."""
        return statistics.median(self.beside.seconds)

    def row(
        self,
        first: "Runs",
        prompt: "Runs | None",
        setting: dict[str, Any],
        watch: Watch,
        states: tuple[dict[str, Any], dict[str, Any]],
    ) -> dict[str, Any]:
        """The row of the runs so far.

        first: those of the file that others are compared with. prompt: of the same engine with a
        prompt, for LocalScore. setting: what is the same for all: "n_threads", "cpus", "gpu_info"
        ("" for none), "power_mode". states: of the device before and after the runs.
        """
        reader = self.c.reader
        facts = self.c.facts
        samples = self.beside.seconds
        speed = [self.tokens / s for s in samples]
        ratio: list[float | None] = [None] * 3
        if first is not self:
            pairs = zip(samples, first.beside.seconds, strict=True)
            ratio = [*quartiles([here / there for here, there in pairs])]
        read = self.beside.row()
        score = None
        if self.gen and prompt is not None:
            first_token = prompt.median
            score = localscore(prompt.tokens / first_token, self.gen / self.median, first_token)
        gpu = setting["gpu_info"]
        return {
            "build_commit": facts["version"],
            "build_number": 0,
            "cpu_info": cpu_name(),
            "gpu_info": gpu,
            "backends": facts["backend"],
            "model_filename": reader.path,
            "model_type": model_type(reader),
            "model_size": reader.nbytes,
            "model_n_params": params(reader),
            "n_batch": facts["batch"][0],
            "n_ubatch": facts["batch"][1],
            "n_threads": setting["n_threads"],
            "cpus": setting["cpus"],
            "type_k": facts["cache_type"],
            "type_v": facts["cache_type"],
            "n_gpu_layers": facts["gpu_layers"],
            "n_prompt": self.prompt,
            "n_gen": self.gen,
            "n_depth": self.depth,
            "test_time": datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "avg_ns": int(statistics.mean(samples) * 1e9),
            "stddev_ns": int(statistics.pstdev(samples) * 1e9),
            "avg_ts": statistics.mean(speed),
            "stddev_ts": statistics.pstdev(speed),
            "median_ts": statistics.median(speed),
            "samples_ns": [int(s * 1e9) for s in samples],
            "samples_ts": speed,
            "bytes_per_token": decode_bytes(reader) if self.gen else None,
            "gbps": read["gbps"] if self.gen else None,
            "roof_gbps": read["roof_gbps"],
            "of_roof": read["of_roof"] if self.gen else None,
            "load_ns": facts["load_ns"],
            "first_token_ns": facts["first_token_ns"],
            "ready_ns": facts["ready_ns"],
            "start_ns": facts["start_ns"],
            "start_cold_ns": self.cold["start_ns"],
            "why_not_cold": self.cold["why_not"],
            "peak_bytes": facts["peak_bytes"],
            "localscore": score,
            **_conditions(states, setting["power_mode"]),
            **_energy(watch.energy(self.windows), self.median / self.tokens),
            "times_as_fast": ratio[0],
            "times_as_fast_q1": ratio[1],
            "times_as_fast_q3": ratio[2],
        }


def _conditions(
    states: tuple[dict[str, Any], dict[str, Any]], power_mode: str | None
) -> dict[str, Any]:
    before, after = states
    throttled, why = between(before["throttling"], after["throttling"])
    return {
        "governor": after["governor"],
        "power_mode": power_mode,
        "mhz_before": before["mhz"],
        "mhz_after": after["mhz"],
        "celsius_before": before["celsius"],
        "celsius_after": after["celsius"],
        "throttled": throttled,
        "throttled_why": why,
    }


def per_token(energy: dict[str, Any], seconds: float) -> dict[str, Any]:
    """{"joules_per_token", "tokens_per_joule"}, idle power subtracted; None where that is unknown.

    energy: of `Watch.energy`; seconds: of a token.
    """
    joules = None
    if energy["idle_watts"] is not None:
        joules = (energy["watts"] - energy["idle_watts"]) * seconds
    return {
        "joules_per_token": joules,
        "tokens_per_joule": 1 / joules if joules and joules > 0 else None,
    }


def _energy(found: list[dict[str, Any]], seconds: float) -> dict[str, Any]:
    """The energy of a token, by the first of the meters. seconds: of a token."""
    energy = [e | per_token(e, seconds) for e in found]
    names = ("joules_per_token", "tokens_per_joule", "watts", "idle_watts")
    first = energy[0] if energy else {}
    return {"meter": first.get("meter"), **{n: first.get(n) for n in names}, "energy": energy}
