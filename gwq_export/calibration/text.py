"""Token windows of a text: those that calibrate, and held-out ones."""

import hashlib
import logging
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from gwq_export.errors import GwqError

log = logging.getLogger("gwq_export")
CALIBRATION = Path(__file__).parents[1] / "data" / "calibration.txt"


def _read_ids(tokenizer, path, flag):
    """Token ids of a text file. Raises GwqError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(
            f"{flag} {path}: cannot be read as UTF-8 text ({e}); give a text file"
        ) from None
    if not text.strip():
        raise GwqError(f"{flag} {path}: the text is empty; give a longer one")
    return tokenizer.encode(text, special=False, bos=False)


def _bos(tokenizer):
    return tokenizer.bos if tokenizer.add_bos else None


def draw_calibration(tokenizer, calib, samples, ctx, seed):
    """A Calibration of samples x ctx tokens of the text file calib, None for the bundled one.

    Raises GwqError.
    """
    ids = _read_ids(tokenizer, calib or CALIBRATION, "--calib")
    found = Calibration(sample_tokens(ids, samples, ctx, seed, _bos(tokenizer)))
    if len(found.tokens) < samples:
        log.warning(
            "the calibration text gives %d samples of %d tokens, not %d",
            *found.tokens.shape,
            samples,
        )
    return found


def draw_held_out(tokenizer, text, calib, calibration, ctx, seed):
    """Windows for `verify`: of the text file `text`, else of what calibration (None: nothing) left
    of its own. Raises GwqError.
    """
    ids = _read_ids(tokenizer, text or calib or CALIBRATION, "--verify-text" if text else "--calib")
    return held_out(ids, None if text else calibration, ctx, seed, _bos(tokenizer))


@dataclass
class Calibration:
    """What calibration used and found.

    `losses`: mean cross-entropy (nats per token) of each sample.
    """

    tokens: torch.Tensor  # (samples, ctx) int64
    losses: list = field(default_factory=list)
    reached: dict = field(
        default_factory=dict
    )  # matrix of an expert -> how many of the tokens were routed to it

    @property
    def loss(self):
        """Mean cross-entropy, nats per token."""
        return sum(self.losses) / len(self.losses)

    @property
    def hash(self):
        """SHA-256 of the token ids, for the file's provenance keys."""
        return hashlib.sha256(self.tokens.numpy().astype("<i4").tobytes()).hexdigest()


def sample_tokens(ids, samples, ctx, seed, bos=None):
    """(samples, ctx) int64 windows of the token list `ids`, drawn without overlap in a seeded
    order.

    Each window starts with `bos` when the tokenizer adds one. Fewer samples when the text is short;
    one shorter window when it holds less than ctx tokens. Raises GwqError below 2 tokens.
    """
    body = ctx - (bos is not None)
    if len(ids) < 2:
        raise GwqError("the calibration text is empty: give a longer one with --calib FILE")
    body = min(body, len(ids))
    starts = np.arange(0, len(ids) - body + 1, body)
    starts = np.sort(np.random.default_rng(seed).permutation(starts)[:samples])
    windows = np.stack([ids[s : s + body] for s in starts])
    if bos is not None:
        windows = np.concatenate([np.full((len(windows), 1), bos), windows], axis=1)
    return torch.from_numpy(windows.astype(np.int64))


WINDOWS = 8  # of the text, each as long as a calibration sample


def held_out(ids, calibration, ctx, seed, bos=None):
    """int64 (at most WINDOWS, ctx) windows of the token list `ids` that calibration (Calibration or
    None) did not use.

    Raises GwqError when there are none.
    """
    every = sample_tokens(ids, len(ids), ctx, seed, bos).numpy()
    used = {w.tobytes() for w in calibration.tokens.numpy()} if calibration else set()
    left = [w for w in every if w.tobytes() not in used]
    if not left:
        raise GwqError(
            "--verify: calibration takes all of its text: give another one with --verify-text FILE, or fewer --samples"
        )
    return np.stack(
        [left[i] for i in np.unique(np.linspace(0, len(left) - 1, WINDOWS).astype(int))]
    )
