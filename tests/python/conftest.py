from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metallic_native as mn
from metallic_native import _native

# Modules whose tests hold on every device; `--device metal` runs these, and what is marked with `device`, on it.
DEVICE_MODULES = {
    "test_candidates",
    "test_cli",
    "test_cli_chat",
    "test_cli_inspect",
    "test_concurrency",
    "test_engine",
    "test_long_context",
    "test_memory_report",
    "test_models",
    "test_precision",
    "test_pressure",
    "test_stress",
}
GOLDENS = Path(__file__).parent.parent / "data" / "goldens"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--device", help="run the tests that hold on every device, and those alone, on this one")


def pytest_configure(config: pytest.Config) -> None:
    device = config.getoption("--device")
    if device is None:
        return
    names = [str(found["backend"]) for found in _native.list_devices()]
    if device not in names:
        raise pytest.UsageError(f"there is no device {device!r} here, only {', '.join(names)}")
    os.environ["METALLIC_DEVICE"] = device


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    device = config.getoption("--device")
    if device is None:
        for item in items:
            for mark in item.iter_markers("device"):
                if mark.args:
                    item.add_marker(pytest.mark.skip(reason=f"runs with --device {mark.args[0]}"))
        return
    chosen = [
        item
        for item in items
        if item.path.stem in DEVICE_MODULES or any(mark.args in ((), (device,)) for mark in item.iter_markers("device"))
    ]
    chosen = [item for item in chosen if device == "cpu" or not item.get_closest_marker("cpu_only")]
    config.hook.pytest_deselected(items=[item for item in items if item not in chosen])
    items[:] = chosen


def device_name() -> str:
    """Of the device that the tests run on."""
    chosen = os.environ.get("METALLIC_DEVICE")
    devices = _native.list_devices()
    return next((str(device["name"]) for device in devices if device["backend"] == chosen), str(devices[0]["name"]))


@pytest.fixture(scope="session")
def many() -> Callable[[int], int]:
    """How many tokens stand for so many: a sixteenth on a simulated device, which takes hundreds of times as long."""
    share = 16 if "metalsim" in device_name() else 1
    return lambda tokens: tokens // share


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
