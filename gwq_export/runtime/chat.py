"""A conversation: messages, the prompt made of them, and a KV cache that is kept from turn to turn."""

from itertools import takewhile

from gwq_export.errors import GwqError


class Chat:
    """A chat with a `gwq_export.runtime.model.Model`.

    messages: [{"role", "content"}]. Without a chat template, or with `raw`, there are no roles:
    every message continues the text on a line of its own. n: tokens of an answer at most (< 0:
    until the context is full). Not for several threads. Raises GwqError.
    """

    def __init__(self, model, system=None, sampling=None, n=-1, stop=(), raw=False):
        self.model, self.sampling, self.n, self.stop = model, sampling, n, stop
        self.raw = raw or model.tokenizer.chat_template is None
        if system and self.raw:
            raise GwqError("--system needs a chat template: use a file that has one, without --raw")
        self._start = [{"role": "system", "content": system}] if system else []
        self._session, self._held = model.session(), []  # ids that the session holds
        self.clear()

    def clear(self):
        """Forget all turns, but not the system message."""
        self.messages = list(self._start)

    def reply(self, content, stats=None, halt=lambda: False):
        """Yield the answer to `content` in pieces; both then belong to `messages`.

        Only what the prompt does not share with the one before is computed. When it leaves less
        than a quarter of the context (or n tokens) for the answer, the oldest turns are dropped.
        stats: as in `Model.stream`, with dropped, the turns dropped, and context_tokens, prompt and
        answer together.
        """
        stats = {} if stats is None else stats
        messages, ids, stats["dropped"] = self._fit(
            [*self.messages, {"role": "user", "content": content}]
        )
        shared = sum(
            1
            for _ in takewhile(
                lambda pair: pair[0] == pair[1], zip(ids[:-1], self._held, strict=False)
            )
        )
        self._session.rewind(shared)
        made, said = [], []

        def tokens():
            options = {"before": ids[:shared], "stats": stats, "halt": halt}
            for token in self.model.tokens(
                self._session,
                ids[shared:],
                self.n,
                self.sampling,
                self.model.tokenizer.stop_ids,
                **options,
            ):
                made.append(token)
                yield token

        try:
            for piece in self.model.text(tokens(), self.stop, stats):
                said.append(piece)
                yield piece
        finally:
            self._held = [*ids, *made][: self._session.pos]
            stats["context_tokens"] = len(ids) + len(made)
            if said:  # an answer stopped before its first word leaves no trace
                self.messages = [*messages, {"role": "assistant", "content": "".join(said)}]

    def _fit(self, messages):
        """(messages, their ids, turns dropped from their front), with room for an answer."""
        ctx, dropped = self.model.ctx, 0
        room = min(self.n, ctx // 4) if self.n >= 0 else ctx // 4
        while True:
            ids = self._ids(messages)
            turns = [i for i, m in enumerate(messages) if m["role"] == "user"]
            if len(ids) + room <= ctx or len(turns) == 1:
                break
            messages, dropped = messages[: turns[0]] + messages[turns[1] :], dropped + 1
        if len(ids) >= ctx:
            raise GwqError(
                f"the message takes {len(ids)} tokens, the context holds {ctx}: shorten it or use a larger --ctx"
            )
        return messages, ids, dropped

    def _ids(self, messages):
        if not self.raw:
            return self.model.prompt_ids(messages)
        turns = [
            ("\n" if i and m["role"] == "user" else "") + m["content"]
            for i, m in enumerate(messages)
        ]
        return self.model.prompt_ids("".join(turns))
