"""The folders of one run on disk, and those of the bundled sample data."""

import re
from pathlib import Path

from tts_kit import io
from tts_kit.errors import KitError

_CHECKOUT = Path(__file__).parents[1] / "sample_data"
SAMPLE_DATA = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "sample_data"
"""Of a checkout, or its copy inside an installed wheel."""
SAMPLE_VOICE, SAMPLE_HELD_OUT = SAMPLE_DATA / "voice", SAMPLE_DATA / "held_out"
SAMPLE_RECORDING = SAMPLE_DATA / "recording.flac"
TINY_CSM = SAMPLE_DATA / "tiny-csm"
OTHER_SPEAKERS = SAMPLE_DATA / "strangers"

CONSENT = "consent.json"  # file in a run folder and its adapter: whose voice it is


class Run:
    """The folders of one run: each stage reads one and writes the next."""

    def __init__(self, name: str, root: str | Path = "runs"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise KitError(f"run name {name!r}: wanted 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter "
                          "or digit. Choose another name.")
        self.name = name
        self.folder = Path(root) / name
        self.segments = self.folder / "segments"
        self.reviewed = self.folder / "reviewed"
        self.data = self.folder / "data"
        self.codes = self.folder / "codes"
        self.training = self.folder / "training"
        self.adapter = self.folder / "adapter"
        self.comparison = self.folder / "comparison"


FORMAT = 2
INPUTS = "inputs.json"


def write_inputs(folder: Path, **inputs: str) -> None:
    """Record in a stage's folder what it was made from: name -> digest or setting."""
    io.write_json(folder / INPUTS, {"format": FORMAT, **inputs})


def changed_inputs(folder: Path, **inputs: str) -> list[str]:
    """Names of the inputs that differ from those `folder` was made from; all of them where it has no record."""
    recorded = read_inputs(folder)
    return [name for name, value in inputs.items() if recorded.get(name) != value]


def read_inputs(folder: Path) -> dict:
    """What a stage's folder was made from; empty if the folder does not exist. Folders of older formats are refused."""
    if not folder.exists():
        return {}
    path = folder / INPUTS
    recorded = io.read_json(path, f"Move {folder} away and run its stage again.") if path.exists() else {}
    if recorded.get("format") != FORMAT:
        raise KitError(f"{folder} was written by an older version of tts_kit (run format {recorded.get('format', 1)}, "
                       f"wanted {FORMAT}). Move the run away and make it again, or use the version that wrote it.")
    return recorded
