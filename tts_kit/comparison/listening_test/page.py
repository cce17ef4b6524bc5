"""Write the page of the listening test, and the key that says which arm each clip is.

Ids of clips reveal nothing, order and sides differ from listener to listener. That guards against looking, not against
digging: who takes the page apart can find out that two clips are the same.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, html, io
from tts_kit.comparison.listening_test import design
from tts_kit.comparison.listening_test.design import (
    GROUND_TRUTH,
    OTHER_SPEAKER,
    TEST_TYPES,
    Pairs,
    Stimuli,
    Stimulus,
    TrialSet,
)
from tts_kit.errors import KitError

PAGE, KEY, OLD_KEYS = "listening_test.html", "listening_test.json", "listening_test-*.json"
PAIRS = (("finetuned", "clone"), ("finetuned+clone", "clone"))
RATE = 24_000
SECONDS_TO_ANSWER = 4.0
"""For the duration that the page states."""


def write(rows: Sequence[dict], folder: str | Path, other_speakers: Sequence[str | Path], title: str, seed: int = 0,
          test_types: Sequence[str] = ("ab", "smos"), pairs: Pairs = PAIRS, sentences: int = 10) -> Path:
    """Write the page and its key into `folder` from the rows of a comparison; return the path of the page.

    Pairs are heard in `sentences` sentences, single clips in half of them: about ten minutes.
    """
    folder, generator, test_types = Path(folder), np.random.default_rng(seed), list(dict.fromkeys(test_types))
    arms = list(dict.fromkeys(arm for pair in pairs for arm in pair))
    present = {row["arm"] for row in rows}
    if not test_types or not set(test_types) <= set(TEST_TYPES) or not pairs:
        raise KitError(f"the test types {test_types} with the pairs {list(pairs)} make no test; wanted some of "
                       f"{', '.join(TEST_TYPES)}, and at least one pair of arms.")
    if missing := [arm for arm in arms if arm not in present]:
        raise KitError(f"the comparison has no clips of {', '.join(missing)}; it has "
                       f"{', '.join(sorted(present)) or 'none'}. Ask about other arms, or compare again.")
    if "smos" in test_types and not other_speakers:
        raise KitError("no clip of another speaker was given; smos hides one among the clips. Give one or two recordings.")
    others = [Stimulus(OTHER_SPEAKER, None, "", None, Path(path).name, audio.trim(audio.read(path, RATE), RATE))
              for path in other_speakers[:design.CATCH_TRIALS]]
    stimuli = Stimuli(pairs, list(_choose_sentences(rows, folder, arms, sentences, generator)),
                      list(_choose_recordings(rows, folder, generator)), others)
    if not stimuli.sentences or (set(test_types) != {"cmos"} and len(stimuli.recordings) < 2):
        raise KitError(f"{folder} has {len(stimuli.sentences)} sentences with clips of all of {', '.join(arms)}, and "
                       f"{len(stimuli.recordings)} recordings of the voice; a listening test needs one sentence and two "
                       "recordings. Compare more sentences.")
    return _save(design.build_trials(stimuli, test_types, seed, generator), folder, title, test_types, pairs)


def _choose_sentences(rows: Sequence[dict], folder: Path, arms: Sequence[str], count: int,
                      generator: np.random.Generator) -> Iterator[dict[str, Stimulus]]:
    """Yield up to `count` sentences in random order, each with one clip of every arm: of the same seed, if possible."""
    by_sentence = {}
    for row in rows:
        by_sentence.setdefault((row["sentence"], row["text"]), {}).setdefault(row["arm"], {})[row.get("seed")] = row
    complete = [by_arm for _, by_arm in sorted(by_sentence.items()) if set(arms) <= set(by_arm)]
    for index in generator.permutation(len(complete)):
        if count == 0:
            return
        by_arm = complete[index]
        seeds = sorted(set.intersection(*(set(by_arm[arm]) for arm in arms)), key=repr)
        seed = seeds[generator.integers(len(seeds))] if seeds else None
        clips = {arm: _read(by_arm[arm].get(seed) or next(iter(by_arm[arm].values())), folder) for arm in arms}
        if all(clips.values()):
            count -= 1
            yield clips


def _choose_recordings(rows: Sequence[dict], folder: Path, generator: np.random.Generator) -> Iterator[Stimulus]:
    """Yield recordings of the voice: the references, then the anchors."""
    recordings = [row for row in rows if row["arm"] == GROUND_TRUTH]
    for index in generator.permutation(len(recordings))[:design.REFERENCES + design.CATCH_TRIALS]:
        if clip := _read(recordings[index], folder):
            yield clip


def _read(row: dict, folder: Path) -> Stimulus | None:
    """Read a clip without the silence at its ends, which would tell arms apart; None where it cannot be heard."""
    path = folder / row["file"]
    try:
        is_inside = path.resolve().is_relative_to(folder.resolve())
    except ValueError:  # a name with a null byte
        is_inside = False
    if not is_inside:
        raise KitError(f"the clip {row['file']!r} lies outside {folder}; a page holds only what is inside. Copy it there.")
    try:
        samples = audio.trim(audio.read(path, RATE), RATE)
    except KitError as error:
        print(f"Left out of the listening test, with its sentence: {error}")
        return None
    return Stimulus(row["arm"], row["sentence"], row["text"], row.get("seed"), row["file"], samples)


def _save(trials: TrialSet, folder: Path, title: str, test_types: Sequence[str], pairs: Pairs) -> Path:
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
    _keep_old_key(folder / KEY, data["test"])
    io.write_json(folder / KEY, {"test": data["test"], "types": test_types, "pairs": pairs, "clips": facts,
                                 "trials": trials.trials})
    content, _ = html.page(__file__, title, ("player.js", "responses.js", "page.js"), data, ["media-src data:"])
    io.write_text(folder / PAGE, content)
    return folder / PAGE


def _equal_loudness(clips: dict[str, Stimulus]) -> dict[str, np.ndarray]:
    """Return all clips as loud as the one whose peaks allow the least."""
    normalized = {name: audio.normalize_loudness(clip.samples, RATE) for name, clip in clips.items()}
    loudness = {name: audio.loudness(samples, RATE) for name, samples in normalized.items()}
    quietest = min((value for value in loudness.values() if np.isfinite(value)), default=audio.TARGET_LUFS)
    return {name: audio.amplify(samples, audio.gain(loudness[name], quietest)) for name, samples in normalized.items()}


def _keep_old_key(path: Path, test: str) -> None:
    """Move the key of another test aside, because its responses may still come."""
    if not path.exists():
        return
    old = io.read_json(path, "Move it away, unless responses to its test are still to come.")
    if old.get("test") != test:
        kept = path.with_name(OLD_KEYS.replace("*", hashlib.sha256(repr(old).encode()).hexdigest()[:12]))
        io.write_json(kept, old)
        print(f"Another listening test was in {path.parent}; its key is kept as {kept.name}.")
