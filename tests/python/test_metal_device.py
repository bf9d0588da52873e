"""The Metal backend as users meet it: the same text as on the CPU, and a device that fails.

On the simulated device faults come from the environment (see tests/metalsim/include/metalsim/control.h); against real
hardware those tests are skipped.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import numpy as np
import pytest

import metallic_native as mn
from metallic_native import _native

pytestmark = pytest.mark.device("metal")

DEVICES = {str(device["backend"]): device for device in _native.list_devices()}
SIMULATED = "metalsim" in str(DEVICES.get("metal", {}).get("name", ""))
simulated = pytest.mark.skipif(not SIMULATED, reason="faults are injected into the simulated device")
PROMPT = "Once upon a time"
GREEDY = ["--temperature", "0", "--max-tokens", "40"]

# Generates until every fault has been met; prints what happened each time.
SCRIPT = """
import json, sys
import metallic_native as mn
events = []
model = None
for attempt in range(int(sys.argv[1])):
    try:
        if model is None:
            model = mn.load("demo", device="metal")
        result = model.generate("Once upon a time", max_tokens=12, sampling=mn.Sampling.greedy())
        events.append({"text": result.text, "kv": model.memory().tags["kv"].current})
    except mn.Error as error:
        events.append({"error": type(error).__name__, "message": str(error)})
print(json.dumps(events))
"""


def run(attempts: int, **environment: str) -> list[dict[str, str]]:
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(attempts)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    events: list[dict[str, str]] = json.loads(result.stdout)
    return events


def greedy_texts(device: str, tokens: int) -> list[str]:
    with mn.load("demo", device=device) as model:
        return [
            model.generate(prompt, max_tokens=tokens, sampling=mn.Sampling.greedy()).text
            for prompt in (PROMPT, "The old tailor", "Long ago, in the mountains,")
        ]


def test_both_devices_tell_the_same_stories() -> None:
    assert greedy_texts("metal", 60) == greedy_texts("cpu", 60)


def test_the_command_line_prints_the_same_on_both() -> None:
    printed = {
        device: subprocess.run(
            [sys.executable, "-m", "metallic_native", "generate", PROMPT, "--device", device, *GREEDY],
            capture_output=True,
            text=True,
            timeout=300,
            check=True,
        ).stdout
        for device in ("cpu", "metal")
    }
    assert printed["metal"] == printed["cpu"]
    assert len(printed["metal"]) > 60


def test_logits_agree_with_the_cpu_in_every_chunking() -> None:
    with mn.load("demo", device="cpu") as model:
        ids = model.tokenizer.encode("The old tailor found a lost fox. " * 6)
        expected = model.logits(ids, all_positions=True)
    # Both compute exact products, of the demo model by default. Sums differ by ulps, which can round a cached key or
    # value to the next half float.
    for batch_tokens in (512, 33, 8, 3, 1):
        with mn.load("demo", device="metal", batch_tokens=batch_tokens) as model:
            got = model.logits(ids, all_positions=True)
        assert np.abs(got - expected).max() < 1e-3 * np.abs(expected).max()
        assert (got.argmax(axis=1) == expected.argmax(axis=1)).mean() > 0.95


@simulated
@pytest.mark.parametrize(
    ("code", "error"),
    [
        (1, "DeviceError"),  # internal
        (2, "DeviceError"),  # timeout
        (3, "DeviceError"),  # page fault
        (4, "DeviceError"),  # access revoked
        (7, "DeviceError"),  # not permitted
        (8, "OutOfMemory"),
        (9, "DeviceError"),  # invalid resource
        (10, "DeviceError"),  # memoryless
        (12, "DeviceError"),  # stack overflow
    ],
)
def test_a_failed_command_buffer_ends_one_request(code: int, error: str) -> None:
    clean = run(1)[0]["text"]
    events = run(4, METALSIM_FAULTS=f"command_buffer:nth=9,code={code}")
    failed = [event for event in events if "error" in event]
    assert [event["error"] for event in failed] == [error], events
    assert {event["text"] for event in events if "text" in event} == {clean}


@simulated
@pytest.mark.parametrize("kind", ["heap_allocation", "buffer_allocation", "library", "pipeline"])
@pytest.mark.parametrize("nth", [1, 2, 3])
def test_a_failed_allocation_or_compilation_ends_one_request(kind: str, nth: int) -> None:
    clean = run(1)[0]["text"]
    events = run(4, METALSIM_FAULTS=f"{kind}:nth={nth}")
    errors = [event for event in events if "error" in event]
    assert len(errors) <= 1, events
    for event in errors:
        assert event["error"] == ("OutOfMemory" if "allocation" in kind else "DeviceError"), events
    assert {event["text"] for event in events if "text" in event} == {clean}


@simulated
def test_slow_completions_change_nothing() -> None:
    assert run(1, METALSIM_FAULTS="slow_completion:nth=1,times=5,milliseconds=120") == run(1)


@simulated
def test_a_lost_device_is_said_every_time() -> None:
    events = run(3, METALSIM_FAULTS="device_lost:nth=4")
    assert [event.get("error") for event in events] == ["DeviceError"] * 3, events


@simulated
def test_too_small_a_device_refuses_with_sizes() -> None:
    events = run(1, METALSIM_DEVICE=f"memory={1 << 20}")
    assert events[0]["error"] == "OutOfMemory"
    assert "needs" in events[0]["message"] or "available" in events[0]["message"]


@simulated
@pytest.mark.parametrize("facts", ["residency_sets=0", "counter_sampling=0", "apple=7"])
def test_older_devices_tell_the_same_story(facts: str) -> None:
    assert run(1, METALSIM_DEVICE=facts) == run(1)


@simulated
def test_every_access_of_a_generation_is_clean() -> None:
    assert run(1, METALSIM_MODE="checked") == run(1, METALSIM_MODE="host")
