"""Makes the golden models of the parity tests: tiny random models, their GGUF files, and the logits transformers gives.

    python tools/make_goldens.py [--output FOLDER] [NAME ...]

Needs torch, transformers 5 and gguf. Each model gets ``NAME.gguf`` (F32) and ``NAME.npz`` with ``tokens``,
``positions`` and ``logits[len(positions), vocabulary]``. Tensors and metadata are laid out as llama.cpp's converter
lays them out (``conversion/llama.py``, ``qwen.py``, ``gemma.py``, ``phi.py`` and ``base.py`` of ggml-org/llama.cpp):
queries and keys of Llama are reordered so that neighbours form RoPE pairs, Gemma's norms are stored as ``1 + w``,
Llama 3's frequency bands become ``rope_freqs.weight``. Tensor names come from gguf's own table.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
import transformers

SEED = 20240607
TOKENS = 70
SPECIAL = ["<|bos|>", "<|eos|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "i n", "Ġ t", "Ġ a", "th e", "Ġ the", "in g", "e r", "o n", "r e", "Ġ s", "a t", "e n", "o r"]
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Writer = gguf.GGUFWriter
Config = Any


@dataclass(frozen=True)
class Golden:
    """One golden model: a transformers configuration, and the GGUF architecture that it becomes."""

    architecture: str
    config: Callable[[], Config]
    prefix: int = 0
    """Length of a prefix of the tokens to also save logits for, when a longer sequence computes it differently."""
    options: dict[str, Any] = field(default_factory=dict)


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte (``bytes_to_unicode`` of OpenAI's encoder.py)."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = iter(range(256, 512))
    return [chr(byte) if byte in shown else chr(next(hidden)) for byte in range(256)]


def vocabulary() -> list[str]:
    """Bytes, then the results of the merges in order, then special tokens: every text has tokens."""
    return byte_alphabet() + [merge.replace(" ", "") for merge in MERGES] + SPECIAL


VOCABULARY = len(vocabulary())
COMMON: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 40,
    "intermediate_size": 72,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
    "bos_token_id": VOCABULARY - 4,
    "eos_token_id": VOCABULARY - 3,
    "pad_token_id": None,
}


def of(kind: str, **changes: Any) -> Callable[[], Config]:
    """A constructor of transformers' configuration class ``kind`` with the common sizes and ``changes``."""
    return lambda: getattr(transformers, kind)(**{**COMMON, **changes})


def rope(kind: str = "default", theta: float = 10000.0, **parameters: Any) -> dict[str, Any]:
    return {"rope_type": kind, "rope_theta": theta, **parameters}


def factors(count: int, first: float, last: float) -> list[float]:
    return [round(float(f), 4) for f in np.linspace(first, last, count)]


GEMMA = {"head_dim": 16, "query_pre_attn_scalar": 16, "rms_norm_eps": 1e-6}
LONGROPE = {
    "short_factor": factors(5, 1.0, 1.6),
    "long_factor": factors(5, 1.2, 9.0),
    "original_max_position_embeddings": 48,
}

GOLDENS: dict[str, Golden] = {
    "llama": Golden("llama", of("LlamaConfig", rope_parameters=rope())),
    "llama-biases": Golden(
        "llama",
        of(
            "LlamaConfig",
            num_hidden_layers=2,
            hidden_size=42,
            num_attention_heads=3,
            num_key_value_heads=1,
            head_dim=18,
            attention_bias=True,
            mlp_bias=True,
            rope_parameters=rope(),
        ),
    ),
    "llama-llama3-rope": Golden(
        "llama",
        of(
            "LlamaConfig",
            num_hidden_layers=2,
            tie_word_embeddings=True,
            max_position_embeddings=1024,
            rope_parameters=rope(
                "llama3",
                theta=500.0,
                factor=8.0,
                low_freq_factor=1.0,
                high_freq_factor=4.0,
                original_max_position_embeddings=64,
            ),
        ),
    ),
    "llama-linear": Golden(
        "llama",
        of(
            "LlamaConfig",
            num_hidden_layers=2,
            tie_word_embeddings=True,
            rope_parameters=rope("linear", factor=2.5),
        ),
    ),
    "llama-yarn": Golden(
        "llama",
        of(
            "LlamaConfig",
            num_hidden_layers=2,
            tie_word_embeddings=True,
            head_dim=24,
            num_key_value_heads=1,
            rope_parameters=rope("yarn", factor=4.0, original_max_position_embeddings=64),
        ),
    ),
    "mistral": Golden(
        "llama",
        of("MistralConfig", num_hidden_layers=2, head_dim=14, sliding_window=None, rope_parameters=rope(theta=1e6)),
    ),
    "mistral-window": Golden(
        "llama",
        of("MistralConfig", num_hidden_layers=2, intermediate_size=44, sliding_window=17, rope_parameters=rope()),
    ),
    "mixtral": Golden(
        "llama",
        of(
            "MixtralConfig",
            num_hidden_layers=2,
            intermediate_size=24,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters=rope(),
        ),
    ),
    "qwen2": Golden("qwen2", of("Qwen2Config", tie_word_embeddings=True, rope_parameters=rope(theta=1e6))),
    "qwen3": Golden(
        "qwen3",
        of("Qwen3Config", num_hidden_layers=2, intermediate_size=52, head_dim=16, rope_parameters=rope(theta=1e6)),
    ),
    "qwen3moe": Golden(
        "qwen3moe",
        of(
            "Qwen3MoeConfig",
            num_hidden_layers=2,
            head_dim=16,
            num_experts=6,
            num_experts_per_tok=3,
            moe_intermediate_size=16,
            norm_topk_prob=True,
            rope_parameters=rope(theta=1e6),
        ),
    ),
    "gemma2": Golden(
        "gemma2",
        of(
            "Gemma2Config",
            **GEMMA,
            intermediate_size=56,
            sliding_window=19,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=8.0,
            rope_parameters=rope(),
        ),
    ),
    "gemma2-27b": Golden(
        "gemma2",
        of(
            "Gemma2Config",
            hidden_size=12,
            intermediate_size=10,
            num_hidden_layers=46,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=8,
            query_pre_attn_scalar=6,
            sliding_window=32,
            rope_parameters=rope(),
        ),
    ),
    "gemma3": Golden(
        "gemma3",
        of(
            "Gemma3TextConfig",
            **GEMMA,
            hidden_size=30,
            intermediate_size=36,
            num_hidden_layers=7,
            num_attention_heads=3,
            num_key_value_heads=1,
            sliding_window=16,
            rope_parameters={
                "full_attention": rope("linear", theta=20000.0, factor=8.0),
                "sliding_attention": rope(theta=10000.0),
            },
        ),
    ),
    "phi3": Golden(
        "phi3", of("Phi3Config", num_hidden_layers=2, intermediate_size=52, sliding_window=23, rope_parameters=rope())
    ),
    "phi3-longrope": Golden(
        "phi3",
        of(
            "Phi3Config",
            num_hidden_layers=2,
            original_max_position_embeddings=48,
            num_attention_heads=2,
            num_key_value_heads=1,
            rope_parameters=rope("longrope", partial_rotary_factor=0.5, **LONGROPE),
        ),
        prefix=40,
    ),
    "smollm3": Golden(
        "smollm3",
        of("SmolLM3Config", num_hidden_layers=4, intermediate_size=44, rope_parameters=rope(theta=2e6), pad_token_id=0),
    ),
}


def build_model(golden: Golden, seed: int) -> Any:
    """A model whose weights are drawn so that activations, attention and logits have realistic spread."""
    config = golden.config()
    config._attn_implementation = "eager"
    kind = transformers.AutoModelForCausalLM
    torch.manual_seed(seed)
    model = kind.from_config(config, attn_implementation="eager").float().eval()
    random = torch.Generator().manual_seed(seed)
    gemma = golden.architecture.startswith("gemma")
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=random)
            if "norm" in name:
                parameter.copy_(0.2 * noise + (norm_offset(name) if gemma else 1))
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            elif "embed_tokens" in name:
                parameter.copy_(0.5 * noise)
            else:
                parameter.copy_(noise * gain(name) / math.sqrt(parameter.shape[-1]))
    return model


def norm_offset(name: str) -> float:
    """Mean of a Gemma norm's ``w``: what a deep model adds per block must be small, or float32 errors grow."""
    return -0.6 if "post_" in name else 0.0


def gain(name: str) -> float:
    if any(part in name for part in ("q_proj", "k_proj", "qkv_proj", "mlp.gate.weight", "lm_head")):
        return 1.7
    return 1.0


def permute(weights: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from (half, pair) order to (pair, half) order: RoPE pairs become neighbours."""
    rows = len(weights) // heads // 2
    return weights.reshape(heads, 2, rows, *weights.shape[1:]).swapaxes(1, 2).reshape(weights.shape)


def converted(golden: Golden, model: Any) -> Iterator[tuple[str, np.ndarray]]:
    """GGUF names and values of all of the model's tensors."""
    config = model.config
    names = gguf.get_tensor_name_map(architecture_id(golden), config.num_hidden_layers)
    tied = config.tie_word_embeddings
    for name, parameter in model.state_dict().items():
        if tied and name == "lm_head.weight":
            continue
        values = parameter.detach().numpy().astype(np.float32)
        if golden.architecture.startswith("gemma") and name.endswith("norm.weight"):
            values = values + 1
        if golden.architecture in ("llama", "smollm3"):
            if ".q_proj." in name:
                values = permute(values, config.num_attention_heads)
            if ".k_proj." in name:
                values = permute(values, config.num_key_value_heads)
        if name.endswith("experts.gate_up_proj"):
            gate, up = np.split(values, 2, axis=1)
            stem = name.removesuffix("gate_up_proj")
            yield gguf_name(names, f"{stem}gate_proj.weight"), gate
            yield gguf_name(names, f"{stem}up_proj.weight"), up
            continue
        yield gguf_name(names, name if name.endswith((".weight", ".bias")) else f"{name}.weight"), values
    yield from rope_tensors(config)


def gguf_name(names: gguf.TensorNameMap, name: str) -> str:
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise KeyError(f"gguf knows no name for {name}")
    return found


def architecture_id(golden: Golden) -> gguf.MODEL_ARCH:
    return next(arch for arch, name in gguf.MODEL_ARCH_NAMES.items() if name == golden.architecture)


def rope_tensors(config: Config) -> Iterator[tuple[str, np.ndarray]]:
    parameters = full_rope(config)
    if parameters["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_factors(config, parameters)
    if parameters["rope_type"] == "longrope":
        yield "rope_factors_long.weight", np.array(parameters["long_factor"], np.float32)
        yield "rope_factors_short.weight", np.array(parameters["short_factor"], np.float32)


def full_rope(config: Config) -> dict[str, Any]:
    return config.rope_parameters.get("full_attention", config.rope_parameters)


def llama3_factors(config: Config, parameters: dict[str, Any]) -> np.ndarray:
    """What each frequency is divided by: 1 for short wavelengths, the factor for long ones, a blend between."""
    dims, original = config.head_dim, parameters["original_max_position_embeddings"]
    low, high = parameters["low_freq_factor"], parameters["high_freq_factor"]
    wavelengths = 2 * math.pi * parameters["rope_theta"] ** (np.arange(0, dims, 2) / dims)
    smooth = np.clip((original / wavelengths - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / parameters["factor"] + smooth)).astype(np.float32)


def write_metadata(writer: Writer, golden: Golden, config: Config) -> None:
    writer.add_block_count(config.num_hidden_layers)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    head_size = getattr(config, "head_dim", None)
    if head_size is not None:
        writer.add_key_length(head_size)
        writer.add_value_length(head_size)
    if golden.architecture in ("llama", "smollm3"):
        writer.add_vocab_size(config.vocab_size)
        writer.add_rope_dimension_count(head_size or config.hidden_size // config.num_attention_heads)
    if golden.architecture == "gemma2":
        writer.add_attn_logit_softcapping(config.attn_logit_softcapping)
        writer.add_final_logit_softcapping(config.final_logit_softcapping)
    if getattr(config, "sliding_window", None) or golden.architecture == "phi3":
        writer.add_sliding_window(config.sliding_window or 0)
    if hasattr(config, "num_local_experts"):
        writer.add_expert_count(config.num_local_experts)
        writer.add_expert_used_count(config.num_experts_per_tok)
    if hasattr(config, "moe_intermediate_size"):
        writer.add_expert_feed_forward_length(config.moe_intermediate_size)
    write_rope(writer, golden, config)


def write_rope(writer: Writer, golden: Golden, config: Config) -> None:
    parameters = full_rope(config)
    kind = parameters["rope_type"]
    if golden.architecture != "gemma2":
        writer.add_rope_freq_base(parameters["rope_theta"])
    if golden.architecture == "phi3":
        share = parameters.get("partial_rotary_factor", 1.0)
        writer.add_rope_dimension_count(int(share * config.hidden_size) // config.num_attention_heads)
        writer.add_rope_scaling_orig_ctx_len(config.original_max_position_embeddings)
    if kind == "longrope":
        original = parameters["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        writer.add_rope_scaling_attn_factors(math.sqrt(1 + math.log(stretch) / math.log(original)))
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(gguf.RopeScalingType(kind))
        writer.add_rope_scaling_factor(parameters["factor"])
    if kind == "yarn":
        writer.add_rope_scaling_orig_ctx_len(parameters["original_max_position_embeddings"])


def write_tokenizer(writer: Writer) -> None:
    """A complete byte-level BPE tokenizer: every byte is a token, so any text can be encoded."""
    tokens = vocabulary()
    ordinary = len(tokens) - len(SPECIAL)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * ordinary + [gguf.TokenType.CONTROL] * len(SPECIAL))
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(tokens.index("<|bos|>"))
    writer.add_eos_token_id(tokens.index("<|eos|>"))
    writer.add_eot_token_id(tokens.index("<|im_end|>"))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def write_gguf(path: Path, name: str, golden: Golden, model: Any) -> None:
    writer = Writer(path, golden.architecture)
    writer.add_name(f"golden {name}")
    write_metadata(writer, golden, model.config)
    write_tokenizer(writer)
    for tensor, values in converted(golden, model):
        writer.add_tensor(tensor, np.ascontiguousarray(values))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def logits(model: Any, tokens: np.ndarray) -> np.ndarray:
    with torch.no_grad():
        return model(torch.from_numpy(tokens)[None], use_cache=False).logits[0].float().numpy()


def make(name: str, folder: Path) -> None:
    """Writes ``NAME.gguf`` and ``NAME.npz`` to ``folder``."""
    golden = GOLDENS[name]
    seed = SEED + sorted(GOLDENS).index(name)
    model = build_model(golden, seed)
    write_gguf(folder / f"{name}.gguf", name, golden, model)
    tokens = np.random.default_rng(seed).integers(0, VOCABULARY, TOKENS)
    positions = np.unique([*range(4), *range(4, TOKENS, 5), *range(TOKENS - 4, TOKENS)])
    saved = {"tokens": tokens, "positions": positions, "logits": logits(model, tokens)[positions]}
    if golden.prefix:
        before = positions[positions < golden.prefix]
        saved["prefix_positions"] = before
        saved["prefix_logits"] = logits(model, tokens[: golden.prefix])[before]
        saved["prefix_length"] = np.array(golden.prefix)
    np.savez_compressed(folder / f"{name}.npz", **saved)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    here = Path(__file__).resolve().parent.parent
    parser.add_argument("--output", type=Path, default=here / "tests" / "data" / "goldens")
    parser.add_argument("names", nargs="*", choices=[*GOLDENS, []], metavar="NAME", help=", ".join(GOLDENS))
    arguments = parser.parse_args()
    arguments.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    for name in arguments.names or GOLDENS:
        make(name, arguments.output)


if __name__ == "__main__":
    main()
