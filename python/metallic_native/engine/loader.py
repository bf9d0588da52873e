"""From a path to a model: the file is mapped, its metadata read, the model function traced, the program compiled."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import _native
from ..errors import ModelFormatError, RequestError
from ..loading import ModelConfig, resolve_model
from ..models import model_function
from ..text import ChatTemplate, Tokenizer
from .model import Model
from .placement import Placement

__all__ = ["chosen_device", "load", "load_tokenizer", "placement_context", "trace_program"]

log = logging.getLogger(__name__)

EVICTIONS = ("auto", "save", "compress", "compress-q4_0", "recompute")
UNSTATED_CONTEXT = 8192  # tokens that automatic placement leaves room for where the user says nothing
PRECISIONS = ("auto", "float32", "float16", "bfloat16", "int8")
_FLOATS: dict[str, np.dtype[Any]] = {"F32": np.dtype("<f4"), "F16": np.dtype("<f2")}


def load_tokenizer(path: str | os.PathLike[str]) -> Tokenizer:
    """The tokenizer of a GGUF file, which may hold a vocabulary and no tensors.

    Raises ModelFormatError or UnsupportedModelError, as :func:`load` does.
    """
    file = _native.GgufModelFile(os.fspath(path))
    return Tokenizer.from_metadata(file.metadata)


def load(
    path_or_repo: str | os.PathLike[str] = "demo",
    device: str = "auto",
    threads: int | None = None,
    kv_type: str = "f16",
    *,
    context_length: int | None = None,
    batch_tokens: int = 512,
    memory_budget: int | None = None,
    weights: str = "mapped",
    precision: str = "auto",
    gpu_layers: int | None = None,
    eviction: str = "auto",
) -> Model:
    """Load a model.

    ``path_or_repo`` is a GGUF file (any part of a split one), a Hugging Face repository as
    ``owner/name[:quantisation]``, or ``"demo"``, the small model that comes with the package. ``device`` is
    ``"auto"`` (the variable ``METALLIC_DEVICE`` or else the best there is), ``"cpu"`` or ``"metal"``; ``threads`` those
    of the CPU backend (default: one per core). Keys and values are kept as ``kv_type``: ``"f16"``, ``"bf16"``,
    ``"f32"``, ``"q8_0"`` or ``"q4_0"``, or by rules with commas between them, from left to right: ``"k=q8_0,v=q4_0"``
    for keys and values apart, ``"f16,window:q8_0"`` for layers with a window (or without one, ``full:``) apart, both as
    in ``"full:v=q4_0"``. ``context_length`` in tokens lowers the model's own limit, and nothing is reserved for it. At
    most ``batch_tokens`` tokens are computed at a time, which bounds the activations. ``memory_budget`` in bytes
    bounds what the pool takes from the system.
    ``weights`` says where the weights are: read where the file is ``"mapped"``, copied on first use to memory of the
    device alone (``"private"``) or of device and host (``"shared"``), which the pool counts, or read and computed with
    by the host's processor (``"cpu"``). Rules such as ``"private,blk.0-3=cpu,output=shared"`` place tensors by pattern,
    the last that matches wins; see ``docs/placement.md``. ``"auto"`` gives the device as many layers as its memory, or
    the budget, holds together with keys and values of ``context_length`` tokens (of 8192 where none is stated).
    ``gpu_layers`` puts that many layers on the device and the others on the host, as llama.cpp's ``--n-gpu-layers``
    does: the last ones, of which the output is one. What was decided is in ``Model.placement``.

    ``precision`` is what matrix products may round their operands to; sums are float32 always. ``"float32"`` rounds
    nothing, on any device. ``"int8"`` (CPU) rounds activations to 8 bits in blocks where the weights are quantised,
    ``"float16"`` and ``"bfloat16"`` (Metal, where the GPU has the arithmetic) round both operands when many tokens are
    computed; layers on the host are then computed in float32. ``"auto"`` is float32 on Metal; on the CPU it is float32
    for models whose matrices take at most 32 MiB, else int8.

    Where the budget is short, sequences give their pages up to others; ``eviction`` says whether they wait in host
    memory meanwhile (``"save"``; ``"compress"``: rounded to 8 bits, ``"compress-q4_0"``: to 4) or are computed again
    (``"recompute"``). ``"auto"`` computes them again on devices where that gives the same bits, as the CPU does, and
    saves them on others.

    Raises ModelFormatError for a corrupt file, UnsupportedModelError for one that needs what is not implemented,
    RequestError for arguments that make no sense, OutOfMemory when the budget is too small.
    """
    if not isinstance(device, str):
        raise RequestError(f"device must be a str, not {device!r}")
    if not isinstance(kv_type, str) or not kv_type.isascii():
        raise RequestError("kv_type must be a str such as f16, q8_0 or k=q8_0,v=q4_0")
    kv_type = _native.check_kv_types(kv_type)
    if not isinstance(weights, str) or not weights.isascii():
        raise RequestError(f"weights must be rules of placement such as private or blk.0-3=cpu, not {weights!a}")
    _native.check_placement_rules(weights)
    if gpu_layers is not None and (type(gpu_layers) is not int or not 0 <= gpu_layers < 2**31):
        raise RequestError(f"gpu_layers must be an integer between 0 and {2**31 - 1}, not {gpu_layers!r}")
    if not isinstance(precision, str) or precision.lower() not in PRECISIONS:
        raise RequestError(f"precision must be one of {', '.join(PRECISIONS)}, not {precision!r}")
    if not isinstance(eviction, str) or eviction.lower() not in EVICTIONS:
        raise RequestError(f"eviction must be one of {', '.join(EVICTIONS)}, not {eviction!r}")
    _check_integer("threads", threads, 1024)
    _check_integer("batch_tokens", batch_tokens, 65536)
    _check_integer("memory_budget", memory_budget, 2**63)
    _check_integer("context_length", context_length, 2**31)
    device = chosen_device(device)
    path = resolve_model(path_or_repo)
    file = _native.GgufModelFile(str(path))
    metadata = file.metadata
    config = ModelConfig.from_metadata(metadata)
    context = _context_length(config, context_length)
    tokenizer = Tokenizer.from_metadata(metadata)
    tokenizer.prepare_in_background()
    program = trace_program(file, config)
    native = _native.Model(
        file,
        program,
        device=device,
        threads=threads or 0,
        kv_type=kv_type,
        context_length=context,
        batch_tokens=min(batch_tokens, context),
        memory_budget=memory_budget or 0,
        weights=weights,
        precision=precision.lower(),
        gpu_layers=gpu_layers,
        placement_context=placement_context(config, context_length),
        eviction=eviction.lower(),
    )
    placement = Placement.of(native.placement)
    for rule in placement.unmatched:
        log.warning("the placement rule %s concerns no tensor of this model", rule)
    log.info("weights: %s", placement.summary())
    log.info(
        "loaded %s (%s, %d blocks) on %s, computing in %s",
        path,
        config.architecture,
        config.block_count,
        native.device["name"],
        native.precision,
    )
    return Model(
        native=native,
        path=Path(path),
        config=config,
        tokenizer=tokenizer,
        template=ChatTemplate.from_metadata(metadata, tokenizer),
        context_length=context,
        kv_type=kv_type,
    )


def _check_integer(name: str, value: int | None, most: int) -> None:
    if value is None and name != "batch_tokens":
        return
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= most:
        raise RequestError(f"{name} must be an integer between 1 and {most}, not {value!r}")


def _context_length(config: ModelConfig, wanted: int | None) -> int:
    if wanted is None:
        return config.context_length
    if not 1 <= wanted <= config.context_length:
        raise RequestError(f"context_length must lie between 1 and the model's {config.context_length}, not {wanted}")
    return wanted


def chosen_device(device: str) -> str:
    """The device that ``METALLIC_DEVICE`` names where the user leaves it open."""
    return os.environ.get("METALLIC_DEVICE") or "auto" if device == "auto" else device


def placement_context(config: ModelConfig, wanted: int | None) -> int:
    """The tokens that the placement ``"auto"`` leaves room for."""
    return min(config.context_length, wanted or UNSTATED_CONTEXT)


def trace_program(file: _native.GgufModelFile, config: ModelConfig) -> _native.Program:
    """The traced program of a file's model function."""
    dtypes = {tensor.name: tensor.dtype for tensor in file.tensors}

    def tensor(name: str) -> npt.NDArray[np.float32] | None:
        if name not in dtypes:
            return None
        if dtypes[name] not in _FLOATS:
            raise ModelFormatError(f"a tensor of floats is needed, not {dtypes[name]}", file=file.paths[0], where=name)
        return file.tensor_data(name).view(_FLOATS[dtypes[name]]).astype(np.float32)

    builder = _native.Builder(file)
    with builder.scope("forward"):
        model_function(config.architecture)(config, builder, tensor)
    return builder.finish()
