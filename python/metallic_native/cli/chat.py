"""``metallic chat``: a conversation."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import Error
from .console import console
from .failures import CommandError, ExitCode, describe
from .generate import speed_line
from .loaded import load_model, memory_line
from .memory_report import show_memory_report
from .options import LoadOptions, SamplingOptions, with_groups

if TYPE_CHECKING:
    from ..engine import Model, Session
    from ..sampling import Sampling

__all__ = ["chat"]

_HELP = """\
/help           this text
/clear          forget the conversation; the system message stays
/system [TEXT]  set the system message and forget the conversation; without a text, show it
/save FILE      write the conversation as JSON
/load FILE      go on with a conversation that was saved
/stats          speed and memory of the last answer
/memory         what memory is used for now, and what was done about it
/exit           end; so do /quit and Ctrl-D
A line that ends with \\ goes on in the next one. Ctrl-C stops an answer. //text sends /text."""


@with_groups(load=LoadOptions, sampling=SamplingOptions)
def chat(
    *,
    system: Annotated[str | None, typer.Option(help="The system message.")] = None,
    max_tokens: Annotated[
        int,
        typer.Option(
            "--max-tokens", "-n", min=-1, help="Most tokens of an answer; -1 is as many as the context holds."
        ),
    ] = 512,
    thinking: Annotated[
        bool | None, typer.Option("--thinking/--no-thinking", help="For models whose template can switch it.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No notes on stderr.")] = False,
    load: LoadOptions,
    sampling: SamplingOptions,
) -> None:
    """Talk with a model. Each line of stdin is a message; /help lists the commands."""
    from ..engine import Session

    chosen = sampling.sampling()
    with load_model(load, quiet) as model:
        if not model.template.names:
            raise CommandError(f"{model.path.name} has no chat template: use metallic generate", ExitCode.MODEL)
        variables = {} if thinking is None else {"enable_thinking": thinking}
        with Session(model, system, **variables) as session:
            if console.is_interactive and not quiet:
                name = model.config.name or model.path.name
                console.note(f"{name}, context of {model.context_length} tokens; /help lists the commands")
            _Conversation(model, session, chosen, None if max_tokens == -1 else max_tokens, quiet).run()


class _Conversation:
    """The loop of a chat: lines in, answers out."""

    def __init__(self, model: Model, session: Session, sampling: Sampling, max_tokens: int | None, quiet: bool) -> None:
        self.model = model
        self.session = session
        self.sampling = sampling
        self.max_tokens = max_tokens
        self.quiet = quiet
        self.last = ""
        self.commands: dict[str, Callable[[str], None]] = {
            "help": lambda _: console.note(_HELP),
            "clear": lambda _: self._restart(self._system()),
            "system": self._set_system,
            "save": self._save,
            "load": self._load,
            "stats": lambda _: console.note(self.last or "there is no answer yet"),
            "memory": lambda _: show_memory_report(self.model.memory(), self.model.memory_events()),
        }
        if console.is_interactive:
            _enable_line_editing()

    def run(self) -> None:
        """Until the input ends, or /exit."""
        while (message := self._read()) is not None:
            if message in ("/exit", "/quit"):
                return
            try:
                self._take(message)
            except Error as error:
                if not console.is_interactive:
                    raise
                console.error(describe(error))

    def _read(self) -> str | None:
        """The next message, lines that end with a backslash joined; None at the end of the input."""
        lines: list[str] = []
        interrupted = False
        while True:
            try:
                line = self._read_line("... " if lines else "> ")
            except KeyboardInterrupt:
                if not console.is_interactive:
                    raise
                if interrupted:
                    console.line()
                    raise
                interrupted = True
                lines.clear()
                console.note("\n/exit or Ctrl-D ends the chat, and so does another Ctrl-C")
                continue
            if line is None:
                return "\n".join(lines) if lines else None
            lines.append(line.removesuffix("\\"))
            if not line.endswith("\\"):
                return "\n".join(lines)

    @staticmethod
    def _read_line(prompt: str) -> str | None:
        if console.is_interactive:
            try:
                return input(prompt)
            except EOFError:
                console.line()
                return None
        line = sys.stdin.buffer.readline()
        return line.decode("utf-8", "replace").rstrip("\r\n") if line else None

    def _take(self, message: str) -> None:
        if not message.strip():
            return
        if message.startswith("//"):
            self._answer(message[1:])
        elif message.startswith("/"):
            name, _, argument = message[1:].partition(" ")
            command = self.commands.get(name)
            if command is None:
                console.error(f"there is no command /{name}; /help lists them")
            else:
                command(argument.strip())
        else:
            self._answer(message)

    def _answer(self, message: str) -> None:
        from ..engine import GenerationStats

        stats = GenerationStats()
        reason, ends_line, interrupted = "interrupted", False, False
        stream = self.session.send(message, self.max_tokens, self.sampling, stats=stats)
        try:
            with closing(stream):  # type: ignore[type-var]
                for chunk in stream:
                    reason = chunk.finish_reason or reason
                    if chunk.text:
                        console.write(chunk.text)
                        ends_line = chunk.text.endswith("\n")
        except KeyboardInterrupt:
            if not console.is_interactive:
                raise
            interrupted = True
        finally:
            if not ends_line:
                console.line()
        self.last = f"{speed_line(stats, reason)}\npeak memory: {memory_line(self.model.memory())}"
        if not self.quiet and (interrupted or reason != "stop"):
            console.note(
                {"length": f"(ended after {self.max_tokens} tokens)", "context": "(the context is full: /clear)"}.get(
                    reason, f"({reason})"
                )
            )

    def _system(self) -> str:
        first = self.session.messages[0] if self.session.messages else {}
        return str(first.get("content", "")) if first.get("role") == "system" else ""

    def _restart(self, system: str) -> None:
        self.session.messages = [{"role": "system", "content": system}] if system else []

    def _set_system(self, text: str) -> None:
        if text:
            self._restart(text)
        else:
            console.note(self._system() or "there is no system message")

    def _save(self, name: str) -> None:
        if not name:
            console.error("/save needs the name of a file")
            return
        text = json.dumps(list(self.session.messages), ensure_ascii=False, indent=2)
        try:
            Path(name).expanduser().write_text(text + "\n", encoding="utf-8", errors="replace")
        except OSError as error:
            console.error(describe(error))
        else:
            console.note(f"{len(self.session.messages)} messages saved in {name}")

    def _load(self, name: str) -> None:
        if not name:
            console.error("/load needs the name of a file")
            return
        try:
            messages = json.loads(Path(name).expanduser().read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            console.error(describe(error) if isinstance(error, OSError) else f"{name} is no JSON")
            return
        if not isinstance(messages, list) or not all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and isinstance(m.get("content"), str)
            for m in messages
        ):
            console.error(f"{name} is no conversation: a list of objects with role and content is expected")
            return
        self.session.messages = messages
        console.note(f"{len(messages)} messages loaded from {name}")


def _enable_line_editing() -> None:
    with suppress(ImportError):  # not on every platform
        import readline  # noqa: F401  # input() uses it once it is imported
