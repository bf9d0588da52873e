"""Training of the demo model: AdamW, warm-up and cosine, bfloat16 on CUDA, rows of packed documents."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from corpus import Encoded
from model import Config, Llama

logger = logging.getLogger("demo_model")


@dataclass(frozen=True)
class Settings:
    """How the committed model was trained."""

    seed: int = 1
    row: int = 2048  # tokens of a training row
    batch: int = 32  # rows of a step
    peak_rate: float = 2e-3
    final_rate: float = 1e-5
    warmup: int = 200  # steps
    weight_decay: float = 0.1
    clip: float = 1.0
    without_start: float = 0.1  # share of rows that begin after the start token, so that prompts without it work too


class Rows:
    """Draws training rows: each begins where a document begins, and the documents that follow fill it."""

    def __init__(self, data: Encoded, settings: Settings, device: torch.device) -> None:
        starts = data.starts[data.starts + settings.row + 2 <= len(data.tokens)]
        if not len(starts):
            raise ValueError(f"{len(data.tokens)} tokens do not fill one row of {settings.row}")
        self.tokens = torch.from_numpy(data.tokens.astype(np.int16)).to(device)
        self.starts = torch.from_numpy(starts).to(device)
        self.settings = settings
        self.source = torch.Generator(device=device).manual_seed(settings.seed)
        self.span = torch.arange(settings.row + 1, device=device)

    def draw(self) -> Tensor:
        """A batch of rows [batch, row + 1] int64."""
        s = self.settings
        pick = torch.randint(len(self.starts), (s.batch,), generator=self.source, device=self.starts.device)
        skip = torch.rand(s.batch, generator=self.source, device=self.starts.device) < s.without_start
        first = self.starts[pick] + skip.long()
        return self.tokens[first[:, None] + self.span].long()


Loss = Callable[[Tensor], Tensor]


def loss_of(model: Llama | Callable[[Tensor], Tensor], rows: Tensor) -> Tensor:
    """Mean next-token cross-entropy (nats per token) over ``rows`` [batch, row + 1]."""
    logits = model(rows[:, :-1])
    return torch.nn.functional.cross_entropy(logits.float().flatten(0, 1), rows[:, 1:].flatten())


def _autocast(device: torch.device) -> torch.autocast:
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=device.type == "cuda")


def _compiled(model: Llama, rows: Tensor) -> Loss:
    """The loss function compiled where that works, else as it is."""

    def plain(batch: Tensor) -> Tensor:
        with _autocast(batch.device):
            return loss_of(model, batch)

    if rows.device.type != "cuda":
        return plain
    try:
        began = time.monotonic()
        fast = torch.compile(plain, dynamic=False)
        torch.autograd.backward(fast(rows))
        torch.cuda.synchronize()
        logger.info("compiled in %.1f s", time.monotonic() - began)
        result: Loss = fast
    except Exception as error:  # a missing compiler or an unsupported device must not stop the training
        logger.info("not compiled: %s", str(error).splitlines()[0] if str(error) else type(error).__name__)
        result = plain
    model.zero_grad(set_to_none=True)
    return result


def rate_at(settings: Settings, step: int, progress: float) -> float:
    """Learning rate: linear warm-up over steps, cosine over ``progress`` (0 to 1)."""
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
    rate = settings.final_rate + (settings.peak_rate - settings.final_rate) * cosine
    return rate * min(1.0, (step + 1) / settings.warmup)


def _optimizer(model: Llama, settings: Settings, device: torch.device) -> torch.optim.AdamW:
    matrices = [p for p in model.parameters() if p.dim() >= 2]
    vectors = [p for p in model.parameters() if p.dim() < 2]
    groups = [{"params": matrices, "weight_decay": settings.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(0.9, 0.95), fused=device.type == "cuda")


@dataclass
class Trained:
    """What a training run gives."""

    model: Llama
    steps: int
    tokens: int
    seconds: float


def train(
    config: Config,
    settings: Settings,
    data: Encoded,
    device: torch.device,
    seconds: float,
    steps: int | None,
    keep: Callable[[Llama], None],
) -> Trained:
    """Trains for ``seconds``, or for exactly ``steps`` when given; ``keep`` is called at each quarter of the way."""
    torch.manual_seed(settings.seed)
    torch.set_float32_matmul_precision("high")
    model = Llama(config).to(device)
    rows = Rows(data, settings, device)
    optimizer = _optimizer(model, settings, device)
    loss_function = _compiled(model, rows.draw())
    began, step, progress, quarter = time.monotonic(), 0, 0.0, 1
    while progress < 1.0:
        for group in optimizer.param_groups:
            group["lr"] = rate_at(settings, step, progress)
        loss = loss_function(rows.draw())
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), settings.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step % 500 == 0 or step == 1:
            logger.info("step %d  loss %.4f  %.0f s", step, loss.item(), time.monotonic() - began)
        progress = step / steps if steps else (time.monotonic() - began) / seconds
        if progress >= quarter / 4 and progress < 1.0:
            keep(model)
            quarter += 1
    return Trained(model, step, step * settings.batch * settings.row, time.monotonic() - began)


@torch.no_grad()
def evaluate(model: Llama, rows: NDArray[np.uint16], batch: int = 8) -> float:
    """Mean loss (nats per token) on held-out ``rows`` [n, row + 1], in float32."""
    device = model.token_embd.weight.device
    tokens = torch.from_numpy(rows.astype(np.int64)).to(device)
    losses = [loss_of(model, part).item() * len(part) for part in torch.split(tokens, batch)]
    return sum(losses) / len(tokens)
