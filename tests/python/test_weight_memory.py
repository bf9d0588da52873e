"""What weights cost of the process's memory, measured from outside the pool: peaks that the system counts.

The models have real shapes and are hollow: all zeros, in sparse files. Pages of a hole are read and counted as others.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "bench"))

from synthetic import SHAPES, write_model

pytestmark = [
    pytest.mark.cpu_only,
    pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peaks are read from /proc"),
]
MB = 1_000_000

# Loads a model, generates, and prints what the system counted, in bytes. RssFile has no peak of its own: it is sampled.
SCRIPT = """
import json, sys, threading, time
import metallic_native as mn

def status(key):
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines[key].split()[0]) * 1024

model = mn.load(sys.argv[1], device="cpu", weights=sys.argv[2], threads=2)
loaded = {key: status(key) for key in ("VmRSS", "RssFile")}
peak_file, done = 0, False

def watch():
    global peak_file
    while not done:
        peak_file = max(peak_file, status("RssFile"))
        time.sleep(0.001)

watcher = threading.Thread(target=watch)
watcher.start()
result = model.generate([1, 2, 3], max_tokens=int(sys.argv[3]), sampling=mn.Sampling.greedy(), ignore_eos=True)
done = True
watcher.join()
report = model.memory()
print(json.dumps({
    "tokens": len(result.token_ids), "peak": status("VmHWM"), "loaded": loaded, "peak_file": peak_file,
    "tags": {tag: use.peak for tag, use in report.tags.items()}, "mapped": report.mapped_bytes,
}))
"""


def measure(path: Path, weights: str, tokens: int) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path), weights, str(tokens)], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    values: dict[str, Any] = json.loads(done.stdout)
    assert values["tokens"] == tokens
    return values


def hollow(folder: Path, shape: str, file_type: str) -> Path:
    path = folder / "hollow.gguf"
    write_model(path, SHAPES[shape], file_type, hollow=True)
    return path


def test_mapped_weights_are_in_memory_once(tmp_path: Path) -> None:
    path = hollow(tmp_path, "1b", "q4_k_m")
    size = path.stat().st_size
    found = measure(path, "mapped", 32)
    assert found["mapped"] > 0.98 * size
    assert found["peak"] > size, "the weights were not read"
    assert found["peak"] < 1.1 * size + found["tags"]["kv"] + 150 * MB


def test_copying_weights_takes_little_more_than_the_copies(tmp_path: Path) -> None:
    path = hollow(tmp_path, "0.5b", "q8_0")
    size = path.stat().st_size
    assert size > 500 * MB
    found = measure(path, "private", 1)
    assert found["mapped"] == 0
    assert found["tags"]["weights"] > 0.98 * size
    assert found["peak"] > size, "the copies were not filled"
    assert found["peak_file"] - found["loaded"]["RssFile"] < 64 * MB, "parts of the mapping stayed"
    held = sum(found["tags"].values())
    assert found["peak"] - held - found["loaded"]["VmRSS"] < 128 * MB
