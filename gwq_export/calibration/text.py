"""Token windows of a text: the samples that calibrate, those that tune, and held-out ones."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from gwq_export.calibration.sources import Text
from gwq_export.errors import GwqError

log = logging.getLogger("gwq_export")

HELD_OUT = 8  # windows, each as long as a calibration sample


@dataclass
class Calibration:
    """What calibration used and what it found."""

    tokens: torch.Tensor  # (samples, ctx) int64
    losses: list[float] = field(default_factory=list)  # mean cross-entropy of each sample, nats
    reached: dict[str, int] = field(default_factory=dict)  # matrix of an expert -> its tokens

    @property
    def loss(self) -> float:
        """Mean cross-entropy, nats per token."""
        return sum(self.losses) / len(self.losses)

    @property
    def hash(self) -> str:
        """SHA-256 of the token ids, for the file's provenance keys."""
        return hashlib.sha256(self.tokens.numpy().astype("<i4").tobytes()).hexdigest()


def draw_calibration(text: Text, samples: int, ctx: int, seed: int) -> Calibration:
    """A Calibration of samples x ctx tokens of the text.

    Warns when the text gives fewer. Raises GwqError.
    """
    calibration = Calibration(sample_tokens(text.ids, samples, ctx, seed, text.bos))
    if len(calibration.tokens) < samples:
        log.warning(
            "the calibration text gives %d samples of %d tokens, not %d",
            *calibration.tokens.shape,
            samples,
        )
    return calibration


def draw_held_out(text: Text, calibration: Calibration | None, ctx: int, seed: int) -> np.ndarray:
    """int64 (at most HELD_OUT, ctx) windows, evenly spread, that calibration did not use.

    Raises GwqError when there are none.
    """
    left = _left(text, calibration, ctx, seed)
    if not left:
        raise GwqError(
            "--verify: calibration takes all of its text: give another one with --verify-text FILE,"
            " or fewer --samples"
        )
    return np.stack(_spread(left))


def draw_tuning(text: Text, calibration: Calibration, count: int, seed: int) -> torch.Tensor:
    """int64 (at most count, ctx) windows to tune a calibrated file on.

    They are shuffled windows of the calibration's text: first those that neither calibration has
    used nor verification would use, then the calibration's own.
    """
    ctx = calibration.tokens.shape[1]
    left = _left(text, calibration, ctx, seed)
    kept = {w.tobytes() for w in _spread(left)}
    fresh = [w for w in left if w.tobytes() not in kept]
    rng = np.random.default_rng(seed)
    shuffled = [
        np.reshape(np.asarray(windows, np.int64), (-1, ctx))[rng.permutation(len(windows))]
        for windows in (fresh, calibration.tokens.numpy())
    ]
    return torch.from_numpy(np.concatenate(shuffled)[:count])


def sample_tokens(
    ids: Sequence[int], samples: int, ctx: int, seed: int, bos: int | None = None
) -> torch.Tensor:
    """int64 (samples, ctx) windows of the token list `ids`, drawn without overlap and in order.

    Each window starts with `bos` when the tokenizer adds one. There are fewer samples when the text
    is short, and one shorter window when it holds less than ctx tokens. Raises GwqError below 2
    tokens.
    """
    if len(ids) < 2:
        raise GwqError("the calibration text is empty: give a longer one with --calib FILE")
    body = ctx if bos is None else ctx - 1
    body = min(body, len(ids))
    starts = np.arange(0, len(ids) - body + 1, body)
    starts = np.sort(np.random.default_rng(seed).permutation(starts)[:samples])
    windows = np.stack([np.asarray(ids[s : s + body]) for s in starts.tolist()])
    if bos is not None:
        windows = np.concatenate([np.full((len(windows), 1), bos), windows], axis=1)
    return torch.from_numpy(windows.astype(np.int64))


def _left(text: Text, calibration: Calibration | None, ctx: int, seed: int) -> list[np.ndarray]:
    """The windows of the text, int64 (ctx,) each, that calibration did not use."""
    windows = sample_tokens(text.ids, len(text.ids), ctx, seed, text.bos).numpy()
    used = {w.tobytes() for w in calibration.tokens.numpy()} if calibration else set()
    return [w for w in windows if w.tobytes() not in used]


def _spread(windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """At most HELD_OUT of them, evenly spread."""
    if not windows:
        return []
    return [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, HELD_OUT).astype(int))]
