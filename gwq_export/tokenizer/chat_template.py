"""The chat template of a file: a Jinja program that turns messages into a prompt.

It runs as in transformers, in a sandbox with a budget and with the names that templates expect
there.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, NoReturn

from gwq_export import limits
from gwq_export.errors import translated
from gwq_export.limits import check_limit

if TYPE_CHECKING:
    from jinja2 import Environment
    from jinja2.nodes import Node
    from jinja2.parser import Parser


def render(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    add_generation_prompt: bool,
    bos_token: str,
    eos_token: str,
) -> str:
    """The prompt of `messages`, [{"role", "content"}].

    add_generation_prompt: end it with what begins the model's answer. Raises GwqError when the
    template refuses the messages.
    """
    check_limit("characters of the chat template", len(template), limits.TEMPLATE)
    env = _environment(messages)
    with translated(  # the template is a program from the file: anything may happen in it
        "the file's chat template refuses these messages ({}): "
        "change the messages or give a plain prompt"
    ):
        return env.from_string(template).render(
            messages=messages,
            add_generation_prompt=add_generation_prompt,
            bos_token=bos_token,
            eos_token=eos_token,
            tools=None,
            documents=None,
        )


def check_template(template: str) -> None:
    """Raise GwqError for a template that is none, or is longer than any.

    What it makes of messages is another matter: it may refuse these for a reason of its own.
    """
    check_limit("characters of the chat template", len(template), limits.TEMPLATE)
    with translated("the file's chat template is none ({}): give a plain prompt"):
        _environment([]).from_string(template)


def _environment(messages: Sequence[Mapping[str, Any]]) -> Environment:
    """The sandbox for a prompt of these messages, with what transformers adds to Jinja."""
    from jinja2 import TemplateError
    from jinja2.ext import Extension

    from gwq_export.tokenizer.budget import Budget
    from gwq_export.tokenizer.sandbox import BudgetEnvironment

    class Generation(Extension):
        """{% generation %} ... {% endgeneration %} marks what the model says; it prints nothing."""

        tags = {"generation"}  # noqa: RUF012 (as the base class has it)

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def raise_exception(message: str) -> NoReturn:
        raise TemplateError(message)

    def strftime_now(format: str) -> str:
        return datetime.now().strftime(format)

    def tojson(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    env = BudgetEnvironment(
        Budget(messages),
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=["jinja2.ext.loopcontrols", Generation],
    )
    env.filters["tojson"] = env.counted("tojson", tojson)
    env.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return env
