"""Read listeners' responses and analyze them: means, 95 % confidence intervals and p-values, clustered by listener and
sentence. A file that does not count is named with the reason.

The digest in a file reveals accidental edits; it is no protection against cheating."""

import json
import re
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from tts_kit import io
from tts_kit.comparison.listening_test.page import GROUND_TRUTH, KEY, OTHER_SPEAKER, TEST_TYPES
from tts_kit.comparison.verdict import ALPHA, arm_name, format_p, plural
from tts_kit.errors import KitError
from tts_kit.evaluation import stats
from tts_kit.evaluation.stats import Estimate

MAX_BYTES = 1_000_000  # a file of responses has some ten thousand
MAX_MISSED = 0.5  # listeners who fail this share of the catch trials are excluded
MAX_CMOS_OF_IDENTICAL = 1  # between identical clips; a larger score fails the catch trial
ROUNDING_VARIANCE = 1 / 12  # of scores in whole steps; unanimous listeners are no more certain than that
WINS, TIE, LOSES = "wins", "no difference", "loses"
VERBS = {"ab": {WINS: "sounds more like the voice", LOSES: "sounds less like the voice"},
         "smos": {WINS: "is rated more similar to the voice", LOSES: "is rated less similar to the voice"},
         "cmos": {WINS: "is rated better", LOSES: "is rated worse"}}
LABELS = {"ab": "preference", "smos": "difference", "cmos": "CMOS"}
ANCHORS = {GROUND_TRUTH: "recordings of the voice", OTHER_SPEAKER: "another speaker"}


@dataclass(frozen=True)
class Response:
    """The answers of one listener."""
    file: str
    rater: str
    listener: dict
    answers: dict[str, dict]  # trial -> answer
    missed: float  # share of the catch trials that were failed


def read(paths: Iterable[Path], folder: Path) -> tuple[dict, list[Response], list[dict]]:
    """Read response files, or folders of them; return the key of their test, which is in `folder`, the responses, and for
    every other file {"file", "reason"}."""
    newest = io.read_json(folder / KEY, "It is written beside the page of the listening test; without it nobody knows which "
                                        "clip is which. Put it back.")
    keys, key, responses, rejected = [newest, *newest.get("earlier", [])], None, {}, []
    for file in [file for path in paths for file in (sorted(path.glob("*.json")) if path.is_dir() else [path])]:
        try:
            content = _load(file)
            # the first response decides which test is analyzed: the newest, or one that it replaced
            key = key or next((one for one in keys if one["test"] == content.get("test")), None)
            response = parse(content, file.name, key or newest)
            if response.rater in responses:
                raise KitError(f"the listener {response.rater} already responded in {responses[response.rater].file}")
            responses[response.rater] = response
        except KitError as error:
            rejected.append({"file": file.name, "reason": str(error)})
    return key or newest, list(responses.values()), rejected


def _load(path: Path) -> dict:
    if not path.is_file():
        raise KitError("there is no such file")
    if path.stat().st_size > MAX_BYTES:
        raise KitError(f"it is larger than {MAX_BYTES / 1e6:g} MB")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise KitError(f"it cannot be read as JSON ({error!s:.60})") from error
    if not isinstance(content, dict):
        raise KitError("it is no JSON object")
    return content


def digest(content: dict) -> str:
    """Return what the page writes below the answers: CRC-32 of the rest as ASCII JSON with sorted names."""
    rest = {name: value for name, value in content.items() if name != "digest"}
    return f"{zlib.crc32(json.dumps(rest, sort_keys=True, separators=(',', ':')).encode()):08x}"


def parse(content: dict, file: str, key: dict) -> Response:
    """Return the response in a file, once it is complete and belongs to this test."""
    if content.get("test") != key["test"]:
        raise KitError(f"it belongs to the test {content.get('test')!a:.60}, and this one is {key['test']!r}")
    if content.get("digest") != digest(content):
        raise KitError("its digest does not match: it was changed after it was saved")
    rater, listener, answers = content.get("rater"), content.get("listener"), {}
    if not re.fullmatch("[0-9a-f]{16}", str(rater)) or not isinstance(listener, dict):
        raise KitError(f"the listener is {rater!a:.60}; wanted an id of 16 hexadecimal digits and a description")
    try:
        for answer in content["answers"]:
            trial = key["trials"][answer["trial"]]
            if answer["clips"] not in (trial["clips"], trial["clips"][::-1]):
                raise KitError("an answer names other clips than those of its trial")
            if answer["answer"] not in TEST_TYPES[trial["type"]].answers or answer["trial"] in answers:
                raise KitError(f"{answer['answer']!a:.60} is no answer to its question, or not the only one")
            answers[answer["trial"]] = answer
    except (KeyError, TypeError) as error:
        raise KitError(f"its answers are not as the page writes them ({error!a:.60})") from error
    if len(answers) < len(key["trials"]):
        raise KitError(f"it answers {len(answers)} of {len(key['trials'])} questions; wanted all of them")
    missed = list(_missed_catches(answers, key))
    return Response(file, rater, listener, answers, float(np.mean(missed)) if missed else 0.0)


def _missed_catches(answers: dict[str, dict], key: dict) -> Iterator[bool]:
    """Yield for each catch trial whether it was failed; the two anchors of SMOS count together."""
    anchors = {}
    for name, trial in key["trials"].items():
        if trial.get("catch") == "identical":
            answer = answers[name]["answer"]
            yield abs(int(answer)) > MAX_CMOS_OF_IDENTICAL if trial["type"] == "cmos" else answer != "="
        elif trial.get("catch") == "anchor":
            anchors.setdefault(trial["sentence"], {})[trial["arm"] == GROUND_TRUTH] = int(answers[name]["answer"])
    for scores in anchors.values():
        yield scores[True] <= scores[False]


def pair_scores(responses: Sequence[Response], key: dict, test_type: str, pair: Sequence[str]) -> np.ndarray:
    """Return (listeners, sentences), high where the first arm of the pair does well: of AB 1, 1/2 or 0, of CMOS -3 to 3, of
    SMOS the difference of the two scores."""
    if test_type == "smos":
        return smos(responses, key, pair[0]) - smos(responses, key, pair[1])
    names = sorted((trial["sentence"], name) for name, trial in key["trials"].items()
                   if trial["type"] == test_type and trial.get("pair") == list(pair))

    def score(answer: dict) -> float:
        is_b = key["clips"][answer["clips"][1]]["arm"] == pair[0]
        if test_type == "cmos":
            return float(answer["answer"]) * (1 if is_b else -1)
        return 0.5 if answer["answer"] == "=" else float((answer["answer"] == "B") == is_b)

    return np.array([[score(response.answers[name]) for _, name in names] for response in responses])


def smos(responses: Sequence[Response], key: dict, arm: str) -> np.ndarray:
    """Return the SMOS of an arm or an anchor, (listeners, sentences)."""
    names = sorted((trial["sentence"], name) for name, trial in key["trials"].items()
                   if trial["type"] == "smos" and trial["arm"] == arm)
    return np.array([[float(response.answers[name]["answer"]) for _, name in names] for response in responses])


def analyze(paths: Sequence[Path], folder: Path) -> dict:
    """Return the results of the response files for the test in `folder`, ready for JSON."""
    key, responses, rejected = read(paths, folder)
    counted = [response for response in responses if response.missed < MAX_MISSED]
    comparisons, estimates, smos_of_arms = [], [], {}
    for test_type in key["types"] if counted else []:
        for pair in key["pairs"]:
            values = pair_scores(counted, key, test_type, pair)
            if test_type == "ab":
                result, facts = preference(values)
            else:
                result = estimate(values, ROUNDING_VARIANCE * (2 if test_type == "smos" else 1))
                facts = {"p_value": result.p_value()}
            estimates.append(result)
            comparisons.append({"type": test_type, "arms": list(pair), "answers": values.size, **facts})
        if test_type == "smos":
            smos_of_arms = {arm: as_json(estimate(smos(counted, key, arm), ROUNDING_VARIANCE))
                            for arm in (*dict.fromkeys(arm for pair in key["pairs"] for arm in pair), *ANCHORS)}
    for comparison, result, p_holm in zip(comparisons, estimates, stats.holm([one["p_value"] for one in comparisons])):
        null, limits = (0.5, (0, 1)) if comparison["type"] == "ab" else (0.0, (None, None))
        if p_holm:  # the interval is as strict as the corrected p-value
            low, high = result.interval(ALPHA * result.p_value(null) / p_holm)
            result = replace(result, low=min(result.low, low), high=max(result.high, high))
        outcome = TIE if p_holm >= ALPHA else WINS if result.value > null else LOSES
        comparison |= as_json(result, limits) | {"p_holm": p_holm, "outcome": outcome}
    return {"test": key["test"], "listeners": len(counted), "answers": sum(len(response.answers) for response in counted),
            "headphones": sum(response.listener.get("headphones") == "yes" for response in counted),
            "comparisons": comparisons, "smos": smos_of_arms,
            "excluded": [{"file": response.file, "rater": response.rater, "missed": response.missed}
                         for response in responses if response not in counted],
            "rejected": rejected}


def as_json(result: Estimate, limits: tuple[float | None, float | None] = (None, None)) -> dict:
    """Return an estimate with its interval, which is cut at the limits; None for one that was not estimated."""
    bounds = np.clip((result.low, result.high), *limits).tolist() if np.isfinite(result.low) else (None, None)
    return {"value": result.value, "low": bounds[0], "high": bounds[1]}


def estimate(values: np.ndarray, min_variance: float = 0.0) -> Estimate:
    """Return the mean of (listeners, sentences) with its 95 % confidence interval.

    Two-way clustered variance (Cameron, Gelbach and Miller 2011): between listeners plus between sentences, minus half of
    the interaction (all of it would be too much for ten listeners), at least the larger of the two; Student's t."""
    listeners, sentences = values.shape
    mean, fewest = float(values.mean()), min(values.shape)
    if fewest < stats.MIN_SENTENCES:
        return Estimate(mean, -np.inf, np.inf, fewest)
    listener_means, sentence_means = values.mean(axis=1), values.mean(axis=0)
    residuals = values - listener_means[:, None] - sentence_means + mean
    by_listener, by_sentence = listener_means.var(ddof=1) / listeners, sentence_means.var(ddof=1) / sentences
    interaction = (residuals ** 2).sum() / ((listeners - 1) * (sentences - 1)) / values.size
    variance = max(by_listener, by_sentence, by_listener + by_sentence - interaction / 2, min_variance / values.size, 1e-12)
    result = Estimate(mean, -np.inf, np.inf, fewest, float(np.sqrt(variance)))
    low, high = result.interval(1 - stats.CONFIDENCE)
    return replace(result, low=low, high=high)


def preference(values: np.ndarray) -> tuple[Estimate, dict]:
    """Return the share of (listeners, sentences) of 1, 0 or 1/2 that prefers the first arm, and its tests and counts;
    undecided answers count half.

    The p-value is the larger of the clustered one and that of the exact binomial test without undecided answers."""
    from scipy.stats import binomtest

    first, second = int((values == 1).sum()), int((values == 0).sum())
    exact = float(binomtest(first, first + second).pvalue) if first + second else 1.0
    result = estimate(values)
    if np.isfinite(result.low):  # unanimous answers have no variance; the Wilson interval still has a width
        wilson = binomtest(round(2 * values.sum()) // 2, values.size).proportion_ci(method="wilson")
        result = replace(result, low=min(result.low, wilson.low), high=max(result.high, wilson.high))
    return result, {"p_value": max(exact, result.p_value(0.5)), "p_exact": exact, "first": first, "second": second,
                    "undecided": values.size - first - second}


def describe(results: dict) -> list[str]:
    """Return the results as lines of text."""
    listeners = results["listeners"]
    lines = [f"Listening test: {plural(listeners, 'listener')}, {results['headphones']} with headphones, "
             f"{plural(results['answers'], 'answer')}."]
    for test_type in dict.fromkeys(comparison["type"] for comparison in results["comparisons"]):
        lines.append(f"{test_type.upper()}: {TEST_TYPES[test_type].question} {TEST_TYPES[test_type].note}")
        if test_type == "smos":
            means = [f"{ANCHORS.get(arm, arm)} {score['value']:.1f}{_interval(score, '{:.1f}', '95 % CI')}"
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
    verb, (arm, other) = VERBS[comparison["type"]].get(comparison["outcome"]), map(arm_name, comparison["arms"])
    sentence = f"{arm} {verb} than {other}" if verb else f"tie: no significant difference between {arm} and {other}"
    form = "{:.0%}" if comparison["type"] == "ab" else "{:+.2f}"
    parts = [f"{LABELS[comparison['type']]} {form.format(comparison['value'])}{_interval(comparison, form)}"]
    if comparison["type"] == "ab":
        undecided = f", {comparison['undecided']} undecided, counted half" if comparison["undecided"] else ""
        parts.append(f"{comparison['first']} to {comparison['second']} of {plural(comparison['answers'], 'answer')}"
                     f"{undecided}")
    parts.append(f"{format_p(comparison['p_holm'])} (Holm)")
    return f"{sentence[0].upper()}{sentence[1:]} ({'; '.join(parts)})."


def _interval(result: dict, form: str, name: str = "CI") -> str:
    return "" if result["low"] is None else f", {name} [{form.format(result['low'])}, {form.format(result['high'])}]"
