"""The bench of workloads: what its JSON has, and that a regression is found."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent.parent / "bench"))
import workloads

BENCH = Path(__file__).parent.parent.parent / "bench"
NAMES = ["short", "long", "requests", "batch", "pressure"]
SMALL = ["--long", "70", "--requests", "4", "--conversations", "3", "--turns", "2", "--repeat", "1"]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(BENCH / "workloads.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bench") / "new" / "results.json"
    done = bench("--device", "cpu", "--threads", "2", "--json", str(path), *SMALL)
    assert done.returncode == 0, done.stderr
    assert [line.split("|")[1].strip() for line in done.stdout.splitlines()[2:]] == NAMES
    return path


@pytest.fixture
def results(written: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(written.read_text())
    return loaded


def test_speed_and_memory_of_each_workload_are_written(results: dict[str, Any]) -> None:
    assert list(results["workloads"]) == NAMES
    assert results["settings"]["long"] == 70
    assert (results["model"]["path"], results["model"]["backend"]) == ("demo.gguf", "cpu")
    for name, result in results["workloads"].items():
        speed, memory = result["speed"], result["memory"]
        for what in ("prefill_tokens_per_second", "decode_tokens_per_second", "first_token_seconds"):
            assert speed[what] > 0, (name, what)
        assert set(memory["tags"]) == {"weights", "kv", "activations", "staging"}
        for tag, use in memory["tags"].items():
            assert 0 <= use["average"] <= use["peak"], (name, tag)
            assert use["current"] <= use["peak"]
            assert use["allocations"] >= 0
        assert memory["tags"]["kv"]["current"] > 0
        assert result["kv_left"] == 0
        assert memory["heap_bytes"] == sum(heap["bytes"] for heap in memory["heap_list"])
        for heap in memory["heap_list"]:
            assert {"bytes", "used", "largest_free", "storage", "tags"} <= set(heap)
            assert heap["used"] + heap["largest_free"] <= heap["bytes"]
        assert 0 <= memory["fragmentation"] <= 1
        assert memory["heaps_created"] >= memory["heaps"] == len(memory["heap_list"])
        assert memory["pages_held"] >= memory["pages_in_use"] > 0


def test_the_workloads_are_what_they_say(results: dict[str, Any]) -> None:
    found = results["workloads"]
    generated = {name: found[name]["speed"]["generated_tokens"] for name in NAMES}
    # 3 conversations: 33 tokens in a batch, twice 16 under pressure.
    assert generated == {"short": 32, "long": 70, "requests": 128, "batch": 99, "pressure": 96}
    assert found["requests"]["heaps_after_second"] == 0
    assert found["batch"]["memory"]["pages_in_use"] == 3 * 3, "96 tokens each"
    pressure = found["pressure"]
    assert pressure["same_text"]
    assert pressure["memory"]["heap_peak"] <= pressure["memory"]["budget"]
    assert pressure["memory"]["tags"]["kv"]["peak"] < pressure["demand"]
    assert sum(count["events"] for count in pressure["memory"]["actions"].values()) > 0
    for name in NAMES[:4]:
        assert found[name]["memory"]["actions"] == {}


def test_nothing_is_worse_than_itself(written: Path, results: dict[str, Any]) -> None:
    assert workloads.compare(results, results, workloads.Bounds()) == []
    done = bench("--read", str(written), "--compare", str(written))
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, f"nothing is worse than in {written}")


def scale(*path: str, by: float = 1.0, add: float = 0.0) -> Callable[[dict[str, Any]], None]:
    def change(results: dict[str, Any]) -> None:
        at = results["workloads"]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = at[path[-1]] * by + add

    return change


def new_action(results: dict[str, Any]) -> None:
    results["workloads"]["short"]["memory"]["actions"]["compact"] = {"events": 20, "bytes": 1 << 20}


REGRESSIONS = [
    (scale("long", "memory", "tags", "kv", "peak", by=1.2), "long: kv.peak was "),
    (scale("short", "memory", "tags", "activations", "current", by=1.05), "short: activations.current was "),
    (scale("batch", "memory", "tags", "kv", "average", by=3, add=1e6), "batch: kv.average was "),
    (scale("requests", "memory", "tags", "kv", "allocations", add=10), "requests: kv.allocations was "),
    (scale("long", "memory", "heap_peak", by=1.1), "long: heap_peak was "),
    (scale("batch", "memory", "heaps_created", add=1), "batch: heaps_created was "),
    (scale("batch", "memory", "pages_held", add=1), "batch: pages_held was "),
    (scale("short", "memory", "fragmentation", add=0.1), "short: fragmentation was "),
    (scale("short", "kv_left", add=1), "short: kv_left was 0, is 1"),
    (scale("requests", "heaps_after_second", add=1), "requests: heaps_after_second was 0, is 1"),
    (scale("pressure", "same_text", by=0), "pressure: other_text was 0, is 1"),
    (scale("pressure", "memory", "tags", "kv", "peak", by=1.5), "pressure: kv.peak was "),
    (scale("short", "speed", "decode_tokens_per_second", by=0.5), "short: decode_tokens_per_second was "),
    (scale("long", "speed", "first_token_seconds", by=2), "long: first_token_seconds was "),
    (new_action, "short: actions.compact was 0, is 20"),
    (lambda results: results["workloads"].pop("batch"), "batch: results was 1, is 0"),
]


@pytest.mark.parametrize(("change", "said"), REGRESSIONS, ids=[said.split(" was")[0] for _, said in REGRESSIONS])
def test_a_regression_is_found(
    results: dict[str, Any], written: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], said: str
) -> None:
    worse = copy.deepcopy(results)
    change(worse)
    found = workloads.compare(results, worse, workloads.Bounds())
    assert len(found) == 1
    assert str(found[0]).startswith(said)
    # What got better is nothing to report.
    if "results" not in said:
        assert workloads.compare(worse, results, workloads.Bounds()) == []


def test_a_regression_fails_the_command(results: dict[str, Any], written: Path, tmp_path: Path) -> None:
    results["workloads"]["long"]["memory"]["heap_peak"] *= 1.3
    path = tmp_path / "worse.json"
    path.write_text(json.dumps(results))
    done = bench("--read", str(path), "--compare", str(written))
    assert done.returncode == 1
    assert "long: heap_peak was " in done.stdout
    assert bench("--read", str(path), "--compare", str(written), "--memory-bound", "1.4").returncode == 0
    results["settings"]["kv_type"] = "q8_0"
    path.write_text(json.dumps(results))
    done = bench("--read", str(path), "--compare", str(written))
    assert (done.returncode, done.stderr.startswith("the results differ in their settings")) == (2, True)


def test_lengths_that_make_no_sense_are_refused() -> None:
    done = bench("--requests", "0")
    assert done.returncode == 2
    assert "at least 1" in done.stderr
