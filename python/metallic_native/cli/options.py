"""Options that several commands share: a group is a dataclass, :func:`with_groups` gives it to a command."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args, get_type_hints

import typer

if TYPE_CHECKING:
    from ..sampling import Sampling

__all__ = [
    "GpuLayersOption",
    "KvType",
    "LoadOptions",
    "SamplingOptions",
    "WeightsOption",
    "one_of",
    "parse_size",
    "with_groups",
]

Device = Literal["auto", "cpu", "metal"]
Eviction = Literal["auto", "save", "compress", "compress-q4_0", "recompute"]
Precision = Literal["auto", "float32", "float16", "bfloat16", "int8"]

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}
_UNITS |= {"kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_UNITS |= {"tib": 1 << 40, "b": 1}
_MOST_BYTES = 1 << 63


def parse_size(text: str) -> int:
    """Bytes of ``512MB`` (powers of 1000), ``2GiB`` or ``2G`` (powers of 1024), or a plain number, at least 1."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,15})?)\s*([a-z]*)", text.strip().lower())
    unit = _UNITS.get(found[2]) if found else None
    size = int(float(found[1]) * unit) if found and unit else 0
    if not 1 <= size <= _MOST_BYTES:
        raise typer.BadParameter(f"{text!r} is no amount of memory: write 512MB, 2GB, 2GiB or a number of bytes")
    return size


def one_of(choices: Any) -> Callable[[str], str]:
    """A check that a value is one of a Literal's, in any case."""
    names = get_args(choices)

    def check(text: str) -> str:
        if text.lower() not in names:
            raise typer.BadParameter(f"{text!r} is none of {', '.join(names)}")
        return text.lower()

    return check


def _read_by(check: Callable[[str], Any], text: str) -> Any:
    """What a check of the core makes of a text; its complaint as one of the command line."""
    from ..errors import RequestError

    try:
        return check(text.encode(errors="replace").decode())
    except RequestError as error:
        raise typer.BadParameter(str(error)) from error


def check_kv_type(text: str) -> str:
    """The types of keys and values in their shortest form."""
    from .. import _native

    return str(_read_by(_native.check_kv_types, text))


def placement_rules(text: str) -> str:
    """A check that rules of placement can be read."""
    from .. import _native

    _read_by(_native.check_placement_rules, text)
    return text


KvType = Annotated[
    str,
    typer.Option(
        help="Cached keys and values: f16, bf16, f32, q8_0 or q4_0; apart as in k=q8_0,v=q4_0 or f16,window:q8_0.",
        metavar="TYPE",
        parser=check_kv_type,
    ),
]
WeightsOption = Annotated[
    str,
    typer.Option(
        help="Where weights are: mapped (in the file), private, shared, cpu, auto, or rules such as "
        "private,blk.0-3=cpu; the last that matches wins.",
        metavar="RULES",
        parser=placement_rules,
    ),
]
GpuLayersOption = Annotated[
    int | None,
    typer.Option(
        "--gpu-layers",
        min=0,
        max=2**31 - 1,
        metavar="N",
        help="The last N layers on the device, the others on the CPU; the output is the last one.",
    ),
]


@dataclass(frozen=True)
class LoadOptions:
    """How a model is loaded."""

    model: Annotated[
        str,
        typer.Option(
            "--model", "-m", help="A GGUF file, a folder with one, owner/name[:QUANT], or demo.", metavar="MODEL"
        ),
    ] = "demo"
    device: Annotated[str, typer.Option(help="auto, cpu or metal.", metavar="NAME", parser=one_of(Device))] = "auto"
    threads: Annotated[
        int | None, typer.Option("--threads", "-t", min=1, max=1024, help="CPU threads [default: one per core].")
    ] = None
    kv_type: KvType = "f16"
    context: Annotated[
        int | None,
        typer.Option("--context", "-c", min=1, help="Most tokens of a sequence [default: the model's limit]."),
    ] = None
    batch_tokens: Annotated[
        int, typer.Option(min=1, max=65536, help="Most tokens computed at a time; bounds the activations.")
    ] = 512
    memory: Annotated[
        int | None,
        typer.Option(
            metavar="SIZE",
            parser=parse_size,
            help="Most memory for keys, values and activations, e.g. 2GB [default: no limit].",
        ),
    ] = None
    weights: WeightsOption = "mapped"
    gpu_layers: GpuLayersOption = None
    eviction: Annotated[
        str,
        typer.Option(
            help="Pages that give way: computed again (recompute), or in host memory (save, compress, compress-q4_0).",
            metavar="HOW",
            parser=one_of(Eviction),
        ),
    ] = "auto"
    precision: Annotated[
        str,
        typer.Option(
            help="What products may round to: float32 (nothing), int8 (CPU), float16, bfloat16 (Metal) or auto.",
            metavar="TYPE",
            parser=one_of(Precision),
        ),
    ] = "auto"


@dataclass(frozen=True)
class SamplingOptions:
    """How tokens are drawn. Ranges are checked by :class:`metallic_native.Sampling`, whose defaults these are."""

    temperature: Annotated[
        float | None, typer.Option("--temperature", "--temp", help="0 is greedy [default: 0.8].")
    ] = None
    top_k: Annotated[int, typer.Option(help="Keep the K most probable tokens; 0 keeps all.")] = 40
    top_p: Annotated[float, typer.Option(help="Keep the most probable tokens that reach this mass.")] = 0.95
    min_p: Annotated[float, typer.Option(help="Keep tokens this probable relative to the most probable one.")] = 0.05
    repetition_penalty: Annotated[float, typer.Option(help="Penalty of recent tokens; 1 is none.")] = 1.0
    seed: Annotated[int | None, typer.Option("--seed", "-s", help="For equal output [default: a random one].")] = None
    greedy: Annotated[bool, typer.Option("--greedy", help="Always the most probable token.")] = False

    def sampling(self, logprobs: int | None = None) -> Sampling:
        """The sampling parameters, with a seed in any case."""
        import secrets

        from ..sampling import Sampling

        if self.greedy and self.temperature:
            raise typer.BadParameter("--greedy and --temperature exclude each other")
        temperature = 0.0 if self.greedy else Sampling.temperature if self.temperature is None else self.temperature
        return Sampling(
            temperature=temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=secrets.randbits(32) if self.seed is None else self.seed,
            logprobs=logprobs,
        )


def with_groups(**groups: type[Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """A decorator for commands whose parameters named in ``groups`` are dataclasses of options.

    The command line has an option for each field; the command gets one object per group.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = get_type_hints(command, include_extras=True)
        parameters: list[inspect.Parameter] = []
        owners: dict[str, str] = {}
        for parameter in inspect.signature(command).parameters.values():
            group = groups.get(parameter.name)
            if group is None:
                parameters.append(parameter.replace(annotation=hints[parameter.name]))
                continue
            types = get_type_hints(group, include_extras=True)
            for field in fields(group):
                owners[field.name] = parameter.name
                parameters.append(
                    inspect.Parameter(
                        field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=types[field.name]
                    )
                )

        def run(**values: Any) -> None:
            grouped = {
                name: group(**{key: values.pop(key) for key, owner in owners.items() if owner == name})
                for name, group in groups.items()
            }
            command(**values, **grouped)

        keyword_only = [p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in parameters]
        run.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        run.__name__, run.__doc__ = command.__name__, command.__doc__
        return run

    return decorate
