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


def stress(*arguments: object) -> dict[str, Any]:
    """In a process of its own: faults of a simulated device are for the whole process."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *map(str, arguments)], capture_output=True, text=True, timeout=280
    )
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    result: dict[str, Any] = json.loads(done.stdout)
    return result


@pytest.mark.parametrize("eviction", ["save", "recompute"])
def test_texts_are_right_and_nothing_is_left(eviction: str) -> None:
    if "metalsim" in device_name():
        sizes = ("--seconds", 10, "--conversations", 16, "--longest", 70, "--drawn", 4)
    else:
        sizes = ("--seconds", 8)
    result = stress("--device", os.environ.get("METALLIC_DEVICE", "auto"), "--eviction", eviction, *sizes)
    assert result["counts"]["generate"] > 10
    assert ("save" if eviction == "save" else "recompute") in result["actions"]


@pytest.mark.device("metal")
def test_a_failing_device_ends_single_requests() -> None:
    if "metalsim" not in device_name():
        pytest.skip("faults are injected into the simulated device")
    sizes = ("--seconds", 10, "--conversations", 16, "--longest", 70, "--drawn", 4)
    result = stress("--device", "metal", "--faults", 6, *sizes)
    assert result["counts"]["generate"] > 10
    assert result["counts"].get("DeviceError", 0) + result["counts"].get("OutOfMemory", 0) > 0
