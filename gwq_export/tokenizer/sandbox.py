"""Jinja for templates from strangers: its sandbox, and a budget for all that it does.

The sandbox keeps a template away from Python. It lets it loop and build texts without end, so here
every loop, call, filter, operator and piece of text is counted (see `budget`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any, cast

from jinja2 import nodes, pass_context
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment, SandboxedFormatter
from jinja2.visitor import NodeTransformer

from gwq_export.tokenizer.budget import CHARS, Budget, Exceeded, before_call, before_operator

# of web pages, and slow: no chat template needs them
_LEFT_OUT = ("pprint", "striptags", "urlize", "wordwrap", "xmlattr")
_WIDE = re.compile(r"\d{4}")  # a width in str.format


class BudgetEnvironment(ImmutableSandboxedEnvironment):
    """The sandbox, in which rendering raises Exceeded when it wants more than `budget` has."""

    intercepted_binops = frozenset(ImmutableSandboxedEnvironment.default_binop_table)

    def __init__(self, budget: Budget, **options: Any) -> None:
        super().__init__(finalize=self._finalize, optimized=False, **options)
        self.budget = budget
        self.concat = self._concat  # type: ignore[method-assign]
        for name in _LEFT_OUT:
            del self.filters[name]
        del self.globals["lipsum"]
        for name, function in self.filters.items():
            self.filters[name] = self.counted(name, function)
        # in the place of what the compiler writes as plain Python; never computed before rendering
        self.filters |= {
            "budget_tick": pass_context(lambda context, value: self._tick(value)),
            "budget_weigh": pass_context(lambda context, value: self._finalize(value)),
            "budget_items": pass_context(lambda context, value: self._items(value)),
            "budget_join": pass_context(lambda context, values: self._concat(map(str, values))),
        }

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that spends what its arguments and its result are worth."""
        skipped = int(hasattr(function, "jinja_pass_arg"))  # a context before the arguments

        @wraps(function)  # keeps what the compiler reads of it
        def call(*args: Any, **kwargs: Any) -> Any:
            before_call(self.budget, name, args[skipped:], kwargs)
            result = function(*args, **kwargs)
            self.budget.weigh(result)
            return result

        return call

    def _generate(self, source: nodes.Template, *args: Any, **kwargs: Any) -> str:
        return super()._generate(_Counter().visit(source), *args, **kwargs)

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """Call an object from the template."""
        owner = getattr(obj, "__self__", None)
        own = (owner,) if isinstance(owner, (str, bytes, list, tuple, dict, int)) else ()
        name = getattr(obj, "__name__", "") if own else ""
        given = {key: value for key, value in kwargs.items() if key != "_loop_vars"}
        if own:
            before_call(self.budget, name, (*own, *args), given)
        else:
            for value in (*args, *given.values()):
                self.budget.weigh(value)
        result = super().call(context, obj, *args, **kwargs)
        self.budget.weigh(result)
        return result

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute left operator right."""
        before_operator(self.budget, operator, left, right)
        result = super().call_binop(context, operator, left, right)
        self.budget.weigh(result)
        return result

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """`str.format` with fields of limited width."""
        if super().wrap_str_format(value) is None:
            return None

        @wraps(value)
        def call(*args: Any, **kwargs: Any) -> str:
            text = value.__self__
            mapped = value.__name__ == "format_map"
            named = args[0] if mapped else kwargs
            return type(text)(_Formatter(self).vformat(text, () if mapped else args, named))

        return call

    def _tick(self, value: Any) -> Any:
        self.budget.tick()
        return value

    def _finalize(self, value: Any) -> Any:
        """Spend what a value is worth."""
        self.budget.weigh(value)
        return value

    def _items(self, values: Iterable[Any]) -> Iterator[Any]:
        """The members of what is looped over by a condition, which may hold for none of them."""
        for value in values:
            self.budget.tick()
            yield value

    def _concat(self, pieces: Iterable[str]) -> str:
        """The pieces as one text."""
        found = []
        total = 0
        for piece in pieces:
            total += len(piece)
            self.budget.check(total)
            found.append(piece)
        self.budget.tick(1 + total // CHARS)
        return "".join(found)


class _Formatter(SandboxedFormatter):
    """Formats fields of limited width, and as many characters as the budget has."""

    def format_field(self, value: Any, format_spec: str) -> Any:
        """Format one field."""
        if _WIDE.search(format_spec):
            raise Exceeded("it pads a text to a thousand characters or more")
        self._env.budget.weigh(value)  # type: ignore[attr-defined]
        return super().format_field(value, format_spec)


class _Counter(NodeTransformer):
    """Puts filters that count around what the compiler writes as plain Python."""

    def generic_visit(self, node: nodes.Node, *args: Any, **kwargs: Any) -> nodes.Node:
        """Go through the children, then see to the node itself."""
        super().generic_visit(node, *args, **kwargs)
        match node:
            case nodes.For():
                if node.recursive and node.test is not None:
                    raise Exceeded("it loops recursively by a condition")
                if node.test is not None:
                    node.iter = _through("budget_items", node.iter)
                node.body.insert(0, nodes.ExprStmt(_through("budget_tick", nodes.Const(None))))
            case nodes.Output():
                node.nodes.append(_through("budget_tick", nodes.Const("")))
            case nodes.Concat():
                return _through("budget_join", nodes.List([_weighed(n) for n in node.nodes]))
            case nodes.List() | nodes.Tuple() | nodes.Dict() if (
                getattr(node, "ctx", "load") == "load"
            ):
                return _weighed(node)
            case nodes.Compare():
                node.expr = _weighed(node.expr)
                for operand in node.ops:
                    operand.expr = _weighed(operand.expr)
            case nodes.Test():
                node.node = _weighed(node.node)
            case nodes.Getitem(arg=nodes.Slice()):
                return _weighed(node)
            case nodes.Extends() | nodes.Include() | nodes.Import() | nodes.FromImport():
                raise Exceeded("it asks for other templates")
        return node


def _through(name: str, node: nodes.Node) -> nodes.Filter:
    return nodes.Filter(cast(nodes.Expr, node), name, [], [], None, None)


def _weighed(node: nodes.Node) -> nodes.Filter:
    return _through("budget_weigh", node)
