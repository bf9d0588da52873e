"""Chat messages to a prompt, by the Jinja template that a model file carries.

Templates are written for Hugging Face's ``apply_chat_template``; the variables, filters and functions here are the
ones that its documentation lists. GGUF stores them under ``tokenizer.chat_template``, further ones under
``tokenizer.chat_template.NAME`` with their names listed in ``tokenizer.chat_templates``.
"""

from __future__ import annotations

import datetime
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from jinja2.exceptions import SecurityError, TemplateSyntaxError

from ..errors import ModelFormatError, RequestError
from .metadata import Metadata, get_sequence, get_string, strings
from .template_sandbox import SandboxedTemplateEnvironment, TemplateLimitError
from .tokenizer import Tokenizer

__all__ = ["CHATML", "ChatTemplate"]

_KEY = "tokenizer.chat_template"
_NAMES_KEY = "tokenizer.chat_templates"

#: The ChatML format (OpenAI, 2023), for models that have its tokens but no template.
CHATML = (
    "{%- for message in messages -%}"
    "{{- '<|im_start|>' + message['role'] + '\\n' + (message['content'] or '') + '<|im_end|>' + '\\n' -}}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
)

_MAX_CHARACTERS = 1 << 24
_MAX_SECONDS = 10.0


class _RefusedError(Exception):
    """Raised by a template through ``raise_exception``."""


class ChatTemplate:
    """The chat templates of one model, from :meth:`from_metadata`. Any thread may call :meth:`render`."""

    def __init__(
        self,
        templates: Mapping[str, str],
        special_texts: Mapping[str, str] | None = None,
        *,
        clock: Callable[[], datetime.datetime] = datetime.datetime.now,
        max_characters: int = _MAX_CHARACTERS,
        max_seconds: float = _MAX_SECONDS,
    ) -> None:
        """``templates`` by name (``default``, ``tool_use``, …); ``special_texts`` such as ``bos_token`` to its text.

        ``clock`` gives the time to templates that ask for a date. A rendering is bounded by ``max_characters`` and
        ``max_seconds``.
        """
        self._templates = dict(templates)
        self._special_texts = {"bos_token": "", "eos_token": ""} | dict(special_texts or {})
        self._clock = clock
        self._compiled: dict[str, Any] = {}
        self._lock = threading.Lock()
        self._environment = SandboxedTemplateEnvironment(limit=max_characters, seconds=max_seconds)
        self._environment.globals["raise_exception"] = _raise_exception
        self._environment.globals["strftime_now"] = self._strftime_now

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object], tokenizer: Tokenizer) -> ChatTemplate:
        """The templates in ``metadata``; ChatML where there is none but the vocabulary has its tokens."""
        templates = _read_templates(metadata)
        if not templates and tokenizer.token_to_id("<|im_start|>") is not None:
            templates = {"default": CHATML}
        ids = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "pad_token": tokenizer.pad_id,
            "unk_token": tokenizer.unk_id,
        }
        return cls(templates, {name: tokenizer.id_to_token(token) for name, token in ids.items() if token is not None})

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the templates."""
        return tuple(self._templates)

    def source(self, name: str = "default") -> str | None:
        """The Jinja source of a template, or None."""
        return self._templates.get(name)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Any] | None = None,
        documents: Sequence[Any] | None = None,
        add_generation_prompt: bool = True,
        name: str | None = None,
        **variables: Any,
    ) -> str:
        """The prompt for ``messages``, with its special tokens written out; :meth:`encode` makes token ids of it.

        ``tools`` are JSON schemas of functions, ``documents`` texts to answer from; ``variables`` are passed on to the
        template (``enable_thinking=False``). ``name`` chooses a template; by default it is ``tool_use`` if there are
        tools and such a template, else ``default``.

        Raises RequestError where there is no template, or it refuses or cannot digest the messages or exceeds its
        limits; ModelFormatError where the template itself is malformed or tries what it may not.
        """
        chosen = self._choose(name, bool(tools))
        given = {
            **self._special_texts,
            **variables,
            "messages": _check_messages(messages),
            "tools": list(tools) if tools else None,
            "documents": list(documents) if documents else None,
            "add_generation_prompt": add_generation_prompt,
        }
        template = self._compile(chosen)
        try:
            return self._environment.render(template, given)
        except _RefusedError as error:
            raise RequestError(f"the chat template refused the messages: {error}") from None
        except TemplateLimitError as error:
            raise RequestError(str(error)) from None
        except SecurityError as error:
            raise ModelFormatError(f"the chat template tries what it may not: {error}", where=_key(chosen)) from None
        except Exception as error:  # a template may raise anything that Python does
            raise RequestError(
                f"the chat template could not be applied to these messages: {type(error).__name__}: {error}"
            ) from error

    def encode(self, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of the prompt that :meth:`render` makes; BOS comes first if the model wants it, but never twice."""
        ids = tokenizer.encode(self.render(messages, **options), add_special=False, parse_special=True)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def _choose(self, name: str | None, has_tools: bool) -> str:
        if name is None:
            name = "tool_use" if has_tools and "tool_use" in self._templates else "default"
        if name in self._templates:
            return name
        if self._templates:
            raise RequestError(f"the model has no chat template {name!r}; it has {', '.join(sorted(self._templates))}")
        raise RequestError(
            "the model has no chat template and its vocabulary is not ChatML's: give a template, or send a plain prompt"
        )

    def _compile(self, name: str) -> Any:
        with self._lock:
            if name not in self._compiled:
                self._compiled[name] = self._compile_source(self._templates[name], _key(name))
            return self._compiled[name]

    def _compile_source(self, source: str, key: str) -> Any:
        try:
            return self._environment.compile_template(source)
        except TemplateSyntaxError as error:
            raise ModelFormatError(f"line {error.lineno}: {error.message}", where=key) from None
        except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            reason = f"the template cannot be compiled: {type(error).__name__}: {error}"
            raise ModelFormatError(reason, where=key) from None

    def _strftime_now(self, layout: str) -> str:
        # A width in a format, which the C library takes, can ask for gigabytes.
        if re.search(r"\d{3,}", layout) or len(layout) > 1000:
            raise SecurityError("the date format has a field that is too wide")
        return self._clock().strftime(layout)


def _raise_exception(message: str = "") -> None:
    raise _RefusedError(message)


def _key(name: str) -> str:
    return _KEY if name == "default" else f"{_KEY}.{name}"


def _check_messages(messages: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    if isinstance(messages, str | bytes | Mapping) or not isinstance(messages, Sequence):
        raise RequestError("messages must be a list of objects with a role and content")
    for index, message in enumerate(messages):
        if not isinstance(message, Mapping) or not isinstance(message.get("role"), str):
            raise RequestError(f"message {index} must be an object with a role that is a string")
    return [dict(message) for message in messages]


def _read_templates(metadata: Metadata) -> dict[str, str]:
    templates: dict[str, str] = {}
    value = metadata.get(_KEY)
    if isinstance(value, str | bytes):
        templates["default"] = get_string(metadata, _KEY) or ""
    elif value is not None:
        templates |= _listed_templates(get_sequence(metadata, _KEY) or ())
    names = get_sequence(metadata, _NAMES_KEY)
    for name in strings(names, _NAMES_KEY) if names is not None else ():
        text = get_string(metadata, _key(name))
        if text is None and name not in templates:
            raise ModelFormatError(f"lists the template {name!r}, but {_key(name)} is missing", where=_NAMES_KEY)
        if text is not None:
            templates[name] = text
    for key in metadata:
        if key.startswith(f"{_KEY}."):
            templates.setdefault(key[len(_KEY) + 1 :], get_string(metadata, key) or "")
    return templates


def _listed_templates(items: Sequence[Any]) -> dict[str, str]:
    """Templates given as a list of ``{"name": …, "template": …}``, as ``tokenizer_config.json`` has them."""
    found: dict[str, str] = {}
    for index, item in enumerate(items):
        name = item.get("name") if isinstance(item, Mapping) else None
        text = item.get("template") if isinstance(item, Mapping) else None
        if not isinstance(name, str) or not isinstance(text, str):
            raise ModelFormatError(f"element {index} is no object with a name and a template", where=_KEY)
        found[name] = text
    return found
