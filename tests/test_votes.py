"""Votes of the blind test: which files count, and whether what is said of them is true of listeners whose taste is known."""

import json
from pathlib import Path

import numpy as np
import pytest
from test_page import HOSTILE

from tts_kit import io
from tts_kit.comparison import listening_test, listening_test_analysis, listening_test_design, listening_test_responses
from tts_kit.comparison.listening_test_design import Stimuli, Stimulus, TrialSet
from tts_kit.errors import KitError

QUESTIONS = [["finetuned", "clone"], ["finetuned+clone", "clone"]]
RUNS = 100


def report(paths: list, folder: Path) -> list[str]:
    """The findings as lines."""
    return listening_test_analysis.describe(listening_test_analysis.analyse_files(paths, folder))


def take(arm: str, place: int) -> Stimulus:
    return Stimulus(arm, place, f"Sentence {place}.", 1, f"{arm}-{place}.flac", np.full(4, place, np.float32))


def make_key(folder: Path, kinds=("ab", "smos"), sentences: int = 6, questions=QUESTIONS) -> dict:
    """The key of a test whose clips nobody needs to hear."""
    arms = {arm for question in questions for arm in question}
    made_of = Stimuli(questions, [{arm: take(arm, place) for arm in sorted(arms)} for place in range(sentences)],
                       [take("ground_truth", place) for place in range(6)], [take("stranger", place) for place in (7, 8)])
    draft, chance = TrialSet(0, made_of.takes()), np.random.default_rng(0)
    for kind in kinds:
        listening_test_design.build_trials(draft, kind, made_of, chance)
    facts = {name: {"arm": each.arm} for name, each in draft.takes.items()}
    key = {"test": "0123456789ab", "kinds": list(kinds), "questions": questions, "clips": facts, "trials": draft.trials}
    io.write_json(folder / listening_test.KEY, key)
    return json.loads((folder / listening_test.KEY).read_text())


class Listener:
    """Somebody who hears the better arm as often as `taste` says, and anchors and equal clips always."""

    def __init__(self, chance: np.random.Generator, taste: float = 0.5, asleep: bool = False, better: str = "finetuned"):
        self.chance, self.taste, self.asleep, self.better = chance, taste, asleep, better

    def answer(self, kind: str, arms: list[str], right: bool) -> str:
        if self.asleep:
            return str(self.chance.choice(list(listening_test_design.TEST_TYPES[kind].answers)))
        first = self.chance.random() < self.taste
        if kind == "smos":
            liked = first if arms[-1] == self.better else self.chance.random() > self.taste
            return {"ground_truth": "5", "stranger": "1"}.get(arms[-1], str(3 + liked))
        if kind == "abx":
            return "A" if (first or "stranger" in arms) == right else "B"
        if arms[-1] == arms[-2]:
            return {"cmos": "0"}.get(kind, "=")
        is_b = (arms[-1] == self.better) == first if self.better in arms else self.chance.random() < 0.5
        return {True: "2", False: "-2"}[is_b] if kind == "cmos" else "AB"[is_b]

    def content(self, key: dict, rater: str) -> dict:
        """The file as the page writes it."""
        made = []
        for name, trial in key["trials"].items():
            clips = listening_test_design.assign(key["test"], rater, trial)
            said = self.answer(trial["kind"], [key["clips"][clip]["arm"] for clip in clips], clips[0] == clips[-1])
            made.append({"trial": name, "kind": trial["kind"], "clips": clips, "answer": said, "plays": [1] * len(clips),
                         "seconds": 3.5})
        return sealed({"test": key["test"], "rater": rater, "started": "a", "finished": "b",
                       "listener": {"name": HOSTILE, "headphones": "yes"}, "votes": made})


def sealed(content: dict) -> dict:
    return content | {"digest": listening_test_responses.digest(content)}


def written(folder: Path, key: dict, metric_models: list[Listener]) -> list[Path]:
    files = []
    for number, listener in enumerate(metric_models):
        files.append(folder / f"votes-{number}.json")
        io.write_json(files[-1], listener.content(key, f"{number:016x}"))
    return files


def awake(count: int, taste: float, seed: int = 3, better: str = "finetuned") -> list[Listener]:
    chance = np.random.default_rng(seed)
    return [Listener(chance, taste, better=better) for _ in range(count)]


def says(found: dict) -> dict:
    return {(each["kind"], *each["arms"]): each["says"] for each in found["questions"]}


# ---- which files count ----


def change(content: dict, **changes) -> dict:
    return sealed({name: value for name, value in content.items() if name != "digest"} | changes)


def with_vote(content: dict, **changes) -> dict:
    return change(content, votes=[content["votes"][0] | changes, *content["votes"][1:]])


HOSTILE_FILES = {
    "another test": (lambda good: change(good, test="ffffffffffff"), "belongs to the test 'ffffffffffff'"),
    "edited": (lambda good: good | {"finished": "later"}, "digest does not fit"),
    "half": (lambda good: change(good, votes=good["votes"][:5]), "answers 5 of"),
    "none": (lambda good: change(good, votes=[]), "answers 0 of"),
    "twice": (lambda good: change(good, votes=[*good["votes"], good["votes"][0]]), "answered before"),
    "unknown trial": (lambda good: with_vote(good, trial="__proto__"), "no such trial"),
    "list for a trial": (lambda good: with_vote(good, trial=["x"]), "no such trial"),
    "other clips": (lambda good: with_vote(good, clips=[*good["votes"][0]["clips"][::-1], "x"]), "not the clips"),
    "other kind": (lambda good: with_vote(good, kind="abx"), "not the clips"),
    "answer": (lambda good: with_vote(good, answer="6"), "the answer is '6'; wanted"),
    "number for an answer": (lambda good: with_vote(good, answer=5), "the answer is 5"),
    "unheard": (lambda good: with_vote(good, plays=[0] * len(good["votes"][0]["plays"])), "wanted each once"),
    "no plays": (lambda good: with_vote(good, plays=None), "wanted each once"),
    "backwards in time": (lambda good: with_vote(good, seconds=-1), "it took -1 seconds"),
    "vote is null": (lambda good: change(good, votes=[None]), "no such trial"),
    "votes are text": (lambda good: change(good, votes="x" * 500), "votes is"),
    "id": (lambda good: change(good, rater="\x1b[31m"), "id is '\\\\x1b"),
    "listener": (lambda good: change(good, listener=[]), "listener is"),
    "no digest": (lambda good: {name: good[name] for name in good if name != "digest"}, "digest is absent"),
    "list": (lambda good: [good], "no JSON object"),
    "infinity": (lambda good: '{"seconds": Infinity}', "Infinity is no number"),
    "deep": (lambda good: "[" * 100_000, "cannot be read as JSON"),
    "long number": (lambda good: '{"seconds": ' + "9" * 5000 + "}", "cannot be read as JSON"),
    "not text": (lambda good: b"\xff\xfe\x00", "cannot be read as JSON"),
    "empty": (lambda good: "", "cannot be read as JSON"),
    "huge": (lambda good: " " * 1_000_001, "larger than 1 MB"),
}


@pytest.mark.parametrize("name", HOSTILE_FILES)
def test_bad_files_are_refused_by_name(tmp_path, name):
    """Mistake: a traceback, a vote counted that nobody gave, or a file that vanishes without a word."""
    key, (make, why) = make_key(tmp_path), HOSTILE_FILES[name]
    good, = written(tmp_path, key, awake(1, 0.5))
    made = make(json.loads(good.read_text()))
    bad = tmp_path / "bad.json"
    bad.write_bytes(made if isinstance(made, bytes) else (made if isinstance(made, str) else json.dumps(made)).encode())
    poll = listening_test_responses.read([bad, good], tmp_path)
    assert [each.file for each in poll.ballots] == [good.name]
    refused, = poll.refused
    assert refused["file"] == "bad.json" and why.replace("\\\\", "\\") in refused["why"] and len(refused["why"]) < 250
    assert any(line.startswith("Refused: bad.json: ") and line.isprintable() for line in report([bad, good], tmp_path))


def test_one_listener_counts_once(tmp_path):
    """Mistake: the same file sent twice, or a copy under another name, and the votes count double."""
    key = make_key(tmp_path)
    file, = written(tmp_path, key, awake(1, 0.5))
    (tmp_path / "votes-copy.json").write_text(file.read_text())
    poll = listening_test_responses.read([file, tmp_path / "votes-copy.json", tmp_path / "absent.json"], tmp_path)
    twin, absent = (each["why"] for each in poll.refused)
    assert len(poll.ballots) == 1 and "already" in twin and "no such file" in absent


def test_votes_on_a_test_that_was_replaced_are_still_counted(tmp_path):
    """Mistake: the comparison is run again while listeners listen, and all that they send back is refused."""
    old = make_key(tmp_path)
    paths = written(tmp_path / "votes", old, awake(3, 0.9))
    io.write_json(tmp_path / "blind-0123456789ab.json", old)
    io.write_json(tmp_path / listening_test.KEY, old | {"test": "ffffffffffff"})
    assert len(listening_test_responses.read(paths, tmp_path).ballots) == 3 and listening_test_responses.read([], tmp_path).key["test"] == "ffffffffffff"
    (tmp_path / "blind-0123456789ab.json").unlink()
    assert len(listening_test_responses.read(paths, tmp_path).refused) == 3


def test_without_its_key_nothing_is_read(tmp_path):
    """Mistake: FileNotFoundError for somebody who has votes and lost the key."""
    with pytest.raises(KitError, match="nobody knows which clip is which"):
        report([], tmp_path)


def test_sleepers_are_set_aside_and_named(tmp_path):
    """Mistake: somebody who clicks through the test counts as a listener; or is dropped without a word."""
    key = make_key(tmp_path)
    chance = np.random.default_rng(3)
    asleep = [Listener(chance, asleep=True) for _ in range(6)]
    found = listening_test_analysis.analyse_files(written(tmp_path, key, [*awake(5, 0.9), *asleep]), tmp_path)
    aside = {each["file"] for each in found["set aside"]}
    assert aside <= {f"votes-{number}.json" for number in range(5, 11)} and len(aside) >= 4
    assert found["metric_models"] == 11 - len(aside) and all("value with all" in each for each in found["questions"])
    text = "\n".join(listening_test_analysis.describe(found))
    assert all(name in text for name in aside) and "with those set aside" in text


@pytest.mark.parametrize("kind", ["ab", "preference", "abx", "cmos"])
def test_each_kind_has_its_catch(tmp_path, kind):
    """Mistake: a kind in which nobody who sleeps is ever caught, or in which everybody is."""
    key = make_key(tmp_path, (kind,))
    chance = np.random.default_rng(4)
    asleep = [Listener(chance, asleep=True) for _ in range(30)]
    poll = listening_test_responses.read(written(tmp_path, key, [*awake(5, 0.7), *asleep]), tmp_path)
    assert [each.failed for each in poll.ballots[:5]] == [0] * 5
    assert sum(each.failed >= listening_test_responses.FAILED for each in poll.ballots[5:]) > 10


# ---- what is found ----


@pytest.mark.parametrize("kind", list(listening_test_design.TEST_TYPES))
@pytest.mark.parametrize("better, first, second", [("finetuned", "wins", "no difference"), ("clone", "loses", "loses")])
def test_known_tastes_are_found(tmp_path, kind, better, first, second):
    """Mistake: A for B, or the sign of a comparison the wrong way round."""
    key = make_key(tmp_path, (kind,))
    found = listening_test_analysis.analyse_files(written(tmp_path, key, awake(8, 0.95, better=better)), tmp_path)
    told = {"abx": ("wins", "wins")}.get(kind, (first, second))
    assert list(says(found).values()) == list(told)
    json.dumps(found, allow_nan=False)


@pytest.mark.parametrize("kind", list(listening_test_design.TEST_TYPES))
def test_coins_find_nothing(tmp_path, kind):
    """Mistake: a difference that is only luck."""
    key = make_key(tmp_path, (kind,))
    assert set(says(listening_test_analysis.analyse_files(written(tmp_path, key, awake(8, 0.5)), tmp_path)).values()) == {"no difference"}


def test_the_lines_hold_the_evidence(tmp_path):
    """Mistake: a claim without the question, the number of listeners and votes, bounds and power."""
    key = make_key(tmp_path)
    text = "\n".join(report(written(tmp_path, key, awake(8, 0.95)), tmp_path))
    for wanted in ("8 listeners, 8 on headphones", "Which of the two sounds more like the speaker", "48 votes", "between",
                   "The fine-tuned model wins against cloning", "four times of five", "exact test p < 0.001",
                   "a stranger 1.0", "the voice itself 5.0", "No difference can be told between fine-tuning and the"):
        assert wanted in text, wanted
    alone = "\n".join(report(written(tmp_path, key, awake(1, 0.95)), tmp_path))
    assert "1 listener can show nothing about others" in alone and "wins" not in alone
    assert "nothing can be said" in "\n".join(report([], tmp_path))


def sample(chance: np.random.Generator, share: float, spread: float, metric_models: int = 10, sentences: int = 10) -> np.ndarray:
    """Votes of listeners and on sentences that lean one way or the other, a fifth of them undecided."""
    lean = np.log(share / (1 - share)) * np.sqrt(1 + 2 * spread ** 2 / 2.9)
    lean = lean + chance.normal(0, spread, (metric_models, 1)) + chance.normal(0, spread, (1, sentences))
    found = (chance.random((metric_models, sentences)) < 1 / (1 + np.exp(-lean))).astype(float)
    found[chance.random((metric_models, sentences)) < 0.2] = 0.5
    return found


def sure(share: float, spread: float, seed: int, **size: int) -> int:
    chance = np.random.default_rng(seed)
    return sum(listening_test_analysis.choices(sample(chance, share, spread, **size))["chance"] < listening_test_analysis.SURE for _ in range(RUNS))


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_equal_arms_tie_and_a_clear_taste_is_found(spread):
    """Mistake: every vote taken for a listener of its own, which finds differences everywhere; or care that is blind."""
    assert sure(0.5, spread, seed=1) <= 5
    assert sure(0.75, spread, seed=2) >= 80


def test_naive_figures_would_be_fooled():
    """Mistake: the exact test alone, which takes the votes of one listener for those of many."""
    chance, naive, ours = np.random.default_rng(5), 0, 0
    for _ in range(RUNS):
        found = listening_test_analysis.choices(sample(chance, 0.5, 1.0))
        naive, ours = naive + (found["exact chance"] < listening_test_analysis.SURE), ours + (found["chance"] < listening_test_analysis.SURE)
    assert naive > 12 and ours <= 5


def test_scores_are_as_careful():
    """Mistake: means of scores with bounds that forget that listeners use the scale in their own way."""
    chance, covered = np.random.default_rng(6), 0
    for _ in range(RUNS):
        values = 0.3 + chance.normal(0, 0.5, (8, 1)) + chance.normal(0, 0.3, (1, 6)) + chance.normal(0, 0.8, (8, 6))
        found = listening_test_analysis.estimate(values, 0.0)
        covered += found["low"] < 0.3 < found["high"]
    assert covered >= 93


def test_unanimous_votes_are_not_sure_for_ever():
    """Mistake: nine equal votes give bounds of 100 % to 100 %, and equal scores give bounds without width."""
    found = listening_test_analysis.choices(np.ones((3, 3)))
    assert found["low"] < 0.8 and found["high"] == 1
    scores = listening_test_analysis.estimate(np.ones((3, 3)), 0.0, listening_test_analysis.ROUNDED)
    assert scores["low"] < 0.7 and scores["chance"] > 0.001


def test_power_is_that_of_the_exact_test():
    """Mistake: a promise of power that is not kept: 40 votes show 73 : 27, and ABX wants 15 of 20 right."""
    assert listening_test_analysis.minimum_detectable_preference(40) == 0.73 and listening_test_analysis.minimum_detectable_preference(3) is None
    from scipy.stats import binomtest
    assert binomtest(15, 20, alternative="greater").pvalue < 0.05
    chance = np.random.default_rng(7)
    found = sum(binomtest(int(chance.binomial(40, 0.73)), 40).pvalue < 0.05 for _ in range(1000)) / 1000
    assert 0.77 < found < 0.88
