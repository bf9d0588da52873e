"""Memory over time: samples taken by a thread, as many as are worth keeping."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from os import PathLike
from types import TracebackType
from typing import TYPE_CHECKING, Any

from .. import _native
from ..errors import Error, RequestError
from ..threads import start_thread

if TYPE_CHECKING:
    from ..engine import MemoryEvent, Model

__all__ = ["MemorySample", "MemoryTimeline"]


def _now() -> float:
    """Seconds of the clock that events of memory are stamped with."""
    return _native.now_ns() / 1e9


@dataclass(frozen=True)
class MemorySample:
    """Memory of a model at one moment, in bytes."""

    seconds: float
    """Of the clock of :class:`metallic_native.engine.MemoryEvent`."""
    tags: dict[str, int]
    """In heaps, by tag: without the weights that are read where the file is mapped."""
    mapped_bytes: int
    heap_bytes: int
    """Obtained from the system, handed out or not."""
    saved_bytes: int
    """Host memory in which evicted pages wait."""

    @property
    def used(self) -> int:
        """Bytes of heaps that are handed out."""
        return sum(self.tags.values())


class MemoryTimeline:
    """Samples a model's memory until it is stopped; a context manager.

    A thread takes a sample every ``period`` seconds; where ``period`` is None, only :meth:`sample` does. At most
    ``most`` samples are kept: when there are as many, the smaller one of each two neighbours is dropped, so that peaks
    stay, and samples are taken half as often from then on. A sample takes some ten microseconds and no lock that a step
    of the computation holds.

    >>> with MemoryTimeline(model) as timeline:
    ...     model.generate("Once upon a time")
    >>> timeline.plot("memory.svg")
    """

    def __init__(self, model: Model, period: float | None = 0.01, most: int = 2048) -> None:
        if period is not None and not (isinstance(period, (int, float)) and 1e-4 <= period <= 3600):
            raise RequestError(f"the period of samples must lie between 0.0001 and 3600 seconds, not {period!r}")
        if isinstance(most, bool) or not isinstance(most, int) or most < 4:
            raise RequestError(f"at least 4 samples must be kept, not {most!r}")
        self._native = model.native
        self._model = model
        self._most = most
        self._stride = 1  # samples asked for, for each that is looked at
        self._asked = 0
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._samples: list[MemorySample] = []
        self._newest: MemorySample | None = None
        self._events: list[MemoryEvent] = []
        self.period = period
        self.budget = model.memory().budget
        self.name = model.path.name

    def start(self) -> None:
        """Take the first sample and, unless the period is None, start the thread."""
        if self._thread is not None or self._stop.is_set():
            raise RequestError("a timeline can be started once")
        self.sample()
        if self.period is not None:
            self._thread = start_thread(self._run, "memory-timeline")

    def sample(self) -> None:
        """Take a sample now, such as after each token; most of them are passed over once many were kept."""
        with self._lock:
            self._asked += 1
            if self._stop.is_set() or (self._asked - 1) % self._stride:
                return
            self._append(self._read())

    def stop(self) -> None:
        """Take the last sample and the events, and let go of the model. What was recorded stays."""
        thread, self._thread = self._thread, None
        with self._lock:
            if self._stop.is_set():
                return
            self._stop.set()
            try:
                self._append(self._read())
                self._events = self._model.memory_events()
            except Error:  # it was closed meanwhile
                pass
        if thread is not None:
            thread.join()
        del self._model, self._native

    def __enter__(self) -> MemoryTimeline:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def samples(self) -> list[MemorySample]:
        """What is kept, oldest first; the last one is the newest there was."""
        with self._lock:
            newest = self._newest
            kept = list(self._samples)
        return kept if newest is None or (kept and kept[-1] is newest) else [*kept, newest]

    @property
    def events(self) -> list[MemoryEvent]:
        """What was done about memory meanwhile, oldest first; of very many the newest 4096."""
        with self._lock:
            first = self._samples[0].seconds if self._samples else 0.0
            events = self._events if self._stop.is_set() else self._model.memory_events()
        return [event for event in events if event.seconds >= first]

    def plot(self, path: str | PathLike[str], title: str | None = None) -> None:
        """Draw it, see :func:`metallic_native.observe.plot_memory`."""
        from .plot import plot_memory

        plot_memory(self, path, title)

    def _run(self) -> None:
        assert self.period is not None
        while not self._stop.wait(self.period * self._stride):
            with self._lock:
                if self._stop.is_set():
                    return
                self._append(self._read())

    def _read(self) -> MemorySample:
        use: dict[str, Any] = self._native.memory()
        tags = {tag: int(one["current"]) for tag, one in use["tags"].items()}
        mapped = int(use["mapped_bytes"])
        tags["weights"] -= mapped
        return MemorySample(_now(), tags, mapped, int(use["heap_bytes"]), int(use["saved_bytes"]))

    def _append(self, sample: MemorySample) -> None:
        self._newest = sample
        self._samples.append(sample)
        if len(self._samples) < self._most:
            return
        first, last = self._samples[0], self._samples[-1]
        between = self._samples[1:-1]
        # The first and the last say from when to when.
        self._samples = [first, *(max(between[i : i + 2], key=_height) for i in range(0, len(between), 2)), last]
        self._stride *= 2


def _height(sample: MemorySample) -> tuple[int, int]:
    return sample.used, sample.heap_bytes
