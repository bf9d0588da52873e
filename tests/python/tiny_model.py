"""Small random models made on the spot, for tests that the goldens do not fit."""

from __future__ import annotations

from pathlib import Path

import gguf
import numpy as np

WIDTH, HEADS, KV_HEADS, HEAD_SIZE, INNER, VOCABULARY = 64, 2, 1, 32, 96, 300


def write_tiny_llama(
    path: Path,
    *,
    context: int,
    blocks: int = 2,
    heads: int = HEADS,
    head_size: int = HEAD_SIZE,
    seed: int = 0,
    dtype: str = "F32",
) -> None:
    """A Llama model of ``blocks`` blocks, matrices of ``dtype`` (as gguf-py writes it) and a byte-level vocabulary."""
    rng = np.random.default_rng(seed)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_context_length(context)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(blocks)
    writer.add_feed_forward_length(INNER)
    writer.add_head_count(heads)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_rope_dimension_count(head_size)
    writer.add_rope_freq_base(1e6)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    characters = [chr(byte) for byte in visible] + [chr(256 + i) for i in range(256 - len(visible))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([*characters, "th", *(f"<|{i}|>" for i in range(VOCABULARY - 257))])
    writer.add_token_types([gguf.TokenType.NORMAL] * 257 + [gguf.TokenType.CONTROL] * (VOCABULARY - 257))
    writer.add_token_merges(["t h"])
    writer.add_eos_token_id(VOCABULARY - 1)
    writer.add_add_bos_token(False)

    def matrix(name: str, rows: int, cols: int) -> None:
        values = (rng.normal(0, 1.5, (rows, cols)) / np.sqrt(cols)).astype(np.float32)
        kind = gguf.GGMLQuantizationType[dtype]
        writer.add_tensor(name, gguf.quants.quantize(values, kind), raw_dtype=kind)

    matrix("token_embd.weight", VOCABULARY, WIDTH)
    writer.add_tensor("output_norm.weight", np.ones(WIDTH, np.float32))
    for i in range(blocks):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{i}.{norm}.weight", np.ones(WIDTH, np.float32))
        matrix(f"blk.{i}.attn_q.weight", heads * head_size, WIDTH)
        matrix(f"blk.{i}.attn_k.weight", KV_HEADS * head_size, WIDTH)
        matrix(f"blk.{i}.attn_v.weight", KV_HEADS * head_size, WIDTH)
        matrix(f"blk.{i}.attn_output.weight", WIDTH, heads * head_size)
        matrix(f"blk.{i}.ffn_gate.weight", INNER, WIDTH)
        matrix(f"blk.{i}.ffn_up.weight", INNER, WIDTH)
        matrix(f"blk.{i}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
