"""``metallic inspect``: what is in a model file, and what memory it would take."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from ..errors import DeviceError, ModelFormatError, OutOfMemory, RequestError, UnsupportedModelError
from .console import console, decimal_size
from .failures import CommandError, ExitCode
from .loaded import open_file
from .model_facts import MemoryEstimate, ModelFacts, estimate_memory
from .options import Device, GpuLayersOption, KvType, Precision, WeightsOption, one_of, parse_size

if TYPE_CHECKING:
    from .. import _native
    from ..engine import Placement
    from ..engine.placement import BlockPlacement

__all__ = ["inspect"]

_LONGEST_TEXT = 120
_SHOWN_ELEMENTS = 4


def inspect(
    *,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="A GGUF file, a folder with one, owner/name[:QUANT], or demo [default: demo].",
            show_default=False,
        ),
    ] = None,
    model: Annotated[str | None, typer.Option("--model", "-m", metavar="MODEL", help="The same as an option.")] = None,
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", min=1, help="Tokens to estimate memory for [default: the model's limit]."),
    ] = None,
    kv_type: KvType = "f16",
    batch_tokens: Annotated[int, typer.Option(min=1, max=65536, help="Most tokens computed at a time.")] = 512,
    device: Annotated[str, typer.Option(help="auto, cpu or metal.", metavar="NAME", parser=one_of(Device))] = "auto",
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, max=1024, help="CPU threads [default: one per core].")
    ] = None,
    precision: Annotated[str, typer.Option(help="As for generate.", metavar="NAME", parser=one_of(Precision))] = "auto",
    memory: Annotated[
        int | None,
        typer.Option(metavar="SIZE", parser=parse_size, help="The budget that automatic placement keeps, e.g. 2GB."),
    ] = None,
    weights: WeightsOption = "mapped",
    gpu_layers: GpuLayersOption = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show a model file: metadata, configuration, tensors, and the memory that a sequence would take."""
    if name and model:
        raise typer.BadParameter("the model is named twice")
    path, file = open_file(name or model or "demo")
    metadata = file.metadata
    facts = ModelFacts.of(file, metadata)
    positional = (kv_type, batch_tokens, device, threads, precision)
    places = {"memory": memory, "weights": weights, "gpu_layers": gpu_layers}
    config, estimate, refused = _plan(file, metadata, context, positional, places)
    if as_json:
        console.json(_values(path, file, metadata, facts, config, estimate, refused, tensors))
        return
    console.line(f"{path}: GGUF {file.version}, {len(file.paths)} file(s), {len(file.tensors)} tensors")
    console.line(
        f"{facts.architecture}, {facts.parameters_text} parameters, {facts.file_type}, {decimal_size(facts.bytes)}"
    )
    _section("Metadata", ["key", "value"], [[key, _text(value)] for key, value in metadata.items()])
    if config is not None:
        _section("Configuration", ["", ""], [[key, _text(value)] for key, value in config.items() if value is not None])
    _show_tensors(file, facts, tensors)
    if estimate is not None:
        _show_estimate(estimate)
        _show_placement(estimate.placement)
    else:
        console.line(f"\nThis model does not run: {refused}")


def _plan(
    file: _native.GgufModelFile,
    metadata: Mapping[str, object],
    context: int | None,
    options: tuple[str, int, str, int | None, str],
    places: Mapping[str, Any],
) -> tuple[dict[str, Any] | None, MemoryEstimate | None, str | None]:
    """The configuration and the estimate, or why the model does not run."""
    from ..engine.loader import placement_context
    from ..loading import ModelConfig

    values = None
    try:
        config = ModelConfig.from_metadata(metadata)
        values = asdict(config)
        limit = config.context_length
        if context is not None and context > limit:
            raise CommandError(f"--context {context} is more than the model's {limit} tokens", ExitCode.USAGE)
        room_for = placement_context(config, context)
        return values, estimate_memory(file, config, context or limit, *options, **places, room_for=room_for), None
    except (ModelFormatError, UnsupportedModelError, OutOfMemory) as error:
        return values, None, str(error)
    except (DeviceError, RequestError) as error:
        raise CommandError(str(error), ExitCode.USAGE) from error


def _section(title: str, headings: list[str], rows: list[list[str]], right: tuple[int, ...] = ()) -> None:
    console.line(f"\n{title}")
    console.table(headings, rows, right)


def _show_tensors(file: _native.GgufModelFile, facts: ModelFacts, each: bool) -> None:
    rows = [
        [name, str(count), decimal_size(size), f"{100 * size / max(facts.bytes, 1):.1f} %"]
        for name, (count, size) in facts.types.items()
    ]
    _section("Tensors by type", ["type", "tensors", "size", "share"], rows, right=(1, 2, 3))
    if each:
        listed = [[t.name, t.dtype, " x ".join(map(str, t.shape)), decimal_size(t.nbytes)] for t in file.tensors]
        _section("Tensors", ["name", "type", "shape", "size"], listed, right=(3,))


def _show_placement(placement: Placement) -> None:
    """A row for each run of blocks that are alike."""
    rows: list[list[str]] = []
    for block in placement.blocks:
        alike = block.block is not None and rows and rows[-1][1:] == _placed(block) and rows[-1][0] != "others"
        if alike:
            first = rows[-1][0].split()[1]
            rows[-1][0] = f"blocks {first} to {block.block}"
        else:
            rows.append(["others" if block.block is None else f"block {block.block}", *_placed(block)])
    title = f"Placement, keys and values of {placement.context} tokens"
    _section(title, ["", "weights", "size of each", "kv of each"], rows, right=(2, 3))
    for stage in placement.stages:
        console.line(f"{stage.device}: {stage.blocks}")
    if placement.automatic:
        budget, reserved = decimal_size(placement.budget), decimal_size(placement.reserved)
        console.line(f"chosen for a budget of {budget}, {reserved} of it reserved")
    for rule in placement.unmatched:
        console.note(f"the placement rule {rule} concerns no tensor of this model")


def _placed(block: BlockPlacement) -> list[str]:
    places = " and ".join(block.weights) or block.place
    return [places, decimal_size(sum(block.weights.values())), decimal_size(block.kv)]


def _show_estimate(estimate: MemoryEstimate) -> None:
    placement = estimate.placement
    where = {"mapped": "mapped from the file", "cpu": "mapped from the file, for the CPU"}
    places = ", ".join(
        where.get(place, place) if len(placement.weights) == 1 else f"{decimal_size(size)} {place}"
        for place, size in placement.weights.items()
    )
    rows = [["weights", decimal_size(estimate.weights), places]]
    for group in estimate.groups:
        kind = f"window of {group.window} tokens" if group.window else "all tokens"
        note = f"{kind}: {group.pages} pages of {estimate.page_tokens} tokens, {decimal_size(group.page_bytes)} each"
        if len(placement.stages) > 1:
            note += f" on {group.device}"
        rows.append(["kv", decimal_size(group.bytes), f"{note}, {group.types}"])
    note = f"arena, scratch and logits of up to {estimate.batch_tokens} tokens at a time"
    rows.append(["activations", decimal_size(estimate.activations), note])
    rows.append(["total", decimal_size(estimate.total), ""])
    _section(f"Memory for {estimate.context} tokens", ["tag", "size", ""], rows, right=(1,))
    if estimate.refused:
        console.note(f"this does not load: {estimate.refused}")


def _values(
    path: Path,
    file: _native.GgufModelFile,
    metadata: Mapping[str, object],
    facts: ModelFacts,
    config: dict[str, Any] | None,
    estimate: MemoryEstimate | None,
    refused: str | None,
    tensors: bool,
) -> dict[str, Any]:
    memory = None
    if estimate is not None:
        memory = {**asdict(estimate), "kv": estimate.kv, "total": estimate.total}
        del memory["placement"]
    values: dict[str, Any] = {
        "path": str(path),
        "files": file.paths,
        "gguf_version": file.version,
        "architecture": facts.architecture,
        "name": facts.name,
        "file_type": facts.file_type,
        "parameters": facts.parameters,
        "bytes": facts.bytes,
        "supported": refused is None,
        "reason": refused,
        "metadata": {key: _plain(value) for key, value in metadata.items()},
        "config": config,
        "tensor_types": {name: {"tensors": count, "bytes": size} for name, (count, size) in facts.types.items()},
        "memory": memory,
        "placement": None if estimate is None else asdict(estimate.placement),
    }
    if tensors:
        values["tensors"] = [
            {
                "name": t.name,
                "type": t.dtype,
                "shape": list(t.shape),
                "bytes": t.nbytes,
                "file": t.file,
                "offset": t.offset,
            }
            for t in file.tensors
        ]
    return values


def _plain(value: object) -> object:
    """A value of the metadata for JSON: long arrays, such as vocabularies, as their length and beginning."""
    if isinstance(value, float) and value - value != 0:  # infinite or no number, which JSON lacks
        return str(value)
    if not hasattr(value, "__len__") or isinstance(value, str):
        return value
    elements = [_plain(element) for element in _elements(value)]
    if len(elements) <= 64:
        return elements
    return {"length": len(elements), "first": elements[:_SHOWN_ELEMENTS]}


def _elements(value: Any) -> list[object]:
    return cast("list[object]", value.tolist()) if hasattr(value, "tolist") else list(value)


def _text(value: object) -> str:
    """A value in a cell of a table, shortened."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {_text(entry)}" for key, entry in value.items() if entry is not None)
    if isinstance(value, str) or not hasattr(value, "__len__"):
        text = value if isinstance(value, str) else str(value)
        shown = text.replace("\n", "\\n")
        return shown if len(shown) <= _LONGEST_TEXT else f"{shown[:_LONGEST_TEXT]}… ({len(text)} characters)"
    elements = _elements(value)
    if len(set(map(str, elements))) == 1 and len(elements) > 1:
        return f"{len(elements)} x {elements[0]}"
    shown = ", ".join(
        repr(element) if isinstance(element, str) else str(element) for element in elements[:_SHOWN_ELEMENTS]
    )
    return f"[{shown}]" if len(elements) <= _SHOWN_ELEMENTS else f"[{shown}, …] ({len(elements)} elements)"
