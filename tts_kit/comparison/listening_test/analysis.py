"""Analyze listening test responses: means, 95 % confidence intervals and p-values, clustered by listener and sentence."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.special import stdtr, stdtrit

from tts_kit.comparison.listening_test import responses
from tts_kit.comparison.listening_test.page import GROUND_TRUTH, OTHER_SPEAKER, TEST_TYPES
from tts_kit.comparison.verdict import ALPHA, arm_name, format_p, plural
from tts_kit.evaluation import stats

ROUNDING_VARIANCE = 1 / 12
"""Of scores in whole steps; unanimous listeners are no more certain than that."""
WINS, TIE, LOSES = "wins", "no difference", "loses"
TIE_SENTENCE = "tie: no significant difference between {0} and {1}"
SENTENCES = {
    "ab": {WINS: "{0} sounds more like the voice than {1}", LOSES: "{0} sounds less like the voice than {1}"},
    "smos": {WINS: "{0} is rated more similar to the voice than {1}",
             LOSES: "{0} is rated less similar to the voice than {1}"},
    "cmos": {WINS: "{0} is rated better than {1}", LOSES: "{0} is rated worse than {1}"}}
LABELS = {"ab": "preference", "smos": "difference", "cmos": "CMOS"}
ANCHORS = {GROUND_TRUTH: "recordings of the voice", OTHER_SPEAKER: "another speaker"}


def analyze(paths: Sequence[Path], folder: Path) -> dict:
    """Return the results of the response files for the test in `folder`, ready for JSON."""
    read = responses.read(paths, folder)
    counted, key = read.counted, read.key
    excluded = [response for response in read.all if response not in counted]
    comparisons, smos = [], {}
    for test_type in key["types"] if counted else []:
        for pair in key["pairs"]:
            values = responses.pair_scores(counted, key, test_type, pair)
            variance = ROUNDING_VARIANCE * (2 if test_type == "smos" else 1)
            result = preference(values) if test_type == "ab" else estimate(values, 0.0, variance)
            comparisons.append({"type": test_type, "arms": list(pair), "answers": values.size, **result})
            if excluded:
                with_excluded = responses.pair_scores(read.all, key, test_type, pair)
                comparisons[-1]["value_with_excluded"] = float(with_excluded.mean())
        if test_type == "smos":
            for arm in (*dict.fromkeys(arm for pair in key["pairs"] for arm in pair), *ANCHORS):
                smos[arm] = estimate(responses.smos(counted, key, arm), 0.0, ROUNDING_VARIANCE)
    for comparison, p_holm in zip(comparisons, stats.holm([comparison["p_value"] for comparison in comparisons])):
        above = comparison["value"] > (0.5 if comparison["type"] == "ab" else 0.0)
        comparison |= {"p_holm": p_holm, "outcome": TIE if p_holm >= ALPHA else WINS if above else LOSES}
    return {"test": key["test"], "listeners": len(counted), "answers": sum(len(response.answers) for response in counted),
            "headphones": sum(response.listener.get("headphones") == "yes" for response in counted),
            "comparisons": comparisons, "smos": smos,
            "excluded": [{"file": response.file, "rater": response.rater, "missed": response.missed}
                         for response in excluded],
            "rejected": read.rejected}


def estimate(values: np.ndarray, null: float, min_variance: float = 0.0) -> dict:
    """Return the mean of (listeners, sentences), its 95 % confidence interval, and the p-value against `null`.

    Two-way clustered variance (Cameron, Gelbach and Miller 2011): between listeners plus between sentences, minus half of
    the interaction (all of it would be too much for ten listeners), at least the larger of the two; Student's t.
    """
    listeners, sentences = values.shape
    mean = float(values.mean())
    if min(values.shape) < stats.MIN_SENTENCES:
        return {"value": mean, "low": None, "high": None, "p_value": 1.0}
    listener_means, sentence_means = values.mean(axis=1), values.mean(axis=0)
    residuals = values - listener_means[:, None] - sentence_means + mean
    by_listener, by_sentence = listener_means.var(ddof=1) / listeners, sentence_means.var(ddof=1) / sentences
    interaction = (residuals ** 2).sum() / ((listeners - 1) * (sentences - 1)) / values.size
    error = np.sqrt(max(by_listener, by_sentence, by_listener + by_sentence - interaction / 2, min_variance / values.size,
                        1e-12))
    degrees = min(values.shape) - 1
    half_width = float(stdtrit(degrees, (1 + stats.CONFIDENCE) / 2) * error)
    return {"value": mean, "low": mean - half_width, "high": mean + half_width,
            "p_value": float(2 * stdtr(degrees, -abs(mean - null) / error))}


def preference(values: np.ndarray) -> dict:
    """Return the share of (listeners, sentences) of 1, 0 or 1/2 that prefers the first arm; undecided answers count half.

    The p-value is the larger of the clustered one and that of the exact binomial test without undecided answers.
    """
    from scipy.stats import binomtest

    answers, first, second = values.size, int((values == 1).sum()), int((values == 0).sum())
    exact = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    result = estimate(values, 0.5)
    if result["low"] is not None:  # unanimous answers have no variance; the Wilson interval still has a width
        wilson = binomtest(round(2 * values.sum()) // 2, answers).proportion_ci(method="wilson")
        result |= {"low": max(0.0, min(result["low"], wilson.low)), "high": min(1.0, max(result["high"], wilson.high))}
    return result | {"p_value": max(exact, result["p_value"]), "p_exact": exact, "first": first, "second": second,
                     "undecided": answers - first - second,
                     "minimum_detectable": minimum_detectable_preference(answers)}


def minimum_detectable_preference(answers: int) -> float | None:
    """Return the smallest preference that so many independent answers detect with 80 % power, None if there is none."""
    from scipy.stats import binom

    needed = int(binom.isf(ALPHA / 2, answers, 0.5)) + 1
    shares = (percent / 100 for percent in range(51, 101))
    return next((share for share in shares if binom.sf(needed - 1, answers, share) >= stats.POWER), None)


def describe(results: dict) -> list[str]:
    """Return the results as lines of text."""
    listeners = results["listeners"]
    lines = [f"Listening test: {plural(listeners, 'listener')}, {results['headphones']} with headphones, "
             f"{plural(results['answers'], 'answer')}."]
    for test_type in dict.fromkeys(comparison["type"] for comparison in results["comparisons"]):
        lines.append(f"{test_type.upper()}: {TEST_TYPES[test_type].question} {TEST_TYPES[test_type].note}")
        if test_type == "smos":
            means = [f"{ANCHORS.get(arm, arm)} {score['value']:.1f}{_interval(score, '{:.1f}')}"
                     for arm, score in results["smos"].items()]
            lines.append(f"SMOS (1 to 5): {'; '.join(means)}.")
        lines += [_sentence(comparison) for comparison in results["comparisons"] if comparison["type"] == test_type]
    if not listeners:
        lines.append("No response counts, so there is no result.")
    elif listeners < stats.MIN_SENTENCES:
        lines.append(f"{plural(listeners, 'listener')} cannot stand for others: at least {stats.MIN_SENTENCES} are needed, "
                     "better ten.")
    lines += [f"Excluded: listener {response['rater']} ({response['file']}) failed {response['missed']:.0%} of the catch "
              "trials." for response in results["excluded"]]
    return lines + [f"Rejected: {file['file']}: {file['reason']}." for file in results["rejected"]]


def _sentence(comparison: dict) -> str:
    sentence = SENTENCES[comparison["type"]].get(comparison["outcome"], TIE_SENTENCE)
    sentence = sentence.format(*map(arm_name, comparison["arms"]))
    form = "{:.0%}" if comparison["type"] == "ab" else "{:+.2f}"
    parts = [f"{LABELS[comparison['type']]} {form.format(comparison['value'])}{_interval(comparison, form)}"]
    if comparison["type"] == "ab":
        undecided = f", {comparison['undecided']} undecided, counted half" if comparison["undecided"] else ""
        parts.append(f"{comparison['first']} to {comparison['second']} of {plural(comparison['answers'], 'answer')}"
                     f"{undecided}")
    parts.append(f"{format_p(comparison['p_holm'])} (Holm)")
    if comparison.get("minimum_detectable"):
        parts.append("minimum detectable preference (80 % power, independent answers) "
                     f"{comparison['minimum_detectable']:.0%}")
    if "value_with_excluded" in comparison:
        parts.append(f"with the excluded listeners {form.format(comparison['value_with_excluded'])}")
    return f"{sentence[0].upper()}{sentence[1:]} ({'; '.join(parts)})."


def _interval(result: dict, form: str) -> str:
    return "" if result["low"] is None else f", 95 % CI [{form.format(result['low'])}, {form.format(result['high'])}]"
