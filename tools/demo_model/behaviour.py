"""What the trained model does: shares of stories that end, hold together and grant a request, and samples to read."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizers import Tokenizer

import chat
import consistency
import corpus
import grammar
from model import Llama, generate

LIMIT = 320  # new tokens
OPENINGS = (
    "Once upon a time",
    "One morning,",
    "There was once",
    "In a small village",
    "Long ago,",
    "The old lighthouse keeper",
)
# Prompts, names and things below are nowhere in the training text.
FOREIGN = (
    "The wizard opened the door and", "Yesterday I went to the store and", "A robot named Zip", "Lily and Tom were",
    "There was once a king who", "The quick brown fox", "My favorite color is", "It had been snowing for three days. ",
    "Nobody knew why the bakery smelled of", "Deep beneath the waves,", "When the clock struck thirteen,",
    "Sir Percival drew his", "She whispered,", "Call me Ishmael.", "On a distant star, two",
    "The detective looked at the letter again.",
)  # fmt: skip
NAMES = tuple(
    """Bartholomew Xerxes Gwendolyn Thorgrim Anneliese Mordecai Philippa Zbigniew Rosalind Ignatius Cleopatra Hiroshi
    Fatima Svetlana Leopold Guinevere""".split()
)
THINGS = tuple(
    """typewriter harmonica muffin wheelbarrow saxophone lollipop chessboard thermometer hourglass cupcake surfboard
    xylophone suitcase doughnut hairbrush keyboard""".split()
)
GREEDY = (
    "Once upon a time",
    "One morning, a little girl named",
    "There was once a dragon who",
    "The old lighthouse keeper",
)
SAMPLED = ("Once upon a time", "Long ago,", "It was a cold night", "My grandmother", *FOREIGN)
ASKED = (
    "Tell me a story about Mira and a red kite.",
    "write a story about a fox named Bram and a zorple",
    "Tell me a story about a king who lost his crown.",
    "Can you tell me a story about a brave knight?",
    "Tell me a story about Bartholomew and a microscope.",
    "I want a story about two friends, Anna and Tom.",
    "Write a short story about a princess and a pizza.",
    "Hello, who are you?",
    "What is 2 + 2?",
)


@dataclass
class Teller:
    """A model with its tokenizer."""

    model: Llama
    tokenizer: Tokenizer

    def __post_init__(self) -> None:
        self.end = corpus.special_id(self.tokenizer, chat.END)
        self.im_end = corpus.special_id(self.tokenizer, chat.IM_END)

    def tell(self, prompts: Sequence[str], temperature: float, limit: int, seed: int) -> list[tuple[str, int]]:
        """What follows each prompt, as text, and its length in tokens."""
        encoded = [[self.end, *self.tokenizer.encode(p, add_special_tokens=False).ids] for p in prompts]
        tails = generate(self.model, encoded, {self.end, self.im_end}, limit, temperature, seed)
        return [(self.tokenizer.decode(tail), len(tail)) for tail in tails]

    def answer(self, asked: Sequence[str], temperature: float, limit: int, seed: int) -> list[tuple[str, int]]:
        """The answer to each message, as text, and its length in tokens."""
        prompts = [chat.turns([("user", ask)]) + f"{chat.IM_START}assistant\n" for ask in asked]
        return self.tell(prompts, temperature, limit, seed)


def measure(teller: Teller, count: int, limit: int) -> dict[str, float]:
    """Shares over ``count`` stories each: from the grammar's openings, from foreign ones, for two kinds of request."""
    report: dict[str, float] = {"stories_of_each_kind": count}
    rng = random.Random(987654321)
    for title, prompts in (("opening", OPENINGS), ("foreign_prompt", FOREIGN)):
        asked = [prompts[i % len(prompts)] for i in range(count)]
        told = teller.tell(asked, 0.8, limit, seed=7)
        # A foreign beginning may name anybody; what follows it has to hold together by itself.
        texts = [p + text if title == "opening" else text for p, (text, _) in zip(asked, told, strict=True)]
        report[f"{title}_ends"] = sum(length < limit for _, length in told) / count
        report[f"{title}_consistent"] = sum(not consistency.faults(text) for text in texts) / count
        report[f"{title}_mean_tokens"] = round(sum(length for _, length in told) / count, 1)
    known = [(grammar.pick_name(rng, rng.random() < 0.5, 0), rng.choice(grammar.SMALL).noun) for _ in range(count)]
    unseen = [(rng.choice(NAMES), rng.choice(THINGS)) for _ in range(count)]
    for title, wanted in (("request", known), ("unseen_request", unseen)):
        asked = [f"Tell me a story about {name} and {grammar.article(thing)}." for name, thing in wanted]
        told = teller.answer(asked, 0.5, limit, seed=8)
        pairs = [(name, thing, text) for (name, thing), (text, _) in zip(wanted, told, strict=True)]
        report[f"{title}_ends"] = sum(length < limit for _, length in told) / count
        report[f"{title}_has_name"] = sum(name in text for name, _, text in pairs) / count
        report[f"{title}_has_thing"] = sum(thing in text for _, thing, text in pairs) / count
        report[f"{title}_consistent"] = sum(not consistency.faults(text) for _, _, text in pairs) / count
    return report


def samples(teller: Teller, limit: int) -> str:
    """Greedy stories, sampled stories and chat answers, to be read."""
    rounds = (
        ("greedy", GREEDY, teller.tell(GREEDY, 0.0, limit, 11)),
        ("sampled at 0.8", SAMPLED, teller.tell(SAMPLED, 0.8, limit, 11)),
        ("chat at 0.5", ASKED, teller.answer(ASKED, 0.5, limit, 11)),
    )
    lines = []
    for title, prompts, told in rounds:
        for prompt, (text, length) in zip(prompts, told, strict=True):
            state = "ended" if length < limit else "cut"
            lines.append(f"--- {title}, {length} tokens, {state}\n{prompt}|{text}\n")
    return "\n".join(lines)
