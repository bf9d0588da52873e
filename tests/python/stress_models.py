"""What stress_memory.py runs: models of several kinds, and settings drawn from a seed."""

from __future__ import annotations

import random
import struct
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tiny_model import write_tiny_llama

GOLDENS = Path(__file__).parent.parent / "data" / "goldens"
# One cache group; one with a window; both; experts; RoPE tables that depend on the planned length.
MODELS = ("tiny", "llama", "mistral-window", "gemma2", "gemma3", "mixtral", "qwen3moe", "phi3", "phi3-longrope")
KV_TYPES = ("f16", "f16", "q8_0", "q4_0", "k=q8_0,v=q4_0", "k=f16,v=q8_0", "f32", "f16,window:q8_0", "full:v=q4_0")
WEIGHTS = ("mapped", "mapped", "private", "shared", "private,blk.0=shared", "blk.0=cpu", "private,output=cpu")
EVICTIONS = ("auto", "save", "recompute", "compress", "compress-q4_0")
BUDGETS = ("half", "half", "least")


@dataclass(frozen=True)
class Settings:
    seconds: float = 20
    device: str = "auto"
    seed: int = 0
    eviction: str = "auto"
    conversations: int = 64
    longest: int = 220
    """Tokens of a prompt."""
    most_drawn: int = 24
    faults: int = 0
    """How many of each kind the simulated device is told to meet."""
    model: str = "tiny"
    context: int = 512
    kv_type: str = "f16"
    weights: str = "mapped"
    budget: str = "half"
    """Of what the conversations want together, or the least that admits the longest of them."""
    sampled: bool = False
    """Half of the conversations are drawn with a temperature and a seed."""
    threads: int = 8
    """Conversations that go on at a time, beside the one of the main thread."""
    interrupts: bool = True
    """The main thread generates too, and is interrupted by signals."""

    @property
    def rounds(self) -> bool:
        """Whether evicted pages come back rounded, so that what was evicted may go on with another text."""
        return self.eviction.startswith("compress") and self.kv_type != "q4_0"

    def drawn(self) -> Settings:
        """These, with model, types, placement, eviction, budget and sampling drawn from the seed."""
        rng = random.Random(f"{self.seed}.settings")
        return replace(
            self,
            model=rng.choice(MODELS),
            kv_type=rng.choice(KV_TYPES),
            weights=rng.choice(WEIGHTS),
            eviction=rng.choice(EVICTIONS),
            budget=rng.choice(BUDGETS),
            sampled=rng.random() < 0.5,
        )


def write_model(settings: Settings, folder: Path) -> Path:
    """The file of the settings' model, whose context is as long as they say."""
    path = folder / f"{settings.model}.gguf"
    if settings.model == "tiny":
        write_tiny_llama(path, context=settings.context)
        return path
    content = bytearray((GOLDENS / path.name).read_bytes())
    at = content.index(b".context_length") + len(b".context_length")
    kind, _ = struct.unpack_from("<II", content, at)
    assert kind == 4, "the context length of a golden model is a uint32"
    struct.pack_into("<I", content, at + 4, settings.context)
    path.write_bytes(content)
    return path


def load_options(settings: Settings) -> dict[str, Any]:
    return {
        "device": settings.device,
        "batch_tokens": 64,
        "threads": 1,
        "kv_type": settings.kv_type,
        "weights": settings.weights,
    }


def fault_plan(seed: int, count: int) -> str:
    """For METALSIM_FAULTS, which must be set before the device is made: failed allocations and command buffers."""
    rng = random.Random(seed)
    faults = []
    for number in range(count):
        # The nth counts from the first such call, so that they come one after the other.
        faults += [
            f"heap_allocation:nth={6 + 5 * number + rng.randrange(5)}",
            f"command_buffer:nth={150 + 200 * number + rng.randrange(200)},code=8",
            f"command_buffer:nth={150 + 200 * number + rng.randrange(200)},code={rng.choice([1, 2, 3])}",
        ]
    return ";".join(faults)
