"""How far a GGUF file of any types is from the float reference of its model.

Every file is decoded to float32 and computed by our runtime with float32 activations and KV cache:
files differ by their weights alone, and no engine's rounding of activations counts for or against
them. The reference's logits are computed once and lie on the disk.
"""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from gwq_export import GwqError
from gwq_export.evaluation import tasks
from gwq_export.evaluation.perplexity import PROTOCOLS, summary, token_scores, windows
from gwq_export.evaluation.predictors import Predictor, batches, runtime_logits
from gwq_export.format.foreign import foreign_type
from gwq_export.format.reader import Reader
from gwq_export.format.types import TYPES
from gwq_export.runtime.model import Model
from studies.real_reference import decoded

PROTOCOL = PROTOCOLS["llama.cpp"]
RESAMPLINGS = 1000  # of the windows, for the errors of what is no mean


def float_model(path, threads=None):
    """The Model of a GGUF file with all its tensors as float32 in memory."""
    reader = Reader(path, foreign_type)
    tensors = {}
    for tensor in reader.tensors.values():
        if tensor.companion:
            continue
        data = decoded(tensor).reshape(-1).view(np.uint8)
        tensors[tensor.name] = replace(
            tensor, type=TYPES["f32"], data=data, nbytes=data.nbytes, outliers=None, outlier_count=0
        )
    reader.tensors = tensors
    return Model(reader, threads=threads, cache="f32")


def chosen(rows, count):
    """`count` of the windows, evenly spread; all of them for 0."""
    if not 0 < count < len(rows):
        return rows
    return rows[np.linspace(0, len(rows) - 1, count).round().astype(int)]


def resampled(statistic, count, seed=0):
    """The standard error over `count` windows of a figure that need not be a mean.

    statistic: takes indexes of windows. It is computed on RESAMPLINGS draws of as many windows as
    there are, with replacement; their spread is a little small for few windows, and mended.
    """
    draws = np.random.default_rng(seed).integers(0, count, (RESAMPLINGS, count))
    spread = np.std([statistic(draw) for draw in draws])
    return float(spread * np.sqrt(count / (count - 1)))


def figures(scores):
    """What a row tells of an array of `token_scores`; JSON-ready.

    `summary`, the error of kld_p999, and the means of the single windows, with which two rows can
    be compared window by window.
    """
    out = summary(scores)
    if len(scores) > 1:
        nll, _, kld, same = scores
        out["kld_p999_error"] = resampled(lambda draw: np.quantile(kld[draw], 0.999), len(kld))
        out["by_window"] = {
            "nll": nll.mean(1).tolist(),
            "kld": kld.mean(1).tolist(),
            "top1": same.mean(1).tolist(),
        }
    return out


class Judge:
    """Scores files against one reference on windows of one text, and on tasks.

    reference: GGUF file. folder: where what the reference says is kept, of this text, ctx and
    count. text: a string. ctx: tokens of a window. count: of windows, evenly spread over the text;
    0: all. questions: [(name of a task, its Items)]. Raises GwqError.
    """

    def __init__(self, reference, folder, text, ctx, count, questions=(), threads=None):
        self.path = Path(reference)
        self.folder = Path(folder)
        self.threads = threads
        self.questions = questions
        with Reader(reference, foreign_type) as reader:
            model = Model(reader, threads=1)
            if ctx > model.config.ctx:
                raise GwqError(f"--ctx {ctx}: the model's context is {model.config.ctx}")
            self.tokenizer = model.tokenizer
        self.rows = chosen(windows(self.tokenizer, text, ctx), count)
        if len(self.rows) < 2:
            raise GwqError("one window has no error: give more by --windows, or a longer text")
        self.scored = PROTOCOL.scored(ctx)
        self._reference = None  # its Model, where it has to be computed

    def reference(self):
        """The row of the reference itself; computes and keeps its logits and answers."""
        return figures(token_scores(self._known(), self.rows, self.scored)) | {
            "tasks": [
                {"task": name, "n": len(items)} | tasks.shares(self._answers(name, items))
                for name, items in self.questions
            ]
        }

    def score(self, path):
        """The row of a GGUF file of the same model."""
        known = self._known()
        answers = {name: self._answers(name, items) for name, items in self.questions}
        self._reference = None
        mine = runtime_logits(float_model(path, self.threads))
        found = figures(token_scores(mine, self.rows, self.scored, known))
        found["tasks"] = []
        for name, items in self.questions:
            given = [self._answer(mine, item) for item in items]
            share, error = tasks.agreement(given, answers[name])
            found["tasks"].append(
                {"task": name, "n": len(items)}
                | tasks.shares(given)
                | {"agreement": share, "agreement_error": error}
            )
        return found

    def _answer(self, predictor, item):
        pairs = [tasks.encode_pair(self.tokenizer, *request) for request in item.requests]
        return tasks.answer(predictor, item, pairs)

    def _predictor(self):
        if self._reference is None:
            self._reference = float_model(self.path, self.threads)
        return runtime_logits(self._reference)

    def _known(self):
        """The Predictor of the reference, on `rows` alone, from the disk."""
        path = self.folder / "logits.npy"
        if not path.exists():
            self._write(path)
        logits = np.load(path, mmap_mode="r")
        index = {row[:-1].tobytes(): i for i, row in enumerate(self.rows)}

        def known(ids, keep, reuse=False):
            of_window = logits[index[np.asarray(ids, self.rows.dtype).tobytes()]]
            at = 0
            for _, _, kept in batches(0, len(ids), keep):
                if kept:
                    yield np.asarray(of_window[at : at + kept])
                at += kept

        return Predictor(self.rows.shape[1], known)

    def _write(self, path):
        """Write float32 (windows, scored, vocab); the file gets its name when it is whole."""
        self.folder.mkdir(parents=True, exist_ok=True)
        predictor = self._predictor()
        part = path.with_suffix(".part")
        out = None
        for i, row in enumerate(self.rows):
            logits = np.concatenate(list(predictor.logits(row[:-1], self.scored)))
            if out is None:
                shape = (len(self.rows), *logits.shape)
                out = np.lib.format.open_memmap(part, "w+", np.float32, shape)
            out[i] = logits
        out.flush()
        del out
        part.rename(path)

    def _answers(self, name, items):
        """The reference's, from the disk."""
        path = self.folder / f"{name}-{len(items)}.json"
        if not path.exists():
            predictor = self._predictor()
            answers = [self._answer(predictor, item) for item in items]
            part = path.with_suffix(".part")
            part.write_text(json.dumps(answers))
            part.rename(path)
        return json.loads(path.read_text())
