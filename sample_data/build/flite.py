"""Speech to practise reading on: plainer than Kokoro's and made a hundred times as fast, so that there can be much of it.

    python -m sample_data.build.flite --hours 8 --out runs/pretrain/practice
"""

import argparse
import functools
import random
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from sample_data.build import corpus, sentences
from tts_kit import audio
from tts_kit.errors import KitError, report_errors

RATE = 16_000
PITCHES = {"awb": 110, "kal16": 105, "rms": 100, "slt": 170}
"""The voices, and about how high they speak, in Hz."""
READERS = 96
OUT = corpus.OUT.with_name("practice")


@dataclass(frozen=True)
class Reader:
    """One of the voices at another height and of another size."""
    name: str
    voice: str
    pitch: int
    """Hz."""
    size: float
    """Played so much faster, as a smaller head sounds; the tempo is made up for."""


@functools.cache
def readers() -> tuple[Reader, ...]:
    """Always the same, all voices equally often."""
    chance, made = random.Random(0), []
    for number in range(READERS):
        voice = sorted(PITCHES)[number % len(PITCHES)]
        pitch, size = round(PITCHES[voice] * chance.uniform(0.8, 1.3)), round(chance.uniform(0.86, 1.18), 2)
        made.append(Reader(f"flite-{voice}-{pitch}-{round(100 * size)}", voice, pitch, size))
    return tuple(made)


def utter(text: str, reader: Reader, speed: float = 1.0) -> np.ndarray:
    """A sentence as the corpus has them: trimmed, -20 LUFS, (samples,) at 16 kHz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        told = {"duration_stretch": reader.size / speed, "int_f0_target_mean": reader.pitch / reader.size}
        settings = [word for name, value in told.items() for word in ("--setf", f"{name}={value:.3f}")]
        subprocess.run(["flite", "-voice", reader.voice, *settings, "-t", text, "-o", file.name], check=True,
                       capture_output=True)
        spoken = audio.trim(audio.read(file.name, RATE), RATE)
    return audio.normalize_loudness(audio.resample(spoken, round(RATE * reader.size), RATE), RATE)


def make(folder: Path, hours: float, seed: int = 0, workers: int = 1) -> Path:
    """About `hours` of it in `folder`, as shards of a corpus; whole shards that are already there are kept."""
    if not shutil.which("flite"):
        raise KitError("flite is missing. Install it: apt-get install flite, brew install flite.")
    return corpus.fill(folder, corpus.shards(hours, workers), utter, seed, workers, "flite", readers(),
                       sentences.practice)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.flite", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=8.0, help="about how much speech (default 8)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    parser.add_argument("--seed", type=int, default=2, help="other than the corpus's, for other sentences (default 2)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one thread (default 1)")
    options = parser.parse_args(arguments)
    make(options.out, options.hours, options.seed, options.workers)


if __name__ == "__main__":
    sys.exit(main())
