from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metallic_native as mn

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"


@pytest.fixture
def load_golden() -> Iterator[Callable[..., mn.Model]]:
    """Loads golden models by name, and closes them."""
    models: list[mn.Model] = []

    def load(name: str, **options: object) -> mn.Model:
        models.append(mn.load(GOLDENS / f"{name}.gguf", **options))  # type: ignore[arg-type]
        return models[-1]

    yield load
    for model in models:
        model.close()
