"""A training's whole state on disk, as safetensors and JSON: written whole or not at all, never unpickled."""

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

TENSORS, FACTS = "state.safetensors", "facts.json"
KEPT = 2


def save(folder: Path, step: int, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer], facts: dict) -> Path:
    """Write `folder`/step-000500 and remove all but the newest two."""
    tensors = {f"{name}/{key}": value for name, module in modules.items() for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for number, state in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{number}/{key}": torch.as_tensor(value) for key, value in state.items()}
    path = Path(folder) / f"step-{step:06d}"
    with atomic_folder(path) as beside:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, beside / TENSORS)
        write_json(beside / FACTS, facts | {"step": step})
    for old in steps(folder)[:-KEPT]:
        shutil.rmtree(old)
    return path


def steps(folder: Path) -> list[Path]:
    """Whole checkpoints, the oldest first."""
    return sorted(path.parent for path in Path(folder).glob(f"step-*/{FACTS}"))


def facts(path: Path) -> dict:
    return json.loads((Path(path) / FACTS).read_text(encoding="utf-8"))


def load(path: Path, modules: dict[str, nn.Module], optimizers: dict[str, Optimizer]) -> dict:
    """Put a checkpoint's tensors into modules and optimizers; returns its facts."""
    try:
        with safe_open(Path(path) / TENSORS, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no dictionary)
        for name, module in modules.items():
            module.load_state_dict(_under(name, tensors))
        for name, optimizer in optimizers.items():
            state: dict[int, dict] = {}
            for key, value in _under(name, tensors).items():
                number, _, field = key.partition("/")
                state.setdefault(int(number), {})[field] = value
            optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    except Exception as error:
        raise KitError(f"{path} cannot be read as a checkpoint of this training ({error}). Remove that folder to go on "
                      "from the one before it.") from error
    return facts(path)


def _under(name: str, tensors: dict) -> dict:
    return {key.removeprefix(f"{name}/"): value for key, value in tensors.items() if key.startswith(f"{name}/")}
