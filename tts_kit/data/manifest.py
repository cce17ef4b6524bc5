"""The manifest of a run's data: one utterance per row, its clip and digest, its session, and whether it is held out."""

import dataclasses
import hashlib
import os
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tts_kit import io
from tts_kit.errors import KitError

SAMPLE_RATE = 24_000
MANIFEST = "manifest.jsonl"
TRAIN, HELD_OUT, EXCLUDED = "train", "held_out", "excluded"
MIN_CLIPS = 6
MIN_HELD_OUT = 2
# minutes from which a voice is recognisable, is stable, and gains little from more, as users of other kits report them
MIN_MINUTES, STEADY_MINUTES, ENOUGH_MINUTES = 5, 25, 40


@dataclass(frozen=True)
class Utterance:
    """One row of the manifest."""
    id: str  # row number and cleaned file name: unique, and safe as a file name
    audio: Path  # the clip: mono, 24 kHz, trimmed, normalized in loudness
    text: str  # what is said, normalized
    original_text: str  # the text of the input table, on one line
    source: str  # the speaker id that CSM reads: digits
    speaker: str  # the speaker's name in the input table, empty if it gave none
    session: str  # the recording session the clip was cut from; sessions are held out as a whole
    split: str  # train, held_out, or excluded: next to a held-out clip of the same session, used for nothing
    seconds: float  # duration of the clip
    row: int  # row of the input table, from 1
    file: str  # file name in the input table
    sha256: str  # of the clip's file


def write(folder: Path, utterances: Iterable[Utterance]) -> None:
    """Write the manifest of `folder`; clips are named relative to it."""
    rows = (dataclasses.asdict(utterance) for utterance in utterances)
    io.write_rows(folder / MANIFEST, ({**row, "audio": row["audio"].relative_to(folder).as_posix()} for row in rows))


def read(folder: Path) -> list[Utterance]:
    """Return the utterances of a data folder, in the order of the input table."""
    folder = Path(folder)
    path, run_name = folder / MANIFEST, folder.parent.name or "NAME"
    if not path.is_file():
        raise KitError(f"{path} is missing: this run has no data yet. Make it: tts-kit prepare SOURCE --run {run_name}")
    remedy = f"Delete {folder} and make it again: tts-kit prepare SOURCE --run {run_name}"
    fields = {field.name for field in dataclasses.fields(Utterance)}
    utterances = []
    for number, row in enumerate(io.read_rows(path), 1):
        if not isinstance(row, dict) or set(row) != fields:
            raise KitError(f"{path} line {number} is no utterance of this version of the kit. {remedy}")
        audio = resolve_inside(folder, str(row["audio"]))
        if audio is None or not audio.is_file():
            fault = "is missing" if audio else f"leads outside {folder}"
            raise KitError(f"{path} line {number}: {row['audio']!r} {fault}. {remedy}")
        utterances.append(Utterance(**{**row, "audio": audio}))
    return utterances


def read_audio(utterance: Utterance) -> bytes:
    """Return the content of a clip's file, unless it is not the one that the manifest lists."""
    content = utterance.audio.read_bytes()
    if hashlib.sha256(content).hexdigest() != utterance.sha256:
        raise KitError(f"{utterance.audio} is not the clip that the manifest lists. Delete the data and prepare it again.")
    return content


def digest(folder: Path) -> str:
    """Return what identifies a data folder: the digest of its manifest, which holds those of its clips."""
    return hashlib.sha256((Path(folder) / MANIFEST).read_bytes()).hexdigest()[:16]


def audio_digest(utterances: Iterable[Utterance]) -> str:
    """Return what identifies the clips alone, whatever their texts, order and splits."""
    digests = sorted(utterance.sha256 for utterance in utterances)
    return hashlib.sha256("".join(f"{digest}\n" for digest in digests).encode()).hexdigest()


def resolve_inside(folder: Path, name: str) -> Path | None:
    """Return the file `name` of `folder`, or None if ../, / or a link leads out of it."""
    path = folder / name
    outside = "\0" in name or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    return None if outside else path


def session_of(file: str) -> str:
    """Infer the session from a file name, its path without suffix and last number: LJ001-0001.wav was cut from LJ001."""
    path = PurePosixPath(file)
    stem = re.sub(r"[-_. ]*\d+(?=\D*$)", "", path.stem)
    return (path.parent / stem).as_posix() if stem or path.parent.name else "recording"


def assign_splits(utterances: Sequence[Utterance], held_out: float, seed: int) -> list[Utterance]:
    """Mark each train, held_out or excluded, so that no training clip is a neighbour of a held-out one."""
    if len(utterances) < MIN_CLIPS:
        raise KitError(f"{len(utterances)} usable clips; the minimum is {MIN_CLIPS}, of which {MIN_HELD_OUT} are "
                       "held out for evaluation. Add more clips of this speaker.")
    sessions = defaultdict(list)
    for utterance in utterances:
        sessions[utterance.session].append(utterance)
    count = max(MIN_HELD_OUT, round(held_out * len(utterances)))
    rng = random.Random(seed)
    splits = _hold_out_sessions(sessions, count, rng) or _hold_out_block(sessions, count, rng)
    if len(splits) == len(utterances):
        raise KitError(f"held_out {held_out:g} leaves none of {len(utterances)} clips to train on. Lower it, or add clips.")
    return [dataclasses.replace(utterance, split=splits.get(utterance.id, TRAIN)) for utterance in utterances]


def assign_given_splits(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Mark each train that is not held out already, and report texts and sessions that both splits share."""
    held_out = [utterance for utterance in utterances if utterance.split == HELD_OUT]
    train = [utterance for utterance in utterances if utterance.split != HELD_OUT]
    if len(held_out) < MIN_HELD_OUT or len(train) < MIN_CLIPS - MIN_HELD_OUT:
        raise KitError(f"{len(train)} usable clips to train on and {len(held_out)} held out; the minimum is "
                       f"{MIN_CLIPS - MIN_HELD_OUT} and {MIN_HELD_OUT}. Add more clips of this speaker.")
    for field, reason in (("text", "the model is trained on them"), ("session", "clips of one session are alike")):
        trained = {getattr(utterance, field).casefold() for utterance in train}
        if leaked := [utterance for utterance in held_out if getattr(utterance, field).casefold() in trained]:
            print(f"{len(leaked)} of {len(held_out)} held-out clips share their {field} with training clips "
                  f"({leaked[0].file}: {getattr(leaked[0], field)[:60]}): {reason}, so the evaluation is too favourable.")
    return [dataclasses.replace(utterance, split=utterance.split or TRAIN) for utterance in utterances]


def _hold_out_sessions(sessions: dict[str, list[Utterance]], count: int, rng: random.Random) -> dict[str, str]:
    """Return id -> split for about `count` clips; empty if there are too few sessions, or none of a fitting size."""
    if len(sessions) < 3:
        return {}
    total = sum(map(len, sessions.values()))
    names = sorted(sessions)
    rng.shuffle(names)
    held_out: list[Utterance] = []
    # sessions that fit come first; one of up to a third of all clips is taken only if too little is held out
    for name in sorted(names, key=lambda name: len(sessions[name]) > 1.5 * count):
        size = len(held_out) + len(sessions[name])
        if len(held_out) < count and (size <= 1.5 * count or (len(held_out) < count / 2 and size <= total / 3)):
            held_out += sessions[name]
    enough = len(held_out) >= max(MIN_HELD_OUT, count / 2)
    return {utterance.id: HELD_OUT for utterance in held_out} if enough else {}


def _hold_out_block(sessions: dict[str, list[Utterance]], count: int, rng: random.Random) -> dict[str, str]:
    """Return id -> split for consecutive clips of one session, with an excluded neighbour on each side."""
    largest = max(map(len, sessions.values()))
    large_enough = sorted(name for name, clips in sessions.items() if len(clips) >= min(count + 2, largest))
    clips = sorted(sessions[rng.choice(large_enough)], key=_position_in_session)
    size = min(count, len(clips))
    begin = rng.randint(0, len(clips) - size)
    neighbours = clips[max(0, begin - 1):begin] + clips[begin + size:begin + size + 1]
    return {clip.id: HELD_OUT for clip in clips[begin:begin + size]} | {clip.id: EXCLUDED for clip in neighbours}


def _position_in_session(utterance: Utterance) -> tuple[int, int]:
    """Order by the number in the file name if the session was inferred from the name, else by row."""
    digits = re.search(r"(\d+)\D*$", PurePosixPath(utterance.file).stem)
    inferred = digits and session_of(utterance.file).endswith(utterance.session)
    return (int(digits.group(1)[-18:]) if inferred else 0, utterance.row)
