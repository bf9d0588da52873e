"""Models of real shapes with synthetic weights: the sizes, types and vocabulary of the real ones, random contents.

Speed and memory do not depend on what the weights are; agreement between engines can be measured on them too. The
tensor types of ``q4_k_m`` follow llama.cpp's mixture: Q6_K for half of the value and down projections and for the
embedding, Q5_0 and Q8_0 where a row is no multiple of 256.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Type

FILE_TYPES = ("q4_k_m", "q8_0", "q4_0", "f16")


@dataclass(frozen=True)
class Shape:
    """The dimensions of a published model."""

    architecture: str
    width: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    rope_base: float
    rope_scaled: bool


SHAPES = {
    "tiny": Shape("llama", 256, 512, 4, 4, 2, 64, 2048, 131072, 1e6, False),
    "0.5b": Shape("qwen2", 896, 4864, 24, 14, 2, 64, 151936, 32768, 1e6, False),
    "1b": Shape("llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 5e5, True),
    "3b": Shape("llama", 3072, 8192, 28, 24, 8, 128, 128256, 131072, 5e5, True),
}


def _half(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float16).reshape(-1, 1).view(np.uint8)


def random_blocks(dtype: Type, rows: int, cols: int, rng: np.random.Generator) -> np.ndarray:
    """Bytes [rows, row bytes] of a weight whose elements have mean 0 and a deviation of about 1 / sqrt(cols)."""
    sigma = 1.0 / math.sqrt(cols)
    if dtype == Type.F32:
        return rng.normal(0, sigma, (rows, cols)).astype(np.float32)
    if dtype == Type.F16:
        return rng.normal(0, sigma, (rows, cols)).astype(np.float16)
    block, size = gguf.GGML_QUANT_SIZES[dtype]
    count = rows * cols // block
    data = np.frombuffer(rng.bytes(count * size), np.uint8).reshape(count, size).copy()
    jitter = rng.uniform(0.8, 1.2, count)
    if dtype == Type.Q8_0:
        data[:, :2] = _half(sigma / 73.9 * jitter)
    elif dtype == Type.Q4_0:
        data[:, :2] = _half(sigma / 4.6 * jitter)
    elif dtype == Type.Q5_0:
        data[:, :2] = _half(sigma / 9.2 * jitter)
    elif dtype == Type.Q4_K:
        # Scale and minimum of a sub-block are the same six bits (40 to 43), and dmin = 7.5 d, so x = d sc (q - 7.5).
        d = sigma / 4.6 / 40 * jitter
        data[:, :2], data[:, 2:4] = _half(d), _half(7.5 * d)
        data[:, 4:8] = data[:, 8:12] = 0xA8 | rng.integers(0, 4, (count, 4), dtype=np.uint8)
        data[:, 12:16] = 0x99
    elif dtype == Type.Q6_K:
        data[:, 192:208] = rng.integers(40, 80, (count, 16), dtype=np.uint8)
        data[:, 208:] = _half(sigma / 18.5 / 60 * jitter)
    else:
        raise ValueError(f"no synthetic {dtype.name}")
    return data.reshape(rows, cols // block * size)


def _fallback(dtype: Type, cols: int) -> Type:
    if cols % gguf.GGML_QUANT_SIZES[dtype][0] == 0:
        return dtype
    return {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0}[dtype]


def _weight_type(file_type: str, role: str, block: int, blocks: int, cols: int) -> Type:
    if file_type != "q4_k_m":
        plain = {"q8_0": Type.Q8_0, "q4_0": Type.Q4_0, "f16": Type.F16}[file_type]
        # llama.cpp keeps the output (here the tied embedding) of Q4_0 files in Q6_K.
        return _fallback(Type.Q6_K, cols) if file_type == "q4_0" and role == "embedding" else plain
    more_bits = block < blocks // 8 or block >= 7 * blocks // 8 or (block - blocks // 8) % 3 == 2
    wants_six = role == "embedding" or (role in ("v", "down") and more_bits)
    return _fallback(Type.Q6_K if wants_six else Type.Q4_K, cols)


def _write_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """A byte-level vocabulary: the 256 bytes, then pairs and triples of lower-case letters, then numbered words."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {byte: chr(byte) for byte in visible}
    table.update({byte: chr(256 + i) for i, byte in enumerate(b for b in range(256) if b not in table)})
    tokens = [table[byte] for byte in range(256)]
    merges: list[str] = []
    letters = "abcdefghijklmnopqrstuvwxyz"
    queue = list(letters)
    known = set(tokens)
    position = 0
    while len(tokens) < size - 1:
        left = queue[position]
        position += 1
        for right in letters:
            joined = left + right
            if joined in known or len(tokens) >= size - 1:
                continue
            known.add(joined)
            tokens.append(joined)
            merges.append(f"{left} {right}")
            queue.append(joined)
    tokens.append("<|end|>")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (size - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges(merges)
    writer.add_eos_token_id(size - 1)
    writer.add_bos_token_id(size - 1)
    writer.add_add_bos_token(False)


def write_model(path: Path, shape: Shape, file_type: str, seed: int = 0, *, hollow: bool = False) -> None:
    """Write the model, tensor by tensor. A ``hollow`` one is all zeros, in a file that takes no room on the disk."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, shape.architecture)
    writer.add_name(f"synthetic {path.stem}")
    writer.add_context_length(shape.context)
    writer.add_embedding_length(shape.width)
    writer.add_block_count(shape.blocks)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_size)
    writer.add_value_length(shape.head_size)
    writer.add_rope_dimension_count(shape.head_size)
    writer.add_rope_freq_base(shape.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(shape.vocabulary)
    _write_vocabulary(writer, shape.vocabulary)

    def matrix(name: str, role: str, rows: int, cols: int, block: int = 0) -> None:
        dtype = _weight_type(file_type, role, block, shape.blocks, cols)
        raw_dtype = None if dtype in (Type.F16, Type.F32) else dtype
        if hollow:
            elements, size = gguf.GGML_QUANT_SIZES[dtype]
            width = cols // elements * size if raw_dtype else cols
            kind = np.dtype(np.uint8) if raw_dtype else np.dtype(np.float16 if dtype == Type.F16 else np.float32)
            writer.add_tensor_info(name, (rows, width), kind, rows * width * kind.itemsize, raw_dtype)
        else:
            writer.add_tensor(name, random_blocks(dtype, rows, cols, rng), raw_dtype=raw_dtype)

    def vector(name: str, length: int, value: float) -> None:
        if hollow:
            writer.add_tensor_info(name, (length,), np.dtype(np.float32), 4 * length)
        else:
            writer.add_tensor(name, (value + rng.normal(0, 0.05, length)).astype(np.float32))

    matrix("token_embd.weight", "embedding", shape.vocabulary, shape.width)
    vector("output_norm.weight", shape.width, 1.0)
    if shape.rope_scaled and not hollow:
        writer.add_tensor("rope_freqs.weight", _llama3_factors(shape))
    q_rows, kv_rows = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    for i in range(shape.blocks):
        prefix = f"blk.{i}."
        vector(prefix + "attn_norm.weight", shape.width, 1.0)
        vector(prefix + "ffn_norm.weight", shape.width, 1.0)
        for role, rows in (("q", q_rows), ("k", kv_rows), ("v", kv_rows)):
            matrix(f"{prefix}attn_{role}.weight", role, rows, shape.width, i)
            if shape.architecture == "qwen2":
                vector(f"{prefix}attn_{role}.bias", rows, 0.0)
        matrix(prefix + "attn_output.weight", "o", shape.width, q_rows, i)
        matrix(prefix + "ffn_gate.weight", "gate", shape.inner, shape.width, i)
        matrix(prefix + "ffn_up.weight", "up", shape.inner, shape.width, i)
        matrix(prefix + "ffn_down.weight", "down", shape.width, shape.inner, i)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    if hollow:
        writer.write_ti_data_to_file()
        sizes = [tensor.nbytes for tensors in writer.tensors for tensor in tensors.values()]
    else:
        writer.write_tensors_to_file()
    writer.close()
    if hollow:
        align = writer.data_alignment
        with open(path, "r+b") as file:
            file.truncate(sum(-(-size // align) * align for size in (path.stat().st_size, *sizes)))


def _llama3_factors(shape: Shape) -> np.ndarray:
    """Llama 3's frequency factors (factor 32, low 1, high 4, original context 8192)."""
    frequencies = shape.rope_base ** (-np.arange(0, shape.head_size, 2) / shape.head_size)
    wavelengths = 2 * np.pi / frequencies
    smooth = np.clip((8192 / wavelengths - 1) / 3, 0, 1)
    return (1 / ((1 - smooth) / 32 + smooth)).astype(np.float32)


def ensure_model(folder: Path, shape: str, file_type: str) -> Path:
    """The path of the model, written if it is not there yet."""
    path = folder / f"{shape}-{file_type}.gguf"
    if not path.exists():
        folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        write_model(partial, SHAPES[shape], file_type)
        partial.rename(path)
    return path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shapes", nargs="+", choices=SHAPES, default=["1b"])
    parser.add_argument("--types", nargs="+", choices=FILE_TYPES, default=list(FILE_TYPES))
    args = parser.parse_args()
    for shape in args.shapes:
        for file_type in args.types:
            print(ensure_model(args.folder, shape, file_type))


if __name__ == "__main__":
    main()
