"""Where a model's weights are, and which device computes what."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["BlockPlacement", "Placement", "Stage"]

PLACES = ("mapped", "private", "shared", "cpu")


@dataclass(frozen=True)
class BlockPlacement:
    """One block of the model; sizes in bytes."""

    block: int | None
    """None is what belongs to no block: embeddings and output."""
    place: str
    """``mapped``, ``private``, ``shared`` or ``cpu``: where most of its weights are."""
    weights: dict[str, int]
    """Bytes of weights by place."""
    kv: int
    """Keys and values of ``Placement.context`` tokens."""


@dataclass(frozen=True)
class Stage:
    """Consecutive steps that one device computes; activations cross once between two stages."""

    device: str
    first_block: int | None
    last_block: int | None
    """None where the stage has no block: the embeddings or the output alone."""

    @property
    def blocks(self) -> str:
        """Its blocks in words."""
        if self.first_block is None:
            return "no block"
        if self.first_block == self.last_block:
            return f"block {self.first_block}"
        return f"blocks {self.first_block} to {self.last_block}"


@dataclass(frozen=True)
class Placement:
    """What was decided, by rules or automatically; sizes in bytes."""

    automatic: bool
    budget: int
    """Of ``auto``: what the device may hold of weights, keys, values and activations."""
    reserved: int
    """Of it, what is kept for the device's compiled plan and for what is taken while it runs."""
    context: int
    """Tokens whose keys and values are counted."""
    activations: int
    """Of ``auto``: all that compiled plans take, on both devices; otherwise their arena."""
    blocks: tuple[BlockPlacement, ...]
    stages: tuple[Stage, ...]
    unmatched: tuple[str, ...]
    """Rules that concern no tensor of the model."""

    @property
    def weights(self) -> dict[str, int]:
        """Bytes of all weights by place."""
        sums = {place: sum(block.weights.get(place, 0) for block in self.blocks) for place in PLACES}
        return {place: size for place, size in sums.items() if size}

    def summary(self) -> str:
        """The decision and its numbers in a line."""
        sizes = ", ".join(f"{size / 1e6:.1f} MB {place}" for place, size in self.weights.items())
        stages = "; ".join(f"{stage.device}: {stage.blocks}" for stage in self.stages)
        text = f"{sizes}; {stages}"
        if self.automatic:
            kv = sum(block.kv for block in self.blocks)
            text += (
                f"; chosen for a budget of {self.budget / 1e6:.1f} MB, {self.reserved / 1e6:.1f} MB of it reserved, "
                f"and {kv / 1e6:.1f} MB of keys and values of {self.context} tokens"
            )
        return text

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Placement:
        """From what the native model says."""
        return cls(
            automatic=values["automatic"],
            budget=values["budget"],
            reserved=values["reserved"],
            context=values["context"],
            activations=values["activations"],
            blocks=tuple(BlockPlacement(**block) for block in values["blocks"]),
            stages=tuple(Stage(*stage) for stage in values["stages"]),
            unmatched=tuple(values["unmatched"]),
        )
