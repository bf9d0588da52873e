"""The committed goldens are what the tool makes today.

Runs only when asked for: set METALLIC_GOLDENS to 1, or to a Python interpreter that has torch, transformers and gguf.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from reference import read_gguf

ROOT = Path(__file__).resolve().parents[2]
GOLDENS = ROOT / "tests" / "data" / "goldens"
ASKED = os.environ.get("METALLIC_GOLDENS", "")

pytestmark = pytest.mark.goldens


@pytest.fixture(scope="module")
def remade(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if ASKED in ("", "0"):
        pytest.skip("set METALLIC_GOLDENS=1, or to a Python interpreter with torch and transformers")
    if ASKED == "1":
        missing = [name for name in ("torch", "transformers") if importlib.util.find_spec(name) is None]
        if missing:
            pytest.skip(f"{' and '.join(missing)} not installed")
    folder = tmp_path_factory.mktemp("goldens")
    interpreter = sys.executable if ASKED == "1" else ASKED
    tool = [interpreter, str(ROOT / "tools" / "make_goldens.py"), "--output", str(folder)]
    subprocess.run(tool, check=True, timeout=600, env={**os.environ, "TRANSFORMERS_VERBOSITY": "error"})
    return folder


def test_the_same_models_are_made(remade: Path) -> None:
    assert sorted(path.name for path in remade.iterdir()) == sorted(path.name for path in GOLDENS.iterdir())


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*.gguf")))
def test_files_are_equal(remade: Path, name: str) -> None:
    old_metadata, old_tensors = read_gguf(GOLDENS / f"{name}.gguf", np.float32)
    new_metadata, new_tensors = read_gguf(remade / f"{name}.gguf", np.float32)
    assert new_metadata == old_metadata
    assert set(new_tensors) == set(old_tensors)
    for tensor, values in old_tensors.items():
        np.testing.assert_allclose(new_tensors[tensor], values, rtol=1e-6, err_msg=tensor)


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDENS.glob("*.npz")))
def test_logits_are_equal(remade: Path, name: str) -> None:
    old, new = np.load(GOLDENS / f"{name}.npz"), np.load(remade / f"{name}.npz")
    assert set(new.files) == set(old.files)
    np.testing.assert_array_equal(new["tokens"], old["tokens"])
    np.testing.assert_array_equal(new["positions"], old["positions"])
    scale = float(np.abs(old["logits"]).max())
    np.testing.assert_allclose(new["logits"], old["logits"], atol=2e-5 * scale, rtol=0)
