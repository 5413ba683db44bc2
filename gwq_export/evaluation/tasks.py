"""Zero-shot tasks: which of several answers a model finds likeliest, from JSON lines in the formats
of llm-foundry.

    {"query", "choices", "gold"}                          multiple choice: piqa, arc, boolq,
    openbook_qa, copa, hellaswag {"context_options", "continuation", "gold"}           which context
    makes the continuation likeliest: winogrande {"context", "continuation"}
    does greedy decoding give exactly the continuation: lambada

Context and continuation are cut and scored like in lm-evaluation-harness: tokenized together,
log-likelihood of the continuation's tokens, `acc_norm` by its characters. Prompts are
llm-foundry's, without examples.
"""

import json
import logging
import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from gwq_export.errors import GwqError
from gwq_export.evaluation.perplexity import log_softmax, mean_error
from gwq_export.evaluation.predictors import runtime_logits

log = logging.getLogger("gwq_export")
FOLDER = "GWQ_TASKS"  # environment variable: the folder in which names of tasks are looked up
# what stands between context and continuation, by the name of the task; a space elsewhere
DELIMITERS = dict.fromkeys(
    ("piqa", "arc_easy", "arc_challenge", "boolq", "mmlu", "logi_qa"), "\nAnswer: "
)


@dataclass(frozen=True)
class Item:
    """One question: (context, continuation) of every possible answer."""

    requests: list
    gold: (
        int | None
    )  # index of the right answer; None: the one continuation must be what greedy decoding gives
    lengths: list | None  # characters of each answer, where they differ between answers


def _choices(line, delimiter):
    context = line["query"].rstrip() + delimiter
    return Item(
        [(context, c) for c in line["choices"]], line["gold"], [len(c) for c in line["choices"]]
    )


def _schema(line, delimiter):
    return Item(
        [(c.rstrip() + delimiter, line["continuation"]) for c in line["context_options"]],
        line["gold"],
        None,
    )


def _greedy(line, delimiter):
    return Item([(line["context"].rstrip() + delimiter, line["continuation"])], None, None)


def _is_text(value):
    return isinstance(value, str) and value.strip() != ""


def _is_texts(value):
    return isinstance(value, list) and len(value) > 1 and all(map(_is_text, value))


def _is_index(value):
    return type(value) is int and value >= 0


IS = {  # what the value of a key must be
    "query": (_is_text, "a text"),
    "context": (_is_text, "a text"),
    "continuation": (_is_text, "a text"),
    "choices": (_is_texts, "a list of two or more texts"),
    "context_options": (_is_texts, "a list of two or more texts"),
    "gold": (_is_index, "the index of an answer, from 0"),
}
FORMATS = {  # keys of a line -> (line, delimiter) -> Item
    ("query", "choices", "gold"): _choices,
    ("context_options", "continuation", "gold"): _schema,
    ("context", "continuation"): _greedy,
}


def find(name):
    """Path of a task: a file as it is, or NAME.jsonl in the folder $GWQ_TASKS. Raises GwqError."""
    named = Path(os.environ.get(FOLDER, "."), f"{name}.jsonl")
    if not Path(name).is_file() and not named.is_file():
        raise GwqError(
            f"--task {name}: there is no such file, and no {named}: give a .jsonl file, or set {FOLDER} to the folder of tasks"
        )
    return Path(name) if Path(name).is_file() else named


def _item(line, delimiter):
    """The Item of a parsed line. Raises GwqError with what is wrong about it."""
    if not isinstance(line, dict):
        raise GwqError("it is no JSON object")
    keys = next((keys for keys in FORMATS if set(keys) <= set(line)), None)
    if keys is None:
        raise GwqError(
            f"its keys fit no format: there are {'; '.join(', '.join(keys) for keys in FORMATS)}"
        )
    for key in keys:
        fits, what = IS[key]
        if not fits(line[key]):
            raise GwqError(f"{key} is not {what}")
    item = FORMATS[keys](line, delimiter)
    if item.gold is not None and item.gold >= len(item.requests):
        raise GwqError(f"gold is {item.gold}, and there are {len(item.requests)} answers")
    return item


def parse(text, name, limit=None):
    """[Item] of the first `limit` lines of a JSON-lines text;

    `name` chooses the delimiter. Raises GwqError with the line's number.
    """
    if limit is not None and limit < 1:
        raise GwqError(f"--limit {limit}: give at least 1")
    items = []
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


def encode_pair(tokenizer, context, continuation, special=False):
    """Token ids (head, tail) of a context and its continuation, neither empty, tokenized together.

    special: read special tokens in the texts as such. Spaces at the end of the context count to the
    continuation. A context without tokens of its own becomes BOS, or else EOS. Raises GwqError.
    """
    if not continuation:
        raise GwqError("a continuation is empty: give some text to score")
    bare = context.rstrip()
    continuation = context[len(bare) :] + continuation
    head, whole = (tokenizer.encode(text, special=special) for text in (bare, bare + continuation))
    cut = min(len(head), len(whole) - 1)  # where both end in one token, that one is scored
    if cut:
        return whole[:cut], whole[cut:]
    start = tokenizer.eos if tokenizer.bos is None else tokenizer.bos
    if start is None:
        raise GwqError(
            "the context is empty, and the tokenizer has no token that starts a text: give a context"
        )
    return [start], whole


def score(predictor, head, tail):
    """(log-likelihood of ids `tail` after `head` in nats, the likeliest id at each of their places
    (len(tail),)).

    What is longer than the model's context loses its beginning. Raises GwqError for a tail longer
    than that.
    """
    ids = [*head, *tail][-predictor.ctx - 1 :]
    if len(tail) >= len(ids):
        raise GwqError(
            f"a continuation of {len(tail)} tokens does not fit the model's context of {predictor.ctx}: shorten it"
        )
    logp = log_softmax(np.concatenate(list(predictor.logits(ids[:-1], len(tail), reuse=True))))
    if not np.isfinite(logp).all():
        raise GwqError("the model's logits are not finite: the file is damaged, or the model was")
    return float(logp[np.arange(len(tail)), tail].sum()), logp.argmax(-1)


def _answer(predictor, item, pairs):
    """{"answer", "right", "right_norm", "loglikelihood"} of one item; pairs: (head, tail) ids of
    its requests.
    """
    scores = [score(predictor, head, tail) for head, tail in pairs]
    loglikelihood = np.array([s[0] for s in scores])
    if item.gold is None:  # the answer is the greedy continuation, as far as it is known
        said, tail = scores[0][1], np.array(pairs[0][1])
        wrong = np.flatnonzero(said != tail)
        answer = tuple(said[: wrong[0] + 1] if len(wrong) else said)
        return {"answer": answer, "right": not len(wrong), "loglikelihood": loglikelihood[0]}
    answer = int(loglikelihood.argmax())
    out = {"answer": answer, "right": answer == item.gold}
    if item.lengths:
        out["right_norm"] = int((loglikelihood / item.lengths).argmax()) == item.gold
    return out


def _shares(answers):
    """Accuracies with their standard errors over items, from `_answer`s."""
    out = {}
    for key, name in (("right", "acc"), ("right_norm", "acc_norm")):
        if key in answers[0]:
            out[name], out[f"{name}_error"] = map(
                float, mean_error(np.array([a[key] for a in answers], np.float64))
            )
    if "loglikelihood" in answers[0]:
        out["ppl"] = math.exp(min(-np.mean([a["loglikelihood"] for a in answers]), 700))
    return out


def run(model, items, name, against=None, progress=lambda phase, done, total: None):
    """Score `items` (from `parse`); returns {"task", "n", "acc", "acc_error"}, and "cut" items that
    were longer than the context.

    Multiple choice adds acc_norm and acc_norm_error, a greedy task ppl (perplexity of a whole
    continuation). against: Predictor of a reference model; adds the same with _against, and
    agreement with agreement_error: the share of items to which both give the same answer (for a
    greedy task: the same tokens up to the first wrong one). Raises GwqError.
    """
    mine, answers, others, cut = runtime_logits(model), [], [], 0
    shortest = min(mine.ctx, against.ctx if against else mine.ctx)
    mine, against = (
        replace(mine, ctx=shortest),
        against and replace(against, ctx=shortest),
    )  # both see the same
    for i, item in enumerate(items):
        pairs = [encode_pair(model.tokenizer, *request) for request in item.requests]
        cut += any(len(head) + len(tail) > shortest + 1 for head, tail in pairs)
        answers.append(_answer(mine, item, pairs))
        if against:
            others.append(_answer(against, item, pairs))
        progress(name, i + 1, len(items))
    if cut:
        log.warning(
            "--task %s: %d of %d items are longer than the model's context of %d and lost their beginning",
            name,
            cut,
            len(items),
            shortest,
        )
    out = {"task": name, "n": len(items), "cut": cut} | _shares(answers)
    if against:
        same = np.array(
            [a["answer"] == b["answer"] for a, b in zip(answers, others, strict=True)], np.float64
        )
        out["agreement"], out["agreement_error"] = map(float, mean_error(same))
        out |= {f"{key}_against": value for key, value in _shares(others).items()}
    return out
