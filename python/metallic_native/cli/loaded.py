"""Finding and loading the model of a command, with the exit codes that belong to each way of failing."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Error, RequestError
from .failures import CommandError, ExitCode
from .options import LoadOptions
from .progress import download_progress

if TYPE_CHECKING:
    from .. import _native
    from ..engine import MemoryReport, Model

__all__ = ["find_model", "load_model", "memory_line", "memory_values", "open_file", "pool_values"]


def find_model(name: str, quiet: bool = False) -> Path:
    """The file of the model that a user calls ``name``, downloaded if need be."""
    from ..loading import resolve_model

    with download_progress(quiet) as progress:
        try:
            return resolve_model(name, progress=progress)
        except Error as error:
            raise CommandError(str(error), ExitCode.MODEL) from error


def open_file(name: str, quiet: bool = False) -> tuple[Path, _native.GgufModelFile]:
    """The model file that a user calls ``name``, mapped and checked."""
    from .. import _native

    path = find_model(name, quiet)
    try:
        return path, _native.GgufModelFile(str(path))
    except Error as error:
        raise CommandError(str(error), ExitCode.MODEL) from error


def load_model(options: LoadOptions, quiet: bool = False) -> Model:
    """The model that the options describe."""
    from ..engine import load

    path = find_model(options.model, quiet)
    try:
        return load(
            path,
            options.device,
            options.threads,
            options.kv_type,
            context_length=options.context,
            batch_tokens=options.batch_tokens,
            memory_budget=options.memory,
            weights=options.weights,
            gpu_layers=options.gpu_layers,
            precision=options.precision,
            eviction=options.eviction,
        )
    except Error as error:
        if type(error) is Error:  # the file cannot be opened or read
            raise CommandError(str(error), ExitCode.MODEL) from error
        if isinstance(error, RequestError):
            raise CommandError(str(error), ExitCode.USAGE) from error
        raise


def memory_line(report: MemoryReport) -> str:
    """Peaks by tag in words."""
    from .console import decimal_size

    parts = []
    for tag, use in report.tags.items():
        mapped = ""
        if tag == "weights" and report.mapped_bytes:
            some = report.mapped_bytes < use.current
            mapped = f" ({decimal_size(report.mapped_bytes)} mapped)" if some else " mapped"
        if use.peak:
            parts.append(f"{tag} {decimal_size(use.peak)}{mapped}")
    return ", ".join(parts)


def memory_values(report: MemoryReport) -> dict[str, dict[str, float]]:
    """Bytes by tag for JSON."""
    return {
        tag: {
            "current": use.current,
            "peak": use.peak,
            "average": use.average,
            "allocations": use.allocations,
            "live": use.live,
        }
        for tag, use in report.tags.items()
    }


def pool_values(report: MemoryReport) -> dict[str, Any]:
    """The pool's heaps for JSON; what grows here between versions takes more memory than it did."""
    return {
        "heaps": report.heaps,
        "heaps_created": report.heaps_created,
        "heap_bytes": report.heap_bytes,
        "heap_peak": report.heap_peak,
        "free_bytes": report.free_bytes,
        "largest_free": report.largest_free,
        "fragmentation": report.fragmentation,
        "mapped_bytes": report.mapped_bytes,
        "elapsed_seconds": report.elapsed_seconds,
        "heap_list": [asdict(heap) for heap in report.heap_list],
    }
