"""The ways to keep keys or values in four bits that were compared before one was chosen: what each costs in quality.

A forward pass in NumPy rounds the keys alone, or the values alone, in one of the ways; everything else is as with F16
keys and values, which is what the distributions are compared with (KL in nats: mean and 99th percentile). The demo
model reads what it tells itself; once more with outliers: in every layer two pairs of channels of each key head are
made 6 to 12 times as large and those of the queries as much smaller, which changes nothing in exact arithmetic. A
random model reads random tokens.

    python bench/kv_rounding.py     # the table of docs/kv_types.md; some minutes
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "python"))

import kv_quality
import metallic_native as mn
from metallic_native.loading import ModelConfig
from metallic_native.models import model_function
from numpy_builder import NumpyBuilder, Weight

Array = npt.NDArray[Any]
Rounding = Callable[[Array], Array]
BLOCK = 32
# The steps of IQ4_NL (llama.cpp, ggml-common.h: kvalues_iq4nl).
IQ4_NL = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)


# ---- ways to round [tokens, heads, head size] ------------------------------------------------------------------------


def f16(x: Array) -> Array:
    """As F16 keeps it."""
    return x.astype(np.float16).astype(np.float32)


def in_blocks(x: Array, length: int = BLOCK) -> Array:
    """The last dimension in blocks, padded with zeros: [..., blocks, length]."""
    padded = np.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, -x.shape[-1] % length)])
    return padded.reshape(*x.shape[:-1], -1, length)


def joined(blocks: Array, length: int) -> Array:
    """The first ``length`` elements of all blocks, one after the other."""
    return blocks.reshape(*blocks.shape[:-2], -1)[..., :length]


def over(x: Array, scale: Array) -> Array:
    """``x / scale``, 0 where that is 0."""
    return np.divide(x, scale, out=np.zeros_like(x), where=scale != 0)


def outermost(blocks: Array) -> Array:
    """Of each block the element of the greatest magnitude."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(-1, keepdims=True), -1)


def q4_0(x: Array, refit: bool = False) -> Array:
    """Q4_0: quants of -8 to 7, of which the outermost element is -8. ``refit``: the scale that is best for them."""
    blocks = in_blocks(x)
    scale = outermost(blocks) / -8
    quants = np.clip(np.rint(over(blocks, scale)), -8, 7)
    if refit:
        scale = over((quants * blocks).sum(-1, keepdims=True), (quants * quants).sum(-1, keepdims=True))
    return joined(quants * f16(scale), x.shape[-1])


def iq4_nl(x: Array) -> Array:
    """IQ4_NL: unevenly spaced steps."""
    blocks = in_blocks(x)
    scale = outermost(blocks) / IQ4_NL[0]
    steps = np.searchsorted((IQ4_NL[1:] + IQ4_NL[:-1]) / 2, over(blocks, scale))
    return joined(IQ4_NL[steps] * f16(scale), x.shape[-1])


def hadamard(length: int) -> Array:
    """The normalised Hadamard matrix, which is its own inverse."""
    matrix = np.ones((1, 1), np.float32)
    while len(matrix) < length:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix / np.float32(np.sqrt(length))


def rotated(length: int, rounding: Rounding) -> Rounding:
    """Rounds what a Hadamard matrix makes of each so many elements, and turns it back."""
    matrix = hadamard(length)

    def around(x: Array) -> Array:
        turned = in_blocks(x, length) @ matrix
        back = in_blocks(rounding(joined(turned, turned.shape[-2] * length)), length) @ matrix
        return joined(back, x.shape[-1])

    return around


def by_channel(x: Array) -> Array:
    """Blocks of one channel and 32 tokens; the last tokens, which make no block, stay."""
    whole = len(x) // BLOCK * BLOCK
    rounded = np.moveaxis(q4_0(np.moveaxis(x[:whole], 0, -1)), -1, 0)
    return np.concatenate([rounded, x[whole:]])


WAYS: dict[str, Rounding] = {
    "Q4_0": q4_0,
    "Q4_0, rotated in blocks of 32 (chosen)": rotated(32, q4_0),
    "Q4_0, rotated in blocks of 64": rotated(64, q4_0),
    "IQ4_NL": iq4_nl,
    "a scale per channel and 32 tokens": by_channel,
    "rotated, scale refitted by least squares": rotated(32, lambda x: q4_0(x, refit=True)),
}


# ---- models and what they read ---------------------------------------------------------------------------------------


class RoundingBuilder(NumpyBuilder):
    """A forward pass whose attention sees rounded keys and values."""

    keys: Rounding = staticmethod(f16)
    values: Rounding = staticmethod(f16)

    def attention(self, q: Array, k: Array, v: Array, group: tuple[int, int, int], *args: Any, **options: Any) -> Array:
        heads, size, _ = group
        k, v = (
            rounding(x.astype(np.float32).reshape(len(x), heads, size)).reshape(x.shape)
            for rounding, x in ((self.keys, k), (self.values, v))
        )
        return super().attention(q, k, v, group, *args, **options)


@dataclass(frozen=True)
class Subject:
    name: str
    path: str
    sequences: Sequence[Sequence[int]]
    outliers: bool = False

    def logits(self, tokens: Sequence[int], keys: Rounding, values: Rounding) -> Array:
        """Of all positions, [tokens, vocabulary]."""
        builder = RoundingBuilder(self.path, np.asarray(tokens))
        builder.keys, builder.values = keys, values
        config = ModelConfig.from_metadata(builder.metadata)
        if self.outliers:
            grow_outliers(builder.weights, config)
        model_function(config.architecture)(config, builder, builder.tensor)
        return np.asarray(builder.logits, np.float32)


def grow_outliers(weights: dict[str, Weight], config: ModelConfig, seed: int = 0) -> None:
    """Makes channels of keys larger that rotate together, and those of the queries that meet them smaller."""
    rng = np.random.default_rng(seed)
    size = config.head_size
    for block in range(config.block_count):
        k, q = (weights[f"blk.{block}.attn_{which}.weight"].values for which in "kq")
        kv_heads = config.head_count_kv[block]
        queries = config.head_count[block] // kv_heads
        for head in range(kv_heads):
            for pair in rng.choice(size // 2, 2, replace=False):
                factor = rng.uniform(6, 12)
                for channel in (2 * pair, 2 * pair + 1):
                    k[:, head * size + channel] *= factor
                    for query in range(head * queries, (head + 1) * queries):
                        q[:, query * size + channel] /= factor


def divergence(subject: Subject, keys: Rounding, values: Rounding, expected: Sequence[Array]) -> str:
    """Mean and 99th percentile of KL over all positions."""
    found = []
    for tokens, log_p in zip(subject.sequences, expected, strict=True):
        log_q = kv_quality.log_softmax(subject.logits(tokens, keys, values))
        found.append((np.exp(log_p) * (log_p - log_q)).sum(axis=-1))
    kl = np.maximum(np.concatenate(found), 0)
    return f"{kl.mean():.1e} ({np.quantile(kl, 0.99):.1e})"


def subjects(folder: Path, tokens: int) -> list[Subject]:
    """The demo model, the demo model with outliers, a random model with heads of 64."""
    import synthetic

    told = kv_quality.told_tokens("demo", tokens, kv_quality.OPENINGS[:3])
    demo = str(Path(mn.__file__).parent / "data" / "demo.gguf")
    random = str(synthetic.ensure_model(folder, "tiny", "f16"))
    return [
        Subject("demo", demo, told),
        Subject("demo with outliers", demo, told, outliers=True),
        Subject("random", random, kv_quality.random_tokens(random, tokens)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=512, help="of each sequence")
    args = parser.parse_args()
    columns, rows = [], {name: f"| {name} |" for name in WAYS}
    with tempfile.TemporaryDirectory() as folder:
        for subject in subjects(Path(folder), args.tokens):
            expected = [kv_quality.log_softmax(subject.logits(ids, f16, f16)) for ids in subject.sequences]
            for side in ("keys", "values"):
                columns.append(f"{subject.name}, {side}")
                for name, way in WAYS.items():
                    if side == "values" and way is by_channel:
                        rows[name] += " |"
                        continue
                    keys, values = (way, f16) if side == "keys" else (f16, way)
                    rows[name] += f" {divergence(subject, keys, values, expected)} |"
    print("| | " + " | ".join(columns) + " |")
    print("| --- |" + " ---: |" * len(columns))
    print("\n".join(rows.values()))


if __name__ == "__main__":
    main()
