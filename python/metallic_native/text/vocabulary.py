"""The token table of a GGUF file: texts, types and the special tokens among them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np

from ..errors import ModelFormatError
from .metadata import Metadata, get_int, get_sequence, integers, strings

__all__ = ["SpecialTokens", "TokenType", "Vocabulary"]

TOKENS_KEY = "tokenizer.ggml.tokens"
TYPES_KEY = "tokenizer.ggml.token_type"
SCORES_KEY = "tokenizer.ggml.scores"
MERGES_KEY = "tokenizer.ggml.merges"


class TokenType(IntEnum):
    """``tokenizer.ggml.token_type`` as the GGUF specification has it, after SentencePiece's piece types."""

    UNDEFINED = 0
    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


@dataclass(frozen=True)
class SpecialTokens:
    """Ids of the tokens with a role; None where the vocabulary has no such token."""

    bos: int | None = None
    eos: int | None = None
    eot: int | None = None
    eom: int | None = None
    unk: int | None = None
    sep: int | None = None
    pad: int | None = None
    mask: int | None = None
    fim_pre: int | None = None
    fim_suf: int | None = None
    fim_mid: int | None = None
    fim_pad: int | None = None
    fim_rep: int | None = None
    fim_sep: int | None = None


ROLES = tuple(field.name for field in fields(SpecialTokens))

_ROLE_KEYS: Mapping[str, tuple[str, ...]] = {
    "unk": ("unknown_token_id",),
    "sep": ("seperator_token_id", "separator_token_id"),  # the first spelling is the GGUF specification's own
    "pad": ("padding_token_id",),
    "fim_pre": ("fim_pre_token_id", "prefix_token_id"),
    "fim_suf": ("fim_suf_token_id", "suffix_token_id"),
    "fim_mid": ("fim_mid_token_id", "middle_token_id"),
}

# Texts by which a role is recognised where the metadata does not name it: published special tokens of model families.
_ROLE_TEXTS: Mapping[str, tuple[str, ...]] = {
    "eot": (
        "<|eot_id|>",  # Llama 3
        "<|im_end|>",  # ChatML: Qwen, SmolLM, Yi
        "<|end|>",  # Phi 3
        "<end_of_turn>",  # Gemma
        "<|end_of_turn|>",
        "<|eot|>",  # Llama 4
        "<|end_of_text|>",  # Granite
        "<end_of_utterance>",
        "<\uff5cend\u2581of\u2581sentence\uff5c>",  # DeepSeek
        "<|endoftext|>",
    ),
    "eom": ("<|eom_id|>", "<|eom|>"),
    "fim_pre": (
        *("<|fim_prefix|>", "<fim-prefix>", "<fim_prefix>", "<\uff5cfim\u2581begin\uff5c>", "<PRE>", "\u2581<PRE>"),
        *("<|code_prefix|>", "<|prefix|>"),
    ),
    "fim_suf": (
        *("<|fim_suffix|>", "<fim-suffix>", "<fim_suffix>", "<\uff5cfim\u2581hole\uff5c>", "<SUF>", "\u2581<SUF>"),
        *("<|code_suffix|>", "<|suffix|>"),
    ),
    "fim_mid": (
        *("<|fim_middle|>", "<fim-middle>", "<fim_middle>", "<\uff5cfim\u2581end\uff5c>", "<MID>", "\u2581<MID>"),
        *("<|code_middle|>", "<|middle|>"),
    ),
    "fim_pad": ("<|fim_pad|>", "<fim-pad>", "<fim_pad>"),
    "fim_rep": ("<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>"),
    "fim_sep": ("<|file_sep|>",),
}

# Texts that end a generation wherever they occur, and texts that do so only as control tokens, being HTML or prose too.
_END_TEXTS = (
    *("<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<end_of_turn>", "<|end_of_turn|>", "<|eot|>"),
    *("<|endoftext|>", "<|eom_id|>", "<|eom|>", "<|end_of_text|>", "<end_of_utterance>"),
    "<\uff5cend\u2581of\u2581sentence\uff5c>",
)
_END_CONTROL_TEXTS = ("</s>", "<eos>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]", "<|user_end|>")

# How texts begin that are written for no other purpose than to be special tokens.
_MARKED = ("<|", "<\uff5c", "<fim")

# An absent id is stored as -1 by some writers, which reads as the largest unsigned value.
_ABSENT_IDS = frozenset({-1, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF})


def read_special_ids(metadata: Metadata, size: int, defaults: Mapping[str, int]) -> dict[str, int]:
    """The ids that ``metadata`` names, by role; an id outside the ``size`` tokens raises ModelFormatError.

    ``defaults`` are the ids of roles that the metadata does not mention.
    """
    found: dict[str, int] = {}
    mentioned = set()
    for role in ROLES:
        for suffix in _ROLE_KEYS.get(role, (f"{role}_token_id",)):
            key = f"tokenizer.ggml.{suffix}"
            value = get_int(metadata, key)
            if value is None:
                continue
            mentioned.add(role)
            if value in _ABSENT_IDS:
                continue
            if not 0 <= value < size:
                raise ModelFormatError(f"token id {value} is outside the vocabulary of {size} tokens", where=key)
            found.setdefault(role, value)
    return found | {role: token for role, token in defaults.items() if role not in mentioned and token < size}


class Vocabulary:
    """Token texts, their types, and the special tokens.

    ``tokens[id]`` is the text as the file has it, which may be empty; ``types[id]`` is a :class:`TokenType` value;
    ``ids[text]`` is the id of a text that is not empty. Building it checks every token.
    """

    def __init__(self, metadata: Metadata, named: Mapping[str, int]) -> None:
        values = get_sequence(metadata, TOKENS_KEY)
        if values is None:
            raise ModelFormatError("the key is missing", where=TOKENS_KEY)
        self.tokens = strings(values, TOKENS_KEY)
        self.ids = self._index(self.tokens)
        self.types = self._read_types(metadata, named)
        self.special = SpecialTokens(**(self._recognised(named) | dict(named)))
        self.end_ids = self._end_ids(metadata)
        self._mark_control()

    @staticmethod
    def _index(tokens: list[str]) -> dict[str, int]:
        ids = dict(zip(tokens, range(len(tokens)), strict=True))
        if len(ids) != len(tokens):
            first: dict[str, int] = {}
            for index, text in enumerate(tokens):
                if text and first.setdefault(text, index) != index:
                    raise ModelFormatError(
                        f"tokens {first[text]} and {index} are both {text!r}: a token may occur once", where=TOKENS_KEY
                    )
        ids.pop("", None)
        return ids

    def _read_types(self, metadata: Metadata, named: Mapping[str, int]) -> bytearray:
        values = get_sequence(metadata, TYPES_KEY)
        if values is None:
            types = bytearray([TokenType.NORMAL]) * len(self.tokens)
            for role in ("bos", "eos", "eot", "eom", "unk", "pad"):
                if role in named:
                    types[named[role]] = TokenType.CONTROL
            byte_tokens = [self.ids.get(f"<0x{value:02X}>") for value in range(0x100)]
            if None not in byte_tokens:
                for token in byte_tokens:
                    types[token or 0] = TokenType.BYTE
            return types
        array = integers(values, TYPES_KEY)
        known = (array >= TokenType.UNDEFINED) & (array <= TokenType.BYTE)
        if not bool(known.all()):
            index = int((~known).argmax())
            raise ModelFormatError(f"element {index} is {int(array[index])}, which is no token type", where=TYPES_KEY)
        return bytearray(array.astype(np.uint8).tobytes())

    def _recognised(self, named: Mapping[str, int]) -> dict[str, int]:
        found = {}
        for role, texts in _ROLE_TEXTS.items():
            if role not in named:
                token = next((self.ids[text] for text in texts if text in self.ids), None)
                if token is not None:
                    found[role] = token
        return found

    def _end_ids(self, metadata: Metadata) -> frozenset[int]:
        special = self.special
        ends = {special.eos, special.eot, special.eom, special.fim_pad, special.fim_rep, special.fim_sep}
        ends |= {self.ids.get(text) for text in _END_TEXTS}
        for text in _END_CONTROL_TEXTS:
            token = self.ids.get(text)
            if token is not None and self.types[token] == TokenType.CONTROL:
                ends.add(token)
        ends |= set(self._listed_ends(metadata))
        if "<|return|>" in self.ids and "<|call|>" in self.ids and "<|end|>" in self.ids:
            # In the harmony format <|end|> closes one message of several; <|return|> and <|call|> end the turn.
            end = self.ids["<|end|>"]
            if end not in (special.eos, special.eom):
                ends.discard(end)
        return frozenset(token for token in ends if token is not None)

    def _listed_ends(self, metadata: Metadata) -> Iterable[int]:
        key = "tokenizer.ggml.eos_token_ids"
        values = get_sequence(metadata, key)
        if values is None:
            return ()
        listed = integers(values, key)
        if bool(((listed < 0) | (listed >= len(self.tokens))).any()):
            raise ModelFormatError(f"a token id is outside the vocabulary of {len(self.tokens)} tokens", where=key)
        return [int(token) for token in listed]

    def _mark_control(self) -> None:
        """Give the type control to tokens that are recognised by text but were stored as plain ones."""
        texts = {text for group in (_END_TEXTS, *_ROLE_TEXTS.values()) for text in group if text.startswith(_MARKED)}
        for text in texts | set(_END_TEXTS):
            token = self.ids.get(text)
            if token is not None and self.types[token] in (TokenType.NORMAL, TokenType.UNDEFINED):
                self.types[token] = TokenType.CONTROL

    def of_type(self, *types: TokenType) -> list[int]:
        """The ids whose type is one of ``types``, ascending."""
        array = np.frombuffer(self.types, dtype=np.uint8)
        return [int(index) for index in np.flatnonzero(np.isin(array, [int(kind) for kind in types]))]
