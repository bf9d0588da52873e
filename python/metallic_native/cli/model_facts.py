"""What a model file says about itself, counted and named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .. import _native
    from ..engine import Placement

__all__ = ["FILE_TYPES", "MemoryEstimate", "ModelFacts", "estimate_memory"]

# general.file_type; the numbers are llama.cpp's enum llama_ftype.
FILE_TYPES = {
    0: "F32",
    1: "F16",
    2: "Q4_0",
    3: "Q4_1",
    7: "Q8_0",
    8: "Q5_0",
    9: "Q5_1",
    10: "Q2_K",
    11: "Q3_K_S",
    12: "Q3_K_M",
    13: "Q3_K_L",
    14: "Q4_K_S",
    15: "Q4_K_M",
    16: "Q5_K_S",
    17: "Q5_K_M",
    18: "Q6_K",
    21: "Q2_K_S",
    25: "IQ4_NL",
    30: "IQ4_XS",
    32: "BF16",
    38: "MXFP4_MOE",
}


@dataclass(frozen=True)
class ModelFacts:
    """``types`` has, by tensor type and largest first, how many tensors there are and their bytes."""

    architecture: str
    name: str
    file_type: str
    parameters: int
    bytes: int
    types: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, file: _native.GgufModelFile, metadata: Mapping[str, object]) -> ModelFacts:
        """Counted from a mapped file."""
        types: dict[str, tuple[int, int]] = {}
        parameters = 0
        for tensor in file.tensors:
            count, size = types.get(tensor.dtype, (0, 0))
            types[tensor.dtype] = (count + 1, size + tensor.nbytes)
            parameters += math.prod(tensor.shape)
        ordered = dict(sorted(types.items(), key=lambda item: -item[1][1]))
        stated = metadata.get("general.file_type")
        file_type = FILE_TYPES.get(stated) if isinstance(stated, int) else None
        return cls(
            architecture=str(metadata.get("general.architecture", "")),
            name=str(metadata.get("general.name", "")),
            file_type=file_type or next(iter(ordered), ""),
            parameters=parameters,
            bytes=sum(size for _, size in ordered.values()),
            types=ordered,
        )

    @property
    def parameters_text(self) -> str:
        """The number of parameters as models are named: ``1.24 B``, ``25.10 M``."""
        for scale, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
            if self.parameters >= scale:
                return f"{self.parameters / scale:.2f} {unit}"
        return str(self.parameters)

    @property
    def label(self) -> str:
        """Architecture, size and type in a few words: ``llama 1.24B Q4_K_M``."""
        return f"{self.architecture} {self.parameters_text.replace(' ', '')} {self.file_type}"


@dataclass(frozen=True)
class CacheEstimate:
    """Keys and values of one cache group. ``pages`` are the most that one sequence has tokens in at a time; they are
    taken from the pool in slabs, and ``bytes`` are what it counts.
    """

    device: str
    window: int
    layers: int
    keys: str
    """Their type: ``f16``."""
    values: str
    page_bytes: int
    pages: int
    bytes: int

    @property
    def types(self) -> str:
        """Of keys and values, in words."""
        return self.keys if self.keys == self.values else f"keys {self.keys}, values {self.values}"


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes by tag of a model that computes one sequence of ``context`` tokens on ``device``."""

    context: int
    device: str
    kv_type: str
    batch_tokens: int
    page_tokens: int
    weights: int
    activations: int
    groups: tuple[CacheEstimate, ...]
    placement: Placement
    """As ``Model.placement`` then has it."""
    refused: str | None
    """Why a load would end with OutOfMemory."""

    @property
    def kv(self) -> int:
        """All cache groups together."""
        return sum(group.bytes for group in self.groups)

    @property
    def total(self) -> int:
        """All tags together; the weights are mapped, and the system may take their memory back."""
        return self.weights + self.activations + self.kv


def estimate_memory(
    file: _native.GgufModelFile,
    config: Any,
    context: int,
    kv_type: str,
    batch_tokens: int,
    device: str = "auto",
    threads: int | None = None,
    precision: str = "auto",
    *,
    weights: str = "mapped",
    gpu_layers: int | None = None,
    memory: int | None = None,
    room_for: int | None = None,
) -> MemoryEstimate:
    """What the model would take, from its program compiled for the device; no weight is loaded.

    Where ``weights`` is ``auto``, ``room_for`` is the context that they leave room for: the ``context_length`` that
    :func:`metallic_native.load` is given, ``context`` where it is None here. Raises as ``load`` does.
    """
    from .. import _native
    from ..engine.loader import chosen_device, placement_context, trace_program
    from ..engine.placement import Placement

    batch = min(batch_tokens, context)
    program = trace_program(file, config)
    predicted: dict[str, Any] = _native.predict_model(
        file,
        program,
        context_length=context,
        device=chosen_device(device),
        threads=threads or 0,
        kv_type=kv_type,
        batch_tokens=batch,
        memory_budget=memory or 0,
        weights=weights,
        precision=precision,
        gpu_layers=gpu_layers,
        placement_context=placement_context(config, room_for or context),
    )
    page = _native.page_tokens
    groups = []
    for group in predicted["groups"]:
        stride = group.pop("page_stride")
        types = {side: group.pop(side).lower() for side in ("keys", "values")}
        pages = peak_pages(context, group["window"], batch, page)
        held = _native.held_pages(group["page_bytes"], pages)
        groups.append(CacheEstimate(**group, **types, pages=pages, bytes=held * stride))
    return MemoryEstimate(
        context=context,
        device=chosen_device(device),
        kv_type=kv_type,
        batch_tokens=batch,
        page_tokens=page,
        weights=predicted["weights"],
        activations=predicted["activations"],
        groups=tuple(groups),
        placement=Placement.of(predicted["placement"]),
        refused=predicted["refused"],
    )


def peak_pages(context: int, window: int, batch: int, page: int) -> int:
    """The most pages that a sequence holds while a prompt of ``context`` tokens is computed ``batch`` at a time.

    A batch needs the pages of its own tokens, and those before it that its first token still sees.
    """
    if window == 0:
        return -(-context // page)

    def held(start: int) -> int:
        first = 0 if start < window else (start - window + 1) // page
        return -(-min(start + batch, context) // page) - first

    return max(held(start) for start in range(0, context, batch))
