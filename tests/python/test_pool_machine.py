"""The pool against a naive model of it: lists of what is held, and of heaps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

import metallic_native as mn
from metallic_native import _native

ALIGNMENT = _native.pool_alignment
HEAP = _native.pool_heap_bytes
TAGS = ("weights", "kv", "activations", "staging")
GRACE = 1000


@dataclass
class Held:
    """An allocation, and what the test wrote into it."""

    native: _native.PoolAllocation
    nbytes: int
    tag: str
    owner: str
    exclusive: bool
    value: int
    reserved: int = field(init=False)

    def __post_init__(self) -> None:
        self.reserved = max(1, -(-self.nbytes // ALIGNMENT)) * ALIGNMENT


class PoolMachine(RuleBasedStateMachine):
    """Sizes reach from nothing to heaps of their own; the budget is small enough to be met."""

    held = Bundle("held")

    @initialize(budget=st.one_of(st.just(0), st.integers(1, 64).map(lambda n: n * HEAP // 2)), grace=st.booleans())
    def make(self, budget: int, grace: bool) -> None:
        self.grace = GRACE if grace else 0
        self.budget = budget
        self.pool = _native.Pool(budget, self.grace)
        self.live: list[Held] = []
        self.now = 0
        self.made = dict.fromkeys(TAGS, 0)
        self.peak = dict.fromkeys(TAGS, 0)
        self.integral = dict.fromkeys(TAGS, 0)
        self.seen_heaps: dict[int, int] = {}  # bytes by id, ever
        self.gone_heaps: set[int] = set()
        self.drained: set[int] = set()
        self.counter = 0

    def teardown(self) -> None:
        if not hasattr(self, "pool"):
            return
        _native.take_leak_reports()
        expected: dict[str, list[int]] = {}
        for one in self.live:
            count = expected.setdefault(one.owner, [0, 0])
            count[0] += 1
            count[1] += one.reserved
        self.pool.close()
        reports = _native.take_leak_reports()
        got = {owner: [count, size] for report in reports for owner, count, size in report}
        assert got == expected
        for one in self.live:  # they outlive the pool
            assert one.native.holds_only(one.value) or one.nbytes == 0
            one.native.free()

    # ---- rules ----

    @rule(
        target=held,
        nbytes=st.one_of(st.integers(0, 5000), st.integers(0, HEAP // 2), st.integers(HEAP // 2, 2 * HEAP)),
        tag=st.sampled_from(TAGS),
        owner=st.integers(0, 5),
        exclusive=st.booleans(),
        zero=st.booleans(),
    )
    def allocate(self, nbytes: int, tag: str, owner: int, exclusive: bool, zero: bool) -> Any:
        name = f"scope.{owner}"
        before = self.pool.memory()
        try:
            native = self.pool.allocate(nbytes, tag, name, exclusive, zero)
        except mn.OutOfMemory as error:
            self.check_refusal(error, nbytes, name, before)
            return multiple()
        self.counter += 1
        one = Held(native, nbytes, tag, name, exclusive, 1 + self.counter % 255)
        assert native.nbytes == nbytes
        assert native.offset % ALIGNMENT == 0
        assert native.heap_id not in self.drained
        if zero:
            assert native.zeroed
        if native.zeroed:
            assert native.holds_only(0)
        native.fill(one.value)
        self.live.append(one)
        self.made[tag] += 1
        self.peak[tag] = max(self.peak[tag], self.current(tag))
        return one

    def check_refusal(self, error: mn.OutOfMemory, nbytes: int, owner: str, before: dict[str, Any]) -> None:
        """Refused only where heaps in use leave no room for it; and nothing changes."""
        reserved = max(1, -(-nbytes // ALIGNMENT)) * ALIGNMENT
        assert self.budget
        assert (error.owner, error.needed) == (owner, reserved)
        used = sum(heap["bytes"] for heap in before["heap_list"] if heap["used"])
        assert used + reserved > self.budget
        assert self.pool.memory()["tags"] == before["tags"]

    @rule(one=consumes(held))
    def free(self, one: Held) -> None:
        assert one.native.holds_only(one.value) or one.nbytes == 0
        one.native.free()
        self.live.remove(one)

    @rule(ns=st.integers(0, 2 * GRACE))
    def wait(self, ns: int) -> None:
        for tag in TAGS:
            self.integral[tag] += ns * self.current(tag)
        self.pool.advance(ns)
        self.now += ns

    @rule()
    def trim(self) -> None:
        before = self.pool.memory()
        given = self.pool.trim()
        after = self.pool.memory()
        assert before["heap_bytes"] - after["heap_bytes"] == given

    @rule()
    def drop_empty_heaps(self) -> None:
        self.pool.drop_empty_heaps()
        memory = self.pool.memory()
        assert memory["empty_heaps"] == 0
        assert {heap["id"] for heap in memory["heap_list"]} == {one.native.heap_id for one in self.live}

    @rule(one=held, draining=st.booleans())
    def drain(self, one: Held, draining: bool) -> None:
        heap = one.native.heap_id
        assert self.pool.set_draining(heap, draining)
        if draining:
            self.drained.add(heap)
        else:
            self.drained.discard(heap)

    # ---- invariants ----

    def current(self, tag: str) -> int:
        return sum(one.reserved for one in self.live if one.tag == tag)

    @invariant()
    def statistics_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        memory = self.pool.memory()
        for tag in TAGS:
            use = memory["tags"][tag]
            assert use["current"] == self.current(tag)
            assert use["peak"] == self.peak[tag]
            assert use["allocations"] == self.made[tag]
            assert use["live"] == sum(one.tag == tag for one in self.live)
            if self.now:
                assert abs(use["average"] - self.integral[tag] / self.now) <= 1e-9 * (self.peak[tag] + 1)
        assert memory["elapsed_ns"] == self.now
        owners = {owner: (count, size) for owner, count, size in memory["owners"]}
        for owner in {one.owner for one in self.live} | set(owners):
            mine = [one.reserved for one in self.live if one.owner == owner]
            assert owners[owner] == (len(mine), sum(mine))

    @invariant()
    def heaps_agree(self) -> None:
        if not hasattr(self, "pool"):
            return
        memory = self.pool.memory()
        heaps = {heap["id"]: heap for heap in memory["heap_list"]}
        assert memory["heaps"] == len(heaps)
        assert memory["heap_bytes"] == sum(heap["bytes"] for heap in heaps.values()) == memory["budget_used"]
        assert not self.budget or memory["heap_bytes"] <= self.budget
        assert memory["free_bytes"] == memory["heap_bytes"] - sum(one.reserved for one in self.live)
        for ident, heap in heaps.items():
            assert self.seen_heaps.setdefault(ident, heap["bytes"]) == heap["bytes"]
            assert ident not in self.gone_heaps
            self.check_heap(heap, [one for one in self.live if one.native.heap_id == ident])
        self.gone_heaps = set(self.seen_heaps) - set(heaps)
        assert {one.native.heap_id for one in self.live} <= set(heaps)
        if self.grace == 0:
            assert memory["empty_heaps"] == 0
        assert memory["empty_heaps"] == sum(not heap["used"] for heap in heaps.values())
        # A draining heap goes as soon as it is empty.
        assert all(heap["used"] for heap in heaps.values() if heap["draining"])

    def check_heap(self, heap: dict[str, Any], inside: list[Held]) -> None:
        """Nothing overlaps, and the largest gap is what the pool says."""
        at, gap = 0, 0
        for one in sorted(inside, key=lambda one: one.native.offset):
            assert one.native.offset >= at
            gap = max(gap, one.native.offset - at)
            at = one.native.offset + one.reserved
            assert heap["storage"] == ("private" if one.exclusive else "shared")
        assert at <= heap["bytes"]
        gap = max(gap, heap["bytes"] - at)
        if inside and max(one.reserved for one in inside) > HEAP // 2:
            assert len(inside) == 1  # a heap of its own
        else:
            assert heap["largest_free"] == gap
        assert heap["used"] == sum(one.reserved for one in inside)
        assert heap["allocations"] == len(inside)
        assert heap["draining"] == (heap["id"] in self.drained)
        assert heap["tags"] == {
            tag: sum(one.reserved for one in inside if one.tag == tag)
            for tag in TAGS
            if any(o.tag == tag for o in inside)
        }


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
