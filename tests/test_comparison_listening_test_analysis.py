"""Responses to the listening test: which files count, and whether the results are true of simulated listeners."""

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
    """The findings as lines."""
    return listening_test.describe(listening_test.analyze(paths, folder))


def clip(arm: str, number: int) -> Stimulus:
    return Stimulus(arm, number, f"Sentence {number}.", 1, f"{arm}-{number}.flac", np.full(4, number, np.float32))


def make_key(folder: Path, test_types=("ab", "smos"), sentences: int = 6, pairs=PAIRS) -> dict:
    """The key of a test whose clips nobody needs to hear."""
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
    """Somebody who prefers the better arm with the probability `taste`, and always hears anchors and equal clips."""

    def __init__(self, generator: np.random.Generator, taste: float = 0.5, asleep: bool = False, better: str = "finetuned"):
        self.generator, self.taste, self.asleep, self.better = generator, taste, asleep, better

    def answer(self, test_type: str, arms: list[str]) -> str:
        if self.asleep:
            return str(self.generator.choice(list(TEST_TYPES[test_type].answers)))
        prefers = self.generator.random() < self.taste
        if test_type == "smos":
            likes = prefers if arms[0] == self.better else self.generator.random() > self.taste
            return {"ground_truth": "5", "other_speaker": "1"}.get(arms[0], str(3 + likes))
        if arms[0] == arms[1]:
            return "0" if test_type == "cmos" else "="
        is_b = (arms[1] == self.better) == prefers if self.better in arms else self.generator.random() < 0.5
        return {True: "2", False: "-2"}[is_b] if test_type == "cmos" else "AB"[is_b]

    def content(self, key: dict, rater: str) -> dict:
        """The file as the page writes it."""
        answers = []
        for name, trial in key["trials"].items():
            clips = trial["clips"][::self.generator.choice([-1, 1])]
            answer = self.answer(trial["type"], [key["clips"][clip]["arm"] for clip in clips])
            answers.append({"trial": name, "clips": clips, "answer": answer, "plays": [1] * len(clips), "seconds": 3.5})
        return sealed({"test": key["test"], "rater": rater, "started": "a", "finished": "b",
                       "listener": {"name": HOSTILE, "headphones": "yes"}, "answers": answers})


def sealed(content: dict) -> dict:
    return content | {"digest": analysis.digest(content)}


def written(folder: Path, key: dict, listeners: list[Listener]) -> list[Path]:
    files = []
    for number, listener in enumerate(listeners):
        files.append(folder / f"responses-{number}.json")
        io.write_json(files[-1], listener.content(key, f"{number:016x}"))
    return files


def awake(count: int, taste: float, seed: int = 3, better: str = "finetuned") -> list[Listener]:
    chance = np.random.default_rng(seed)
    return [Listener(chance, taste, better=better) for _ in range(count)]


def says(found: dict) -> dict:
    return {(each["type"], *each["arms"]): each["outcome"] for each in found["comparisons"]}


# ---- which files count ----


def change(content: dict, **changes) -> dict:
    return sealed({name: value for name, value in content.items() if name != "digest"} | changes)


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
def test_bad_files_are_refused_by_name(tmp_path, name):
    """Mistake: a traceback, a vote counted that nobody gave, or a file that vanishes without a word."""
    key, (make, reason) = make_key(tmp_path), HOSTILE_FILES[name]
    good, = written(tmp_path, key, awake(1, 0.5))
    made = make(json.loads(good.read_text()))
    bad = tmp_path / "bad.json"
    bad.write_bytes(made if isinstance(made, bytes) else (made if isinstance(made, str) else json.dumps(made)).encode())
    _, read, (rejected,) = analysis.read([bad, good], tmp_path)
    assert [response.file for response in read] == [good.name]
    assert rejected["file"] == "bad.json" and len(rejected["reason"]) < 250
    assert reason.replace("\\\\", "\\") in rejected["reason"]
    assert any(line.startswith("Rejected: bad.json: ") and line.isprintable() for line in report([bad, good], tmp_path))


def test_one_listener_counts_once(tmp_path):
    """Mistake: the same file sent twice, or a copy under another name, and the votes count double."""
    key = make_key(tmp_path)
    file, = written(tmp_path, key, awake(1, 0.5))
    (tmp_path / "responses-copy.json").write_text(file.read_text())
    _, read, rejected = analysis.read([file, tmp_path / "responses-copy.json", tmp_path / "absent.json"], tmp_path)
    twin, absent = (file["reason"] for file in rejected)
    assert len(read) == 1 and "already" in twin and "no such file" in absent


def test_votes_on_a_test_that_was_replaced_are_still_counted(tmp_path):
    """Mistake: the comparison is run again while listeners listen, and all that they send back is refused."""
    old = make_key(tmp_path)
    paths = written(tmp_path / "responses", old, awake(3, 0.9))
    io.write_json(tmp_path / listening_test.KEY, old | {"test": "ffffffffffff", "earlier": [old]})
    assert len(analysis.read(paths, tmp_path)[1]) == 3 and analysis.read([], tmp_path)[0]["test"] == "ffffffffffff"
    io.write_json(tmp_path / listening_test.KEY, old | {"test": "ffffffffffff"})
    assert len(analysis.read(paths, tmp_path)[2]) == 3


def test_without_its_key_nothing_is_read(tmp_path):
    """Mistake: FileNotFoundError for somebody who has votes and lost the key."""
    with pytest.raises(KitError, match="nobody knows which clip is which"):
        report([], tmp_path)


def test_sleepers_are_set_aside_and_named(tmp_path):
    """Mistake: somebody who clicks through the test counts as a listener; or is dropped without a word."""
    key = make_key(tmp_path)
    chance = np.random.default_rng(3)
    asleep = [Listener(chance, asleep=True) for _ in range(6)]
    found = listening_test.analyze(written(tmp_path, key, [*awake(5, 0.9), *asleep]), tmp_path)
    aside = {each["file"] for each in found["excluded"]}
    assert aside <= {f"responses-{number}.json" for number in range(5, 11)} and len(aside) >= 4
    assert found["listeners"] == 11 - len(aside)
    text = "\n".join(analysis.describe(found))
    assert all(name in text for name in aside)


@pytest.mark.parametrize("kind", ["ab", "smos", "cmos"])
def test_each_kind_has_its_catch(tmp_path, kind):
    """Mistake: a kind in which nobody who sleeps is ever caught, or in which everybody is."""
    key = make_key(tmp_path, (kind,))
    chance = np.random.default_rng(4)
    asleep = [Listener(chance, asleep=True) for _ in range(30)]
    _, read, _ = analysis.read(written(tmp_path, key, [*awake(5, 0.7), *asleep]), tmp_path)
    assert [response.missed for response in read[:5]] == [0] * 5
    assert sum(response.missed >= analysis.MAX_MISSED for response in read[5:]) > 10


# ---- what is found ----


@pytest.mark.parametrize("kind", list(TEST_TYPES))
@pytest.mark.parametrize("better, first, second", [("finetuned", "wins", "no difference"), ("clone", "loses", "loses")])
def test_known_tastes_are_found(tmp_path, kind, better, first, second):
    """Mistake: A for B, or the sign of a comparison the wrong way round."""
    key = make_key(tmp_path, (kind,))
    found = listening_test.analyze(written(tmp_path, key, awake(8, 0.95, better=better)), tmp_path)
    assert list(says(found).values()) == [first, second]
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", list(TEST_TYPES))
def test_coins_find_nothing(tmp_path, kind):
    """Mistake: a difference that is only luck."""
    key = make_key(tmp_path, (kind,))
    assert set(says(listening_test.analyze(written(tmp_path, key, awake(8, 0.5)), tmp_path)).values()) == {"no difference"}


def test_the_lines_hold_the_evidence(tmp_path):
    """Mistake: a claim without the question, the number of listeners and votes, bounds and power."""
    key = make_key(tmp_path)
    text = "\n".join(report(written(tmp_path, key, awake(8, 0.95)), tmp_path))
    for wanted in ("8 listeners, 8 with headphones", "AB: Which of the two sounds more like the speaker", "48 answers",
                   "95 % CI [",
                   "The fine-tuned model sounds more like the voice than zero-shot cloning", "(80 % power", "(Holm)",
                   "another speaker 1.0", "recordings of the voice 5.0", "Tie: no significant difference between "
                                                                         "fine-tuning"):
        assert wanted in text, wanted
    alone = "\n".join(report(written(tmp_path, key, awake(1, 0.95)), tmp_path))
    assert "1 listener cannot stand for others" in alone and "sounds more" not in alone.replace("Which of the two sounds "
                                                                                                "more", "")
    assert "there is no result" in "\n".join(report([], tmp_path))


def sample(chance: np.random.Generator, share: float, spread: float, listeners: int = 10, sentences: int = 10) -> np.ndarray:
    """Votes of listeners and on sentences that lean one way or the other, a fifth of them undecided."""
    lean = np.log(share / (1 - share)) * np.sqrt(1 + 2 * spread ** 2 / 2.9)
    lean = lean + chance.normal(0, spread, (listeners, 1)) + chance.normal(0, spread, (1, sentences))
    found = (chance.random((listeners, sentences)) < 1 / (1 + np.exp(-lean))).astype(float)
    found[chance.random((listeners, sentences)) < 0.2] = 0.5
    return found


def sure(share: float, spread: float, seed: int, **size: int) -> int:
    chance = np.random.default_rng(seed)
    return sum(analysis.preference(sample(chance, share, spread, **size))["p_value"] < analysis.ALPHA for _ in range(RUNS))


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_equal_arms_tie_and_a_clear_taste_is_found(spread):
    """Mistake: every vote taken for a listener of its own, which finds differences everywhere; or care that is blind."""
    assert sure(0.5, spread, seed=1) <= 5
    assert sure(0.75, spread, seed=2) >= 80


def test_naive_figures_would_be_fooled():
    """Mistake: the exact test alone, which takes the votes of one listener for those of many."""
    chance, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(RUNS):
        found = analysis.preference(sample(chance, 0.5, 1.0))
        naive, ours = naive + (found["p_exact"] < analysis.ALPHA), ours + (found["p_value"] < analysis.ALPHA)
    assert naive > 12 and ours <= 5


def test_scores_are_as_careful():
    """Mistake: means of scores with bounds that forget that listeners use the scale in their own way."""
    chance, covered = np.random.default_rng(6), 0
    for _ in range(RUNS):
        values = 0.3 + chance.normal(0, 0.5, (8, 1)) + chance.normal(0, 0.3, (1, 6)) + chance.normal(0, 0.8, (8, 6))
        found = analysis.estimate(values, 0.0)
        covered += found["low"] < 0.3 < found["high"]
    assert covered >= 93


def test_unanimous_votes_are_not_sure_for_ever():
    """Mistake: nine equal votes give bounds of 100 % to 100 %, and equal scores give bounds without width."""
    found = analysis.preference(np.ones((3, 3)))
    assert found["low"] < 0.8 and found["high"] == 1
    scores = analysis.estimate(np.ones((3, 3)), 0.0, analysis.ROUNDING_VARIANCE)
    assert scores["low"] < 0.7 and scores["p_value"] > 0.001
