"""Perplexity protocols and the comparison with a reference, against transformers and numpy."""

from types import SimpleNamespace

import numpy as np
import pytest

import gwq_export
from gwq_export import GwqError
from gwq_export.evaluation.perplexity import PROTOCOLS, evaluate, log_softmax, windows
from gwq_export.evaluation.predictors import Predictor, batches, runtime_logits
from gwq_export.evaluation.reference import transformers_logits
from studies.oracle import dequantized_model, logits
from tests.support.paths import DATA, REFERENCE

TEXT = (DATA / "eval.txt").read_text()[:3000]


def cross_entropy(oracle, rows):
    """Mean over every shifted position of windows (n, ctx), as transformers computes a loss."""
    import torch

    ids = [torch.as_tensor(row.astype(np.int64))[None] for row in rows]
    with torch.no_grad():
        return float(np.mean([oracle(input_ids=i, labels=i).loss.item() for i in ids]))


@pytest.mark.parametrize("ctx", [128, 700])  # 700: more than one batch of logits
def test_window_protocol_equals_the_papers(exported, ctx):
    from transformers import AutoTokenizer

    path, _ = exported(type="f32")
    ids = np.array(AutoTokenizer.from_pretrained(REFERENCE)(TEXT)["input_ids"])
    rows = ids[: len(ids) // ctx * ctx].reshape(-1, ctx)
    found = evaluate(gwq_export.load(path), TEXT, ctx, protocol="window")
    assert found["nll"] == pytest.approx(
        cross_entropy(dequantized_model(REFERENCE, path), rows), abs=1e-4
    )
    assert found["protocol"] == "window"
    assert found["tokens"] == len(rows) * (ctx - 1)
    assert found["windows"] == len(rows)


class Letters:
    """A tokenizer of letters that starts a text with BOS, and reads <s> as BOS when asked to."""

    add_bos, bos = True, 1

    def encode(self, text, special=True, bos=None):
        return [self.bos, *(1 if c == "§" and special else ord(c) for c in text)]


def test_bos_is_where_the_protocol_says():
    text = "abc§efghijk"
    assert windows(Letters(), text, 4, PROTOCOLS["llama.cpp"]).tolist() == [
        [1, 97, 98, 99],
        [1, 101, 102, 103],
        [1, 105, 106, 107],
    ]
    assert windows(Letters(), text, 4, PROTOCOLS["window"]).tolist() == [
        [1, 97, 98, 99],
        [1, 101, 102, 103],
        [104, 105, 106, 107],
    ]
    assert windows(Letters(), "ab§" * 2, 5, PROTOCOLS["llama.cpp"])[0, 3] == ord("§")
    assert windows(Letters(), "ab§" * 2, 5, PROTOCOLS["window"])[0, 3] == 1


@pytest.mark.parametrize("protocol, default", [("llama.cpp", 512), ("window", 2048)])
def test_default_windows(exported, protocol, default, caplog):
    path, _ = exported(type="f32")
    long, short = gwq_export.load(path), gwq_export.load(path)
    with pytest.raises(GwqError, match=f"fewer than one window of {default}"):
        evaluate(long, "too short", protocol=protocol)
    short.config = SimpleNamespace(ctx=100)
    with pytest.raises(GwqError, match="fewer than one window of 100"):
        evaluate(short, "too short", protocol=protocol)
    assert "cut to 100" in caplog.text


@pytest.mark.parametrize("protocol, first", [("llama.cpp", 64), ("window", 0)])
def test_comparison_with_a_reference(exported, protocol, first):
    """Every figure again, from whole logits."""
    quantized, original = (gwq_export.load(exported(type=t)[0]) for t in ("gwq2", "f32"))
    rows = windows(original.tokenizer, TEXT, 128, PROTOCOLS[protocol])
    nll = []
    nll_against = []
    kld = []
    same = []
    for row in rows:
        logp, logq = (log_softmax(m.logits(row[:-1]))[first:] for m in (quantized, original))
        at = np.arange(len(logp)), row[first + 1 :]
        nll, nll_against = [*nll, *-logp[at]], [*nll_against, *-logq[at]]
        kld = [*kld, *(np.exp(logq) * (logq - logp)).sum(1)]
        same = [*same, *(logp.argmax(1) == logq.argmax(1))]

    def error(values):
        """Standard error of the mean, from the spread of the windows' means."""
        means = np.reshape(values, (len(rows), -1)).mean(1)
        return np.std(means, ddof=1) / np.sqrt(len(rows))

    found = evaluate(quantized, TEXT, 128, runtime_logits(original), protocol=protocol)
    ratio = np.exp(np.mean(nll) - np.mean(nll_against))
    difference = np.subtract(nll, nll_against)
    expected = {
        "ppl": np.exp(np.mean(nll)),
        "nll": np.mean(nll),
        "ppl_error": np.exp(np.mean(nll)) * error(nll),
        "tokens": len(nll),
        "ppl_against": np.exp(np.mean(nll_against)),
        "ppl_ratio": ratio,
        "ppl_ratio_error": ratio * error(difference),
        "kld_mean": np.mean(kld),
        "kld_error": error(kld),
        "kld_median": np.median(kld),
        "kld_p90": np.quantile(kld, 0.9),
        "kld_p99": np.quantile(kld, 0.99),
        "kld_p999": np.quantile(kld, 0.999),
        "kld_max": np.max(kld),
        "top1_agreement": np.mean(same),
        "top1_error": error(same),
        "ctx": 128,
        "windows": len(rows),
        "protocol": protocol,
    }
    assert set(found) == set(expected)
    for key, value in expected.items():
        assert found[key] == (
            value if isinstance(value, str) else pytest.approx(value, rel=1e-4)
        ), key
    assert found["ppl_ratio"] == pytest.approx(found["ppl"] / found["ppl_against"])
    # what pairing gains
    assert found["ppl_ratio_error"] < found["ppl_error"] / found["ppl_against"]


def test_predictors_agree_and_keep_what_is_asked(exported):
    ids = np.random.default_rng(2).integers(3, 8192, 600)
    path, _ = exported(type="f32")
    model = gwq_export.load(path)
    oracle = transformers_logits(REFERENCE)
    ours = runtime_logits(model)
    whole = logits(dequantized_model(REFERENCE, path), ids)
    assert ours.ctx == oracle.ctx == 2048
    for keep in (1, 88, 89, 600):
        mine, theirs = list(ours.logits(ids, keep)), list(oracle.logits(ids, keep))
        assert [len(x) for x in mine] == [len(x) for x in theirs] and sum(map(len, mine)) == keep
        assert max(map(len, mine)) <= 512
        assert np.abs(np.concatenate(mine) - whole[-keep:]).max() < 1e-3 * np.abs(whole).max()


def test_reuse_changes_no_logits(exported):
    path, _ = exported(type="f32")
    ids = np.random.default_rng(2).integers(3, 8192, 60).tolist()
    model = gwq_export.load(path)
    ours = runtime_logits(model)
    forwarded = []
    session = model.session(80)
    model.session = lambda ctx: session
    forward = session.forward
    session.forward = lambda ids, keep: forwarded.append(len(ids)) or forward(ids, keep)
    for call, expected in [
        (ids, 60),
        ([*ids[:50], 5, 6, 7], 3),
        ([*ids[:50], 5, 6, 7], 3),
        ([*ids[:50], 9], 3),
        (ids[:20], 3),
        ([4, *ids], 61),
    ]:
        got = np.concatenate(list(ours.logits(call, 3, reuse=True)))
        assert forwarded.pop() == expected
        assert np.allclose(got, gwq_export.load(path).logits(call)[-3:], atol=1e-3)


def test_what_cannot_be_evaluated(exported):
    model = gwq_export.load(exported(type="f32")[0])

    def against(vocab=8192, ctx=2048, value=0.0):
        def logits(ids, keep, reuse=False):
            for _, _, kept in batches(0, len(ids), keep):
                if kept:
                    yield np.full((kept, vocab), value, np.float32)

        return Predictor(ctx, logits)

    for options, words in [
        ({"protocol": "papers"}, "--protocol papers: choose one of llama.cpp, window"),
        ({"ctx": 0}, "--ctx 0: give at least 4"),
        ({"ctx": 3, "protocol": "window"}, "--ctx 3: give at least 4"),
        ({"ctx": 128, "against": against(vocab=8000)}, "vocabularies differ"),
        ({"ctx": 128, "against": against(value=np.nan)}, "reference model's logits are not finite"),
    ]:
        with pytest.raises(GwqError, match=words):
            evaluate(model, TEXT, **options)
    # a padded vocabulary is fine
    assert evaluate(model, TEXT, 128, against(vocab=9000))["kld_mean"] > 0
    assert evaluate(model, TEXT, 512, against(ctx=200))["ctx"] == 200
