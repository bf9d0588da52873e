"""Checked reading of GGUF metadata: what is missing, of the wrong type or out of range becomes a ModelFormatError."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ..errors import ModelFormatError

_MAX_PERIOD = 1 << 16


class MetadataReader:
    """Reads the keys that start with ``{prefix}.``; every error carries the full key as its ``where``."""

    def __init__(self, metadata: Mapping[str, object], prefix: str) -> None:
        self.prefix = prefix
        self._metadata = metadata

    def full(self, key: str) -> str:
        """``key`` with its prefix."""
        return f"{self.prefix}.{key}"

    def wrong(self, key: str, message: str) -> ModelFormatError:
        """The error to raise about ``key``."""
        return ModelFormatError(message, where=self.full(key))

    def get(self, key: str) -> Any:
        """The value as it is, a NumPy scalar as a Python one; None where absent."""
        value = self._metadata.get(self.full(key))
        return value.item() if isinstance(value, np.generic) else value

    def text(self, key: str, default: str | None = None) -> str:
        """A string; a missing one is an error unless there is a default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, str):
            raise self._type_error(key, value, "a string")
        return value

    def flag(self, key: str, default: bool) -> bool:
        """A boolean."""
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self._type_error(key, value, "a boolean")
        return value

    def integer(self, key: str, least: int, most: int, default: int | None = None) -> int:
        """An integer in ``[least, most]``; a missing one is an error unless there is a default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int):
            raise self._type_error(key, value, "an integer")
        return self._in_range(key, value, least, most)

    def number(self, key: str, least: float, most: float, default: float | None = None) -> float:
        """A finite number in ``[least, most]``; a missing one is an error unless there is a default."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self._type_error(key, value, "a number")
        if not math.isfinite(value):
            raise self.wrong(key, f"{value} is not finite")
        if not least <= value <= most:
            raise self.wrong(key, f"{value} is not between {least} and {most}")
        return float(value)

    def optional_number(self, key: str, least: float, most: float) -> float | None:
        """As :meth:`number`, None where absent."""
        return None if self.get(key) is None else self.number(key, least, most)

    def integers(self, key: str) -> tuple[int, ...]:
        """An array of integers of any length; empty where absent."""
        value = self.get(key)
        return () if value is None else self._integer_array(key, value)

    def per_block(
        self, key: str, blocks: int, least: int, most: int, default: tuple[int, ...] | None = None
    ) -> tuple[int, ...]:
        """One integer in ``[least, most]`` per block: a single one stands for all."""
        value = self.get(key)
        if value is None and default is not None:
            return default
        if not isinstance(value, (list, tuple, np.ndarray)):
            return (self.integer(key, least, most),) * blocks
        values = self._integer_array(key, value)
        if len(values) < blocks:
            raise self.wrong(key, f"has {len(values)} entries for {blocks} blocks")
        return tuple(self._in_range(key, entry, least, most) for entry in values[:blocks])

    def period_or_flags(self, key: str, blocks: int) -> int | tuple[bool, ...] | None:
        """Either a period, or a flag per block; None where absent."""
        value = self.get(key)
        if value is None:
            return None
        if not isinstance(value, (list, tuple, np.ndarray)):
            return self.integer(key, 0, _MAX_PERIOD)
        values = np.asarray(value)
        if values.ndim != 1 or values.dtype.kind not in "biu" or values.size < blocks:
            raise self.wrong(key, f"expected a flag for each of {blocks} blocks")
        return tuple(bool(flag) for flag in values[:blocks])

    def _integer_array(self, key: str, value: object) -> tuple[int, ...]:
        if not isinstance(value, (list, tuple, np.ndarray)):
            raise self._type_error(key, value, "an array of integers")
        values = np.asarray(value)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise self.wrong(key, "expected an array of integers")
        return tuple(int(entry) for entry in values)

    def _in_range(self, key: str, value: int, least: int, most: int) -> int:
        if not least <= value <= most:
            raise self.wrong(key, f"{value} is not between {least} and {most}")
        return value

    def _type_error(self, key: str, value: object, wanted: str) -> ModelFormatError:
        return self.wrong(key, "missing" if value is None else f"expected {wanted}, found {type(value).__name__}")
