"""Clips and transcripts while a person corrects them: every edit is kept in a history, and the draft is what they add up to.

In goes the folder of a run's cut recordings; out come entries, changed one edit at a time. A killed process loses nothing,
undo takes back the last edit, and an edit that was made looking at an older state is refused.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import audio, run, text
from tts_kit.data import recording, suspicion, transcribe
from tts_kit.data.suspicion import Doubt, Evidence
from tts_kit.data.utterance import RATE
from tts_kit.problem import Problem

HISTORY = "review.jsonl"
NEW, CHECKED, DROPPED = "new", "checked", "dropped"
SHORTEST = 0.3
"""Seconds of the shortest part that a split may leave."""


@dataclass(frozen=True)
class Part:
    """A stretch of a clip on disk."""
    file: str
    """Under the folder of the cut recordings."""
    begin: float
    end: float


@dataclass(frozen=True)
class Entry:
    """One clip of the dataset to be."""
    id: str
    recording: str
    parts: tuple[Part, ...]
    text: str
    heard: str
    """What the transcriber wrote."""
    doubts: tuple[Doubt, ...] = ()
    state: str = NEW
    revision: int = 0
    """Number of the last edit that changed it."""

    @property
    def seconds(self) -> float:
        return sum(part.end - part.begin for part in self.parts)

    @property
    def suspicion(self) -> float:
        return suspicion.together(self.doubts)


class Stale(Problem):
    """An edit was made looking at an older state of its entry."""


class Draft:
    """All entries of a run, in the order of the recordings; edits may come from several threads."""

    def __init__(self, folder: Path, transcriber: str, second: str = ""):
        self.folder = Path(folder)
        self._first = _entries(self.folder, transcriber, second)
        self._lock = threading.Lock()
        self._size = -1
        self._load()

    @property
    def entries(self) -> list[Entry]:
        with self._lock:
            self._load()
            return list(self._now.values())

    def edit(self, asked: dict) -> list[Entry]:
        """Do one edit and write it down; the entries that it changed or made."""
        with self._lock:
            self._load()
            edit = _undo(asked) if asked.get("do") == "undo" else _checked(asked, self._now)
            before = dict(self._now)
            line = json.dumps(edit, ensure_ascii=False).encode() + b"\n"
            now = _fold(self._first, [*self._edits, edit])
            self._append(line)
            self._now, self._edits = now, [*self._edits, edit]
            return [entry for entry in now.values() if before.get(entry.id) != entry]

    def wave(self, id: str) -> np.ndarray:
        """(samples,) at 24 kHz of an entry."""
        return self.wave_of(self._find(id).parts)

    def wave_of(self, parts: Sequence[Part]) -> np.ndarray:
        return np.concatenate([audio.read(self.folder / part.file, RATE)[round(part.begin * RATE):round(part.end * RATE)]
                               for part in parts])

    def _find(self, id: str) -> Entry:
        for entry in self.entries:
            if entry.id == id:
                return entry
        raise Problem(f"there is no clip {id!r}. Reload the page.")

    def _load(self) -> None:
        """Read the history, unless it is as it was; what a kill left of its last line is cut off."""
        path = self.folder / HISTORY
        size = path.stat().st_size if path.exists() else 0
        if size == self._size:
            return
        content = path.read_bytes() if size else b""
        whole = content[:content.rfind(b"\n") + 1]
        if len(whole) != len(content):
            os.truncate(path, len(whole))
        self._edits = [json.loads(line) for line in whole.splitlines()]
        try:
            self._now = _fold(self._first, self._edits)
        except KeyError as error:
            raise Problem(f"{path} tells of a clip {error} that is not there: the recordings were cut anew since. Move it "
                          "away to begin the review again.") from error
        self._size = len(whole)

    def _append(self, line: bytes) -> None:
        path = self.folder / HISTORY
        with run.explaining_refusals(path), open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)


def _entries(folder: Path, transcriber: str, second: str) -> dict[str, Entry]:
    """The clips as they were cut and heard, with their doubts."""
    found, evidence = {}, []
    for place in sorted(path.parent for path in folder.glob(f"*/{recording.PIECES}")):
        said = {each.file: each for each in transcribe.read(place / transcribe.table_of(transcriber))}
        again = {each.file: each for each in transcribe.read(place / transcribe.table_of(second))} if second else {}
        for piece in recording.pieces(place):
            if piece.reason:
                continue
            heard, other = said[piece.file], again.get(piece.file)
            name = f"{place.name}/{Path(piece.file).stem}"
            part = Part(f"{place.name}/{piece.file}", 0.0, round(piece.seconds, 3))
            found[name] = Entry(name, place.name, (part,), heard.text, heard.original_text)
            evidence.append(Evidence(heard.text, piece.seconds, heard.confidence, piece.edge, other and other.text))
    for entry, some in zip(list(found.values()), suspicion.doubts(evidence)):
        found[entry.id] = dataclasses.replace(entry, doubts=tuple(some))
    return found


def _fold(first: dict[str, Entry], edits: list[dict]) -> dict[str, Entry]:
    """The entries that a history adds up to."""
    standing: list[int] = []
    undone: dict[str, int] = {}
    for number, edit in enumerate(edits, 1):
        if edit["do"] != "undo":
            standing.append(number)
        elif standing:
            taken = edits[standing.pop() - 1]
            undone |= dict.fromkeys((taken["id"], taken.get("other", taken["id"])), number)
    now = dict(first)
    for number in standing:
        now = _done(now, edits[number - 1], number)
    for id, number in undone.items():
        if id in now and now[id].revision < number:
            now[id] = dataclasses.replace(now[id], revision=number)
    return now


def _done(now: dict[str, Entry], edit: dict, number: int) -> dict[str, Entry]:
    """The entries after one edit; the order stays, halves stand where the whole stood."""
    entry = now[edit["id"]]
    match edit["do"]:
        case "text":
            new = [dataclasses.replace(entry, text=edit["text"], state=CHECKED, revision=number)]
        case "check" | "drop" | "restore":
            state = {"check": CHECKED, "drop": DROPPED, "restore": NEW}[edit["do"]]
            new = [dataclasses.replace(entry, state=state, revision=number)]
        case "split":
            new = [dataclasses.replace(entry, id=f"{entry.id}{letter}", parts=parts, text=words, revision=number)
                   for letter, parts, words in zip("ab", _halves(entry.parts, edit["at"]), edit["texts"])]
        case "merge":
            other = now[edit["other"]]
            new = [dataclasses.replace(entry, parts=entry.parts + other.parts, text=f"{entry.text} {other.text}".strip(),
                                       heard=f"{entry.heard} {other.heard}", doubts=entry.doubts + other.doubts, state=NEW,
                                       revision=number)]
    after: dict[str, Entry] = {}
    for id, each in now.items():
        if id == entry.id:
            after |= {one.id: one for one in new}
        elif edit["do"] != "merge" or id != edit["other"]:
            after[id] = each
    return after


def _halves(parts: tuple[Part, ...], at: float) -> tuple[tuple[Part, ...], tuple[Part, ...]]:
    """Parts before and after `at` seconds."""
    before, after, passed = [], [], 0.0
    for part in parts:
        place = part.begin + at - passed
        passed += part.end - part.begin
        if place > part.begin:
            before.append(dataclasses.replace(part, end=min(part.end, place)))
        if place < part.end:
            after.append(dataclasses.replace(part, begin=max(part.begin, place)))
    return tuple(before), tuple(after)


def _undo(asked: dict) -> dict:
    return {"do": "undo"}


def _checked(asked: dict, now: dict[str, Entry]) -> dict:
    """The edit as the history keeps it, or a Problem: it comes from a page, and a page can say anything."""
    entry = _seen(asked, "id", "seen", now)
    edit = {"do": asked.get("do"), "id": entry.id}
    match edit["do"]:
        case "text":
            return edit | {"text": _text(asked.get("text"))}
        case "check" | "drop" | "restore":
            if edit["do"] == "check" and not entry.text:
                raise Problem(f"{entry.id} has no text yet. Write what is said, or drop it.")
            return edit
        case "split":
            at, texts = asked.get("at"), asked.get("texts")
            if not isinstance(at, int | float) or not SHORTEST <= at <= entry.seconds - SHORTEST:
                raise Problem(f"{entry.id} lasts {entry.seconds:.2f} s; wanted a place to split it that leaves "
                              f"{SHORTEST:g} s on each side. Move the cursor.")
            if not isinstance(texts, list) or len(texts) != 2:
                raise Problem("wanted two texts, one of each half. Reload the page.")
            return edit | {"at": round(float(at), 3), "texts": [_text(each) for each in texts]}
        case "merge":
            other = _seen(asked, "other", "seen_other", now)
            order = list(now)
            if order.index(other.id) != order.index(entry.id) + 1 or other.recording != entry.recording:
                raise Problem(f"{other.id} does not follow {entry.id} in the recording; only neighbours can be merged.")
            return edit | {"other": other.id}
    raise Problem(f"{str(asked.get('do'))[:60]!r} is no edit; wanted text, check, drop, restore, split, merge or undo. "
                  "Reload the page.")


def _seen(asked: dict, name: str, revision: str, now: dict[str, Entry]) -> Entry:
    """The entry that an edit names, if it still is what the editor saw."""
    entry = now.get(asked.get(name)) if isinstance(asked.get(name), str) else None
    if entry is None:
        raise Stale(f"there is no clip {str(asked.get(name))[:60]!r} any more: it was split or merged elsewhere.")
    if asked.get(revision) != entry.revision:
        raise Stale(f"{entry.id} was changed elsewhere in the meantime. Its text now: {entry.text}")
    return entry


def _text(said: object) -> str:
    if not isinstance(said, str) or len(said) > 2000:
        raise Problem("wanted a text of at most 2000 characters. Shorten it.")
    return text.normalise(said)
