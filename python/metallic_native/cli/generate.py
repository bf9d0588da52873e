"""``metallic generate``: continue a text."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from .console import console
from .failures import ExitCode
from .loaded import load_model, memory_line, memory_values
from .memory_report import report_values, show_memory_report
from .options import LoadOptions, SamplingOptions, with_groups

if TYPE_CHECKING:
    from ..engine import Chunk, GenerationStats, MemoryReport, Model
    from ..sampling import Sampling

__all__ = ["generate", "speed_line"]


@with_groups(load=LoadOptions, sampling=SamplingOptions)
def generate(
    *,
    prompt: Annotated[
        str | None, typer.Argument(help="The text to continue; - or none reads stdin.", show_default=False)
    ] = None,
    max_tokens: Annotated[
        int, typer.Option("--max-tokens", "-n", min=-1, help="Most tokens to draw; -1 is as many as the context holds.")
    ] = 256,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text; may be given several times.")] = None,
    ignore_eos: Annotated[bool, typer.Option("--ignore-eos", help="Go on after end-of-generation tokens.")] = False,
    context_shift: Annotated[
        int | None,
        typer.Option(
            min=0,
            metavar="KEEP",
            help="When the context is full, keep KEEP tokens and the newer half of the rest, and go on.",
        ),
    ] = None,
    echo: Annotated[
        bool | None, typer.Option("--echo/--no-echo", help="Print the prompt first [default: on a terminal].")
    ] = None,
    logprobs: Annotated[
        int | None,
        typer.Option(min=0, metavar="N", help="Log-probabilities of the tokens, and of the N most probable ones."),
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print one JSON object at the end, and nothing before.")
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No summary on stderr.")] = False,
    memory_report: Annotated[
        bool, typer.Option("--memory-report", help="Show what memory was used for, on stderr or in the JSON object.")
    ] = False,
    memory_plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Draw memory over time to a file .svg or .png (needs matplotlib)."),
    ] = None,
    load: LoadOptions,
    sampling: SamplingOptions,
) -> None:
    """Continue a text, token by token, on stdout; a summary follows on stderr."""
    text = _read_prompt(prompt)
    chosen = sampling.sampling(logprobs)
    _check_plot(memory_plot)
    with load_model(load, quiet) as model:
        run = _Run(model, text, chosen)
        stream = model.stream(
            text,
            None if max_tokens == -1 else max_tokens,
            chosen,
            stop or (),
            ignore_eos,
            stats=run.stats,
            context_shift=context_shift,
        )
        shows_prompt = not as_json and (console.is_terminal if echo is None else echo)
        if shows_prompt:
            console.write(text, style="2")
        with _recorded(model, memory_plot):
            interrupted = run.consume(stream, show=not as_json, ends_line=not shows_prompt or text.endswith("\n"))
        if as_json:
            console.json({**run.values(), "memory_report": run.memory_values()} if memory_report else run.values())
        else:
            run.show_logprobs()
            if not quiet:
                run.summarise()
            if memory_report:
                run.show_memory()
        if interrupted:
            raise typer.Exit(ExitCode.INTERRUPTED)


def _check_plot(path: Path | None) -> None:
    """Refuse what could not be drawn before anything is loaded."""
    if path is None:
        return
    from ..errors import RequestError
    from ..observe import check_plot

    try:
        check_plot(path)
    except RequestError as error:
        raise typer.BadParameter(str(error), param_hint="--memory-plot") from error
    if not path.parent.is_dir():
        raise typer.BadParameter(f"there is no folder {path.parent}", param_hint="--memory-plot")


@contextmanager
def _recorded(model: Model, plot: Path | None) -> Iterator[None]:
    """Record memory meanwhile and draw it, also after an error: it may be about memory."""
    if plot is None:
        yield
        return
    from ..observe import MemoryTimeline

    timeline = MemoryTimeline(model)
    try:
        with timeline:
            yield
    finally:
        timeline.plot(plot)


def _read_prompt(prompt: str | None) -> str:
    if prompt is not None and prompt != "-":
        return prompt
    if prompt is None and sys.stdin is not None and sys.stdin.isatty():
        raise typer.BadParameter("give a text to continue, or pipe one in", param_hint="PROMPT")
    data = b"" if sys.stdin is None else sys.stdin.buffer.read()
    text = data.decode("utf-8", "replace")
    # The line feed that ends a line of a shell is not part of the text.
    return text[:-1] if text.endswith("\n") else text


class _Run:
    """One generation as a user sees it."""

    def __init__(self, model: Model, prompt: str, sampling: Sampling) -> None:
        from ..engine import GenerationStats

        self.model = model
        self.prompt = prompt
        self.sampling = sampling
        self.stats: GenerationStats = GenerationStats()
        self.chunks: list[Chunk] = []
        self.finish_reason = "interrupted"
        self.report: MemoryReport | None = None

    def consume(self, stream: Iterator[Chunk], show: bool, ends_line: bool) -> bool:
        """Draw all tokens and print them as they come, and a line feed unless the text ends with one. Whether Ctrl-C
        ended it. ``ends_line`` says that the cursor is at the beginning of a line.
        """
        try:
            with closing(stream):  # type: ignore[type-var]
                for chunk in stream:
                    self.chunks.append(chunk)
                    if chunk.finish_reason is not None:
                        self.finish_reason = chunk.finish_reason
                        self.report = self.model.memory()  # while the sequence still has its pages
                    if show and chunk.text:
                        console.write(chunk.text)
                        ends_line = chunk.text.endswith("\n")
        except KeyboardInterrupt:  # at any moment: a token may have been counted that never came here
            self.stats.completion_tokens = sum(chunk.token_id is not None for chunk in self.chunks)
            return True
        finally:
            if show and not ends_line:
                console.line()
        return False

    def show_logprobs(self) -> None:
        for entry in self._logprobs() or ():
            others = "".join(f"  {other['token']!r} {other['logprob']:.4f}" for other in entry["top"])
            console.note(f"{entry['logprob']:9.4f}  {entry['token']!r}{'  of' if others else ''}{others}")

    def _logprobs(self) -> list[dict[str, Any]] | None:
        if self.sampling.logprobs is None:
            return None
        return [
            {
                **self._token(chunk.token_id),
                "logprob": chunk.logprob,
                "top": [{**self._token(token), "logprob": logprob} for token, logprob in chunk.top_logprobs],
            }
            for chunk in self.chunks
            if chunk.token_id is not None
        ]

    def _token(self, token: int) -> dict[str, Any]:
        return {"id": token, "token": self.model.tokenizer.token_bytes(token).decode("utf-8", "replace")}

    def memory_values(self) -> dict[str, Any]:
        """Memory at the end of the generation, for JSON."""
        return report_values(self.report or self.model.memory(), self.model.memory_events())

    def show_memory(self) -> None:
        """The same as tables."""
        show_memory_report(self.report or self.model.memory(), self.model.memory_events())

    def values(self) -> dict[str, Any]:
        """Everything but the memory report, for JSON."""
        values = {
            "model": str(self.model.path),
            "device": self.model.device["backend"],
            "precision": self.model.precision,
            "prompt": self.prompt,
            "text": "".join(chunk.text for chunk in self.chunks),
            "token_ids": [chunk.token_id for chunk in self.chunks if chunk.token_id is not None],
            "finish_reason": self.finish_reason,
            "seed": self.sampling.seed,
            "stats": {
                **asdict(self.stats),
                "prompt_tokens_per_second": self.stats.prompt_tokens_per_second,
                "tokens_per_second": self.stats.tokens_per_second,
            },
            "memory": memory_values(self.model.memory()),
        }
        logprobs = self._logprobs()
        return values if logprobs is None else {**values, "logprobs": logprobs}

    def summarise(self) -> None:
        console.note(speed_line(self.stats, self.finish_reason))
        console.note(f"peak memory: {memory_line(self.model.memory())}; seed {self.sampling.seed}")


def speed_line(stats: GenerationStats, finish_reason: str) -> str:
    """Counts and speeds of a generation in words."""
    cached = f", {stats.cached_tokens} of them cached" if stats.cached_tokens else ""
    return (
        f"prompt: {stats.prompt_tokens} tokens{cached}, {stats.prompt_tokens_per_second:.1f} tok/s; "
        f"generated: {stats.completion_tokens} tokens, {stats.tokens_per_second:.1f} tok/s "
        f"(end: {finish_reason}); first token after {stats.first_token_seconds:.3f} s"
    )
