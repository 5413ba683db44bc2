"""Bits do not depend on the number of threads."""

import json
import threading
import time

import numpy as np
import pytest
import torch

import gwq_export
from gwq_export import GwqError
from gwq_export.calibration.block_model import BlockModel
from gwq_export.compute import linalg
from gwq_export.compute import threads as cpu

RNG = np.random.default_rng(0)


def test_exports_with_any_number_of_threads_are_equal(tmp_path, tiny, threads):
    written = []
    for count in (1, 2, 3):
        threads(count)
        gwq_export.export(
            tiny("llama"),
            tmp_path / "m.gguf",
            type="gwq3",
            tensor_type="token_embd=gwq2",
            samples=3,
            ctx=32,
        )
        written.append((tmp_path / "m.gguf").read_bytes())
        assert torch.get_num_threads() == count  # as it was
    assert written[0] == written[1] == written[2]


@pytest.mark.parametrize("most, expected", [(1, 1), (2, 2), (100, 4)])
def test_logits_of_few_windows_at_a_time(tmp_path, tiny, threads, monkeypatch, most, expected):
    """Memory has room for the logits of `most` windows: so many, but one at least, are computed at
    the same time.
    """
    folder = tiny("llama")
    running = []
    seen = []
    lock = threading.Lock()
    vocab = json.loads((folder / "config.json").read_text())["vocab_size"]
    monkeypatch.setattr(cpu, "MAX_FLOATS", most * 64 * vocab)
    logits = BlockModel.logits

    def counted(self, ids, hidden):
        with lock:
            running.append(1)
            seen.append(len(running))
        time.sleep(0.05)  # long enough for all that may run to have begun
        found = logits(self, ids, hidden)
        with lock:
            running.pop()
        return found

    monkeypatch.setattr(BlockModel, "logits", counted)
    threads(4)
    gwq_export.export(folder, tmp_path / "m.gguf", type="gwq2", samples=8, ctx=64, tune=1)
    assert max(seen) == expected and len(seen) > 8  # norms are tuned, too


@pytest.mark.parametrize("n", [1, 255, 257, 1100])
def test_products(threads, n):
    a = RNG.normal(size=(n, 70)).astype(np.float32)
    b = RNG.normal(size=(70, n)).astype(np.float32)
    found = []
    for count in (1, 3):
        threads(count)
        out = np.ones((n, n), np.float32)
        total = torch.zeros(n, n)
        with cpu.one_thread_each():
            linalg.add_plain_product(out, a, b)
            linalg.add_gram(total, torch.from_numpy(b))
            linalg.mirror(total)
            found.append(
                [
                    linalg.product(a, b),
                    linalg.tall_product(a, b),
                    linalg.product(a, b[:, 0].copy()),
                    out,
                    total.numpy(),
                ]
            )
    exact = a.astype(float) @ b
    for got, again, wanted in zip(
        *found, [exact, exact, exact[:, 0], 1 + exact, b.T.astype(float) @ b], strict=True
    ):
        assert np.array_equal(got, again) and np.allclose(got, wanted, atol=1e-4)


@pytest.mark.parametrize("n", [1, 255, 257, 700])
def test_cholesky_inverse(threads, n):
    x = RNG.normal(size=(n, n + 5))
    a = x @ x.T / n + np.eye(n)
    found = []
    for count in (1, 3):
        threads(count)
        with cpu.one_thread_each():
            found.append(linalg.cholesky_inverse(a.copy()))
    assert np.array_equal(*found) and np.array_equal(found[0], np.tril(found[0]))
    assert np.allclose(found[0] @ np.linalg.cholesky(a), np.eye(n), atol=1e-10)
    a[n // 2, n // 2] = np.nan
    with pytest.raises(GwqError, match="not finite"):
        linalg.cholesky_inverse(a)


def test_torch_uses_as_many_threads_in_the_pool_as_outside(threads):
    """Whatever it used when the pool began."""

    def count(_):
        time.sleep(0.02)  # long enough for every thread of the pool to take an item
        return torch.get_num_threads()

    threads(3)
    assert set(cpu.each(count, range(9))) == {3}
    with cpu.one_thread_each():
        assert set(cpu.each(count, range(9))) == {1}
    assert set(cpu.each(count, range(9))) == {3}


def test_each_within_each(threads):
    """As many items as threads, each of which has more: none waits for a thread of the pool."""
    threads(2)
    found = cpu.each(lambda i: cpu.each(lambda j: (i, j), range(3)), range(4))
    assert found == [[(i, j) for j in range(3)] for i in range(4)]


def test_each_keeps_the_order_and_hands_on_errors(threads):
    threads(3)
    assert cpu.each(lambda i: i * i, range(20)) == [i * i for i in range(20)]
    with pytest.raises(ZeroDivisionError):
        cpu.each(lambda i: 1 // i, [2, 1, 0])
