"""The exceptions of metallic_native: one tree rooted at :class:`Error`.

Every exception carries its facts as attributes, prints them, and survives pickling, so that it can cross a process
border.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from os import PathLike, fspath
from typing import Any

__all__ = [
    "DeviceError",
    "Error",
    "ModelFormatError",
    "OutOfMemory",
    "RequestError",
    "UnsupportedModelError",
]


def _rebuild(cls: type[Error], message: str, facts: dict[str, Any]) -> Error:
    return cls(message, **facts)


class Error(Exception):
    """Base of every exception that this package raises on purpose. ``message`` is the text without the facts."""

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        self.message = message

    def _facts(self) -> dict[str, Any]:
        """The keyword arguments that make an equal exception."""
        return {}

    def __reduce__(self) -> tuple[Callable[..., Error], tuple[Any, ...]]:
        return _rebuild, (type(self), self.message, self._facts())


class ModelFormatError(Error, ValueError):
    """A model file, or metadata from one, is malformed.

    ``file`` is the path, ``where`` the metadata key or tensor name, ``offset`` the byte offset in the file; each may
    be None.
    """

    def __init__(
        self,
        message: str = "",
        *,
        file: str | PathLike[str] | None = None,
        where: str | None = None,
        offset: int | None = None,
    ) -> None:
        super().__init__(message)
        self.file = None if file is None else fspath(file)
        self.where = where
        self.offset = offset

    def _facts(self) -> dict[str, Any]:
        return {"file": self.file, "where": self.where, "offset": self.offset}

    def __str__(self) -> str:
        prefix = "".join(f"{part}: " for part in (self.file, self.where) if part)
        suffix = "" if self.offset is None else f" (at byte {self.offset})"
        return f"{prefix}{self.message}{suffix}"


class UnsupportedModelError(Error):
    """The model is well formed, but needs something that is not implemented.

    ``what`` names the missing thing, ``supported`` lists what would have been accepted in its place.
    """

    def __init__(self, message: str = "", *, what: str | None = None, supported: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.what = what
        self.supported = tuple(supported)

    def _facts(self) -> dict[str, Any]:
        return {"what": self.what, "supported": self.supported}

    def __str__(self) -> str:
        return f"{self.message} (supported: {', '.join(self.supported)})" if self.supported else self.message


class OutOfMemory(Error, MemoryError):  # noqa: N818  # named for what it reports, as MemoryError
    """One allocation was refused. ``needed`` and ``available`` are bytes, ``owner`` is the tag or scope that asked."""

    def __init__(self, message: str = "", *, needed: int = 0, available: int = 0, owner: str = "") -> None:
        super().__init__(message)
        self.needed = needed
        self.available = available
        self.owner = owner

    def _facts(self) -> dict[str, Any]:
        return {"needed": self.needed, "available": self.available, "owner": self.owner}

    def __str__(self) -> str:
        asked = f" by {self.owner}" if self.owner else ""
        facts = f" ({self.needed} bytes needed{asked}, {self.available} available)" if self.needed else asked
        return f"{self.message}{facts}"


class DeviceError(Error):
    """A backend failed while it ran, in ``scope`` of the program; ``status`` is what the device said."""

    def __init__(self, message: str = "", *, scope: str = "", status: str = "") -> None:
        super().__init__(message)
        self.scope = scope
        self.status = status

    def _facts(self) -> dict[str, Any]:
        return {"scope": self.scope, "status": self.status}

    def __str__(self) -> str:
        prefix = f"{self.scope}: " if self.scope else ""
        suffix = f" (status {self.status})" if self.status else ""
        return f"{prefix}{self.message}{suffix}"


class RequestError(Error, ValueError):
    """A request cannot be served as it was made; the message says what to change."""
