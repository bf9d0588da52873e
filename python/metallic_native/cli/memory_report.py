"""What a model's memory is used for, as tables on stderr."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from .console import console, decimal_size

if TYPE_CHECKING:
    from ..engine import MemoryEvent, MemoryReport

__all__ = ["report_values", "show_memory_report"]

_OWNERS = 12  # rows of a table; the rest is one more
_HEAPS = 16


def show_memory_report(report: MemoryReport, events: list[MemoryEvent]) -> None:
    """Write the report of one moment, and what was done about memory until then."""
    _tags(report)
    _groups(report)
    _heaps(report)
    _owners(report)
    _actions(report, events)


def report_values(report: MemoryReport, events: list[MemoryEvent]) -> dict[str, Any]:
    """Everything, for JSON."""
    actions = {name: {"events": count, "bytes": size} for name, (count, size) in report.actions.items()}
    return {**asdict(report), "actions": actions, "events": [asdict(event) for event in events]}


def _table(title: str, headings: list[str], rows: list[list[str]], left: int = 1) -> None:
    """A table whose first ``left`` columns are texts and the others, up to an empty heading, numbers."""
    console.note(f"\n{title}")
    right = [index for index in range(left, len(headings)) if headings[index]]
    console.table(headings, rows, right=right, to_stderr=True)


def _tags(report: MemoryReport) -> None:
    rows = []
    for name, use in report.tags.items():
        mapped = f"{decimal_size(report.mapped_bytes)} mapped from the file, in no heap" if name == "weights" else ""
        rows.append(
            [
                name,
                decimal_size(use.current),
                decimal_size(use.peak),
                decimal_size(use.average),
                str(use.allocations),
                str(use.live),
                mapped if report.mapped_bytes else "",
            ]
        )
    _table("Memory by tag", ["tag", "now", "peak", "average", "allocations", "live", ""], rows)


def _groups(report: MemoryReport) -> None:
    rows = [
        [
            f"{group.window} tokens" if group.window else "all",
            str(group.layers),
            decimal_size(group.page_bytes),
            str(group.pages_in_use),
            str(group.pages_held),
            decimal_size(group.pages_in_use * group.page_bytes),
        ]
        for group in report.cache_groups
    ]
    title = f"Keys and values, pages of {report.page_tokens} tokens"
    if report.saved_bytes:
        title += f"; evicted ones take {decimal_size(report.saved_bytes)} of host memory"
    if report.pages_copied:
        title += f"; {report.pages_copied} were copied so far"
    _table(title, ["history", "layers", "page", "in use", "held", "bytes in use"], rows)


def _heaps(report: MemoryReport) -> None:
    limit = f" of a budget of {decimal_size(report.budget)}" if report.budget else ""
    title = f"Heaps: {decimal_size(report.heap_bytes)}{limit}, peak {decimal_size(report.heap_peak)}"
    title += f", {report.heaps_created} made so far, fragmentation {report.fragmentation:.2f}"
    rows = []
    for heap in report.heap_list[:_HEAPS]:
        inside = ", ".join(f"{tag} {decimal_size(size)}" for tag, size in heap.tags.items() if size)
        rows.append(
            [
                str(heap.id),
                heap.storage,
                decimal_size(heap.bytes),
                decimal_size(heap.used),
                decimal_size(heap.largest_free),
                (inside or "nothing") + (" (being emptied)" if heap.draining else ""),
            ]
        )
    rest = report.heap_list[_HEAPS:]
    if rest:
        free = decimal_size(max(heap.largest_free for heap in rest))
        sizes = [decimal_size(sum(heap.bytes for heap in rest)), decimal_size(sum(heap.used for heap in rest)), free]
        rows.append(["", f"{len(rest)} more", *sizes, ""])
    console.note(f"\n{title}")
    headings = ["heap", "storage", "size", "used", "largest free", "what is in it"]
    console.table(headings, rows, right=[0, 2, 3, 4], to_stderr=True)


def _owners(report: MemoryReport) -> None:
    rows = [[owner.owner, str(owner.allocations), decimal_size(owner.bytes)] for owner in report.owners[:_OWNERS]]
    rest = report.owners[_OWNERS:]
    if rest:
        sums = sum(owner.allocations for owner in rest), sum(owner.bytes for owner in rest)
        rows.append([f"{len(rest)} more", str(sums[0]), decimal_size(sums[1])])
    _table("Owners of what is allocated", ["owner", "allocations", "bytes"], rows)


def _actions(report: MemoryReport, events: list[MemoryEvent]) -> None:
    if not report.actions:
        console.note("\nNo memory pressure: nothing was evicted, moved or refused, and nobody waited")
        return
    # Why, of the newest event of each kind; it stands in the last column.
    newest = {event.action: event.reason for event in events}
    rows = [
        [action.replace("_", " "), str(count), decimal_size(size), newest.get(action, "")]
        for action, (count, size) in report.actions.items()
    ]
    _table("What was done about memory", ["action", "times", "bytes", ""], rows)
