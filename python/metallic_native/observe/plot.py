"""A timeline of memory as a picture. Wants matplotlib, which the extra ``plot`` of the package brings."""

from __future__ import annotations

from os import PathLike, fspath
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from ..errors import RequestError

if TYPE_CHECKING:
    from ..engine import MemoryEvent
    from .timeline import MemorySample, MemoryTimeline

__all__ = ["PlotFormat", "check_plot", "plot_memory"]

PlotFormat = Literal["svg", "png"]

_MIB = 1 << 20
# From the bottom: what hardly changes first. Colours that are told apart with impaired colour vision (Okabe and Ito).
_TAGS = {"weights": "#999999", "activations": "#56b4e9", "staging": "#cc79a7", "kv": "#009e73"}
_ACTIONS = {
    "admit": "#009e73",
    "wait": "#e69f00",
    "refuse": "#d55e00",
    "preempt": "#d55e00",
    "save": "#0072b2",
    "compress": "#0072b2",
    "restore": "#56b4e9",
    "drop": "#0072b2",
    "recompute": "#56b4e9",
    "compact": "#cc79a7",
    "evict_weights": "#999999",
    "restore_weights": "#999999",
    "fail": "#d55e00",
    "trim": "#999999",
}
_ROW_INCHES = 0.24


def check_plot(path: str | PathLike[str]) -> PlotFormat:
    """The format that a file's name asks for, if it can be drawn. Raises RequestError where it cannot."""
    ending = Path(fspath(path)).suffix.lower().removeprefix(".")
    formats: dict[str, PlotFormat] = {name: name for name in get_args(PlotFormat)}
    if ending not in formats:
        raise RequestError(f"a plot is written to a file that ends with .svg or .png, not to {fspath(path)}")
    _matplotlib()
    return formats[ending]


def plot_memory(timeline: MemoryTimeline, path: str | PathLike[str], title: str | None = None) -> None:
    """Draw a timeline to an SVG or PNG file.

    Areas are the bytes in heaps by tag, one on the other, in MiB over seconds; lines are the heaps' bytes, the budget,
    and host memory that evicted pages wait in, if there is any. Below, a row for each kind of memory event that
    happened. Weights that are read where the file is mapped are in no heap: the heading has their size.

    Raises RequestError for another format, without matplotlib, and for a timeline without samples; OSError where the
    file cannot be written.
    """
    form = check_plot(path)
    samples, events = timeline.samples, timeline.events
    if not samples:
        raise RequestError("there is nothing to draw: the timeline was not started")
    rows = [action for action in _ACTIONS if any(event.action == action for event in events)]
    rc_context, figure_class = _matplotlib()
    # One text for one timeline: no random names of parts, no date.
    with rc_context({"svg.hashsalt": "metallic", "font.size": 9, "font.family": "DejaVu Sans"}):
        figure, axes, below = _layout(figure_class, len(rows))
        _draw_memory(axes, samples, timeline.budget)
        if below is not None:
            _draw_events(below, rows, events, samples[0].seconds)
        (below or axes).set_xlabel("seconds")
        mapped = max(sample.mapped_bytes for sample in samples)
        note = f"; weights mapped from the file, in no heap: {mapped / _MIB:.1f} MiB" if mapped else ""
        axes.set_title((title or f"Memory of {timeline.name}") + note, loc="left", fontsize=10)
        metadata = {"Date": None} if form == "svg" else None
        figure.savefig(fspath(path), format=form, metadata=metadata)


def _matplotlib() -> tuple[Any, Any]:
    """What is needed of matplotlib: no window, and no state that outlives the plot."""
    try:
        from matplotlib import rc_context
        from matplotlib.figure import Figure
    except ImportError as error:
        raise RequestError("plots need matplotlib: pip install 'metallic-native[plot]'") from error
    return rc_context, Figure


def _layout(figure_class: Any, rows: int) -> tuple[Any, Any, Any]:
    """The figure, the axes of memory and, below, those of events where there are any."""
    below = _ROW_INCHES * rows + 0.2 if rows else 0.0
    figure = figure_class(figsize=(9, 4.2 + below), layout="constrained")
    if not rows:
        return figure, figure.subplots(), None
    axes, events = figure.subplots(2, 1, sharex=True, height_ratios=[3.6, below])
    return figure, axes, events


def _draw_memory(axes: Any, samples: list[MemorySample], budget: int) -> None:
    begin = samples[0].seconds
    times = [sample.seconds - begin for sample in samples]
    tags = [tag for tag in _TAGS if any(sample.tags.get(tag) for sample in samples)]
    heaps = [sample.heap_bytes / _MIB for sample in samples]
    saved = [sample.saved_bytes / _MIB for sample in samples]
    if tags:
        areas = [[sample.tags[tag] / _MIB for sample in samples] for tag in tags]
        colors = [_TAGS[tag] for tag in tags]
        axes.stackplot(times, areas, labels=tags, colors=colors, step="post", linewidth=0)
    axes.step(times, heaps, where="post", color="black", linewidth=1.1, label="heaps")
    if any(saved):
        axes.step(
            times, saved, where="post", color="#4b0082", linewidth=1.3, linestyle=":", label="saved in host memory"
        )
    if budget:
        axes.axhline(budget / _MIB, color="#d55e00", linewidth=1.1, linestyle="--", label="budget")
    axes.set_ylim(0, max([*heaps, *saved, budget / _MIB, 1 / 64]) * 1.08)
    axes.set_xlim(0, max(times[-1], 1e-3))
    axes.set_ylabel("MiB")
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
    # Beside the areas, where nothing is; the uppermost entry is the uppermost area.
    handles, labels = axes.get_legend_handles_labels()
    axes.legend(handles[::-1], labels[::-1], loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)


def _draw_events(axes: Any, rows: list[str], events: list[MemoryEvent], begin: float) -> None:
    for row, action in enumerate(rows):
        mine = [event for event in events if event.action == action]
        times = [event.seconds - begin for event in mine]
        axes.plot(times, [row] * len(times), "|", color=_ACTIONS[action], markersize=9, markeredgewidth=1.4)
        text = f"{len(mine)} x, {sum(event.bytes for event in mine) / _MIB:.1f} MiB"
        axes.annotate(text, (1.0, row), xycoords=("axes fraction", "data"), xytext=(6, 0), textcoords="offset points",
                      va="center", fontsize=8)  # fmt: skip
    axes.set_yticks(range(len(rows)), [action.replace("_", " ") for action in rows])
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="y", linewidth=0.4, alpha=0.5)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)
