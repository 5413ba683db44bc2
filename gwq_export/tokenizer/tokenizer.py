"""The tokenizer of a GGUF file: encoding, decoding token by token, chat prompts."""

import json
from datetime import datetime
from functools import cached_property

from gwq_export.errors import GwqError, one_line
from gwq_export.tokenizer.build import BYTE_TOKEN, NO_TEXT, _get, build, from_json

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
    """The tokenizer of a GGUF file; `metadata` maps keys to values. Safe from several threads.
    Raises GwqError.

    bos, eos: ids or None; add_bos: whether a text starts with bos; stop_ids: set of the ids that
    end a generation; vocab_size; chat_template: str or None.
    """

    def __init__(self, metadata):
        self._native = build(metadata)
        self.vocab_size = len(_get(metadata, "tokens", list, KeyError))
        ids = {
            name: _get(metadata, f"{name}_token_id", int) for name in ("bos", "eos", "eot", "eom")
        }
        for name, id in ids.items():
            if id is not None and not 0 <= id < self.vocab_size:
                raise GwqError(
                    f"the id {id} of the {name} token is beyond the vocabulary: the file is damaged, export it again"
                )
        self.bos, self.eos = ids["bos"], ids["eos"]
        add_bos = _get(metadata, "add_bos_token", bool, _get(metadata, "model", str) == "llama")
        self.add_bos = add_bos and self.bos is not None
        self.chat_template = _get(metadata, "tokenizer.chat_template", str)
        added = self._native.get_added_tokens_decoder()
        self._special = {id for id, token in added.items() if token.special}
        self.stop_ids = {ids["eos"], ids["eot"], ids["eom"]} - {None} | {
            id for id, t in added.items() if t.content in END_OF_TURN
        }

    @cached_property
    def _plain(self):
        """The same tokenizer, blind to special tokens in the text."""
        spec = json.loads(self._native.to_str())
        if (
            spec["model"]["type"] == "Unigram"
        ):  # it would find them by itself: its pieces are all there is in a text
            names = {token["content"] for token in spec["added_tokens"] if token["special"]}
            spec["added_tokens"] = [token for token in spec["added_tokens"] if not token["special"]]
            spec["model"]["vocab"] = [
                [f"{NO_TEXT}{t}" if t in names else t, score] for t, score in spec["model"]["vocab"]
            ]
        native = from_json(json.dumps(spec), "the tokenizer")
        native.encode_special_tokens = True
        return native

    def encode(self, text, special=True, bos=None):
        """Token ids of `text`. special: read special tokens in it as such; bos: start with bos
        (None: as the file says, but once).
        """
        try:
            text.encode()
        except UnicodeEncodeError:
            raise GwqError("the text is not valid Unicode: give it in UTF-8") from None
        ids = (self._native if special else self._plain).encode(text, add_special_tokens=False).ids
        wanted = (
            self.add_bos and ids[:1] != [self.bos] if bos is None else bos and self.bos is not None
        )
        return [self.bos, *ids] if wanted else ids

    def decode(self, ids, special=False):
        """The text of token ids; special tokens are left out unless `special`."""
        return self._native.decode([int(id) for id in ids], skip_special_tokens=not special)

    def stream(self, special=False):
        """An incremental decoder: see `Stream`."""
        return Stream(self, special)

    def chat(self, messages, add_generation_prompt=True):
        """The prompt of `messages`, a list of {"role", "content"}, by the file's chat template.

        Encode it with special=True.
        """
        if self.chat_template is None:
            raise GwqError("the file has no chat template: give a plain prompt")
        from jinja2 import TemplateError
        from jinja2.ext import Extension
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        class Generation(
            Extension
        ):  # {% generation %} marks what the model says; it prints nothing
            tags = frozenset(["generation"])

            def parse(self, parser):
                next(parser.stream)
                return parser.parse_statements(["name:endgeneration"], drop_needle=True)

        def raise_exception(message):
            raise TemplateError(message)

        env = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", Generation]
        )
        env.filters["tojson"] = lambda value, indent=None, **_: json.dumps(
            value, ensure_ascii=False, indent=indent
        )
        env.globals |= {
            "raise_exception": raise_exception,
            "strftime_now": lambda format: datetime.now().strftime(format),
        }
        bos, eos = (
            "" if id is None else self._native.id_to_token(id) or "" for id in (self.bos, self.eos)
        )
        names = {
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "bos_token": bos,
            "eos_token": eos,
        }
        try:
            return env.from_string(self.chat_template).render(**names, tools=None, documents=None)
        except Exception as e:  # the template is a program from the file: anything may happen in it
            raise GwqError(
                f"the file's chat template refuses these messages ({one_line(e)}): change the messages or give a plain prompt"
            ) from None


class Stream:
    """Token ids in, text out as soon as it is certain.

    The fragments, with `flush`, join to what `decode` gives for all ids.
    """

    def __init__(self, tokenizer, special=False):
        self._tokenizer, self._show = tokenizer, special
        self._ids, self._sent = (
            [],
            "",
        )  # ids since the last certain text, after one id of context; text of the context

    def feed(self, id):
        """The text that became certain with `id`; "" while a character is incomplete."""
        token = self._tokenizer._native.id_to_token(int(id))
        if token is None or (id in self._tokenizer._special and not self._show):
            return ""
        self._ids.append(id)
        text = self._tokenizer.decode(self._ids, self._show)
        if text.endswith("\ufffd") or BYTE_TOKEN.fullmatch(
            token
        ):  # a run of bytes is text or not as a whole
            return ""
        fragment = text[len(self._sent) :]
        self._ids, self._sent = [id], self._tokenizer.decode([id], self._show)
        return fragment

    def flush(self):
        """The text held back; the next `feed` starts a new text."""
        fragment = self._tokenizer.decode(self._ids, self._show)[len(self._sent) :]
        self._ids, self._sent = [], ""
        return fragment
