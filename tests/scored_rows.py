"""Scored rows of simulated systems with known differences; tests of scoring, statistics and verdict share them."""

import numpy as np

from tts_kit.comparison import verdict


def rows_of(arm, similarities, wrong=None, words=10, seeds=(1, 2)) -> list[dict]:
    """Return scored rows of one arm from its SIM (sentences, seeds) and word errors of the same shape."""
    similarities = np.asarray(similarities, dtype=float)
    wrong = np.zeros(similarities.shape) if wrong is None else np.asarray(wrong)
    return [{"arm": arm, "sentence": number, "text": f"sentence {number}", "seed": seed, "file": f"{arm}{number}-{seed}",
             "sim": similarities[number, column], "word_errors": int(wrong[number, column]), "ref_words": words,
             "mos": 4.0, "ended_with_eos": True, "failure": "", "metrics": "these", "seconds": 2.0}
            for number in range(len(similarities)) for column, seed in enumerate(seeds)]


def system(generator, sentences, gain=0.0, seeds=2) -> np.ndarray:
    """Return the SIM of a system (sentences, seeds): a difficulty per sentence, equal for all systems, and noise."""
    difficulty = np.random.default_rng(99).normal(0.7, 0.04, (sentences, 1))
    return difficulty + gain + generator.normal(0, 0.03, (sentences, seeds))


def outcome(rows, other_rows) -> tuple[str, str]:
    """Return the outcome of one arm against another: that of the voice, and that of the words."""
    rows = [row | {"arm": arm} for arm, arm_rows in (("one", rows), ("other", other_rows)) for row in arm_rows]
    comparison, = verdict.compare_arms(rows, [("one", "other")])
    return comparison.voice, comparison.words
