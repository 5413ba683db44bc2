"""A model whose decoder linears are quantized by any recipes, and how its predictions change."""

import copy
import json
import sys
import tempfile
import time
from dataclasses import astuple, dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

import gwq_export
from gwq_export.calibration.gradients import gradients
from gwq_export.calibration.sources import read_calibration
from gwq_export.calibration.text import draw_calibration
from gwq_export.evaluation.perplexity import PROTOCOLS, mean_error, score, windows
from gwq_export.evaluation.predictors import module_logits, runtime_logits
from gwq_export.format.decoding import dequantize
from gwq_export.format.types import TYPES, tensor_type
from gwq_export.hf.source import Source
from gwq_export.native.library import Pool
from gwq_export.pipeline.plan import plan_tensors
from gwq_export.pipeline.presets import FAST, PRESETS
from gwq_export.quantization.allocate import allocate, fill
from gwq_export.quantization.curvature import Curvatures
from gwq_export.quantization.loss_model import OFFERED, Sample, choices
from gwq_export.quantization.quantize import quantize
from gwq_export.quantization.recipe import Recipe
from gwq_export.tokenizer.from_hf import to_metadata
from gwq_export.tokenizer.tokenizer import Tokenizer
from studies import ggml
from studies.oracle import checkpoint_weight, dequantized_model, original_model

STATISTICS = ("abs", "hessian", "rows", "square")  # of calibrate, whatever a rule may ask for


@dataclass(frozen=True)
class Row:
    """bpw: of the decoder's linears with side-tables.

    kld: mean KL divergence, nats per token. seconds: of encoding.
    """

    bpw: float
    kld: float
    ppl_ratio: float
    seconds: float


@dataclass(frozen=True)
class Mean:
    """Rows of several calibration seeds as one; error: standard error of kld, None for one seed."""

    bpw: float
    kld: float
    error: float | None
    ppl_ratio: float
    seconds: float


def mean(rows):
    """The mean of rows, with the shortest time."""
    klds = [r.kld for r in rows]
    return Mean(
        bpw=float(np.mean([r.bpw for r in rows])),
        kld=float(np.mean(klds)),
        error=float(np.std(klds, ddof=1)) / len(rows) ** 0.5 if len(rows) > 1 else None,
        ppl_ratio=float(np.mean([r.ppl_ratio for r in rows])),
        seconds=min(r.seconds for r in rows),
    )


class Lab:
    """One model.

    count: evaluation windows. seeds: calibration seeds, each draws its own `samples` of the
    calibration text. saved: None or a JSON-lines file of rows that were measured before, by the
    same code; new ones are added to it.
    """

    def __init__(self, folder, calib, text, ctx=256, samples=64, count=16, seeds=3, saved=None):
        self.name = Path(folder).name
        self.calib = calib
        self.ctx = ctx
        self.samples = samples
        self.seeds = range(seeds)
        self.source = Source(folder)
        self.pool = Pool(1)
        if self.source.arch.experts:
            raise gwq_export.GwqError(
                f"{folder}: the ablation knows no mixtures of experts: give a dense model"
            )
        self.tokenizer = Tokenizer(to_metadata(self.source.folder, self.source.vocab))
        rows = windows(self.tokenizer, Path(text).read_text(encoding="utf-8"), ctx)
        self.rows = rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)]
        self.scored = PROTOCOLS["llama.cpp"].scored(ctx)
        self.original = original_model(folder)
        self.model = copy.deepcopy(self.original)
        self._statistics = {}
        self._samples = {}
        self._choices = {}
        self._importance = {}
        before = [self._log_probabilities(self.original, row) for row in self.rows]
        self.reference = [(logp, logp.exp()) for logp, _ in before]
        self.nll = torch.cat([nll for _, nll in before]).mean().item()
        self.saved = Path(saved) if saved else None
        lines = self.saved.read_text().splitlines() if saved and self.saved.exists() else []
        self.known = {key: Row(*values) for key, *values in map(json.loads, lines)}
        self.linear = [e for e in plan_tensors(self.source, Recipe(TYPES["gwq4"])) if e.linear]
        self.weights = sum(e.weights for e in self.linear)

    # --- recipes: a list of the plan's entries ---

    def uniform(self, recipe, seed):
        return [e for e in plan_tensors(self.source, replace(recipe, seed=seed)) if e.linear]

    def allocated(self, bpw, seed, fractions):
        """The default preset's recipes under a budget for the decoder's linears.

        None when the budget is too small.
        """
        entries = self.uniform(default("gwq4"), seed)
        budget = int(bpw * self.weights / 8)
        sizes = [partial(_size, e) for e in entries]
        key = seed, fractions
        if key not in self._choices:
            types = {name: fractions if TYPES[name].bits else (0.0,) for name in OFFERED}
            self._choices[key] = [
                choices(self._sample(e, seed), e.recipe, size, types)
                for e, size in zip(entries, sizes, strict=True)
            ]
        picked = allocate(self._choices[key], budget)
        if picked is None:
            return None
        recipes = fill(self._choices[key], picked, sizes, budget)
        return [replace(e, recipe=r) for e, r in zip(entries, recipes, strict=True)]

    def _sample(self, entry, seed):
        key = entry.name, seed
        if key not in self._samples:
            self._samples[key] = Sample(
                *self.statistics(seed)[entry.name],
                entry.recipe.saliency,
                entry.recipe.seed,
                self.pool.ptr,
            )
        return self._samples[key]

    # --- what they do ---

    def tokens(self, seed, samples=None):
        text = read_calibration(self.tokenizer, [self.calib] if self.calib else [])
        return draw_calibration(text, samples or self.samples, self.ctx, seed)

    def statistics(self, seed, samples=None):
        """{GGUF name: (weight, calibration statistics)}, rows in the file's order."""
        key = seed, samples or self.samples
        if key not in self._statistics:
            print(
                f"{self.name}: calibrating, seed {seed}, {key[1]} x {self.ctx} tokens",
                file=sys.stderr,
            )
            calibration = self.tokens(*key)
            entries = {e.sources[0]: e for e in self.linear}
            curvatures = Curvatures(calibration.tokens.numel())
            out = {}
            for name, weight, found in gradients(self.source, calibration, STATISTICS):
                entry = entries[name]
                found = entry.arrange.statistics(curvatures.put(found))
                # computed here, so that no row's encoding is charged with it
                found["hessian"].factor  # noqa: B018
                out[entry.name] = entry.arrange.weight(weight), found
            self._statistics[key] = out
        return self._statistics[key]

    def measure(self, entries, seed, samples=None):
        """Row of the model with its linears as `entries` say.

        samples: for the gradients (None: all).
        """
        setting = self.name, self.ctx, self.samples, len(self.rows), seed, samples
        known = repr([setting, *((e.name, e.recipe) for e in entries)])
        key = sha256(known.encode()).hexdigest()[:24]
        if key not in self.known:
            statistics = self.statistics(seed, samples)
            seconds = 0.0
            for e in entries:
                start = time.perf_counter()
                parts = quantize(*statistics[e.name], e.recipe, self.pool.ptr)
                seconds += time.perf_counter() - start
                side = (parts[1], parts[2].view(np.int32)) if len(parts) == 3 else None
                self._put(e, dequantize(e.recipe.type, parts[0], e.shape, side))
            bits = 8 * sum(e.stored_bytes for e in entries) / self.weights
            self._keep(key, Row(bits, *self._quality(self.model), seconds))
        return self.known[key]

    def measure_ggml(self, name, seed=0):
        """Row of the ggml type `name` with the importance vector of the same calibration.

        None where its blocks do not fit.
        """
        if not all(ggml.fits(name, e.shape[1]) for e in self.linear):
            return None
        key = f"{self.name} {self.ctx} {self.samples} {len(self.rows)} {seed} {name}"
        if key not in self.known:
            if not self._importance:
                self._importance = ggml.importance(self.original, self.tokens(seed).tokens)
            start = time.perf_counter()
            for e in self.linear:
                source = e.sources[0]
                weight = self.original.get_parameter(source).detach().numpy()
                decoded = ggml.fake_quantize(name, weight, self._importance[source])
                decoded = torch.from_numpy(np.ascontiguousarray(decoded))
                self.model.get_parameter(source).data = decoded
            bits = 8 * sum(ggml.nbytes(name, *e.shape) for e in self.linear) / self.weights
            self._keep(key, Row(bits, *self._quality(self.model), time.perf_counter() - start))
        return self.known[key]

    def measure_tuned(self, type, seed):
        """Row of a file of the default preset that was tuned.

        seconds: those of the same row without, and the tuning's.
        """
        untuned = self.measure(self.uniform(default(type), seed), seed)
        key = f"{self.name} {self.ctx} {self.samples} {len(self.rows)} {seed} {type} tuned"
        if key not in self.known:
            times = []

            def note(phase, done, total):
                if phase in ("write", "tune"):
                    times.append(time.perf_counter())

            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "model.gguf"
                gwq_export.export(
                    self.source.folder,
                    path,
                    type=type,
                    calib=self.calib,
                    samples=self.samples,
                    ctx=self.ctx,
                    seed=seed,
                    fast=True,
                    progress=note,
                )
                model = dequantized_model(self.source.folder, path, ends=False)
            seconds = untuned.seconds + times[-1] - times[0]
            self._keep(key, Row(untuned.bpw, *self._quality(model), seconds))
        return self.known[key]

    def over_seeds(self, make, samples=None):
        """Mean over the calibration seeds of the recipes make(seed)."""
        return mean([self.measure(make(seed), seed, samples) for seed in self.seeds])

    def of_file(self, **options):
        """KL divergences of a real file by three ways to compute with it.

        These are its decoded weights in transformers, the runtime with embedding and output head in
        F32, and the runtime with those of an export.
        """
        reference = module_logits(self.original)
        out = []
        with tempfile.TemporaryDirectory() as folder:
            for ends in (("token_embd=f32", "^output.weight=f32"), ()):
                path = Path(folder) / "model.gguf"
                ends = ends[: 1 if self.source.tied else 2]
                gwq_export.export(
                    self.source.folder,
                    path,
                    calib=self.calib,
                    ctx=self.ctx,
                    tensor_type=ends,
                    fast=True,
                    **{"samples": self.samples} | options,
                )
                models = [runtime_logits(gwq_export.load(path, threads=1))]
                if ends:
                    decoded = dequantized_model(self.source.folder, path, ends=False)
                    models.insert(0, module_logits(decoded))
                out += [score(m, self.rows, self.scored, reference)["kld_mean"] for m in models]
        return out

    def _keep(self, key, row):
        self.known[key] = row
        if self.saved:
            with self.saved.open("a") as f:
                f.write(json.dumps([key, *astuple(row)]) + "\n")

    def _put(self, entry, values):
        source = entry.sources[0]
        blocks = [self.source.block(i) for i in range(self.source.layers)]
        rows = {hf: row for block in blocks for row, hf in block.items()}
        values = checkpoint_weight(values, self.source, rows[source])
        self.model.get_parameter(source).data = torch.from_numpy(values)

    @torch.no_grad()
    def _log_probabilities(self, model, row):
        """Of the last predictions of a window: log probabilities (scored, vocab) and losses."""
        ids = torch.as_tensor(row.astype(np.int64))
        hidden = model.base_model(input_ids=ids[None, :-1], use_cache=False)[0][0, -self.scored :]
        logp = torch.log_softmax(model.get_output_embeddings()(hidden), -1)
        return logp, -logp.gather(1, ids[-self.scored :, None])[:, 0]

    def _quality(self, model):
        """(KL divergence, perplexity ratio) of a model."""
        klds = []
        nlls = []
        for row, (logp, p) in zip(self.rows, self.reference, strict=True):
            logq, nll = self._log_probabilities(model, row)
            klds.append((p * (logp - logq)).sum(-1).double().numpy())
            nlls.append(nll.double().numpy())
        kld, _ = mean_error(np.concatenate(klds))
        return float(kld), float(np.exp(np.concatenate(nlls).mean() - self.nll))


def _size(entry, recipe):
    return replace(entry, recipe=recipe).stored_bytes


def default(type, **changes):
    """The default preset's recipe with `--fast`: `studies/drift` is about what that leaves out."""
    return Recipe(tensor_type(type), **PRESETS["default"].recipe | FAST | changes)


def paper(type, **changes):
    """The recipe of preset paper."""
    return Recipe(tensor_type(type), **PRESETS["paper"].recipe | changes)
