"""Synthesize arms x sentences x seeds: clips on disk and their rows; clips that exist already are not made again."""

import contextlib
import itertools
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path

import numpy as np

from tts_kit import audio, run
from tts_kit.comparison import external
from tts_kit.comparison.arms import ARMS, GIVEN_ARMS, Arm
from tts_kit.comparison.external import ExternalArm
from tts_kit.data.manifest import TRAIN, Utterance
from tts_kit.errors import KitError
from tts_kit.io import read_rows, write_rows
from tts_kit.model import lora
from tts_kit.progress import tqdm
from tts_kit.run import Run
from tts_kit.speech import speak
from tts_kit.speech.best_of import TakeChooser
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, Voice
from tts_kit.training import generation_eval

SCORES = "scores.jsonl"
REFERENCE_SECONDS = 6.0
CHOOSING_CLIPS = 10  # training clips whose mean embedding takes are compared with


@dataclass(frozen=True)
class Sentence:
    text: str
    recording: Path | None = None  # the recording of the voice, if there is one


@dataclass(frozen=True)
class Plan:
    """What is synthesized, and where it is written."""
    run: Run
    folder: Path
    sentences: Sequence[Sentence]
    seeds: Sequence[int]
    arms: Sequence[Arm | ExternalArm]
    utterances: Sequence[Utterance]  # of the run; references are training clips among them


def synthesize(plan: Plan, voice: Voice) -> tuple[list[dict], list[str]]:
    """Return the rows of all clips, once they are made, and a sentence for each external system that cannot run."""
    rows = {row["file"]: row for row in finished_rows(plan.folder)}
    arms = [arm for arm in plan.arms if isinstance(arm, Arm) and (voice.is_finetuned or not arm.info.adapter)]
    done = set(rows)
    for row in itertools.chain(_recordings(plan, voice, done), *(_generated(plan, voice, arm, done) for arm in arms)):
        rows[row["file"]] = row
        save_rows(plan.folder, rows.values())
    problems = []
    for arm in plan.arms:
        if isinstance(arm, ExternalArm) and (reason := _add_external(plan, arm, rows)):
            problems.append(f"{arm.name} is not compared: {reason}")
    return save_rows(plan.folder, rows.values()), problems


def finished_rows(folder: Path) -> list[dict]:
    """Return the rows whose clip exists."""
    path = folder / SCORES
    return [row for row in read_rows(path) if (folder / row["file"]).is_file()] if path.exists() else []


def save_rows(folder: Path, rows: Iterable[dict]) -> list[dict]:
    """Write the rows by sentence, arm and seed, and return them in this order."""
    order = list(ARMS)

    def position(row: dict) -> tuple:
        kind = row["arm"].partition(":")[0]
        return row["sentence"], order.index(kind) if kind in order else len(order), row["arm"], row["seed"] or 0

    rows = sorted(rows, key=position)
    write_rows(folder / SCORES, rows)
    return rows


def check_inputs(folder: Path, inputs: dict) -> None:
    """Record what the clips of a folder are made from; refuse a folder whose clips were made from something else.

    Sentences may be added at the end. An input that is None is not recorded."""
    recorded = run.read_inputs(folder)
    sentences = recorded.get("sentences", [])
    begin_alike = all(one == other for one, other in zip(sentences, inputs["sentences"]))
    comparable = inputs | ({"sentences": sentences} if begin_alike else {})
    changed = run.changed_inputs(folder, **comparable) if recorded else []
    if changed:
        names = ", another ".join(changed).replace("_", " ")
        raise KitError(f"{folder} already holds a comparison with another {names}. Move that folder away, or compare in "
                       "another run.")
    run.write_inputs(folder, **{name: value for name, value in inputs.items() if value is not None})


def pick_references(utterances: Sequence[Utterance], seconds: float = REFERENCE_SECONDS, count: int = 1) -> list[Reference]:
    """Return the training clips nearest to a length; held-out clips are never given to the model."""
    clips = sorted((utterance for utterance in utterances if utterance.split == TRAIN),
                   key=lambda utterance: (abs(utterance.seconds - seconds), utterance.id))
    if len(clips) < count:
        raise KitError(f"{count} references were asked for; there are {len(clips)} training clips. Ask for fewer.")
    return [Reference(utterance.audio, utterance.text) for utterance in clips[:count]]


def references(arm: Arm, utterances: Sequence[Utterance]) -> tuple[Reference, ...]:
    """Return the reference clips of an arm."""
    settings = dict(arm.settings)
    return tuple(pick_references(utterances, settings.get("reference_seconds", REFERENCE_SECONDS),
                                 int(settings.get("references", 1)))) if arm.info.reference else ()


@contextlib.contextmanager
def apply_settings(arm: Arm, voice: Voice, run: Run) -> Iterator[Voice]:
    """Give the voice with the settings of an arm, and undo them at the end of the block; only arms with a reference get one,
    even if one is recommended."""
    settings, strength = dict(arm.settings), voice.strength
    changes = {field.name: settings[field.name] for field in fields(voice.sampling) if field.name in settings}
    try:
        if "checkpoint" in settings:
            voice.load_weights(_checkpoint(run, int(settings["checkpoint"])))
        if "strength" in settings:
            voice.set_strength(settings["strength"])
        yield replace(voice, sampling=replace(voice.sampling, **changes), context=[])
    finally:
        if "strength" in settings:
            voice.set_strength(strength)
        if "checkpoint" in settings:
            voice.load_weights(run.adapter / lora.WEIGHTS_FILE)


def _checkpoint(run: Run, step: int) -> Path:
    """Return the adapter weights saved at a step of the training."""
    paths = {int(path.parent.name.split("-")[1]): path for pattern in ("checkpoint-*", f"{generation_eval.FOLDER}/step-*")
             for path in run.training.glob(f"{pattern}/{lora.WEIGHTS_FILE}")}
    if step not in paths:
        raise KitError(f"no adapter was saved at step {step} of {run.training}; saved were those of steps "
                       f"{', '.join(map(str, sorted(paths))) or 'none'}. Train with --generation-eval-steps to save more.")
    return paths[step]


def _recordings(plan: Plan, voice: Voice, done: set[str]) -> Iterator[dict]:
    """Copy the recordings, and resynthesize them with the codec; yield each row once its clip is on disk."""
    rate, codec = voice.base.spec.sample_rate, voice.base.codec
    recorded = [(number, sentence) for number, sentence in enumerate(plan.sentences, 1) if sentence.recording]
    for number, sentence in tqdm(recorded, desc="recordings", unit="clip", disable=len(recorded) < 4):
        for arm in GIVEN_ARMS:
            file = f"clips/{arm}/{number:03d}.flac"
            if file not in done:
                samples = audio.read(sentence.recording, rate)
                if arm == "codec":
                    samples = codec.decode(codec.encode([samples]))[0]
                yield _write(plan.folder, file, arm, number, sentence.text, None, samples, rate)


def _generated(plan: Plan, voice: Voice, arm: Arm, done: set[str]) -> Iterator[dict]:
    clips = references(arm, plan.utterances) or None
    folder = "clips/" + re.sub(r"[^\w.+=-]", "_", arm.name)
    todo = [(number, Request(sentence.text, seed, clips, arm.info.adapter))
            for number, sentence in enumerate(plan.sentences, 1) for seed in plan.seeds
            if f"{folder}/{number:03d}-{seed}.flac" not in done]
    if not todo:
        return
    takes, chooser = int(dict(arm.settings).get("best_of", 1)), None
    if takes > 1:
        known = sum(utterance.split == TRAIN for utterance in plan.utterances)
        nearest = pick_references(plan.utterances, count=min(known, CHOOSING_CLIPS))
        chooser = TakeChooser(takes, [clip.path for clip in nearest])
    with apply_settings(arm, voice, plan.run) as adjusted:
        requests = [request for _, request in todo]
        for index, speech in speak.speak_requests(requests, adjusted, label=arm.name, chooser=chooser):
            number, request = todo[index]
            fields = {"choice": speech.generations[0].choice} if chooser else {}
            yield _write(plan.folder, f"{folder}/{number:03d}-{request.seed}.flac", arm.name, number, request.text,
                         request.seed, speech.samples, speech.sample_rate, ended_with_eos=speech.ended_with_eos,
                         attempts=speech.attempts, wall_seconds=round(speech.wall_seconds, 3), **fields)


def _write(folder: Path, file: str, arm: str, number: int, text: str, seed: int | None, samples: np.ndarray, rate: int,
           **fields: object) -> dict:
    audio.write(folder / file, samples, rate)
    return {"arm": arm, "sentence": number, "text": text, "seed": seed, "file": file,
            "seconds": round(len(samples) / rate, 3), **fields}


def _add_external(plan: Plan, arm: ExternalArm, rows: dict[str, dict]) -> str:
    """Add the rows of an external arm; return why it has none. A clip that did not change keeps its scores, and a clip that
    the system could not make is a row without a file."""
    texts = [sentence.text for sentence in plan.sentences]
    existing = {(row["sentence"], row["seed"]): row for row in rows.values() if row["arm"] == arm.name}
    if arm.folder:
        if arm.folder.resolve().is_relative_to(plan.folder.resolve()):
            raise KitError(f"{arm.folder} lies in {plan.folder}, where its clips are copied to. Copy it elsewhere first.")
        clips = external.from_folder(arm.name, arm.folder, len(texts))
        for row in existing.values():  # what the folder still holds is added again below
            if row["sentence"] <= len(texts):
                del rows[row["file"]]
    else:
        clips = external.synthesize(arm.name, texts, plan.seeds, pick_references(plan.utterances)[0], existing)
    missing = {}
    for clip in clips:
        row, text = existing.get((clip.sentence, clip.seed), {}), texts[clip.sentence - 1]
        file = f"clips/{arm.name}/{clip.sentence:03d}-{clip.seed}.flac"
        if clip.problem:
            (plan.folder / file).unlink(missing_ok=True)  # made from an earlier clip of this name
            missing[file] = {"arm": arm.name, "sentence": clip.sentence, "text": text, "seed": clip.seed, "file": file,
                             "seconds": 0.0, "problem": clip.problem}
        elif row and row.get("digest") == clip.digest:
            rows[file] = row
        else:
            rows[file] = _write(plan.folder, file, arm.name, clip.sentence, text, clip.seed, clip.samples, clip.rate,
                                digest=clip.digest)
            save_rows(plan.folder, rows.values())
    if missing:
        first = next(iter(missing.values()))
        if not any(row["arm"] == arm.name for row in rows.values()):
            return first["problem"]
        rows |= missing
        print(f"{arm.name}: {len(missing)} clips are missing and count as failures, sentence {first['sentence']} because: "
              f"{first['problem']}")
    return ""
