"""Prepare a run's data folder from clips with transcripts: check, normalize, split, and write all of it or nothing."""

import dataclasses
import hashlib
import re
import statistics
from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tts_kit import audio, text
from tts_kit.config import Config, save_config
from tts_kit.data import examples, manifest, sources
from tts_kit.data.manifest import EXCLUDED, HELD_OUT, SAMPLE_RATE, Utterance
from tts_kit.data.sources import Row
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, write_rows
from tts_kit.progress import tqdm
from tts_kit.run import Run, changed_inputs, read_inputs, write_inputs

REJECTED = "rejected.jsonl"
SETTINGS = ("speaker", "split_seed", "max_seconds", "max_characters", "held_out")
MIN_SECONDS = 0.5
MAX_LISTED = 20


def prepare(source: str | Path, run: Run, config: Config, skip_bad: bool = False,
            eval_source: str | Path = "") -> list[Utterance]:
    """Make `run.data` from a source, or use it again if it was made from the same; return the utterances, split.

    The held-out clips are those of a second source, `eval_source`, or a share of the only one."""
    source, eval_source = examples.resolve(str(source), str(eval_source))
    rows = [*sources.rows(source), *sources.held_out_rows(eval_source, source)]
    digest = hashlib.sha256("".join(map(repr, rows)).encode()).hexdigest()
    inputs = {"source": sources.identity(source), "eval_source": sources.identity(eval_source) if eval_source else "",
              **{name: getattr(config, name) for name in SETTINGS}, "skip_bad": skip_bad, "rows": digest}
    # the data of the run's own reviewed recordings is made again after another review
    may_change = inputs["source"] == sources.identity(str(run.reviewed))
    if _is_up_to_date(run.data, inputs, may_change):
        print(f"{run.data} was already made from {inputs['source']}; it is used again.")
    else:
        _write_data(rows, run.data, config, inputs)
    utterances = manifest.read(run.data)
    print(f"{summary(utterances)}. In {run.data}.")
    save_config(run, config)
    return utterances


def summary(utterances: Sequence[Utterance]) -> str:
    """Return one line: clips, minutes, speaker, and what is held out."""
    minutes = sum(utterance.seconds for utterance in utterances) / 60
    held_out = [utterance for utterance in utterances if utterance.split == HELD_OUT]
    sessions = len({utterance.session for utterance in held_out})
    excluded = sum(utterance.split == EXCLUDED for utterance in utterances)
    return (f"{len(utterances)} clips, {minutes:.1f} minutes, 1 speaker ({utterances[0].speaker or 'unnamed'}); "
            f"{len(utterances) - len(held_out) - excluded} to train on; "
            f"held out: {len(held_out)} clips from {sessions} session{'s' * (sessions != 1)}"
            + f"; {excluded} neighbours of them excluded, to avoid leakage" * (excluded > 0))


def _is_up_to_date(folder: Path, inputs: dict, may_change: bool) -> bool:
    """Return whether `folder` was made from these inputs; data made from others is never overwritten."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    recorded, changed = read_inputs(folder), changed_inputs(folder, **inputs)
    if not changed or (may_change and "source" not in changed):
        return not changed
    differences = [f"made with {name} {recorded.get(name)!r}, not {inputs[name]!r}" for name in changed if name != "rows"]
    difference = "; ".join(differences) or "the table or its audio has changed since"
    raise KitError(f"{folder} already holds other data ({difference}). It was left as it is: choose another run name, or "
                   f"delete {folder} to make it again.")


def _write_data(rows: list[Row], folder: Path, config: Config, inputs: dict) -> None:
    speaker, source_id = choose_speaker([row for row in rows if not row.held_out], config.speaker)
    # rows without a speaker stay: where others name one, they are reported as errors
    own = [row for row in rows if row.speaker in (speaker, "")]
    given = [row for row in rows if row.held_out]
    if given and not any(row.held_out for row in own):
        names = ", ".join(sorted({row.speaker for row in given})[:MAX_LISTED])
        raise KitError(f"{given[0].table} names the speakers {names}, and no clip of {speaker or 'a speaker without name'}, "
                       "whose voice is learned. Name the speaker alike in both tables, or in neither.")
    if len(own) < len(rows):
        print(f"{len(rows) - len(own)} clips of other speakers are left out.")
    usable, rejected = _check(own, config, speaker)
    if rejected and not inputs["skip_bad"]:
        raise KitError("\n".join([
            f"{len(rejected)} of {len(own)} clips cannot be used; nothing was written.",
            *(f"{row.table} row {row.number}: {reason}" for row, reason in rejected[:MAX_LISTED]),
            *[f"... and {len(rejected) - MAX_LISTED} more."] * (len(rejected) > MAX_LISTED),
            "Repair them, or leave them out with --skip-bad (skip_bad=True)."]))
    utterances = _utterances([(row, spoken) for row, spoken, _ in usable], speaker, source_id)
    utterances = (manifest.assign_given_splits(utterances) if given else
                  manifest.assign_splits(utterances, config.held_out, config.split_seed))
    # one factor for all clips: quiet ones stay the quieter
    factor = audio.gain(statistics.median(loudness for *_, loudness in usable))
    with atomic_folder(folder) as staging:
        written = []
        for (row, *_), utterance in zip(tqdm(usable, desc="writing clips", unit="clip"), utterances):
            path = staging / utterance.audio
            samples = audio.amplify(audio.trim(audio.read(row.audio(), SAMPLE_RATE, name=row.file), SAMPLE_RATE), factor)
            audio.write(path, samples, SAMPLE_RATE)
            written.append(dataclasses.replace(utterance, audio=path, seconds=round(len(samples) / SAMPLE_RATE, 3),
                                               sha256=hashlib.sha256(path.read_bytes()).hexdigest()))
        manifest.write(staging, written)
        write_inputs(staging, **inputs)
        if rejected:
            write_rows(staging / REJECTED, ({"row": row.number, "file": row.file, "reason": reason}
                                            for row, reason in rejected))
    if rejected:
        print(f"{len(rejected)} of {len(own)} clips were left out; {folder / REJECTED} says why.")


def _check(rows: list[Row], config: Config, speaker: str) -> tuple[list[tuple[Row, str, float]], list[tuple[Row, str]]]:
    """Return the usable rows with normalized text and loudness in LUFS, and the others with the reason."""
    usable, rejected, first_rows = [], [], {}
    for row in tqdm(rows, desc="checking clips", unit="clip"):
        try:
            if row.problem:
                raise KitError(row.problem)
            if speaker and not row.speaker:
                raise KitError(f"{row.file} names no speaker, in a table that names others. Fill in its source.")
            try:
                normalized = text.normalize(row.text)
            except KitError as problem:
                raise KitError(f"{row.file}: {problem}") from problem
            if len(normalized) > config.max_characters:
                raise KitError(f"{row.file}: the text has {len(normalized)} characters; the limit is "
                               f"{config.max_characters}. Split it, or raise max_characters.")
            usable.append((row, normalized, _check_audio(row, config, first_rows)))
        except KitError as problem:
            rejected.append((row, str(problem)))
    return usable, rejected


def _check_audio(row: Row, config: Config, first_rows: dict[bytes, Row]) -> float:
    """Return the loudness of a row's trimmed clip; `first_rows` holds the row of every content checked before."""
    samples = audio.read(row.audio(), SAMPLE_RATE, config.max_seconds, row.file)
    first = first_rows.setdefault(hashlib.sha256(samples.tobytes()).digest(), row)
    if first is not row:
        raise KitError(f"{row.file} sounds exactly like {first.file} of row {first.number}. Remove one of the two rows.")
    trimmed = audio.trim(samples, SAMPLE_RATE)
    seconds = min(len(samples), len(trimmed)) / SAMPLE_RATE
    if seconds < MIN_SECONDS:
        raise KitError(f"{row.file} holds {seconds:.2f} s of sound; the minimum is {MIN_SECONDS} s. Join it with another.")
    return audio.loudness(trimmed, SAMPLE_RATE)


def _utterances(rows: list[tuple[Row, str]], speaker: str, source_id: str) -> list[Utterance]:
    """Return rows with their normalized texts as utterances whose clips are not written yet."""
    folders = {(row.held_out, PurePosixPath(row.file).parent) for row, _ in rows}
    one_folder = {held_out: sum(folder[0] == held_out for folder in folders) == 1 for held_out in (False, True)}
    utterances = []
    for row, normalized in rows:
        path = PurePosixPath(row.file)
        stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60]
        name = "-".join(filter(None, ("held-out" * row.held_out, f"{row.number:05d}", stem)))
        utterances.append(Utterance(
            id=name, audio=Path("clips", f"{name}.flac"), text=normalized, original_text=" ".join(row.text.split()),
            source=source_id, speaker=speaker, split=HELD_OUT * row.held_out, seconds=0.0, row=row.number, file=row.file,
            session=row.session or manifest.session_of(path.name if one_folder[row.held_out] else row.file), sha256=""))
    return utterances


def choose_speaker(rows: Sequence[Row], speaker: str) -> tuple[str, str]:
    """Return the name of the speaker to learn and its id, digits; `speaker` may be empty if the table has one speaker."""
    table, counts = rows[0].table, Counter(row.speaker for row in rows if row.speaker)
    if speaker and not counts:
        raise KitError(f"{table} names no speakers; --speaker asks for {speaker!r}. Leave --speaker out, or add a column "
                       "source.")
    if speaker not in counts and (speaker or len(counts) > 1):
        missing = f"has no speaker {speaker!r}; it " if speaker else ""
        names = ", ".join(f"{name} ({count} clips)" for name, count in counts.most_common(MAX_LISTED))
        raise KitError(f"{table} {missing}has {len(counts)} speakers: {names}. One voice is learned at a time: choose it "
                       "with --speaker NAME (Config.speaker).")
    names = sorted(counts)
    speaker = speaker or (names or [""])[0]
    # CSM was trained with digits as speakers: names that are digits stay, others are numbered in alphabetical order
    if all(name.isascii() and name.isdigit() for name in names):
        return speaker, speaker or "0"
    return speaker, str(names.index(speaker))
