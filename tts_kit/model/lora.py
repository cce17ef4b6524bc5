"""The adapter: which projections learn, how many there are, saving and loading it, how strongly it speaks."""

import contextlib
import hashlib
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors

from tts_kit.model import lean
from tts_kit.model.load import Base
from tts_kit.problem import Problem
from tts_kit.run import read_json, write_bytes, writing_folder

PARTS = {"backbone": r"backbone_model", "depth": r"depth_decoder\.model", "codec": r"codec_model"}
# anchored: the usual list of names would also put dead adapters on the frozen codec
PROJECTIONS = r"\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
WEIGHTS, CONFIG, VOICE = "adapter_model.safetensors", "adapter_config.json", "voice.json"
RESTORE = "Restore the folder from a copy, or train again in another run."


def pattern(targets: str) -> str:
    """The regular expression that names the projections of a preset (both, backbone, depth)."""
    parts = ("backbone", "depth") if targets == "both" else (targets,)
    return f"({'|'.join(PARTS[part] for part in parts)}){PROJECTIONS}"


def attach(model: torch.nn.Module, rank: int, alpha: float, targets: str = "both", seed: int = 0) -> PeftModel:
    """Wrap the base; everything but the adapter stays frozen."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return lean.slim(get_peft_model(model, config))


def bare(model: torch.nn.Module) -> torch.nn.Module:
    """The CSM inside, whose projections carry the adapter if there is one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def census(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Adapted modules and trainable parameters of each part."""
    counts = {part: {"modules": 0, "trainable": 0, "parameters": 0} for part in PARTS}
    for name, module in bare(model).named_modules():
        if isinstance(module, LoraLayer) and (part := _part(name)):
            counts[part]["modules"] += 1
    for name, weight in bare(model).named_parameters():
        if part := _part(name):
            counts[part]["trainable"] += weight.numel() if weight.requires_grad else 0
            counts[part]["parameters"] += weight.numel() if ".lora_" not in name else 0
    return counts


def describe(counts: dict[str, dict[str, int]]) -> str:
    """The census as a small table."""
    lines = [f"{'part':<10}{'adapted modules':>16}{'trainable':>14}{'base parameters':>17}"]
    for part, count in counts.items():
        lines.append(f"{part:<10}{count['modules']:>16,}{count['trainable']:>14,}{count['parameters']:>17,}")
    return "\n".join(lines)


def moved(model: torch.nn.Module) -> dict[str, float]:
    """Largest LoRA B entry of each part: 0 means that part has learnt nothing."""
    largest = {}
    for name, weight in bare(model).named_parameters():
        if ".lora_B." in name and (part := _part(name)):
            largest[part] = max(largest.get(part, 0.0), weight.detach().abs().max().item())
    return largest


def fingerprint(model: PeftModel) -> str:
    """Names the adapter's weights."""
    digest = hashlib.sha256()
    for name, weight in sorted(get_peft_model_state_dict(model, save_embedding_layers=False).items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def set_strength(model: PeftModel, strength: float) -> None:
    """0 is the base, 1 the adapter as trained."""
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for adapter in module.scaling:
                module.set_scale(adapter, strength)


@contextlib.contextmanager
def speaking(model: torch.nn.Module, tuned: bool) -> Iterator[None]:
    """With `tuned` false the base exactly, as long as the block lasts; a model without adapter is always that."""
    with contextlib.nullcontext() if tuned or not isinstance(model, PeftModel) else model.disable_adapter():
        yield


def merge(model: PeftModel) -> torch.nn.Module:
    """The base with the adapter added into its weights; cannot be undone."""
    return model.merge_and_unload()


def keep(model: PeftModel, path: Path) -> None:
    """The adapter's weights alone as one file, which `restore` puts back."""
    weights = get_peft_model_state_dict(model, save_embedding_layers=False)
    write_bytes(path, as_safetensors({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}))


@torch.no_grad()
def restore(model: PeftModel, path: Path) -> None:
    """Put weights that `keep` or `save` wrote into the adapter of `model`, in place; those of another are refused."""
    try:
        kept = load_file(path)
    except (SafetensorError, OSError) as error:
        raise Problem(f"{path} cannot be read as weights of an adapter ({error}). {RESTORE}") from error
    # what PEFT gives here shares its memory with the model
    mine = get_peft_model_state_dict(model, save_embedding_layers=False)
    shapes = {name: [tuple(of[name].shape) if name in of else "missing" for of in (kept, mine)] for name in {**kept, **mine}}
    if other := sorted(name for name, (there, here) in shapes.items() if there != here):
        there, here = shapes[other[0]]
        raise Problem(f"{path} was kept of another adapter: {other[0]} is {there} there and {here} in the model. Give the "
                      "file of a training with the same base, rank and targets.")
    for name, weight in mine.items():
        weight.copy_(kept[name])


def save(model: PeftModel, folder: Path, base: Base, recipe_json: str, voice: dict) -> None:
    """PEFT files, the recipe, and what the adapter belongs to, as one folder."""
    model.peft_config["default"].base_model_name_or_path = base.name
    model.peft_config["default"].revision = base.revision or None
    belongs = {"base": base.name, "revision": base.revision, "base_fingerprint": base.fingerprint,
               "codebooks": base.physics.codebooks, **voice}
    with writing_folder(folder) as beside:
        model.save_pretrained(beside, save_embedding_layers=False)
        (beside / "README.md").unlink(missing_ok=True)  # PEFT's card is a form with nothing filled in
        (beside / "recipe.json").write_text(recipe_json, encoding="utf-8")
        (beside / VOICE).write_text(json.dumps(belongs, indent=2) + "\n", encoding="utf-8")


def read_voice(folder: Path) -> dict:
    """What an adapter folder says of itself; the folder is checked before any weight is loaded."""
    folder = Path(folder)
    if not folder.exists():
        raise Problem(f"{folder} does not exist: nothing was trained there yet. `python -m tts_kit train --run NAME` makes "
                      "it; to speak with the base alone give --untuned.")
    for name in (WEIGHTS, CONFIG, VOICE):
        if not (folder / name).is_file():
            raise Problem(f"{folder} is not an adapter of this kit: {name} is missing. Wanted: the folder that "
                          "`python -m tts_kit train` wrote, usually runs/NAME/adapter.")
    belongs = read_json(folder / VOICE, RESTORE)
    if lacking := [name for name in ("base", "revision", "base_fingerprint", "speaker") if name not in belongs]:
        raise Problem(f"{folder / VOICE} does not say {' and '.join(lacking)}. {RESTORE}")
    read_json(folder / CONFIG, RESTORE)
    return belongs


def load(base: Base, folder: Path) -> PeftModel:
    """The base with a saved adapter; refuses an adapter that was trained for other weights."""
    folder, belongs = Path(folder), read_voice(folder)
    if belongs["base_fingerprint"] != base.fingerprint:
        raise Problem(f"{folder} was trained for {belongs['base']} (weights {belongs['base_fingerprint']}), but {base.name} "
                      f"is loaded (weights {base.fingerprint}). Load it with --base {belongs['base']}.")
    try:
        with safe_open(folder / WEIGHTS, "pt") as file:
            saved = set(file.keys())
    except SafetensorError as error:
        raise Problem(f"{folder / WEIGHTS} is damaged ({error}). {RESTORE}") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of keys; they are compared below
        model = lean.slim(PeftModel.from_pretrained(base.model, folder))
    if different := saved ^ set(get_peft_model_state_dict(model, save_embedding_layers=False)):
        raise Problem(f"{folder / WEIGHTS} and its {CONFIG} disagree about {sorted(different)[0]}. {RESTORE}")
    return model.eval().requires_grad_(False)


def _part(name: str) -> str | None:
    return next((part for part, prefix in PARTS.items() if name.startswith(prefix.removesuffix(r"\.model"))), None)
