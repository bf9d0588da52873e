"""The training text: a seeded mixture of stories, fragments and conversations, made and encoded in parallel."""

from __future__ import annotations

import multiprocessing
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

import chat
import foreign
import grammar

CHUNK = 500  # documents per unit of work
FRAGMENT_SHARE = 0.05
FOREIGN_SHARE = 0.08
CHAT_SHARE = 0.26
CUT_SHARE = 0.06  # of all but conversations: encoded in two pieces, as prompts that end in a space or inside a word are
CUT = "\x01"
# Chunk numbers from here on are never trained on.
HELD_OUT_CHUNK = 1_000_000


def document(rng: random.Random) -> str:
    """One document: a conversation, a story with a foreign beginning or without its own, or a whole story.

    At most one ``CUT`` says where it is to be encoded in two pieces.
    """
    roll = rng.random()
    if roll < CHAT_SHARE:
        return chat.conversation(rng)
    if roll < CHAT_SHARE + FRAGMENT_SHARE:
        text = grammar.fragment(rng)
    elif roll < CHAT_SHARE + FRAGMENT_SHARE + FOREIGN_SHARE:
        text = foreign.story(rng)
    else:
        text = grammar.story(rng)
    if rng.random() < CUT_SHARE:
        at = rng.randint(1, min(90, len(text) - 1))
        if rng.random() < 0.6:
            at = text.rfind(" ", 0, at) + 1 or at
        text = text[:at] + CUT + text[at:]
    return text


def chunk_of_documents(seed: int, chunk: int, count: int = CHUNK) -> list[str]:
    """The ``count`` documents of one chunk; the same seed and chunk give the same text on every machine."""
    rng = random.Random(seed * 10_000_019 + chunk)
    return [document(rng) for _ in range(count)]


def special_id(tokenizer: Tokenizer, token: str) -> int:
    """The id of a special token; raises ValueError when the tokenizer lacks it."""
    number = tokenizer.token_to_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no {token}")
    return number


@dataclass(frozen=True)
class Encoded:
    """Documents, each begun by the end-of-text token: ``tokens`` [n] uint16 ids, ``starts`` [documents] int64."""

    tokens: NDArray[np.uint16]
    starts: NDArray[np.int64]


def encode_chunk(tokenizer: Tokenizer, seed: int, chunk: int, count: int = CHUNK) -> Encoded:
    """Makes and encodes one chunk."""
    boundary = special_id(tokenizer, chat.END)
    ids: list[int] = []
    starts: list[int] = []
    texts = [text.split(CUT) for text in chunk_of_documents(seed, chunk, count)]
    pieces = iter(tokenizer.encode_batch([piece for text in texts for piece in text], add_special_tokens=False))
    for text in texts:
        starts.append(len(ids))
        ids.append(boundary)
        for _ in text:
            ids.extend(next(pieces).ids)
    return Encoded(np.array(ids, dtype=np.uint16), np.array(starts, dtype=np.int64))


_worker: Tokenizer | None = None


def _start_worker(tokenizer_path: str) -> None:
    global _worker
    _worker = Tokenizer.from_file(tokenizer_path)


def _work(job: tuple[int, int, int]) -> Encoded:
    assert _worker is not None
    return encode_chunk(_worker, *job)


def encode_many(tokenizer_path: str, seed: int, first: int, documents: int, processes: int) -> Encoded:
    """Encodes ``documents`` documents of the chunks from ``first`` on with a pool of ``processes``."""
    jobs = [(seed, first + i, min(CHUNK, documents - i * CHUNK)) for i in range((documents + CHUNK - 1) // CHUNK)]
    tokens: list[NDArray[np.uint16]] = []
    starts: list[NDArray[np.int64]] = []
    offset = 0
    with multiprocessing.get_context("spawn").Pool(processes, _start_worker, (tokenizer_path,)) as pool:
        for part in pool.imap(_work, jobs, chunksize=4):
            tokens.append(part.tokens)
            starts.append(part.starts + offset)
            offset += len(part.tokens)
    return Encoded(np.concatenate(tokens), np.concatenate(starts))


def documents(seed: int, count: int) -> Iterator[str]:
    """The first ``count`` training documents, for the tokenizer."""
    for chunk in range((count + CHUNK - 1) // CHUNK):
        yield from chunk_of_documents(seed, chunk, min(CHUNK, count - chunk * CHUNK))
