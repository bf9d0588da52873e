"""Conversations under half the memory that they want, while things go wrong; stress_memory.py runs longer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from conftest import device_name

SCRIPT = Path(__file__).parent / "stress_memory.py"


SIMULATED = ("--seconds", 10, "--conversations", 16, "--longest", 70, "--drawn", 4, "--context", 128)
# Each of them takes what the others leave out.
SETTINGS = {
    "save": ("--eviction", "save"),
    "recompute": ("--eviction", "recompute", "--model", "gemma3", "--kv-type", "full:v=q4_0"),
    "least": (
        "--eviction",
        "save",
        "--model",
        "phi3-longrope",
        "--weights",
        "private",
        "--sampled",
        "--budget",
        "least",
    ),
    "two": ("--eviction", "compress", "--model", "mixtral", "--kv-type", "k=q8_0,v=q4_0", "--models", 2),
}


def stress(*arguments: object) -> list[dict[str, Any]]:
    """The outcome of each model, in a process of its own: faults of a simulated device are for the whole process."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("name", SETTINGS)
def test_texts_are_right_and_nothing_is_left(name: str) -> None:
    simulated = "metalsim" in device_name()
    if simulated and name == "two":
        pytest.skip("what differs is above the device, and a simulated one takes long")
    device = ("--device", os.environ.get("METALLIC_DEVICE", "auto"))
    outcomes = stress(*device, *SETTINGS[name], *(SIMULATED if simulated else ("--seconds", 7)))
    for outcome in outcomes:
        assert outcome["counts"]["generate"] > 10
        action = {"recompute": "recompute", "two": "compress"}.get(name, "save")
        assert action in outcome["actions"]


@pytest.mark.device("metal")
def test_a_failing_device_ends_single_requests() -> None:
    if "metalsim" not in device_name():
        pytest.skip("faults are injected into the simulated device")
    (outcome,) = stress("--device", "metal", "--faults", 6, *SIMULATED)
    counts = outcome["counts"]
    assert counts["generate"] > 10
    assert any(what.startswith(("DeviceError", "OutOfMemory")) for what in counts)
