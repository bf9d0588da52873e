"""The commands, and how a command ends."""

from __future__ import annotations

import logging
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from .bench import bench
from .chat import chat
from .console import console
from .devices import devices
from .failures import ExitCode, describe, discard_output, exit_code
from .generate import generate
from .inspect import inspect
from .pull import pull

__all__ = ["app", "run"]

_HELP = "Run GGUF language models, with memory as a bounded, observable resource."
_EPILOG = """\b
Exit codes:
  0    success
  1    the engine, the network or the system failed
  2    the command line or the request makes no sense
  3    no such model, or its file is corrupt or not supported
  4    out of memory
  130  interrupted (Ctrl-C)
  141  whoever read the output has gone
Errors are one line on stderr; --debug or METALLIC_DEBUG=1 adds the traceback.
"""

app = typer.Typer(
    name="metallic",
    help=_HELP,
    epilog=_EPILOG,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from .. import __version__

        console.line(f"metallic {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True, help=_HELP, epilog=_EPILOG)
def _metallic(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and log messages.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    del debug, version  # taken from the context where they matter
    if context.invoked_subcommand is None:
        console.line(context.get_help())


for _command in (generate, chat, inspect, devices, bench, pull):
    app.command(no_args_is_help=False)(_command)


def run(arguments: list[str]) -> int:
    """Run a command line and give its exit status; errors become one line on stderr."""
    console.prepare()
    debug = os.environ.get("METALLIC_DEBUG", "0") not in ("", "0")
    try:
        command = typer.main.get_command(app)
        with command.make_context("metallic", arguments) as context:
            debug = debug or bool(context.params.get("debug"))
            _set_up_logging(debug)
            command.invoke(context)
        sys.stdout.flush()
    except typer.Exit as end:
        return int(end.exit_code)
    except BrokenPipeError:
        discard_output()
        return int(ExitCode.BROKEN_PIPE)
    except Exception as error:
        return _fail(error, debug)
    return int(ExitCode.OK)


def _fail(error: Exception, debug: bool) -> int:
    if debug:
        console.note("".join(traceback.format_exception(error)).rstrip())
    # The class of usage errors has moved between versions of typer; this is what they have in common.
    format_message: Any = getattr(error, "format_message", None)
    if format_message is None:
        console.error(describe(error))
        return int(exit_code(error))
    context: Any = getattr(error, "ctx", None)
    hint = f" (see {context.command_path} --help)" if context is not None else ""
    console.error(" ".join(str(format_message()).split()) + hint)
    return int(ExitCode.USAGE)


class _LogLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return " ".join(f"metallic: {record.levelname.lower()}: {record.getMessage()}".split())


def _set_up_logging(debug: bool) -> None:
    """Warnings of the package as lines on stderr; with ``debug`` everything, of the libraries too."""
    package = logging.getLogger("metallic_native")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_LogLine())
    # A tokenizer that is built in the background reports to whoever uses it: that is the error that ends the command.
    handler.addFilter(lambda record: debug or record.threadName != "tokenizer-prepare")
    package.handlers = [handler]
    package.propagate = False
    package.setLevel(logging.DEBUG if debug else logging.WARNING)
    logging.getLogger("huggingface_hub").setLevel(logging.DEBUG if debug else logging.ERROR)
