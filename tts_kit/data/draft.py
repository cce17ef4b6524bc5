"""Clips and transcripts while a person corrects them: every edit is kept in a history, and the draft is what they add up to.

In goes the folder of a run's cut recordings; out come entries, changed one edit at a time. A killed process loses nothing,
undo takes back the last edit, and an edit that was made looking at an older state is refused.
"""

import dataclasses
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from tts_kit import audio, run
from tts_kit.data import edits, recording, suspicion, transcribe, voices
from tts_kit.data.edits import Entry, Part
from tts_kit.data.suspicion import Evidence
from tts_kit.data.utterance import RATE
from tts_kit.problem import Problem

HISTORY, SUBJECT = "review.jsonl", "review-of.json"
"""What was edited, and which cut recordings it is about."""


class Draft:
    """All entries of a run, in the order of the recordings; edits may come from several threads."""

    def __init__(self, folder: Path, transcriber: str, second: str = ""):
        self.folder = Path(folder)
        self._first = _entries(self.folder, transcriber, second)
        self._subject = {place.name: recording.identity(place) for place in recording.places(self.folder)}
        self._refuse_other_subject()
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
            edit = edits.checked(asked, self._now)
            before = dict(self._now)
            line = json.dumps(edit, ensure_ascii=False).encode() + b"\n"
            now = edits.fold(self._first, [*self._edits, edit])
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
            self._now = edits.fold(self._first, self._edits)
        except KeyError as error:
            raise Problem(f"{path} tells of a clip {error} that is not there: the recordings were cut anew since. Move it "
                          "away to begin the review again.") from error
        self._size = len(whole)

    def _refuse_other_subject(self) -> None:
        """Old edits must not land on clips that were cut anew under the same numbers."""
        path = self.folder / SUBJECT
        before = run.read_json(path, f"Move {path.parent} away to begin the review again.") if path.is_file() else {}
        if other := [name for name, told in self._subject.items() if before.get(name, told) != told]:
            raise Problem(f"{self.folder / HISTORY} tells of other clips than {', '.join(other)} holds now: it was cut anew "
                          f"since. Move {HISTORY} and {SUBJECT} away to begin the review again.")
        self._told = before

    def _append(self, line: bytes) -> None:
        path = self.folder / HISTORY
        if self._told != self._subject:
            run.write_json(self.folder / SUBJECT, self._subject)
            self._told = self._subject
        with run.explaining_refusals(path), open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)


def _entries(folder: Path, transcriber: str, second: str) -> dict[str, Entry]:
    """The clips as they were cut and heard, with their doubts."""
    found, evidence = {}, []
    for place in recording.places(folder):
        said = {each.file: each for each in transcribe.read(place / transcribe.table_of(transcriber))}
        again = {each.file: each for each in transcribe.read(place / transcribe.table_of(second))} if second else {}
        sounds = voices.read(place)
        for piece in recording.pieces(place):
            if piece.reason:
                continue
            if piece.file not in said:
                raise Problem(f"{place / piece.file} has not been written down yet. Run python -m tts_kit data again with "
                              "the same recordings: it goes on where it stopped.")
            heard, other = said[piece.file], again.get(piece.file)
            name = f"{place.name}/{Path(piece.file).stem}"
            part = Part(f"{place.name}/{piece.file}", 0.0, round(piece.seconds, 3))
            found[name] = Entry(name, place.name, (part,), heard.text, heard.original_text)
            edge = piece.edge if piece.may_cut_a_word else None
            evidence.append(Evidence(heard.text, piece.seconds, heard.confidence, edge, other and other.text,
                                     sounds.get(piece.file)))
    for entry, some in zip(list(found.values()), suspicion.doubts(evidence)):
        found[entry.id] = dataclasses.replace(entry, doubts=tuple(some))
    return found
