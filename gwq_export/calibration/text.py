"""Token windows of a text: the samples that calibrate, and held-out windows for verification."""

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np
import torch

from gwq_export.errors import GwqError
from gwq_export.files import read_text

log = logging.getLogger("gwq_export")

CALIBRATION = Path(__file__).parents[1] / "data" / "calibration.txt"
HELD_OUT = 8  # windows, each as long as a calibration sample


class Encoder(Protocol):
    """What is asked of a tokenizer here; `tokenizer.Tokenizer` has it."""

    bos: int | None
    add_bos: bool

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids of a text."""


class Remembering:
    """An Encoder that encodes each text once, and then remembers its ids."""

    def __init__(self, tokenizer: Encoder) -> None:
        self.bos = tokenizer.bos
        self.add_bos = tokenizer.add_bos
        self._tokenizer = tokenizer
        self._known: dict[tuple[str, bool, bool | None], list[int]] = {}

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids of a text."""
        key = text, special, bos
        if key not in self._known:
            self._known[key] = self._tokenizer.encode(text, special=special, bos=bos)
        return self._known[key]


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


def draw_calibration(
    tokenizer: Encoder, calib: str | Path | None, samples: int, ctx: int, seed: int
) -> Calibration:
    """A Calibration of samples x ctx tokens of the text file `calib`, None for the bundled one.

    Warns when the text gives fewer. Raises GwqError.
    """
    ids = _read_ids(tokenizer, calib or CALIBRATION, "--calib")
    calibration = Calibration(sample_tokens(ids, samples, ctx, seed, _bos(tokenizer)))
    if len(calibration.tokens) < samples:
        log.warning(
            "the calibration text gives %d samples of %d tokens, not %d",
            *calibration.tokens.shape,
            samples,
        )
    return calibration


def draw_held_out(
    tokenizer: Encoder,
    text: str | Path | None,
    calib: str | Path | None,
    calibration: Calibration | None,
    ctx: int,
    seed: int,
) -> np.ndarray:
    """int64 (windows, ctx) of the text file `text`, else of what calibration left of its own.

    Raises GwqError.
    """
    flag = "--verify-text" if text else "--calib"
    ids = _read_ids(tokenizer, text or calib or CALIBRATION, flag)
    return held_out(ids, None if text else calibration, ctx, seed, _bos(tokenizer))


def draw_tuning(
    tokenizer: Encoder,
    calib: str | Path | None,
    calibration: Calibration,
    count: int,
    seed: int,
) -> torch.Tensor:
    """int64 (at most count, ctx) windows to tune a calibrated file on.

    They are shuffled windows of the same text: first those that neither calibration has used nor
    verification would use, then the calibration's own. Raises GwqError.
    """
    ctx = calibration.tokens.shape[1]
    ids = _read_ids(tokenizer, calib or CALIBRATION, "--calib")
    left = _left(ids, calibration, ctx, seed, _bos(tokenizer))
    kept = {w.tobytes() for w in _spread(left)}
    fresh = [w for w in left if w.tobytes() not in kept]
    rng = np.random.default_rng(seed)
    shuffled = [
        np.reshape(np.asarray(windows, np.int64), (-1, ctx))[rng.permutation(len(windows))]
        for windows in (fresh, calibration.tokens.numpy())
    ]
    return torch.from_numpy(np.concatenate(shuffled)[:count])


def _read_ids(tokenizer: Encoder, path: str | Path, flag: str) -> list[int]:
    """Token ids of a text file. Raises GwqError."""
    text = read_text(path, flag).replace("\r\n", "\n").replace("\r", "\n")
    if not text.strip():
        raise GwqError(f"{flag} {path}: the text is empty; give a longer one")
    return tokenizer.encode(text, special=False, bos=False)


def _bos(tokenizer: Encoder) -> int | None:
    return tokenizer.bos if tokenizer.add_bos else None


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


def held_out(
    ids: Sequence[int],
    calibration: Calibration | None,
    ctx: int,
    seed: int,
    bos: int | None = None,
) -> np.ndarray:
    """int64 (at most HELD_OUT, ctx) windows of `ids` that calibration did not use, evenly spread.

    Raises GwqError when there are none.
    """
    left = _left(ids, calibration, ctx, seed, bos)
    if not left:
        raise GwqError(
            "--verify: calibration takes all of its text: give another one with --verify-text FILE,"
            " or fewer --samples"
        )
    return np.stack(_spread(left))


def _left(
    ids: Sequence[int], calibration: Calibration | None, ctx: int, seed: int, bos: int | None
) -> list[np.ndarray]:
    """The windows of `ids`, int64 (ctx,) each, that calibration did not use."""
    windows = sample_tokens(ids, len(ids), ctx, seed, bos).numpy()
    used = {w.tobytes() for w in calibration.tokens.numpy()} if calibration else set()
    return [w for w in windows if w.tobytes() not in used]


def _spread(windows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """At most HELD_OUT of them, evenly spread."""
    if not windows:
        return []
    return [windows[i] for i in np.unique(np.linspace(0, len(windows) - 1, HELD_OUT).astype(int))]
