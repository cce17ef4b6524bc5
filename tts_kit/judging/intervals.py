"""How sure a figure is: sentences drawn again and again, every take of a sentence together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

DRAWS = 10_000
SEED = 0
FEWEST = 3
"""Sentences under which nothing is said about other sentences."""
LEVEL = 0.95
Parts = dict[object, tuple[float, float]]
"""Sentence -> (sum, count) over its takes; a figure is the ratio of the two totals."""


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float
    """Bounds between which the figure lies in 95 of 100 such comparisons; minus and plus infinity where too few sentences
    were compared."""
    sentences: int

    @property
    def above(self) -> bool:
        """Whether the figure is above 0 for sure."""
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0


def parts(rows: Sequence[dict], top: str, bottom: str = "") -> Parts:
    """(sum of `top`, sum of `bottom` or number of rows) of each sentence."""
    gathered = {}
    for row in rows:
        above, below = gathered.get(row["sentence"], (0.0, 0.0))
        gathered[row["sentence"]] = above + float(row[top]), below + (float(row[bottom]) if bottom else 1.0)
    return gathered


def ratio(one: Parts) -> Estimate:
    """The figure of one arm."""
    sentences = sorted(one)
    table = np.array([one[each] for each in sentences])
    return _estimate(table.sum(axis=0), lambda drawn: table[drawn].sum(axis=1), len(sentences))


def difference(one: Parts, other: Parts) -> Estimate:
    """The figure of `one` less that of `other`, over the sentences that both said; the same are drawn for both."""
    sentences = sorted(set(one) & set(other))
    table = np.array([[*one[each], *other[each]] for each in sentences]).reshape(-1, 4)
    return _estimate(table.sum(axis=0), lambda drawn: table[drawn].sum(axis=1), len(sentences))


def _estimate(totals: np.ndarray, draw, sentences: int) -> Estimate:
    value = float(_figure(totals))
    if sentences < FEWEST:
        return Estimate(value, -np.inf, np.inf, sentences)
    drawn = _figure(draw(np.random.default_rng(SEED).integers(0, sentences, (DRAWS, sentences))))
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    wider = _correction(sentences)
    return Estimate(value, value + wider * float(low - value), value + wider * float(high - value), sentences)


def _figure(totals: np.ndarray) -> np.ndarray:
    """(..., 2) sums and counts -> ratios; (..., 4) -> the first ratio less the second."""
    ratios = totals[..., 0::2] / np.maximum(totals[..., 1::2], 1e-9)
    return ratios[..., 0] - ratios[..., 1] if ratios.shape[-1] == 2 else ratios[..., 0]


def _correction(sentences: int) -> float:
    """How much wider than drawn: a few sentences drawn from themselves differ too little (as t to the normal)."""
    from scipy.special import stdtrit

    return float(stdtrit(sentences - 1, (1 + LEVEL) / 2) / 1.959964 * np.sqrt(sentences / (sentences - 1)))
