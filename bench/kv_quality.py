"""What the types of keys and values cost in quality: the divergence of next-token distributions from those with F16.

For each model the same tokens are run with each ``kv_type``. KL is the Kullback-Leibler divergence of the distribution
of the next token from the one with F16 keys and values, in nats, mean and 99th percentile over positions; ``top-1`` is
how often the most probable token is the same. The demo model reads what it tells itself (from its openings, by a seeded
sampler, at F16); random models, whose attention is flat and whose logits are close together, read random tokens.

    python bench/kv_quality.py                                  # the tables of docs/kv_types.md
    python bench/kv_quality.py model.gguf --text prose.txt --kv-types q8_0 q4_0
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

import metallic_native as mn

KV_TYPES = ("f32", "bf16", "q8_0", "k=q8_0,v=q4_0", "k=f16,v=q4_0", "k=q4_0,v=f16", "q4_0")
OPENINGS = (
    "Once upon a time",
    "One morning,",
    "There was once",
    "In a small village",
    "Long ago,",
    "The old lighthouse keeper",
)


@dataclass(frozen=True)
class Quality:
    """Of one ``kv_type`` against F16. ``bytes_per_token`` counts keys and values of all layers."""

    kv_type: str
    bytes_per_token: int
    positions: int
    kl_mean: float
    kl_p99: float
    top1: float


def log_softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Log probabilities of each row."""
    shifted = logits.astype(np.float64) - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def told_tokens(path: str, count: int, openings: Sequence[str] = OPENINGS) -> list[list[int]]:
    """For each opening, ``count`` tokens that the model at ``path`` goes on with, the opening included."""
    with mn.load(path, kv_type="f16") as model:
        count = min(count, model.context_length)
        told = []
        for seed, opening in enumerate(openings):
            ids = model.tokenizer.encode(opening)
            sampling = mn.Sampling(temperature=0.8, seed=seed)
            told.append(
                ids + model.generate(ids, max_tokens=count - len(ids), sampling=sampling, ignore_eos=True).token_ids
            )
        return told


def random_tokens(path: str, count: int, sequences: int = 2) -> list[list[int]]:
    """Token ids below the model's vocabulary, from fixed seeds."""
    with mn.load(path) as model:
        size = model.vocabulary_size
    return [np.random.default_rng(seed).integers(0, size, count).tolist() for seed in range(sequences)]


def measure(path: str, sequences: Sequence[Sequence[int]], kv_types: Sequence[str] = KV_TYPES) -> list[Quality]:
    """The quality of each type on these token ids."""

    def rows(kv_type: str) -> tuple[list[npt.NDArray[np.float32]], int]:
        with mn.load(path, kv_type=kv_type) as model:
            return [model.logits(list(ids), all_positions=True) for ids in sequences], model.native.kv_bytes_per_token

    expected = [log_softmax(logits) for logits in rows("f16")[0]]
    results = []
    for kv_type in kv_types:
        logits, size = rows(kv_type)
        divergences, agreements = [], []
        for ours, theirs in zip(logits, expected, strict=True):
            found = log_softmax(ours)
            divergences.append((np.exp(theirs) * (theirs - found)).sum(axis=-1))
            agreements.append(found.argmax(axis=-1) == theirs.argmax(axis=-1))
        kl = np.maximum(np.concatenate(divergences), 0)
        results.append(
            Quality(
                kv_type,
                size,
                len(kl),
                float(kl.mean()),
                float(np.quantile(kl, 0.99)),
                float(np.concatenate(agreements).mean()),
            )
        )
    return results


def table(results: Sequence[Quality]) -> str:
    """A Markdown table."""
    lines = ["| `kv_type` | bytes per token | KL mean | KL 99 % | top-1 |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| `{r.kv_type}` | {r.bytes_per_token} | {r.kl_mean:.1e} | {r.kl_p99:.1e} | {100 * r.top1:.2f} % |"
        for r in results
    ]
    return "\n".join(lines)


def random_models(folder: Path) -> dict[str, str]:
    """Paths of two models with random weights: heads of 64, and the tests' tiny one with heads of 32."""
    import synthetic

    sys.path.insert(0, str(Path(__file__).parent.parent / "tests" / "python"))
    import tiny_model

    tiny_model.write_tiny_llama(folder / "tiny.gguf", context=2048)
    return {
        "random, heads of 64": str(synthetic.ensure_model(folder, "tiny", "f16")),
        "random, heads of 32": str(folder / "tiny.gguf"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", help="a model file; without it the demo model and random ones")
    parser.add_argument("--text", type=Path, help="what the model reads; without it, what it tells itself")
    parser.add_argument("--tokens", type=int, default=700, help="of each sequence")
    parser.add_argument("--kv-types", nargs="+", default=list(KV_TYPES))
    parser.add_argument("--json", type=Path, help="write the numbers there")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        models = {args.model: args.model} if args.model else {"demo": "demo", **random_models(Path(folder))}
        results = {}
        for name, path in models.items():
            if args.text:
                ids = mn.load_tokenizer(path).encode(args.text.read_text(encoding="utf-8"))
                sequences = [ids[i : i + args.tokens] for i in range(0, len(ids), args.tokens)]
            elif name.startswith("random"):
                sequences = random_tokens(path, args.tokens)
            else:
                sequences = told_tokens(path, args.tokens)
            results[name] = measure(path, sequences, args.kv_types)
            print(f"{name}, {sum(map(len, sequences))} tokens\n\n{table(results[name])}\n", flush=True)
    if args.json:
        args.json.write_text(json.dumps({name: [asdict(r) for r in rs] for name, rs in results.items()}, indent=1))


if __name__ == "__main__":
    main()
