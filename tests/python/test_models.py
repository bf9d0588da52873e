"""Model functions against logits of transformers, and against an independent forward pass."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import metallic_native as mn
from metallic_native.errors import ModelFormatError, UnsupportedModelError
from metallic_native.loading.config import ModelConfig
from metallic_native.models import ARCHITECTURES, model_function
from numpy_builder import NumpyBuilder
from reference import Reference

GOLDENS = Path(__file__).resolve().parents[1] / "data" / "goldens"
NAMES = sorted(path.stem for path in GOLDENS.glob("*.gguf"))
TOLERANCE = 2e-5  # of the largest logit; transformers computes in float32
ENGINE_TOLERANCE = 1e-4  # as above; the engine too

# Metadata without which a golden's logits must change: its feature is really exercised.
FEATURES: dict[str, dict[str, Any]] = {
    "llama-linear": {"rope.scaling.factor": 1.0},
    "llama-yarn": {"rope.scaling.type": "linear"},
    "mistral-window": {"attention.sliding_window": 0},
    "mixtral": {"expert_used_count": 1},
    "qwen3moe": {"expert_used_count": 2},
    "gemma2": {"attn_logit_softcapping": 0.0},
    "gemma2-27b": {"attention.scale": 8**-0.5},
    "gemma3": {"rope.scaling.factor": 1.0},
    "phi3": {"attention.sliding_window": 0},
    "phi3-longrope": {"rope.scaling.attn_factor": 1.0},
}


def run(name: str, tokens: Any, long: bool = False, overrides: dict[str, Any] | None = None) -> NumpyBuilder:
    builder = NumpyBuilder(GOLDENS / f"{name}.gguf", tokens, long)
    architecture = builder.metadata["general.architecture"]
    metadata = {**builder.metadata, **{f"{architecture}.{key}": value for key, value in (overrides or {}).items()}}
    config = ModelConfig.from_metadata({key: value for key, value in metadata.items() if value is not None})
    with builder.scope("forward"):
        ARCHITECTURES[config.architecture](config, builder, builder.tensor)
    return builder


def error(found: Any, wanted: Any) -> float:
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())


def test_every_architecture_has_a_golden() -> None:
    architectures = {Reference(GOLDENS / f"{name}.gguf").arch for name in NAMES}
    assert architectures == set(ARCHITECTURES)


@pytest.mark.parametrize("name", NAMES)
def test_reference_gives_the_logits_of_transformers(name: str) -> None:
    golden = np.load(GOLDENS / f"{name}.npz")
    found = Reference(GOLDENS / f"{name}.gguf")(golden["tokens"])
    assert error(found[golden["positions"]], golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_model_function_gives_the_logits_of_transformers(name: str) -> None:
    golden = np.load(GOLDENS / f"{name}.npz")
    builder = run(name, golden["tokens"], long=True)
    assert error(builder.logits[golden["positions"]], golden["logits"]) < TOLERANCE
    assert int(golden["logits"].std(axis=-1).min() * 10) > 0, "logits without spread prove nothing"


@pytest.mark.parametrize("name", NAMES)
def test_every_tensor_of_the_file_is_used(name: str) -> None:
    builder = run(name, [1, 2, 3])
    assert set(builder.weights) - builder.used <= {"rope_factors_long.weight"}


@pytest.mark.parametrize("name", sorted(FEATURES))
def test_goldens_exercise_their_feature(name: str) -> None:
    golden = np.load(GOLDENS / f"{name}.npz")
    builder = run(name, golden["tokens"], long=True, overrides=FEATURES[name])
    assert error(builder.logits[golden["positions"]], golden["logits"]) > 100 * TOLERANCE


def test_longrope_within_the_original_context() -> None:
    golden = np.load(GOLDENS / "phi3-longrope.npz")
    tokens = golden["tokens"][: int(golden["prefix_length"])]
    short, long = run("phi3-longrope", tokens), run("phi3-longrope", tokens, long=True)
    assert error(short.logits[golden["prefix_positions"]], golden["prefix_logits"]) < TOLERANCE
    assert error(long.logits, short.logits) > 100 * TOLERANCE


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("gemma3", {"attention.sliding_window_pattern": 3}),
        ("gemma3", {"attention.sliding_window_pattern": [True, False, True, True, False, False, True]}),
        ("gemma3", {"rope.freq_base_swa": 5000.0, "attention.sliding_window": 5}),
        ("gemma3", {"attention.sliding_window": 0}),
        ("gemma3", {"context_length": 16}),
        ("gemma2", {"attention.sliding_window_pattern": 1}),
        ("gemma2", {"final_logit_softcapping": 0.0, "attention.sliding_window": 1}),
        ("llama", {"attention.sliding_window": 4, "attention.scale": 0.5}),
        ("llama", {"rope.dimension_count": 6}),
        ("llama-yarn", {"rope.scaling.yarn_beta_fast": 8.0, "rope.scaling.yarn_beta_slow": 2.0}),
        ("llama-yarn", {"rope.scaling.yarn_attn_factor": 1.5}),
        ("qwen2", {"rope.scaling.type": "none", "rope.scaling.factor": 4.0}),
        ("phi3-longrope", {"rope.scaling.attn_factor": None, "context_length": 96}),
        ("llama-yarn", {"rope.scaling.original_context_length": None}),
        ("mixtral", {"expert_used_count": 3}),
    ],
)
def test_model_functions_follow_the_metadata(name: str, overrides: dict[str, Any]) -> None:
    tokens = np.load(GOLDENS / f"{name}.npz")["tokens"]
    wanted = Reference(GOLDENS / f"{name}.gguf", overrides=overrides)(tokens)
    assert error(run(name, tokens, long=True, overrides=overrides).logits, wanted) < TOLERANCE


@pytest.mark.parametrize("batch_tokens", [512, 7])
@pytest.mark.parametrize("name", NAMES)
def test_engine_gives_the_logits_of_transformers(name: str, batch_tokens: int) -> None:
    golden = np.load(GOLDENS / f"{name}.npz")
    with mn.load(GOLDENS / f"{name}.gguf", device="cpu", kv_type="f32", batch_tokens=batch_tokens) as model:
        found = model.logits(golden["tokens"].tolist(), all_positions=True)
        assert error(found[golden["positions"]], golden["logits"]) < ENGINE_TOLERANCE
        last = model.logits(golden["tokens"].tolist())
        np.testing.assert_allclose(last[0], found[-1], atol=1e-4)
        if "prefix_length" in golden:
            found = model.logits(golden["tokens"][: int(golden["prefix_length"])].tolist(), all_positions=True)
            assert error(found[golden["prefix_positions"]], golden["prefix_logits"]) < ENGINE_TOLERANCE


def test_scopes_tell_the_hierarchy() -> None:
    seen = run("qwen3moe", [5, 6]).seen
    assert seen[0] == ("forward/embedding", "embedding")
    assert ("forward/block.1/attention/qkv", "linear") in seen
    assert ("forward/block.1/attention/qk_norm", "rms_norm") in seen
    assert ("forward/block.0/attention", "attention") in seen
    assert ("forward/block.0/feed_forward/router", "route") in seen
    assert seen[-1] == ("forward/output", "output")


def test_cache_groups_follow_the_windows() -> None:
    assert run("gemma3", [1, 2]).groups == [(1, 16, 16), (1, 16, 0)]
    assert run("gemma2", [1, 2]).groups == [(2, 16, 19), (2, 16, 0)]
    assert run("mistral-window", [1, 2]).groups == [(2, 10, 17)]
    assert run("llama", [1, 2]).groups == [(2, 10, 0)]


def test_fused_projections_are_accepted_in_every_architecture(monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp's converter can fuse queries, keys and values of any architecture, with their biases."""
    golden = np.load(GOLDENS / "qwen2.npz")
    original = NumpyBuilder.__init__

    def fuse(self: NumpyBuilder, *arguments: Any) -> None:
        original(self, *arguments)
        for i in range(self.metadata["qwen2.block_count"]):
            for kind, axis in (("weight", 1), ("bias", 2)):
                parts = [self.weights.pop(f"blk.{i}.attn_{part}.{kind}") for part in "qkv"]
                values = np.concatenate([part.values for part in parts], axis=axis)
                self.weights[f"blk.{i}.attn_qkv.{kind}"] = type(parts[0])(f"blk.{i}.attn_qkv.{kind}", values)

    monkeypatch.setattr(NumpyBuilder, "__init__", fuse)
    builder = run("qwen2", golden["tokens"])
    assert "blk.0.attn_qkv.bias" in builder.used
    assert error(builder.logits[golden["positions"]], golden["logits"]) < TOLERANCE


@pytest.mark.parametrize("tensor", ["blk.1.ffn_norm.weight", "blk.0.attn_k.weight", "token_embd.weight"])
def test_a_missing_tensor_is_named(tensor: str) -> None:
    builder = NumpyBuilder(GOLDENS / "llama.gguf", [1])
    del builder.weights[tensor]
    with pytest.raises(ModelFormatError) as caught:
        model_function("llama")(ModelConfig.from_metadata(builder.metadata), builder, builder.tensor)
    assert caught.value.where == tensor


def test_a_tensor_of_another_shape_is_named() -> None:
    with pytest.raises(ModelFormatError) as caught:
        run("llama", [1], overrides={"feed_forward_length": 71})
    assert caught.value.where == "blk.0.ffn_gate.weight"


@pytest.mark.parametrize("absent", ["long", "short"])
def test_longrope_needs_both_tensors(absent: str) -> None:
    builder = NumpyBuilder(GOLDENS / "phi3-longrope.gguf", [1])
    del builder.weights[f"rope_factors_{absent}.weight"]
    with pytest.raises(ModelFormatError) as caught:
        model_function("phi3")(ModelConfig.from_metadata(builder.metadata), builder, builder.tensor)
    assert caught.value.where == f"rope_factors_{absent}.weight"


def test_an_unknown_architecture_lists_the_known() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        model_function("mamba")
    assert caught.value.what == "mamba"
    assert set(caught.value.supported) == set(ARCHITECTURES)


def test_goldens_are_small() -> None:
    assert sum(path.stat().st_size for path in GOLDENS.iterdir()) < 4_000_000
