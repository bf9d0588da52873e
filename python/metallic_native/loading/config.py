"""The configuration of a language model, read from GGUF metadata and checked value by value.

Key names and defaults: the GGUF specification, and llama.cpp's model loader where the specification is silent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from ..errors import ModelFormatError, UnsupportedModelError
from .metadata import MetadataReader
from .rope import ROPE_SCALINGS, RopeConfig, RopeScaling

MAX_BLOCKS = 1024
MAX_TOKENS = 1 << 30
MAX_WIDTH = 1 << 24
MAX_HEADS = 1 << 14
MAX_HEAD_SIZE = 1 << 13
MAX_EXPERTS = 1 << 14
MAX_FACTOR = 1e6

RouterGate = Literal["softmax", "sigmoid", "softmax_of_chosen"]
_ROUTER_GATES: dict[int, RouterGate] = {1: "softmax", 2: "sigmoid", 3: "softmax_of_chosen"}


class _Traits(NamedTuple):
    """What an architecture's metadata may say without being refused."""

    window: bool = False
    experts: bool = False
    attention_softcap: float = -1.0  # default; negative: the architecture has none
    output_softcap: float = -1.0


_ARCHITECTURES: dict[str, _Traits] = {
    "gemma2": _Traits(window=True, attention_softcap=50.0, output_softcap=30.0),
    "gemma3": _Traits(window=True, output_softcap=0.0),
    "llama": _Traits(window=True, experts=True),
    "phi3": _Traits(window=True),
    "qwen2": _Traits(),
    "qwen3": _Traits(),
    "qwen3moe": _Traits(experts=True),
    "smollm3": _Traits(),
}

# Keys that change the result and that no model function here knows, with the values that mean "not used".
_REFUSED: dict[str, tuple[object, ...]] = {
    "attention.clamp_kqv": (0,),
    "attention.indexer.top_k": (0,),
    "attention.kv_lora_rank": (0,),
    "attention.max_alibi_bias": (0,),
    "attention.output_scale": (0, 1),
    "attention.q_lora_rank": (0,),
    "attention.shared_kv_layers": (0,),
    "attention.temperature_length": (0,),
    "attention.temperature_scale": (0,),
    "embedding_length_per_layer_input": (0,),
    "embedding_scale": (0, 1),
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "expert_shared_feed_forward_length": (0,),
    "interleave_moe_layer_step": (0, 1),
    "leading_dense_block_count": (0,),
    "logit_scale": (0, 1),
    "moe_every_n_layers": (0, 1),
    "nextn_predict_layers": (0,),
    "residual_scale": (0, 1),
    "rope.scaling.alpha": (0,),
    "router_logit_softcapping": (0,),
    "use_parallel_residual": (False,),
}


@dataclass(frozen=True)
class ExpertConfig:
    """A mixture of experts: ``used`` of ``count`` feed-forward networks per token."""

    count: int
    used: int
    feed_forward_length: int
    """Inner width of one expert."""
    gate: RouterGate = "softmax"
    normalise: bool = True
    """Whether the weights of the chosen experts are divided by their sum."""
    scale: float = 1.0


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a decoder. Lengths are in elements or tokens; a tuple has one entry per block."""

    architecture: str
    name: str
    vocabulary_size: int
    context_length: int
    embedding_length: int
    block_count: int
    feed_forward_length: tuple[int, ...]
    """Inner width of the feed-forward network; may be 0 where there are experts instead."""
    head_count: tuple[int, ...]
    head_count_kv: tuple[int, ...]
    head_size: int
    """Length of one key and of one value."""
    norm_epsilon: float
    rope: RopeConfig
    attention_scale: float | None = None
    """Factor of the attention scores where the file states it; None leaves it to the architecture."""
    attention_softcap: float = 0.0
    output_softcap: float = 0.0
    """Soft-caps ``c * tanh(x / c)`` of scores and of logits; 0 is none."""
    sliding_window: int = 0
    """Tokens that a windowed layer's query sees, itself included; 0 is all."""
    sliding_window_pattern: int | tuple[bool, ...] | None = None
    """Which blocks have the window, where the file states it: see :meth:`window`."""
    experts: ExpertConfig | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, object]) -> ModelConfig:
        """The configuration that GGUF ``metadata`` describes.

        Raises ModelFormatError, whose ``where`` is the key, for a value that is missing, of the wrong type or
        impossible; UnsupportedModelError for an architecture or a feature that would otherwise be computed wrongly.
        """
        architecture = MetadataReader(metadata, "general").text("architecture")
        traits = _ARCHITECTURES.get(architecture)
        if traits is None:
            raise UnsupportedModelError(
                f"architecture {architecture!r} is not supported", what=architecture, supported=sorted(_ARCHITECTURES)
            )
        read = MetadataReader(metadata, architecture)
        _refuse_unknown_features(read, traits)
        blocks = read.integer("block_count", 1, MAX_BLOCKS)
        width = read.integer("embedding_length", 1, MAX_WIDTH)
        context = read.integer("context_length", 1, MAX_TOKENS)
        heads = read.per_block("attention.head_count", blocks, 1, MAX_HEADS)
        kv_heads = read.per_block("attention.head_count_kv", blocks, 1, MAX_HEADS, default=heads)
        _check_head_groups(read, heads, kv_heads)
        head_size = _head_size(read, width, heads)
        experts = _experts(read) if traits.experts else None
        window = _window(read) if traits.window else 0
        return cls(
            architecture=architecture,
            name=MetadataReader(metadata, "general").text("name", ""),
            vocabulary_size=_vocabulary_size(metadata, read),
            context_length=context,
            embedding_length=width,
            block_count=blocks,
            feed_forward_length=_feed_forward_length(read, blocks, experts),
            head_count=heads,
            head_count_kv=kv_heads,
            head_size=head_size,
            norm_epsilon=read.number("attention.layer_norm_rms_epsilon", 1e-12, 0.5),
            rope=_rope(read, head_size, context),
            attention_scale=read.number("attention.scale", 0.0, MAX_FACTOR, default=0.0) or None,
            attention_softcap=_softcap(read, "attn_logit_softcapping", traits.attention_softcap),
            output_softcap=_softcap(read, "final_logit_softcapping", traits.output_softcap),
            sliding_window=window,
            sliding_window_pattern=read.period_or_flags("attention.sliding_window_pattern", blocks) if window else None,
            experts=experts,
        )

    def window(self, block: int, period: int = 0) -> int:
        """The sliding window of ``block`` in tokens, 0 where it sees everything.

        Of each ``period`` blocks the last has no window; a period of 0 gives every block the window, 1 gives it to
        none. What the file states goes before ``period``, the architecture's own.
        """
        pattern = period if self.sliding_window_pattern is None else self.sliding_window_pattern
        if isinstance(pattern, tuple):
            return self.sliding_window if pattern[block] else 0
        return 0 if pattern and (block + 1) % pattern == 0 else self.sliding_window


def _refuse_unknown_features(read: MetadataReader, traits: _Traits) -> None:
    for key, unused in _REFUSED.items():
        value = read.get(key)
        entries = value if isinstance(value, (list, tuple, np.ndarray)) else [value]
        if value is not None and not all(entry in unused for entry in entries):
            raise _unsupported(read, key, value)
    if not read.flag("attention.causal", True):
        raise _unsupported(read, "attention.causal", False)
    if any(read.integers("rope.dimension_sections")):
        raise _unsupported(read, "rope.dimension_sections", read.get("rope.dimension_sections"))
    if not traits.experts and read.integer("expert_count", 0, MAX_EXPERTS, default=0):
        raise _unsupported(read, "expert_count", read.get("expert_count"))
    window = read.integer("attention.sliding_window", 0, MAX_TOKENS, default=0)
    if not traits.window and 0 < window < read.integer("context_length", 1, MAX_TOKENS):
        raise _unsupported(read, "attention.sliding_window", window)


def _unsupported(read: MetadataReader, key: str, value: object) -> UnsupportedModelError:
    what = read.full(key)
    return UnsupportedModelError(f"{what} = {value} is not supported for architecture {read.prefix}", what=what)


def _check_head_groups(read: MetadataReader, heads: tuple[int, ...], kv_heads: tuple[int, ...]) -> None:
    for block, (queries, keys) in enumerate(zip(heads, kv_heads, strict=True)):
        if queries % keys:
            raise read.wrong(
                "attention.head_count_kv", f"{keys} key-value heads do not divide {queries} query heads (block {block})"
            )


def _head_size(read: MetadataReader, width: int, heads: tuple[int, ...]) -> int:
    if read.get("attention.key_length") is None:
        if width % heads[0]:
            raise read.wrong("attention.head_count", f"{heads[0]} heads do not divide the embedding length {width}")
        if len(set(heads)) > 1:
            raise read.wrong("attention.key_length", "missing, and the head count differs between blocks")
    size = read.integer("attention.key_length", 1, MAX_HEAD_SIZE, default=width // heads[0])
    value_size = read.integer("attention.value_length", 1, MAX_HEAD_SIZE, default=size)
    for key, other in (
        ("attention.value_length", value_size),
        ("attention.key_length_swa", read.integer("attention.key_length_swa", 1, MAX_HEAD_SIZE, default=size)),
        ("attention.value_length_swa", read.integer("attention.value_length_swa", 1, MAX_HEAD_SIZE, default=size)),
    ):
        if other != size:
            raise _unsupported(read, key, f"{other} beside keys of {size}")
    return size


def _vocabulary_size(metadata: Mapping[str, object], read: MetadataReader) -> int:
    """The tokenizer's size, which token embeddings follow; the architecture's own key where there is no tokenizer."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return read.integer("vocab_size", 1, MAX_TOKENS)
    size = len(tokens) if hasattr(tokens, "__len__") and not isinstance(tokens, (str, bytes)) else 0
    if size == 0:
        raise ModelFormatError("expected an array with at least one token", where="tokenizer.ggml.tokens")
    return size


def _feed_forward_length(read: MetadataReader, blocks: int, experts: ExpertConfig | None) -> tuple[int, ...]:
    if experts:
        return read.per_block("feed_forward_length", blocks, 0, MAX_WIDTH, default=(0,) * blocks)
    return read.per_block("feed_forward_length", blocks, 1, MAX_WIDTH)


def _experts(read: MetadataReader) -> ExpertConfig | None:
    count = read.integer("expert_count", 0, MAX_EXPERTS, default=0 if read.prefix == "llama" else None)
    if count == 0:
        if read.prefix != "llama":
            raise read.wrong("expert_count", "must be at least 1")
        return None
    used = read.integer("expert_used_count", 1, MAX_EXPERTS)
    if used > count:
        raise read.wrong("expert_used_count", f"{used} experts are used, but there are only {count}")
    gate = read.integer("expert_gating_func", 0, 64, default=0)
    if gate and gate not in _ROUTER_GATES:
        raise _unsupported(read, "expert_gating_func", gate)
    return ExpertConfig(
        count=count,
        used=used,
        feed_forward_length=_expert_feed_forward_length(read, used),
        gate=_ROUTER_GATES.get(gate, "softmax"),
        normalise=read.flag("expert_weights_norm", True),
        scale=read.number("expert_weights_scale", 0.0, MAX_FACTOR, default=0.0) or 1.0,
    )


def _expert_feed_forward_length(read: MetadataReader, used: int) -> int:
    """The stated width; else Mixtral's is the feed-forward length, and others share that among the experts used."""
    if read.get("expert_feed_forward_length") is not None:
        return read.integer("expert_feed_forward_length", 1, MAX_WIDTH)
    dense = read.integer("feed_forward_length", 1, MAX_WIDTH)
    length = dense if read.prefix == "llama" else dense // used
    if length == 0:
        raise read.wrong("feed_forward_length", f"{dense} cannot be shared among {used} experts")
    return length


def _window(read: MetadataReader) -> int:
    """The window in tokens; 0 where it is absent. A long one is kept too: it tells Gemma 3's two RoPEs apart."""
    default = 4096 if read.prefix == "gemma2" else 0
    return read.integer("attention.sliding_window", 0, MAX_TOKENS, default=default)


def _softcap(read: MetadataReader, key: str, default: float) -> float:
    cap = read.number(key, 0.0, MAX_FACTOR, default=max(default, 0.0))
    if default < 0 and cap:
        raise _unsupported(read, key, cap)
    return cap


def _rope(read: MetadataReader, head_size: int, context: int) -> RopeConfig:
    dims = read.integer("rope.dimension_count", 2, MAX_HEAD_SIZE, default=head_size)
    if dims % 2 or dims > head_size:
        raise read.wrong("rope.dimension_count", f"{dims} must be even and at most the head size {head_size}")
    if read.integer("rope.dimension_count_swa", 2, MAX_HEAD_SIZE, default=dims) != dims:
        raise _unsupported(read, "rope.dimension_count_swa", read.get("rope.dimension_count_swa"))
    base = read.number("rope.freq_base", 1.0 + 1e-6, 1e12, default=10_000.0)
    local_base = read.optional_number("rope.freq_base_swa", 1.0 + 1e-6, 1e12)
    if local_base is not None and local_base != base and read.prefix != "gemma3":
        raise _unsupported(read, "rope.freq_base_swa", local_base)
    scaling, factor = _rope_scaling(read)
    original = read.integer("rope.scaling.original_context_length", 0, MAX_TOKENS, default=0)
    if original == 1:
        raise read.wrong("rope.scaling.original_context_length", "a context of 1 token cannot be stretched")
    fast = read.number("rope.scaling.yarn_beta_fast", 1e-6, MAX_FACTOR, default=32.0)
    extrapolation = read.number("rope.scaling.yarn_ext_factor", -MAX_FACTOR, 1.0, default=1.0)
    return RopeConfig(
        dims=dims,
        base=base,
        local_base=local_base,
        scaling=scaling,
        factor=factor,
        context_length=context,
        original_context=original or context,
        attention_factor=read.optional_number("rope.scaling.attn_factor", 1e-6, MAX_FACTOR),
        yarn_attention_factor=read.optional_number("rope.scaling.yarn_attn_factor", 1e-6, MAX_FACTOR),
        yarn_extrapolation=1.0 if extrapolation < 0 else extrapolation,
        yarn_beta_fast=fast,
        yarn_beta_slow=read.number("rope.scaling.yarn_beta_slow", 1e-6, MAX_FACTOR, default=min(1.0, fast)),
        yarn_log_multiplier=read.number("rope.scaling.yarn_log_multiplier", 0.0, MAX_FACTOR, default=0.0),
    )


def _rope_scaling(read: MetadataReader) -> tuple[RopeScaling, float]:
    """Scaling type and factor; a factor without a type is linear, as in llama.cpp."""
    old = read.optional_number("rope.scale_linear", 1e-6, MAX_FACTOR)
    factor = read.number("rope.scaling.factor", 1e-6, MAX_FACTOR, default=old if old is not None else 1.0)
    stated = read.text("rope.scaling.type", "linear" if factor != 1.0 else "none")
    scaling = next((known for known in ROPE_SCALINGS if known == stated), None)
    if scaling is None:
        what = read.full("rope.scaling.type")
        raise UnsupportedModelError(f"{what} = {stated!r} is not supported", what=what, supported=ROPE_SCALINGS)
    return scaling, 1.0 if scaling == "none" else factor
