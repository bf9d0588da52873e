"""The Jinja environment in which chat templates run: the dialect of Hugging Face's templates, sandboxed and bounded.

A template comes with a model file, from anyone. Jinja's sandbox keeps it from Python's internals; what it does not do
is bound time and memory. So every loop turn, macro call and printed value is charged against a budget, operations that
make large values out of small ones are checked before they run, and a deadline is looked at on every charge.
"""

from __future__ import annotations

import json
import re
import string
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import wraps
from typing import Any

from jinja2 import nodes
from jinja2.exceptions import SecurityError, TemplateSyntaxError
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS, make_attrgetter
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

__all__ = ["SandboxedTemplateEnvironment", "TemplateLimitError"]

_MAX_WIDTH = 10_000
_MAX_BITS = 1 << 16
_WIDE_FORMAT = re.compile(r"\*|\d{5,}")
_PADDING_METHODS = frozenset({"center", "expandtabs", "ljust", "rjust", "zfill"})
_REFUSED_METHODS = frozenset({"to_bytes", "translate"})


class TemplateLimitError(Exception):
    """A template would take more time or memory than it may."""


class _Budget(threading.local):
    """What the rendering under way in this thread may still use."""

    characters: int = 0
    deadline: float = 0.0
    active: bool = False


class GenerationTag(Extension):
    """``{% generation %}…{% endgeneration %}`` marks the assistant's text for training: here, just its contents."""

    tags = {"generation"}  # noqa: RUF012  # the name and the type are Jinja's

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class _Charging(NodeTransformer):
    """Adds a charge at the start of every loop and macro body, and routes ``~`` through a checked function."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def visit_Macro(self, node: nodes.Macro) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def visit_CallBlock(self, node: nodes.CallBlock) -> nodes.Node:  # noqa: N802
        return self._charged(node)

    def _charged(self, node: nodes.For | nodes.Macro | nodes.CallBlock) -> nodes.Node:
        self.generic_visit(node)
        cost = 1 + sum(len(data.data) for data in node.find_all(nodes.TemplateData))
        call = _environment_call("charge", [nodes.Const(cost)], node.lineno)
        node.body.insert(0, nodes.ExprStmt(call, lineno=node.lineno))
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _environment_call("concatenate", node.nodes, node.lineno)


def _environment_call(name: str, arguments: list[nodes.Expr], lineno: int) -> nodes.Call:
    function = nodes.EnvironmentAttribute(name, lineno=lineno)
    return nodes.Call(function, arguments, [], None, None, lineno=lineno)


class SandboxedTemplateEnvironment(ImmutableSandboxedEnvironment):
    """The environment of chat templates. ``limit`` bounds every value, in characters or elements; ``seconds`` a
    rendering.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, *, limit: int, seconds: float) -> None:
        self._limit = limit
        self._seconds = seconds
        self._budget = _Budget()
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols, GenerationTag], finalize=self._printed
        )
        self.filters = FILTERS | self._checked_filters()
        for name in ("urlize", "wordwrap"):
            del self.filters[name]
        del self.globals["lipsum"]

    def compile_template(self, source: str) -> Any:
        """A template from ``source``; TemplateSyntaxError where it is malformed or wants other templates."""
        tree = self.parse(source)
        for node in tree.find_all((nodes.Include, nodes.Import, nodes.FromImport, nodes.Extends)):
            raise TemplateSyntaxError("a chat template cannot load other templates", node.lineno)
        _Charging().visit(tree)
        tree.set_environment(self)
        return self.template_class.from_code(self, self.compile(tree), self.make_globals(None))

    def render(self, template: Any, variables: Mapping[str, Any]) -> str:
        """The text of ``template``, within the limits."""
        parts: list[str] = []
        size = 0
        with self._spending():
            for part in template.generate(**variables):
                size += len(part)
                self._check(size)
                parts.append(part)
        return "".join(parts)

    @contextmanager
    def _spending(self) -> Iterator[None]:
        budget = self._budget
        budget.characters, budget.deadline, budget.active = 4 * self._limit, time.monotonic() + self._seconds, True
        try:
            yield
        finally:
            budget.active = False

    def charge(self, cost: int) -> None:
        """Take ``cost`` characters from the budget, and look at the clock."""
        budget = self._budget
        if not budget.active:
            return
        budget.characters -= cost
        if budget.characters < 0:
            raise TemplateLimitError(f"the chat template makes more than {4 * self._limit} characters")
        if time.monotonic() > budget.deadline:
            raise TemplateLimitError(f"the chat template runs for more than {self._seconds:g} seconds")

    def _printed(self, value: Any) -> Any:
        self.charge(len(value) if isinstance(value, str) else 1)
        return value

    def _check(self, size: int) -> None:
        if size > self._limit:
            raise TemplateLimitError(f"the chat template makes a value of {size} characters; {self._limit} are allowed")

    # Operators and calls that can make large values out of small ones

    def concatenate(self, *parts: Any) -> str:
        """The ``~`` operator."""
        texts = [str(part) for part in parts]
        self._check(sum(map(len, texts)))
        return "".join(texts)

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """An arithmetic operator, after a look at the size of its result."""
        if operator == "+" and hasattr(left, "__len__") and hasattr(right, "__len__"):
            self._check(len(left) + len(right))
        elif operator == "*":
            self._check_product(left, right)
        elif operator == "**":
            self._check_power(left, right)
        elif operator == "%" and isinstance(left, str):
            self._check_format(left, right if isinstance(right, tuple) else (right,))
        return super().call_binop(context, operator, left, right)

    def _check_product(self, left: Any, right: Any) -> None:
        for many, count in ((left, right), (right, left)):
            if hasattr(many, "__len__") and isinstance(count, int):
                self._check(len(many) * max(count, 0))
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() + right.bit_length() > _MAX_BITS:
            raise TemplateLimitError("the chat template makes a number that is too large")

    def _check_power(self, left: Any, right: Any) -> None:
        if isinstance(left, int) and isinstance(right, int) and left.bit_length() * abs(right) > _MAX_BITS:
            raise TemplateLimitError("the chat template makes a number that is too large")

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        """A call from a template, after a look at the size of its result where that can be known."""
        owner = getattr(obj, "__self__", None)
        if isinstance(owner, str | bytes | int):
            self._check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        result = super().call(context, obj, *args, **kwargs)
        if isinstance(result, str | bytes | list | tuple):
            self._check(len(result))
        return result

    def _check_method(self, owner: Any, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if name in _REFUSED_METHODS:
            raise SecurityError(f"chat templates may not call {name}()")
        if name in _PADDING_METHODS:
            _check_widths((*args, *kwargs.values()))
        elif name == "replace" and len(args) >= 2:
            self._check_replace(owner, args[0], args[1])
        elif name == "join" and args and isinstance(args[0], list | tuple):
            self._check(sum(len(part) + len(owner) for part in args[0] if hasattr(part, "__len__")))

    def _check_replace(self, text: Any, old: Any, new: Any) -> None:
        if isinstance(text, str) and isinstance(old, str) and isinstance(new, str):
            self._check(len(text) + text.count(old) * max(len(new) - len(old), 0))

    def _check_format(self, text: str, values: Sequence[Any]) -> None:
        if any(_WIDE_FORMAT.search(spec) for spec in re.findall(r"%[^a-zA-Z%]*", text)):
            raise SecurityError("chat templates may not use wide fields in % formats")
        self._check_fields(text, "%", values)

    def _check_fields(self, text: str, mark: str, values: Sequence[Any]) -> None:
        flat = [part for value in values for part in (value.values() if isinstance(value, Mapping) else (value,))]
        self._check(
            len(text) + text.count(mark) * max((len(part) for part in flat if isinstance(part, str)), default=0)
        )

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """``str.format`` as Jinja sandboxes it, without field widths that are huge or taken from arguments."""
        wrapped = super().wrap_str_format(value)
        if wrapped is None:
            return None
        for _, _, spec, _ in string.Formatter().parse(value.__self__):
            if spec and ("{" in spec or _WIDE_FORMAT.search(spec)):
                raise SecurityError("chat templates may not use wide fields in format()")

        def checked(*args: Any, **kwargs: Any) -> str:
            self._check_fields(value.__self__, "{", (*args, *kwargs.values()))
            return wrapped(*args, **kwargs)

        return checked

    # Filters

    def _checked_filters(self) -> dict[str, Callable[..., Any]]:
        def padded(name: str) -> Callable[..., Any]:
            original = FILTERS[name]
            skipped = 2 if hasattr(original, "jinja_pass_arg") else 1  # the value, and what Jinja passes before it

            @wraps(original)
            def checked(*args: Any, **kwargs: Any) -> Any:
                _check_widths((*args[skipped:], *kwargs.values()))
                return original(*args, **kwargs)

            return checked

        def join(value: Any, d: Any = "", attribute: Any = None) -> str:
            item_of = str if attribute is None else make_attrgetter(self, attribute, postprocess=str)
            texts = [item_of(item) for item in value]
            self._check(sum(map(len, texts)) + len(str(d)) * max(len(texts) - 1, 0))
            return str(d).join(texts)

        def replace(s: Any, old: Any, new: Any, count: int | None = None) -> str:
            self._check_replace(str(s), str(old), str(new))
            return str(s).replace(str(old), str(new), -1 if count is None else count)

        def format_(value: Any, *args: Any, **kwargs: Any) -> str:
            self._check_format(str(value), (*args, *kwargs.values()))
            return str(value) % (kwargs or args)

        def indent(s: Any, width: Any = 4, first: bool = False, blank: bool = False) -> Any:
            columns = width if isinstance(width, int) else len(width)
            _check_widths((columns,))
            self._check(len(str(s)) + (str(s).count("\n") + 1) * columns)
            return FILTERS["indent"](str(s), width, first, blank)

        return {
            "tojson": to_json,
            "join": join,
            "replace": replace,
            "format": format_,
            "indent": indent,
            **{name: padded(name) for name in ("batch", "center", "round", "slice")},
        }


def to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """The ``tojson`` filter as Hugging Face's templates have it: plain JSON, nothing escaped for HTML."""
    if indent is not None:
        _check_widths((indent if isinstance(indent, int) else len(indent),))
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _check_widths(values: tuple[Any, ...]) -> None:
    if any(isinstance(value, int) and abs(value) > _MAX_WIDTH for value in values):
        raise TemplateLimitError(f"the chat template asks for a width of more than {_MAX_WIDTH}")
