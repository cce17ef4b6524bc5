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

from tts_kit import audio, io
from tts_kit.data import quality_flags, review_edits, segment, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.quality_flags import ClipFeatures
from tts_kit.data.review_edits import ReviewClip, Span
from tts_kit.errors import KitError

HISTORY, SUBJECT = "review.jsonl", "review-of.json"
"""What was edited, and which cut recordings it is about."""


class ReviewStore:
    """All entries of a run, in the order of the recordings; edits may come from several threads."""

    def __init__(self, folder: Path, transcriber: str, second: str = ""):
        self.folder = Path(folder)
        self._first = _entries(self.folder, transcriber, second)
        self._subject = {place.name: segment.recording_identity(place) for place in segment.segment_folders(self.folder)}
        self._refuse_other_subject()
        self._lock = threading.Lock()
        self._size = -1
        self._load()

    @property
    def entries(self) -> list[ReviewClip]:
        with self._lock:
            self._load()
            return list(self._now.values())

    def edit(self, asked: dict) -> list[ReviewClip]:
        """Do one edit and write it down; the entries that it changed or made."""
        with self._lock:
            self._load()
            edit = review_edits.validate(asked, self._now)
            before = dict(self._now)
            line = json.dumps(edit, ensure_ascii=False).encode() + b"\n"
            now = review_edits.replay(self._first, [*self._edits, edit])
            self._append(line)
            self._now, self._edits = now, [*self._edits, edit]
            return [entry for entry in now.values() if before.get(entry.id) != entry]

    def wave(self, id: str) -> np.ndarray:
        """(samples,) at 24 kHz of an entry."""
        return self.wave_of(self._find(id).parts)

    def wave_of(self, parts: Sequence[Span]) -> np.ndarray:
        return np.concatenate([audio.read(self.folder / part.file, SAMPLE_RATE)[round(part.begin * SAMPLE_RATE):round(part.end * SAMPLE_RATE)]
                               for part in parts])

    def _find(self, id: str) -> ReviewClip:
        for entry in self.entries:
            if entry.id == id:
                return entry
        raise KitError(f"there is no clip {id!r}. Reload the page.")

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
            self._now = review_edits.replay(self._first, self._edits)
        except KeyError as error:
            raise KitError(f"{path} tells of a clip {error} that is not there: the recordings were cut anew since. Move it "
                          "away to begin the review again.") from error
        self._size = len(whole)

    def _refuse_other_subject(self) -> None:
        """Old edits must not land on clips that were cut anew under the same numbers."""
        path = self.folder / SUBJECT
        before = io.read_json(path, f"Move {path.parent} away to begin the review again.") if path.is_file() else {}
        if other := [name for name, told in self._subject.items() if before.get(name, told) != told]:
            raise KitError(f"{self.folder / HISTORY} tells of other clips than {', '.join(other)} holds now: it was cut anew "
                          f"since. Move {HISTORY} and {SUBJECT} away to begin the review again.")
        self._told = before

    def _append(self, line: bytes) -> None:
        path = self.folder / HISTORY
        if self._told != self._subject:
            io.write_json(self.folder / SUBJECT, self._subject)
            self._told = self._subject
        with io.explain_os_errors(path), open(path, "ab") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
        self._size += len(line)


def _entries(folder: Path, transcriber: str, second: str) -> dict[str, ReviewClip]:
    """The clips as they were cut and heard, with their doubts."""
    found, evidence = {}, []
    for place in segment.segment_folders(folder):
        said = {each.file: each for each in transcribe.read(place / transcribe.transcripts_path(transcriber))}
        again = {each.file: each for each in transcribe.read(place / transcribe.transcripts_path(second))} if second else {}
        sounds = speaker_embedding.read_embeddings(place)
        for piece in segment.read_segments(place):
            if piece.reason:
                continue
            if piece.file not in said:
                raise KitError(f"{place / piece.file} has not been written down yet. Run tts-kit prepare again with "
                              "the same recordings: it goes on where it stopped.")
            heard, other = said[piece.file], again.get(piece.file)
            name = f"{place.name}/{Path(piece.file).stem}"
            part = Span(f"{place.name}/{piece.file}", 0.0, round(piece.seconds, 3))
            found[name] = ReviewClip(name, place.name, (part,), heard.text, heard.original_text)
            edge = piece.edge if piece.may_cut_a_word else None
            evidence.append(ClipFeatures(heard.text, piece.seconds, heard.confidence, edge, other and other.text,
                                     sounds.get(piece.file)))
    for entry, some in zip(list(found.values()), quality_flags.flag_clips(evidence)):
        found[entry.id] = dataclasses.replace(entry, doubts=tuple(some))
    return found
