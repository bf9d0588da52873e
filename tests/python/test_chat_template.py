"""Chat templates: the dialect, the choice of a template, and what a hostile template may not do."""

from __future__ import annotations

import datetime
import json
import threading
import time
from typing import Any

import pytest

from helpers_gguf import VOCABULARIES, read_metadata
from metallic_native.errors import ModelFormatError, RequestError
from metallic_native.text.byte_level import byte_of_character
from metallic_native.text.chat_template import ChatTemplate
from metallic_native.text.tokenizer import Tokenizer

USER = [{"role": "user", "content": "Hi"}]
TALK = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "Hello."},
    {"role": "user", "content": "Bye"},
]


def render(source: str, messages: Any = USER, **options: Any) -> str:
    return ChatTemplate({"default": source}, {"bos_token": "<s>", "eos_token": "</s>"}).render(messages, **options)


def tokenizer_with(*added: str, **more: object) -> Tokenizer:
    characters = {byte: character for character, byte in byte_of_character.items()}
    return Tokenizer.from_metadata(
        {
            "tokenizer.ggml.model": "gpt2",
            "tokenizer.ggml.pre": "qwen2",
            "tokenizer.ggml.tokens": [characters[byte] for byte in range(256)] + ["<s>", "</s>", *added],
            "tokenizer.ggml.token_type": [1] * 256 + [3] * (2 + len(added)),
            "tokenizer.ggml.merges": [],
            "tokenizer.ggml.bos_token_id": 256,
            "tokenizer.ggml.eos_token_id": 257,
            **more,
        }
    )


# The dialect

LLAMA_LIKE = """
{%- macro header(role) -%}
<|start|>{{ role }}<|end|>

{% endmacro -%}
{{- bos_token }}
{%- set ns = namespace(seen=false, count=0) %}
{%- if messages[0]['role'] == 'system' %}
    {%- set system = messages[0]['content'] | trim %}
    {%- set messages = messages[1:] %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}
        {{- raise_exception('Roles must alternate, but message ' ~ loop.index ~ ' is ' ~ message.role) }}
    {%- endif %}
    {%- set ns.count = ns.count + 1 %}
    {{- header(message['role']) ~ (system ~ ' ' if loop.first and system is defined) ~ message.content + '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- header('assistant') }}
{%- endif %}
{{- '[' ~ ns.count ~ ']' }}
"""


def test_macros_namespaces_and_whitespace_control() -> None:
    assert render(LLAMA_LIKE, TALK) == (
        "<s><|start|>user<|end|>\n\nBe brief. Hi<|eot|><|start|>assistant<|end|>\n\nHello.<|eot|>"
        "<|start|>user<|end|>\n\nBye<|eot|><|start|>assistant<|end|>\n\n[3]"
    )
    assert render(LLAMA_LIKE, USER, add_generation_prompt=False) == "<s><|start|>user<|end|>\n\nHi<|eot|>[1]"


def test_blocks_are_trimmed() -> None:
    source = "A\n  {% if true %}\n  B\n  {% endif %}\nC\n{# a comment #}\nD\n"
    assert render(source) == "A\n  B\nC\nD"


def test_refused_messages() -> None:
    with pytest.raises(RequestError, match="Roles must alternate, but message 2 is user"):
        render(LLAMA_LIKE, USER + USER)


def test_loop_neighbours_and_controls() -> None:
    source = (
        "{% for m in messages %}{% if m.role == 'system' %}{% continue %}{% endif %}"
        "{{ loop.previtem.role if loop.previtem is defined else '^' }}>{{ m.role }}>"
        "{{ loop.nextitem.role if loop.nextitem is defined else '$' }};"
        "{% if loop.index == 3 %}{% break %}{% endif %}{% endfor %}"
    )
    assert render(source, TALK) == "system>user>assistant;user>assistant>user;"


def test_tools_are_json_as_in_hugging_face() -> None:
    tool = {
        "type": "function",
        "function": {"name": "wetter", "description": "f\u00fcr <Ort> & 'Zeit'", "parameters": {}},
    }
    source = (
        "{% if tools %}{% for tool in tools %}{{ tool | tojson }}\n"
        "{{ tool.function | tojson(indent=2) }}{% endfor %}{% endif %}"
    )
    assert render(source, tools=[tool]) == json.dumps(tool, ensure_ascii=False) + "\n" + json.dumps(
        tool["function"], ensure_ascii=False, indent=2
    )
    assert render(source) == ""
    assert render("{{ {'b': 1, 'a': 2} | tojson(sort_keys=true, separators=(',', ':')) }}") == '{"a":2,"b":1}'
    assert render("{{ tools is none }} {{ documents is none }}") == "True True"


def test_documents_and_further_variables() -> None:
    source = "{% for d in documents %}{{ loop.index0 }}:{{ d['text'] }} {% endfor %}{{ enable_thinking }}"
    assert render(source, documents=[{"text": "x"}, {"text": "y"}], enable_thinking=False) == "0:x 1:y False"


def test_generation_tag_is_tolerated() -> None:
    source = "{% for m in messages %}{% generation %}{{ m.content }}{{ eos_token }}{% endgeneration %}{% endfor %}"
    assert render(source, TALK[:2]) == "Be brief.</s>Hi</s>"


def test_date() -> None:
    template = ChatTemplate(
        {"default": "{{ strftime_now('%d %b %Y') }}"}, clock=lambda: datetime.datetime(2024, 7, 26, 12, 0)
    )
    assert template.render(USER) == "26 Jul 2024"


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("messages | map(attribute='role') | join(', ')", "system, user, assistant, user"),
        ("messages | selectattr('role', 'equalto', 'user') | list | length", "2"),
        ("messages | join('/', attribute='role')", "system/user/assistant/user"),
        ("'a-b'.split('-')[-1].upper()", "B"),
        ("'A'.lower().replace('a', 'bb')", "bb"),
        ("'-'.join(['p', 'q'])", "p-q"),
        ("'{}:{:>3}'.format('k', 7)", "k:  7"),
        ("'x\ny' | indent(2)", "x\n  y"),
        ("'aXaX' | replace('X', '-', 1)", "a-aX"),
        ("'%s=%d' | format('n', 3)", "n=3"),
        ("'%s%%' % 'z'", "z%"),
        ("['a', 1] | join", "a1"),
        ("'a' * 3 + 'b'", "aaab"),
        ("'a' ~ 1 ~ none", "a1None"),
        ("7 % 4 + 2 ** 10", "1027"),
        ("[1] + [2]", "[1, 2]"),
        ("[1, 2, 3, 4, 5] | batch(2) | list", "[[1, 2], [3, 4], [5]]"),
        ("[1, 2, 3] | slice(2) | list", "[[1, 2], [3]]"),
        ("123456.789 | round(1)", "123456.8"),
        ("'a' | center(3)", " a "),
    ],
)
def test_filters_methods_and_operators(expression: str, expected: str) -> None:
    assert render("{{ " + expression + " }}", TALK) == expected


def test_messages_are_not_changed() -> None:
    messages = [dict(message) for message in TALK]
    render(LLAMA_LIKE, messages)
    assert messages == TALK


# Choosing a template


def test_templates_in_metadata() -> None:
    tokenizer = tokenizer_with()
    plain = ChatTemplate.from_metadata(
        {"tokenizer.chat_template": "{{ bos_token }}{{ messages[0].content }}"}, tokenizer
    )
    assert plain.render(USER) == "<s>Hi"
    assert plain.names == ("default",)
    named = {
        "tokenizer.chat_template": "default",
        "tokenizer.chat_templates": ["tool_use", "rag"],
        "tokenizer.chat_template.tool_use": "tools {{ tools | length }}",
        "tokenizer.chat_template.rag": "rag",
    }
    several = ChatTemplate.from_metadata(named, tokenizer)
    assert several.render(USER) == "default"
    assert several.render(USER, tools=[{}]) == "tools 1"
    assert several.render(USER, tools=[]) == "default"
    assert several.render(USER, name="rag") == "rag"
    assert several.source("rag") == "rag"
    with pytest.raises(RequestError, match="default, rag, tool_use"):
        several.render(USER, name="none")
    listed = ChatTemplate.from_metadata(
        {"tokenizer.chat_template": [{"name": "default", "template": "d"}, {"name": "tool_use", "template": "t"}]},
        tokenizer,
    )
    assert (listed.render(USER), listed.render(USER, tools=[1])) == ("d", "t")


@pytest.mark.parametrize(
    ("metadata", "key"),
    [
        ({"tokenizer.chat_template": 3}, "tokenizer.chat_template"),
        ({"tokenizer.chat_template": b"\xff"}, "tokenizer.chat_template"),
        ({"tokenizer.chat_template": ["x"]}, "tokenizer.chat_template"),
        ({"tokenizer.chat_templates": ["gone"]}, "tokenizer.chat_templates"),
        ({"tokenizer.chat_templates": "tool_use"}, "tokenizer.chat_templates"),
        ({"tokenizer.chat_template.tool_use": 1}, "tokenizer.chat_template.tool_use"),
    ],
)
def test_malformed_metadata_names_the_key(metadata: dict[str, object], key: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        ChatTemplate.from_metadata(metadata, tokenizer_with())
    assert caught.value.where == key


def test_chatml_without_a_template() -> None:
    template = ChatTemplate.from_metadata({}, tokenizer_with("<|im_start|>", "<|im_end|>"))
    assert template.render(TALK[:2]) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert template.render(USER, add_generation_prompt=False) == "<|im_start|>user\nHi<|im_end|>\n"


def test_no_template_at_all() -> None:
    with pytest.raises(RequestError, match="give a template, or send a plain prompt"):
        ChatTemplate.from_metadata({}, tokenizer_with()).render(USER)


def test_encoding_adds_bos_once() -> None:
    tokenizer = tokenizer_with("<|im_start|>", "<|im_end|>", **{"tokenizer.ggml.add_bos_token": True})
    chatml = ChatTemplate.from_metadata({}, tokenizer)
    assert chatml.encode(tokenizer, USER, add_generation_prompt=False) == [256, 258, *b"user\nHi", 259, *b"\n"]
    with_bos = ChatTemplate.from_metadata({"tokenizer.chat_template": "{{ bos_token }}x"}, tokenizer)
    assert with_bos.encode(tokenizer, USER) == [256, *b"x"]


def test_templates_of_real_models() -> None:
    path = VOCABULARIES / "ggml-vocab-qwen2.gguf"
    if not path.exists():
        pytest.skip("the shared test data is absent")
    metadata = read_metadata(path)
    template = ChatTemplate.from_metadata(metadata, Tokenizer.from_metadata(metadata))
    assert template.render(USER) == (
        "<|im_start|>system\nYou are a helpful assistant<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    )
    metadata = read_metadata(path.with_name("ggml-vocab-phi-3.gguf"))
    template = ChatTemplate.from_metadata(metadata, Tokenizer.from_metadata(metadata))
    assert template.render(USER) == "<s><|user|>\nHi<|end|>\n<|assistant|>\n"


# Errors


@pytest.mark.parametrize("messages", [None, "Hi", {"role": "user"}, [1], [{"content": "x"}], [{"role": 3}], b"x"])
def test_messages_must_be_messages(messages: Any) -> None:
    with pytest.raises(RequestError):
        render("x", messages)


@pytest.mark.parametrize(
    "source",
    [
        "{% if %}",
        "{{ messages",
        "{% for m in messages %}",
        "{{ 'x' | no_such_filter }}",
        "{% include 'x' %}",
        "{% import 'x' as y %}",
        "{% extends 'x' %}",
        "{% generation %}",
        "{{ " + "(" * 5000 + ")" * 5000 + " }}",
        "{% if true %}" * 300 + "{% endif %}" * 300,
    ],
)
def test_bad_templates(source: str) -> None:
    with pytest.raises(ModelFormatError) as caught:
        render(source)
    assert caught.value.where == "tokenizer.chat_template"


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages[0].missing.deeper }}",
        "{{ messages[9].role }}",
        "{{ 1 + 'a' }}",
        "{{ unknown() }}",
        "{{ none | tojson | int / 0 }}",
    ],
)
def test_failures_name_the_cause(source: str) -> None:
    with pytest.raises(RequestError, match="could not be applied"):
        render(source)


# The sandbox


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ (messages | attr('__class__')).__bases__ }}",
        "{{ strftime_now.__func__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format('') }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'role': 'x'}) }}",
        "{{ messages[0].clear() }}",
        "{% set x = messages.pop() %}{{ x }}",
        "{{ cycler.__init__.__globals__.os.system('true') }}",
        "{{ namespace.__init__.__globals__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ (1).to_bytes(10, 'big') }}",
        "{{ 'a'.translate({97: 'b'}) }}",
        "{{ '%10000000d' % 1 }}",
        "{{ '%*d' % (100000000, 1) }}",
        "{{ '{:100000000}'.format(1) }}",
        "{{ '{:{}}'.format(1, 100000000) }}",
        "{{ '%99999999d' | format(1) }}",
        "{{ strftime_now('%999999999d') }}",
    ],
)
def test_escapes_are_refused(source: str) -> None:
    with pytest.raises(ModelFormatError, match="may not"):
        render(source)


@pytest.mark.parametrize(
    "source",
    [
        "{{ messages.__class__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now['__self__'] ~ '' }}",
        "{{ '{a.__class__}'.format_map({'a': 1}) }}",
        "{{ ('{0.__class__}' | string).format('') }}",
        "{{ messages | map(attribute='__class__') | join }}",
        "{{ messages | attr('__len__') }}",
    ],
)
def test_internals_are_undefined(source: str) -> None:
    assert render(source) == ""


BOMBS = [
    "{% for a in range(100000) %}{% for b in range(100000) %}{% for c in range(100000) %}"
    "{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(100000) %}{% set x = a * b %}{% endfor %}{% endfor %}",
    "{% for a in range(100000) %}{% for b in range(1000) %}0123456789{% endfor %}{% endfor %}",
    "{% for a in range(10000) %}{{ 'x' * 10000 }}{% endfor %}",
    "{{ 'x' * 10**12 }}",
    "{{ [0] * 10**12 }}",
    "{{ 10**12 * 'x' }}",
    "{{ 10 ** (10 ** 10) }}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s ~ ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s=[1]) %}{% for i in range(60) %}{% set ns.s = ns.s + ns.s %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s.replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ns.s | replace('x', 'xx') %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = [ns.s, ns.s] | join %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = ''.join([ns.s, ns.s]) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = '%s%s' % (ns.s, ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s = '{0}{0}'.format(ns.s) %}{% endfor %}",
    "{% macro d(s) %}{{ s }}{{ s }}{% endmacro %}{% set ns = namespace(s='x') %}"
    "{% for i in range(60) %}{% set ns.s = d(ns.s) %}{% endfor %}",
    "{% set ns = namespace(s='x') %}{% for i in range(60) %}{% set ns.s %}{{ ns.s }}{{ ns.s }}{% endset %}{% endfor %}",
    "{% set ns = namespace(n=9) %}{% for i in range(60) %}{% set ns.n = ns.n * ns.n %}{% endfor %}",
    "{% macro f(n) %}{% if n > 0 %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}",
    "{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}",
    "{{ 'x'.ljust(10**10) }}",
    "{{ 'x'.center(10**10) }}",
    "{{ 'x' | center(10**10) }}",
    "{{ 'x' | indent(10**10, first=true) }}",
    "{{ [1] | batch(10**10, 0) | list }}",
    "{{ [1] | tojson(indent=10**10) }}",
    "{{ 1.5 | round(10**10) }}",
    "{{ range(10**12) | list }}",
    "{{ lipsum(10**9) }}",
    "{% for a in messages recursive %}{{ loop(messages) }}{% endfor %}",
]


@pytest.mark.parametrize("source", BOMBS)
def test_time_and_memory_are_bounded(source: str) -> None:
    template = ChatTemplate({"default": source}, max_characters=1 << 20, max_seconds=0.5)
    start = time.monotonic()
    with pytest.raises(RequestError):
        template.render(USER)
    assert time.monotonic() - start < 10


@pytest.mark.parametrize(
    "source",
    [
        "{% set big = 'x' * 1000 %}{% set y %}{% for a in range(10000) %}{{ big }}{% endfor %}{% endset %}",
        "{% set y %}{% for a in range(10000) %}" + 64 * "0123456789" + "{% endfor %}{% endset %}",
    ],
)
def test_text_that_is_made_but_not_printed_counts(source: str) -> None:
    with pytest.raises(RequestError, match="makes more than 400000 characters"):
        ChatTemplate({"default": source}, max_characters=100_000, max_seconds=60).render(USER)


def test_an_ordinary_long_talk_is_within_the_limits() -> None:
    messages = [{"role": "user" if index % 2 == 0 else "assistant", "content": "word " * 200} for index in range(2000)]
    assert len(render(LLAMA_LIKE, messages)) > 2_000_000


def test_limits_are_per_rendering_and_thread() -> None:
    template = ChatTemplate(
        {"default": "{% for i in range(1000) %}{{ messages[0].content }}{% endfor %}"}, max_characters=4000
    )
    results: list[str] = []

    def work() -> None:
        for _ in range(20):
            results.append(template.render(USER))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert results == ["Hi" * 1000] * 80
