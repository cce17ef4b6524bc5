"""One utterance of the voice, the manifest that lists them, and which of them are held out."""

import dataclasses
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
TRAIN, HELD_OUT, EXCLUDED = "train", "held_out", "gap"
MIN_CLIPS = 6
MIN_HELD_OUT = 2


@dataclass(frozen=True)
class Utterance:
    id: str
    """Row number and cleaned file name: unique, and safe as a file name."""
    audio: Path
    """The clip: mono, 24 kHz, levelled, trimmed."""
    text: str
    """What is said, normalised."""
    original_text: str
    """What the table said, on one line."""
    source: str
    """The speaker id that CSM reads: digits."""
    speaker: str
    """The speaker's name as the table gave it, empty if it gave none."""
    recording: str
    """The sitting this clip was cut from; whole ones are held out."""
    split: str
    """train, held_out, or gap: beside a held-out clip, used for nothing."""
    seconds: float
    """Length of the clip."""
    row: int
    """Row of the table, from 1."""
    file: str
    """File name in the table."""


def write(folder: Path, utterances: Iterable[Utterance]) -> None:
    """The manifest of `folder`; clips are named relative to it."""
    rows = (dataclasses.asdict(each) for each in utterances)
    io.write_rows(folder / MANIFEST, ({**row, "audio": row["audio"].relative_to(folder).as_posix()} for row in rows))


def read(folder: Path) -> list[Utterance]:
    """The utterances of a data folder, in the order of the table."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise KitError(f"{path} is missing: this run has no data yet. Make it first: "
                      f"tts-kit prepare SOURCE --run {Path(folder).parent.name or 'NAME'}")
    remedy = f"Delete {folder} and make it again: tts-kit prepare SOURCE --run {Path(folder).parent.name}"
    wanted = {field.name for field in dataclasses.fields(Utterance)}
    utterances = []
    for number, row in enumerate(io.read_rows(path), 1):
        if not isinstance(row, dict) or set(row) != wanted:
            raise KitError(f"{path} line {number} is no utterance of this version of the kit: wanted the fields "
                          f"{', '.join(sorted(wanted))}. {remedy}")
        audio = resolve_inside(Path(folder), str(row["audio"]))
        if audio is None or not audio.is_file():
            fault = "is missing" if audio else f"leads outside {folder}"
            raise KitError(f"{path} line {number}: {row['audio']!r} {fault}. {remedy}")
        utterances.append(Utterance(**{**row, "audio": audio}))
    return utterances


def resolve_inside(folder: Path, name: str) -> Path | None:
    """The file `name` of `folder`, or None where ../, / or a link leads out of it."""
    path = folder / name
    outside = "\0" in name or not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))
    return None if outside else path


def session_of(file: str) -> str:
    """The file's path without suffix and without its last group of digits: LJ001-0001.wav was cut from LJ001."""
    path = PurePosixPath(file)
    stem = re.sub(r"[-_. ]*\d+(?=\D*$)", "", path.stem)
    return (path.parent / stem).as_posix() if stem or path.parent.name else "recording"


def assign_splits(utterances: Sequence[Utterance], share: float, seed: int) -> list[Utterance]:
    """Mark each train, held_out or gap, so that no training clip is a neighbour of a held-out one."""
    if len(utterances) < MIN_CLIPS:
        raise KitError(f"{len(utterances)} usable clips; the least is {MIN_CLIPS}, of which {MIN_HELD_OUT} are "
                      "held out to judge the result. Add more clips of this speaker.")
    recordings = defaultdict(list)
    for utterance in utterances:
        recordings[utterance.recording].append(utterance)
    wanted = max(MIN_HELD_OUT, round(share * len(utterances)))
    chance = random.Random(seed)
    marks = _whole_recordings(recordings, wanted, chance) or _one_block(recordings, wanted, chance)
    if len(marks) == len(utterances):
        raise KitError(f"held_out {share:g} leaves none of {len(utterances)} clips to train on. Lower it, or add clips.")
    return [dataclasses.replace(each, split=marks.get(each.id, TRAIN)) for each in utterances]


def assign_given_splits(utterances: Sequence[Utterance]) -> list[Utterance]:
    """Mark each train that is not held out already, and say what training hears of those that are."""
    held = [each for each in utterances if each.split == HELD_OUT]
    learned = [each for each in utterances if each.split != HELD_OUT]
    if len(held) < MIN_HELD_OUT or len(learned) < MIN_CLIPS - MIN_HELD_OUT:
        raise KitError(f"{len(learned)} usable clips to learn from and {len(held)} held out; the least is "
                      f"{MIN_CLIPS - MIN_HELD_OUT} and {MIN_HELD_OUT}. Add more clips of this speaker.")
    for what, why in (("text", "the model learns to say them"), ("recording", "clips of one sitting are alike")):
        known = {getattr(each, what).casefold() for each in learned}
        if heard := [each for each in held if getattr(each, what).casefold() in known]:
            print(f"{len(heard)} of {len(held)} held-out clips share their {what} with clips to learn from "
                  f"({heard[0].file}: {getattr(heard[0], what)[:60]}): {why}, and they judge it too kindly.")
    return [dataclasses.replace(each, split=each.split or TRAIN) for each in utterances]


def _whole_recordings(recordings: dict[str, list[Utterance]], wanted: int, chance: random.Random) -> dict[str, str]:
    """Marks for about `wanted` clips; none where fewer than three recordings or their sizes do not allow it."""
    if len(recordings) < 3:
        return {}
    total = sum(map(len, recordings.values()))
    names = sorted(recordings)
    chance.shuffle(names)
    held: list[Utterance] = []
    # what fits the share comes first; a recording up to a third of all clips is taken only when too little is held out
    for name in sorted(names, key=lambda name: len(recordings[name]) > 1.5 * wanted):
        size = len(held) + len(recordings[name])
        if len(held) < wanted and (size <= 1.5 * wanted or (len(held) < wanted / 2 and size <= total / 3)):
            held += recordings[name]
    enough = len(held) >= max(MIN_HELD_OUT, wanted / 2)
    return {each.id: HELD_OUT for each in held} if enough else {}


def _one_block(recordings: dict[str, list[Utterance]], wanted: int, chance: random.Random) -> dict[str, str]:
    """Marks for a run of clips inside one recording, with an unused clip on each side."""
    longest = max(map(len, recordings.values()))
    roomy = sorted(name for name, clips in recordings.items() if len(clips) >= min(wanted + 2, longest))
    clips = sorted(recordings[chance.choice(roomy)], key=_place)
    size = min(wanted, len(clips))
    begin = chance.randint(0, len(clips) - size)
    marks = {each.id: HELD_OUT for each in clips[begin:begin + size]}
    beside = clips[max(0, begin - 1):begin] + clips[begin + size:begin + size + 1]
    return marks | {each.id: EXCLUDED for each in beside}


def _place(utterance: Utterance) -> tuple[int, int]:
    """Order inside a recording: by the number in the file name where the recording was told from it, else by row."""
    digits = re.search(r"(\d+)\D*$", PurePosixPath(utterance.file).stem)
    told = digits and session_of(utterance.file).endswith(utterance.recording)
    return (int(digits.group(1)[-18:]) if told else 0, utterance.row)
