"""Watching what a model does: its memory over time."""

from .plot import PlotFormat, check_plot, plot_memory
from .timeline import MemorySample, MemoryTimeline

__all__ = ["MemorySample", "MemoryTimeline", "PlotFormat", "check_plot", "plot_memory"]
