"""Whether a row can be used: everything that a bad clip or text would spoil later is refused here."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import audio, text
from tts_kit.config import Config
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.table import Row
from tts_kit.errors import KitError

SHORTEST = 0.5


@dataclass(frozen=True)
class Checked:
    """A row that passed, with what was measured."""
    row: Row
    text: str
    loudness: float
    """LUFS of the trimmed clip."""


class Checker:
    """Checks rows one after another and remembers them, to find what comes twice."""

    def __init__(self, config: Config, speaker: str):
        self.config = config
        self.speaker = speaker
        self.files: dict[str, Row] = {}
        self.contents: dict[bytes, Row] = {}

    def check(self, row: Row) -> Checked:
        """The row with its measures, or a Problem that says what is wrong with it and what to do."""
        if row.problem:
            raise KitError(row.problem)
        if self.speaker and not row.speaker:
            raise KitError(f"{row.file} names no speaker, in a table that names others. Fill in its source.")
        said = self._text(row)
        content = row.sound.content()
        if isinstance(content, Path):
            self._only_once(self.files, os.path.realpath(content), row, "is")
        samples = audio.read(content, SAMPLE_RATE, self.config.max_seconds, row.file)
        self._only_once(self.contents, hashlib.sha256(samples.tobytes()).digest(), row, "sounds exactly like")
        trimmed = audio.trim(samples, SAMPLE_RATE)
        seconds = min(len(samples), len(trimmed)) / SAMPLE_RATE
        if seconds < SHORTEST:
            raise KitError(f"{row.file} holds {seconds:.2f} s of sound; the limit is {SHORTEST} s or more. Join it with "
                          "its neighbour, or leave it out.")
        return Checked(row, said, audio.loudness(trimmed, SAMPLE_RATE))

    def _text(self, row: Row) -> str:
        try:
            said = text.normalize(row.text)
        except KitError as problem:
            raise KitError(f"{row.file}: {problem}") from problem
        if len(said) > self.config.max_characters:
            raise KitError(f"{row.file}: the text has {len(said)} characters; the limit is "
                          f"{self.config.max_characters}. Split the clip and its text, or raise max_characters.")
        return said

    def _only_once(self, seen: dict, key, row: Row, relation: str) -> None:
        first = seen.setdefault(key, row)
        if first is not row:
            raise KitError(f"{row.file} {relation} {first.file} of row {first.number}; wanted each clip once. Remove "
                          "one of the two rows.")


def voice(row: Row, factor: float) -> np.ndarray:
    """The row's clip as it is stored: (samples,) at 24 kHz, trimmed, times `factor` as far as its peak allows."""
    return audio.amplify(audio.trim(audio.read(row.sound.content(), SAMPLE_RATE, name=row.file), SAMPLE_RATE), factor)
