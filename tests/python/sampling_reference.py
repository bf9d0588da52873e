"""Definitions of the sampler's stages in numpy, written from their papers and not from the native code."""

from __future__ import annotations

import math

import numpy as np
from hypothesis import strategies as st

from metallic_native.sampling import SamplerChain, Sampling

NEUTRAL = Sampling(temperature=1.0, top_k=0, top_p=1.0, min_p=0.0, dry_sequence_breakers=(), seed=1)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max())
    return weights / weights.sum()


class Reference:
    """The tokens left, by ascending id, in float64. ``clear`` turns False where rounding could decide either way."""

    def __init__(self, logits: np.ndarray) -> None:
        self.ids = np.flatnonzero(logits > -np.inf)
        self.logits = logits[self.ids].astype(np.float64)
        self.clear = True

    def keep(self, chosen: np.ndarray) -> None:
        self.ids, self.logits = self.ids[chosen], self.logits[chosen]

    def keep_first(self, order: np.ndarray, key: np.ndarray, count: int) -> None:
        if count < len(order):
            gap = abs(key[order[count]] - key[order[count - 1]])
            self.clear &= bool(gap == 0 or gap > 1e-5)
        self.keep(np.sort(order[:count]))

    def until_mass(self, key: np.ndarray, mass: float) -> None:
        """Fewest tokens, in ascending order of the key, whose probabilities add up to the mass."""
        order = np.argsort(key, kind="stable")
        reached = np.cumsum(softmax(self.logits)[order])
        count = int(np.searchsorted(reached, mass)) + 1
        near = np.abs(reached[:-1] - mass)
        self.clear &= bool(near.size == 0 or near.min() > 1e-6)
        self.keep_first(order, key, min(count, len(order)))

    def at_least(self, limit: float) -> None:
        near = np.abs(self.logits - limit)
        self.clear &= bool(near.min() > 1e-6 * (1 + abs(limit)) or limit == self.logits.max())
        self.keep(self.logits >= limit)

    def top_k(self, k: int) -> None:
        if 0 < k < len(self.ids):
            self.keep_first(np.argsort(-self.logits, kind="stable"), self.logits, k)
            # Top-k compares float32 logits as they are: no rounding in it.
            self.clear = True

    def top_p(self, p: float) -> None:
        if p < 1:
            self.until_mass(-self.logits, p)

    def min_p(self, p: float) -> None:
        if p > 0:
            self.at_least(self.logits.max() + math.log(p))

    def typical_p(self, p: float) -> None:
        if p < 1:
            surprise = -np.log(softmax(self.logits))
            entropy = float((softmax(self.logits) * surprise).sum())
            self.until_mass(np.abs(surprise - entropy), p)

    def top_n_sigma(self, n: float) -> None:
        if n > 0:
            self.at_least(self.logits.max() - n * self.logits.std())

    def xtc(self, probability: float, threshold: float) -> None:
        if probability == 0 or threshold > 0.5:
            return
        p = softmax(self.logits)
        self.clear &= bool(np.abs(p - threshold).min() > 1e-6)
        above = np.flatnonzero(p >= threshold)
        if len(above) >= 2:
            least = max(above, key=lambda i: (-self.logits[i], i))
            self.keep((p < threshold) | (np.arange(len(p)) == least))

    def run(self, sampling: Sampling) -> None:
        for stage in sampling.order:
            if stage == "temperature":
                self.logits = self.logits / sampling.temperature
            elif stage == "xtc":
                self.xtc(sampling.xtc_probability, sampling.xtc_threshold)
            elif stage not in ("penalties", "dry"):
                was = self.clear
                getattr(self, stage)(getattr(sampling, stage))
                self.clear &= was

    def check(self, sampling: Sampling, logits: np.ndarray) -> None:
        ids, probabilities = SamplerChain(sampling, len(logits)).distribution(logits)
        np.testing.assert_array_equal(ids, self.ids)
        np.testing.assert_allclose(probabilities, softmax(self.logits), rtol=2e-5, atol=1e-7)


@st.composite
def logit_arrays(draw: st.DrawFn) -> np.ndarray:
    n = draw(st.one_of(st.integers(1, 300), st.sampled_from([64, 128, 1000, 4097, 9000])))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(draw(st.floats(-5, 5)), draw(st.sampled_from([0.01, 0.5, 3.0, 12.0])), n)
    if draw(st.booleans()):
        logits = np.round(logits * 4) / 4  # ties
    if draw(st.booleans()):
        logits[rng.random(n) < 0.3] = -np.inf
        logits[rng.integers(n)] = 1.0
    return logits.astype(np.float32)
