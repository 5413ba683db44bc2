"""Files that calibrate: plain text, and JSON lines of texts and chats, as one list of token ids."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from gwq_export.errors import GwqError
from gwq_export.files import read_text

CALIBRATION = Path(__file__).parents[1] / "data" / "calibration.txt"
LINES = (".jsonl", ".ndjson")  # suffixes of files with a JSON object in every line
SHAPES = '{"messages": [{"role": "user", "content": "..."}, ...]} or {"text": "..."}'


class Encoder(Protocol):
    """What is asked of a tokenizer here; `tokenizer.Tokenizer` has it."""

    bos: int | None
    add_bos: bool

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids of a text."""

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The text of messages by the model's chat template."""


@dataclass(frozen=True)
class Text:
    """A text as a model reads it."""

    ids: list[int]  # without a token that starts a text
    bos: int | None  # what every window of it starts with, if anything


def read_calibration(
    tokenizer: Encoder, files: Sequence[str | Path] = (), flag: str = "--calib"
) -> Text:
    """The Text of files, one after another; without any, of the bundled one.

    A file whose name ends in one of LINES has a JSON object in every line (`SHAPES`): a chat, which
    the model's template turns into a text with the special tokens of its turns, or a text. Any
    other file is one text, "-" is standard input. flag: the command-line flag that named the files,
    for the message. Raises GwqError.
    """
    ids: list[int] = []
    for path in files or [CALIBRATION]:
        text = read_text(path, flag).replace("\r\n", "\n").replace("\r", "\n")
        if not text.strip():
            raise GwqError(f"{flag} {path}: the text is empty; give a longer one")
        if str(path).lower().endswith(LINES):
            ids += _ids_of_lines(tokenizer, text.split("\n"), f"{flag} {path}")
        else:
            ids += tokenizer.encode(text, special=False, bos=False)
    return Text(ids, tokenizer.bos if tokenizer.add_bos else None)


def _ids_of_lines(tokenizer: Encoder, lines: Iterable[str], where: str) -> Iterator[int]:
    """Token ids of JSON lines; empty ones are none. Raises GwqError."""
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            value = {}
        messages, text = value.get("messages"), value.get("text")
        if isinstance(messages, list) and all(isinstance(m, dict) for m in messages) and messages:
            try:
                text = tokenizer.chat(messages, add_generation_prompt=False)
            except GwqError as e:
                raise GwqError(f"{where}, line {number}: {e}") from None
            yield from tokenizer.encode(text, special=True, bos=False)
        elif isinstance(text, str):
            yield from tokenizer.encode(text, special=False, bos=False)
        else:
            raise GwqError(f"{where}, line {number}: neither a chat nor a text; write {SHAPES}")
