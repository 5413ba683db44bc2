"""Zero-shot tasks: which of several answers a model finds likeliest.

Tasks are files of JSON lines in the formats of llm-foundry:

    {"query", "choices", "gold"}
        multiple choice: piqa, arc, boolq, openbook_qa, copa, hellaswag
    {"context_options", "continuation", "gold"}
        which context makes the continuation likeliest: winogrande
    {"context", "continuation"}
        does greedy decoding give exactly the continuation: lambada

Context and continuation are cut and scored as in lm-evaluation-harness: tokenized together,
log-likelihood of the continuation's tokens, `acc_norm` by its characters. Prompts are
llm-foundry's, without examples.
"""

import json
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.evaluation.perplexity import log_softmax, mean_error
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.runtime.model import Model
from gwq_export.tokenizer.tokenizer import Tokenizer

log = logging.getLogger("gwq_export")
FOLDER = "GWQ_TASKS"  # environment variable: the folder in which names of tasks are looked up
# what stands between context and continuation, by the name of the task; a space elsewhere
DELIMITERS = dict.fromkeys(
    ("piqa", "arc_easy", "arc_challenge", "boolq", "mmlu", "logi_qa"), "\nAnswer: "
)


@dataclass(frozen=True)
class Item:
    """One question and its possible answers."""

    requests: list[tuple[str, str]]  # (context, continuation) of every answer
    # index of the right answer; None: the one continuation must be what greedy decoding gives
    gold: int | None
    lengths: list[int] | None  # characters of each answer, where they differ between answers


def _choices(line: dict[str, Any], delimiter: str) -> Item:
    context = line["query"].rstrip() + delimiter
    requests = [(context, choice) for choice in line["choices"]]
    return Item(requests, line["gold"], [len(choice) for choice in line["choices"]])


def _schema(line: dict[str, Any], delimiter: str) -> Item:
    contexts = [context.rstrip() + delimiter for context in line["context_options"]]
    requests = [(context, line["continuation"]) for context in contexts]
    return Item(requests, line["gold"], None)


def _greedy(line: dict[str, Any], delimiter: str) -> Item:
    return Item([(line["context"].rstrip() + delimiter, line["continuation"])], None, None)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and all(map(_is_text, value))


def _is_index(value: Any) -> bool:
    return type(value) is int and value >= 0


VALUES = {  # key -> (test of its value, what the value must be)
    "query": (_is_text, "a text"),
    "context": (_is_text, "a text"),
    "continuation": (_is_text, "a text"),
    "choices": (_is_texts, "a list of two or more texts"),
    "context_options": (_is_texts, "a list of two or more texts"),
    "gold": (_is_index, "the index of an answer, from 0"),
}
FORMATS = {  # keys of a line -> function that makes an Item of the line and the delimiter
    ("query", "choices", "gold"): _choices,
    ("context_options", "continuation", "gold"): _schema,
    ("context", "continuation"): _greedy,
}


def find(name: str) -> Path:
    """Path of a task: a file as it is, or NAME.jsonl in the folder $GWQ_TASKS. Raises GwqError."""
    if Path(name).is_file():
        return Path(name)
    path = Path(os.environ.get(FOLDER, "."), f"{name}.jsonl")
    if not path.is_file():
        raise GwqError(
            f"--task {name}: there is no such file, and no {path}: "
            f"give a .jsonl file, or set {FOLDER} to the folder of tasks"
        )
    return path


def _item(line: Any, delimiter: str) -> Item:
    """The Item of a parsed line. Raises GwqError with what is wrong about it."""
    if not isinstance(line, dict):
        raise GwqError("it is no JSON object")
    keys = next((keys for keys in FORMATS if set(keys) <= set(line)), None)
    if keys is None:
        raise GwqError(
            f"its keys fit no format: there are {'; '.join(', '.join(keys) for keys in FORMATS)}"
        )
    for key in keys:
        fits, description = VALUES[key]
        if not fits(line[key]):
            raise GwqError(f"{key} is not {description}")
    item = FORMATS[keys](line, delimiter)
    if item.gold is not None and item.gold >= len(item.requests):
        raise GwqError(f"gold is {item.gold}, and there are {len(item.requests)} answers")
    return item


def parse(text: str, name: str, limit: int | None = None) -> list[Item]:
    """The Items of the first `limit` lines of a JSON-lines text (None: of all).

    name: of the task, chooses the delimiter. Raises GwqError with the line's number.
    """
    if limit is not None and limit < 1:
        raise GwqError(f"--limit {limit}: give at least 1")
    items: list[Item] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        try:
            items.append(_item(json.loads(line), DELIMITERS.get(name, " ")))
        except (GwqError, ValueError, RecursionError) as e:
            reason = str(e) if isinstance(e, GwqError) else "it is not JSON"
            raise GwqError(f"--task {name}: line {number}: {reason}") from None
        if (items[-1].gold is None) != (items[0].gold is None):
            raise GwqError(
                f"--task {name}: line {number}: it has another format than the first line"
            )
        if len(items) == limit:
            break
    if not items:
        raise GwqError(
            f"--task {name}: the file holds no line: give one with a JSON object per line"
        )
    return items


def encode_pair(
    tokenizer: Tokenizer, context: str, continuation: str, special: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids (head, tail) of a context and its continuation, tokenized together.

    Neither is empty: a context without tokens of its own becomes BOS, or else EOS. Spaces at the
    end of the context count to the continuation. special: read special tokens in the texts as such.
    Raises GwqError.
    """
    if not continuation:
        raise GwqError("a continuation is empty: give some text to score")
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    head = tokenizer.encode(bare, special=special)
    whole = tokenizer.encode(bare + continuation, special=special)
    cut = min(len(head), len(whole) - 1)  # where both end in one token, that one is scored
    if cut:
        return whole[:cut], whole[cut:]
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    if start is None:
        raise GwqError(
            "the context is empty, and the tokenizer has no token that starts a text: "
            "give a context"
        )
    return [start], whole


def score(predictor: Predictor, head: list[int], tail: list[int]) -> tuple[float, np.ndarray]:
    """Log-likelihood in nats of the ids `tail` after the ids `head`.

    Returns (log-likelihood, the likeliest id at each place of the tail (len(tail),)). What is
    longer than the model's context loses its beginning. Raises GwqError for a tail longer than
    that.
    """
    ids = [*head, *tail][-predictor.ctx - 1 :]
    if len(tail) >= len(ids):
        raise GwqError(
            f"a continuation of {len(tail)} tokens does not fit "
            f"the model's context of {predictor.ctx}: shorten it"
        )
    logp = log_softmax(np.concatenate(list(predictor.logits(ids[:-1], len(tail), reuse=True))))
    if not np.isfinite(logp).all():
        raise GwqError("the model's logits are not finite: the file is damaged, or the model was")
    return float(logp[np.arange(len(tail)), tail].sum()), logp.argmax(-1)


def answer(
    predictor: Predictor, item: Item, pairs: Sequence[tuple[list[int], list[int]]]
) -> dict[str, Any]:
    """{"answer", "right", "right_norm", "loglikelihood"} of one item; which, depends on its format.

    "answer": the index of the likeliest; of a greedy task the tokens up to the first wrong one.
    pairs: (head, tail) ids of its requests.
    """
    scores = [score(predictor, head, tail) for head, tail in pairs]
    loglikelihood = np.array([s[0] for s in scores])
    if item.gold is None:  # the answer is the greedy continuation, as far as it is known
        _, greedy = scores[0]
        wrong = np.flatnonzero(greedy != np.array(pairs[0][1]))
        known = greedy[: wrong[0] + 1] if len(wrong) else greedy
        return {
            "answer": known.tolist(),
            "right": not len(wrong),
            "loglikelihood": float(loglikelihood[0]),
        }
    likeliest = int(loglikelihood.argmax())
    out = {"answer": likeliest, "right": likeliest == item.gold}
    if item.lengths:
        out["right_norm"] = int((loglikelihood / item.lengths).argmax()) == item.gold
    return out


def agreement(answers: list[dict[str, Any]], others: list[dict[str, Any]]) -> tuple[float, float]:
    """(share of items that two models answer alike, its standard error), from dicts of `answer`."""
    same = [a["answer"] == b["answer"] for a, b in zip(answers, others, strict=True)]
    share, error = mean_error(np.array(same, np.float64))
    return float(share), float(error)


def shares(answers: list[dict[str, Any]]) -> dict[str, float]:
    """Accuracies with their standard errors over items, from the dicts of `answer`."""
    out = {}
    for key, name in (("right", "acc"), ("right_norm", "acc_norm")):
        if key in answers[0]:
            share, error = mean_error(np.array([a[key] for a in answers], np.float64))
            out[name] = float(share)
            out[f"{name}_error"] = float(error)
    if "loglikelihood" in answers[0]:
        out["ppl"] = math.exp(min(-np.mean([a["loglikelihood"] for a in answers]), 700))
    return out


def run(
    model: Model,
    items: list[Item],
    name: str,
    against: Predictor | None = None,
    progress: Callable[[str, int, int], None] = lambda phase, done, total: None,
) -> dict[str, Any]:
    """Score `items` (from `parse`) of the task `name`.

    Returns {"task", "n", "cut", "acc", "acc_error"}; cut: how many items were longer than the
    context. Multiple choice adds acc_norm and acc_norm_error, a greedy task ppl (perplexity of a
    whole continuation). against: Predictor of a reference model; adds the same with _against, and
    agreement with agreement_error: the share of items to which both give the same answer (for a
    greedy task: the same tokens up to the first wrong one). Raises GwqError.
    """
    mine = runtime_logits(model)
    # both models see the same
    shortest = min(mine.ctx, against.ctx if against else mine.ctx)
    mine = replace(mine, ctx=shortest)
    against = against and replace(against, ctx=shortest)
    answers = []
    others = []
    cut = 0
    for i, item in enumerate(items):
        pairs = [encode_pair(model.tokenizer, *request) for request in item.requests]
        cut += any(len(head) + len(tail) > shortest + 1 for head, tail in pairs)
        answers.append(answer(mine, item, pairs))
        if against:
            others.append(answer(against, item, pairs))
        progress(name, i + 1, len(items))
    if cut:
        log.warning(
            "--task %s: %d of %d items are longer than the model's context of %d "
            "and lost their beginning",
            name,
            cut,
            len(items),
            shortest,
        )
    out: dict[str, Any] = {"task": name, "n": len(items), "cut": cut} | shares(answers)
    if against:
        out["agreement"], out["agreement_error"] = agreement(answers, others)
        out |= {f"{key}_against": value for key, value in shares(others).items()}
    return out
