"""Statistics of a comparison: paired bootstrap over sentences, 95 % confidence intervals, p-values, power, Holm correction.

All takes of a sentence are resampled together, because they resemble each other."""

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri, stdtr, stdtrit

RESAMPLES = 10_000
SEED = 0
MIN_SENTENCES = 3  # with fewer sentences there is no interval and no p-value
CONFIDENCE = 0.95
POWER = 0.8  # of the minimum detectable difference
SentenceSums = dict[object, tuple[float, float]]
"""Sentence -> (numerator, denominator) summed over its takes; a metric is the ratio of the two totals."""


@dataclass(frozen=True)
class Estimate:
    """A metric of one arm, or the difference of two, with its 95 % confidence interval."""
    value: float
    low: float  # bounds of the interval; minus and plus infinity where there were too few sentences
    high: float
    sentences: int
    standard_error: float = np.inf  # corrected for few sentences; infinite where there were too few

    def p_value(self, null: float = 0.0) -> float:
        """Two-sided p-value of the hypothesis that the true value is `null`, by Student's t."""
        return float(2 * stdtr(self._degrees, -abs(self.value - null) / max(self.standard_error, 1e-12)))

    def interval(self, level: float) -> tuple[float, float]:
        """The values whose `p_value` is at least `level`."""
        half = float(stdtrit(self._degrees, 1 - level / 2)) * max(self.standard_error, 1e-12)
        return self.value - half, self.value + half

    def minimum_detectable_difference(self, tests: int = 1) -> float:
        """The difference that so many sentences detect with 80 % power, where `tests` share the significance level."""
        quantiles = stdtrit(self._degrees, 1 - (1 - CONFIDENCE) / 2 / tests) + stdtrit(self._degrees, POWER)
        return float(quantiles) * self.standard_error

    def required_sentences(self, difference: float, tests: int = 1) -> int | None:
        """About how many sentences detect this difference with 80 % power; None where there were too few to tell."""
        if np.isinf(self.standard_error):
            return None
        return int(np.ceil(self.sentences * (self.minimum_detectable_difference(tests) / difference) ** 2))

    @property
    def _degrees(self) -> int:
        return max(1, self.sentences - 1)


def sums_by_sentence(rows: Sequence[dict], numerator: str, denominator: str = "") -> SentenceSums:
    """Sum two fields of the rows by sentence; without a `denominator` the rows are counted."""
    sums = {}
    for row in rows:
        above, below = sums.get(row["sentence"], (0.0, 0.0))
        sums[row["sentence"]] = above + float(row[numerator]), below + (float(row[denominator]) if denominator else 1.0)
    return sums


def bootstrap_ratio(sums: SentenceSums) -> Estimate:
    """Estimate the metric of one arm."""
    return _bootstrap(np.array([sums[sentence] for sentence in sorted(sums)]))


def paired_bootstrap_diff(one: SentenceSums, other: SentenceSums) -> Estimate:
    """Estimate the metric of `one` minus that of `other` on their common sentences, resampled in pairs."""
    sentences = sorted(set(one) & set(other))
    return _bootstrap(np.array([[*one[sentence], *other[sentence]] for sentence in sentences]).reshape(-1, 4))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of several tests, so that together they err no more often than one (Holm)."""
    adjusted, highest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = highest
    return adjusted


def _bootstrap(table: np.ndarray) -> Estimate:
    """Estimate the metric of (sentences, 2 or 4) numerators and denominators."""
    sentences, value = len(table), float(_ratio(table.sum(axis=0)))
    if sentences < MIN_SENTENCES:
        return Estimate(value, -np.inf, np.inf, sentences)
    samples = _ratio(_resampling_counts(sentences) @ table)
    low, high = np.quantile(samples, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # a percentile bootstrap of few sentences is too narrow: widened as Student's t is against the normal distribution
    quantile, correction = (1 + CONFIDENCE) / 2, np.sqrt(sentences / (sentences - 1))
    widening = float(stdtrit(sentences - 1, quantile) / ndtri(quantile) * correction)
    return Estimate(value, value + widening * float(low - value), value + widening * float(high - value), sentences,
                    float(samples.std() * correction))


@functools.lru_cache(maxsize=4)
def _resampling_counts(sentences: int) -> np.ndarray:
    """Return (RESAMPLES, sentences): how often each sentence is drawn, the same in every call."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(sentences, np.full(sentences, 1 / sentences), RESAMPLES).astype(np.float64)


def _ratio(totals: np.ndarray) -> np.ndarray:
    """(..., 2) numerators and denominators -> ratios; (..., 4) -> the first ratio minus the second."""
    ratios = totals[..., 0::2] / np.maximum(totals[..., 1::2], 1e-9)
    return ratios[..., 0] - ratios[..., 1] if ratios.shape[-1] == 2 else ratios[..., 0]
