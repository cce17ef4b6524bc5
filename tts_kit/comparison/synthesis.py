"""Arms x sentences x seeds -> clips on disk and their rows; what is there already is not said again."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit import audio
from tts_kit.comparison import arms, external
from tts_kit.comparison.arms import Arm
from tts_kit.comparison.external import ExternalSystem
from tts_kit.data.manifest import Utterance
from tts_kit.errors import KitError
from tts_kit.io import read_json, read_rows, write_json, write_rows
from tts_kit.run import Run
from tts_kit.speech import speak
from tts_kit.speech.speak import Request, Voice

SCORES = "scores.jsonl"


@dataclass(frozen=True)
class Sentence:
    text: str
    recording: Path | None = None
    """The voice itself saying it, where there is that."""


@dataclass(frozen=True)
class Plan:
    """Everything that is to be said, and where it goes."""
    run: Run
    folder: Path
    sentences: Sequence[Sentence]
    seeds: Sequence[int]
    arms: Sequence[Arm | ExternalSystem]
    utterances: Sequence[Utterance]
    """Of the run; references are taken from those that were learnt."""


def synthesize(plan: Plan, voice: Voice) -> tuple[list[dict], list[str]]:
    """All rows of the folder once every clip is made, and which arms could not be had, with the reason."""
    done = {row["file"]: row for row in finished_rows(plan.folder)}
    for row in _missing(plan, voice, set(done)):
        done[row["file"]] = row
        save_rows(plan.folder, done.values())
    lost = {}
    for each in plan.arms:
        if isinstance(each, ExternalSystem):
            others, lost[each.name] = _others(plan, each)
            done = _joined(done, others, len(plan.sentences) if each.folder else 0)
    save_rows(plan.folder, done.values())
    return read_rows(plan.folder / SCORES), [f"{name} is not compared: {reason}" for name, reason in lost.items() if reason]


def save_rows(folder: Path, rows: Iterator[dict]) -> None:
    """Write the rows in the order in which they are shown."""
    write_rows(folder / SCORES, sorted(rows, key=_place))


def finished_rows(folder: Path) -> list[dict]:
    """Rows whose clip is really there."""
    path = folder / SCORES
    return [row for row in read_rows(path) if (folder / row["file"]).is_file()] if path.exists() else []


def check_settings(folder: Path, settings: dict) -> None:
    """A folder holds clips of one setting only, because only those can be compared."""
    path = folder / "settings.json"
    if path.exists():
        before = read_json(path, f"Move {folder} away, and compare again.")
        shorter = min(len(before.get("sentences", [])), len(settings["sentences"]))
        cut = [each | {"sentences": each.get("sentences", [])[:shorter]} for each in (before, settings)]
        if changed := [name for name in settings if cut[0].get(name) != cut[1][name]]:
            raise KitError(f"{folder} already holds a comparison with another {', another '.join(changed)}. Move that folder "
                          "away, or compare in another run.")
    write_json(path, settings)


def _place(row: dict) -> tuple:
    known = (*arms.GIVEN_ARMS, *arms.SPOKEN_ARMS)
    kind = row["arm"].partition(":")[0]
    return row["sentence"], known.index(kind) if kind in known else len(known), row["arm"], row["seed"] or 0


def _missing(plan: Plan, voice: Voice, done: set[str]) -> Iterator[dict]:
    """Make every clip that is not there yet; gives its row once the clip is on disk."""
    yield from _given(plan, voice, done)
    for arm in plan.arms:
        if isinstance(arm, Arm) and (voice.is_finetuned or not arm.finetuned):
            yield from _spoken(plan, voice, arm, done)


def _joined(done: dict[str, dict], others: list[dict], again: int) -> dict[str, dict]:
    """All rows, with those of another system; a clip that has not changed keeps its scores.

    Of the first `again` sentences it has no rows but these: those of earlier takes go.
    """
    names = {row["arm"] for row in others}
    kept = {file: row for file, row in done.items() if row["arm"] not in names or row["sentence"] > again}
    same = {row["file"] for row in others if "content" in row
            and done.get(row["file"], {}).get("content") == row["content"]}
    return kept | {row["file"]: done[row["file"]] if row["file"] in same else row for row in others}


def _given(plan: Plan, voice: Voice, done: set[str]) -> Iterator[dict]:
    """The recordings, and the recordings through the codec and back."""
    rate = voice.base.spec.sample_rate
    recorded = [(number, each) for number, each in enumerate(plan.sentences, 1) if each.recording]
    for number, each in tqdm(recorded, desc="originals", unit="clip", disable=len(recorded) < 4):
        for arm in arms.GIVEN_ARMS:
            name = f"clips/{arm}/{number:03d}.flac"
            if name not in done:
                samples = audio.read(each.recording, rate)
                if arm == "codec":
                    samples = voice.base.codec.decode(voice.base.codec.encode([samples]))[0]
                yield _row(plan.folder, name, arm, number, each.text, None, samples, rate)


def _spoken(plan: Plan, voice: Voice, arm: Arm, done: set[str]) -> Iterator[dict]:
    """What one arm says."""
    given = arms.references(arm, plan.utterances) or None
    folder = re.sub(r"[^\w.+=-]", "_", arm.name)
    todo = [(number, Request(each.text, seed, given, arm.finetuned)) for number, each in enumerate(plan.sentences, 1)
            for seed in plan.seeds if f"clips/{folder}/{number:03d}-{seed}.flac" not in done]
    if not todo:
        return
    with arms.apply_settings(arm, voice, plan.run) as turned:
        for place, speech in speak.generate_speech([line for _, line in todo], turned, name=arm.name):
            number, line = todo[place]
            yield _row(plan.folder, f"clips/{folder}/{number:03d}-{line.seed}.flac", arm.name, number, line.text, line.seed,
                       speech.samples, speech.rate, ended_with_eos=speech.ended_with_eos, takes=speech.takes,
                       wall_seconds=round(speech.wall_seconds, 3))


def _others(plan: Plan, baseline: ExternalSystem) -> tuple[list[dict], str]:
    """Rows of another system's clips, and why it is not there at all; a clip that it lacks is a row without a file."""
    texts, place = [each.text for each in plan.sentences], plan.folder / "clips" / baseline.name
    if baseline.folder:
        found = external.from_folder(baseline.name, baseline.folder, texts)
    else:
        lines = [external.ExternalRequest(number, text, seed) for number, text in enumerate(texts, 1) for seed in plan.seeds]
        said = sorted(external.synthesize(baseline, lines, arms.pick_reference(plan.utterances), place))
        if not any(path for _, path, _ in said):
            return [], said[0][2]
        found = [external.ExternalClip(lines[number].sentence, lines[number].seed, path, reason) for number, path, reason in said]
    if lost := [each for each in found if each.path is None]:
        print(f"{baseline.name}: {len(lost)} of {len(found)} clips are not there and count as failures, sentence "
              f"{lost[0].sentence} because: {lost[0].reason}")
    return [_taken_in(plan.folder, place, baseline, each, texts[each.sentence - 1]) for each in found], ""


def _taken_in(folder: Path, place: Path, baseline: ExternalSystem, given: external.ExternalClip, text: str) -> dict:
    """A row of another system's clip, copied into the folder where it lies elsewhere."""
    name = f"clips/{baseline.name}/{given.sentence:03d}-{given.seed or 0}.{'flac' if baseline.folder else 'wav'}"
    row = {"arm": baseline.name, "sentence": given.sentence, "text": text, "seed": given.seed or 0, "file": name,
           "seconds": 0.0, "ended_with_eos": None}
    if given.path is None:
        if not baseline.folder or baseline.folder.resolve() != place.resolve():
            (folder / name).unlink(missing_ok=True)  # what lies there was made of something else
        return row | {"lost": given.reason}
    rate, _, _ = audio.probe(given.path)
    samples = audio.read(given.path, rate)
    if given.path.parent != place:
        audio.write(folder / name, samples, rate)
    content = hashlib.sha256(given.path.read_bytes()).hexdigest()[:16]
    return row | {"seconds": round(len(samples) / rate, 3), "content": content}


def _row(folder: Path, name: str, arm: str, number: int, text: str, seed: int | None, samples, rate: int,
         **spoken) -> dict:
    audio.write(folder / name, samples, rate)
    return {"arm": arm, "sentence": number, "text": text, "seed": seed, "file": name,
            "seconds": round(len(samples) / rate, 3), **spoken}
