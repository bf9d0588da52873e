"""Many conversations on a model that has memory for half of them, while things go wrong.

Threads run turns of conversations that keep their caches (stress_turns.py); some are cancelled, forked, evicted or
closed; the main thread is interrupted; the budget changes at random (which is how an allocation is made to fail on the
CPU), and a simulated Metal device fails when it is told to. Whatever happens, a text is the one that a model without
pressure gives, and an error is one of the package's. ``--any`` draws model and settings from the seed
(stress_models.py).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import faulthandler
import functools
import gc
import json
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import stress_models
from stress_models import Settings

T = TypeVar("T")
STUCK_SECONDS = 120


@dataclass
class Outcome:
    settings: Settings
    counts: collections.Counter[str] = field(default_factory=collections.Counter)
    wrong: list[str] = field(default_factory=list)
    left: dict[str, object] = field(default_factory=dict)
    actions: dict[str, tuple[int, int]] = field(default_factory=dict)

    @property
    def clean(self) -> bool:
        return not self.wrong and not any(self.left.values())

    def report(self) -> dict[str, object]:
        return {
            "settings": asdict(self.settings),
            "counts": self.counts,
            "wrong": self.wrong[:10],
            "left": self.left,
            "actions": self.actions,
        }


class Stress:
    def __init__(self, path: Path, settings: Settings) -> None:
        import metallic_native as mn  # after the environment is set
        import stress_turns

        self.mn, self.settings = mn, settings
        self.outcome = Outcome(settings)
        self.counts_lock = threading.RLock()  # a signal handler may come back to it
        options = stress_models.load_options(settings)
        rng = random.Random(settings.seed)
        with self.tried(lambda: mn.load(path, **options)) as free:
            conversations = [
                stress_turns.Conversation(number, rng, settings, free.vocabulary_size)
                for number in range(settings.conversations)
            ]
            texts = {
                (number, length): self.tried(functools.partial(one.solo, free, length))
                for number, one in enumerate(conversations)
                for length in one.lengths
            }
            report = free.memory()
        page = sum(group.page_bytes for group in report.cache_groups)
        longest = max(len(one.ids) + one.drawn for one in conversations)
        demand = page * sum(-(-(len(one.ids) + one.drawn) // report.page_tokens) for one in conversations)
        self.fixed = report.current - report.mapped_bytes + (16 << 10) * report.heaps
        self.longest = page * (-(-longest // report.page_tokens) + 2)
        self.fixed = self.least_budget(path, options, self.fixed)
        if settings.budget == "least":
            self.budget = self.least_budget(path, options, self.fixed, longest + report.page_tokens)
        else:
            self.budget = self.fixed + max(demand // 2, 2 * self.longest)
        self.model = self.tried(lambda: mn.load(path, eviction=settings.eviction, memory_budget=self.budget, **options))
        self.turns = stress_turns.Turns(self.model, conversations, texts)
        self.turns.exact = not settings.rounds
        self.turns.fail, self.turns.count = self.fail, self.count  # type: ignore[method-assign]
        self.deadline = time.monotonic() + settings.seconds
        self.heard = [time.monotonic()] * (settings.threads + 1)  # the main thread's is the last

    def tried(self, what: Callable[[], T]) -> T:
        """Again while the simulated device fails: before the stress begins nothing is told of that."""
        for _ in range(3 * self.settings.faults):
            try:
                return what()
            except (self.mn.OutOfMemory, self.mn.DeviceError):
                continue
        return what()

    def least_budget(self, path: Path, options: dict[str, Any], budget: int, tokens: int = 1) -> int:
        """From ``budget`` on, the one with which the model can be loaded, and admits a generation of so many tokens."""
        while True:
            try:
                with (
                    self.mn.load(path, memory_budget=budget, **options) as model,
                    contextlib.closing(model.native.create_sequence()) as sequence,
                ):
                    sequence.enter(tokens)
                    return budget
            except self.mn.OutOfMemory as error:
                budget += max(error.needed - error.available, 4096)

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
            self.count(
                f"{type(error).__name__} of {error.owner}" if isinstance(error, mn.OutOfMemory) else "DeviceError"
            )
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            self.fail(f"{type(error).__name__}: {error}")

    # ---- what threads do ----

    def turn(self, rng: random.Random) -> None:
        number = rng.randrange(len(self.turns.conversations))
        lock = self.turns.conversations[number].lock
        if not lock.acquire(blocking=False):
            return
        try:
            with self.typed_errors_only():
                self.turns.act(rng, number)
        finally:
            lock.release()

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
        while time.monotonic() < self.deadline and not self.outcome.wrong:
            kind = rng.choices(["promised", "less", "nothing"], [6, 3, 1])[0]
            if kind == "nothing":
                native.set_memory_budget(max(self.fixed, self.model.memory().heap_bytes))
            elif kind == "less" and self.settings.budget == "half":
                native.set_memory_budget(self.fixed + rng.randint(self.longest, 3 * self.longest))
            else:
                native.set_memory_budget(self.budget)
            self.model.memory_events()
            time.sleep(rng.uniform(0.001, 0.1))
        native.set_memory_budget(self.budget)

    # ---- the main thread ----

    def interrupted_turns(self) -> None:
        """Generates while signals interrupt it; their handler looks at the model, uses it or stops the generation."""
        rng = random.Random(f"{self.settings.seed}.main")
        armed = False

        def handler(*_: object) -> None:
            if not armed:
                return
            self.count("signal")
            if rng.random() < 0.5:
                raise KeyboardInterrupt
            self.use_in_handler(rng)

        previous = signal.signal(signal.SIGALRM, handler)
        try:
            while time.monotonic() < self.deadline and not self.outcome.wrong:
                number = rng.randrange(len(self.turns.conversations))
                lock = self.turns.conversations[number].lock
                if not lock.acquire(blocking=False):
                    continue
                try:
                    armed = True
                    signal.setitimer(signal.ITIMER_REAL, rng.uniform(0.0001, 0.05))
                    with self.typed_errors_only():
                        with contextlib.suppress(KeyboardInterrupt):
                            self.turns.act(rng, number, rng.choice(["generate", "cancel", "alone", "fork"]))
                        armed = False
                except KeyboardInterrupt:
                    continue  # on the way out
                finally:
                    armed = False
                    signal.setitimer(signal.ITIMER_REAL, 0)
                    lock.release()
                self.heard[-1] = time.monotonic()
        finally:
            signal.signal(signal.SIGALRM, previous)
            self.heard[-1] = float("inf")

    def use_in_handler(self, rng: random.Random) -> None:
        """What interrupts a call may look; it is refused where it would have to wait for what it interrupts."""
        model = self.model
        uses = [model.memory, model.compact, model.evict_weights, lambda: model.new_cache().close()]
        uses += [lambda: model.generate([1, 2, 3], 2, self.turns.conversations[1].sampling), lambda: model.logits([5])]
        try:
            rng.choice(uses)()
        except (self.mn.RequestError, self.mn.OutOfMemory):
            self.count("refused in a handler")

    def watch(self) -> None:
        """Ends the process when a thread is stuck."""
        while min(self.heard) < float("inf"):
            time.sleep(0.5)
            if time.monotonic() - min(self.heard) > STUCK_SECONDS:
                faulthandler.dump_traceback()
                self.fail(f"a thread was stuck: {self.model.memory()}")
                sys.stdout.write(json.dumps(self.outcome.report()) + "\n")
                sys.stdout.flush()
                os._exit(1)

    # ---- the whole ----

    def run(self) -> Outcome:
        threads = [
            threading.Thread(target=self.work, args=(number,), daemon=True) for number in range(self.settings.threads)
        ]
        threads.append(threading.Thread(target=self.change_budget, daemon=True))
        threads.append(threading.Thread(target=self.watch, daemon=True))
        for thread in threads:
            thread.start()
        if threading.current_thread() is threading.main_thread() and self.settings.interrupts:
            self.interrupted_turns()
        self.heard[-1] = float("inf")
        for thread in threads:
            thread.join()
        if not self.outcome.wrong and not self.settings.faults:
            self.check_afterwards()
        return self.finish()

    def check_afterwards(self) -> None:
        """After all that, every conversation is as it would have been without it."""
        for number, one in enumerate(self.turns.conversations):
            with self.typed_errors_only():
                length = one.lengths[-1]
                self.turns.compare(
                    number, length, len(self.turns.texts[number, length].drawn), self.turns.caches[number]
                )
        self.model.native.set_memory_budget(0)
        self.turns.exact = True  # nobody has to give way any more
        for number, one in enumerate(self.turns.conversations[:16]):
            with self.typed_errors_only():
                length = one.lengths[0]
                self.turns.compare(number, length, len(self.turns.texts[number, length].drawn), None)

    def finish(self) -> Outcome:
        self.turns.close()
        gc.collect()  # generations that were left in the middle
        report = self.model.memory()
        self.outcome.actions = report.actions
        self.outcome.left = {
            "pages": report.pages,
            "held": sum(group.pages_held for group in report.cache_groups),
            "kv": report.tags["kv"].current,
            "saved": report.saved_bytes,
        }
        self.model.close()
        return self.outcome


class Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())


def run(several: list[Settings]) -> list[Outcome]:
    """In this process, whose device must not have been used yet where there are ``faults``; at once, each on a model of
    its own.
    """
    if several[0].faults:
        os.environ["METALSIM_FAULTS"] = stress_models.fault_plan(several[0].seed, several[0].faults)
    import metallic_native as mn

    warnings = Warnings()
    with tempfile.TemporaryDirectory() as folder:
        stresses = []
        for number, settings in enumerate(several):
            place = Path(folder) / str(number)
            place.mkdir()
            stresses.append(Stress(stress_models.write_model(settings, place), settings))
        for stress in stresses:
            stress.deadline = time.monotonic() + stress.settings.seconds
            stress.heard = [time.monotonic()] * len(stress.heard)
        logging.getLogger("metallic_native").addHandler(warnings)
        others = [threading.Thread(target=stress.run) for stress in stresses[1:]]
        for thread in others:
            thread.start()
        stresses[0].run()
        for thread in others:
            thread.join()
    outcomes = [stress.outcome for stress in stresses]
    del stresses
    outcomes[0].left["leaks"] = [*warnings.texts, *mn._native.take_leak_reports()]
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    base = Settings()
    parser.add_argument("--seconds", type=float, default=base.seconds)
    parser.add_argument("--device", default=base.device)
    parser.add_argument("--seed", type=int, default=base.seed)
    parser.add_argument("--any", action="store_true", help="draw what follows down to --sampled from the seed")
    parser.add_argument("--model", choices=stress_models.MODELS, default=base.model)
    parser.add_argument("--kv-type", default=base.kv_type)
    parser.add_argument("--weights", default=base.weights)
    parser.add_argument("--eviction", choices=stress_models.EVICTIONS, default=base.eviction)
    parser.add_argument("--budget", choices=["half", "least"], default=base.budget)
    parser.add_argument("--sampled", action="store_true", help="half of the conversations with a temperature")
    parser.add_argument("--context", type=int, default=base.context)
    parser.add_argument("--conversations", type=int, default=base.conversations)
    parser.add_argument("--longest", type=int, default=base.longest, help="tokens of a prompt")
    parser.add_argument(
        "--drawn", type=int, default=base.most_drawn, dest="most_drawn", help="most tokens of an answer"
    )
    parser.add_argument("--threads", type=int, default=base.threads, help="conversations that go on at a time")
    parser.add_argument("--faults", type=int, default=base.faults, help="of each kind, on a simulated device")
    parser.add_argument("--models", type=int, default=1, help="so many at once, each with the next seed")
    args = vars(parser.parse_args())
    count, drawn = args.pop("models"), args.pop("any")
    several = [replace(Settings(**args), seed=args["seed"] + number) for number in range(count)]
    outcomes = run([settings.drawn() if drawn else settings for settings in several])
    for outcome in outcomes:
        sys.stdout.write(json.dumps(outcome.report()) + "\n")
    return 0 if all(outcome.clean for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
