"""A compact Llama in PyTorch whose parameters carry the names and layouts of GGUF's ``llama`` architecture.

RMSNorm, rotary embedding over adjacent pairs (as GGUF's llama wants it, so nothing is permuted at export),
grouped-query attention, SwiGLU, and an output that shares the token embedding. Papers: LLaMA (arXiv:2302.13971), RoPE
(arXiv:2104.09864), GQA (arXiv:2305.13245), GLU variants (arXiv:2002.05202).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class Config:
    """Sizes of the model; every linear layer reads a multiple of 256 values, as 256-wide quantisation blocks need."""

    vocab_size: int = 3072
    dim: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    ff: int = 768
    context: int = 2048
    rope_base: float = 10000.0
    norm_eps: float = 1e-5


class RMSNorm(nn.Module):
    """``x / rms(x) * weight`` over the last dimension, computed in float32."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """``x``: [..., dim]; returns the same shape and dtype."""
        y = x.float()
        y = y * torch.rsqrt(y.square().mean(-1, keepdim=True) + self.eps)
        return (y * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotates adjacent pairs of ``x`` [batch, heads, tokens, head_dim] by angles [tokens, head_dim / 2]."""
    even, odd = x.float().reshape(*x.shape[:-1], -1, 2).unbind(-1)
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2).to(x.dtype)


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each behind a norm and added to its input."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.attn_norm = RMSNorm(c.dim, c.norm_eps)
        self.attn_q = nn.Linear(c.dim, c.heads * c.head_dim, bias=False)
        self.attn_k = nn.Linear(c.dim, c.kv_heads * c.head_dim, bias=False)
        self.attn_v = nn.Linear(c.dim, c.kv_heads * c.head_dim, bias=False)
        self.attn_output = nn.Linear(c.heads * c.head_dim, c.dim, bias=False)
        self.ffn_norm = RMSNorm(c.dim, c.norm_eps)
        self.ffn_gate = nn.Linear(c.dim, c.ff, bias=False)
        self.ffn_up = nn.Linear(c.dim, c.ff, bias=False)
        self.ffn_down = nn.Linear(c.ff, c.dim, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """``x``: [batch, tokens, dim]; causal over tokens."""
        x = x + self._attention(self.attn_norm(x), cos, sin)
        y = self.ffn_norm(x)
        out: Tensor = x + self.ffn_down(functional.silu(self.ffn_gate(y)) * self.ffn_up(y))
        return out

    def _attention(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        c = self.c
        batch, count, _ = x.shape
        q = rotate(self.attn_q(x).view(batch, count, c.heads, c.head_dim).transpose(1, 2), cos, sin)
        k = rotate(self.attn_k(x).view(batch, count, c.kv_heads, c.head_dim).transpose(1, 2), cos, sin)
        v = self.attn_v(x).view(batch, count, c.kv_heads, c.head_dim).transpose(1, 2)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.attn_output(y.transpose(1, 2).flatten(2))
        return out


class Llama(nn.Module):
    """Token ids [batch, tokens] to logits [batch, tokens, vocabulary]."""

    cos: Tensor
    sin: Tensor

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.token_embd = nn.Embedding(c.vocab_size, c.dim)
        self.blk = nn.ModuleList(Block(c) for _ in range(c.layers))
        self.output_norm = RMSNorm(c.dim, c.norm_eps)
        rate = c.rope_base ** (-torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
        angle = torch.outer(torch.arange(c.context, dtype=torch.float64), rate)
        self.register_buffer("cos", angle.cos().float(), persistent=False)
        self.register_buffer("sin", angle.sin().float(), persistent=False)
        for name, parameter in self.named_parameters():
            if parameter.dim() == 2:
                residual = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(parameter, std=0.02 / (2 * c.layers) ** 0.5 if residual else 0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        """``tokens``: [batch, tokens] integers below ``vocab_size``, at most ``context`` of them."""
        count = tokens.shape[1]
        x = self.token_embd(tokens)
        for block in self.blk:
            x = block(x, self.cos[:count], self.sin[:count])
        return functional.linear(self.output_norm(x), self.token_embd.weight)


@torch.no_grad()
def generate(
    model: Llama, prompts: list[list[int]], stops: set[int], limit: int = 280, temperature: float = 0.0, seed: int = 0
) -> list[list[int]]:
    """Continues every prompt until a stop token (not included) or ``limit`` new tokens; greedy at temperature 0."""
    device = model.token_embd.weight.device
    lengths = torch.tensor([len(p) for p in prompts], device=device)
    total = min(model.c.context, int(lengths.max()) + limit)
    tokens = torch.zeros(len(prompts), total, dtype=torch.long, device=device)
    for row, prompt in enumerate(prompts):
        tokens[row, : len(prompt)] = torch.tensor(prompt, device=device)
    source = torch.Generator(device=device).manual_seed(seed)
    rows = torch.arange(len(prompts), device=device)
    stop = torch.tensor(sorted(stops), device=device)
    done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
    while not bool(done.all()) and int(lengths.max()) < total:
        logits = model(tokens[:, : int(lengths.max())])[rows, lengths - 1].float()
        if temperature > 0:
            choice = torch.multinomial((logits / temperature).softmax(-1), 1, generator=source).squeeze(1)
        else:
            choice = logits.argmax(-1)
        done |= torch.isin(choice, stop)
        tokens[rows[~done], lengths[~done]] = choice[~done]
        lengths = lengths + (~done).long()
    return [tokens[row, len(prompt) : int(lengths[row])].tolist() for row, prompt in enumerate(prompts)]
