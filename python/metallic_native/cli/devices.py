"""``metallic devices``: what models can run on."""

from __future__ import annotations

from typing import Annotated

import typer

from .console import console, decimal_size

__all__ = ["devices"]


def devices(*, as_json: Annotated[bool, typer.Option("--json", help="Print a JSON array.")] = False) -> None:
    """List the devices that models can run on."""
    from .. import _native

    found = _native.list_devices()
    if as_json:
        console.json(found)
        return
    rows = [
        [
            str(device["backend"]),
            str(device["name"]),
            str(device["detail"]),
            str(device["threads"]),
            decimal_size(int(str(device["memory_bytes"]))),
            "yes" if device["unified_memory"] else "no",
        ]
        for device in found
    ]
    console.table(["backend", "name", "instructions", "threads", "memory", "unified"], rows, right=(3, 4))
