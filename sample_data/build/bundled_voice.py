"""Make the bundled voice: clips to train on, held-out clips, clips of other voices, and one long, imperfect recording.

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
"""Voices of the same accent; their SIM to the voice is the lower bound of the scale."""
TRAINING_CLIPS, HELD_OUT_CLIPS = 70, 12
"""How many of the bundled sentences are clips to train on and held-out clips; the recording has the rest."""
CLIPS_PER_RECORDING = {"session": 7, "later": 6}  # prefix of a recording's name -> its number of clips
SPEEDS = (0.91, 0.86, 0.94, 0.89, 0.96, 0.91, 0.87, 0.94, 0.90, 0.88)
LOUDNESS = (-20.0, -21.5, -19.0, -20.5, -22.0, -19.5, -21.0, -20.0, -22.5, -20.5)
FADE = 0.02
COLUMNS = ("file_name", "text", "source", "recording")

BEFORE_SENTENCE = {1: "repeat", 2: "cough", 4: "interruption", 5: "false start", 7: "click", 8: "interruption",
                   10: "repeat", 11: "cough", 12: "false start", 13: "interruption"}
"""Index of one of the main speaker's sentences in the recording -> what comes before it."""
INTERRUPTIONS = 3
PAUSES = (0.3, 2.5)
LONG_PAUSE_AFTER, LONG_PAUSE = 9, 8.0
"""Index of the segment of the recording after which the speaker pauses for long, and the seconds of that pause."""
ROOM_NOISE = 10 ** (-55 / 20)
Synthesize = Callable[[str, str, float], np.ndarray]  # (text, voice, speed) -> (samples,) at 24 kHz


@dataclass(frozen=True)
class Segment:
    """What is audible between two times of the recording."""
    start: float
    end: float
    speaker: str  # empty for a noise
    text: str
    kind: str  # sentence, repeat, false start, interruption, cough or click


def make(folder: str | Path, synthesize: Synthesize) -> None:
    """Write the clips, the clips of other voices, and the recording with its table to `folder`."""
    folder, texts = Path(folder), sentences.evaluation_set().bundled
    write_clips(folder, VOICE, synthesize)
    _write_other_voices(folder / "other_speakers", texts, synthesize)
    samples, segments = make_recording(texts[TRAINING_CLIPS + HELD_OUT_CLIPS:], synthesize)
    audio.write(folder / "recording.flac", samples, RATE)
    rows = ({**asdict(segment), "start": f"{segment.start:.3f}", "end": f"{segment.end:.3f}"} for segment in segments)
    _write_table(folder / "recording.csv", tuple(Segment.__dataclass_fields__), rows)
    print(f"{folder / 'recording.flac'}: {len(samples) / RATE:.1f} s, {len(segments)} segments.")


def synthesize_kokoro(text: str, voice: str, speed: float, folder: str | Path = voices.CACHE) -> np.ndarray:
    """Synthesize a sentence in one of Kokoro's voices; returns (samples,) at 24 kHz."""
    return kokoro.engine().synthesize(text, _styles(str(folder))[voice], voices.accent(voice), speed)


def make_recording(texts: Sequence[str], synthesize: Synthesize) -> tuple[np.ndarray, list[Segment]]:
    """Make one recording of `texts`, the last of them by another voice.

    Returns (samples,) at 24 kHz and the segments."""
    rng = np.random.default_rng(4)
    parts = list(_recording_parts(texts[:-INTERRUPTIONS], texts[-INTERRUPTIONS:], synthesize, rng))
    pauses = rng.permutation(np.linspace(*PAUSES, len(parts)))
    pauses[LONG_PAUSE_AFTER] = LONG_PAUSE
    track, segments, end = [np.zeros(RATE, np.float32)], [], RATE
    for (samples, *labels), pause in zip(parts, pauses):
        segments.append(Segment(end / RATE, (end + len(samples)) / RATE, *labels))
        track += [samples, np.zeros(round(pause * RATE), np.float32)]
        end += len(samples) + len(track[-1])
    samples = np.concatenate(track)
    return samples + room_noise(len(samples), rng), segments


def room_noise(length: int, rng: np.random.Generator) -> np.ndarray:
    """Return low-passed noise at -55 dBFS, (length,)."""
    noise = np.convolve(rng.standard_normal(length + 47), np.hanning(50)[1:-1], "valid")
    return (ROOM_NOISE * noise / np.sqrt((noise ** 2).mean())).astype(np.float32)


def cough(rng: np.random.Generator) -> np.ndarray:
    """Return two short bursts of noise, (samples,)."""
    time = np.arange(round(0.22 * RATE)) / RATE
    bursts = rng.standard_normal((2, len(time) + 7)) * 0.5
    smoothed = np.stack([np.convolve(burst, np.hanning(10)[1:-1], "valid") for burst in bursts])
    envelope = np.minimum(1, time / 0.01) * np.exp(-time / 0.06)
    return np.concatenate(0.07 * smoothed * envelope, dtype=np.float32)


def click(rng: np.random.Generator) -> np.ndarray:
    """Return a short decaying tone, as of a key that is pressed, (samples,)."""
    time = np.arange(round(0.03 * RATE)) / RATE
    return (0.2 * np.sin(2 * np.pi * rng.uniform(1800, 2600) * time) * np.exp(-time / 0.005)).astype(np.float32)


NOISES = {"cough": cough, "click": click}


def _recording_parts(texts: Sequence[str], interruptions: Sequence[str], synthesize: Synthesize,
                     rng: np.random.Generator) -> Iterator[tuple]:
    """Yield (samples, speaker, text, kind) of the parts of the recording, in order."""
    remaining = iter(interruptions)
    for index, text in enumerate(tqdm(texts, desc="recording", unit="sentence")):
        kind = BEFORE_SENTENCE.get(index, "")
        if kind in NOISES:
            yield NOISES[kind](rng), "", "", kind
        elif kind == "interruption":
            interruption = next(remaining)
            samples = _trim_and_fade(synthesize(interruption, INTERRUPTING_VOICE, 1.0), -24.0)
            yield samples, NAMES[INTERRUPTING_VOICE], interruption, kind
        elif kind:
            spoken = " ".join(text.split()[:3]).rstrip(",") if kind == "false start" else text
            yield _trim_and_fade(synthesize(spoken, VOICE, 0.95), -20.5), NAMES[VOICE], spoken, kind
        yield _trim_and_fade(synthesize(text, VOICE, rng.uniform(0.86, 0.95)), -20.0), NAMES[VOICE], text, "sentence"


def write_clips(folder: Path, voice: str, synthesize: Synthesize) -> None:
    """Write the clips of a voice to train on, and its held-out clips."""
    texts = sentences.evaluation_set().bundled
    _write_clips(folder / "voice", "session", texts[:TRAINING_CLIPS], voice, synthesize)
    _write_clips(folder / "held_out", "later", texts[TRAINING_CLIPS:TRAINING_CLIPS + HELD_OUT_CLIPS], voice, synthesize)


def _write_clips(folder: Path, prefix: str, texts: Sequence[str], voice: str, synthesize: Synthesize) -> None:
    """Write clips and metadata.csv; `prefix` starts the names of their recordings."""
    rows, seconds = [], 0.0
    with io.atomic_folder(folder) as staging:
        for index, text in enumerate(tqdm(texts, desc=folder.name, unit="clip")):
            recording_index, clip_index = divmod(index, CLIPS_PER_RECORDING[prefix])
            samples = _trim_and_fade(synthesize(text, voice, SPEEDS[recording_index]), LOUDNESS[recording_index],
                                     lead=0.1, tail=0.25)
            recording = f"{prefix}{recording_index + 1:02d}"
            values = f"{recording}_{clip_index + 1:02d}.flac", text, NAMES.get(voice, voice), recording
            rows.append(dict(zip(COLUMNS, values)))
            audio.write(staging / rows[-1]["file_name"], samples, RATE)
            seconds += len(samples) / RATE
        _write_table(staging / "metadata.csv", COLUMNS, rows)
    print(f"{folder}: {len(rows)} clips, {seconds / 60:.2f} minutes.")


def _write_other_voices(folder: Path, texts: Sequence[str], synthesize: Synthesize) -> None:
    with io.atomic_folder(folder) as staging:
        for voice, text in zip(OTHER_VOICES, texts):
            samples = _trim_and_fade(synthesize(text, voice, 1.0), LOUDNESS[0], lead=0.1, tail=0.25)
            audio.write(staging / f"{voice.split('_')[1]}.flac", samples, RATE)


def _trim_and_fade(samples: np.ndarray, loudness: float, lead: float = 0.0, tail: float = 0.0) -> np.ndarray:
    """Trim (samples,) to the speech with `lead` and `tail` seconds around it, set its loudness, and fade both ends."""
    padding = round(0.3 * RATE)
    clip = audio.normalize_loudness(audio.trim(np.pad(samples, padding), RATE, tail, lead), RATE, loudness)
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
    return voices.load_styles(folder)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.bundled_voice", description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, default=Path("sample_data"), help="folder (default sample_data)")
    parser.add_argument("--voices", type=Path, default=voices.CACHE, help="Kokoro's voices (default: downloaded with npm)")
    options = parser.parse_args(arguments)
    make(options.out, functools.partial(synthesize_kokoro, folder=options.voices))


if __name__ == "__main__":
    sys.exit(main())
