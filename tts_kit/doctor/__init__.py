"""What on this machine would stop a run or spoil it, found before the run, with what to do about each."""

from pathlib import Path

from tts_kit.doctor import base_model, machine, packages
from tts_kit.doctor.check import Check, report

__all__ = ["Check", "examine", "report"]

SMALL = 1e9
"""Weights below this many bytes, as of a tiny model in a folder, ask nothing special of a machine."""


def run_checks(base: str, folder: Path = Path("runs")) -> list[Check]:
    """Everything worth knowing before training `base` with its runs under `folder`."""
    local = Path(base)
    small = local.is_dir() and sum(file.stat().st_size for file in local.glob("*.safetensors")) < SMALL
    checks = [*packages.check_all(), *machine.hardware(small)]
    checks.append(machine.disk(folder, "disk for runs", 1e9 if small else 10e9, "clips, codes and checkpoints"))
    if not local.is_dir():
        download = "the base model (CSM-1B: 3.3 GB in 16 bits, 6.6 in 32)"
        checks += [machine.disk(cache, "disk for models", 10e9, download) for cache in base_model.cache()]
    return [*checks, base_model.token(), base_model.in_folder(local) if local.is_dir() else base_model.on_hub(base)]
