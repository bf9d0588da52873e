"""Model configurations from GGUF metadata: what is read, what is refused, and which key the error names."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metallic_native.errors import Error, ModelFormatError, UnsupportedModelError
from metallic_native.loading.config import ExpertConfig, ModelConfig
from metallic_native.models import ARCHITECTURES
from reference import read_gguf

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"


def metadata(architecture: str = "llama", **changes: Any) -> dict[str, Any]:
    """A small valid model; underscored names stand for keys, ``__`` for the dot, and None removes."""
    values: dict[str, Any] = {
        "block_count": 3,
        "context_length": 2048,
        "embedding_length": 48,
        "feed_forward_length": 96,
        "attention.head_count": 6,
        "attention.head_count_kv": 2,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "vocab_size": 100,
    }
    if architecture == "qwen3moe":
        values |= {"expert_count": 8, "expert_used_count": 2}
    values |= {key.replace("__", "."): value for key, value in changes.items()}
    prefixed = {f"{architecture}.{key}": value for key, value in values.items() if value is not None}
    return {"general.architecture": architecture, "general.name": "small", **prefixed}


def config(architecture: str = "llama", **changes: Any) -> ModelConfig:
    return ModelConfig.from_metadata(metadata(architecture, **changes))


def test_what_is_read() -> None:
    read = config()
    assert read.architecture == "llama"
    assert read.name == "small"
    assert (read.block_count, read.context_length, read.embedding_length) == (3, 2048, 48)
    assert read.feed_forward_length == (96, 96, 96)
    assert read.head_count == (6, 6, 6)
    assert read.head_count_kv == (2, 2, 2)
    assert read.head_size == 8
    assert read.vocabulary_size == 100
    assert read.norm_epsilon == pytest.approx(1e-5)
    assert (read.rope.dims, read.rope.base, read.rope.scaling) == (8, 10_000.0, "none")
    assert read.rope.original_context == 2048
    assert read.experts is None
    assert read.sliding_window == 0
    assert hash(read) == hash(config())


def test_every_architecture_is_known_to_both_tables() -> None:
    for architecture in ARCHITECTURES:
        assert config(architecture).architecture == architecture
    with pytest.raises(UnsupportedModelError) as caught:
        config("rwkv7")
    assert caught.value.what == "rwkv7"
    assert set(caught.value.supported) == set(ARCHITECTURES)


def test_values_may_be_numpy_scalars_and_arrays() -> None:
    read = config(
        embedding_length=np.uint32(48),
        attention__layer_norm_rms_epsilon=np.float32(1e-6),
        feed_forward_length=np.array([96, 64, 32], np.int32),
        attention__head_count=[6, 6, 6],
        attention__head_count_kv=np.array([2, 3, 6], np.uint32),
        attention__key_length=8,
    )
    assert read.feed_forward_length == (96, 64, 32)
    assert read.head_count_kv == (2, 3, 6)
    assert type(read.embedding_length) is int


def test_defaults_that_depend_on_other_values() -> None:
    assert config(attention__head_count_kv=None).head_count_kv == (6, 6, 6)
    read = config(attention__key_length=20)
    assert (read.head_size, read.rope.dims) == (20, 20)
    tokenizer = {"tokenizer.ggml.tokens": ["a"] * 77}
    assert ModelConfig.from_metadata(metadata() | tokenizer).vocabulary_size == 77
    assert ModelConfig.from_metadata(metadata(vocab_size=None) | tokenizer).vocabulary_size == 77
    assert ModelConfig.from_metadata({k: v for k, v in metadata().items() if k != "general.name"}).name == ""


@pytest.mark.parametrize(
    "key",
    [
        "block_count",
        "context_length",
        "embedding_length",
        "feed_forward_length",
        "attention.head_count",
        "attention.layer_norm_rms_epsilon",
        "vocab_size",
    ],
)
@pytest.mark.parametrize(
    "value", [None, "12", -1, 0, True, 1 << 40, math.nan, math.inf, [], [1, 2], {"a": 1}, np.ones((3, 3))]
)
def test_required_keys_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        config(**{key.replace(".", "__"): value})
    assert caught.value.where == f"llama.{key}"
    assert ("missing" in str(caught.value)) == (value is None)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("attention.head_count_kv", 4),
        ("attention.head_count_kv", 0),
        ("attention.head_count_kv", [2, 2]),
        ("attention.head_count_kv", [2, 2, 4]),
        ("attention.head_count_kv", [2, 2, 0]),
        ("attention.head_count_kv", [2.0, 2.0, 2.0]),
        ("attention.head_count", 10),
        ("attention.key_length", 0),
        ("attention.key_length", 1 << 20),
        ("attention.sliding_window", -1),
        ("attention.sliding_window", 2.5),
        ("attention.causal", 1),
        ("attention.scale", math.nan),
        ("attention.layer_norm_rms_epsilon", 1.0),
        ("rope.dimension_count", 0),
        ("rope.dimension_count", 7),
        ("rope.dimension_count", 10),
        ("rope.freq_base", 0.0),
        ("rope.freq_base", 1.0),
        ("rope.freq_base", math.inf),
        ("rope.freq_base", "10000"),
        ("rope.freq_base_swa", -1.0),
        ("rope.scaling.factor", 0.0),
        ("rope.scaling.factor", -2.0),
        ("rope.scaling.factor", math.nan),
        ("rope.scaling.type", 2),
        ("rope.scaling.original_context_length", -1),
        ("rope.scaling.original_context_length", 1),
        ("rope.scaling.attn_factor", 0.0),
        ("rope.scaling.yarn_attn_factor", -1.0),
        ("rope.scaling.yarn_beta_fast", 0.0),
        ("rope.scaling.yarn_beta_slow", math.nan),
        ("rope.scaling.yarn_log_multiplier", -0.1),
        ("rope.scaling.yarn_ext_factor", 2.0),
        ("rope.dimension_sections", "x"),
        ("expert_count", -1),
    ],
)
def test_impossible_values_name_the_key(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        config(**{key.replace(".", "__"): value})
    assert caught.value.where == f"llama.{key}"


@pytest.mark.parametrize("value", [None, 5, ["llama"], b"llama", "lla\udcffma", ""])
def test_the_architecture_itself_is_checked(value: Any) -> None:
    with pytest.raises((ModelFormatError, UnsupportedModelError)) as caught:
        ModelConfig.from_metadata({**metadata(), "general.architecture": value})
    if isinstance(caught.value, ModelFormatError):
        assert caught.value.where == "general.architecture"


@pytest.mark.parametrize("tokens", [[], "abc", 5, np.zeros(0)])
def test_the_vocabulary_is_checked(tokens: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        ModelConfig.from_metadata({**metadata(), "tokenizer.ggml.tokens": tokens})
    assert caught.value.where == "tokenizer.ggml.tokens"


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "attention.value_length", 16),
        ("llama", "attention.causal", False),
        ("llama", "attention.clamp_kqv", 8.0),
        ("llama", "attention.max_alibi_bias", 8.0),
        ("llama", "attention.key_length_swa", 4),
        ("llama", "attention.shared_kv_layers", 2),
        ("llama", "attn_logit_softcapping", 30.0),
        ("llama", "final_logit_softcapping", 30.0),
        ("llama", "logit_scale", 0.25),
        ("llama", "residual_scale", 0.22),
        ("llama", "embedding_scale", 12.0),
        ("llama", "use_parallel_residual", True),
        ("llama", "expert_shared_count", 1),
        ("llama", "rope.scaling.type", "dynamic"),
        ("llama", "rope.freq_base_swa", 5000.0),
        ("llama", "rope.dimension_sections", [16, 24, 24, 0]),
        ("gemma3", "attn_logit_softcapping", 50.0),
        ("qwen2", "attention.sliding_window", 512),
        ("qwen2", "expert_count", 4),
        ("qwen3moe", "expert_gating_func", 9),
        ("qwen3moe", "leading_dense_block_count", 1),
        ("smollm3", "attention.sliding_window", 100),
    ],
)
def test_features_that_would_go_wrong_silently_are_refused(architecture: str, key: str, value: Any) -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        config(architecture, **{key.replace(".", "__"): value})
    assert caught.value.what == f"{architecture}.{key}"


@pytest.mark.parametrize(
    ("architecture", "key", "value"),
    [
        ("llama", "attention.value_length", 8),
        ("llama", "logit_scale", 1.0),
        ("llama", "residual_scale", 0.0),
        ("llama", "use_parallel_residual", False),
        ("llama", "rope.dimension_sections", [0, 0, 0, 0]),
        ("llama", "final_logit_softcapping", 0.0),
        ("llama", "expert_count", 0),
        ("qwen2", "attention.sliding_window", 2048),
        ("qwen3", "attention.sliding_window", 0),
    ],
)
def test_values_that_mean_unused_are_accepted(architecture: str, key: str, value: Any) -> None:
    assert config(architecture, **{key.replace(".", "__"): value}) == config(architecture)


def test_windows() -> None:
    gemma3 = config("gemma3", attention__sliding_window=512, block_count=8)
    assert [gemma3.window(i, 6) for i in range(8)] == [512, 512, 512, 512, 512, 0, 512, 512]
    gemma2 = config("gemma2")
    assert gemma2.sliding_window == 4096
    assert [gemma2.window(i, 2) for i in range(3)] == [4096, 0, 4096]
    phi3 = config("phi3", attention__sliding_window=100)
    assert [phi3.window(i) for i in range(3)] == [100, 100, 100]
    stated = config("gemma3", attention__sliding_window=9, attention__sliding_window_pattern=2)
    assert [stated.window(i, 6) for i in range(3)] == [9, 0, 9]
    flags = config(
        "gemma3", attention__sliding_window=9, attention__sliding_window_pattern=np.array([False, True, True])
    )
    assert [flags.window(i, 6) for i in range(3)] == [0, 9, 9]
    assert [config("gemma3").window(i, 6) for i in range(3)] == [0, 0, 0]


@pytest.mark.parametrize("pattern", [-1, "x", [True, False], [0.5, 1.0, 1.0], np.ones((3, 1), bool)])
def test_window_patterns_are_checked(pattern: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        config("gemma3", attention__sliding_window=9, attention__sliding_window_pattern=pattern)
    assert caught.value.where == "gemma3.attention.sliding_window_pattern"


def test_softcaps() -> None:
    gemma2 = config("gemma2")
    assert (gemma2.attention_softcap, gemma2.output_softcap) == (50.0, 30.0)
    gemma2 = config("gemma2", attn_logit_softcapping=20.0, final_logit_softcapping=0.0)
    assert (gemma2.attention_softcap, gemma2.output_softcap) == (20.0, 0.0)
    assert config("gemma3").output_softcap == 0.0
    assert config("gemma3", final_logit_softcapping=25.0).output_softcap == 25.0


def test_rope() -> None:
    yarn = config(
        rope__freq_base=1e6,
        rope__scaling__type="yarn",
        rope__scaling__factor=4.0,
        rope__scaling__original_context_length=512,
        rope__scaling__yarn_beta_fast=16.0,
        rope__scaling__yarn_ext_factor=-1.0,
    ).rope
    assert (yarn.base, yarn.scaling, yarn.factor, yarn.original_context) == (1e6, "yarn", 4.0, 512)
    assert (yarn.yarn_beta_fast, yarn.yarn_beta_slow, yarn.yarn_extrapolation) == (16.0, 1.0, 1.0)
    assert config(rope__scaling__factor=2).rope.scaling == "linear"
    assert config(rope__scale_linear=3.0).rope.factor == 3.0
    none = config(rope__scaling__type="none", rope__scaling__factor=2.0).rope
    assert (none.scaling, none.factor) == ("none", 1.0)
    assert config("gemma3", rope__freq_base_swa=5000.0).rope.local_base == 5000.0


def test_experts() -> None:
    assert config("qwen3moe").experts == ExpertConfig(count=8, used=2, feed_forward_length=48)
    assert config("qwen3moe", expert_feed_forward_length=24, feed_forward_length=None).experts == ExpertConfig(8, 2, 24)
    mixtral = config(expert_count=4, expert_used_count=2).experts
    assert mixtral == ExpertConfig(count=4, used=2, feed_forward_length=96)
    changed = config("qwen3moe", expert_gating_func=2, expert_weights_norm=False, expert_weights_scale=2.5).experts
    assert changed == ExpertConfig(8, 2, 48, gate="sigmoid", normalise=False, scale=2.5)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert_count", None),
        ("expert_count", 0),
        ("expert_used_count", None),
        ("expert_used_count", 0),
        ("expert_used_count", 9),
        ("expert_weights_norm", 1),
        ("expert_weights_scale", -1.0),
        ("expert_feed_forward_length", 0),
        ("feed_forward_length", 1),
    ],
)
def test_experts_are_checked(key: str, value: Any) -> None:
    with pytest.raises(ModelFormatError) as caught:
        config("qwen3moe", **{key: value})
    assert caught.value.where == f"qwen3moe.{key}"


@pytest.mark.parametrize("path", sorted(GOLDENS.glob("*.gguf")), ids=lambda path: path.stem)
def test_goldens_are_read(path: Path) -> None:
    values, tensors = read_gguf(path)
    read = ModelConfig.from_metadata(values)
    assert (read.vocabulary_size, read.embedding_length) == tensors["token_embd.weight"].shape
    assert len({name.split(".")[1] for name in tensors if name.startswith("blk.")}) == read.block_count


ANYTHING = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.text(max_size=4),
    st.lists(st.integers(-3, 300), max_size=4),
    st.lists(st.floats(), max_size=3),
    st.just(np.arange(3)),
    st.just({}),
)
KEYS = sorted(
    {key for path in GOLDENS.glob("*.gguf") for key in read_gguf(path)[0] if not key.startswith("tokenizer.")}
    | {
        f"llama.{key}"
        for key in ("attention.sliding_window_pattern", "rope.scaling.attn_factor", "expert_count", "logit_scale")
    }
)


@settings(max_examples=300, deadline=None)
@given(architecture=st.sampled_from(sorted(ARCHITECTURES)), key=st.sampled_from(KEYS), value=ANYTHING)
def test_no_value_causes_anything_but_our_errors(architecture: str, key: str, value: Any) -> None:
    own = key.replace(key.split(".")[0], architecture, 1) if not key.startswith("general.") else key
    try:
        read = ModelConfig.from_metadata({**metadata(architecture), own: value})
    except Error:
        return
    assert read.block_count >= 1
    assert all(heads % kv == 0 for heads, kv in zip(read.head_count, read.head_count_kv, strict=True))
