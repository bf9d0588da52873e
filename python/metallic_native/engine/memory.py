"""What a model's memory is used for, as its pool counts it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from .. import _native

__all__ = ["CacheUse", "HeapUse", "MemoryEvent", "MemoryReport", "OwnerUse", "TagUse"]


@dataclass(frozen=True)
class TagUse:
    """Bytes of one purpose, as reserved: each allocation is rounded up to 256."""

    current: int
    peak: int
    average: float
    """Over time, since the model was loaded."""
    allocations: int
    """Made so far; ``live`` of them are not freed."""
    live: int


@dataclass(frozen=True)
class HeapUse:
    """One heap. ``id`` is never given to another heap of the same model."""

    id: int
    bytes: int
    used: int
    largest_free: int
    allocations: int
    """Live ones."""
    storage: str
    """``shared`` with the host, or ``private`` to the device."""
    draining: bool
    """It is being emptied: nothing more is allocated in it."""
    tags: dict[str, int]
    """Used bytes by tag."""


@dataclass(frozen=True)
class OwnerUse:
    """What a scope or tensor has allocated and not freed."""

    owner: str
    allocations: int
    bytes: int


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
    heap_peak: int
    heaps_created: int
    """So far. A run after a run creates none."""
    empty_heaps: int
    """Kept for a moment, in case that they are needed again."""
    free_bytes: int
    largest_free: int
    """The largest of the free ranges."""
    mapped_bytes: int
    """Weights read where the file is mapped: part of the tag ``weights``, not of the heaps."""
    fragmentation: float
    """0 where all free bytes are one range, towards 1 for many small ones."""
    budget: int
    """The limit on ``heap_bytes``; 0 is none."""
    capacity: int
    """The most bytes that pages may take: the budget, or the device's recommended working set, less the heaps of all
    else, but for the whole pages that fit in what is free there."""
    saved_bytes: int
    """Host memory in which evicted pages wait."""
    pages_copied: int
    """Pages copied on the device so far: forks that were written to, compaction. Growing copies none."""
    actions: dict[str, tuple[int, int]]
    """How often each kind of :class:`MemoryEvent` happened so far, and over how many bytes."""
    budget_used: int
    """Of the budget, by all who share it."""
    elapsed_seconds: float
    """Since the model was loaded: what averages are over."""
    heap_list: tuple[HeapUse, ...]
    owners: tuple[OwnerUse, ...]
    """Who has allocated what lives, most bytes first."""

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
            heap_peak=use["heap_peak"],
            heaps_created=use["heaps_created"],
            empty_heaps=use["empty_heaps"],
            free_bytes=use["free_bytes"],
            largest_free=use["largest_free"],
            mapped_bytes=use["mapped_bytes"],
            fragmentation=use["fragmentation"],
            budget=use["budget"],
            capacity=use["capacity"],
            saved_bytes=use["saved_bytes"],
            pages_copied=use["pages_copied"],
            actions=use["actions"],
            budget_used=use["budget_used"],
            elapsed_seconds=use["elapsed_ns"] / 1e9,
            heap_list=tuple(HeapUse(**heap) for heap in use["heap_list"]),
            owners=tuple(OwnerUse(*owner) for owner in use["owners"]),
        )


@dataclass(frozen=True)
class MemoryEvent:
    """Something that was done about memory, or for want of it."""

    seconds: float
    """Of the monotonic clock."""
    action: str
    """``save`` (pages moved to host memory), ``compress`` (the same in a smaller type), ``restore``, ``drop`` (pages
    given up), ``recompute``, ``compact``, ``preempt``, ``wait``, ``admit``, ``refuse``, ``evict_weights``,
    ``restore_weights``, ``trim`` or ``fail`` (an attempt of the background thread, with the error as the reason)."""
    bytes: int
    scope: str
    reason: str

    @classmethod
    def all_of(cls, model: _native.Model) -> list[MemoryEvent]:
        """The newest events of a model, oldest first."""
        return [cls(time / 1e9, action, size, scope, why) for time, action, size, scope, why in model.memory_events()]
