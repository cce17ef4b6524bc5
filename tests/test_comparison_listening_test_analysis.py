"""Responses to the listening test: which files are accepted, and whether the results match simulated listeners."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_comparison_page import HOSTILE

from tts_kit import io
from tts_kit.comparison import listening_test
from tts_kit.comparison.listening_test import analysis
from tts_kit.comparison.listening_test.page import TEST_TYPES, Stimulus, TrialSet
from tts_kit.errors import KitError

PAIRS = [["finetuned", "clone"], ["finetuned+clone", "clone"]]
RUNS = 100


def report(paths: list, folder: Path) -> list[str]:
    """Return the results as lines."""
    return listening_test.describe(listening_test.analyze(paths, folder))


def clip(arm: str, number: int) -> Stimulus:
    return Stimulus(arm, number, f"Sentence {number}.", 1, f"{arm}-{number}.flac", np.full(4, number, np.float32))


def make_key(folder: Path, test_types=("ab", "smos"), sentences: int = 6, pairs=PAIRS) -> dict:
    """Write the key of a test whose clips are never listened to, and return it."""
    arms = sorted({arm for pair in pairs for arm in pair})
    trials = TrialSet(pairs, [{arm: clip(arm, number) for arm in arms} for number in range(sentences)],
                      [clip("ground_truth", number) for number in range(6)],
                      [clip("other_speaker", number) for number in (7, 8)], seed=0)
    for test_type in test_types:
        trials.add_all(test_type, np.random.default_rng(0))
    facts = {name: {"arm": stimulus.arm} for name, stimulus in trials.clips.items()}
    key = {"test": "0123456789ab", "types": list(test_types), "pairs": pairs, "clips": facts, "trials": trials.trials}
    io.write_json(folder / listening_test.KEY, key)
    return json.loads((folder / listening_test.KEY).read_text())


class Listener:
    """A simulated listener who prefers the better arm with probability `preference`, and always recognizes anchors and equal
    clips."""

    def __init__(self, generator: np.random.Generator, preference: float = 0.5, inattentive: bool = False,
                 better: str = "finetuned"):
        self.generator, self.preference, self.inattentive, self.better = generator, preference, inattentive, better

    def answer(self, test_type: str, arms: list[str]) -> str:
        if self.inattentive:
            return str(self.generator.choice(list(TEST_TYPES[test_type].answers)))
        prefers = self.generator.random() < self.preference
        if test_type == "smos":
            likes = prefers if arms[0] == self.better else self.generator.random() > self.preference
            return {"ground_truth": "5", "other_speaker": "1"}.get(arms[0], str(3 + likes))
        if arms[0] == arms[1]:
            return "0" if test_type == "cmos" else "="
        is_b = (arms[1] == self.better) == prefers if self.better in arms else self.generator.random() < 0.5
        return {True: "2", False: "-2"}[is_b] if test_type == "cmos" else "AB"[is_b]

    def content(self, key: dict, rater: str) -> dict:
        """Return the response file as the page writes it."""
        answers = []
        for name, trial in key["trials"].items():
            clips = trial["clips"][::self.generator.choice([-1, 1])]
            answer = self.answer(trial["type"], [key["clips"][clip]["arm"] for clip in clips])
            answers.append({"trial": name, "clips": clips, "answer": answer, "plays": [1] * len(clips), "seconds": 3.5})
        return with_digest({"test": key["test"], "rater": rater, "started": "a", "finished": "b",
                            "listener": {"name": HOSTILE, "headphones": "yes"}, "answers": answers})


def with_digest(content: dict) -> dict:
    return content | {"digest": analysis.digest(content)}


def write_responses(folder: Path, key: dict, listeners: list[Listener]) -> list[Path]:
    files = []
    for number, listener in enumerate(listeners):
        files.append(folder / f"responses-{number}.json")
        io.write_json(files[-1], listener.content(key, f"{number:016x}"))
    return files


def attentive(count: int, preference: float, seed: int = 3, better: str = "finetuned") -> list[Listener]:
    rng = np.random.default_rng(seed)
    return [Listener(rng, preference, better=better) for _ in range(count)]


def outcomes(results: dict) -> dict:
    return {(comparison["type"], *comparison["arms"]): comparison["outcome"] for comparison in results["comparisons"]}


# ---- which files are accepted ----


def change(content: dict, **changes) -> dict:
    return with_digest({name: value for name, value in content.items() if name != "digest"} | changes)


def with_answer(content: dict, **changes) -> dict:
    return change(content, answers=[content["answers"][0] | changes, *content["answers"][1:]])


HOSTILE_FILES = {
    "another test": (lambda good: change(good, test="ffffffffffff"), "belongs to the test 'ffffffffffff'"),
    "edited": (lambda good: good | {"finished": "later"}, "digest does not match"),
    "half": (lambda good: change(good, answers=good["answers"][:5]), "answers 5 of"),
    "none": (lambda good: change(good, answers=[]), "answers 0 of"),
    "twice": (lambda good: change(good, answers=[*good["answers"], good["answers"][0]]), "not the only one"),
    "unknown trial": (lambda good: with_answer(good, trial="__proto__"), "them (KeyError('__proto__'))"),
    "list for a trial": (lambda good: with_answer(good, trial=["x"]), "not as the page writes"),
    "other clips": (lambda good: with_answer(good, clips=[*good["answers"][0]["clips"][::-1], "x"]), "other clips"),
    "answer": (lambda good: with_answer(good, answer="6\x1b"), "'6\\\\x1b' is no answer"),
    "number for an answer": (lambda good: with_answer(good, answer=5), "5 is no answer"),
    "list for an answer": (lambda good: with_answer(good, answer=[]), "not as the page writes"),
    "clips are null": (lambda good: with_answer(good, clips=None), "other clips"),
    "answer is null": (lambda good: change(good, answers=[None]), "not as the page writes"),
    "answers are text": (lambda good: change(good, answers="x" * 500), "not as the page writes"),
    "answers are missing": (lambda good: change(good, answers=None), "not as the page writes"),
    "id": (lambda good: change(good, rater="\x1b[31m"), "the listener is '\\\\x1b"),
    "listener": (lambda good: change(good, listener=[]), "the listener is"),
    "no digest": (lambda good: {name: good[name] for name in good if name != "digest"}, "digest does not match"),
    "list": (lambda good: [good], "is no JSON object"),
    "infinity": (lambda good: '{"seconds": Infinity}', "belongs to the test None"),
    "deep": (lambda good: "[" * 100_000, "cannot be read as JSON"),
    "long number": (lambda good: '{"seconds": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    "not text": (lambda good: b"\xff\xfe\x00", "cannot be read as JSON"),
    "empty": (lambda good: "", "cannot be read as JSON"),
    "huge": (lambda good: " " * 1_000_001, "larger than 1 MB"),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_bad_files_are_rejected_by_name(tmp_path, name):
    """Mistake: a traceback, a response counted that nobody gave, or a file that is dropped without a message."""
    key, (damage, reason) = make_key(tmp_path), HOSTILE_FILES[name]
    good, = write_responses(tmp_path, key, attentive(1, 0.5))
    content = damage(json.loads(good.read_text()))
    bad = tmp_path / "bad.json"
    text = content if isinstance(content, str | bytes) else json.dumps(content)
    bad.write_bytes(text if isinstance(text, bytes) else text.encode())
    _, read, (rejected,) = analysis.read([bad, good], tmp_path)
    assert [response.file for response in read] == [good.name]
    assert rejected["file"] == "bad.json" and len(rejected["reason"]) < 250
    assert reason.replace("\\\\", "\\") in rejected["reason"]
    assert any(line.startswith("Rejected: bad.json: ") and line.isprintable() for line in report([bad, good], tmp_path))


def test_one_listener_counts_once(tmp_path):
    """Mistake: the same file sent twice, or a copy under another name, and the responses count double."""
    key = make_key(tmp_path)
    file, = write_responses(tmp_path, key, attentive(1, 0.5))
    (tmp_path / "responses-copy.json").write_text(file.read_text())
    _, read, rejected = analysis.read([file, tmp_path / "responses-copy.json", tmp_path / "absent.json"], tmp_path)
    copy_reason, absent_reason = (file["reason"] for file in rejected)
    assert len(read) == 1 and "already" in copy_reason and "no such file" in absent_reason


def test_responses_to_a_replaced_test_are_still_counted(tmp_path):
    """Mistake: the comparison is run again while listeners answer, and all their responses are refused."""
    old = make_key(tmp_path)
    paths = write_responses(tmp_path / "responses", old, attentive(3, 0.9))
    io.write_json(tmp_path / listening_test.KEY, old | {"test": "ffffffffffff", "earlier": [old]})
    assert len(analysis.read(paths, tmp_path)[1]) == 3 and analysis.read([], tmp_path)[0]["test"] == "ffffffffffff"
    io.write_json(tmp_path / listening_test.KEY, old | {"test": "ffffffffffff"})
    assert len(analysis.read(paths, tmp_path)[2]) == 3


def test_a_missing_key_is_an_error(tmp_path):
    """Mistake: FileNotFoundError for a user who has responses and lost the key."""
    with pytest.raises(KitError, match="nobody knows which clip is which"):
        report([], tmp_path)


def test_inattentive_listeners_are_excluded_and_named(tmp_path):
    """Mistake: somebody who clicks through the test counts as a listener, or is dropped without a message."""
    key = make_key(tmp_path)
    rng = np.random.default_rng(3)
    inattentive = [Listener(rng, inattentive=True) for _ in range(6)]
    results = listening_test.analyze(write_responses(tmp_path, key, [*attentive(5, 0.9), *inattentive]), tmp_path)
    excluded = {response["file"] for response in results["excluded"]}
    assert excluded <= {f"responses-{number}.json" for number in range(5, 11)} and len(excluded) >= 4
    assert results["listeners"] == 11 - len(excluded)
    text = "\n".join(analysis.describe(results))
    assert all(name in text for name in excluded)


@pytest.mark.parametrize("test_type", ["ab", "smos", "cmos"])
def test_every_test_type_has_catch_trials(tmp_path, test_type):
    """Mistake: a test type in which no inattentive listener is detected, or every listener is."""
    key = make_key(tmp_path, (test_type,))
    rng = np.random.default_rng(4)
    inattentive = [Listener(rng, inattentive=True) for _ in range(30)]
    _, read, _ = analysis.read(write_responses(tmp_path, key, [*attentive(5, 0.7), *inattentive]), tmp_path)
    assert [response.missed for response in read[:5]] == [0] * 5
    assert sum(response.missed >= analysis.MAX_MISSED for response in read[5:]) > 10


# ---- results ----


@pytest.mark.parametrize("test_type", list(TEST_TYPES))
@pytest.mark.parametrize("better, first, second", [("finetuned", "wins", "no difference"), ("clone", "loses", "loses")])
def test_known_preferences_are_detected(tmp_path, test_type, better, first, second):
    """Mistake: A and B, or the sign of a comparison, are swapped."""
    key = make_key(tmp_path, (test_type,))
    results = listening_test.analyze(write_responses(tmp_path, key, attentive(8, 0.95, better=better)), tmp_path)
    assert list(outcomes(results).values()) == [first, second]
    json.dumps(results, allow_nan=False)


@pytest.mark.parametrize("test_type", list(TEST_TYPES))
def test_no_tie_has_an_interval_that_excludes_it(tmp_path, test_type):
    """Mistake: "no significant difference" above an interval that excludes it, because only the p-value is corrected."""
    key = make_key(tmp_path, (test_type,))
    null, close = 0.5 if test_type == "ab" else 0.0, 0
    for seed in range(12):
        listeners = attentive(6, 0.72, seed)
        for result in listening_test.analyze(write_responses(tmp_path, key, listeners), tmp_path)["comparisons"]:
            excludes = result["low"] > null or result["high"] < null
            assert not excludes or result["outcome"] != "no difference", result
            close += not excludes and result["p_value"] < 0.05
    assert close, "no case in which the correction matters"


@pytest.mark.parametrize("test_type", list(TEST_TYPES))
def test_random_answers_show_no_difference(tmp_path, test_type):
    """Mistake: a difference that is only chance."""
    key = make_key(tmp_path, (test_type,))
    results = listening_test.analyze(write_responses(tmp_path, key, attentive(8, 0.5)), tmp_path)
    assert set(outcomes(results).values()) == {"no difference"}


def test_the_report_contains_the_evidence(tmp_path):
    """Mistake: a claim without the question, the number of listeners and responses, or the interval."""
    key = make_key(tmp_path)
    text = "\n".join(report(write_responses(tmp_path, key, attentive(8, 0.95)), tmp_path))
    for part in ("8 listeners, 8 with headphones", "AB: Which of the two sounds more like the speaker", "48 answers",
                 "95 % CI [", "The fine-tuned model sounds more like the voice than zero-shot cloning", "(Holm)",
                 "another speaker 1.0", "recordings of the voice 5.0",
                 "Tie: no significant difference between fine-tuning"):
        assert part in text, part
    one_listener = "\n".join(report(write_responses(tmp_path, key, attentive(1, 0.95)), tmp_path))
    assert "1 listener cannot stand for others" in one_listener
    assert "sounds more" not in one_listener.replace("Which of the two sounds more", "")
    assert "there is no result" in "\n".join(report([], tmp_path))


def sample(rng: np.random.Generator, share: float, spread: float, listeners: int = 10, sentences: int = 10) -> np.ndarray:
    """Responses whose preference varies between listeners and between sentences; a fifth of them are undecided."""
    logits = np.log(share / (1 - share)) * np.sqrt(1 + 2 * spread ** 2 / 2.9)
    logits = logits + rng.normal(0, spread, (listeners, 1)) + rng.normal(0, spread, (1, sentences))
    responses = (rng.random((listeners, sentences)) < 1 / (1 + np.exp(-logits))).astype(float)
    responses[rng.random((listeners, sentences)) < 0.2] = 0.5
    return responses


def count_significant(share: float, spread: float, seed: int, **size: int) -> int:
    rng = np.random.default_rng(seed)
    return sum(analysis.preference(sample(rng, share, spread, **size))[1]["p_value"] < analysis.ALPHA for _ in range(RUNS))


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_equal_arms_tie_and_a_clear_preference_is_detected(spread):
    """Mistake: every response counts as a separate listener, which shows differences everywhere; or no preference is ever
    significant."""
    assert count_significant(0.5, spread, seed=1) <= 5
    assert count_significant(0.75, spread, seed=2) >= 80


def test_the_exact_test_alone_is_too_optimistic():
    """Mistake: the exact test alone, which treats the responses of one listener as those of many."""
    rng, naive, corrected = np.random.default_rng(5), 0, 0
    for _ in range(RUNS):
        _, facts = analysis.preference(sample(rng, 0.5, 1.0))
        naive, corrected = naive + (facts["p_exact"] < analysis.ALPHA), corrected + (facts["p_value"] < analysis.ALPHA)
    assert naive > 12 and corrected <= 5


def test_score_intervals_cover_the_true_mean():
    """Mistake: mean scores with intervals that ignore that each listener uses the scale differently."""
    rng, covered = np.random.default_rng(6), 0
    for _ in range(RUNS):
        values = 0.3 + rng.normal(0, 0.5, (8, 1)) + rng.normal(0, 0.3, (1, 6)) + rng.normal(0, 0.8, (8, 6))
        result = analysis.estimate(values)
        covered += result.low < 0.3 < result.high
    assert covered >= 93


def test_unanimous_responses_are_not_certain():
    """Mistake: nine equal responses give an interval of 100 % to 100 %, and equal scores give one without width."""
    result, _ = analysis.preference(np.ones((3, 3)))
    assert result.low < 0.8 and analysis.as_json(result, (0, 1))["high"] == 1
    scores = analysis.estimate(np.ones((3, 3)), analysis.ROUNDING_VARIANCE)
    assert scores.low < 0.7 and scores.p_value() > 0.001
