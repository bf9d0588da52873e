"""Trains the byte-level BPE of the demo model with GPT-2's pre-tokenisation (GGUF: model ``gpt2``, pre ``gpt-2``)."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

import chat
import corpus

VOCABULARY = 3072
DOCUMENTS = 12_000
SPECIAL = (chat.END, chat.IM_START, chat.IM_END)


def train(texts: Iterable[str], vocabulary: int = VOCABULARY) -> Tokenizer:
    """A tokenizer of at most ``vocabulary`` entries, all 256 bytes and the three special tokens among them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        min_frequency=2,
        show_progress=False,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    plain = (_without_special(text) for text in texts)
    tokenizer.train_from_iterator(plain, trainer)
    return tokenizer


def _without_special(text: str) -> str:
    """Special tokens are split off before pre-tokenisation, so their letters must not shape the merges."""
    text = text.replace(corpus.CUT, "")
    for token in SPECIAL:
        text = text.replace(token, "\n")
    return text


def main() -> None:
    """Writes ``tokenizer.json``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for tokenizer.json")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--documents", type=int, default=DOCUMENTS)
    parser.add_argument("--vocabulary", type=int, default=VOCABULARY)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    train(corpus.documents(args.seed, args.documents), args.vocabulary).save(str(args.out / "tokenizer.json"))


if __name__ == "__main__":
    main()
