"""What this process runs on: device, dtype and attention with the reason, true float32 on request, names for results; and
all there is to know of Colab."""

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from tts_kit.errors import KitError

LOW_MEMORY_BYTES = 12e9
"""Bytes of memory below which a card is short of it."""
TOKEN = "HF_TOKEN"
DRIVE = Path("/content/drive")
"""Where Colab shows Google Drive."""
DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = {"auto": None, "float32": torch.float32, "bfloat16": torch.bfloat16}
PACKAGES = ("torch", "transformers", "peft", "accelerate", "datasets", "trl", "tokenizers", "safetensors",
            "huggingface_hub", "numpy", "soundfile", "soxr", "pyloudnorm", "unsloth")


@dataclass(frozen=True)
class DeviceConfig:
    device: str
    """cuda, mps or cpu."""
    dtype: torch.dtype
    """In which the network computes; the codec is always float32."""
    attention: str
    """Attention implementation, as transformers names it."""
    why: str
    """One sentence for a person: what was taken, and the reason."""
    low_memory: bool = False
    """Of memory, so that what can wait elsewhere should."""


def choose(device: str = "auto", dtype: str = "auto") -> DeviceConfig:
    """The best device present, or the one asked for, with the dtype it is good at or the one asked for."""
    taken = _choose(device)
    if dtype == "auto" or DTYPES[dtype] == taken.dtype:
        return taken
    return dataclasses.replace(taken, dtype=DTYPES[dtype], why=f"{taken.why} {dtype}, as asked.")


def _choose(device: str) -> DeviceConfig:
    if device not in DEVICES:
        raise KitError(f"device is {device!r}; it must be one of {', '.join(DEVICES)}.")
    present = _present()
    if device != "auto" and device not in present:
        raise KitError(f"device {device!r} was asked for, but torch {torch.__version__} sees only {', '.join(present)}. "
                      f"Use device 'auto', or a machine with {device} and a torch build for it.")
    taken = present[0] if device == "auto" else device
    if taken == "cuda":
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        return on_cuda(card.name, card.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))
    shared = f"{memory() / 1e9:.0f} GB of memory"
    if taken == "mps":
        return DeviceConfig("mps", torch.float32, "sdpa", f"On the GPU of {_processor()}, which shares {shared}, in float32.")
    reason = "as asked" if device == "cpu" and len(present) > 1 else "as torch sees no GPU"
    return DeviceConfig("cpu", torch.float32, "sdpa",
                   f"On the CPU ({_processor()}, {_cores()} cores, {shared}) in float32, {reason}.")


def on_cuda(name: str, memory: int, bf16: bool) -> DeviceConfig:
    """The runtime of a CUDA card with `memory` bytes."""
    where, short = f"On {name} with {memory / 1e9:.0f} GB of memory", memory < LOW_MEMORY_BYTES
    if bf16:
        return DeviceConfig("cuda", torch.bfloat16, "sdpa", f"{where} in bfloat16.", short)
    return DeviceConfig("cuda", torch.float16, "sdpa", f"{where}; {name} has no bf16: float16 with a loss scaler.", short)


def on_colab() -> bool:
    """Whether this is a Google Colab notebook."""
    return "google.colab" in sys.modules


def load_hf_token() -> bool:
    """Whether HF_TOKEN is set, never to what; on Colab its secret is put there, for the hub and for what is started here."""
    if on_colab() and not os.environ.get(TOKEN):
        from google.colab import errors, userdata

        # no such secret, not for this notebook, or no page to ask: the open models need none
        with contextlib.suppress(errors.Error, userdata.NotebookAccessError):
            os.environ[TOKEN] = userdata.get(TOKEN).strip()
    return bool(os.environ.get(TOKEN))


def runs_dir(on_drive: bool = False) -> Path:
    """Where runs are kept: here, or on Google Drive, which is there when a Colab machine is gone."""
    if not on_drive:
        return Path("runs")
    if not on_colab():
        raise KitError("DRIVE is Google Drive, and this is no Colab notebook. Set it to False: runs are kept in "
                      f"{Path('runs').absolute()}, which stays.")
    from google.colab import drive, errors

    try:
        drive.mount(str(DRIVE))
    except (ValueError, errors.Error) as error:
        raise KitError(f"Google Drive could not be opened ({error}). Run the cell again and allow access to Drive when "
                      "asked, or set DRIVE to False; then results last as long as this machine.") from error
    return DRIVE / "MyDrive" / "tts_kit" / "runs"


def embed_iframe(port: int, path: str, height: int):
    """A page that this machine serves on `port`, inside a notebook: on Colab through its proxy."""
    from IPython.display import HTML, IFrame

    if on_colab():
        from google.colab import output

        output.serve_kernel_port_as_iframe(port, path=path, height=height)
        return HTML("")  # Colab has shown it
    return IFrame(f"http://127.0.0.1:{port}{path}", "100%", height)


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """True float32 inside: no autocast, no TF32, no bf16 matmul; what was set before is set again after."""
    # torch has an old and a new set of switches and refuses to read the old one where the two disagree:
    # inside, both say the same; after, each says what it said
    old, new = _old_switches(), [(switch, switch.fp32_precision) for switch in _new_switches()]
    try:
        torch.set_float32_matmul_precision("highest")
        torch.backends.cudnn.allow_tf32 = False
        for switch, _ in new:
            switch.fp32_precision = "ieee"
        with contextlib.ExitStack() as stack:
            for device in _present():
                stack.enter_context(torch.autocast(device, enabled=False))
            yield
    finally:
        for set_back, value in old:
            set_back(value)
        for switch, value in new:
            switch.fp32_precision = value


def versions() -> dict[str, str]:
    """Versions of Python and of the installed packages that can change a result."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def machine() -> str:
    """The machine in one line: processor, cores, memory, GPUs."""
    parts = [_processor(), f"{_cores()} cores", f"{memory() / 1e9:.0f} GB"]
    return ", ".join(parts + [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())])


def gpu_memory() -> tuple[str, int, int | None]:
    """Name of the CUDA card, its bytes, and those free now (None when it is too busy to be asked)."""
    card = torch.cuda.get_device_properties(torch.cuda.current_device())
    try:
        return card.name, card.total_memory, torch.cuda.mem_get_info()[0]
    except RuntimeError:
        return card.name, card.total_memory, None


def memory() -> int:
    """Bytes of the machine's memory."""
    return psutil.virtual_memory().total


def _present() -> list[str]:
    """Devices torch can use here, the best first."""
    usable = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [device for device, here in usable.items() if here]


def _new_switches() -> list:
    backends = torch.backends
    if not hasattr(backends, "fp32_precision"):  # torch before 2.9
        return []
    return [backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul, backends.mkldnn.conv]


def _old_switches() -> list[tuple]:
    """Setters with the values they would restore; a switch that the new ones overrule cannot be read and is left out."""
    readers = ((torch.set_float32_matmul_precision, torch.get_float32_matmul_precision),
               (_allow_tf32_in_cudnn, lambda: torch.backends.cudnn.allow_tf32))
    found = []
    for setter, getter in readers:
        with contextlib.suppress(RuntimeError):
            found.append((setter, getter()))
    return found


def _allow_tf32_in_cudnn(value: bool) -> None:
    torch.backends.cudnn.allow_tf32 = value


def _cores() -> int:
    """Cores this process may use, which in a container are fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _processor() -> str:
    table = Path("/proc/cpuinfo")
    if table.exists():
        for line in table.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        asked = subprocess.run(["sysctl", "-n", "machdep.cpu.brand_string"], capture_output=True, text=True, check=False)
        return asked.stdout.strip() or platform.machine()
    return platform.processor() or platform.machine()
