"""Zero-shot tasks: lines into requests, scores against transformers, mistakes in one line."""

import json

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation.perplexity import log_softmax
from gwq_export.evaluation.predictors import Predictor, runtime_logits
from gwq_export.evaluation.tasks import encode_pair, find, parse, run, score
from studies.oracle import logits, original_model
from tests.support.cli import assert_one_line, call
from tests.support.paths import DATA, REFERENCE

WORDS = (DATA / "eval.txt").read_text().split()
RNG = np.random.default_rng(8)


def words(n):
    at = RNG.integers(len(WORDS) - n)
    return " ".join(WORDS[at : at + n])


def choice_line():
    return {
        "query": words(12),
        "choices": [words(int(n)) for n in RNG.integers(1, 7, 4)],
        "gold": int(RNG.integers(4)),
    }


def schema_line():
    return {
        "context_options": [words(5), words(6)],
        "continuation": words(4),
        "gold": int(RNG.integers(2)),
    }


CHOICES, SCHEMA = [choice_line() for _ in range(12)], [schema_line() for _ in range(8)]


def lines(rows):
    return "\n".join(map(json.dumps, rows)) + "\n"


@pytest.fixture(scope="module")
def models(exported):
    return {type: gwq_export.load(exported(type=type)[0]) for type in ("f32", "gwq2")}


@pytest.fixture(scope="module")
def oracle():
    """(tokenizer, context, continuation) -> (log-likelihood, greedy ids, ids) of a continuation, by
    transformers on the whole text.
    """
    model = original_model(REFERENCE)

    def ask(tokenizer, context, continuation):
        head, whole = tokenizer.encode(context), tokenizer.encode(context + continuation)
        logp, tail = log_softmax(logits(model, whole[:-1]))[len(head) - 1 :], whole[len(head) :]
        return logp[np.arange(len(tail)), tail].sum(), logp.argmax(1).tolist(), tail

    return ask


@pytest.mark.parametrize(
    "name, rows, delimiter",
    [("hellaswag", CHOICES, ""), ("piqa", CHOICES, "\nAnswer:"), ("winogrande", SCHEMA, "")],
)
def test_answers_equal_transformers(models, oracle, name, rows, delimiter):
    right, right_norm = [], []
    for row in rows:
        contexts = row.get("context_options") or [row["query"]] * 4
        choices = row.get("choices") or [row["continuation"]] * 2
        scores = [
            oracle(models["f32"].tokenizer, c + delimiter, f" {x}")[0]
            for c, x in zip(contexts, choices, strict=True)
        ]
        right.append(np.argmax(scores) == row["gold"])
        right_norm.append(
            np.argmax([s / len(x) for s, x in zip(scores, choices, strict=True)]) == row["gold"]
        )
    # as in the file of piqa
    spaced = [{k: f"{v}\n" if k == "query" else v for k, v in row.items()} for row in rows]
    found = run(models["f32"], parse(lines(spaced), name), name)
    assert found["acc"] == np.mean(right)
    assert found["acc_error"] == pytest.approx(np.std(right) / len(rows) ** 0.5)
    assert found["n"] == len(rows) and found["task"] == name and found["cut"] == 0
    if rows is CHOICES:
        assert found["acc_norm"] == np.mean(right_norm)
        assert found["acc_norm_error"] == pytest.approx(np.std(right_norm) / len(rows) ** 0.5)
    else:
        assert "acc_norm" not in found


def test_greedy_continuations(models, oracle):
    """One item that greedy decoding gives, one that it does not."""
    model = models["f32"]
    context = "The history of the"
    said = model.generate(context, n=3)
    rows = [
        {"context": context, "continuation": said.strip()},
        {"context": context, "continuation": "zebra crossing"},
    ]
    found = run(model, parse(lines(rows), "lambada"), "lambada")
    scores = [oracle(model.tokenizer, context, f" {row['continuation']}") for row in rows]
    assert [greedy == tail for _, greedy, tail in scores] == [True, False]
    assert found["acc"] == 0.5
    assert found["ppl"] == pytest.approx(np.exp(-np.mean([s[0] for s in scores])), rel=1e-3)


def test_agreement_is_about_answers_not_about_being_right(models):
    """Predictors that prefer a token each: agreement from the answers that follow."""

    def likes(word):
        favourite = models["f32"].tokenizer.encode(word)[0]

        def some_logits(ids, keep, reuse=False):
            out = np.zeros((keep, 8192), np.float32)
            out[:, favourite] = 9
            return iter([out])

        return Predictor(2048, some_logits)

    items = parse(
        lines([{"query": "Say", "choices": ["the", "of", "and"], "gold": 0}] * 3 + [CHOICES[0]]),
        "x",
    )
    same = run(models["f32"], items, "x", runtime_logits(models["f32"]))
    assert same["agreement"] == 1
    assert same["agreement_error"] == 0
    assert same["acc_against"] == same["acc"]
    assert same["acc_norm_against"] == same["acc_norm"]
    answers = [
        run(models["f32"], items[:1], "x", likes(f" {w}"))["agreement"]
        for w in ("the", "of", "and")
    ]
    assert sorted(answers) == [0, 0, 1]
    both_wrong = run(
        models["f32"],
        [items[0].__class__(items[0].requests, 2, None)],
        "x",
        runtime_logits(models["f32"]),
    )
    assert both_wrong["agreement"] == 1
    greedy = parse(lines([{"context": "Say", "continuation": "zebra"}]), "x")
    assert run(models["f32"], greedy, "x", likes(" the"))["agreement"] in (0.0, 1.0)
    first = models["f32"].tokenizer.decode(
        [models["f32"].logits(models["f32"].tokenizer.encode("Say"))[-1].argmax()]
    )
    # both wrong, by the same token
    assert run(models["f32"], greedy, "x", likes(first))["agreement"] == 1
    assert run(models["f32"], greedy, "x", likes(" zebra"))["agreement"] == 0


def test_pairs_are_tokenized_together(models):
    tok = models["f32"].tokenizer
    for context, continuation in [
        ("The city ", "of London"),
        ("The city", " of"),
        ("Why:\n\n", "why"),
        ("", "word"),
        ("a", "b"),
    ]:
        head, tail = encode_pair(tok, context, continuation)
        # "ab" is one token
        start = [] if len(context) > 1 else [tok.eos if tok.bos is None else tok.bos]
        assert head and tail and head + tail == start + tok.encode(context + continuation)
    assert encode_pair(tok, "The city ", "of") == encode_pair(tok, "The city", " of")
    assert (
        len(encode_pair(tok, "<|im_end|>", " x", special=True)[0])
        == 1
        < len(encode_pair(tok, "<|im_end|>", " x")[0])
    )


def test_long_items_lose_their_beginning(exported, models, caplog):
    short = gwq_export.load(exported(type="f32")[0], ctx=24)
    item = {"query": words(60), "choices": ["one", "two"], "gold": 0}
    found = run(
        short, parse(lines([item, {"query": "Say", "choices": ["a", "b"], "gold": 0}]), "x"), "x"
    )
    assert found["cut"] == 1
    assert "1 of 2 items are longer than the model's context of 24" in caplog.text
    head, tail = encode_pair(short.tokenizer, item["query"], " one")
    kept = models["f32"].logits([*head, *tail][-25:-1])[-len(tail) :]
    assert score(runtime_logits(short), head, tail)[0] == pytest.approx(
        log_softmax(kept)[np.arange(len(tail)), tail].sum(), abs=1e-3
    )
    long = gwq_export.load(exported(type="f32")[0])
    sizes = []
    session = long.session
    long.session = lambda ctx: sizes.append(ctx) or session(ctx)
    assert run(long, parse(lines([item]), "x"), "x", runtime_logits(short))["cut"] == 1
    assert max(sizes) == 24  # both models see the same
    with pytest.raises(GwqError, match="continuation is empty"):
        encode_pair(short.tokenizer, "x ", "")
    with pytest.raises(GwqError, match="does not fit the model's context of 24"):
        run(short, parse(lines([{"query": "x", "choices": [words(60), "a"], "gold": 0}]), "x"), "x")


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "the file holds no line"),
        ("\n \n", "the file holds no line"),
        (lines(CHOICES[:1]) + "{\n", "line 2: it is not JSON"),
        (lines(CHOICES[:2]) + "\n[1]\n", "line 4: it is no JSON object"),
        ("[" * 100000, "line 1: it is not JSON"),
        (
            '{"question": "x", "answer": "y"}',
            "line 1: its keys fit no format: there are query, choices, gold; ",
        ),
        (lines([CHOICES[0] | {"gold": 4}]), "line 1: gold is 4, and there are 4 answers"),
        (lines([CHOICES[0] | {"gold": -1}]), "line 1: gold is not the index of an answer"),
        (lines([CHOICES[0] | {"gold": True}]), "line 1: gold is not the index of an answer"),
        (lines([CHOICES[0] | {"gold": "1"}]), "line 1: gold is not the index of an answer"),
        (
            lines([CHOICES[0] | {"choices": ["one"]}]),
            "line 1: choices is not a list of two or more texts",
        ),
        (
            lines([CHOICES[0] | {"choices": ["one", ""]}]),
            "line 1: choices is not a list of two or more texts",
        ),
        (lines([CHOICES[0] | {"query": None}]), "line 1: query is not a text"),
        (
            lines([SCHEMA[0] | {"context_options": "one"}]),
            "line 1: context_options is not a list of two or more texts",
        ),
        (lines([SCHEMA[0] | {"gold": 2}]), "line 1: gold is 2, and there are 2 answers"),
        (lines([{"context": "x", "continuation": 5}]), "line 1: continuation is not a text"),
        (
            lines([*CHOICES[:1], {"context": "x", "continuation": "y"}]),
            "line 2: it has another format than the first line",
        ),
    ],
)
def test_malformed_files(capsys, tmp_path, text, words):
    (tmp_path / "bad.jsonl").write_text(text)
    status, _, err = call(capsys, "eval", "none.gguf", "--task", tmp_path / "bad.jsonl")
    assert_one_line("eval", status, err, f"--task bad: {words}")


def test_mistakes_on_the_command_line(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.jsonl").write_text(lines(CHOICES))
    (tmp_path / "binary.jsonl").write_bytes(b"\xff\xfe")
    text = DATA / "eval.txt"
    for args, words in [
        ([], "give --text FILE for perplexity, --task NAME for a task, or both"),
        (["--task", "piqa"], "set GWQ_TASKS to the folder of tasks"),
        (["--task", "binary"], "cannot be read as UTF-8 text"),
        (["--task", "t", "--limit", "0"], "--limit 0: give at least 1"),
        (["--task", "t", "--limit", "-3"], "--limit -3: give at least 1"),
        (["--text", text, "--limit", "5"], "--limit goes with --task"),
        (["--task", "t", "--protocol", "window"], "--protocol goes with --text"),
        (["--task", "t", "--ctx", "64"], "--ctx goes with --text"),
        (["--task", "t"], "none.gguf does not exist"),
    ]:
        status, _, err = call(capsys, "eval", "none.gguf", *args)
        assert_one_line("eval", status, err, words)


def test_names_are_looked_up_in_a_folder(tmp_path, monkeypatch):
    (tmp_path / "piqa.jsonl").write_text("")
    (tmp_path / "own.txt").write_text("")
    monkeypatch.setenv("GWQ_TASKS", str(tmp_path))
    assert find("piqa") == tmp_path / "piqa.jsonl"
    assert find(str(tmp_path / "own.txt")) == tmp_path / "own.txt"


def test_command(exported, capsys, tmp_path):
    """Text and two tasks in one call; --limit takes the first items."""
    path, _ = exported(type="gwq2")
    (tmp_path / "t.txt").write_text(" ".join(WORDS[:400]))
    (tmp_path / "piqa.jsonl").write_text(lines(CHOICES))
    (tmp_path / "winogrande.jsonl").write_text(lines(SCHEMA))
    args = [
        "--text",
        tmp_path / "t.txt",
        "--ctx",
        64,
        "--task",
        tmp_path / "piqa.jsonl",
        "--task",
        tmp_path / "winogrande.jsonl",
    ]
    status, out, err = call(
        capsys, "eval", path, *args, "--limit", 5, "--against", REFERENCE, "--json"
    )
    result = json.loads(out.splitlines()[-1])
    assert status == 0, err
    assert result["ppl"] > 1 and result["kld_mean"] > 0 and result["bytes"] == path.stat().st_size
    assert [(t["task"], t["n"]) for t in result["tasks"]] == [("piqa", 5), ("winogrande", 5)]
    model, reference = (gwq_export.load(exported(type=t)[0]) for t in ("gwq2", "f32"))
    alone = run(model, parse(lines(CHOICES[:5]), "piqa"), "piqa", runtime_logits(reference))
    assert set(alone) == set(result["tasks"][0])
    for key, value in alone.items():
        assert result["tasks"][0][key] == (
            value if isinstance(value, str) else pytest.approx(value)
        ), key
    assert "piqa: accuracy" in out and "same answer as it" in out


def test_shared_task_files(shared, models):
    """Every file of llm-foundry that we have is understood."""
    files = sorted((shared / "tasks").glob("*.jsonl"))
    assert len(files) >= 9
    for file in files:
        items = parse(file.read_text(encoding="utf-8"), file.stem)
        assert len(items) >= 100 and run(models["gwq2"], items[:2], file.stem)["n"] == 2
