"""The bundled voice: clips to learn, clips to judge by, strangers, and one long take with what goes wrong in long takes.

    python -m sample_data.build.bundled_voice --out sample_data
"""

import argparse
import csv
import functools
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from io import StringIO
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sample_data.build import kokoro, sentences, voices
from tts_kit import audio, io
from tts_kit.errors import report_errors

RATE = kokoro.RATE
VOICE, INTERRUPTING_VOICE = "bf_emma", "bm_george"
NAMES = {VOICE: "emma", INTERRUPTING_VOICE: "george"}
OTHER_VOICES = ("bf_alice", "bm_daniel", "bf_isabella", "bm_fable", "bf_lily", "bm_lewis")
"""Others of the same accent: how like the voice is somebody who is not meant to be?"""
LEARNED, HELD_OUT = 70, 12
"""Bundled sentences that are clips to learn, and clips to judge by; the long take says the others."""
SITTINGS = {"session": 7, "later": 6}
"""Clips of one recording, by what the recordings are called."""
SPEEDS = (0.91, 0.86, 0.94, 0.89, 0.96, 0.91, 0.87, 0.94, 0.90, 0.88)
LOUDNESS = (-20.0, -21.5, -19.0, -20.5, -22.0, -19.5, -21.0, -20.0, -22.5, -20.5)
FADE = 0.02
COLUMNS = ("file_name", "text", "source", "recording")

BEFORE = {1: "repeat", 2: "cough", 4: "interruption", 5: "false start", 7: "click", 8: "interruption", 10: "repeat",
          11: "cough", 12: "false start", 13: "interruption"}
"""What comes before which of the take's own sentences, counted from 0."""
INTERRUPTIONS = 3
PAUSES = (0.3, 2.5)
LONG_PAUSE_AFTER, LONG_PAUSE = 9, 8.0
"""After which of the take's pieces, counted from 0, the speaker goes away."""
ROOM = 10 ** (-55 / 20)
Speak = Callable[[str, str, float], np.ndarray]


@dataclass(frozen=True)
class Piece:
    """What is heard between two moments of the take."""
    start: float
    end: float
    speaker: str
    """Empty for a noise."""
    text: str
    kind: str
    """sentence, repeat, false start, interruption, cough or click."""


def make(folder: str | Path, speak: Speak) -> None:
    """Clips to learn and to judge by, and the long take with its truth, in `folder`; `speak` is as `utter` below."""
    folder, said = Path(folder), sentences.evaluation_set().bundled
    _write_clips(folder / "voice", "session", said[:LEARNED], speak)
    _write_clips(folder / "held_out", "later", said[LEARNED:LEARNED + HELD_OUT], speak)
    _write_strangers(folder / "strangers", said, speak)
    samples, pieces = take(said[LEARNED + HELD_OUT:], speak)
    audio.write(folder / "recording.flac", samples, RATE)
    rows = ({**asdict(each), "start": f"{each.start:.3f}", "end": f"{each.end:.3f}"} for each in pieces)
    _write_table(folder / "recording.csv", tuple(Piece.__dataclass_fields__), rows)
    print(f"{folder / 'recording.flac'}: {len(samples) / RATE:.1f} s, {len(pieces)} pieces.")


def utter(text: str, voice: str, speed: float, folder: str | Path = voices.CACHE) -> np.ndarray:
    """A sentence of one of Kokoro's British voices as (samples,) at 24 kHz."""
    return kokoro.engine().speak(text, _styles(str(folder))[voice], voices.ACCENTS["b"], speed)


def take(said: Sequence[str], speak: Speak) -> tuple[np.ndarray, list[Piece]]:
    """A recording of `said` in one go as (samples,) at 24 kHz, its last sentences by another voice; and its truth."""
    chance = np.random.default_rng(4)
    heard = list(_script(said[:-INTERRUPTIONS], said[-INTERRUPTIONS:], speak, chance))
    pauses = chance.permutation(np.linspace(*PAUSES, len(heard)))
    pauses[LONG_PAUSE_AFTER] = LONG_PAUSE
    track, pieces, end = [np.zeros(RATE, np.float32)], [], RATE
    for (samples, *told), pause in zip(heard, pauses):
        pieces.append(Piece(end / RATE, (end + len(samples)) / RATE, *told))
        track += [samples, np.zeros(round(pause * RATE), np.float32)]
        end += len(samples) + len(track[-1])
    samples = np.concatenate(track)
    return samples + room(len(samples), chance), pieces


def room(length: int, chance: np.random.Generator) -> np.ndarray:
    """The quiet of a room, (length,): dull noise at -55 dBFS."""
    noise = np.convolve(chance.standard_normal(length + 47), np.hanning(50)[1:-1], "valid")
    return (ROOM * noise / np.sqrt((noise ** 2).mean())).astype(np.float32)


def cough(chance: np.random.Generator) -> np.ndarray:
    """Two short bursts of noise, (samples,)."""
    time = np.arange(round(0.22 * RATE)) / RATE
    burst = chance.standard_normal((2, len(time) + 7)) * 0.5
    hoarse = np.stack([np.convolve(each, np.hanning(10)[1:-1], "valid") for each in burst])
    shape = np.minimum(1, time / 0.01) * np.exp(-time / 0.06)
    return np.concatenate(0.07 * hoarse * shape, dtype=np.float32)


def click(chance: np.random.Generator) -> np.ndarray:
    """A key or a pen that falls, (samples,)."""
    time = np.arange(round(0.03 * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * chance.uniform(1800, 2600) * time) * np.exp(-time / 0.005)).astype(np.float32)


NOISES = {"cough": cough, "click": click}


def _script(own: Sequence[str], others: Sequence[str], speak: Speak, chance: np.random.Generator) -> Iterator[tuple]:
    """(samples, speaker, text, kind) of what the take is made of, in order."""
    waiting = iter(others)
    for number, text in enumerate(tqdm(own, desc="long take", unit="sentence")):
        kind = BEFORE.get(number, "")
        if kind in NOISES:
            yield NOISES[kind](chance), "", "", kind
        elif kind == "interruption":
            other = next(waiting)
            yield _voiced(speak(other, INTERRUPTING_VOICE, 1.0), -24.0), NAMES[INTERRUPTING_VOICE], other, kind
        elif kind:
            heard = " ".join(text.split()[:3]).rstrip(",") if kind == "false start" else text
            yield _voiced(speak(heard, VOICE, 0.95), -20.5), NAMES[VOICE], heard, kind
        yield _voiced(speak(text, VOICE, chance.uniform(0.86, 0.95)), -20.0), NAMES[VOICE], text, "sentence"


def _write_clips(folder: Path, sitting: str, said: Sequence[str], speak: Speak) -> None:
    rows, seconds = [], 0.0
    with io.atomic_folder(folder) as beside:
        for number, text in enumerate(tqdm(said, desc=folder.name, unit="clip")):
            place, take_number = divmod(number, SITTINGS[sitting])
            samples = _voiced(speak(text, VOICE, SPEEDS[place]), LOUDNESS[place], lead=0.1, tail=0.25)
            recording = f"{sitting}{place + 1:02d}"
            rows.append(dict(zip(COLUMNS, (f"{recording}_{take_number + 1:02d}.flac", text, NAMES[VOICE], recording))))
            audio.write(beside / rows[-1]["file_name"], samples, RATE)
            seconds += len(samples) / RATE
        _write_table(beside / "metadata.csv", COLUMNS, rows)
    print(f"{folder}: {len(rows)} clips, {seconds / 60:.2f} minutes.")


def _write_strangers(folder: Path, said: Sequence[str], speak: Speak) -> None:
    with io.atomic_folder(folder) as beside:
        for voice, text in zip(OTHER_VOICES, said):
            samples = _voiced(speak(text, voice, 1.0), LOUDNESS[0], lead=0.1, tail=0.25)
            audio.write(beside / f"{voice.split('_')[1]}.flac", samples, RATE)


def _voiced(samples: np.ndarray, loudness: float, lead: float = 0.0, tail: float = 0.0) -> np.ndarray:
    """(samples,) from where the voice begins to where it ends, with so many seconds around it, faded at both ends."""
    around = round(0.3 * RATE)
    clip = audio.normalize_loudness(audio.trim(np.pad(samples, around), RATE, tail, lead), RATE, loudness)
    ramp = np.linspace(0, 1, round(FADE * RATE), dtype=np.float32)
    clip[:len(ramp)] *= ramp
    clip[-len(ramp):] *= ramp[::-1]
    return clip


def _write_table(path: Path, columns: Sequence[str], rows: Iterable[dict]) -> None:
    table = StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    io.write_text(path, table.getvalue())


@functools.cache
def _styles(folder: str) -> dict[str, np.ndarray]:
    return voices.voices(folder)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.bundled_voice", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sample_data"), help="folder (default sample_data)")
    parser.add_argument("--voices", type=Path, default=voices.CACHE, help="Kokoro's voices (default: fetched by npm)")
    options = parser.parse_args(arguments)
    make(options.out, functools.partial(utter, folder=options.voices))


if __name__ == "__main__":
    sys.exit(main())
