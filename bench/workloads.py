"""What a model takes and how fast it is over a few workloads, as JSON that can be compared with an older one.

    python bench/workloads.py --json new.json
    python bench/workloads.py --json new.json --compare old.json

Each workload has a model of its own, so that its statistics are its own: ``short`` (a short prompt and answer),
``long`` (a long generation), ``requests`` (short requests in a row), ``batch`` (conversations computed together) and
``pressure`` (conversations that take turns with half the pages that they want). Tokens are random with a fixed seed and
drawn greedily, so memory hardly differs between runs, and its bounds are tight; times do, and are compared by ratio.

``--compare`` prints what got worse by more than the bounds, and the exit status is 1 then; 2 where the two results are
of different models, devices or settings. Nothing is run where ``--read`` names results to compare instead.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import metallic_native as mn

if TYPE_CHECKING:
    from metallic_native.engine.cache import CachedTokens

FORMAT = 1
PROMPT = 32
GREEDY = mn.Sampling.greedy()


@dataclass(frozen=True)
class Settings:
    """What is run, and on what."""

    model: str = "demo"
    device: str = "auto"
    threads: int | None = None
    kv_type: str = "f16"
    batch_tokens: int = 512
    weights: str = "mapped"
    long: int = 512
    requests: int = 20
    conversations: int = 6
    turns: int = 3
    repeat: int = 3

    def load(self, memory_budget: int | None = None) -> mn.Model:
        return mn.load(
            self.model,
            device=self.device,
            threads=self.threads,
            kv_type=self.kv_type,
            batch_tokens=self.batch_tokens,
            weights=self.weights,
            memory_budget=memory_budget,
        )


@dataclass
class Timing:
    """Of all generations of a workload together."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    prompt_seconds: float = 0.0
    decode_seconds: float = 0.0
    first_token_seconds: float = 0.0
    decoded: int = field(default=0, repr=False)

    def add(self, stats: mn.GenerationStats) -> None:
        self.first_token_seconds = self.first_token_seconds or stats.first_token_seconds
        self.prompt_tokens += stats.prompt_tokens - stats.cached_tokens
        self.generated_tokens += stats.completion_tokens
        self.decoded += max(stats.completion_tokens - 1, 0)
        self.prompt_seconds += stats.prompt_seconds
        self.decode_seconds += stats.decode_seconds

    def values(self) -> dict[str, float]:
        return {
            "prompt_tokens": self.prompt_tokens,
            "generated_tokens": self.generated_tokens,
            "prefill_tokens_per_second": self.prompt_tokens / self.prompt_seconds,
            "decode_tokens_per_second": self.decoded / self.decode_seconds,
            "first_token_seconds": self.first_token_seconds,
        }


Result = dict[str, Any]


def memory_values(model: mn.Model) -> Result:
    """The model's statistics now, but for who has allocated what."""
    report = asdict(model.memory())
    del report["owners"]
    report["actions"] = {name: {"events": n, "bytes": size} for name, (n, size) in report["actions"].items()}
    report["pages_in_use"] = sum(group["pages_in_use"] for group in report["cache_groups"])
    report["pages_held"] = sum(group["pages_held"] for group in report["cache_groups"])
    return report


def random_tokens(model: mn.Model, count: int, seed: int) -> list[int]:
    """Not the first ones, where vocabularies keep tokens that end a text."""
    drawn = np.random.default_rng(seed).integers(model.vocabulary_size // 2, model.vocabulary_size, count)
    return [int(token) for token in drawn]


def finished(model: mn.Model, timing: Timing, close: Callable[[], None], **more: object) -> Result:
    """A result: memory while the last sequences have their pages, and what is left of keys and values without them."""
    memory = memory_values(model)
    close()
    left = model.memory().tags["kv"].current
    return {"speed": timing.values(), "memory": memory, "kv_left": left, **more}


# ---- workloads -------------------------------------------------------------------------------------------------------


def generate(model: mn.Model, timing: Timing, ids: list[int], count: int, cache: CachedTokens) -> list[int]:
    made = model.generate(ids, max_tokens=count, sampling=GREEDY, ignore_eos=True, cache=cache)
    timing.add(made.stats)
    return made.token_ids


def one_generation(settings: Settings, count: int) -> Result:
    with settings.load() as model:
        timing, cache = Timing(), model.new_cache()
        generate(model, timing, random_tokens(model, PROMPT, 0), min(count, model.context_length - PROMPT), cache)
        return finished(model, timing, cache.close)


def run_requests(settings: Settings) -> Result:
    """``heaps_after_second``: those that were made after the second request, of which there should be none."""
    with settings.load() as model:
        timing, created = Timing(), 0
        for number in range(settings.requests):
            cache = model.new_cache()
            generate(model, timing, random_tokens(model, PROMPT, number), PROMPT, cache)
            if number + 1 < settings.requests:
                cache.close()
            if number == 1:
                created = model.memory().heaps_created
        more = model.memory().heaps_created - created if settings.requests > 2 else 0
        return finished(model, timing, cache.close, heaps_after_second=more)


def run_batch(settings: Settings) -> Result:
    """All prompts in one pass, then a token of each at a time."""
    with settings.load() as model:
        native, count = model.native, settings.conversations
        sequences = [native.create_sequence() for _ in range(count)]
        tokens = [np.array(random_tokens(model, 2 * PROMPT, i), np.int32) for i in range(count)]
        logits = np.empty((count, model.vocabulary_size), np.float32)
        timing = Timing()
        for step in range(1 + PROMPT):
            start = time.perf_counter()
            native.forward(sequences, tokens, [1] * count, [False] * count, logits)
            seconds = time.perf_counter() - start
            if step == 0:
                timing.prompt_tokens = sum(map(len, tokens))
                timing.prompt_seconds = timing.first_token_seconds = seconds
            else:
                timing.decode_seconds += seconds
                timing.decoded += count
            timing.generated_tokens += count
            tokens = [np.array([row.argmax()], np.int32) for row in logits]

        def close() -> None:
            for sequence in sequences:
                sequence.close()

        return finished(model, timing, close)


def converse(model: mn.Model, settings: Settings, timing: Timing) -> tuple[list[list[int]], list[CachedTokens]]:
    """Conversations that take turns; their tokens, and the caches that they still hold."""
    caches = [model.new_cache() for _ in range(settings.conversations)]
    texts: list[list[int]] = [[] for _ in caches]
    for turn in range(settings.turns):
        for number, (text, cache) in enumerate(zip(texts, caches, strict=True)):
            text += random_tokens(model, 2 * PROMPT, 1000 * turn + number)
            text += generate(model, timing, text, PROMPT // 2, cache)
    return texts, caches


def run_pressure(settings: Settings) -> Result:
    def close() -> None:
        for cache in caches:
            cache.close()

    with settings.load() as model:
        loaded = model.memory().heap_bytes
        wanted, caches = converse(model, settings, Timing())
        demand = model.memory().tags["kv"].peak
        # What a first pass takes beside pages, such as the logits that it chooses from.
        loaded = max(loaded, model.memory().heap_bytes - model.memory().tags["kv"].current)
        close()
    with settings.load(memory_budget=loaded + demand // 2) as model:
        timing = Timing()
        texts, caches = converse(model, settings, timing)
        return finished(model, timing, close, demand=demand, same_text=texts == wanted)


WORKLOADS: dict[str, Callable[[Settings], Result]] = {
    "short": lambda settings: one_generation(settings, PROMPT),
    "long": lambda settings: one_generation(settings, settings.long),
    "requests": run_requests,
    "batch": run_batch,
    "pressure": run_pressure,
}


def run(settings: Settings, names: list[str]) -> Result:
    """All of it. The memory is that of the first run of a workload, the speed the best of ``repeat``."""
    with settings.load() as model:
        facts = {"path": Path(model.path).name, "device": model.device["name"], "backend": model.device["backend"]}
        facts |= {"threads": model.device["threads"], "precision": model.precision, "context": model.context_length}
    results: dict[str, Result] = {}
    for name in names:
        result = WORKLOADS[name](settings)
        for _ in range(settings.repeat - 1):
            for what, value in WORKLOADS[name](settings)["speed"].items():
                best = min if what.endswith("seconds") else max
                result["speed"][what] = best(result["speed"][what], value)
        results[name] = result
    return {
        "format": FORMAT,
        "version": mn.__version__,
        "model": facts,
        "settings": asdict(settings),
        "workloads": results,
    }


# ---- comparing -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Bounds:
    """How many times as much, or as slow, is no regression yet."""

    memory: float = 1.02
    time: float = 1.5
    average: float = 1.5
    slack_bytes: int = 16 << 10
    """Nothing to worry about in any case."""
    pressure: float = 1.2
    """Instead of ``memory`` under pressure, where the background thread evicts and trims when it comes by."""
    slack_events: int = 8
    """So many actions more under pressure, for the same reason."""


@dataclass(frozen=True)
class Finding:
    workload: str
    what: str
    old: float
    new: float

    def __str__(self) -> str:
        return f"{self.workload}: {self.what} was {self.old:.6g}, is {self.new:.6g}"


def measures(result: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """(name, kind, value) of all that is compared; less is better but for ``speed``."""
    for what, value in result["speed"].items():
        if not what.endswith("_tokens"):
            yield what, "seconds" if what.endswith("_seconds") else "speed", value
    memory = result["memory"]
    for tag, use in memory["tags"].items():
        for what in ("current", "peak"):
            yield f"{tag}.{what}", "bytes", use[what]
        yield f"{tag}.average", "average", use["average"]
        yield f"{tag}.allocations", "count", use["allocations"]
    for what in ("heap_bytes", "heap_peak", "saved_bytes"):
        yield what, "bytes", memory[what]
    for what in ("heaps", "heaps_created", "pages_in_use", "pages_held", "pages_copied"):
        yield what, "count", memory[what]
    yield "fragmentation", "fraction", memory["fragmentation"]
    yield "free_bytes", "bytes", memory["free_bytes"]
    for action, count in memory["actions"].items():
        yield f"actions.{action}", "events", count["events"]
    yield "kv_left", "exact", result["kv_left"]
    yield "heaps_after_second", "exact", result.get("heaps_after_second", 0)
    yield "other_text", "exact", float(not result.get("same_text", True))


def worse(kind: str, old: float, new: float, bounds: Bounds) -> bool:
    if kind == "speed":
        return new * bounds.time < old
    if kind == "seconds":
        return new > old * bounds.time
    if kind == "average":
        return new > old * bounds.average + bounds.slack_bytes
    if kind == "bytes":
        return new > old * bounds.memory + bounds.slack_bytes
    if kind == "count":
        return new > old * bounds.memory
    if kind == "events":
        return new > old * bounds.time + bounds.slack_events
    if kind == "fraction":
        return new > old + 0.05
    return new > old


def compare(old: Mapping[str, Any], new: Mapping[str, Any], bounds: Bounds) -> list[Finding]:
    """What got worse. Raises ValueError where the results cannot be compared."""
    for what in ("format", "model", "settings"):
        if old[what] != new[what]:
            raise ValueError(f"the results differ in their {what}: {old[what]} and {new[what]}")
    found = []
    for name, result in old["workloads"].items():
        if name not in new["workloads"]:
            found.append(Finding(name, "results", 1, 0))
            continue
        before = {what: value for what, _, value in measures(result)}
        held = replace(bounds, memory=max(bounds.memory, bounds.pressure)) if name == "pressure" else bounds
        for what, kind, value in measures(new["workloads"][name]):
            if worse(kind, before.get(what, 0.0), value, held):
                found.append(Finding(name, what, before.get(what, 0.0), value))
    return found


# ---- the command -----------------------------------------------------------------------------------------------------


def print_table(results: Mapping[str, Any]) -> None:
    print(
        "| workload | prefill tok/s | decode tok/s | first token s | kv peak MB | heap peak MB | heaps made | actions |"
    )
    print("|---|" + "---:|" * 7)
    for name, result in results["workloads"].items():
        speed, memory = result["speed"], result["memory"]
        actions = ", ".join(f"{count['events']} {action}" for action, count in memory["actions"].items())
        cells = [f"{speed[f'{what}_tokens_per_second']:.1f}" for what in ("prefill", "decode")]
        cells += [f"{speed['first_token_seconds']:.3f}", f"{memory['tags']['kv']['peak'] / 1e6:.2f}"]
        cells += [f"{memory['heap_peak'] / 1e6:.2f}", str(memory["heaps_created"]), actions]
        print(f"| {name} | " + " | ".join(cells) + " |")


def parse_arguments() -> tuple[argparse.Namespace, Settings, Bounds]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    fallback, bounds = Settings(), Bounds()
    for name in ("model", "device", "kv_type", "weights"):
        parser.add_argument(f"--{name.replace('_', '-')}", default=getattr(fallback, name))
    parser.add_argument("--threads", type=int)
    for name in ("batch_tokens", "long", "requests", "conversations", "turns", "repeat"):
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=getattr(fallback, name))
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--json", type=Path, help="write the results")
    parser.add_argument("--compare", type=Path, metavar="OLD.json", help="print what got worse; exit 1 if anything did")
    parser.add_argument("--read", type=Path, metavar="NEW.json", help="results instead of a run")
    for name in ("memory", "time", "average"):
        text = f"ratio that counts as worse [default: {getattr(bounds, name)}]"
        parser.add_argument(f"--{name}-bound", type=float, default=getattr(bounds, name), help=text)
    args = parser.parse_args()
    settings = Settings(**{name: getattr(args, name) for name in asdict(fallback)})
    if min(settings.long, settings.requests, settings.conversations, settings.turns, settings.repeat) < 1:
        parser.error("lengths and counts are at least 1")
    return args, settings, Bounds(args.memory_bound, args.time_bound, args.average_bound)


def main() -> int:
    args, settings, bounds = parse_arguments()
    results = json.loads(args.read.read_text()) if args.read else run(settings, args.workloads)
    print_table(results)
    if args.json:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(results, indent=1))
    if not args.compare:
        return 0
    try:
        found = compare(json.loads(args.compare.read_text()), results, bounds)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    for finding in found:
        print(finding)
    print(
        f"{len(found)} measures are worse than in {args.compare}"
        if found
        else f"nothing is worse than in {args.compare}"
    )
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
