"""Device and dtype of this process with the reason; true float32; facts about the machine."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tts_kit.errors import KitError

LOW_MEMORY_BYTES = 12e9  # a GPU with less memory than this is treated as low on memory
NVIDIA_DRIVER, NVIDIA_DEVICES = Path("/proc/driver/nvidia/version"), Path("/dev")
MIN_DRIVER = {"12": "525", "13": "580"}  # CUDA's major version: oldest NVIDIA driver on Linux
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "tokenizers", "safetensors",
            "huggingface_hub", "numpy", "soundfile", "soxr", "pyloudnorm", "unsloth")
"""Packages whose versions can change a result."""


@dataclass(frozen=True)
class DeviceConfig:
    device: str  # cuda, mps or cpu
    dtype: torch.dtype  # compute dtype of the network; the codec is always float32
    reason: str  # one sentence for the user: what was chosen, and why
    low_memory: bool = False


def choose(device: str = "auto", dtype: str = "auto") -> DeviceConfig:
    """Choose the best available device, or the requested one, with its best dtype or the requested one.

    A GPU that is there and cannot be used is an error, never a reason to compute on the CPU."""
    available = available_devices()
    if device not in ("auto", "cuda", "mps", "cpu"):
        raise KitError(f"device is {device!r}; it must be one of auto, cuda, mps, cpu.")
    if device in ("auto", "cuda") and (reason := unusable_gpu_reason()):
        raise KitError(f"{reason}. To compute on the CPU all the same ask for device 'cpu' (--device cpu).")
    if device not in ("auto", *available):
        raise KitError(f"device {device!r} was requested, but torch {torch.__version__} sees only {', '.join(available)}. "
                       f"Use device 'auto', or a machine with {device} and a torch build for it.")
    name = available[0] if device == "auto" else device
    if name == "cuda":
        check_kernels()
        gpu = torch.cuda.get_device_properties(torch.cuda.current_device())
        chosen = for_cuda(gpu.name, gpu.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))
        torch.backends.cuda.enable_cudnn_sdp(False)  # on H100 it would plan for every new length, 30 ms each
    elif name == "mps":
        chosen = DeviceConfig("mps", torch.float32,
                              f"Device: GPU of {_cpu_name()} ({memory() / 1e9:.0f} GB shared), float32.")
    else:
        reason = "as requested" if device == "cpu" and len(available) > 1 else "torch sees no GPU"
        chosen = DeviceConfig("cpu", torch.float32, f"Device: CPU ({_cpu_name()}, {_cores()} cores, "
                              f"{memory() / 1e9:.0f} GB), float32; {reason}.")
    if dtype == "auto" or DTYPES[dtype] == chosen.dtype:
        return chosen
    if dtype == "bfloat16" and chosen.dtype == torch.float16:
        raise KitError(f"dtype 'bfloat16' was requested, and {gpu.name} has no bfloat16: torch would emulate it, many times "
                       "slower. Leave it at 'auto', which is float16 here, or use 'float32'.")
    return dataclasses.replace(chosen, dtype=DTYPES[dtype], reason=f"{chosen.reason} {dtype}, as requested.")


def for_cuda(name: str, memory: int, bf16: bool) -> DeviceConfig:
    """The configuration of a CUDA GPU with `memory` bytes."""
    dtype, note = (torch.bfloat16, "bfloat16") if bf16 else (
        torch.float16, "float16 with a loss scaler, as it has no bfloat16")
    return DeviceConfig("cuda", dtype, f"Device: {name} ({memory / 1e9:.0f} GB), {note}.", memory < LOW_MEMORY_BYTES)


def unusable_gpu_reason() -> str:
    """Return why torch sees no CUDA device although this machine has an NVIDIA GPU; empty where it has none, or hides it."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES", "all") in ("", "-1")
    if torch.cuda.is_available() or hidden or not NVIDIA_DRIVER.exists() or not any(NVIDIA_DEVICES.glob("nvidia[0-9]*")):
        return ""
    driver = re.search(r"\d{3,}\.[\d.]+", NVIDIA_DRIVER.read_text(encoding="utf-8", errors="replace"))
    problem = f"there is an NVIDIA GPU (driver {driver[0] if driver else 'unknown'}), but torch {torch.__version__}"
    if not torch.version.cuda:
        return f"{problem} is built without CUDA. Install a build for CUDA (https://pytorch.org/get-started)"
    minimum = MIN_DRIVER.get(torch.version.cuda.partition(".")[0], "a newer one")
    return (f"{problem}, built for CUDA {torch.version.cuda}, cannot use it. Update the driver to {minimum} or newer, or "
            "install a torch build for an older CUDA (https://pytorch.org/get-started)")


def check_kernels() -> None:
    """Refuse a GPU for which this torch has no kernels; its first operation would fail."""
    own, built_for = torch.cuda.get_device_capability(), torch.cuda.get_arch_list()
    codes = [(kind, (int(major), int(minor)))
             for kind, major, minor in re.findall(r"(sm|compute)_(\d+)(\d)", " ".join(built_for))]
    # machine code (sm) runs on later GPUs of the same generation, PTX (compute) on all later ones
    if codes and not any(code <= own and (kind == "compute" or code[0] == own[0]) for kind, code in codes):
        raise KitError(f"{torch.cuda.get_device_name()} has compute capability {own[0]}.{own[1]}, for which torch "
                       f"{torch.__version__} has no kernels (it has {', '.join(built_for)}). Install a torch build for "
                       "another CUDA version (https://pytorch.org/get-started), use another GPU, or ask for device 'cpu' "
                       "(--device cpu).")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute in true float32 inside: no autocast, no TF32, no bf16 matmul; restore the previous settings after."""
    backends = torch.backends
    switches = [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]
    with contextlib.ExitStack() as stack:
        for switch in switches:
            stack.callback(setattr, switch, "fp32_precision", switch.fp32_precision)
        # the old switches are set too: torch refuses to read one that disagrees with the new ones
        with contextlib.suppress(RuntimeError):
            stack.callback(torch.set_float32_matmul_precision, torch.get_float32_matmul_precision())
        with contextlib.suppress(RuntimeError):
            stack.callback(setattr, backends.cudnn, "allow_tf32", backends.cudnn.allow_tf32)
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = False
        for switch in switches:
            switch.fp32_precision = "ieee"
        for device in available_devices():
            stack.enter_context(torch.autocast(device, enabled=False))
        yield


def available_devices() -> list[str]:
    """Devices that torch can use here, best first."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [device for device, available in usable.items() if available]


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    installed = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            installed[name] = importlib.metadata.version(name)
    return installed


def machine() -> str:
    """The machine in one line: CPU, cores, memory, GPUs."""
    parts = [_cpu_name(), f"{_cores()} cores", f"{memory() / 1e9:.0f} GB"]
    return ", ".join(parts + [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())])


def gpu_memory() -> tuple[str, int, int]:
    """Name of the CUDA GPU, its bytes, and those free now."""
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        return properties.name, properties.total_memory, torch.cuda.mem_get_info()[0]
    except RuntimeError:  # not even enough for torch to open the GPU
        return properties.name, properties.total_memory, 0


def memory() -> int:
    """Bytes of main memory."""
    return psutil.virtual_memory().total


def _cores() -> int:
    """Cores this process may use; in a container fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
