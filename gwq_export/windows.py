"""Windows of token ids of a text: those that calibrate, and others to compare a finished file on."""

import logging
from pathlib import Path

from gwq_export import GwqError

log = logging.getLogger("gwq_export")

CALIBRATION = Path(__file__).parent / "data" / "calibration.txt"


def _read_ids(tokenizer, path, flag):
    """Token ids of a text file. Raises GwqError."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise GwqError(f"{flag} {path}: cannot be read as UTF-8 text ({e}); give a text file") from None
    if not text.strip():
        raise GwqError(f"{flag} {path}: the text is empty; give a longer one")
    return tokenizer.encode(text, special=False, bos=False)


def _bos(tokenizer):
    return tokenizer.bos if tokenizer.add_bos else None


def draw_calibration(tokenizer, calib, samples, ctx, seed):
    """A Calibration of samples x ctx tokens of the text file calib, None for the bundled one. Raises GwqError."""
    from gwq_export.calibrate import Calibration, sample_tokens

    ids = _read_ids(tokenizer, calib or CALIBRATION, "--calib")
    found = Calibration(sample_tokens(ids, samples, ctx, seed, _bos(tokenizer)))
    if len(found.tokens) < samples:
        log.warning("the calibration text gives %d samples of %d tokens, not %d", *found.tokens.shape, samples)
    return found


def draw_held_out(tokenizer, text, calib, calibration, ctx, seed):
    """Windows for `verify`: of the text file `text`, else of what calibration (None: nothing) left of its own. Raises GwqError."""
    from gwq_export.verify import held_out

    ids = _read_ids(tokenizer, text or calib or CALIBRATION, "--verify-text" if text else "--calib")
    return held_out(ids, None if text else calibration, ctx, seed, _bos(tokenizer))
