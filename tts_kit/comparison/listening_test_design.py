"""The trials of a blind test: what is asked, of which clips, and in which order each listener hears them."""

import hashlib
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

REFERENCES = 4
"""Recordings of the voice that listeners compare with: few, so that they come to know it."""
CATCHES = 2
"""Trials of each sort that only show whether somebody listens."""
FEWEST = 3
"""Sentences that single clips are rated in, at least; else half of those that pairs are heard in."""
WITH_TEXT = ("ab", "preference", "cmos")
"""Kinds that show the sentence; the hidden anchors say another one, so where they are none is shown."""
Comparisons = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TestType:
    """One part of the test."""
    asked: str
    note: str
    seats: str
    """What is heard: Reference, A, B, X, or the one Clip that is rated."""
    answers: dict[str, str]


TEST_TYPES = {
    "ab": TestType("Which of the two sounds more like the speaker of the reference?",
               "Judge the voice only: ignore noise, and how well the sentence is read.", "RAB",
               {"A": "A", "=": "no difference", "B": "B"}),
    "preference": TestType("Which of the two do you prefer?", "As a recording that somebody will listen to.", "AB",
                       {"A": "A", "=": "no difference", "B": "B"}),
    "abx": TestType("X is one of the two. Which?", "Listen to each as often as you like.", "ABX", {"A": "A", "B": "B"}),
    "smos": TestType("How similar is this voice to the voice of the reference?",
                 "Judge the voice only: ignore the quality of the sound, and the words.", "RC",
                 {"1": "not at all", "2": "slightly", "3": "moderately", "4": "very", "5": "as if the same"}),
    "cmos": TestType("How does B sound, compared with A?", "Judge the whole: the voice, the sound, how it is read.", "AB",
                 {"-3": "much worse", "-2": "worse", "-1": "slightly worse", "0": "about the same", "1": "slightly better",
                  "2": "better", "3": "much better"}),
}


@dataclass(frozen=True)
class Stimulus:
    """A clip that listeners will hear, (samples,) at one rate for all."""
    arm: str
    sentence: int | None
    text: str
    seed: int | None
    file: str
    samples: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Stimuli:
    """What a test is made of: sentences in all arms asked about, recordings of the voice, clips of others."""
    questions: Comparisons
    chosen: Sequence[dict[str, Stimulus]]
    real: Sequence[Stimulus]
    strangers: Sequence[Stimulus]

    def takes(self) -> list[Stimulus]:
        return [*(take for each in self.chosen for take in each.values()), *self.real, *self.strangers]

    def references(self, chance: np.random.Generator) -> list[Stimulus]:
        """For every sentence a recording that says something else, so that nobody compares the words."""
        found = []
        for takes in self.chosen:
            text = next(iter(takes.values())).text
            some = self.real[:REFERENCES]
            others = [each for each in some if each.text != text] or some
            found.append(others[chance.integers(len(others))])
        return found


class TrialSet:
    """Clips and trials under names that only the clips themselves and the seed decide, and that say nothing."""

    def __init__(self, seed: int, takes: Sequence[Stimulus]):
        content = hashlib.sha256(repr(seed).encode())
        for take in takes:
            content.update(take.samples.tobytes())
        self.secret, self.takes, self.trials = content.hexdigest(), {}, {}

    def name(self, *parts: object) -> str:
        return hashlib.sha256(repr((self.secret, parts)).encode()).hexdigest()[:12]

    def clip(self, take: Stimulus) -> str:
        name = self.name(take.arm, take.sentence, take.seed, take.file)
        self.takes[name] = take
        return name

    def add(self, kind: str, takes: Sequence[Stimulus], reference: Stimulus | None, **facts: object) -> str:
        """One trial; `facts` are for the key: the sentence's place, the question or the arm, what it catches."""
        clips = sorted(map(self.clip, takes))  # by name, or the better arm would always be the first
        name = self.name(kind, *clips, *sorted(facts.items()))
        self.trials[name] = {"kind": kind, "clips": clips, "reference": reference and self.clip(reference),
                             "text": takes[0].text if kind in WITH_TEXT else "", "pair": name, "turned": 0, **facts}
        return name

    def repeat(self, first: str) -> None:
        """The same pair again with the sides changed, half a part away from the first time."""
        self.trials[self.name(first, "again")] = self.trials[first] | {"turned": 1, "catch": "repeat"}


def needs_voice(kind: str) -> bool:
    """Whether listeners compare with a recording of the voice."""
    return "R" in TEST_TYPES[kind].seats


def build_trials(draft: TrialSet, kind: str, made_of: Stimuli, chance: np.random.Generator) -> None:
    """Add all trials of one part to the draft."""
    if kind == "smos":
        _rate(draft, made_of, made_of.references(chance))
        return
    heard = made_of.references(chance) if needs_voice(kind) else [None] * len(made_of.chosen)
    asked = [draft.add(kind, [takes[one], takes[other]], heard[place], question=[one, other], sentence=place)
             for one, other in made_of.questions for place, takes in enumerate(made_of.chosen)]
    if kind == "abx":
        for place, (own, stranger) in enumerate(zip(made_of.real, made_of.strangers)):
            draft.add(kind, [own, stranger], None, catch="stranger", sentence=place)
        return
    for place, takes in enumerate(made_of.chosen[:CATCHES]):
        same = takes[made_of.questions[place % len(made_of.questions)][0]]
        draft.add(kind, [same, same], heard[place], catch="identical", sentence=place)
    for place in chance.permutation(len(asked))[:CATCHES]:
        draft.repeat(asked[place])


def _rate(draft: TrialSet, made_of: Stimuli, references: Sequence[Stimulus]) -> None:
    """Every arm by itself, between the voice itself and a stranger."""
    fewer = made_of.chosen[:max(FEWEST, (len(made_of.chosen) + 1) // 2)]
    for place, takes in enumerate(fewer):
        for arm in dict.fromkeys(arm for question in made_of.questions for arm in question):
            draft.add("smos", [takes[arm]], references[place], arm=arm, sentence=place)
    real, strangers = made_of.real, made_of.strangers
    for place in range(CATCHES):  # the last recordings are nobody's reference, where there are enough
        draft.add("smos", [real[-1 - place % (len(real) - 1)]], real[0], catch="voice", sentence=place)
        draft.add("smos", [strangers[place % len(strangers)]], real[0], catch="stranger", sentence=place)


def draw(test: str, rater: str, what: str) -> int:
    """A number of 32 bits that is each listener's own; ballot.js draws the same ones."""
    number = zlib.crc32(f"{test} {rater} {what}".encode())
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        number = (number ^ number >> shift) * factor & 0xFFFFFFFF
    return number


def assign(test: str, rater: str, trial: dict) -> list[str]:
    """The clips of a trial as this listener hears them, seat by seat."""
    turned = (draw(test, rater, f"side {trial['pair']}") + trial["turned"]) % 2
    clips = trial["clips"][::-1] if turned else trial["clips"]
    memorized = trial["clips"][draw(test, rater, f"copy {trial['pair']}") % len(clips)]
    seats = {"R": trial["reference"], "A": clips[0], "B": clips[-1], "C": clips[0], "X": memorized}
    return [seats[each] for each in TEST_TYPES[trial["kind"]].seats]
