"""lm-evaluation-harness's own requests, against the scores of whole texts."""

import subprocess
import sys

import numpy as np
import pytest

import gwq_export
from gwq_export.evaluation.perplexity import log_softmax
from tests.support.paths import DATA

TEXT = (DATA / "eval.txt").read_text()


def test_without_the_extra():
    code = (
        "import runpy, sys; sys.modules['lm_eval'] = None; "
        "runpy.run_module('gwq_export.evaluation.lm_eval', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert (
        done.stderr == "gwq_export.evaluation.lm_eval: error: lm-evaluation-harness needs lm_eval: "
        'pip install "gwq-export[lm-eval]"\n'
    )


@pytest.fixture(scope="module")
def ours(exported):
    pytest.importorskip("lm_eval", reason="needs the lm-eval extra: pip install lm-eval")
    from lm_eval.api.registry import get_model

    import gwq_export.evaluation.lm_eval  # noqa: F401  registers the model

    return get_model("gwq").create_from_arg_string(
        f"path={exported(type='f32')[0]},threads=1", {"batch_size": 1, "device": None}
    )


def requests(kind, *arguments):
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, args, i) for i, args in enumerate(arguments)]


def test_loglikelihood(ours):
    said = ours.model.generate("The history of the", n=2)
    pairs = [
        ("The city of", " London"),
        ("The history of the", said),
        ("", "A word"),
        ("<|im_start|>user<|im_end|>", " x"),
    ]
    found = ours.loglikelihood(requests("loglikelihood", *pairs), disable_tqdm=True)
    for (context, continuation), (total, greedy) in zip(pairs, found, strict=True):
        tok = ours.model.tokenizer
        head = tok.encode(context) or [tok.eos if tok.bos is None else tok.bos]
        tail = tok.encode(context + continuation)[len(tok.encode(context)) :]
        logp = log_softmax(ours.model.logits([*head, *tail][:-1])[-len(tail) :])
        assert total == pytest.approx(logp[np.arange(len(tail)), tail].sum(), abs=1e-3)
        assert greedy == (logp.argmax(1).tolist() == tail)
    assert [greedy for _, greedy in found] == [False, True, False, False]


def test_loglikelihood_rolling(ours, exported):
    """Longer than the context: every token is scored once, in windows."""
    from gwq_export.evaluation.lm_eval import GwqLM

    short = GwqLM(exported(type="f32")[0], threads=1)
    tok = ours.model.tokenizer
    short.model.ctx = 100
    ids = [tok.eos if tok.bos is None else tok.bos, *tok.encode(TEXT[:1500], bos=False)]
    expected = 0
    scored = len(ids) - 1
    assert scored > 250
    for first in range(1, len(ids), 100):
        last = min(first + 100, len(ids))
        start = max(0, last - 101)
        logp = log_softmax(ours.model.logits(ids[start : last - 1]))[-(last - first) :]
        expected += logp[np.arange(last - first), ids[first:last]].sum()
    found = short.loglikelihood_rolling(
        requests("loglikelihood_rolling", (TEXT[:1500],)), disable_tqdm=True
    )
    assert found == [pytest.approx(expected, abs=1e-2)]


def test_generate_until(ours):
    start = "The city of"
    whole = ours.model.generate("The city of", n=24)
    stop = whole[8:11]
    arguments = [
        (start, {"until": ["never", stop], "max_gen_toks": 24}),
        (start, {"until": [], "max_gen_toks": 24}),
        (start, {"until": stop, "do_sample": False, "temperature": 1.0}),
        (TEXT[:20000], {"max_gen_toks": 4}),
    ]
    found = ours.generate_until(requests("generate_until", *arguments), disable_tqdm=True)
    assert found[0] == found[2] == whole[: whole.index(stop)] and found[1] == whole and found[3]


def test_the_evaluator_runs_it(ours, tmp_path):
    """A task of one's own through lm_eval.simple_evaluate gives gwq-eval's accuracy."""
    import json

    import lm_eval
    from lm_eval.tasks import TaskManager

    from gwq_export.evaluation.tasks import parse, run

    rows = [
        {
            "query": TEXT[i : i + 40].strip(),
            "choices": [TEXT[i + 50 : i + 60].strip(), "zebra crossing"],
            "gold": i % 2,
        }
        for i in range(9)
    ]
    (tmp_path / "own.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "own.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path / 'own.jsonl'}}}}}\n"
        "test_split: test\noutput_type: multiple_choice\n"
        "doc_to_text: '{{query}}'\ndoc_to_choice: choices\ndoc_to_target: gold\n"
        "metric_list: [{metric: acc}, {metric: acc_norm}]\n"
    )
    found = lm_eval.simple_evaluate(
        ours, tasks=["own"], task_manager=TaskManager(include_path=str(tmp_path)), bootstrap_iters=0
    )
    expected = run(
        gwq_export.load(ours.path), parse((tmp_path / "own.jsonl").read_text(), "own"), "own"
    )
    assert found["results"]["own"]["acc,none"] == expected["acc"]
    assert found["results"]["own"]["acc_norm,none"] == expected["acc_norm"]
