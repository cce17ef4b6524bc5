"""A source becomes a run's data folder: read, checked, levelled, split, and written as a whole or not at all."""

import dataclasses
import hashlib
import json
import re
import statistics
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from tqdm.auto import tqdm

from tts_kit import audio
from tts_kit.config import Config, save_config
from tts_kit.data import checks, examples, manifest, sources, speaker_choice
from tts_kit.data.checks import Checked
from tts_kit.data.manifest import EXCLUDED, HELD_OUT, SAMPLE_RATE, Utterance
from tts_kit.data.table import Row
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, read_json, write_json, write_rows
from tts_kit.run import Run

ORIGIN = "source.json"
REJECTED = "rejected.jsonl"
SETTINGS = ("speaker", "split_seed", "max_seconds", "max_characters", "held_out")
SHOWN = 20


def prepare(source: str | Path, run: Run, config: Config, skip_bad: bool = False,
            held_out_from: str | Path = "") -> list[Utterance]:
    """Make `run.data` out of a source, or use it again if it was made from the same; the utterances, split.

    The held-out clips are those of a second source, `held_out_from`, or a share of the only one."""
    source, held_out_from = examples.resolve(str(source), str(held_out_from))
    rows = [*sources.rows(source), *sources.held_out(held_out_from, source)]
    origin = _origin(source, held_out_from, rows, config, skip_bad)
    own = sources.identity(source) == sources.identity(str(run.reviewed))
    if not _made_before(run.data, origin, may_change=own):
        _make(rows, run.data, config, origin, skip_bad)
    utterances = manifest.read(run.data)
    print(f"{summary(utterances)}. In {run.data}.")
    save_config(run, config)
    return utterances


def held_out_source(folder: Path) -> str:
    """The second source whose clips a data folder holds out, empty where there was none."""
    if not (folder / ORIGIN).is_file():
        return ""
    return read_json(folder / ORIGIN, f"Delete {folder} and make it again.")["settings"].get("held_out_from", "")


def summary(utterances: Sequence[Utterance]) -> str:
    """One line: clips, minutes, speaker, and what is held out."""
    minutes = sum(each.seconds for each in utterances) / 60
    held = [each for each in utterances if each.split == HELD_OUT]
    sessions = len({each.session for each in held})
    gaps = sum(each.split == EXCLUDED for each in utterances)
    return (f"{len(utterances)} clips, {minutes:.1f} minutes, 1 speaker ({utterances[0].speaker or 'unnamed'}); "
            f"{len(utterances) - len(held) - gaps} to learn from; "
            f"held out: {len(held)} clips from {sessions} session{'s' * (sessions != 1)}"
            + f"; {gaps} beside them unused, as they may be neighbours cut from one take" * (gaps > 0))


def _origin(name: str, held_out_from: str, rows: list[Row], config: Config, skip_bad: bool) -> dict:
    """What the data folder is made of; another table, file or setting makes another origin."""
    fingerprint = hashlib.sha256()
    for row in rows:
        stamp = row.sound.stamp() if row.sound else ""
        seen = (row.number, row.file, row.text, row.speaker, row.session, row.problem, stamp)
        fingerprint.update(repr(seen).encode())
    settings = {field: getattr(config, field) for field in SETTINGS} | {"skip_bad": skip_bad}
    if held_out_from:
        settings["held_out_from"] = sources.identity(held_out_from)
    return {"source": sources.identity(name), "settings": settings, "fingerprint": fingerprint.hexdigest()}


def _made_before(folder: Path, origin: dict, may_change: bool = False) -> bool:
    """Whether `folder` holds the data of this very origin; data of another one is never overwritten. A review of the run's
    own recordings may change: then its data is made again."""
    if not folder.exists() or not any(folder.iterdir()):
        return False
    try:
        found = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
        differences = _differences(found, origin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found, differences = {}, [f"its {ORIGIN} is missing or unreadable"]
    if differences and may_change and found.get("source") == origin["source"]:
        return False
    if differences:
        raise KitError(f"{folder} already holds other data ({'; '.join(differences)}). It was left as it is: choose "
                      f"another run name, or delete {folder} to make it again.")
    print(f"{folder} was already made from {origin['source']}; it is used again.")
    return True


def _differences(found: dict, origin: dict) -> list[str]:
    if found["source"] != origin["source"]:
        return [f"made from {found['source']}, not {origin['source']}"]
    before, now = found["settings"], origin["settings"]
    changed = [f"made with {name} {before.get(name)!r}, not {now.get(name)!r}"
               for name in {**before, **now} if before.get(name) != now.get(name)]
    if not changed and found["fingerprint"] != origin["fingerprint"]:
        return ["the table or its audio has changed since"]
    return changed


def _make(rows: list[Row], folder: Path, config: Config, origin: dict, skip_bad: bool) -> None:
    speaker, digits = speaker_choice.choose_speaker([row for row in rows if not row.held_out], config.speaker)
    own = speaker_choice.rows_of_speaker(rows, speaker)
    given = [row for row in rows if row.held_out]
    if given and not any(row.held_out for row in own):
        names = ", ".join(sorted({row.speaker for row in given})[:speaker_choice.LISTED])
        raise KitError(f"{given[0].table} names the speakers {names}, and no clip of {speaker or 'a speaker without name'}, "
                      "whose voice is learned. Name the speaker alike in both tables, or in neither.")
    if len(own) < len(rows):
        print(f"{len(rows) - len(own)} clips of other speakers are left out.")
    checked, rejected = _check(own, config, speaker)
    if rejected and not skip_bad:
        raise KitError(_report(rejected, len(own)))
    drafts = _drafts(checked, speaker, digits)
    drafts = manifest.assign_given_splits(drafts) if given else manifest.assign_splits(drafts, config.held_out, config.split_seed)
    with atomic_folder(folder) as beside:
        manifest.write(beside, _write_clips(checked, drafts, beside))
        write_json(beside / ORIGIN, origin)
        if rejected:
            write_rows(beside / REJECTED, ({"row": row.number, "file": row.file, "reason": reason}
                                           for row, reason in rejected))
    if rejected:
        print(f"{len(rejected)} of {len(own)} clips were left out; {folder / REJECTED} says why.")


def _check(rows: list[Row], config: Config, speaker: str) -> tuple[list[Checked], list[tuple[Row, str]]]:
    """The rows that can be used, and the others with the reason."""
    checker, checked, rejected = checks.Checker(config, speaker), [], []
    for row in tqdm(rows, desc="checking clips", unit="clip"):
        try:
            checked.append(checker.check(row))
        except KitError as problem:
            rejected.append((row, str(problem)))
    return checked, rejected


def _report(rejected: list[tuple[Row, str]], total: int) -> str:
    lines = [f"{row.table} row {row.number}: {reason}" for row, reason in rejected[:SHOWN]]
    if len(rejected) > SHOWN:
        lines.append(f"... and {len(rejected) - SHOWN} more.")
    return "\n".join([f"{len(rejected)} of {total} clips cannot be used; nothing was written.", *lines,
                      "Repair them, or leave them out with --skip-bad (skip_bad=True)."])


def _drafts(checked: list[Checked], speaker: str, digits: str) -> list[Utterance]:
    """Utterances whose clips are not written yet."""
    folders = {(each.row.held_out, PurePosixPath(each.row.file).parent) for each in checked}
    one_folder = {given: sum(each == given for each, _ in folders) == 1 for given in (False, True)}
    drafts = []
    for row, said in ((each.row, each.text) for each in checked):
        path = PurePosixPath(row.file)
        told = manifest.session_of(path.name if one_folder[row.held_out] else row.file)
        stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60]
        name = "-".join(filter(None, ("held-out" * row.held_out, f"{row.number:05d}", stem)))
        drafts.append(Utterance(id=name, audio=Path("clips", f"{name}.flac"), text=said,
                                original_text=" ".join(row.text.split()), source=digits, speaker=speaker,
                                session=row.session or told, split=HELD_OUT * row.held_out, seconds=0.0,
                                row=row.number, file=row.file, sha256=""))
    return drafts


def _write_clips(checked: list[Checked], drafts: list[Utterance], folder: Path) -> list[Utterance]:
    """The utterances with their clips in `folder`, all louder or softer by one factor: quiet clips stay the quieter."""
    factor = audio.gain(statistics.median(each.loudness for each in checked))
    finished = []
    for each, draft in zip(tqdm(checked, desc="writing clips", unit="clip"), drafts):
        samples = checks.voice(each.row, factor)
        audio.write(folder / draft.audio, samples, SAMPLE_RATE)
        finished.append(dataclasses.replace(draft, audio=folder / draft.audio, seconds=round(len(samples) / SAMPLE_RATE, 3),
                                            sha256=hashlib.sha256((folder / draft.audio).read_bytes()).hexdigest()))
    return finished
