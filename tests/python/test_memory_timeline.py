"""Memory over time: what is kept of it, what it costs, and how it is drawn."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import threading
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import metallic_native as mn
from metallic_native.observe import MemoryTimeline, check_plot, plot_memory
from metallic_native.observe.timeline import _now
from tiny_model import write_tiny_llama

GREEDY = mn.Sampling(temperature=0)
TAGS = {"weights", "kv", "activations", "staging"}
HAS_MATPLOTLIB = importlib.util.find_spec("matplotlib") is not None
needs_matplotlib = pytest.mark.skipif(not HAS_MATPLOTLIB, reason="matplotlib is not installed")

Load = Callable[..., mn.Model]


@pytest.fixture
def load(tmp_path: Path) -> Iterator[Load]:
    path = tmp_path / "tiny.gguf"
    write_tiny_llama(path, context=4096)
    models: list[mn.Model] = []

    def make(**options: int | str) -> mn.Model:
        models.append(mn.load(path, batch_tokens=64, **options))  # type: ignore[arg-type]
        return models[-1]

    yield make
    for model in models:
        model.close()


@pytest.fixture
def model(load: Load) -> mn.Model:
    return load()


def under_pressure(load: Load) -> mn.Model:
    """A model whose idle caches lost their pages to each other."""
    with load() as free:
        report = free.memory()
        room = report.current - report.mapped_bytes + 20 * sum(group.page_bytes for group in report.cache_groups)
        room += (16 << 10) * report.heaps
    return load(memory_budget=room, eviction="save")


def fill(model: mn.Model, caches: int) -> None:
    kept = [model.new_cache() for _ in range(caches)]
    for cache in kept:
        cache.extend(list(range(200)), planned=200)
    for cache in kept:
        cache.close()


# ---- samples --------------------------------------------------------------------------------------------------------


def test_a_sample_is_what_the_report_says(model: mn.Model) -> None:
    cache = model.new_cache()
    cache.extend(list(range(100)), planned=100)
    with MemoryTimeline(model, period=None) as timeline:
        pass
    report, sample = model.memory(), timeline.samples[-1]
    assert set(sample.tags) == TAGS
    assert sample.tags["kv"] == report.tags["kv"].current > 0
    assert sample.tags["weights"] == report.tags["weights"].current - report.mapped_bytes
    assert sample.used == report.current - report.mapped_bytes
    assert (sample.heap_bytes, sample.mapped_bytes) == (report.heap_bytes, report.mapped_bytes)
    assert sample.used <= sample.heap_bytes
    cache.close()


def test_a_thread_sees_a_generation_grow_and_end(model: mn.Model) -> None:
    with MemoryTimeline(model, period=0.001) as timeline:
        model.generate(list(range(20)), 400, GREEDY, ignore_eos=True)
    samples = timeline.samples
    assert len(samples) > 5
    assert [sample.seconds for sample in samples] == sorted(sample.seconds for sample in samples)
    kv = [sample.tags["kv"] for sample in samples]
    assert kv[0] == kv[-1] == 0
    assert len(set(kv)) > 3
    assert max(kv) <= model.memory().tags["kv"].peak
    assert not any(thread.name == "memory-timeline" for thread in threading.enumerate())


@pytest.mark.parametrize("most", [4, 5, 16, 33])
def test_what_is_kept_is_bounded_and_has_the_peak_and_both_ends(model: mn.Model, most: int) -> None:
    timeline = MemoryTimeline(model, period=None, most=most)
    timeline.start()
    cache = model.new_cache()
    high = 0
    for count in range(1, 300):
        if count == 37:  # a peak, seen by one sample if it is looked at
            cache.reserve(2000)
        timeline.sample()
        assert len(timeline.samples) <= most
        high = max(high, max(sample.used for sample in timeline.samples))
        if count == 37:
            cache.close()
            cache = model.new_cache()
        cache.extend([count % 256], planned=300)
    timeline.stop()
    samples = timeline.samples
    assert most // 2 <= len(samples) <= most
    last = samples[-1]
    assert max(sample.used for sample in samples) == max(high, last.used)
    assert last.tags["kv"] == model.memory().tags["kv"].current > 0
    assert samples[0].tags["kv"] == 0
    assert [sample.seconds for sample in samples] == sorted(sample.seconds for sample in samples)
    cache.close()


def test_samples_are_taken_less_often_when_many_are_kept(model: mn.Model) -> None:
    taken = 0
    timeline = MemoryTimeline(model, period=None, most=8)
    read = timeline._read

    def counted() -> object:
        nonlocal taken
        taken += 1
        return read()

    timeline._read = counted  # type: ignore[assignment,method-assign]
    timeline.start()
    for _ in range(4096):
        timeline.sample()
    timeline.stop()
    assert taken < 100


def test_a_sample_costs_little(model: mn.Model) -> None:
    timeline = MemoryTimeline(model, period=None, most=100_000)
    best = float("inf")
    for _ in range(20):
        begun = time.perf_counter()
        for _ in range(50):
            timeline.sample()
        best = min(best, (time.perf_counter() - begun) / 50)
    assert best < 500e-6
    timeline.stop()


def test_a_model_may_be_closed_meanwhile(load: Load) -> None:
    model = load()
    timeline = MemoryTimeline(model, period=0.001)
    timeline.start()
    model.close()
    time.sleep(0.02)
    timeline.stop()
    timeline.stop()
    assert timeline.samples
    timeline.sample()  # passed over
    with pytest.raises(mn.RequestError, match="once"):
        timeline.start()


def test_what_makes_no_sense_is_refused(model: mn.Model) -> None:
    for period in (0, -1, 1e9, float("nan"), "fast"):
        with pytest.raises(mn.RequestError, match="period"):
            MemoryTimeline(model, period=period)  # type: ignore[arg-type]
    for most in (3, True, 10.5):
        with pytest.raises(mn.RequestError, match="samples"):
            MemoryTimeline(model, most=most)  # type: ignore[arg-type]


def test_events_are_those_of_the_time_and_on_the_same_clock(load: Load) -> None:
    model = under_pressure(load)
    fill(model, 10)
    before = model.memory_events()
    assert before
    assert abs(before[-1].seconds - _now()) < 30
    with MemoryTimeline(model, period=None) as timeline:
        assert timeline.events == []
        fill(model, 10)
        during = timeline.events
    assert during == timeline.events[: len(during)]
    assert all(event.action in ("save", "drop", "compact") for event in during)
    first, last = timeline.samples[0], timeline.samples[-1]
    assert all(first.seconds <= event.seconds <= last.seconds for event in during)
    assert len(model.memory_events()) >= len(before) + len(during)


# ---- pictures -------------------------------------------------------------------------------------------------------


def test_without_matplotlib_the_extra_is_named(
    model: mn.Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with MemoryTimeline(model, period=None) as timeline:
        pass
    path = tmp_path / "memory.svg"
    for call in (lambda: check_plot(path), lambda: timeline.plot(path)):
        with pytest.raises(mn.RequestError, match=r"pip install 'metallic-native\[plot\]'"):
            call()
    assert not path.exists()


@pytest.mark.parametrize("name", ["memory", "memory.pdf", "memory.svg.txt", ".svg"])
def test_other_formats_are_refused(name: str) -> None:
    with pytest.raises(mn.RequestError, match=r"ends with \.svg or \.png"):
        check_plot(name)


def test_nothing_is_imported_for_those_who_do_not_plot() -> None:
    code = "import sys, metallic_native.observe; print('matplotlib' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "False"


@needs_matplotlib
def test_a_picture_has_areas_lines_and_events(load: Load, tmp_path: Path) -> None:
    import matplotlib as mpl

    model = under_pressure(load)
    with MemoryTimeline(model, period=0.001) as timeline:
        fill(model, 10)
        cache = model.new_cache()
        cache.extend([1, 2, 3], planned=3)
        timeline.sample()  # its thread may not have come while there were pages
        cache.close()
    with mpl.rc_context({"svg.fonttype": "none"}):
        timeline.plot(tmp_path / "memory.svg", title="a <title> & more")
        timeline.plot(tmp_path / "again.svg", title="a <title> & more")
    svg = (tmp_path / "memory.svg").read_text()
    assert svg == (tmp_path / "again.svg").read_text()
    texts = ["".join(element.itertext()) for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    shown = " | ".join(texts)
    for wanted in ("MiB", "seconds", "a <title> & more", "weights mapped from the file", "kv", "activations", "heaps"):
        assert wanted in shown
    assert "budget" in texts
    saves = [event for event in timeline.events if event.action == "save"]
    assert "save" in texts
    assert any(text.startswith(f"{len(saves)} x") for text in texts)
    assert "wait" not in texts


@needs_matplotlib
def test_a_picture_without_pressure_or_budget(model: mn.Model, tmp_path: Path) -> None:
    with MemoryTimeline(model, period=None) as timeline:
        pass
    plot_memory(timeline, tmp_path / "memory.PNG")
    assert (tmp_path / "memory.PNG").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(OSError, match="nowhere"):
        plot_memory(timeline, tmp_path / "nowhere" / "memory.png")
    with pytest.raises(mn.RequestError, match="not started"):
        plot_memory(MemoryTimeline(model), tmp_path / "memory.png")
