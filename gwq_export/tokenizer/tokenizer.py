"""The tokenizer of a GGUF file: encoding, decoding token by token, chat prompts."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from gwq_export.errors import GwqError, translated
from gwq_export.tokenizer.bounds import check_probe
from gwq_export.tokenizer.build import BYTE_TOKEN, NO_TEXT, build, from_json, optional, required
from gwq_export.tokenizer.chat_template import render
from gwq_export.tokenizer.pretokenizer import DEFAULT, PRE

if TYPE_CHECKING:
    import tokenizers

# tokens that end a turn of a chat, whatever the eos of the file
END_OF_TURN = {
    "<|im_end|>",
    "<|eot_id|>",
    "<|eom_id|>",
    "<end_of_turn>",
    "<turn|>",
    "<|end|>",
    "<|endoftext|>",
    "<EOT>",
}


class Tokenizer:
    """The tokenizer of a GGUF file. Safe from several threads.

    metadata: {key: value} of the file. Raises GwqError for keys that do not fit together.
    """

    vocab_size: int
    bos: int | None
    eos: int | None
    add_bos: bool  # whether a text starts with bos
    stop_ids: set[int]  # each ends a generation
    chat_template: str | None

    def __init__(self, metadata: Mapping[str, Any]):
        self._native = build(metadata)
        check_probe(self._native)
        self.vocab_size = len(required(metadata, "tokens", list))
        ids = {
            name: optional(metadata, f"{name}_token_id", int)
            for name in ("bos", "eos", "eot", "eom")
        }
        for name, id in ids.items():
            if id is not None and not 0 <= id < self.vocab_size:
                raise GwqError(
                    f"the id {id} of the {name} token is beyond the vocabulary: "
                    "the file is damaged, export it again"
                )
        self.bos = ids["bos"]
        self.eos = ids["eos"]
        # what llama.cpp does where a file does not say
        pre = PRE.get(optional(metadata, "pre", str) or DEFAULT)
        family = optional(metadata, "model", str)
        usual = family == "llama" or bool(family == "gpt2" and pre and pre.bos)
        self.add_bos = optional(metadata, "add_bos_token", bool, usual) and self.bos is not None
        self.chat_template = optional(metadata, "tokenizer.chat_template", str)
        added = self._native.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self.stop_ids = {ids[name] for name in ("eos", "eot", "eom") if ids[name] is not None} | {
            id for id, token in added.items() if token.content in END_OF_TURN
        }

    @cached_property
    def _plain(self) -> tokenizers.Tokenizer:
        """The same tokenizer, blind to special tokens in the text."""
        spec = json.loads(self._native.to_str())
        if spec["model"]["type"] == "Unigram":
            # it would find them by itself: its pieces are all there is in a text
            names = {token["content"] for token in spec["added_tokens"] if token["special"]}
            spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
            spec["model"]["vocab"] = [
                [f"{NO_TEXT}{piece}" if piece in names else piece, score]
                for piece, score in spec["model"]["vocab"]
            ]
        native = from_json(json.dumps(spec), "the tokenizer")
        native.encode_special_tokens = True
        return native

    def encode(self, text: str, special: bool = True, bos: bool | None = None) -> list[int]:
        """Token ids of `text`.

        special: read special tokens in it as such; bos: start with bos (None: as the file says, but
        once). Raises GwqError for text that UTF-8 cannot hold.
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GwqError("the text is not valid Unicode: give it in UTF-8") from None
        native = self._native if special else self._plain
        with translated("the file's tokenizer cannot encode this text ({}): give another text"):
            ids = native.encode(text, add_special_tokens=False).ids
        if self.bos is None:
            return ids
        wanted = self.add_bos and ids[:1] != [self.bos] if bos is None else bos
        return [self.bos, *ids] if wanted else ids

    def decode(self, ids: Iterable[int], special: bool = False) -> str:
        """The text of token ids; special tokens are left out unless `special`.

        Raises GwqError for ids that the tokenizer fails on.
        """
        with translated("the file's tokenizer cannot decode these tokens ({}): use another file"):
            return self._native.decode([int(id) for id in ids], skip_special_tokens=not special)

    def stream(self, special: bool = False) -> Stream:
        """An incremental decoder: see `Stream`."""
        return Stream(self, special)

    def chat(
        self, messages: Sequence[Mapping[str, Any]], add_generation_prompt: bool = True
    ) -> str:
        """The prompt of `messages`, a list of {"role", "content"}, by the file's chat template.

        Encode it with special=True. Raises GwqError when there is no template or it refuses the
        messages.
        """
        if self.chat_template is None:
            raise GwqError("the file has no chat template: give a plain prompt")
        return render(
            self.chat_template,
            messages,
            add_generation_prompt,
            bos_token=self._text_of(self.bos),
            eos_token=self._text_of(self.eos),
        )

    def _text_of(self, id: int | None) -> str:
        return "" if id is None else self._native.id_to_token(id) or ""


class Stream:
    """Token ids in, text out as soon as it is certain.

    The fragments, with `flush`, join to what `decode` gives for all ids. special: show special
    tokens.
    """

    def __init__(self, tokenizer: Tokenizer, special: bool = False):
        self._tokenizer = tokenizer
        self._show = special
        self._ids: list[int] = []  # since the last certain text, after one id of context
        self._sent = ""  # text of the context

    def feed(self, id: int) -> str:
        """The text that became certain with `id`; "" while a character is incomplete."""
        token = self._tokenizer._native.id_to_token(int(id))
        if token is None or (id in self._tokenizer._special and not self._show):
            return ""
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids, self._show)
        # a run of bytes is text or not as a whole
        if text.endswith("\ufffd") or BYTE_TOKEN.fullmatch(token):
            return ""
        fragment = text[len(self._sent) :]
        self._ids = [id]
        self._sent = self._tokenizer.decode([id], self._show)
        return fragment

    def flush(self) -> str:
        """The text held back; the next `feed` starts a new text."""
        fragment = self._tokenizer.decode(self._ids, self._show)[len(self._sent) :]
        self._ids = []
        self._sent = ""
        return fragment
