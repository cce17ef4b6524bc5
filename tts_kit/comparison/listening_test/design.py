"""Design of the listening test: types of questions, trials, catch trials."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

REFERENCES = 4
"""Recordings that listeners compare with: few, so that they get to know the voice."""
CATCH_TRIALS = 2
"""Of each kind and test type; they only show whether somebody listens."""
MIN_SMOS_SENTENCES = 3
"""SMOS rates single clips in half of the sentences of the pairs, at least in so many."""
GROUND_TRUTH, OTHER_SPEAKER = "ground_truth", "other_speaker"
"""Anchors of SMOS: clips of these are hidden among those of the arms."""
Pairs = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class TestType:
    question: str
    note: str
    slots: str
    """What is played: R reference, A and B, or C, the one clip that is rated."""
    answers: dict[str, str]


TEST_TYPES = {
    "ab": TestType("Which of the two sounds more like the speaker of the reference?",
                   "Judge the voice only: ignore noise, and how well the sentence is read.", "RAB",
                   {"A": "A", "=": "no difference", "B": "B"}),
    "smos": TestType("How similar is this voice to the voice of the reference?",
                     "Judge the voice only: ignore the quality of the sound, and the words.", "RC",
                     {"1": "not at all", "2": "slightly", "3": "moderately", "4": "very", "5": "as if the same"}),
    "cmos": TestType("How does B sound, compared with A?", "Judge everything: the voice, the sound, how it is read.", "AB",
                     {"-3": "much worse", "-2": "worse", "-1": "slightly worse", "0": "about the same",
                      "1": "slightly better", "2": "better", "3": "much better"}),
}


@dataclass(frozen=True)
class Stimulus:
    """A clip that listeners hear, (samples,) at one rate for all."""
    arm: str
    sentence: int | None
    text: str
    seed: int | None
    file: str
    samples: np.ndarray = field(repr=False)


@dataclass(frozen=True)
class Stimuli:
    """All clips of a test."""
    pairs: Pairs
    sentences: Sequence[dict[str, Stimulus]]
    """Of each sentence one clip of every arm."""
    recordings: Sequence[Stimulus]
    others: Sequence[Stimulus]
    """Clips of other speakers."""

    def references(self, generator: np.random.Generator) -> list[Stimulus]:
        """Return for every sentence a recording that says something else, so that nobody compares the words."""
        references = []
        for clips in self.sentences:
            text = next(iter(clips.values())).text
            candidates = self.recordings[:REFERENCES]
            candidates = [clip for clip in candidates if clip.text != text] or candidates
            references.append(candidates[generator.integers(len(candidates))])
        return references


class TrialSet:
    """Clips and trials under ids that depend on the content and the seed alone, and reveal nothing."""

    def __init__(self, stimuli: Stimuli, seed: int):
        content = hashlib.sha256(repr(seed).encode())
        of_arms = [clip for clips in stimuli.sentences for clip in clips.values()]
        for clip in (*of_arms, *stimuli.recordings, *stimuli.others):
            content.update(clip.samples.tobytes())
        self.secret, self.clips, self.trials = content.hexdigest(), {}, {}

    def add(self, test_type: str, clips: Sequence[Stimulus], reference: Stimulus | None, **facts: object) -> None:
        """Add a trial; `facts` are for the key: sentence, pair or arm, and whether it is a catch trial."""
        ids = sorted(map(self._clip, clips))  # by id, or the first arm of a pair would always come first
        self.trials[self._id(test_type, *ids, *sorted(facts.items()))] = {
            "type": test_type, "clips": ids, "reference": reference and self._clip(reference),
            "text": "" if test_type == "smos" else clips[0].text,  # the anchors of SMOS say another sentence
            **facts}

    def _clip(self, clip: Stimulus) -> str:
        name = self._id(clip.arm, clip.sentence, clip.seed, clip.file)
        self.clips[name] = clip
        return name

    def _id(self, *parts: object) -> str:
        return hashlib.sha256(repr((self.secret, parts)).encode()).hexdigest()[:12]


def build_trials(stimuli: Stimuli, test_types: Sequence[str], seed: int, generator: np.random.Generator) -> TrialSet:
    """Return all trials of a test, with catch trials: equal clips among the pairs, anchors among single clips."""
    trials = TrialSet(stimuli, seed)
    for test_type in test_types:
        references = stimuli.references(generator) if "R" in TEST_TYPES[test_type].slots else [None] * len(stimuli.sentences)
        if test_type == "smos":
            _add_smos(trials, stimuli, references)
            continue
        for index, (clips, reference) in enumerate(zip(stimuli.sentences, references)):
            for one, other in stimuli.pairs:
                trials.add(test_type, [clips[one], clips[other]], reference, pair=[one, other], sentence=index)
            if index < CATCH_TRIALS:
                clip = clips[stimuli.pairs[index % len(stimuli.pairs)][0]]
                trials.add(test_type, [clip, clip], reference, catch="identical", sentence=index)
    return trials


def _add_smos(trials: TrialSet, stimuli: Stimuli, references: Sequence[Stimulus]) -> None:
    count = max(MIN_SMOS_SENTENCES, (len(stimuli.sentences) + 1) // 2)
    for index, clips in enumerate(stimuli.sentences[:count]):
        for arm in dict.fromkeys(arm for pair in stimuli.pairs for arm in pair):
            trials.add("smos", [clips[arm]], references[index], arm=arm, sentence=index)
    recordings, others = stimuli.recordings, stimuli.others
    for index in range(CATCH_TRIALS):
        # the last recordings, which are nobody's reference where there are enough
        own, other = recordings[-1 - index % (len(recordings) - 1)], others[index % len(others)]
        for arm, clip in ((GROUND_TRUTH, own), (OTHER_SPEAKER, other)):
            trials.add("smos", [clip], recordings[0], arm=arm, catch="anchor", sentence=index)
