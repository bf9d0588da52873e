"""Many conversations on a model that has memory for half of them, while things go wrong.

Threads run turns of conversations that keep their caches; some are cancelled, forked, evicted or closed; the budget
changes at random (which is how an allocation is made to fail on the CPU), and a simulated Metal device fails when it is
told to. Whatever happens, a text is the one that a model without pressure gives, and an error is one of the package's.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import json
import logging
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

GREEDY = {"temperature": 0.0}
THREADS = 8
STUCK_SECONDS = 120
# What a turn does, and how often.
ACTIONS = {
    "generate": 8,
    "cancel": 4,
    "alone": 2,
    "fork": 2,
    "batch": 2,
    "evict": 1,
    "renew": 1,
    "reserve": 1,
    "compact": 1,
}


@dataclass(frozen=True)
class Settings:
    seconds: float
    device: str
    seed: int
    eviction: str
    conversations: int = 64
    longest: int = 240
    """Tokens of a prompt."""
    most_drawn: int = 24
    faults: int = 0
    """How many of each kind the simulated device is told to meet."""


def fault_plan(seed: int, count: int) -> str:
    """For METALSIM_FAULTS, which must be set before the device is made: failed allocations and command buffers."""
    rng = random.Random(seed)
    faults = []
    for number in range(count):
        # The nth counts from the first such call, so that they come one after the other.
        faults += [
            f"heap_allocation:nth={6 + 5 * number + rng.randrange(5)}",
            f"command_buffer:nth={150 + 200 * number + rng.randrange(200)},code=8",
            f"command_buffer:nth={150 + 200 * number + rng.randrange(200)},code={rng.choice([1, 2, 3])}",
        ]
    return ";".join(faults)


@dataclass
class Outcome:
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, object] = field(default_factory=dict)
    actions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.wrong and not any(self.left.values())


class Conversation:
    """A prompt that is asked for in several lengths, so that its cache is cut and continued."""

    def __init__(self, rng: random.Random, settings: Settings) -> None:
        length = rng.randint(3, settings.longest)
        self.ids = [rng.randrange(250) for _ in range(length)]
        self.lengths = sorted({max(1, length // 3), max(1, 2 * length // 3), length})
        self.drawn = rng.randint(1, settings.most_drawn)
        self.lock = threading.Lock()


class Stress:
    def __init__(self, path: Path, settings: Settings) -> None:
        import metallic_native as mn  # after the environment is set

        self.mn, self.settings = mn, settings
        self.greedy = mn.Sampling(**GREEDY)
        rng = random.Random(settings.seed)
        self.conversations = [Conversation(rng, settings) for _ in range(settings.conversations)]
        self.outcome = Outcome()
        self.counts_lock = threading.Lock()
        options = {"device": settings.device, "batch_tokens": 64, "threads": 1}
        with mn.load(path, **options) as free:
            self.texts = {
                (number, length): self.solo(free, one.ids[:length], one.drawn)
                for number, one in enumerate(self.conversations)
                for length in one.lengths
            }
            report = free.memory()
        page = sum(group.page_bytes for group in report.cache_groups)
        demand = page * sum(-(-(len(one.ids) + one.drawn) // report.page_tokens) for one in self.conversations)
        self.fixed = report.current - report.mapped_bytes + (16 << 10) * report.heaps
        self.longest = page * (-(-(settings.longest + settings.most_drawn) // report.page_tokens) + 2)
        self.budget = self.fixed + max(demand // 2, 2 * self.longest)
        self.model = mn.load(path, eviction=settings.eviction, memory_budget=self.budget, **options)
        self.caches = [self.model.new_cache() for _ in self.conversations]
        self.deadline = time.monotonic() + settings.seconds
        self.heard = [time.monotonic()] * THREADS

    def solo(self, model: object, ids: list[int], count: int) -> list[int]:
        return model.generate(ids, count, self.greedy, ignore_eos=True).token_ids  # type: ignore[attr-defined]

    def count(self, what: str) -> None:
        with self.counts_lock:
            self.outcome.counts[what] += 1

    def fail(self, what: str) -> None:
        with self.counts_lock:
            self.outcome.wrong.append(what)

    @contextlib.contextmanager
    def typed_errors_only(self) -> Iterator[None]:
        mn = self.mn
        try:
            yield
        except (mn.OutOfMemory, mn.DeviceError) as error:
            if isinstance(error, mn.DeviceError) and not self.settings.faults:
                self.fail(f"{type(error).__name__}: {error}")
            self.count(type(error).__name__)
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}")

    # ---- what threads do ----

    def turn(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.conversations))
        one = self.conversations[number]
        if not one.lock.acquire(blocking=False):
            return
        try:
            with self.typed_errors_only():
                self.act(rng, number, one)
        finally:
            one.lock.release()

    def act(self, rng: random.Random, number: int, one: Conversation) -> None:
        length = rng.choice(one.lengths)
        wanted = self.texts[number, length]
        action = rng.choices(*zip(*ACTIONS.items(), strict=True))[0]
        self.count(action)
        cache = self.caches[number]
        if action in ("generate", "alone", "cancel"):
            until = rng.randint(0, len(wanted) - 1) if action == "cancel" else len(wanted)
            kept = None if action == "alone" else cache
            # Open-ended ones claim little of what they may take, so that others have to give way to them.
            self.compare(number, length, until, kept, open_ended=action == "cancel" and rng.random() < 0.7)
        elif action == "fork":
            copy = cache._sequence.fork()
            self.compare(number, length, len(wanted), cache)
            copy.close()
        elif action == "batch":
            self.run_batch(rng)
        elif action == "evict":
            cache._sequence.evict()
        elif action == "reserve":
            cache.reserve(min(cache._sequence.length + 32, self.model.context_length))
        elif action == "compact":
            self.model.compact()
        else:
            cache.close()
            self.caches[number] = self.model.new_cache()

    def compare(self, number: int, length: int, until: int, cache: object, open_ended: bool = False) -> None:
        one, wanted = self.conversations[number], self.texts[number, length]
        drawn: list[int] = []
        chunks = self.model.stream(
            one.ids[:length],
            None if open_ended else one.drawn,
            self.greedy,
            ignore_eos=True,
            cache=cache,  # type: ignore[arg-type]
        )
        try:
            for chunk in chunks:
                if chunk.token_id is not None:
                    drawn.append(chunk.token_id)
                if len(drawn) >= until and until < len(wanted):
                    break
        finally:
            chunks.close()  # type: ignore[attr-defined]
            if drawn != wanted[: len(drawn)]:
                self.fail(f"conversation {number}, {length} tokens: {drawn} instead of {wanted[: len(drawn)]}")
        if until == len(wanted) and drawn != wanted:
            self.fail(f"conversation {number}, {length} tokens: it ended after {len(drawn)} of {len(wanted)}")

    def run_batch(self, rng: random.Random) -> None:
        """One pass over several prompts. It claims nothing beforehand, so that others are preempted, or it is."""
        import numpy as np

        numbers = rng.sample(range(len(self.conversations)), rng.randint(2, 6))
        lengths = [rng.choice(self.conversations[number].lengths) for number in numbers]
        prompts = [
            np.array(self.conversations[number].ids[:length], np.int32)
            for number, length in zip(numbers, lengths, strict=True)
        ]
        native = self.model.native
        sequences = [native.create_sequence() for _ in numbers]
        logits = np.empty((len(numbers), self.model.vocabulary_size), np.float32)
        try:
            native.forward(sequences, prompts, [1] * len(numbers), [False] * len(numbers), logits)
        finally:
            for sequence in sequences:
                sequence.close()
        firsts = [self.texts[key][0] for key in zip(numbers, lengths, strict=True)]
        if logits.argmax(axis=1).tolist() != firsts:
            self.fail(f"a pass over {numbers} of {lengths} tokens begins {logits.argmax(axis=1)} instead of {firsts}")

    def work(self, thread: int) -> None:
        rng = random.Random(f"{self.settings.seed}.{thread}")
        while time.monotonic() < self.deadline and not self.outcome.wrong:
            self.turn(rng)
            self.heard[thread] = time.monotonic()
        self.heard[thread] = float("inf")

    def change_budget(self) -> None:
        """Sometimes nothing at all can be had, sometimes little, mostly what was promised."""
        rng = random.Random(f"{self.settings.seed}.budget")
        native = self.model.native
        while time.monotonic() < self.deadline:
            kind = rng.choices(["promised", "less", "nothing"], [6, 3, 1])[0]
            if kind == "nothing":
                native.set_memory_budget(max(1, self.model.memory().heap_bytes))
            elif kind == "less":
                native.set_memory_budget(self.fixed + rng.randint(self.longest, 3 * self.longest))
            else:
                native.set_memory_budget(self.budget)
            self.model.memory_events()
            time.sleep(rng.uniform(0.001, 0.1))
        native.set_memory_budget(self.budget)

    # ---- the whole ----

    def run(self) -> Outcome:
        threads = [threading.Thread(target=self.work, args=(number,), daemon=True) for number in range(THREADS)]
        threads.append(threading.Thread(target=self.change_budget, daemon=True))
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            time.sleep(0.05)
            if time.monotonic() - min(self.heard) > STUCK_SECONDS:
                faulthandler.dump_traceback()
                self.fail(f"a thread was stuck: {self.model.memory()}")
                return self.outcome
        # After all that, every conversation is as it would have been without it.
        if not self.outcome.wrong and not self.settings.faults:
            for number, one in enumerate(self.conversations):
                with self.typed_errors_only():
                    length = one.lengths[-1]
                    self.compare(number, length, len(self.texts[number, length]), self.caches[number])
        return self.finish()

    def finish(self) -> Outcome:
        for cache in self.caches:
            cache.close()
        report = self.model.memory()
        self.outcome.actions = report.actions
        self.outcome.left = {
            "pages": report.pages,
            "held": sum(group.pages_held for group in report.cache_groups),
            "kv": report.tags["kv"].current,
            "saved": report.saved_bytes,
        }
        warnings = Warnings()
        logging.getLogger("metallic_native").addHandler(warnings)
        self.model.close()
        self.outcome.left["leaks"] = [*warnings.texts, *self.mn._native.take_leak_reports()]
        return self.outcome


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def run(settings: Settings) -> Outcome:
    """In this process, whose device must not have been used yet where there are ``faults``."""
    if settings.faults:
        os.environ["METALSIM_FAULTS"] = fault_plan(settings.seed, settings.faults)
    from tiny_model import write_tiny_llama

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tiny.gguf"
        write_tiny_llama(path, context=512)
        return Stress(path, settings).run()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--eviction", choices=["auto", "save", "recompute"], default="auto")
    parser.add_argument("--conversations", type=int, default=64)
    parser.add_argument("--longest", type=int, default=240, help="tokens of a prompt")
    parser.add_argument("--drawn", type=int, default=24, help="most tokens of an answer")
    parser.add_argument("--faults", type=int, default=0, help="of each kind, on a simulated device")
    args = parser.parse_args()
    settings = Settings(
        args.seconds, args.device, args.seed, args.eviction, args.conversations, args.longest, args.drawn, args.faults
    )
    outcome = run(settings)
    sys.stdout.write(
        json.dumps(
            {
                "counts": outcome.counts,
                "wrong": outcome.wrong[:10],
                "left": outcome.left,
                "actions": outcome.actions,
            }
        )
        + "\n"
    )
    return 0 if outcome.clean else 1


if __name__ == "__main__":
    sys.exit(main())
