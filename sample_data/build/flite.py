"""Synthesize speech with flite to learn reading from: plainer than Kokoro's, but a hundred times faster to make.

    python -m sample_data.build.flite --hours 8 --out runs/pretrain/flite
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
PITCHES = {"awb": 110, "kal16": 105, "rms": 100, "slt": 170}  # flite's voices, and the approximate pitch of each in Hz
SPEAKER_COUNT = 96
OUT = corpus.OUT.with_name("flite")


@dataclass(frozen=True)
class Speaker:
    """One of flite's voices with another pitch and other formants."""
    name: str
    voice: str
    pitch: int  # Hz
    formant_scale: float  # factor of all formant frequencies, by resampling; the tempo is corrected


@functools.cache
def speakers() -> tuple[Speaker, ...]:
    """Return the speakers, always the same; all voices are used equally often."""
    rng, result = random.Random(0), []
    for index in range(SPEAKER_COUNT):
        voice = sorted(PITCHES)[index % len(PITCHES)]
        pitch, formant_scale = round(PITCHES[voice] * rng.uniform(0.8, 1.3)), round(rng.uniform(0.86, 1.18), 2)
        result.append(Speaker(f"flite-{voice}-{pitch}-{round(100 * formant_scale)}", voice, pitch, formant_scale))
    return tuple(result)


def synthesize(text: str, speaker: Speaker, speed: float = 1.0) -> np.ndarray:
    """Synthesize a sentence and prepare it as the corpus does: trimmed, -20 LUFS, (samples,) at 16 kHz."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        values = {"duration_stretch": speaker.formant_scale / speed,
                  "int_f0_target_mean": speaker.pitch / speaker.formant_scale}
        settings = [argument for name, value in values.items() for argument in ("--setf", f"{name}={value:.3f}")]
        subprocess.run(["flite", "-voice", speaker.voice, *settings, "-t", text, "-o", file.name], check=True,
                       capture_output=True)
        spoken = audio.trim(audio.read(file.name, RATE), RATE)
    return audio.normalize_loudness(audio.resample(spoken, round(RATE * speaker.formant_scale), RATE), RATE)


def make(folder: Path, hours: float, seed: int = 0, workers: int = 1) -> Path:
    """Synthesize about `hours` of flite's speech into `folder`, as shards of a corpus; complete shards are kept."""
    if not shutil.which("flite"):
        raise KitError("flite is missing. Install it: apt-get install flite, brew install flite.")
    return corpus.make_shards(folder, corpus.shard_count(hours, workers), synthesize, seed, workers, "flite", speakers(),
                              sentences.generate_with_random_words)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    make(options.out, options.hours, options.seed, options.workers)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.flite", description=__doc__.split("\n")[0])
    top.add_argument("--hours", type=float, default=8.0, help="about how much speech (default 8)")
    top.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    top.add_argument("--seed", type=int, default=2, help="another seed than the corpus's gives other sentences "
                     "(default 2)")
    top.add_argument("--workers", type=int, default=1, help="processes, each with one thread (default 1)")
    return top


if __name__ == "__main__":
    sys.exit(main())
