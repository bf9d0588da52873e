"""Writes the demo model as GGUF, from ``demo.npz`` and ``tokenizer.json``, and reads it back to check it.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. Matrices are quantised by the ``gguf`` package;
norms stay float32; the output shares the token embedding, so there is no ``output.weight``.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as QType
from gguf import LlamaFileType as FileType
from numpy.typing import NDArray
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import chat
import corpus

logger = logging.getLogger("demo_model")

TYPES = {
    "q8_0": (QType.Q8_0, FileType.MOSTLY_Q8_0),
    "q5_1": (QType.Q5_1, FileType.MOSTLY_Q5_1),
    "q5_0": (QType.Q5_0, FileType.MOSTLY_Q5_0),
    "q4_1": (QType.Q4_1, FileType.MOSTLY_Q4_1),
    "q4_0": (QType.Q4_0, FileType.MOSTLY_Q4_0),
    "f16": (QType.F16, FileType.MOSTLY_F16),
}
Arrays = dict[str, NDArray[Any]]


def load(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Configuration and arrays of ``demo.npz``; weights as float32."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    config: dict[str, Any] = json.loads(str(arrays.pop("config")))
    return config, {n: a.astype(np.float32) if n != "held_out" else a for n, a in arrays.items()}


def add_metadata(writer: gguf.GGUFWriter, config: dict[str, Any], parameters: int, file_type: FileType) -> None:
    """General keys and the sizes of the ``llama`` architecture."""
    writer.add_name("Metallic Demo Storyteller")
    writer.add_basename("metallic-demo")
    writer.add_description("A tiny storyteller, trained on text from a story grammar, for demonstrations and tests.")
    writer.add_license("Apache-2.0")
    writer.add_size_label(f"{parameters / 1e6:.1f}M")
    writer.add_languages(["en"])
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config["vocab_size"])
    writer.add_context_length(config["context"])
    writer.add_embedding_length(config["dim"])
    writer.add_block_count(config["layers"])
    writer.add_feed_forward_length(config["ff"])
    writer.add_head_count(config["heads"])
    writer.add_head_count_kv(config["kv_heads"])
    writer.add_key_length(config["head_dim"])
    writer.add_value_length(config["head_dim"])
    writer.add_rope_dimension_count(config["head_dim"])
    writer.add_rope_freq_base(config["rope_base"])
    writer.add_layer_norm_rms_eps(config["norm_eps"])


def add_tokenizer(writer: gguf.GGUFWriter, tokenizer_path: Path) -> None:
    """The byte-level BPE, its special tokens and the chat template."""
    model = json.loads(tokenizer_path.read_text(encoding="utf-8"))["model"]
    ids: dict[str, int] = model["vocab"]
    tokens = sorted(ids, key=lambda token: ids[token])
    special = (chat.END, chat.IM_START, chat.IM_END)
    kinds = [gguf.TokenType.CONTROL if token in special else gguf.TokenType.NORMAL for token in tokens]
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges(merges)
    writer.add_bos_token_id(ids[chat.END])
    writer.add_eos_token_id(ids[chat.END])
    writer.add_eot_token_id(ids[chat.IM_END])
    writer.add_pad_token_id(ids[chat.END])
    writer.add_add_bos_token(True)
    writer.add_chat_template(chat.CHAT_TEMPLATE)


def export(weights: Path, tokenizer_path: Path, out: Path, kind: str = "q8_0") -> None:
    """Writes ``out``; raises KeyError for a ``kind`` that is not in ``TYPES``."""
    config, arrays = load(weights)
    arrays.pop("held_out")
    qtype, file_type = TYPES[kind]
    writer = gguf.GGUFWriter(out, "llama")
    add_metadata(writer, config, sum(a.size for a in arrays.values()), file_type)
    add_tokenizer(writer, tokenizer_path)
    for name, array in arrays.items():
        if array.ndim == 2:
            writer.add_tensor(name, gguf.quants.quantize(array, qtype), raw_dtype=qtype)
        else:
            writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def read(path: Path) -> tuple[dict[str, Any], Arrays]:
    """Metadata and dequantised tensors of a GGUF file."""
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    arrays = {t.name: np.array(gguf.quants.dequantize(t.data, t.tensor_type), np.float32) for t in reader.tensors}
    return fields, arrays


def tokenizer_from(fields: dict[str, Any]) -> Tokenizer:
    """A tokenizer built from the metadata alone."""
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    kinds = fields["tokenizer.ggml.token_type"]
    tokenizer.add_special_tokens([t for t, kind in zip(tokens, kinds, strict=True) if kind == gguf.TokenType.CONTROL])
    return tokenizer


def check(path: Path, weights: Path, tokenizer_path: Path) -> None:
    """Raises ValueError when the file's tensors or its tokenizer differ from what was exported."""
    fields, arrays = read(path)
    _, wanted = load(weights)
    wanted.pop("held_out")
    if set(arrays) != set(wanted):
        raise ValueError(f"tensor names differ: {sorted(set(arrays) ^ set(wanted))}")
    for name, array in wanted.items():
        if arrays[name].shape != array.shape:
            raise ValueError(f"{name}: shape {arrays[name].shape}, not {array.shape}")
        error = float(np.abs(arrays[name] - array).max() / max(1e-9, float(np.abs(array).max())))
        if error > 0.15:
            raise ValueError(f"{name}: relative error {error}")
    original, rebuilt = Tokenizer.from_file(str(tokenizer_path)), tokenizer_from(fields)
    texts = [
        *(text.replace(corpus.CUT, "") for text in corpus.chunk_of_documents(3, 5, 300)),
        "naïve café ☕ 你好 🦊\t\r\n  x = 3.14;",
        "".join(map(chr, range(1, 512))),
    ]
    for text in texts:
        ids = original.encode(text, add_special_tokens=False).ids
        if rebuilt.encode(text, add_special_tokens=False).ids != ids:
            raise ValueError(f"tokenizer differs on {text[:60]!r}")
        if original.decode(ids, skip_special_tokens=False) != text:
            raise ValueError(f"text does not survive encoding: {text[:60]!r}")


@dataclass(frozen=True)
class Measured:
    """``losses`` [rows] in nats per token of each held-out row, ``best`` [rows, tokens] the likeliest next tokens."""

    losses: NDArray[np.float64]
    best: NDArray[np.int64]


def measure(weights: Path, arrays: Arrays) -> Measured:
    """Runs the held-out rows through a model with the given weights; needs torch."""
    import torch

    from model import Config, Llama

    config, original = load(weights)
    model = Llama(Config(**config)).eval()
    model.load_state_dict({name: torch.from_numpy(array) for name, array in arrays.items()})
    losses, best = [], []
    with torch.no_grad():
        for row in original["held_out"].astype(np.int64):
            logits = model(torch.from_numpy(row[None, :-1]))[0]
            losses.append(torch.nn.functional.cross_entropy(logits, torch.from_numpy(row[1:])).item())
            best.append(logits.argmax(-1).numpy())
    return Measured(np.array(losses), np.stack(best))


def compare(weights: Path, tokenizer_path: Path, out: Path) -> None:
    """Logs size, held-out loss and agreement with the unquantised weights for every type."""
    arrays = load(weights)[1]
    arrays.pop("held_out")
    plain = measure(weights, arrays)
    logger.info("unquantised: held-out loss %.5f, %d rows", plain.losses.mean(), len(plain.losses))
    for kind in TYPES:
        trial = out.with_suffix(f".{kind}.gguf")
        export(weights, tokenizer_path, trial, kind)
        got = measure(weights, read(trial)[1])
        size = trial.stat().st_size / 1e6
        trial.unlink()
        change = got.losses - plain.losses
        error = change.std(ddof=1) / len(change) ** 0.5
        same = (got.best == plain.best).mean() * 100
        line = "%s: %.2f MB, held-out loss %.5f, change %+.5f (standard error %.5f), same likeliest token %.2f %%"
        logger.info(line, kind, size, got.losses.mean(), change.mean(), error, same)


def main() -> int:
    """Exports, checks and, on request, measures."""
    logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument(
        "--from", dest="source", type=Path, required=True, help="folder with demo.npz and tokenizer.json"
    )
    parser.add_argument("--out", type=Path, required=True, help="the GGUF file")
    parser.add_argument("--type", choices=sorted(TYPES), default="q8_0")
    parser.add_argument(
        "--measure", action="store_true", help="also compare every type with the unquantised weights (needs torch)"
    )
    args = parser.parse_args()
    args.out.parent.mkdir(parents=True, exist_ok=True)
    weights, tokenizer_path = args.source / "demo.npz", args.source / "tokenizer.json"
    if args.measure:
        compare(weights, tokenizer_path, args.out)
    export(weights, tokenizer_path, args.out, args.type)
    check(args.out, weights, tokenizer_path)
    logger.info("wrote %s, %.2f MB", args.out, args.out.stat().st_size / 1e6)
    return 0


if __name__ == "__main__":
    sys.exit(main())
