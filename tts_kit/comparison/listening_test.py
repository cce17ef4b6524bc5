"""The blind test: listeners say on one HTML file which clips they prefer; which arm a clip is, only a key beside it tells.

Names of clips say nothing, and order and sides differ from listener to listener, so nobody can go by what he sees. It guards
against looking, not against digging: who takes the page apart may find that two clips are one.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, html, io
from tts_kit.comparison import listening_test_design
from tts_kit.comparison.listening_test_design import TEST_TYPES, Comparisons, Stimuli, Stimulus, TrialSet
from tts_kit.errors import KitError

PAGE, KEY = "blind.html", "blind.json"
TEST_QUESTIONS = (("finetuned", "clone"), ("finetuned+clone", "clone"))
RATE = 24_000
THINKING = 4.0
"""Seconds that an answer takes, as promised on the page."""
WANTED = {"arm": str, "sentence": int, "text": str, "file": str}


def write(rows: Sequence[dict], folder: str | Path, strangers: Sequence[str | Path], title: str, seed: int = 0,
          kinds: Sequence[str] = ("ab", "smos"), questions: Comparisons = TEST_QUESTIONS, sentences: int = 10) -> Path:
    """Write folder/blind.html and its key from the rows of a comparison; returns the page's path.

    Each of `kinds` is one part. Pairs are heard in `sentences` sentences, single clips in half of them: about ten minutes.
    """
    folder, chance = Path(folder), np.random.default_rng(seed)
    arms = list(dict.fromkeys(arm for question in questions for arm in question))
    _check(rows, strangers, kinds, questions, arms)
    others = [Stimulus("stranger", None, "", None, Path(path).name, audio.trim(audio.read(path, RATE), RATE))
              for path in strangers[:listening_test_design.CATCHES]]
    made_of = Stimuli(questions, list(_chosen(rows, folder, arms, sentences, chance)),
                       list(_real(rows, folder, chance)), others)
    if not made_of.chosen or (set(kinds) - {"preference", "cmos"} and len(made_of.real) < 2):
        raise KitError(f"{folder} has {len(made_of.chosen)} sentences that can be heard in all of {', '.join(arms)}, and "
                      f"{len(made_of.real)} recordings of the voice; a blind test wants one sentence and two recordings or "
                      "more. Run the comparison again with more sentences.")
    draft = TrialSet(seed, made_of.takes())
    for kind in dict.fromkeys(kinds):
        listening_test_design.build_trials(draft, kind, made_of, chance)
    return _save(draft, folder, title, list(dict.fromkeys(kinds)), questions)


def _check(rows: Sequence[dict], strangers: Sequence, kinds: Sequence[str], questions: Comparisons, arms: Sequence) -> None:
    for number, row in enumerate(rows, 1):
        if wrong := [name for name, kind in WANTED.items() if type(row.get(name)) is not kind]:
            raise KitError(f"row {number} of the comparison: {wrong[0]} is {row.get(wrong[0])!r}; wanted "
                          f"{'a whole number' if WANTED[wrong[0]] is int else 'some text'}. Compare again.")
    if not kinds or not set(kinds) <= set(TEST_TYPES) or not questions or any(one == other for one, other in questions):
        raise KitError(f"the kinds {list(kinds)} about the pairs {list(questions)} make no test; wanted some of "
                      f"{', '.join(TEST_TYPES)}, and one pair of different arms or more. Choose some of these.")
    there = {row["arm"] for row in rows}
    if missing := [arm for arm in arms if arm not in there]:
        raise KitError(f"the comparison has no clips of {', '.join(missing)}, which the test asks about; it has "
                      f"{', '.join(sorted(there)) or 'none at all'}. Ask about these, or compare again.")
    if {"smos", "abx"} & set(kinds) and not strangers:
        raise KitError("no clip of another speaker was given; smos and abx hide one, which everybody who listens can tell. "
                      "Give one or two recordings of others as strangers.")


def _chosen(rows: Sequence[dict], folder: Path, arms: Sequence[str], wanted: int,
            chance: np.random.Generator) -> Iterator[dict[str, Stimulus]]:
    """Sentences in random order, each with one take of every arm: the same seed, where there is one."""
    gathered = {}
    for row in rows:
        gathered.setdefault((row["sentence"], row["text"]), {}).setdefault(row["arm"], {})[row.get("seed")] = row
    whole = [of_arm for _, of_arm in sorted(gathered.items()) if set(arms) <= set(of_arm)]
    found = 0
    for of_arm in (whole[place] for place in chance.permutation(len(whole))):
        if found == wanted:
            return
        common = sorted(set.intersection(*(set(of_arm[arm]) for arm in arms)), key=repr)
        pick = common[chance.integers(len(common))] if common else None
        takes = {arm: _take(of_arm[arm].get(pick) or next(iter(of_arm[arm].values())), folder) for arm in arms}
        if all(takes.values()):
            found += 1
            yield takes


def _real(rows: Sequence[dict], folder: Path, chance: np.random.Generator) -> Iterator[Stimulus]:
    """Recordings of the voice: those to compare with first, then those that hide among the clips."""
    real = [row for row in rows if row["arm"] == "ground_truth"]
    for place in chance.permutation(len(real))[:listening_test_design.REFERENCES + listening_test_design.CATCHES]:
        if take := _take(real[place], folder):
            yield take


def _take(row: dict, folder: Path) -> Stimulus | None:
    """The row's clip without the silence at its ends, which would tell arms apart; None where it cannot be heard."""
    path = folder / row["file"]
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except ValueError:  # a name with a null byte
        inside = False
    if not inside:
        raise KitError(f"the clip {row['file']!r} lies outside {folder}; a page holds only what is inside. Copy it there.")
    try:
        samples = audio.trim(audio.read(path, RATE), RATE)
    except KitError as problem:
        print(f"Left out of the blind test, with its sentence: {problem}")
        return None
    return Stimulus(row["arm"], row["sentence"], row["text"], row.get("seed"), row["file"], samples)


def _save(draft: TrialSet, folder: Path, title: str, kinds: Sequence[str], questions: Comparisons) -> Path:
    """The key first: a page whose votes nobody can read would be worse than none."""
    asked = [{"kind": kind, "asked": TEST_TYPES[kind].asked, "note": TEST_TYPES[kind].note, "seats": TEST_TYPES[kind].seats,
              "answers": list(TEST_TYPES[kind].answers.items())} for kind in kinds]
    shown = ("kind", "clips", "reference", "text", "pair", "turned")
    listed = [{"id": name, **{each: trial[each] for each in shown}} for name, trial in sorted(draft.trials.items())]
    used = dict(sorted(_level(draft.takes).items()))
    seconds = {clip: len(samples) / RATE for clip, samples in used.items()}
    total = sum(THINKING + sum(seconds[clip] for clip in listening_test_design.assign("", "", trial)) for trial in draft.trials.values())
    data = {"kinds": asked, "trials": listed, "minutes": int(np.ceil(total / 60)),
            "clips": {clip: html.data_uri(*audio.encode_lossy(samples, RATE))
                      for clip, samples in tqdm(used.items(), desc="blind test", unit="clip")}}
    data["test"] = hashlib.sha256(json.dumps(data).encode()).hexdigest()[:12]
    facts = {clip: {"arm": take.arm, "sentence": take.sentence, "text": take.text, "seed": take.seed, "file": take.file}
             for clip, take in draft.takes.items()}
    _keep_old_key(folder / KEY, data["test"])
    key = {"test": data["test"], "kinds": kinds, "questions": questions, "clips": facts, "trials": draft.trials}
    io.write_text(folder / KEY, json.dumps(key, indent=1))
    io.write_text(folder / PAGE, html.page(__file__, title, ("ballot.js", "listening_test.js"), data, ["media-src data:"])[0])
    return folder / PAGE


def _level(takes: dict[str, Stimulus]) -> dict[str, np.ndarray]:
    """All clips as loud as the one that has to stay quietest, lest its peaks are cut."""
    levelled = {clip: audio.normalize_loudness(take.samples, RATE) for clip, take in takes.items()}
    loud = {clip: audio.loudness(samples, RATE) for clip, samples in levelled.items()}
    quietest = min((each for each in loud.values() if np.isfinite(each)), default=audio.TARGET_LUFS)
    return {clip: audio.amplify(samples, audio.gain(loud[clip], quietest)) for clip, samples in levelled.items()}


def _keep_old_key(path: Path, test: str) -> None:
    """Votes may be on their way for the test that stood here; without its key nobody could read them."""
    if not path.exists():
        return
    old = io.read_json(path, "Move it away, unless votes of its test are still to come.")
    if old.get("test") != test:
        kept = path.with_name(f"{path.stem}-{hashlib.sha256(repr(old).encode()).hexdigest()[:12]}.json")
        io.write_json(kept, old)
        print(f"Another blind test stood in {path.parent}; its key is kept as {kept.name}.")
