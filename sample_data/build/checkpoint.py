"""Save and load the whole state of a training as safetensors and JSON: written atomically, never unpickled."""

import json
import shutil
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.optim import Optimizer

from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, write_json

TENSORS, METADATA = "state.safetensors", "metadata.json"
MAX_CHECKPOINTS = 2


def save(folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer],
         metadata: dict) -> Path:
    """Write `folder`/step-000500 and remove all but the newest two; returns the new folder.

    Names of modules and optimizers must differ."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": torch.as_tensor(value) for key, value in state.items()}
    path = Path(folder) / f"step-{step:06d}"
    with atomic_folder(path) as staging:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, staging / TENSORS)
        write_json(staging / METADATA, metadata | {"step": step})
    for old in list_folders(folder)[:-MAX_CHECKPOINTS]:
        shutil.rmtree(old)
    return path


def list_folders(folder: Path) -> list[Path]:
    """Return the folders of complete checkpoints, the oldest first."""
    return sorted(path.parent for path in Path(folder).glob(f"step-*/{METADATA}"))


def read_metadata(path: Path) -> dict:
    """Return the metadata of a checkpoint."""
    return json.loads((Path(path) / METADATA).read_text(encoding="utf-8"))


def load(path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> dict:
    """Load a checkpoint's tensors into modules and optimizers; returns its metadata."""
    try:
        with safe_open(Path(path) / TENSORS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        for name, module in modules.items():
            module.load_state_dict(_with_prefix(name, tensors))
        for name, optimizer in optimizers.items():
            state: dict[int, dict] = {}
            for key, value in _with_prefix(name, tensors).items():
                index, _, field = key.partition("/")
                state.setdefault(int(index), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:
        raise KitError(f"{path} cannot be read as a checkpoint of this training ({error}). Remove that folder to resume "
                      "from the checkpoint before it.") from error
    return read_metadata(path)


def _with_prefix(name: str, tensors: dict) -> dict:
    """Return the tensors whose names start with `name`/, without that prefix."""
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
