"""How a download shows itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .console import console, decimal_size

if TYPE_CHECKING:
    from ..loading.resolve import DownloadProgress

__all__ = ["download_progress"]


@contextmanager
def download_progress(quiet: bool = False) -> Iterator[DownloadProgress | None]:
    """Something to give to a download: a bar per file on a terminal, else a line per file, on stderr."""
    if quiet:
        yield None
    elif console.shows_progress:
        yield from _bars()
    else:
        yield _lines()


def _lines() -> DownloadProgress:
    begun: set[str] = set()

    def show(file: str, done: int, total: int) -> None:
        if file not in begun and done < total:
            begun.add(file)
            resumed = f", going on at {decimal_size(done)}" if done else ""
            console.note(f"downloading {file} ({decimal_size(total)}{resumed})")

    return show


def _bars() -> Iterator[DownloadProgress]:
    from rich.console import Console as RichConsole
    from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import TransferSpeedColumn as Speed

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), Speed(), TimeRemainingColumn())
    bars = Progress(*columns, console=RichConsole(stderr=True))
    tasks: dict[str, TaskID] = {}

    def show(file: str, done: int, total: int) -> None:
        if file not in tasks:
            if done >= total:
                return  # it was in the cache
            bars.start()
            tasks[file] = bars.add_task(file.rpartition("/")[2], total=total)
        bars.update(tasks[file], completed=done)

    try:
        yield show
    finally:
        if tasks:
            bars.stop()
