"""A plain NumPy forward pass straight from a GGUF file, to compare the package with.

It is written from the architectures' papers and from transformers' modelling code, shares nothing with the package,
keeps no cache, and computes in float64 unless told otherwise.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Array = Any

NEOX = {"gemma2", "gemma3", "phi3", "qwen2", "qwen3", "qwen3moe"}
GEMMA = {"gemma2", "gemma3"}


def read_gguf(path: Path | str, dtype: Any = np.float64) -> tuple[dict[str, Any], dict[str, Array]]:
    """Metadata as Python values and tensors, dequantised, as arrays of ``dtype`` with the GGUF shape reversed."""
    reader = gguf.GGUFReader(str(path))
    metadata = {key: field.contents() for key, field in reader.fields.items() if not key.startswith("GGUF.")}
    tensors = {}
    for tensor in reader.tensors:
        values = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        tensors[tensor.name] = values.reshape([int(n) for n in reversed(tensor.shape)]).astype(dtype)
    return metadata, tensors


def softmax(x: Array) -> Array:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def silu(x: Array) -> Array:
    return x / (1 + np.exp(-x))


def gelu_tanh(x: Array) -> Array:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


class Reference:
    """A model of one of the supported architectures; call it with token ids to get their logits."""

    def __init__(self, path: Path | str, dtype: Any = np.float64, overrides: dict[str, Any] | None = None) -> None:
        self.metadata, self.tensors = read_gguf(path, dtype)
        self.arch = self.metadata["general.architecture"]
        for key, value in (overrides or {}).items():
            self.metadata[f"{self.arch}.{key}"] = value
        self.dtype = dtype
        self.blocks = self.key("block_count")
        self.width = self.key("embedding_length")
        self.heads = self.key("attention.head_count")
        self.kv_heads = self.key("attention.head_count_kv", self.heads)
        self.head_size = self.key("attention.key_length", self.width // self.heads)
        self.epsilon = self.key("attention.layer_norm_rms_epsilon")
        self.dims = self.key("rope.dimension_count", self.head_size)

    def key(self, name: str, default: Any = None) -> Any:
        value = self.metadata.get(f"{self.arch}.{name}")
        value = default if value is None else value
        assert value is not None, name
        return value

    def __call__(self, tokens: Any, context: int | None = None) -> Array:
        """Logits ``[tokens, vocabulary]``; ``context`` is the length that the sequence will grow to."""
        tokens = np.asarray(tokens)
        embeddings = self.tensors["token_embd.weight"]
        x = embeddings[tokens] * (math.sqrt(self.width) if self.arch in GEMMA else 1.0)
        for i in range(self.blocks):
            y = self.attention(i, self.norm(x, f"blk.{i}.attn_norm"), context or len(tokens))
            x = x + (self.norm(y, f"blk.{i}.post_attention_norm") if self.arch in GEMMA else y)
            y = self.feed_forward(i, self.norm(x, f"blk.{i}.ffn_norm"))
            x = x + (self.norm(y, f"blk.{i}.post_ffw_norm") if self.arch in GEMMA else y)
        logits = self.norm(x, "output_norm") @ self.tensors.get("output.weight", embeddings).T
        cap = self.key("final_logit_softcapping", 30.0 if self.arch == "gemma2" else 0.0)
        return cap * np.tanh(logits / cap) if cap else logits

    def norm(self, x: Array, name: str) -> Array:
        scale = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + self.epsilon)
        return x * scale * self.tensors[name + ".weight"]

    def linear(self, x: Array, name: str) -> Array:
        y = x @ self.tensors[name + ".weight"].T
        bias = self.tensors.get(name + ".bias")
        return y if bias is None else y + bias

    # ---- attention --------------------------------------------------------------------------------------------------

    def attention(self, i: int, x: Array, context: int) -> Array:
        n, size = len(x), self.head_size
        if f"blk.{i}.attn_qkv.weight" in self.tensors:
            kv = self.kv_heads * size
            q, k, v = np.split(
                self.linear(x, f"blk.{i}.attn_qkv"), [self.heads * size, self.heads * size + kv], axis=-1
            )
        else:
            q, k, v = (self.linear(x, f"blk.{i}.attn_{name}") for name in "qkv")
        q, k, v = q.reshape(n, -1, size), k.reshape(n, -1, size), v.reshape(n, -1, size)
        if f"blk.{i}.attn_q_norm.weight" in self.tensors:
            q, k = self.norm(q, f"blk.{i}.attn_q_norm"), self.norm(k, f"blk.{i}.attn_k_norm")
        window = self.window(i)
        if not (self.arch == "smollm3" and (i + 1) % 4 == 0):
            frequencies, magnitude = self.rotation(self.arch == "gemma3" and window > 0, context)
            q, k = self.rotate(q, frequencies, magnitude), self.rotate(k, frequencies, magnitude)
        group = self.heads // self.kv_heads
        out = np.empty_like(q)
        position = np.arange(n)
        distance = position[:, None] - position[None, :]
        hidden = (distance < 0) | ((distance >= window) if window else False)
        cap = self.key("attn_logit_softcapping", 50.0 if self.arch == "gemma2" else 0.0)
        for head in range(self.heads):
            scores = q[:, head] @ k[:, head // group].T * self.scale()
            if cap:
                scores = cap * np.tanh(scores / cap)
            out[:, head] = softmax(np.where(hidden, -np.inf, scores)) @ v[:, head // group]
        return self.linear(out.reshape(n, -1), f"blk.{i}.attn_output")

    def scale(self) -> float:
        if stated := self.key("attention.scale", 0.0):
            return stated
        big = (self.arch, self.blocks) in {("gemma2", 46), ("gemma3", 62)}
        return 1 / math.sqrt(self.width // self.heads if big else self.head_size)

    def window(self, i: int) -> int:
        """Tokens that a query of block ``i`` sees, itself included; 0 is all."""
        window = self.key("attention.sliding_window", 4096 if self.arch == "gemma2" else 0)
        pattern = self.key("attention.sliding_window_pattern", {"gemma2": 2, "gemma3": 6}.get(self.arch, 0))
        if isinstance(pattern, list):
            return window if pattern[i] else 0
        return 0 if pattern and i % pattern == pattern - 1 else window

    # ---- RoPE -------------------------------------------------------------------------------------------------------

    def rotate(self, x: Array, frequencies: Array, magnitude: float) -> Array:
        angle = np.arange(len(x))[:, None, None] * frequencies
        cos, sin = np.cos(angle) * magnitude, np.sin(angle) * magnitude
        half = self.dims // 2
        first, second = (slice(0, half), slice(half, self.dims))
        if self.arch not in NEOX:
            first, second = (slice(0, self.dims, 2), slice(1, self.dims, 2))
        y = x.copy()
        y[..., first] = x[..., first] * cos - x[..., second] * sin
        y[..., second] = x[..., first] * sin + x[..., second] * cos
        return y

    def rotation(self, local: bool, context: int) -> tuple[Array, float]:
        exponents = np.arange(0, self.dims, 2) / self.dims
        if local:
            return 1 / self.key("rope.freq_base_swa", 10000.0) ** exponents, 1.0
        frequencies = 1 / float(self.key("rope.freq_base", 10000.0)) ** exponents
        original = self.key("rope.scaling.original_context_length", self.key("context_length"))
        if "rope_factors_long.weight" in self.tensors:
            which = "long" if context > original else "short"
            stretch = max(self.key("context_length") / original, 1.0)
            magnitude = math.sqrt(1 + math.log(stretch) / math.log(original))
            magnitude = self.key("rope.scaling.attn_factor", magnitude)
            return frequencies / self.tensors[f"rope_factors_{which}.weight"], magnitude
        if "rope_freqs.weight" in self.tensors:
            frequencies = frequencies / self.tensors["rope_freqs.weight"]
        kind, factor = self.key("rope.scaling.type", "linear"), float(self.key("rope.scaling.factor", 1.0))
        if kind == "yarn":
            return self.yarn(frequencies, factor, original)
        return frequencies / (factor if kind == "linear" else 1.0), 1.0

    def yarn(self, frequencies: Array, factor: float, original: int) -> tuple[Array, float]:
        """YaRN by wavelengths: how often a pair turns within the original context decides how much it is stretched."""
        base = float(self.key("rope.freq_base", 10000.0))

        def pair(turns: float) -> float:
            return self.dims / 2 * math.log(original / (2 * math.pi * turns)) / math.log(base)

        low = max(math.floor(pair(self.key("rope.scaling.yarn_beta_fast", 32.0))), 0)
        high = min(math.ceil(pair(self.key("rope.scaling.yarn_beta_slow", 1.0))), self.dims - 1)
        stretched = np.clip((np.arange(self.dims // 2) - low) / (high - low or 0.001), 0, 1)
        magnitude = self.key("rope.scaling.yarn_attn_factor", 0.1 * math.log(factor) + 1)
        return frequencies * (1 - stretched) + frequencies / factor * stretched, magnitude

    # ---- feed-forward -----------------------------------------------------------------------------------------------

    def feed_forward(self, i: int, x: Array) -> Array:
        if f"blk.{i}.ffn_gate_inp.weight" in self.tensors:
            return self.experts(i, x)
        if f"blk.{i}.ffn_gate.weight" in self.tensors:
            gate, up = self.linear(x, f"blk.{i}.ffn_gate"), self.linear(x, f"blk.{i}.ffn_up")
        else:
            gate, up = np.split(self.linear(x, f"blk.{i}.ffn_up"), 2, axis=-1)
        activation = gelu_tanh if self.arch in GEMMA else silu
        return self.linear(activation(gate) * up, f"blk.{i}.ffn_down")

    def experts(self, i: int, x: Array) -> Array:
        gate, up, down = (self.tensors[f"blk.{i}.ffn_{name}_exps.weight"] for name in ("gate", "up", "down"))
        probabilities = softmax(self.linear(x, f"blk.{i}.ffn_gate_inp"))
        out = np.zeros_like(x)
        for token, row in enumerate(x):
            chosen = np.argsort(-probabilities[token], kind="stable")[: self.key("expert_used_count")]
            total = probabilities[token][chosen].sum()
            for expert in chosen:
                y = down[expert] @ (silu(gate[expert] @ row) * (up[expert] @ row))
                out[token] += probabilities[token][expert] / total * y
        return out
