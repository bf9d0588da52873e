"""A reader of GGUF metadata for tests, independent of the package's own one (GGUF specification, version 3)."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

VOCABULARIES = Path(__file__).resolve().parents[3] / "shared" / "data" / "vocab"

# Value types 0 to 12 of the specification; 8 is a string and 9 an array.
_NUMBERS = {
    0: "<u1",
    1: "<i1",
    2: "<u2",
    3: "<i2",
    4: "<u4",
    5: "<i4",
    6: "<f4",
    7: "|b1",
    10: "<u8",
    11: "<i8",
    12: "<f8",
}


def _read_string(file: BinaryIO) -> str:
    (length,) = struct.unpack("<Q", file.read(8))
    return file.read(length).decode("utf-8")


def _read_value(file: BinaryIO, kind: int) -> Any:
    if kind == 8:
        return _read_string(file)
    if kind == 9:
        element, count = struct.unpack("<IQ", file.read(12))
        if element in (8, 9):
            return [_read_value(file, element) for _ in range(count)]
        dtype = np.dtype(_NUMBERS[element])
        return np.frombuffer(file.read(dtype.itemsize * count), dtype=dtype)
    dtype = np.dtype(_NUMBERS[kind])
    return np.frombuffer(file.read(dtype.itemsize), dtype=dtype)[0].item()


def read_metadata(path: Path) -> dict[str, object]:
    """All metadata of the GGUF file at ``path``."""
    with open(path, "rb") as file:
        magic, version, _, count = struct.unpack("<4sIQQ", file.read(24))
        assert magic == b"GGUF", path
        assert version == 3, path
        metadata: dict[str, object] = {}
        for _ in range(count):
            key = _read_string(file)
            (kind,) = struct.unpack("<I", file.read(4))
            metadata[key] = _read_value(file, kind)
        return metadata
