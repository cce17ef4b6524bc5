"""How often the verdict is right where the truth is known: python -m tests.benchmarks.verdict_rates

Two systems say the same sentences, which are hard or easy for both; what is left is luck. Identical systems must tie, and a
gap of the size that the verdict says it can show must be found as often as it promises. Writes results/verdict_rates.json.
"""

import json
from pathlib import Path

import numpy as np

from tts_kit import device
from tts_kit.comparison import verdict
from tts_kit.evaluation import scoring, stats
from tts_kit.io import write_json

RESULTS = Path(__file__).parent / "results" / "verdict_rates.json"
SEEDS = (1, 2)
RUNS = 1000
TIED, FOUND, LUCKY = 0.95, stats.POWER, 0.05
LUCK = dict(sim=0.035, hard_sim=0.04, ref_words=9, wer=0.15, hard_wer=0.10)
"""Spread between takes and between sentences of one system, words of a sentence, their mean share of wrong ones."""


def rows_of(arm: str, chance: np.random.Generator, sentences: int, nearer: float = 0.0, worse: float = 0.0) -> list[dict]:
    """Scored rows of one system, `nearer` to the voice and with `worse` more of its words wrong than the other."""
    hard = np.random.default_rng(7).standard_normal((2, 1000))[:, :sentences]
    rows = []
    for number in range(sentences):
        share = np.clip(LUCK["wer"] + LUCK["hard_wer"] * hard[1, number] + worse, 0.01, 0.99)
        for seed in SEEDS:
            alike = 0.7 + LUCK["hard_sim"] * hard[0, number] + nearer + chance.normal(0, LUCK["sim"])
            rows.append({"arm": arm, "sentence": number, "seed": seed, "sim": alike, "ref_words": LUCK["ref_words"],
                         "word_errors": int(chance.binomial(LUCK["ref_words"], share)), "mos": 4.0, "failure": "",
                         scoring.METRICS: "constructed"})
    return rows


def kinds(sentences: int, runs: int = RUNS, **gap: float) -> list[str]:
    """What the verdict says in so many comparisons of two systems with this gap."""
    said = []
    for run in range(runs):
        chance = np.random.default_rng([sentences, run])
        rows = rows_of("one", chance, sentences, **gap) + rows_of("other", chance, sentences)
        said.append(verdict.compare_arms(rows, [("one", "other")])[0].outcome)
    return said


def minimum_detectable_difference(sentences: int) -> float:
    """The gap in similarity that so many sentences can show, as the verdict promises; over many comparisons."""
    gaps = []
    for run in range(200):
        chance = np.random.default_rng([9, sentences, run])
        one, other = rows_of("one", chance, sentences), rows_of("other", chance, sentences)
        gaps.append(scoring.differences(one, other)["sim"].minimum_detectable_difference(len(verdict.TESTED)))
    return float(np.sqrt(np.mean(np.square(gaps))))


def rates(runs: int = RUNS) -> list[dict]:
    """For several numbers of sentences: how often identical systems tie, and how often a promised gap is found."""
    found = []
    for sentences in (5, 10, 20, 50):
        gap = minimum_detectable_difference(sentences)
        ties = kinds(sentences, runs).count(verdict.TIE) / runs
        better, worse = kinds(sentences, runs, nearer=gap), kinds(sentences, runs, worse=0.25)
        seen = (better.count(verdict.HIGHER_SIM) + better.count(verdict.HIGHER_SIM_AND_WER)) / runs
        found.append({"sentences": sentences, "takes": len(SEEDS), "identical systems tie": ties,
                      "minimum detectable difference in sim": round(gap, 4), "difference of that size detected": seen,
                      "detected with the wrong sign": better.count(verdict.LOWER_SIM) / runs,
                      "25 points higher wer detected": worse.count(verdict.HIGHER_WER) / runs,
                      "reached": ties >= TIED and seen >= FOUND - LUCKY})
    return found


def main() -> None:
    goal = (f"identical systems tie in {TIED:.0%} of runs; a difference of the minimum detectable size is found in "
            f"{FOUND:.0%}, within "
            f"{100 * LUCKY:.0f} points")
    found = {"what": "the verdict where the truth is known", "goal": goal, "runs": RUNS, "spread": LUCK,
             "cases": rates(), "machine": device.machine(), "versions": device.versions(),
             "command": "python -m tests.benchmarks.verdict_rates"}
    write_json(RESULTS, found)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
