"""Draw the pictures of docs/memory.md: ``python tools/memory_pictures.py [docs/pictures]``. Wants matplotlib.

``memory-nesting.svg`` is a drawing; ``memory-timeline.svg`` is a run of the demo model: three generations under a
budget that holds the keys and values of about half of what they ask for.
"""

from __future__ import annotations

import sys
import threading
import time
from pathlib import Path

import metallic_native as mn
from metallic_native.observe import MemoryTimeline

TOKENS = 900  # of each generation
PAGES = 52  # that the budget leaves room for
PAUSE = 0.4  # seconds before and after the generations


def page_bytes(model: mn.Model) -> int:
    return sum(group.page_bytes for group in model.memory().cache_groups)


def timeline(path: Path) -> None:
    options = {"device": "cpu", "threads": 1, "batch_tokens": 64}
    with mn.load("demo", **options) as model:
        report = model.memory()
        fixed = report.heap_bytes + PAGES * page_bytes(model)
    with mn.load("demo", memory_budget=fixed, eviction="save", **options) as model:
        with MemoryTimeline(model, period=0.02, most=300) as recorded:
            earlier = model.new_cache()  # a conversation that is kept and idle
            earlier.extend(model.tokenizer.encode("Once upon a time")[:4] * 100, planned=400)
            time.sleep(PAUSE)
            threads = []
            for seed in range(3):
                threads.append(threading.Thread(target=generate, args=(model, seed)))
                threads[-1].start()
            for thread in threads:
                thread.join()
            earlier.extend([5], planned=402)  # its pages come back
            time.sleep(PAUSE)
            earlier.close()
            time.sleep(1.5)
        recorded.plot(path, "Three generations and an idle cache, demo model")


def generate(model: mn.Model, seed: int) -> None:
    """Open-ended, so that it is let in with less than it comes to take."""
    stream = model.stream("Once upon a time", None, mn.Sampling(seed=seed), ignore_eos=True)
    for number, _ in enumerate(stream):
        if number == TOKENS:
            stream.close()


# ---- the drawing ----------------------------------------------------------------------------------------------------

HEAP, SLAB, FREE = "#e8eef5", "#b7dccb", "#ffffff"
SEQUENCES = ("#009e73", "#56b4e9", "#e69f00")


class Drawing:
    def __init__(self, width: int, height: int) -> None:
        self.parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
            f'height="{height}" font-family="Helvetica, Arial, sans-serif" font-size="13">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        ]

    def box(self, x: float, y: float, width: float, height: float, fill: str, dash: bool = False) -> None:
        dashes = ' stroke-dasharray="4 3"' if dash else ""
        self.parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}" stroke="#444"{dashes}/>'
        )

    def text(self, x: float, y: float, text: str, anchor: str = "start", size: int = 13, bold: bool = False) -> None:
        weight = ' font-weight="bold"' if bold else ""
        self.parts.append(f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}"{weight}>{text}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, color: str) -> None:
        self.parts.append(f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{color}" stroke-width="1.2"/>')

    def write(self, path: Path) -> None:
        path.write_text("\n".join([*self.parts, "</svg>", ""]), encoding="utf-8")


def nesting(path: Path) -> None:
    d = Drawing(860, 420)
    d.text(20, 26, "budget: what all heaps together may take from the system", bold=True)
    d.box(14, 36, 832, 224, "#ffffff", dash=True)
    # Heaps.
    heaps = [(28, 190, "heap 1: activations"), (232, 190, "heap 2: kv"), (436, 396, "heap 3: kv")]
    for x, width, name in heaps:
        d.box(x, 52, width, 160, HEAP)
        d.text(x + 8, 71, name)
    d.box(36, 82, 174, 118, "#cfe3f5")
    d.text(123, 136, "arena", "middle")
    d.text(123, 154, "(one allocation)", "middle", 11)
    # Slabs of pages: who has each page, or nobody.
    slabs = [
        (240, 82, [0, 0]),
        (240, 146, [0, 1]),
        (444, 82, [0, 1, 1, 2]),
        (444, 146, [2, None, 2, 1]),
        (640, 82, [None, 2, None, None]),
    ]
    first: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 2: []}
    for x, y, owners in slabs:
        width = len(owners) * 44 + 8
        d.box(x, y, width, 54, SLAB)
        d.text(x + 5, y + 13, "slab", size=10)
        for index, owner in enumerate(owners):
            left = x + 5 + index * 44
            d.box(left, y + 18, 40, 31, FREE if owner is None else SEQUENCES[owner], dash=owner is None)
            d.text(left + 20, y + 38, "free" if owner is None else "page", "middle", 11)
            if owner is not None:
                first[owner].append((left + 20, y + 49))
    d.box(640, 146, 184, 54, FREE, dash=True)
    d.text(732, 177, "free bytes of the heap", "middle", 11)
    d.text(
        28,
        236,
        "Pages are the keys and values of 32 tokens. Slabs are the allocations; a heap whose slabs are gone",
        size=12,
    )
    d.text(
        28,
        252,
        "is given back. Compaction empties the least used heap: here the only page of the last slab fits elsewhere.",
        size=12,
    )
    # Page tables.
    d.text(20, 296, "page tables: the only pointers to pages", bold=True)
    for sequence, color in enumerate(SEQUENCES):
        y = 310 + sequence * 35
        d.text(28, y + 19, f"sequence {'ABC'[sequence]}")
        for index in range(len(first[sequence])):
            d.box(120 + index * 46, y, 42, 27, color)
            low = index * 32
            d.text(141 + index * 46, y + 18, f"{low}-{low + 31}", "middle", 10)
    d.text(330, 329, "tokens of the sequence, page by page, wherever the page lies;", size=12)
    d.text(330, 347, "growing takes the next free page: nothing is copied, and no", size=12)
    d.text(330, 365, "number anywhere depends on how long a sequence may become", size=12)
    d.write(path)


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures")
    folder.mkdir(parents=True, exist_ok=True)
    nesting(folder / "memory-nesting.svg")
    timeline(folder / "memory-timeline.svg")


if __name__ == "__main__":
    main()
