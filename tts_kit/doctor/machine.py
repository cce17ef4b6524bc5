"""Device, memory and disk: whether they are enough for what is to be trained."""

import importlib
import shutil
from pathlib import Path

from tts_kit.doctor import packages
from tts_kit.doctor.check import INSTALL, Check

NEEDS = "CSM-1B with LoRA is computed to need about 5 GB (3.3 weights, 0.43 adapter and optimizer, the rest activations)"


def hardware(small: bool) -> list[Check]:
    """Device, memory, and unsloth, which works only on a GPU."""
    try:
        device_config = importlib.import_module("tts_kit.device")
    except (ImportError, OSError) as error:
        return [Check("device", "fail", f"unknown, because a package cannot be imported: {error}", INSTALL)]
    chosen = device_config.choose()
    memory = ram(device_config.memory(), small)
    engine = packages.unsloth(packages.installed("unsloth"), chosen.device)
    if chosen.device == "cuda":
        name, total, free = device_config.gpu_memory()
        return [Check("device", "ok", chosen.reason), gpu(name, total, free, small), memory, engine]
    driver = Path("/proc/driver/nvidia/version").exists()
    return [device(chosen.device, chosen.reason, small, driver, device_config.on_colab()), memory, engine]


def device(kind: str, why: str, small: bool, driver: bool, colab: bool) -> Check:
    """A machine without CUDA; `driver`: it has an NVIDIA driver all the same."""
    if driver:
        return Check("device", "warn", f"{why} An NVIDIA driver is here, but torch cannot use it",
                     "Install a torch build for CUDA (https://pytorch.org/get-started), or check CUDA_VISIBLE_DEVICES.")
    if small or kind == "mps":
        return Check("device", "ok", why)
    where = "On Colab: Runtime > Change runtime type > T4 GPU." if colab else "Use a machine with a GPU of 8 GB or more."
    return Check("device", "warn", f"{why} That works for tiny models; CSM-1B needs a GPU to be practical", where)


def gpu(name: str, total: int, free: int | None, small: bool) -> Check:
    """GPU memory in bytes, as it is and as it is free now (None: not known)."""
    seen = f"{total / 1e9:.1f} GB on {name}" + (f", {free / 1e9:.1f} free" if free is not None else "")
    if small:
        return Check("GPU memory", "ok", f"{seen}; enough for a tiny model")
    if total < 5e9:
        return Check("GPU memory", "fail", f"{seen}; {NEEDS}", "Use a GPU of 8 GB or more; Colab's free T4 has 16.")
    if total < 8e9:
        return Check("GPU memory", "warn", f"{seen}; {NEEDS}", "Set tokens_per_batch to 350, two clips of ten seconds.")
    if free is None or free < 5e9:
        return Check("GPU memory", "warn", f"{seen}; {NEEDS}",
                     "Another program or notebook holds the rest (`nvidia-smi` names it): shut it down first.")
    return Check("GPU memory", "ok", seen)


def ram(total: int, small: bool) -> Check:
    seen = f"{total / 1e9:.0f} GB"
    if total < 8e9 and not small:
        return Check("memory", "warn", f"{seen}; CSM-1B takes up to 6.6 GB while it loads in float32",
                     "Use a machine with 8 GB or more, or close other programs before loading.")
    return Check("memory", "ok", seen)


def disk(folder: Path, name: str, wanted: float, what: str) -> Check:
    """Free bytes on the disk where `folder` is or will be, against `wanted`."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / 1e9:.1f} GB free at {folder}"
    if free < wanted:
        return Check(name, "warn", f"{seen}; {wanted / 1e9:.0f} GB are comfortable for {what}",
                     "Free some space, or choose a folder on another disk (HF_HOME moves the models).")
    return Check(name, "ok", seen)
