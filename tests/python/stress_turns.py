"""What threads do to a model in stress_memory.py, and what must come of it."""

from __future__ import annotations

import contextlib
import random
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

import metallic_native as mn
from stress_models import Settings

# What a turn does, and how often.
ACTIONS = {
    "generate": 8,
    "cancel": 4,
    "alone": 2,
    "fork": 2,
    "branch": 2,
    "batch": 2,
    "take_over": 1,
    "close_meanwhile": 1,
    "consumer_fails": 1,
    "truncate": 1,
    "evict": 1,
    "evict_weights": 1,
    "renew": 1,
    "reserve": 1,
    "compact": 1,
}
MOST_BRANCHES = 6


class ConsumerError(Exception):
    """Raised where chunks are consumed."""


class Conversation:
    """A prompt that is asked for in several lengths, so that its cache is cut and continued."""

    def __init__(self, number: int, rng: random.Random, settings: Settings, vocabulary: int) -> None:
        self.shifts = number % 16 == 15  # to the end of the context and beyond
        length = settings.context - 5 if self.shifts else rng.randint(3, settings.longest)
        self.ids = [rng.randrange(vocabulary - 10) for _ in range(length)]
        self.lengths = [length] if self.shifts else sorted({max(1, length // 3), max(1, 2 * length // 3), length})
        self.drawn = 12 if self.shifts else rng.randint(1, settings.most_drawn)
        self.sampling = mn.Sampling(temperature=0)
        if settings.sampled and number % 2 == 0:
            self.sampling = mn.Sampling(temperature=0.9, top_k=50, top_p=0.95, seed=number)
        self.lock = threading.Lock()

    @property
    def shift(self) -> int | None:
        return 40 if self.shifts else None

    def solo(self, model: mn.Model, length: int) -> Text:
        """On a model that nobody else uses."""
        with contextlib.closing(model.new_cache()) as cache:
            drawn = model.generate(
                self.ids[:length],
                self.drawn,
                self.sampling,
                ignore_eos=True,
                cache=cache,
                context_shift=self.shift,
            ).token_ids
            following = cache.extend(drawn[-1:], planned=length + self.drawn) if not self.shifts else None
            return Text(drawn, -1 if following is None else int(following.argmax()))


@dataclass(frozen=True)
class Text:
    drawn: list[int]
    next: int
    """The likeliest token after the drawn ones."""


@dataclass(frozen=True)
class Branch:
    """A fork whose tokens end before the last drawn one."""

    sequence: Any
    last: int
    next: int
    extended: bool


class Turns:
    """Conversations on one model. Each turn checks what it gets; what is wrong is told to ``fail``."""

    def __init__(self, model: mn.Model, conversations: list[Conversation], texts: dict[tuple[int, int], Text]) -> None:
        self.model, self.conversations, self.texts = model, conversations, texts
        self.caches = [model.new_cache() for _ in conversations]
        self.branches: list[Branch] = []
        self.branches_lock = threading.Lock()
        self.original_context = model.config.rope.original_context if model.native.has_extended_rope else 0
        self.exact = True

    def fail(self, what: str) -> None:
        raise NotImplementedError

    def count(self, what: str) -> None:
        raise NotImplementedError

    def act(self, rng: random.Random, number: int, action: str | None = None) -> None:
        """One turn of a conversation whose lock the caller has."""
        one = self.conversations[number]
        length = rng.choice(one.lengths)
        wanted = self.texts[number, length].drawn
        if action is None:
            action = rng.choices(*zip(*ACTIONS.items(), strict=True))[0]
        self.count(action)
        cache = self.caches[number]
        if action in ("generate", "alone"):
            self.compare(number, length, len(wanted), None if action == "alone" else cache)
        elif action in ("cancel", "consumer_fails"):
            # Open-ended ones claim little of what they may take, so that others have to give way to them.
            open_ended = rng.random() < 0.7 and not self.original_context
            until = rng.randint(0, len(wanted) - 1)
            with contextlib.suppress(ConsumerError):
                self.compare(number, length, until, cache, open_ended, raises=action == "consumer_fails")
        elif action == "fork":
            self.fork(number, length)
        elif action == "branch":
            self.run_branch(rng)
        elif action == "batch":
            self.run_batch(rng)
        elif action == "take_over":
            self.take_over(rng, number, length)
        elif action == "close_meanwhile":
            self.close_meanwhile(rng, number, length)
        elif action == "truncate":
            cache.keep_prefix(one.ids[: rng.randint(1, length)], length + one.drawn)
        elif action == "evict":
            cache._sequence.evict()
        elif action == "reserve":
            cache.reserve(min(cache._sequence.length + 32, self.model.context_length))
        elif action == "compact":
            self.model.compact()
        elif action == "evict_weights":
            self.model.evict_weights(rng.choice([None, 1, 200_000]))
        else:
            self.renew(number)

    def renew(self, number: int) -> None:
        self.caches[number].close()
        self.caches[number] = self.model.new_cache()

    def stream(self, number: int, length: int, cache: Any, open_ended: bool = False) -> Iterator[mn.Chunk]:
        one = self.conversations[number]
        return self.model.stream(
            one.ids[:length],
            None if open_ended else one.drawn,
            one.sampling,
            ignore_eos=True,
            cache=cache,
            context_shift=one.shift,
        )

    def compare(
        self, number: int, length: int, until: int, cache: Any, open_ended: bool = False, raises: bool = False
    ) -> None:
        wanted = self.texts[number, length].drawn
        drawn: list[int] = []
        chunks = self.stream(number, length, cache, open_ended)
        try:
            for chunk in chunks:
                if chunk.token_id is not None:
                    drawn.append(chunk.token_id)
                if len(drawn) >= until and until < len(wanted):
                    if raises:
                        raise ConsumerError
                    break
        finally:
            if not raises:
                chunks.close()  # type: ignore[attr-defined]
            self.check(number, length, drawn)
        if until == len(wanted) and len(drawn) != len(wanted):
            self.fail(f"conversation {number}, {length} tokens: it ended after {len(drawn)} of {len(wanted)}")

    def check(self, number: int, length: int, drawn: list[int]) -> None:
        wanted = self.texts[number, length].drawn[: len(drawn)]
        if self.exact and drawn != wanted:
            self.fail(f"conversation {number}, {length} tokens: {drawn} instead of {wanted}")
        if not all(0 <= token < self.model.vocabulary_size for token in drawn):
            self.fail(f"conversation {number}, {length} tokens: {drawn} is outside of the vocabulary")

    # ---- forks ----

    def extended(self, planned: int) -> bool:
        return bool(self.original_context) and planned > self.original_context

    def fork(self, number: int, length: int) -> None:
        """A fork of a fork, kept for later, while the conversation goes on."""
        one, text = self.conversations[number], self.texts[number, length]
        self.compare(number, length, len(text.drawn), self.caches[number])
        first = self.caches[number]._sequence.fork()
        branch = Branch(first.fork(), text.drawn[-1], text.next, self.extended(length + one.drawn))
        first.close()
        with self.branches_lock:
            if not one.shifts and len(self.branches) < MOST_BRANCHES:
                self.branches.append(branch)
                return
        branch.sequence.close()

    def run_branch(self, rng: random.Random) -> None:
        with self.branches_lock:
            if not self.branches:
                return
            branch = self.branches[rng.randrange(len(self.branches))]
            sequence = branch.sequence.fork()
            if rng.random() < 0.3:
                self.branches.remove(branch)
                branch.sequence.close()
        with contextlib.closing(sequence):
            logits = np.empty((1, self.model.vocabulary_size), np.float32)
            tokens = [np.array([branch.last], np.int32)]
            self.model.native.forward([sequence], tokens, [1], [branch.extended], logits)
        if self.exact and logits.argmax() != branch.next:
            self.fail(f"a branch goes on with {logits.argmax()} instead of {branch.next}")

    def run_batch(self, rng: random.Random) -> None:
        """One pass over several prompts. It claims nothing beforehand, so that others are preempted, or it is."""
        plain = [number for number, one in enumerate(self.conversations) if not one.shifts]
        numbers = rng.sample(plain, rng.randint(2, 6))
        lengths = [rng.choice(self.conversations[number].lengths) for number in numbers]
        keys = list(zip(numbers, lengths, strict=True))
        prompts = [np.array(self.conversations[number].ids[:length], np.int32) for number, length in keys]
        extended = [self.extended(length + self.conversations[number].drawn) for number, length in keys]
        native = self.model.native
        sequences = [native.create_sequence() for _ in keys]
        logits = np.empty((len(keys), self.model.vocabulary_size), np.float32)
        try:
            native.forward(sequences, prompts, [1] * len(keys), extended, logits)
        finally:
            for sequence in sequences:
                sequence.close()
        for key, row in zip(keys, logits.argmax(axis=1).tolist(), strict=True):
            greedy = self.conversations[key[0]].sampling.temperature == 0
            if self.exact and greedy and row != self.texts[key].drawn[0]:
                self.fail(f"a pass over {keys} begins {row} for {key} instead of {self.texts[key].drawn[0]}")

    # ---- two at one cache ----

    def take_over(self, rng: random.Random, number: int, length: int) -> None:
        """A generation whose cache another one takes is refused from then on; the other one is right."""
        cache = self.caches[number]
        first = self.stream(number, length, cache)
        drawn: list[int] = []
        for _ in range(rng.randint(1, 3)):
            chunk = next(first)
            drawn += [] if chunk.token_id is None else [chunk.token_id]
            if chunk.finish_reason is not None:
                break
        other = rng.choice(self.conversations[number].lengths)
        self.compare(number, other, len(self.texts[number, other].drawn), cache)
        try:
            drawn += [chunk.token_id for chunk in first if chunk.token_id is not None]
        except mn.RequestError as error:
            if "taken over" not in str(error):
                raise
        self.check(number, length, drawn)
        self.compare(number, other, len(self.texts[number, other].drawn), cache)

    def close_meanwhile(self, rng: random.Random, number: int, length: int) -> None:
        """Another thread closes the cache of a generation that runs."""
        timer = threading.Timer(rng.uniform(0, 0.05), self.caches[number].close)
        timer.start()
        try:
            self.compare(number, length, len(self.texts[number, length].drawn), self.caches[number])
        except (mn.OutOfMemory, mn.DeviceError):
            raise
        except mn.Error as error:
            if "closed" not in str(error):
                raise
        finally:
            timer.join()
            self.renew(number)

    def close(self) -> None:
        for branch in self.branches:
            branch.sequence.close()
        for cache in self.caches:
            cache.close()
