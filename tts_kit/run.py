"""The folders of one run on disk, their locks, and those of the bundled sample data."""

import contextlib
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from tts_kit import io
from tts_kit.errors import KitError

_CHECKOUT = Path(__file__).parents[1] / "sample_data"
SAMPLE_DATA = _CHECKOUT if _CHECKOUT.is_dir() else Path(__file__).parent / "sample_data"
"""Of a checkout, or its copy inside an installed wheel."""
SAMPLE_VOICE, SAMPLE_HELD_OUT = SAMPLE_DATA / "voice", SAMPLE_DATA / "held_out"
SAMPLE_RECORDING = SAMPLE_DATA / "recording.flac"
TINY_CSM = SAMPLE_DATA / "tiny-csm"
OTHER_SPEAKERS = SAMPLE_DATA / "other_speakers"

CONSENT = "consent.json"  # file in a run folder and its adapter: whose voice it is


def bundled_base(base: str) -> str:
    """Return the folder of the bundled model for its name; any other base as it is."""
    return str(TINY_CSM) if base == TINY_CSM.name and not Path(base).exists() else base


NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


class Run:
    """The folders of one run: each stage reads one and writes the next."""

    def __init__(self, name: str, root: str | Path = "runs"):
        if not re.fullmatch(NAME, name):
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


@contextlib.contextmanager
def lock(folder: Path) -> Iterator[None]:
    """Keep other processes from writing a stage's folder at the same time; the lock ends with the process."""
    path = folder.with_name(f".{folder.name}.lock")
    with io.explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    with file:
        try:
            if fcntl:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:  # some network drives know no locks
            if isinstance(error, BlockingIOError):
                raise KitError(f"{folder} is in use by another process. Wait until it has ended, or choose another run "
                               "name.") from error
        try:
            yield
        finally:
            with contextlib.suppress(OSError):  # Windows deletes no open file
                path.unlink()


def _link(path: str, copy: str) -> None:
    try:
        os.link(path, copy)
    except OSError:  # another disk, or a file system without hard links
        shutil.copy2(path, copy)


def share(source: Run, run: Run) -> None:
    """Give a new run the data and codes of another, as hard links: no second copy, and neither run needs the other."""
    if not (source.codes / INPUTS).is_file():
        raise KitError(f"{source.folder} has no codes to share. Make them first: tts-kit tokenize --run {source.name}")
    for own, other in ((run.data, source.data), (run.codes, source.codes)):
        if own.exists() and read_inputs(own) != read_inputs(other):
            raise KitError(f"{own} already holds something else than {other}. Choose a new run name.")
        if other.exists() and not own.exists():
            with io.atomic_folder(own) as staging:
                shutil.copytree(other, staging, copy_function=_link, dirs_exist_ok=True)
    for name in (CONSENT, "config.json"):
        if (source.folder / name).is_file() and not (run.folder / name).exists():
            io.write_bytes(run.folder / name, (source.folder / name).read_bytes())


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
