"""Text to token ids and back, from the ``tokenizer.*`` metadata of a GGUF file."""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import ModelFormatError, RequestError, UnsupportedModelError
from ..threads import start_thread
from . import byte_level, sentencepiece
from .metadata import Metadata, floats, get_bool, get_sequence, get_string
from .pretokenizers import PRE_TOKENIZERS, PreTokenizer
from .splitting import SpecialTokenSplitter
from .vocabulary import (
    MERGES_KEY,
    SCORES_KEY,
    TOKENS_KEY,
    TYPES_KEY,
    SpecialTokens,
    TokenType,
    Vocabulary,
    read_special_ids,
)

__all__ = ["Tokenizer"]

_log = logging.getLogger(__name__)

_MODEL_KEY = "tokenizer.ggml.model"
_PRE_KEY = "tokenizer.ggml.pre"
_FAMILIES = ("gpt2", "llama")

# SentencePiece's own default ids, which files of this family may leave out.
_SENTENCEPIECE_IDS = {"unk": 0, "bos": 1, "eos": 2}

# Tokens that text is cut at, and those of them that are no part of the text that a user sees.
_MARKERS = (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED)
_HIDDEN = (TokenType.CONTROL, TokenType.UNKNOWN)


class _Model(Protocol):
    def encode(self, text: str, *, first: bool) -> list[int]: ...


class _Encoder:
    """What encoding needs, built together: the model and the finders of tokens written in the text."""

    def __init__(self, model: _Model, special: SpecialTokenSplitter, plain: SpecialTokenSplitter) -> None:
        self.model = model
        self.special = special
        self.plain = plain


class Tokenizer:
    """Encodes and decodes for one model. Any thread may call any method.

    Make one with :meth:`from_metadata`. Making one is cheap: sizes and types are checked, nothing is built. The
    vocabulary is indexed when it is first needed, the encoder at the first :meth:`encode`; :meth:`prepare` does both
    ahead of time. Whatever is wrong with the metadata raises :class:`~metallic_native.ModelFormatError` with the key,
    at the latest from :meth:`prepare`.
    """

    def __init__(self, metadata: Metadata) -> None:
        self._metadata: dict[str, object] = {
            key: value for key, value in metadata.items() if key.startswith(("tokenizer.ggml.", "general."))
        }
        self._lock = threading.RLock()
        self._vocabulary: Vocabulary | None = None
        self._encoder: _Encoder | None = None
        self._family = self._read_family()
        self._scheme = self._read_scheme() if self._family == "gpt2" else None
        self._size = self._check_sizes()
        defaults = _SENTENCEPIECE_IDS if self._family == "llama" else {}
        self._named = read_special_ids(self._metadata, self._size, defaults)
        add_bos = self._scheme.add_bos if self._scheme is not None else True
        self._add_bos = self._adds("bos", add_bos)
        self._add_eos = self._adds("eos", False)
        prefix = get_bool(self._metadata, "tokenizer.ggml.add_space_prefix")
        self._space_prefix = self._family == "llama" and prefix is not False
        self._collapse_spaces = get_bool(self._metadata, "tokenizer.ggml.remove_extra_whitespaces") or False

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> Tokenizer:
        """A tokenizer from GGUF metadata (key to str, number, bool, or a list or array of those).

        Raises ModelFormatError for missing or malformed keys, UnsupportedModelError for a tokenizer family or
        pre-tokenizer that is not implemented.
        """
        return cls(metadata)

    def _read_family(self) -> str:
        family = get_string(self._metadata, _MODEL_KEY)
        if family is None:
            raise ModelFormatError("the key is missing: the file has no tokenizer", where=_MODEL_KEY)
        if family not in _FAMILIES:
            raise UnsupportedModelError(
                f"{_MODEL_KEY} is {family!r}, a tokenizer family that is not implemented",
                what=family,
                supported=_FAMILIES,
            )
        return family

    def _read_scheme(self) -> PreTokenizer:
        name = get_string(self._metadata, _PRE_KEY)
        if name is None:
            _log.warning("%s is missing: text is split in the default way, which may not be the model's", _PRE_KEY)
            name = "default"
        if name not in PRE_TOKENIZERS:
            raise UnsupportedModelError(
                f"{_PRE_KEY} is {name!r}, a pre-tokenizer that is not known",
                what=name,
                supported=sorted(PRE_TOKENIZERS),
            )
        return PRE_TOKENIZERS[name]

    def _check_sizes(self) -> int:
        tokens = get_sequence(self._metadata, TOKENS_KEY)
        if tokens is None:
            raise ModelFormatError("the key is missing", where=TOKENS_KEY)
        if len(tokens) == 0:
            raise ModelFormatError("the vocabulary is empty", where=TOKENS_KEY)
        for key in (TYPES_KEY, SCORES_KEY):
            values = get_sequence(self._metadata, key)
            if values is not None and len(values) != len(tokens):
                raise ModelFormatError(f"{len(values)} elements for {len(tokens)} tokens", where=key)
        needed = MERGES_KEY if self._family == "gpt2" else SCORES_KEY
        if get_sequence(self._metadata, needed) is None:
            raise ModelFormatError(f"the key is missing, and {_MODEL_KEY} = {self._family} needs it", where=needed)
        return len(tokens)

    def _adds(self, role: str, default: bool) -> bool:
        key = f"tokenizer.ggml.add_{role}_token"
        wanted = get_bool(self._metadata, key)
        if wanted and role not in self._named:
            raise ModelFormatError(f"true, but tokenizer.ggml.{role}_token_id is missing", where=key)
        return (default if wanted is None else wanted) and role in self._named

    # Building

    def prepare(self) -> None:
        """Build everything that encoding needs, unless that is done. Blocks; later calls cost nothing."""
        self._built_encoder()

    def prepare_in_background(self) -> threading.Thread:
        """Start :meth:`prepare` in a daemon thread and return that. An error is raised again by the first use."""

        def build() -> None:
            try:
                self.prepare()
            except Exception as error:  # the caller meets the same error when it encodes
                _log.debug("the tokenizer could not be built: %s", error)

        return start_thread(build, "tokenizer-prepare")

    def _built_vocabulary(self) -> Vocabulary:
        vocabulary = self._vocabulary
        if vocabulary is None:
            with self._lock:
                if self._vocabulary is None:
                    self._vocabulary = Vocabulary(self._metadata, self._named)
                vocabulary = self._vocabulary
        return vocabulary

    def _built_encoder(self) -> _Encoder:
        encoder = self._encoder
        if encoder is None:
            with self._lock:
                if self._encoder is None:
                    self._encoder = self._build_encoder(self._built_vocabulary())
                    self._release_metadata()
                encoder = self._encoder
        return encoder

    def _build_encoder(self, vocabulary: Vocabulary) -> _Encoder:
        model: _Model
        if self._scheme is not None:
            merges: Sequence[Any] = get_sequence(self._metadata, MERGES_KEY) or ()
            model = byte_level.ByteLevelModel(vocabulary, merges, self._scheme)
        else:
            scores: Sequence[Any] | None = get_sequence(self._metadata, SCORES_KEY)
            array = floats(scores if scores is not None else (), SCORES_KEY)
            model = sentencepiece.ScoredPieceModel(vocabulary, array, space_prefix=self._space_prefix)
        return _Encoder(model, *self._splitters(vocabulary))

    def _splitters(self, vocabulary: Vocabulary) -> tuple[SpecialTokenSplitter, SpecialTokenSplitter]:
        spaced = self._family == "llama"
        user = {
            vocabulary.tokens[token].replace(sentencepiece.SPACE, " ") if spaced else vocabulary.tokens[token]: token
            for token in vocabulary.of_type(TokenType.USER_DEFINED)
        }
        control = {vocabulary.tokens[token]: token for token in vocabulary.of_type(*_HIDDEN)}
        strip = self._right_stripping(vocabulary)
        return SpecialTokenSplitter(user | control, strip), SpecialTokenSplitter(user, strip)

    def _right_stripping(self, vocabulary: Vocabulary) -> list[int]:
        # Phi-3's published tokenizer strips white space after its special tokens; GGUF has no key that would say so.
        name = (get_string(self._metadata, "general.name") or "").lower()
        architecture = get_string(self._metadata, "general.architecture")
        if self._family != "llama" or not (architecture == "phi3" or "phi-3" in name or "phi3" in name):
            return []
        kept = {vocabulary.ids.get(text) for text in ("<unk>", "<s>", "<|endoftext|>")}
        closing = vocabulary.ids.get("</s>")
        tokens = set(vocabulary.of_type(*_MARKERS)) | ({closing} if closing is not None else set())
        return sorted(tokens - kept)

    def _release_metadata(self) -> None:
        # The arrays are in the vocabulary and the model now; a mapped file need not stay open for them.
        for key in (TOKENS_KEY, TYPES_KEY, SCORES_KEY, MERGES_KEY):
            self._metadata.pop(key, None)

    # Encoding and decoding

    def encode(self, text: str, add_special: bool = True, parse_special: bool = True) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` adds BOS and EOS as the model asks for. With ``parse_special`` the texts of control tokens in
        ``text`` become those tokens; without it they are plain text. User-defined tokens are always found. A lone
        surrogate, which no UTF-8 text has, counts as U+FFFD.
        """
        if not isinstance(text, str):
            raise RequestError(f"the text to encode must be a str, not {type(text).__name__}")
        encoder = self._built_encoder()
        splitter = encoder.special if parse_special else encoder.plain
        special = self.special_tokens
        ids: list[int] = []
        if add_special and self._add_bos and special.bos is not None:
            ids.append(special.bos)
        first = True
        for part in splitter.split(self._normalized(text)):
            if isinstance(part, int):
                ids.append(part)
                first = True
            else:
                ids.extend(encoder.model.encode(part, first=first))
                first = False
        if add_special and self._add_eos and special.eos is not None:
            ids.append(special.eos)
        return ids

    def _normalized(self, text: str) -> str:
        try:
            text.encode("utf-8")
        except UnicodeEncodeError:
            text = text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
        if self._collapse_spaces:
            text = " ".join(word for word in text.split(" ") if word)
        return text

    def decode(self, ids: Iterable[int], skip_special: bool = False) -> str:
        """Text of ``ids``; bytes that are no UTF-8 become U+FFFD.

        ``skip_special`` leaves out control and unknown tokens. Raises RequestError for an id outside the vocabulary.
        The dummy space that SentencePiece models put at the start of a segment (of the text, and after a special
        token) is taken away again.
        """
        parts: list[bytes] = []
        start = True
        for token in ids:
            data, start = self.segment_bytes(token, start, skip_special)
            parts.append(data)
        return b"".join(parts).decode("utf-8", "replace")

    def segment_bytes(self, token: int, start: bool, skip_special: bool = False) -> tuple[bytes, bool]:
        """The bytes that ``token`` adds to a text, and whether the next token starts a segment.

        ``start`` says that ``token`` starts one, as the first token of a text does, and the one after a special token.
        """
        data = self.token_bytes(token)
        kind = self._built_vocabulary().types[token]
        if kind in _MARKERS:
            return (b"" if skip_special and kind in _HIDDEN else data), True
        if start and self._space_prefix and data.startswith(b" "):
            return data[1:], False
        return data, start and not data

    def token_bytes(self, token: int) -> bytes:
        """The bytes that ``token`` stands for, wherever it is; not always whole characters."""
        vocabulary = self._built_vocabulary()
        self._check_id(token)
        text, kind = vocabulary.tokens[token], vocabulary.types[token]
        if self._family == "llama":
            return sentencepiece.token_bytes(text, kind)
        return byte_level.token_bytes(text, kind)

    def id_to_token(self, token: int) -> str:
        """The text of ``token`` as the file has it, its spaces encoded. Raises RequestError for an unknown id."""
        self._check_id(token)
        return self._built_vocabulary().tokens[token]

    def token_to_id(self, text: str) -> int | None:
        """The id of the token that the file writes as ``text``, or None."""
        return self._built_vocabulary().ids.get(text)

    def is_special(self, token: int) -> bool:
        """Whether ``token`` is a control or unknown token, which is not part of the text that a user sees."""
        self._check_id(token)
        return self._built_vocabulary().types[token] in _HIDDEN

    def token_type(self, token: int) -> TokenType:
        """The type of ``token``."""
        self._check_id(token)
        return TokenType(self._built_vocabulary().types[token])

    def _check_id(self, token: int) -> None:
        if isinstance(token, bool) or not isinstance(token, int | np.integer):
            raise RequestError(f"a token id must be an int, not {type(token).__name__}")
        if not 0 <= token < self._size:
            raise RequestError(f"token id {token} is outside the vocabulary of {self._size} tokens")

    # Facts

    @property
    def vocab_size(self) -> int:
        """Number of tokens; ids are 0 to ``vocab_size - 1``."""
        return self._size

    @property
    def family(self) -> str:
        """``gpt2`` (byte-level BPE) or ``llama`` (SentencePiece BPE)."""
        return self._family

    @property
    def add_bos(self) -> bool:
        """Whether ``encode(add_special=True)`` prepends BOS."""
        return self._add_bos

    @property
    def add_eos(self) -> bool:
        """Whether ``encode(add_special=True)`` appends EOS."""
        return self._add_eos

    @property
    def special_tokens(self) -> SpecialTokens:
        """The ids of all tokens with a role, fill-in-the-middle ones included."""
        return self._built_vocabulary().special

    @property
    def bos_id(self) -> int | None:
        """Beginning of sequence."""
        return self._named.get("bos")

    @property
    def eos_id(self) -> int | None:
        """End of sequence."""
        return self._named.get("eos")

    @property
    def pad_id(self) -> int | None:
        """Padding."""
        return self._named.get("pad")

    @property
    def unk_id(self) -> int | None:
        """Unknown."""
        return self._named.get("unk")

    @property
    def eot_id(self) -> int | None:
        """End of turn, as the metadata says or by its text."""
        return self.special_tokens.eot

    @property
    def eom_id(self) -> int | None:
        """End of message (the turn goes on after a tool's answer)."""
        return self.special_tokens.eom

    @property
    def fim_ids(self) -> dict[str, int]:
        """Fill-in-the-middle tokens, those there are of ``prefix``, ``suffix``, ``middle``, ``pad``, ``repo``,
        ``sep``.
        """
        special = self.special_tokens
        found = {
            "prefix": special.fim_pre,
            "suffix": special.fim_suf,
            "middle": special.fim_mid,
            "pad": special.fim_pad,
            "repo": special.fim_rep,
            "sep": special.fim_sep,
        }
        return {role: token for role, token in found.items() if token is not None}

    @property
    def end_of_generation_ids(self) -> frozenset[int]:
        """The tokens after which a generation is over."""
        return self._built_vocabulary().end_ids

    def __len__(self) -> int:
        return self._size

    def __repr__(self) -> str:
        return f"Tokenizer(family={self._family!r}, vocab_size={self._size})"
