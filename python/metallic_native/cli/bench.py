"""``metallic bench``: how fast prompts are computed and tokens are drawn."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import binary_size, console
from .failures import CommandError, ExitCode
from .loaded import load_model, memory_line, memory_values, open_file, pool_values
from .model_facts import ModelFacts
from .options import LoadOptions, with_groups

if TYPE_CHECKING:
    from ..engine import Model

__all__ = ["bench"]


def _counts(text: str) -> tuple[int, ...]:
    """Numbers of tokens as ``512`` or ``128,512``; 0 is none."""
    try:
        counts = tuple(int(part) for part in text.split(","))
    except ValueError:
        counts = (-1,)
    if min(counts) < 0:
        raise typer.BadParameter(f"{text!r} is no list of token counts such as 512 or 128,512")
    return tuple(count for count in counts if count)


@dataclass(frozen=True)
class _Result:
    """Seconds of each repetition of a test over ``tokens`` tokens; ``test`` is named as llama-bench names it."""

    test: str
    tokens: int
    seconds: list[float]

    @property
    def speeds(self) -> list[float]:
        return [self.tokens / seconds for seconds in self.seconds]

    @property
    def mean(self) -> float:
        return sum(self.speeds) / len(self.speeds)

    @property
    def deviation(self) -> float:
        """Of a sample: with one less than the count as the divisor."""
        count = len(self.seconds)
        return math.sqrt(sum((speed - self.mean) ** 2 for speed in self.speeds) / (count - 1)) if count > 1 else 0.0


@with_groups(load=LoadOptions)
def bench(
    *,
    prompt_tokens: Annotated[
        str, typer.Option("--prompt-tokens", "-p", metavar="N[,N…]", help="Lengths of prompts (pp); 0 is none.")
    ] = "512",
    generated_tokens: Annotated[
        str, typer.Option("--generated-tokens", "-n", metavar="N[,N…]", help="Tokens drawn one by one (tg); 0 is none.")
    ] = "128",
    repetitions: Annotated[int, typer.Option("--repetitions", "-r", min=1, max=1000, help="Of each test.")] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    load: LoadOptions,
) -> None:
    """Measure throughput: prompt processing (pp) and token generation (tg), after one run to warm up.

    Columns and tests are those of llama-bench. Tokens are random, sampling is not included.
    """
    prompts, generations = _counts(prompt_tokens), _counts(generated_tokens)
    if not prompts and not generations:
        raise typer.BadParameter("nothing to measure: -p and -n are both 0")
    _, file = open_file(load.model)
    facts = ModelFacts.of(file, file.metadata)
    with load_model(load) as model:
        longest = max((*prompts, *generations))
        if longest > model.context_length:
            raise CommandError(f"{longest} tokens are more than the context of {model.context_length}", ExitCode.USAGE)
        results = [_prompt_test(model, count, repetitions) for count in prompts]
        results += [_generation_test(model, count, repetitions) for count in generations]
        if as_json:
            console.json(_values(model, facts, results))
        else:
            _show(model, facts, results)


def _random_tokens(model: Model, count: int) -> list[int]:
    from random import Random

    random = Random(count)
    return [random.randrange(model.vocabulary_size) for _ in range(count)]


def _prompt_test(model: Model, count: int, repetitions: int) -> _Result:
    tokens = _random_tokens(model, count)
    seconds = []
    for _ in range(repetitions + 1):
        cache = model.new_cache()
        try:
            start = time.perf_counter()
            cache.extend(tokens, planned=count)
            seconds.append(time.perf_counter() - start)
        finally:
            cache.close()
    return _Result(f"pp{count}", count, seconds[1:])


def _generation_test(model: Model, count: int, repetitions: int) -> _Result:
    tokens = _random_tokens(model, count)
    seconds = []
    for repetition in range(repetitions + 1):
        cache = model.new_cache()
        try:
            start = time.perf_counter()
            for token in tokens if repetition else tokens[:1]:
                cache.extend([token], planned=count)
            seconds.append(time.perf_counter() - start)
        finally:
            cache.close()
    return _Result(f"tg{count}", count, seconds[1:])


def _show(model: Model, facts: ModelFacts, results: list[_Result]) -> None:
    """A Markdown table, as llama-bench prints it."""
    device = model.device
    names = ["model", "size", "params", "backend", "threads", "kv", "test", "t/s"]
    rows = [
        [
            facts.label,
            binary_size(facts.bytes),
            facts.parameters_text,
            str(device["backend"]),
            str(device["threads"]),
            model.kv_type,
            result.test,
            f"{result.mean:.2f} ± {result.deviation:.2f}",
        ]
        for result in results
    ]
    widths = [max(len(row[column]) for row in [names, *rows]) for column in range(len(names))]
    left = {0, 3, 5}

    def row_text(cells: list[str]) -> str:
        padded = [c.ljust(w) if i in left else c.rjust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))]
        return f"| {' | '.join(padded)} |"

    console.line(row_text(names))
    rules = ["-" * (w + 2) if i in left else f"{'-' * (w + 1)}:" for i, w in enumerate(widths)]
    console.line(f"|{'|'.join(rules)}|")
    for row in rows:
        console.line(row_text(row))
    console.line(f"\npeak memory: {memory_line(model.memory())}")


def _values(model: Model, facts: ModelFacts, results: list[_Result]) -> dict[str, Any]:
    from .. import __version__

    report = model.memory()

    return {
        "version": __version__,
        "model": str(model.path),
        "model_type": facts.label,
        "model_size": facts.bytes,
        "model_n_params": facts.parameters,
        "device": model.device,
        "kv_type": model.kv_type,
        "precision": model.precision,
        "tests": [
            {
                "test": result.test,
                "tokens": result.tokens,
                "avg_ts": result.mean,
                "stddev_ts": result.deviation,
                "samples_ts": result.speeds,
                "samples_ns": [round(seconds * 1e9) for seconds in result.seconds],
            }
            for result in results
        ],
        "memory": memory_values(report),
        "pool": pool_values(report),
    }
