"""The command ``metallic``, one file per command. What is slow to import is imported by the commands that need it."""

from __future__ import annotations

import sys
from collections.abc import Sequence

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run ``metallic`` with ``arguments`` (default: those of the process) and give its exit status."""
    from .failures import ExitCode

    try:
        from .app import run

        return run(list(sys.argv[1:] if arguments is None else arguments))
    except KeyboardInterrupt:
        return int(ExitCode.INTERRUPTED)
