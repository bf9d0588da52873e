"""The console that every command writes to: results on stdout, everything else on stderr."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import Any, TextIO

__all__ = ["Console", "binary_size", "console", "decimal_size"]

# Control characters but tab, line feed and carriage return: a model's text must not steer the terminal.
_CONTROLS = {code: "\ufffd" for code in [*range(32), *range(127, 160)] if code not in (9, 10, 13)}


class Console:
    """Plain text in pipes, files and under ``NO_COLOR``; a little style on terminals."""

    def prepare(self) -> None:
        """Make both streams take any text: what their encoding lacks becomes ``?``."""
        for stream in (sys.stdout, sys.stderr):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")

    @property
    def is_terminal(self) -> bool:
        """Whether results go to a terminal."""
        return _is_terminal(sys.stdout)

    @property
    def is_interactive(self) -> bool:
        """Whether someone sits at both ends."""
        return self.is_terminal and _is_terminal(sys.stdin)

    @property
    def shows_progress(self) -> bool:
        """Whether stderr is a terminal on which a line may be redrawn."""
        return _is_terminal(sys.stderr) and os.environ.get("TERM") != "dumb"

    def write(self, text: str, style: str = "") -> None:
        """Write to stdout at once. ``style`` is an ANSI attribute such as ``2`` (dim)."""
        if self.is_terminal:
            text = text.translate(_CONTROLS)
        sys.stdout.write(_styled(sys.stdout, text, style))
        sys.stdout.flush()

    def line(self, text: str = "") -> None:
        """Write a line to stdout."""
        self.write(text + "\n")

    def note(self, text: str) -> None:
        """Write a line to stderr, dim on a terminal."""
        sys.stderr.write(_styled(sys.stderr, text.translate(_CONTROLS), "2") + "\n")
        sys.stderr.flush()

    def error(self, text: str) -> None:
        """Write ``metallic: error: …`` to stderr."""
        label = _styled(sys.stderr, "error:", "1;31")
        sys.stderr.write(f"metallic: {label} {text.translate(_CONTROLS)}\n")
        sys.stderr.flush()

    def json(self, value: Any) -> None:
        """Write a value as JSON to stdout."""
        self.line(json.dumps(value, ensure_ascii=False, indent=2, allow_nan=False))

    def table(
        self,
        headings: Sequence[str],
        rows: Sequence[Sequence[str]],
        right: Sequence[int] = (),
        *,
        to_stderr: bool = False,
    ) -> None:
        """Write a table to stdout, or to stderr, its columns ``right`` aligned to the right. In pipes nothing is cut or
        wrapped.
        """
        from rich.box import SIMPLE_HEAD
        from rich.console import Console as RichConsole
        from rich.table import Table
        from rich.text import Text

        stream = sys.stderr if to_stderr else sys.stdout
        on_terminal = _is_terminal(stream)
        target = RichConsole(file=stream, highlight=False, width=None if on_terminal else 1 << 16)
        table = Table(box=SIMPLE_HEAD if on_terminal else None, show_header=any(headings), pad_edge=False)
        for index, heading in enumerate(headings):
            table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(Text(cell.translate(_CONTROLS)) for cell in row))
        with target.capture() as captured:
            target.print(table)
        text = captured.get()
        if not on_terminal:
            text = "".join(f"{line.rstrip()}\n" for line in text.splitlines())
        stream.write(text)
        stream.flush()


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except (AttributeError, ValueError):  # no stream, or a closed one
        return False


def _styled(stream: TextIO, text: str, style: str) -> str:
    if not style or os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not _is_terminal(stream):
        return text
    return f"\x1b[{style}m{text}\x1b[0m"


def decimal_size(count: float) -> str:
    """Bytes in powers of 1000, as file managers show them: ``1.82 MB``."""
    return _size(count, 1000, ("B", "kB", "MB", "GB", "TB", "PB"))


def binary_size(count: float) -> str:
    """Bytes in powers of 1024: ``1.74 MiB``."""
    return _size(count, 1024, ("B", "KiB", "MiB", "GiB", "TiB", "PiB"))


def _size(count: float, base: int, units: Sequence[str]) -> str:
    power = 0
    while round(count, 2) >= base and power < len(units) - 1:
        count /= base
        power += 1
    return f"{count:.0f} {units[0]}" if power == 0 else f"{count:.2f} {units[power]}"


console = Console()
