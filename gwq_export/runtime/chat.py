"""A conversation: messages, the prompt made of them, and a KV cache kept from turn to turn."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

from gwq_export.errors import GwqError
from gwq_export.runtime.model import Model
from gwq_export.runtime.sampling import Sampling

Message: TypeAlias = dict[str, str]  # "role": system, user or assistant; "content"


class Chat:
    """A chat with a model. Not for several threads.

    system: the system message, or None. n: tokens of an answer at most (< 0: until the context is
    full). stop: strings that end an answer. Without a chat template, or with `raw`, there are no
    roles: every message continues the text on a line of its own. messages: the conversation so far.
    Raises GwqError.
    """

    def __init__(
        self,
        model: Model,
        system: str | None = None,
        sampling: Sampling | None = None,
        n: int = -1,
        stop: Sequence[str] = (),
        raw: bool = False,
    ) -> None:
        self.model = model
        self.sampling = sampling
        self.n = n
        self.stop = stop
        self.raw = raw or model.tokenizer.chat_template is None
        if system and self.raw:
            raise GwqError("--system needs a chat template: use a file that has one, without --raw")
        self._start: list[Message] = []
        if system:
            self._start = [{"role": "system", "content": system}]
        self._session = model.session()
        self._drafter = model.drafter()
        self.clear()

    def clear(self) -> None:
        """Forget all turns, but not the system message."""
        self.messages = list(self._start)

    def reply(
        self,
        content: str,
        stats: dict[str, Any] | None = None,
        halt: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """Yield the answer to `content` in pieces; both then belong to `messages`.

        Only what the prompt does not share with the one before is computed. When it leaves less
        than a quarter of the context (or n tokens) for the answer, the oldest turns are dropped.
        The answer ends early when halt() is true.

        stats: as in `Model.stream`, and dropped: how many turns were dropped, and context_tokens:
        those of prompt and answer together.
        """
        stats = {} if stats is None else stats
        asked = [*self.messages, {"role": "user", "content": content}]
        messages, ids, dropped = self._fit(asked)
        stats |= {"dropped": dropped, "tokens": 0}
        shared = self._session.reuse(ids)
        pieces: list[str] = []
        tokens = self.model.tokens(
            self._session,
            ids[shared:],
            self.n,
            self.sampling,
            self.model.tokenizer.stop_ids,
            before=ids[:shared],
            stats=stats,
            halt=halt,
            drafter=self._drafter,
        )
        try:
            for piece in self.model.text(tokens, self.stop, stats):
                pieces.append(piece)
                yield piece
        finally:
            tokens.close()
            stats["context_tokens"] = len(ids) + stats["tokens"]
            if pieces:  # an answer stopped before its first word leaves no trace
                self.messages = [*messages, {"role": "assistant", "content": "".join(pieces)}]

    def _fit(self, messages: list[Message]) -> tuple[list[Message], list[int], int]:
        """(messages, their ids, turns dropped from their front), with room for an answer."""
        ctx = self.model.ctx
        room = ctx // 4
        if self.n >= 0:
            room = min(self.n, room)
        dropped = 0
        while True:
            ids = self._ids(messages)
            turns = [i for i, m in enumerate(messages) if m["role"] == "user"]
            if len(ids) + room <= ctx or len(turns) == 1:
                break
            messages = messages[: turns[0]] + messages[turns[1] :]
            dropped += 1
        if len(ids) >= ctx:
            raise GwqError(
                f"the message takes {len(ids)} tokens, the context holds {ctx}: "
                f"{self.model.shorter}"
            )
        return messages, ids, dropped

    def _ids(self, messages: list[Message]) -> list[int]:
        if not self.raw:
            return self.model.prompt_ids(messages)
        turns = [
            "\n" + m["content"] if i and m["role"] == "user" else m["content"]
            for i, m in enumerate(messages)
        ]
        return self.model.prompt_ids("".join(turns))
