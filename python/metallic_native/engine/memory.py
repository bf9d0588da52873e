"""What a model's memory is used for, as its pool counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import _native

__all__ = ["CacheUse", "MemoryEvent", "MemoryReport", "TagUse"]


@dataclass(frozen=True)
class TagUse:
    """Bytes of one purpose: in use now, and the most that ever were; ``allocations`` were made so far."""

    current: int
    peak: int
    allocations: int


@dataclass(frozen=True)
class CacheUse:
    """The pages of one cache group: layers that keep history alike."""

    window: int
    """Tokens that a query of these layers sees; 0 is all."""
    layers: int
    page_bytes: int
    pages_in_use: int
    pages_held: int
    """Pages in memory, in use or free."""


@dataclass(frozen=True)
class MemoryReport:
    """Memory of one model, in bytes. ``tags`` are ``weights``, ``kv``, ``activations`` and ``staging``."""

    tags: dict[str, TagUse]
    cache_groups: tuple[CacheUse, ...]
    page_tokens: int
    """Tokens whose keys and values share a page."""
    heaps: int
    heap_bytes: int
    """Obtained from the system; ``free_bytes`` of them are not handed out."""
    free_bytes: int
    mapped_bytes: int
    """Weights read where the file is mapped: part of the tag ``weights``, not of the heaps."""
    fragmentation: float
    """0 where all free bytes are one range, towards 1 for many small ones."""
    budget: int
    """The limit on ``heap_bytes``; 0 is none."""
    capacity: int
    """The most bytes that pages may take: the budget, or the device's recommended working set, less all else."""
    saved_bytes: int
    """Host memory in which evicted pages wait."""
    pages_copied: int
    """Pages copied on the device so far: forks that were written to, compaction. Growing copies none."""
    actions: dict[str, tuple[int, int]]
    """How often each kind of :class:`MemoryEvent` happened so far, and over how many bytes."""

    @property
    def current(self) -> int:
        """Bytes in use, all tags together."""
        return sum(use.current for use in self.tags.values())

    @property
    def pages(self) -> int:
        """Pages in use, all cache groups together."""
        return sum(group.pages_in_use for group in self.cache_groups)

    @classmethod
    def of(cls, model: _native.Model) -> MemoryReport:
        """Read from the pool; may be called while a generation runs."""
        use: dict[str, Any] = model.memory()
        return cls(
            tags={name: TagUse(**tag) for name, tag in use["tags"].items()},
            cache_groups=tuple(CacheUse(**group) for group in use["groups"]),
            page_tokens=_native.page_tokens,
            heaps=use["heaps"],
            heap_bytes=use["heap_bytes"],
            free_bytes=use["free_bytes"],
            mapped_bytes=use["mapped_bytes"],
            fragmentation=use["fragmentation"],
            budget=use["budget"],
            capacity=use["capacity"],
            saved_bytes=use["saved_bytes"],
            pages_copied=use["pages_copied"],
            actions=use["actions"],
        )


@dataclass(frozen=True)
class MemoryEvent:
    """Something that was done about memory, or for want of it."""

    seconds: float
    """Of the monotonic clock."""
    action: str
    """``save`` (pages moved to host memory), ``compress`` (the same in a smaller type), ``restore``, ``drop`` (pages
    given up), ``recompute``, ``compact``, ``preempt``, ``wait``, ``admit``, ``refuse``, ``evict_weights``,
    ``restore_weights`` or ``trim``."""
    bytes: int
    scope: str
    reason: str

    @classmethod
    def all_of(cls, model: _native.Model) -> list[MemoryEvent]:
        """The newest events of a model, oldest first."""
        return [cls(time / 1e9, action, size, scope, why) for time, action, size, scope, why in model.memory_events()]
