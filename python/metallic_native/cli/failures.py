"""Exit codes, and errors as one line on stderr."""

from __future__ import annotations

import os
import sys
from enum import IntEnum

from ..errors import Error, ModelFormatError, OutOfMemory, RequestError, UnsupportedModelError

__all__ = ["CommandError", "ExitCode", "describe", "discard_output", "exit_code"]


class ExitCode(IntEnum):
    """What the status of the process says. Documented in ``docs/cli.md``; a number never changes its meaning."""

    OK = 0
    FAILURE = 1
    USAGE = 2
    MODEL = 3
    MEMORY = 4
    INTERRUPTED = 130  # 128 + SIGINT
    BROKEN_PIPE = 141  # 128 + SIGPIPE


class CommandError(Exception):
    """Ends a command with a message and an exit code."""

    def __init__(self, message: str, code: ExitCode) -> None:
        super().__init__(message)
        self.code = code


def exit_code(error: Exception) -> ExitCode:
    """The exit code for an error that ended a command."""
    if isinstance(error, CommandError):
        return error.code
    if isinstance(error, MemoryError):
        return ExitCode.MEMORY
    if isinstance(error, (ModelFormatError, UnsupportedModelError)):
        return ExitCode.MODEL
    return ExitCode.USAGE if isinstance(error, RequestError) else ExitCode.FAILURE


def describe(error: Exception) -> str:
    """One line about an error: what happened, and what to do where that is known."""
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    elif isinstance(error, (Error, CommandError)):
        text = str(error)
    elif isinstance(error, MemoryError):
        text = "the system has no memory left"
    else:
        text = f"{type(error).__name__}: {error} (this is a defect of metallic; --debug shows where)"
    if isinstance(error, OutOfMemory):
        text += "; use a smaller --context or --batch-tokens, --kv-type q8_0, or more --memory"
    return " ".join(text.split()) or type(error).__name__


def discard_output() -> None:
    """Let what is still buffered for stdout go nowhere: its reader has gone, and Python flushes once more at exit."""
    try:
        descriptor = sys.stdout.fileno()
    except (AttributeError, OSError, ValueError):
        return
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, descriptor)
    os.close(nowhere)
