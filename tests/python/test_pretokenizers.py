"""How text is cut into words: known splits of every scheme, and that nothing is lost or slow."""

from __future__ import annotations

import time

import pytest

from metallic_native.text.byte_level import build_pre_tokenizer
from metallic_native.text.pretokenizers import PRE_TOKENIZERS


def words(pre: str, text: str) -> list[str]:
    cut = build_pre_tokenizer(PRE_TOKENIZERS[pre])
    return [text[start:end] for _, (start, end) in cut.pre_tokenize_str(text)]


SPLITS = [
    ("gpt-2", "I'VE been's  here 12345", ["I", "'", "VE", " been", "'s", " ", " here", " 12345"]),
    ("llama-bpe", "I'VE  been 12345\n\n x", ["I", "'VE", " ", " been", " ", "123", "45", "\n\n", " x"]),
    ("llama3", "a\r\n b(c).\n\nd", ["a", "\r\n", " b", "(c", ").\n\n", "d"]),
    ("qwen2", "x=1234 y", ["x", "=", "1", "2", "3", "4", " y"]),
    ("starcoder", "x 12 y", ["x", " ", "1", "2", " y"]),
    ("smollm", "a1b", ["a", "1", "b"]),
    ("command-r", "in 2024.", ["in", " ", "2", "0", "2", "4", "."]),
    ("falcon", "a+=b 12345 c", ["a", "+=", "b", " ", "123", "45", " c"]),
    ("default", "Hi`` there, 1234", ["Hi", "``", " there", ",", " ", "123", "4"]),
    ("tekken", "camelCase HTTPServer 42/\n", ["camel", "Case", " HTTPServer", " ", "4", "2", "/\n"]),
    ("gpt-4o", "camelCase don't 1234", ["camel", "Case", " don't", " ", "123", "4"]),
    ("deepseek-llm", "ab 12\u4f60\u597d!", ["ab", " ", "1", "2", "\u4f60\u597d", "!"]),
    ("deepseek-coder", "x1 \u4f60, y\n", ["x", "1", " ", "\u4f60", ",", " y", "\n"]),
    ("deepseek-v3", "1234 abc\u3042\u4f60!x", ["123", "4", " abc", "\u3042\u4f60", "!x"]),
    ("kimi-k2", "abc\u4f60\u597d Def", ["abc", "\u4f60\u597d", " Def"]),
    ("bloom", "Hello, world (a)", ["Hello", ",", " world", " (", "a", ")"]),
    ("viking", "a12", ["a", "1", "2"]),
    ("chatglm-bpe", "1234", ["123", "4"]),
    ("qwen35", "e\u0301a 12", ["e\u0301a", " ", "1", "2"]),
    ("seed-coder", "a!\n12", ["a", "!", "\n", "1", "2"]),
    ("bailingmoe", "\n\nab'LL 12", ["\n\n", "ab", "'LL", " ", "1", "2"]),
]


@pytest.mark.parametrize(("pre", "text", "expected"), SPLITS)
def test_splits(pre: str, text: str, expected: list[str]) -> None:
    assert words(pre, text) == expected


@pytest.mark.parametrize("pre", {scheme: name for name, scheme in PRE_TOKENIZERS.items()}.values())
def test_every_scheme_loses_nothing_and_is_fast(pre: str) -> None:
    text = "Aa1 \t\r\n'S don't \u4f60\u597d\u0301 x\u00b2 !?/ \U0001f999 " * 3 + " "
    assert "".join(words(pre, text)) == text
    cut = build_pre_tokenizer(PRE_TOKENIZERS[pre])
    for unit in ("a", "A", " ", "\n", "7", "!", "\u4f60", "'", "\u0301", "aA", " \n", "1a"):
        start = time.process_time()
        assert cut.pre_tokenize_str(unit * (50_000 // len(unit)))
        assert time.process_time() - start < 3  # linear: hundredths; quadratic: minutes
