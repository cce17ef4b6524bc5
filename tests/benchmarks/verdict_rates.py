"""How often the verdict is right on simulated systems: python -m tests.benchmarks.verdict_rates

Two simulated systems speak the same sentences, which are as difficult for both; the rest is random. Identical systems must
tie, and a difference of the minimum detectable size must be detected as often as the verdict promises. Writes
results/verdict_rates.json.
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
TIED, DETECTED, TOLERANCE = 0.95, stats.POWER, 0.05
SPREAD = dict(sim=0.035, hard_sim=0.04, ref_words=9, wer=0.15, hard_wer=0.10)
"""Standard deviations of SIM between takes and between sentences, words of a sentence, mean and deviation of WER."""


def rows_of(arm: str, rng: np.random.Generator, sentences: int, sim_gain: float = 0.0, wer_gain: float = 0.0) -> list[dict]:
    """Return scored rows of one system whose SIM and WER are higher than the other system's by the gains."""
    difficulty = np.random.default_rng(7).standard_normal((2, 1000))[:, :sentences]
    rows = []
    for sentence in range(sentences):
        error_rate = np.clip(SPREAD["wer"] + SPREAD["hard_wer"] * difficulty[1, sentence] + wer_gain, 0.01, 0.99)
        for seed in SEEDS:
            similarity = 0.7 + SPREAD["hard_sim"] * difficulty[0, sentence] + sim_gain + rng.normal(0, SPREAD["sim"])
            rows.append({"arm": arm, "sentence": sentence, "seed": seed, "sim": similarity, "ref_words": SPREAD["ref_words"],
                         "word_errors": int(rng.binomial(SPREAD["ref_words"], error_rate)), "mos": 4.0, "failure": "",
                         scoring.METRICS: "constructed"})
    return rows


def outcomes(sentences: int, runs: int = RUNS, **gains: float) -> list[tuple[str, str]]:
    """Return the verdicts on voice and words of so many comparisons of two systems with these gains of the first."""
    results = []
    for run in range(runs):
        rng = np.random.default_rng([sentences, run])
        rows = rows_of("one", rng, sentences, **gains) + rows_of("other", rng, sentences)
        results.append(outcome_of(rows))
    return results


def outcome_of(rows: list[dict]) -> tuple[str, str]:
    """Return the verdict on one against the other: the voice's, and the words' or a tie."""
    comparison, = verdict.compare_arms(rows, [("one", "other")])
    return comparison.voice, comparison.words if comparison.words in (verdict.LOWER_WER, verdict.HIGHER_WER) else verdict.TIE


def minimum_detectable_difference(sentences: int) -> float:
    """Return the verdict's minimum detectable difference in SIM for so many sentences, averaged over many comparisons."""
    minimums = []
    for run in range(200):
        rng = np.random.default_rng([9, sentences, run])
        differences = scoring.differences(rows_of("one", rng, sentences), rows_of("other", rng, sentences))
        minimums.append(differences["sim"].minimum_detectable_difference(len(scoring.MARGINS)))
    return float(np.sqrt(np.mean(np.square(minimums))))


def rates(runs: int = RUNS) -> list[dict]:
    """Return how often identical systems tie and a minimum detectable difference is detected, by number of sentences."""
    cases = []
    for sentences in (5, 10, 20, 50):
        difference = minimum_detectable_difference(sentences)
        ties = outcomes(sentences, runs).count((verdict.TIE, verdict.TIE)) / runs
        sim_outcomes, wer_outcomes = outcomes(sentences, runs, sim_gain=difference), outcomes(sentences, runs, wer_gain=0.25)
        voices = [voice for voice, _ in sim_outcomes]
        cases.append({"sentences": sentences, "takes": len(SEEDS), "identical systems tie": ties,
                      "minimum detectable difference in sim": round(difference, 4),
                      "difference of that size detected": voices.count(verdict.HIGHER_SIM) / runs,
                      "detected with the wrong sign": voices.count(verdict.LOWER_SIM) / runs,
                      "25 points higher wer detected": wer_outcomes.count((verdict.TIE, verdict.HIGHER_WER)) / runs,
                      "reached": ties >= TIED and voices.count(verdict.HIGHER_SIM) / runs >= DETECTED - TOLERANCE})
    return cases


def main() -> None:
    goal = (f"identical systems tie in {TIED:.0%} of runs; a difference of the minimum detectable size is found in "
            f"{DETECTED:.0%}, within {100 * TOLERANCE:.0f} points")
    result = {"what": "the verdict where the truth is known", "goal": goal, "runs": RUNS, "spread": SPREAD,
              "cases": rates(), "machine": device.machine(), "versions": device.versions(),
              "command": "python -m tests.benchmarks.verdict_rates"}
    write_json(RESULTS, result)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
