"""Checked access to GGUF metadata: every wrong type or size becomes a ModelFormatError that names the key."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ModelFormatError

Metadata = Mapping[str, object]


def _wrong(key: str, wanted: str, value: object) -> ModelFormatError:
    return ModelFormatError(f"expected {wanted}, found {type(value).__name__}", where=key)


def get_string(metadata: Metadata, key: str, default: str | None = None) -> str | None:
    """The string at ``key``, or ``default`` where the key is absent."""
    value = metadata.get(key)
    if value is None:
        return default
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"not valid UTF-8: {error.reason}", where=key) from None
    if not isinstance(value, str):
        raise _wrong(key, "a string", value)
    return value


def get_bool(metadata: Metadata, key: str) -> bool | None:
    """The boolean at ``key``; the integers 0 and 1 are accepted. None where the key is absent."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool | np.bool_):
        return bool(value)
    if isinstance(value, int | np.integer) and int(value) in (0, 1):
        return bool(value)
    raise _wrong(key, "a boolean", value)


def get_int(metadata: Metadata, key: str) -> int | None:
    """The integer at ``key``, or None where the key is absent."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, bool | np.bool_) or not isinstance(value, int | np.integer):
        raise _wrong(key, "an integer", value)
    return int(value)


def get_sequence(metadata: Metadata, key: str) -> Sequence[Any] | None:
    """The array at ``key`` without looking at its elements, or None where the key is absent."""
    value = metadata.get(key)
    if value is None:
        return None
    if isinstance(value, np.ndarray):
        if value.ndim != 1:
            raise ModelFormatError(f"expected a one-dimensional array, found {value.ndim} dimensions", where=key)
        return value  # type: ignore[return-value]  # has the length, indexing and iteration that callers use
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Sequence):
        raise _wrong(key, "an array", value)
    return value


def strings(values: Sequence[Any], key: str) -> list[str]:
    """``values`` as a list of str that encode to UTF-8; elements given as bytes are decoded."""
    items: list[Any] = values.tolist() if isinstance(values, np.ndarray) else list(values)
    kinds = set(map(type, items))
    if kinds - {str}:
        items = [_one_string(item, key, index) for index, item in enumerate(items)]
    try:
        "".join(items).encode("utf-8")
    except UnicodeEncodeError:
        for index, item in enumerate(items):
            _check_encodable(item, key, index)
    return items


def _one_string(item: object, key: str, index: int) -> str:
    if isinstance(item, str):
        return str(item)
    if isinstance(item, bytes):
        try:
            return item.decode("utf-8")
        except UnicodeDecodeError as error:
            raise ModelFormatError(f"element {index} is not valid UTF-8: {error.reason}", where=key) from None
    raise ModelFormatError(f"element {index} is {type(item).__name__}, not a string", where=key)


def _check_encodable(item: str, key: str, index: int) -> None:
    try:
        item.encode("utf-8")
    except UnicodeEncodeError:
        raise ModelFormatError(f"element {index} is not valid UTF-8", where=key) from None


def integers(values: Sequence[Any], key: str) -> npt.NDArray[np.int64]:
    """``values`` as an int64 vector; anything but integers is refused."""
    array = _vector(values, key, "integers")
    if array.size and array.dtype.kind not in "iu":
        raise ModelFormatError(f"expected integers, found elements of type {array.dtype}", where=key)
    return array.astype(np.int64)


def floats(values: Sequence[Any], key: str) -> npt.NDArray[np.float64]:
    """``values`` as a float64 vector; integers are accepted, NaN is refused."""
    array = _vector(values, key, "numbers")
    if array.size and array.dtype.kind not in "iuf":
        raise ModelFormatError(f"expected numbers, found elements of type {array.dtype}", where=key)
    result = array.astype(np.float64)
    if bool(np.isnan(result).any()):
        raise ModelFormatError(f"element {int(np.isnan(result).argmax())} is not a number (NaN)", where=key)
    return result


def _vector(values: Sequence[Any], key: str, wanted: str) -> npt.NDArray[Any]:
    try:
        array = np.asarray(values)
    except (TypeError, ValueError, OverflowError):
        raise ModelFormatError(f"expected an array of {wanted}", where=key) from None
    if array.ndim != 1:
        raise ModelFormatError(f"expected a one-dimensional array of {wanted}", where=key)
    return array
