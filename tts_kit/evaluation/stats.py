"""How sure a figure is: sentences drawn again and again, every take of a sentence together."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

RESAMPLES = 10_000
SEED = 0
MIN_SENTENCES = 3
"""Sentences under which nothing is said about other sentences."""
CONFIDENCE = 0.95
POWER = 0.8
"""How often a gap that is called findable is found."""
SentenceSums = dict[object, tuple[float, float]]
"""Sentence -> (sum, count) over its takes; a figure is the ratio of the two totals."""


@dataclass(frozen=True)
class Estimate:
    value: float
    low: float
    high: float
    """Bounds between which the figure lies in 95 of 100 such comparisons; minus and plus infinity where too few sentences
    were compared."""
    sentences: int
    drawn: np.ndarray = field(default_factory=lambda: np.empty(0), repr=False, compare=False)
    """The figures of the drawn sentences (DRAWS,), none where there were too few."""

    @property
    def error(self) -> float:
        """By how much the figure varies from one set of such sentences to the next."""
        return float(self.drawn.std() * np.sqrt(self.sentences / (self.sentences - 1))) if len(self.drawn) else np.inf

    def chance(self, margin: float = 0.0) -> float:
        """How often luck alone puts a figure so far from `margin`, on either side; small where the figure is sure."""
        if not len(self.drawn) or self.value == margin:
            return 1.0
        from scipy.special import stdtr

        return float(2 * stdtr(self.sentences - 1, -abs(self.value - margin) / max(self.error, 1e-12)))

    def findable(self, tests: int = 1) -> float:
        """The gap that as many sentences find in POWER of such comparisons, where `tests` have to be sure together."""
        if not len(self.drawn):
            return np.inf
        from scipy.special import stdtrit

        quantiles = stdtrit(self.sentences - 1, 1 - (1 - CONFIDENCE) / 2 / tests) + stdtrit(self.sentences - 1, POWER)
        return float(quantiles) * self.error

    def wanted(self, gap: float, tests: int = 1) -> int | None:
        """About how many sentences find a gap of this size; None where these say nothing about others."""
        return int(np.ceil(self.sentences * (self.findable(tests) / gap) ** 2)) if len(self.drawn) else None

    @property
    def above(self) -> bool:
        """Whether the figure is above 0 for sure."""
        return self.low > 0

    @property
    def below(self) -> bool:
        return self.high < 0


def sums_by_sentence(rows: Sequence[dict], top: str, bottom: str = "") -> SentenceSums:
    """(sum of `top`, sum of `bottom` or number of rows) of each sentence."""
    gathered = {}
    for row in rows:
        above, below = gathered.get(row["sentence"], (0.0, 0.0))
        gathered[row["sentence"]] = above + float(row[top]), below + (float(row[bottom]) if bottom else 1.0)
    return gathered


def bootstrap_ratio(one: SentenceSums) -> Estimate:
    """The figure of one arm."""
    sentences = sorted(one)
    table = np.array([one[each] for each in sentences])
    return _estimate(table)


def paired_bootstrap_diff(one: SentenceSums, other: SentenceSums) -> Estimate:
    """The figure of `one` less that of `other`, over the sentences that both said; the same are drawn for both."""
    sentences = sorted(set(one) & set(other))
    table = np.array([[*one[each], *other[each]] for each in sentences]).reshape(-1, 4)
    return _estimate(table)


def _estimate(table: np.ndarray) -> Estimate:
    """The figure of (sentences, 2 or 4) sums and counts."""
    sentences, value = len(table), float(_figure(table.sum(axis=0)))
    if sentences < MIN_SENTENCES:
        return Estimate(value, -np.inf, np.inf, sentences)
    drawn = _figure(_draws(sentences) @ table)
    low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    wider = _correction(sentences)
    return Estimate(value, value + wider * float(low - value), value + wider * float(high - value), sentences, drawn)


@functools.lru_cache(maxsize=4)
def _draws(sentences: int) -> np.ndarray:
    """(DRAWS, sentences): how often each sentence is drawn."""
    return np.random.default_rng(SEED).multinomial(sentences, np.full(sentences, 1 / sentences), RESAMPLES).astype(np.float64)


def holm(chances: Sequence[float]) -> list[float]:
    """Chances of several tests, raised so that all of them together are as sure as one (Holm)."""
    raised, highest = [0.0] * len(chances), 0.0
    for done, place in enumerate(sorted(range(len(chances)), key=lambda each: chances[each])):
        highest = max(highest, min(1.0, (len(chances) - done) * chances[place]))
        raised[place] = highest
    return raised


def _figure(totals: np.ndarray) -> np.ndarray:
    """(..., 2) sums and counts -> ratios; (..., 4) -> the first ratio less the second."""
    ratios = totals[..., 0::2] / np.maximum(totals[..., 1::2], 1e-9)
    return ratios[..., 0] - ratios[..., 1] if ratios.shape[-1] == 2 else ratios[..., 0]


def _correction(sentences: int) -> float:
    """How much wider than drawn: a few sentences drawn from themselves differ too little (as t to the normal)."""
    from scipy.special import stdtrit

    return float(stdtrit(sentences - 1, (1 + CONFIDENCE) / 2) / 1.959964 * np.sqrt(sentences / (sentences - 1)))
