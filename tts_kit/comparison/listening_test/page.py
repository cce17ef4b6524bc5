"""Write the page of the listening test, and the key that says which arm each clip is.

Ids of clips reveal nothing, order and sides differ from listener to listener. That guards against looking, not against
digging: who takes the page apart can find out that two clips are the same."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tts_kit import audio, html, io
from tts_kit.comparison.arms import Pairs
from tts_kit.comparison.page import read_clip
from tts_kit.errors import KitError
from tts_kit.progress import tqdm

PAGE, KEY = "listening_test.html", "listening_test.json"
PAIRS = (("finetuned", "clone"), ("finetuned+clone", "clone"))
RATE = 24_000
SECONDS_TO_ANSWER = 4.0  # for the duration that the page states
REFERENCES = 4  # recordings that listeners compare with: few, so that they get to know the voice
CATCH_TRIALS = 2  # of each kind and test type; they only show whether somebody listens
MIN_SMOS_SENTENCES = 3  # SMOS rates single clips in half of the sentences of the pairs, at least in so many
GROUND_TRUTH, OTHER_SPEAKER = "ground_truth", "other_speaker"
"""Anchors of SMOS: clips of these are hidden among those of the arms."""


@dataclass(frozen=True)
class TestType:
    question: str
    note: str
    slots: str  # what is played: R reference, A and B, or C, the one clip that is rated
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


def write(rows: Sequence[dict], folder: Path, other_speakers: Sequence[Path], title: str, seed: int = 0,
          test_types: Sequence[str] = ("ab", "smos"), pairs: Pairs = PAIRS, sentences: int = 10) -> Path:
    """Write the page and its key into `folder` from the rows of a comparison; return the path of the page.

    Pairs are heard in `sentences` sentences, single clips in half of them: about ten minutes."""
    if unknown := set(test_types) - set(TEST_TYPES):
        raise KitError(f"there are no test types {', '.join(sorted(unknown))}; wanted some of {', '.join(TEST_TYPES)}.")
    generator, test_types = np.random.default_rng(seed), list(dict.fromkeys(test_types))
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    other_speakers = [Stimulus(OTHER_SPEAKER, None, "", None, path.name, audio.trim(audio.read(path, RATE), RATE))
              for path in other_speakers[:CATCH_TRIALS]]
    chosen = list(_choose_sentences(rows, folder, arms, sentences, generator))
    own = [row for row in rows if row["arm"] == GROUND_TRUTH]
    order = generator.permutation(len(own))[:REFERENCES + CATCH_TRIALS]
    recordings = [clip for index in order if (clip := _read(own[index], folder))]  # the references, then the anchors
    if not chosen or len(recordings) < 2:
        raise KitError(f"{folder} has {len(chosen)} sentences with clips of all of {', '.join(arms)}, and {len(recordings)} "
                       "recordings of the voice; a listening test needs one sentence and two recordings. Compare more "
                       "sentences.")
    trials = TrialSet(pairs, chosen, recordings, other_speakers, seed)
    for test_type in test_types:
        trials.add_all(test_type, generator)
    return _save(trials, folder, title, test_types)


def _choose_sentences(rows: Sequence[dict], folder: Path, arms: Sequence[str], count: int,
                      generator: np.random.Generator) -> Iterator[dict[str, Stimulus]]:
    """Yield up to `count` sentences in random order, each with one clip of every arm: of the same seed, if possible."""
    by_sentence = {}
    for row in rows:
        by_sentence.setdefault((row["sentence"], row["text"]), {}).setdefault(row["arm"], []).append(row)
    complete = [by_arm for _, by_arm in sorted(by_sentence.items()) if set(arms) <= set(by_arm)]
    for index in generator.permutation(len(complete)):
        if count == 0:
            return
        by_arm = complete[index]
        take = generator.integers(min(len(by_arm[arm]) for arm in arms))
        clips = {arm: _read(by_arm[arm][take], folder) for arm in arms}
        if all(clips.values()):
            count -= 1
            yield clips


def _read(row: dict, folder: Path) -> Stimulus | None:
    """Read a clip without the silence at its ends, which would tell arms apart; None where it cannot be heard."""
    try:
        samples = audio.trim(read_clip(row, folder, RATE), RATE)
    except KitError as error:
        print(f"Left out of the listening test, with its sentence: {error}")
        return None
    return Stimulus(row["arm"], row["sentence"], row["text"], row.get("seed"), row["file"], samples)


class TrialSet:
    """Clips and trials under ids that depend on their sound and the seed, and reveal nothing."""

    def __init__(self, pairs: Pairs, sentences: Sequence[Mapping[str, Stimulus]], recordings: Sequence[Stimulus],
                 other_speakers: Sequence[Stimulus], seed: int):
        """`sentences` hold for each sentence one clip of every arm, `other_speakers` one of each."""
        self.pairs, self.sentences, self.recordings, self.other_speakers = pairs, sentences, recordings, other_speakers
        self.seed, self.clips, self.trials = seed, {}, {}

    def add_all(self, test_type: str, generator: np.random.Generator) -> None:
        """Add the trials of one type, with catch trials: equal clips among the pairs, anchors among single clips."""
        single = test_type == "smos"
        count = max(MIN_SMOS_SENTENCES, (len(self.sentences) + 1) // 2) if single else len(self.sentences)
        for index, clips in enumerate(self.sentences[:count]):
            reference = None
            if "R" in TEST_TYPES[test_type].slots:
                # a recording that says something else, so that nobody compares the words
                text, recordings = next(iter(clips.values())).text, self.recordings[:REFERENCES]
                reference = generator.choice([clip for clip in recordings if clip.text != text] or recordings)
            if single:
                for arm in dict.fromkeys(arm for pair in self.pairs for arm in pair):
                    self._add(test_type, [clips[arm]], reference, arm=arm, sentence=index)
                continue
            for one, other in self.pairs:
                self._add(test_type, [clips[one], clips[other]], reference, pair=[one, other], sentence=index)
            if index < CATCH_TRIALS:
                clip = clips[self.pairs[index % len(self.pairs)][0]]
                self._add(test_type, [clip, clip], reference, catch="identical", sentence=index)
        for index in range(CATCH_TRIALS if single else 0):
            # the last recordings, which are nobody's reference where there are enough
            own = self.recordings[-1 - index % (len(self.recordings) - 1)]
            other = self.other_speakers[index % len(self.other_speakers)]
            for arm, clip in ((GROUND_TRUTH, own), (OTHER_SPEAKER, other)):
                self._add(test_type, [clip], self.recordings[0], arm=arm, catch="anchor", sentence=index)

    def _add(self, test_type: str, clips: Sequence[Stimulus], reference: Stimulus | None, **facts: object) -> None:
        """Add a trial; `facts` are for the key: sentence, pair or arm, and whether it is a catch trial."""
        ids = sorted(map(self._clip, clips))  # by id, or the first arm of a pair would always come first
        name = hashlib.sha256(repr((test_type, ids, facts["sentence"])).encode()).hexdigest()[:12]
        self.trials[name] = {
            "type": test_type, "clips": ids, "reference": reference and self._clip(reference),
            "text": "" if test_type == "smos" else clips[0].text,  # the anchors of SMOS say another sentence
            **facts}

    def _clip(self, clip: Stimulus) -> str:
        facts = repr((self.seed, clip.arm, clip.sentence, clip.seed, clip.file))
        name = hashlib.sha256(facts.encode() + clip.samples.tobytes()).hexdigest()[:12]
        self.clips[name] = clip
        return name


def _save(trials: TrialSet, folder: Path, title: str, test_types: Sequence[str]) -> Path:
    """Write the key first: responses to a page without a key could not be read."""
    clips = dict(sorted(_equal_loudness(trials.clips).items()))
    total = sum(SECONDS_TO_ANSWER + sum(len(clips[clip]) / RATE for clip in [*trial["clips"], trial["reference"]] if clip)
                for trial in trials.trials.values())
    data = {"types": [{"type": name, **vars(TEST_TYPES[name]), "answers": list(TEST_TYPES[name].answers.items())}
                      for name in test_types],
            "trials": [{"id": name, **{field: trial[field] for field in ("type", "clips", "reference", "text")}}
                       for name, trial in sorted(trials.trials.items())],
            "minutes": int(np.ceil(total / 60)),
            "clips": {clip: html.data_uri(*audio.encode_lossy(samples, RATE))
                      for clip, samples in tqdm(clips.items(), desc="listening test", unit="clip")}}
    data["test"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:12]
    facts = {name: {field: value for field, value in vars(clip).items() if field != "samples"}
             for name, clip in trials.clips.items()}
    key = {"test": data["test"], "types": test_types, "pairs": trials.pairs, "clips": facts, "trials": trials.trials}
    io.write_json(folder / KEY, key | {"earlier": _earlier_keys(folder / KEY, data["test"])})
    content, _ = html.page(__file__, title, ("player.js", "responses.js", "page.js"), data, ["media-src data:"])
    io.write_text(folder / PAGE, content)
    return folder / PAGE


def _equal_loudness(clips: dict[str, Stimulus]) -> dict[str, np.ndarray]:
    """Return all clips as loud as the one whose peaks allow the least."""
    normalized = {name: audio.normalize_loudness(clip.samples, RATE) for name, clip in clips.items()}
    loudness = {name: audio.loudness(samples, RATE) for name, samples in normalized.items()}
    quietest = min(filter(np.isfinite, loudness.values()), default=audio.TARGET_LUFS)
    return {name: audio.amplify(samples, audio.gain(loudness[name], quietest)) for name, samples in normalized.items()}


def _earlier_keys(path: Path, test: str) -> list[dict]:
    """Return the keys of other tests in this folder, whose responses may still come."""
    if not path.exists():
        return []
    newest = io.read_json(path, "Move it away, unless responses to its test are still to come.")
    return [key for key in (newest, *newest.pop("earlier", [])) if key.get("test") != test]
