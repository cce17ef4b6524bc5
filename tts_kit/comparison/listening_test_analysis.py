"""What listeners found in the blind test: what they prefer, how sure that is, and of whom, in plain English.

Votes of one listener resemble each other, and so do votes on one sentence; intervals count both, as naive ones do not.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tts_kit.comparison import listening_test_design, listening_test_responses, verdict
from tts_kit.comparison.listening_test_responses import Response, Responses, read
from tts_kit.evaluation import stats

SURE = 0.05
"""Chance below which luck is ruled out, over all questions of the test together."""
ROUNDED = 1 / 12
"""What rounding to whole steps adds to the variance of a score; unanimous listeners are no surer than that."""
WINS, TIES, LOSES = "wins", "no difference", "loses"
SAID = {
    "ab": {WINS: "{0} wins against {1}: it sounds more like the voice",
           LOSES: "{0} loses to {1}: it sounds less like the voice"},
    "preference": {WINS: "{0} wins against {1}: it is preferred", LOSES: "{0} loses to {1}, which is preferred"},
    "abx": {WINS: "{0} and {1} can be told apart"},
    "smos": {WINS: "{0} is rated nearer to the voice than {1}", LOSES: "{0} is rated less like the voice than {1}"},
    "cmos": {WINS: "{0} is rated better than {1}", LOSES: "{0} is rated worse than {1}"},
}
TIED = "no difference can be told between {0} and {1}"
ANCHORS = {"voice": "the voice itself", "stranger": "a stranger"}
CHOICES = ("ab", "preference", "abx")


def analyse_files(paths: Sequence[str | Path], folder: str | Path) -> dict:
    """All findings of the votes in `paths` on the test in `folder`, ready for JSON."""
    return analyse(read(paths, folder))


def analyse(poll: Responses) -> dict:
    """Every question answered by those who listened, and, where some did not, by all; sure together, not each by itself."""
    counted, key = poll.counted(), poll.key
    aside = [each for each in poll.ballots if each not in counted]
    found = [_question(counted, key, kind, question) for kind in key["kinds"] for question in key["questions"]] \
        if counted else []
    for each, chance in zip(found, stats.holm([each["chance"] for each in found])):
        each["chance of all together"] = chance
        each["says"] = TIES if chance >= SURE else WINS if each["value"] > _middle(each["kind"]) else LOSES
        if aside:
            each["value with all"] = float(listening_test_responses.table(poll.ballots, key, each["kind"], each["arms"]).mean())
    return {"test": key["test"], "metric_models": len(counted), "votes": sum(len(each.votes) for each in counted),
            "headphones": sum(each.listener.get("headphones") == "yes" for each in counted), "questions": found,
            "scores": _scores(counted, key) if "smos" in key["kinds"] and counted else {},
            "repeated": _repeated(counted, key),
            "set aside": [{"file": each.file, "listener": each.rater, "failed": each.failed} for each in aside],
            "refused": poll.refused}


def estimate(values: np.ndarray, middle: float, least: float = 0.0) -> dict:
    """(listeners, sentences) -> mean, bounds, and the chance of being so far from `middle` by luck.

    Variance between listeners, plus between sentences, less half of what both have counted, never less than either, with
    Student's t for the fewer of the two. (Two-way clusters, Cameron, Gelbach and Miller 2011, who take off all of it, which
    is too much for ten listeners: equal arms then differ in up to 5 of 100 tests, and so in up to 3.5.)
    """
    metric_models, sentences = values.shape
    mean = float(values.mean())
    if min(values.shape) < stats.MIN_SENTENCES:
        return {"value": mean, "low": None, "high": None, "chance": 1.0}
    from scipy.special import stdtr, stdtrit

    of_listeners, of_sentences = values.mean(axis=1), values.mean(axis=0)
    rest = values - of_listeners[:, None] - of_sentences + mean
    by_listener, by_sentence = of_listeners.var(ddof=1) / metric_models, of_sentences.var(ddof=1) / sentences
    both = (rest ** 2).sum() / ((metric_models - 1) * (sentences - 1)) / values.size
    error = np.sqrt(max(by_listener, by_sentence, by_listener + by_sentence - both / 2, least / values.size, 1e-12))
    freedom = min(values.shape) - 1
    reach = float(stdtrit(freedom, (1 + stats.CONFIDENCE) / 2) * error)
    return {"value": mean, "low": mean - reach, "high": mean + reach,
            "chance": float(2 * stdtr(freedom, -abs(mean - middle) / error))}


def choices(values: np.ndarray, one_sided: bool = False) -> dict:
    """The share of (listeners, sentences) of 1, 0 or 1/2 that chose the first: an undecided vote counts half in the share,
    and not at all in the exact test. Both that test and the clusters have to rule luck out."""
    from scipy.stats import binomtest

    votes, first, second = values.size, int((values == 1).sum()), int((values == 0).sum())
    exact = binomtest(first, first + second, alternative="greater" if one_sided else "two-sided") if first + second else None
    chance, found = exact.pvalue if exact else 1.0, estimate(values, 0.5)
    clustered = found["chance"]
    if one_sided and found["low"] is not None:
        clustered = clustered / 2 if found["value"] > 0.5 else 1 - clustered / 2
    if found["low"] is not None:  # unanimous votes have no spread, and are not sure for ever
        wilson = binomtest(round(2 * values.sum()) // 2, votes).proportion_ci(method="wilson")
        found |= {"low": max(0.0, min(found["low"], wilson.low)), "high": min(1.0, max(found["high"], wilson.high))}
    return found | {"chance": max(float(chance), clustered), "exact chance": float(chance), "first": first, "second": second,
                    "undecided": votes - first - second, "findable": minimum_detectable_preference(votes, one_sided)}


def minimum_detectable_preference(votes: int, one_sided: bool = False) -> float | None:
    """The smallest preference that so many votes show four times of five, if each vote stood for itself."""
    from scipy.stats import binom

    needed = int(binom.isf(SURE / (1 if one_sided else 2), votes, 0.5)) + 1
    shares = (percent / 100 for percent in range(51, 101))
    return next((share for share in shares if binom.sf(needed - 1, votes, share) >= stats.POWER), None)


def describe(found: dict) -> list[str]:
    """Lines for a person."""
    metric_models = found["metric_models"]
    lines = [f"Blind test: {_several(metric_models, 'listener')}, {found['headphones']} on headphones, "
             f"{_several(found['votes'], 'vote')}."]
    for kind in dict.fromkeys(each["kind"] for each in found["questions"]):
        lines.append(f"Asked: {listening_test_design.TEST_TYPES[kind].asked} {listening_test_design.TEST_TYPES[kind].note}")
        if kind == "smos":
            means = [f"{ANCHORS.get(name, name)} {_score(each)}" for name, each in found["scores"].items()]
            lines.append(f"Means of 1 to 5: {'; '.join(means)}.")
        lines += [_sentence(each) for each in found["questions"] if each["kind"] == kind]
    if not metric_models:
        lines.append("No vote counts, so nothing can be said.")
    elif metric_models < stats.MIN_SENTENCES:
        lines.append(f"{_several(metric_models, 'listener')} can show nothing about others: at least {stats.MIN_SENTENCES} are "
                     "wanted, better ten.")
    if repeated := found["repeated"]["of"]:
        lines.append(f"Asked the same again with the sides changed, listeners gave the same answer "
                     f"{found['repeated']['same']} times of {repeated}.")
    lines += [f"Set aside: listener {each['listener']} ({each['file']}) missed {each['failed']:.0%} of the trials whose "
              "answer is known." for each in found["set aside"]]
    return lines + [f"Refused: {each['file']}: {each['why']}." for each in found["refused"]]


def _middle(kind: str) -> float:
    return 0.5 if kind in CHOICES else 0.0


def _question(counted: Sequence[Response], key: dict, kind: str, question: Sequence[str]) -> dict:
    values = listening_test_responses.table(counted, key, kind, question)
    found = choices(values, kind == "abx") if kind in CHOICES else estimate(values, 0.0, ROUNDED * (1 + (kind == "smos")))
    return {"kind": kind, "arms": list(question), "votes": values.size, "metric_models": values.shape[0],
            "sentences": values.shape[1], **found}


def _scores(counted: Sequence[Response], key: dict) -> dict[str, dict]:
    """The mean score of every arm and anchor; an anchor has too few clips for bounds."""
    arms = dict.fromkeys(arm for question in key["questions"] for arm in question)
    return {name: estimate(listening_test_responses.scores(counted, key, name), 0.0, ROUNDED) for name in (*arms, *ANCHORS)}


def _repeated(counted: Sequence[Response], key: dict) -> dict[str, int]:
    """How often the second answer to a pair was the first one."""
    same = [listening_test_responses.score_for(each.votes[name], key, trial["question"][0])
            == listening_test_responses.score_for(each.votes[trial["pair"]], key, trial["question"][0])
            for each in counted for name, trial in key["trials"].items() if trial.get("catch") == "repeat"]
    return {"same": sum(same), "of": len(same)}


def _sentence(found: dict) -> str:
    """One question's answer with its evidence."""
    said = SAID[found["kind"]].get(found["says"], TIED).format(*(verdict.arm_name(arm) for arm in found["arms"]))
    written = "{:.0%}" if found["kind"] in CHOICES else "{:+.2f}"
    what = {"abx": "right answers", "smos": "difference", "cmos": "mean of -3 to 3"}.get(found["kind"], "preference")
    parts = [f"{what} {written.format(found['value'])}{_bounds(found, written)}"]
    if found["kind"] in CHOICES:
        parts.append(f"{found['first']} to {found['second']} of {_several(found['votes'], 'vote')}"
                     f"{', {} undecided, counted half'.format(found['undecided']) if found['undecided'] else ''}")
        parts.append(f"exact test {_chance(found['exact chance'])}{' without the undecided' if found['undecided'] else ''}")
    parts.append(f"by luck {_chance(found['chance of all together'])}, over all questions asked")
    if found.get("findable"):
        share = round(100 * found["findable"])
        parts.append(f"{_several(found['votes'], 'vote')} can show {share}{'% right' if found['kind'] == 'abx' else ''}"
                     f"{f' : {100 - share}' if found['kind'] != 'abx' else ''} four times of five, if each stood for itself")
    if "value with all" in found:
        parts.append(f"with those set aside {written.format(found['value with all'])}")
    return f"{said[0].upper()}{said[1:]} ({'; '.join(parts)})."


def _bounds(found: dict, written: str) -> str:
    low, high = found["low"], found["high"]
    return "" if low is None else f", between {written.format(low)} and {written.format(high)}"


def _score(found: dict) -> str:
    return f"{found['value']:.1f}" + ("" if found["low"] is None else f" ({found['low']:.1f} to {found['high']:.1f})")


def _chance(chance: float) -> str:
    return "p < 0.001" if chance < 0.001 else f"p = {chance:.3f}"


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
