"""An adapter's folder: whether it is one, whole, and for this base; all is asked before any weight is loaded."""

import re
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors import SafetensorError, safe_open

from tts_kit import pretrained
from tts_kit.config import LORA_TARGETS
from tts_kit.errors import KitError
from tts_kit.io import read_json
from tts_kit.model.load import Base

WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE = "adapter_model.safetensors", "adapter_config.json", "voice.json"
PARTS = {"backbone": r"backbone_model", "depth": r"depth_decoder\.model", "codec": r"codec_model"}
# anchored: the usual list of names would also put dead adapters on the frozen codec
PROJECTIONS = r"\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
RESTORE = "Restore the folder from a copy, or train again in another run."
OWN = ("r", "lora_alpha", "target_modules", "base_model_name_or_path", "revision", "inference_mode", "peft_version",
       "auto_mapping")
"""What adapters of this kit say for themselves. All else is as PEFT has it at first: layers that speak know nothing else,
and some of it (init_lora_weights) changes the base, which other voices may share."""


def pattern(targets: str) -> str:
    """The regular expression that names the projections of a preset (both, backbone, depth)."""
    parts = ("backbone", "depth") if targets == "both" else (targets,)
    return f"({'|'.join(PARTS[part] for part in parts)}){PROJECTIONS}"


def read_metadata(folder: Path) -> dict:
    """What an adapter folder says of itself; the folder is checked before any weight is loaded."""
    folder = Path(folder)
    if not folder.exists():
        raise KitError(f"{folder} does not exist: nothing was trained there yet. `tts-kit train --run NAME` makes "
                      "it.")
    if folder.is_dir():
        pretrained.check_no_pickles(folder, [path.name for path in folder.iterdir()])
    for name in (WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE):
        if not (folder / name).is_file():
            raise KitError(f"{folder} is not an adapter of this kit: {name} is missing. Wanted: the folder that "
                          "`tts-kit train` wrote, usually runs/NAME/adapter.")
    belongs = read_json(folder / METADATA_FILE, RESTORE)
    if lacking := [name for name in ("base", "revision", "base_fingerprint", "speaker") if name not in belongs]:
        raise KitError(f"{folder / METADATA_FILE} does not say {' and '.join(lacking)}. {RESTORE}")
    _refuse_strange(folder / CONFIG_FILE)
    return belongs


def _refuse_strange(path: Path) -> None:
    """Settings of PEFT that the kit never writes."""
    config = read_json(path, RESTORE)
    wanted = {name: [value] for name, value in LoraConfig(peft_type="LORA").to_dict().items() if name not in OWN}
    for name, allowed in (wanted | {"target_modules": [pattern(each) for each in LORA_TARGETS]}).items():
        found = config.get(name, None if name in OWN else allowed[0])
        # what is empty is written in many ways, which differ between versions
        if (found or None) not in [each or None for each in allowed]:
            raise KitError(f"{path} has {name} {found!r}; wanted {' or '.join(map(repr, allowed))}: the kit speaks with "
                          "plain LoRA only. Train with `tts-kit train`, or restore the file.")


def check_compatible(base: Base, folder: Path, belongs: dict) -> None:
    """An adapter has to be whole, for this base, and of the shapes it says; asked before anything is done to the base."""
    if belongs["base_fingerprint"] != base.fingerprint:
        raise KitError(f"{folder} was trained for {belongs['base']} (weights {belongs['base_fingerprint']}), but {base.name} "
                      f"is loaded (weights {base.fingerprint}). Load it with --base {belongs['base']}.")
    shapes = _shapes(folder / WEIGHTS_FILE)
    config = read_json(folder / CONFIG_FILE, RESTORE)
    rank = config.get("r")
    for name, shape in shapes.items():
        found = (shape or [0])[0 if ".lora_A." in name else -1]
        if found != rank:
            raise KitError(f"{folder / WEIGHTS_FILE} has an adapter of rank {found} ({name} is {' x '.join(map(str, shape))}), "
                          f"and its {CONFIG_FILE} says {rank}: they are of two trainings. {RESTORE}")
    wanted = _wanted(base.model, config["target_modules"], rank)
    if odd := sorted(name for name in shapes | wanted if shapes.get(name) != wanted.get(name)):
        raise KitError(f"{folder / WEIGHTS_FILE} and its {CONFIG_FILE} disagree about {odd[0]}: it is {shapes.get(odd[0], 'missing')}; "
                      f"wanted {wanted.get(odd[0], 'nothing of that name')}. {RESTORE}")


def _wanted(model: torch.nn.Module, targets: str, rank: int) -> dict[str, list[int]]:
    """Names and shapes of an adapter's weights for every projection of the model that the expression `targets` names."""
    shapes = {}
    for name, module in model.named_modules():
        if re.fullmatch(targets, name):
            # where another adapter is on, the projection is inside
            out, inside = getattr(module, "base_layer", module).weight.shape
            shapes[f"base_model.model.{name}.lora_A.weight"] = [rank, inside]
            shapes[f"base_model.model.{name}.lora_B.weight"] = [out, rank]
    return shapes


def _shapes(path: Path) -> dict[str, list[int]]:
    """The shapes of the weights in a file, by the header alone, which also says how long the file has to be."""
    try:
        with safe_open(path, "np") as file:
            return {name: file.get_slice(name).get_shape() for name in sorted(file.keys())}
    except SafetensorError as error:
        raise KitError(f"{pretrained.damage_reason(path, error)}. {RESTORE}") from error
