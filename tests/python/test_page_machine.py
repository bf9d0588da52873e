"""Pages, page tables and what sequences share, against a naive model: lists of tokens, and of page numbers."""

from __future__ import annotations

import functools
import itertools
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

import metallic_native as mn
from conftest import GOLDENS
from tiny_model import write_tiny_llama

PAGE = mn._native.page_tokens
BATCH = 24  # tokens of a submission: passes are cut within pages
LONGEST = 150
MOST = 6  # sequences
TIGHT_PAGES = 12  # more than the longest sequence needs
NONE, LAST, ALL = 0, 1, 2
FILES = ("tiny", "gemma3", "mistral-window")


@functools.cache
def path_of(name: str) -> Path:
    if name != "tiny":
        return GOLDENS / f"{name}.gguf"
    path = Path(tempfile.mkdtemp()) / "tiny.gguf"
    write_tiny_llama(path, context=256)
    return path


@functools.cache
def model_of(name: str, eviction: str, tight: bool) -> mn.Model:
    """Examples share models: after each there must be nothing left in one."""
    budget = None
    if tight:
        with mn.load(path_of(name), device="cpu", threads=1, batch_tokens=BATCH) as model:
            report = model.memory()
            pages = TIGHT_PAGES * sum(group.page_bytes for group in report.cache_groups)
            budget = report.current - report.mapped_bytes + (16 << 10) * report.heaps + pages
    return mn.load(path_of(name), device="cpu", threads=1, batch_tokens=BATCH, eviction=eviction, memory_budget=budget)


@functools.cache
def fresh_logits(name: str, tokens: tuple[int, ...]) -> npt.NDArray[np.float32]:
    """Of a model that has seen nothing else: [tokens, vocabulary]."""
    model = model_of(name, "auto", False)
    return model.logits(tokens, all_positions=True)


@pytest.fixture(scope="module", autouse=True)
def models() -> Any:
    yield
    model_of.cache_clear()
    fresh_logits.cache_clear()


def pages_for(tokens: int) -> int:
    return -(-tokens // PAGE)


def first_visible(position: int, window: int) -> int:
    """The first page that a query at ``position`` sees."""
    return 0 if window == 0 or position < window else (position - window + 1) // PAGE


@dataclass
class Table:
    """The numbers of a sequence's pages in one cache group; None: saved."""

    window: int
    first: int = 0
    pages: list[int | None] = field(default_factory=list)


@dataclass
class Expected:
    native: mn._native.Sequence
    tables: list[Table]
    tokens: list[int] = field(default_factory=list)
    cached: int = 0

    @property
    def resident(self) -> bool:
        return all(page is not None for table in self.tables for page in table.pages)


class PageMachine(RuleBasedStateMachine):
    tight = False

    @initialize(name=st.sampled_from(FILES), eviction=st.sampled_from(["save", "recompute"]))
    def start(self, name: str, eviction: str) -> None:
        self.name, self.eviction = name, eviction
        self.model = model_of(name, eviction, self.tight)
        self.windows = [group.window for group in self.model.memory().cache_groups]
        self.live: list[Expected] = []
        self.numbers = itertools.count(1)

    def teardown(self) -> None:
        if not hasattr(self, "model"):
            return
        for one in self.live:
            one.native.close()
        report = self.model.memory()
        assert report.pages == report.tags["kv"].current == report.saved_bytes == 0
        assert all(group.pages_held == 0 for group in report.cache_groups)

    # ---- the naive model ----

    def tables(self) -> list[Table]:
        """None where the cache may evict behind the model's back."""
        return [] if self.tight else [Table(window) for window in self.windows]

    def sharers(self, group: int, page: int) -> int:
        return sum(page in one.tables[group].pages for one in self.live)

    def drop(self, one: Expected) -> None:
        one.cached = 0
        for table in one.tables:
            table.first, table.pages = 0, []

    def grow(self, one: Expected, count: int) -> None:
        """What appending tokens does to the pages."""
        for group, table in enumerate(one.tables):
            table.pages = [next(self.numbers) if page is None else page for page in table.pages]
            if one.cached % PAGE:
                last = one.cached // PAGE - table.first
                page = table.pages[last]
                assert page is not None
                if self.sharers(group, page) > 1:
                    table.pages[last] = next(self.numbers)
        length = len(one.tokens) + count
        for table in one.tables:
            while table.first + len(table.pages) < pages_for(length):
                table.pages.append(next(self.numbers))
            gone = max(first_visible(length, table.window), table.first) - table.first
            del table.pages[:gone]
            table.first += gone
        one.cached = length

    # ---- rules ----

    @precondition(lambda self: len(self.live) < MOST)
    @rule()
    def create(self) -> None:
        self.live.append(Expected(self.model.native.create_sequence(), self.tables()))

    @precondition(lambda self: self.live)
    @rule(
        counts=st.lists(st.one_of(st.just(0), st.integers(1, 8), st.integers(1, 70)), min_size=MOST, max_size=MOST),
        modes=st.lists(st.sampled_from([NONE, LAST, LAST, ALL]), min_size=MOST, max_size=MOST),
        seed=st.integers(0, 3),
    )
    def forward(self, counts: list[int], modes: list[int], seed: int) -> None:
        rng = np.random.default_rng(seed)
        chosen = []
        for one, count, mode in zip(self.live, counts, modes, strict=False):
            count = min(count, LONGEST - len(one.tokens))
            if count > 0:
                chosen.append((one, [int(token) for token in rng.integers(0, 250, count)], mode))
        if not chosen:
            return
        rows = sum({NONE: 0, LAST: 1, ALL: len(ids)}[mode] for _, ids, mode in chosen)
        logits = np.full((rows, self.model.vocabulary_size), np.nan, np.float32)
        self.model.native.forward(
            [one.native for one, _, _ in chosen],
            [np.array(ids, np.int32) for _, ids, _ in chosen],
            [mode for _, _, mode in chosen],
            [False] * len(chosen),
            logits,
        )
        at = 0
        for one, ids, mode in chosen:
            self.grow(one, len(ids))
            one.tokens += ids
            if mode == NONE:
                continue
            expected = fresh_logits(self.name, tuple(one.tokens))[-len(ids) if mode == ALL else -1 :]
            np.testing.assert_array_equal(logits[at : at + len(expected)], expected)
            at += len(expected)
        assert at == rows

    @precondition(lambda self: self.live and len(self.live) < MOST)
    @rule(which=st.integers(0, MOST - 1))
    def fork(self, which: int) -> None:
        one = self.live[which % len(self.live)]
        resident = one.native.cached == one.cached and one.resident
        copy = Expected(one.native.fork(), self.tables(), list(one.tokens))
        if resident:
            copy.cached = one.cached
            for table, other in zip(copy.tables, one.tables, strict=True):
                table.first = other.first
                table.pages = other.pages[: max(pages_for(one.cached) - other.first, 0)]
        self.live.append(copy)

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, MOST - 1), length=st.integers(0, LONGEST + 2), near=st.booleans())
    def truncate(self, which: int, length: int, near: bool) -> None:
        one = self.live[which % len(self.live)]
        if near:
            length = max(len(one.tokens) - length % 40, 0)
        kept = min(length, one.cached)
        done = one.native.truncate(length)
        if length > len(one.tokens):
            assert not done
        elif length == len(one.tokens):
            assert done
        elif not self.tight:
            seen = all(first_visible(kept, table.window) >= table.first for table in one.tables)
            assert done == (seen or length == 0)
        elif self.windows == [0]:
            assert done
        if not done or length == len(one.tokens):  # what was taken ahead stays
            return
        del one.tokens[length:]
        one.cached = kept
        if length == 0:
            self.drop(one)
        for table in one.tables:
            del table.pages[max(pages_for(kept) - table.first, 0) :]

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, MOST - 1), length=st.integers(0, 200))
    def reserve(self, which: int, length: int) -> None:
        one = self.live[which % len(self.live)]
        before = self.model.memory().pages
        try:
            one.native.reserve(length)
        except mn.OutOfMemory:
            assert self.tight
            assert self.model.memory().pages <= before or not one.resident  # what came back stays
            return
        for table in one.tables:
            table.pages = [next(self.numbers) if page is None else page for page in table.pages]
            wanted = pages_for(min(length, table.first * PAGE + table.window) if table.window else length)
            while table.first + len(table.pages) < wanted:
                table.pages.append(next(self.numbers))

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, MOST - 1))
    def evict(self, which: int) -> None:
        one = self.live[which % len(self.live)]
        shared = [
            [page is not None and self.sharers(g, page) > 1 for page in t.pages] for g, t in enumerate(one.tables)
        ]
        one.native.evict()
        if self.eviction == "recompute":
            self.drop(one)
            return
        for table, kept in zip(one.tables, shared, strict=True):
            del table.pages[max(pages_for(one.cached) - table.first, 0) :]
            table.pages = [page if keep else None for page, keep in zip(table.pages, kept, strict=False)]

    @rule()
    def compact(self) -> None:
        before = self.model.memory()
        self.model.compact()
        after = self.model.memory()
        assert after.pages == before.pages or (self.tight and after.pages < before.pages)
        assert after.tags["kv"].current <= before.tags["kv"].current

    @precondition(lambda self: self.live)
    @rule(which=st.integers(0, MOST - 1))
    def close(self, which: int) -> None:
        self.live.pop(which % len(self.live)).native.close()

    # ---- invariants ----

    @invariant()
    def lengths_agree(self) -> None:
        for one in getattr(self, "live", []):
            assert one.native.length == len(one.tokens)
            assert one.native.cached in ((one.cached, 0) if self.tight else (one.cached,))
            one.cached = one.native.cached

    @invariant()
    def pages_agree(self) -> None:
        if not hasattr(self, "model"):
            return
        held, report = self.look()
        assert report.tags["kv"].current == sum(
            -(-group.page_bytes // 256) * 256 * group.pages_held for group in report.cache_groups
        )
        assert report.pages <= sum(held)
        assert all(group.pages_in_use <= group.pages_held for group in report.cache_groups)
        if self.tight:
            assert report.heap_bytes <= report.budget
            return
        for index, group in enumerate(report.cache_groups):
            expected = {page for one in self.live for page in one.tables[index].pages} - {None}
            assert group.pages_in_use == len(expected)
        for one, pages in zip(self.live, held, strict=True):
            assert pages == sum(page is not None for table in one.tables for page in table.pages)
        saved = sum(
            table.pages.count(None) * group.page_bytes
            for one in self.live
            for table, group in zip(one.tables, report.cache_groups, strict=True)
        )
        assert report.saved_bytes == saved

    def look(self) -> tuple[list[int], mn.MemoryReport]:
        """The pages of each sequence, and a report of the same moment: the background thread may evict meanwhile."""
        for _ in range(100):
            before = self.model.memory()
            held = [one.native.pages for one in self.live]
            after = self.model.memory()
            if (before.cache_groups, before.actions) == (after.cache_groups, after.actions):
                return held, before
        raise AssertionError("the pages never rest")


class TightPageMachine(PageMachine):
    """Under a budget that a few sequences use up: who gives way is up to the cache, what they compute is not."""

    tight = True


SETTINGS = settings(max_examples=300, stateful_step_count=40, deadline=None)
TestPageMachine = PageMachine.TestCase
TestPageMachine.settings = SETTINGS
TestTightPageMachine = TightPageMachine.TestCase
TestTightPageMachine.settings = SETTINGS
