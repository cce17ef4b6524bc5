"""The adapter: which projections learn, how many there are, saving and loading it, how strongly it speaks."""

import contextlib
import hashlib
import itertools
import json
import math
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as as_safetensors

from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, write_bytes
from tts_kit.model import fused_lora
from tts_kit.model.adapter_io import METADATA_FILE, PARTS, RESTORE, WEIGHTS_FILE, check_compatible, pattern, read_metadata
from tts_kit.model.load import Base

DEFAULT_ADAPTER = "default"
"""What PEFT calls the adapter that a model is wrapped with; those added later are numbered, because the names that people
give to voices may be names that modules have already."""
NUMBERS = itertools.count(2)


def add_lora(model: torch.nn.Module, rank: int, alpha: float, targets: str = "both", seed: int = 0) -> PeftModel:
    """Wrap the base; everything but the adapter stays frozen."""
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=0.0, target_modules=pattern(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fused_lora.fuse_lora_layers(get_peft_model(model, config))


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """The CSM inside, whose projections carry the adapter if there is one."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def count_parameters(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Adapted modules and trainable parameters of each part."""
    counts = {part: {"modules": 0, "trainable": 0, "parameters": 0} for part in PARTS}
    for name, module in unwrap(model).named_modules():
        if isinstance(module, LoraLayer) and (part := _part(name)):
            counts[part]["modules"] += 1
    for name, weight in unwrap(model).named_parameters():
        if part := _part(name):
            counts[part]["trainable"] += weight.numel() if weight.requires_grad else 0
            counts[part]["parameters"] += weight.numel() if ".lora_" not in name else 0
    return counts


def format_parameter_table(counts: dict[str, dict[str, int]]) -> str:
    """The census as a small table."""
    lines = [f"{'part':<10}{'adapted modules':>16}{'trainable':>14}{'base parameters':>17}"]
    for part, count in counts.items():
        lines.append(f"{part:<10}{count['modules']:>16,}{count['trainable']:>14,}{count['parameters']:>17,}")
    return "\n".join(lines)


def max_lora_b(model: torch.nn.Module) -> dict[str, float]:
    """Largest LoRA B entry of each part: 0 means that part has learnt nothing."""
    largest = {}
    for name, weight in unwrap(model).named_parameters():
        if ".lora_B." in name and (part := _part(name)):
            largest[part] = max(largest.get(part, 0.0), weight.detach().abs().max().item())
    return largest


def fingerprint(model: PeftModel | Path, adapter: str = DEFAULT_ADAPTER) -> str:
    """Names the weights of one of a model's adapters, or of the one in a folder."""
    weights = _weights(model, adapter) if isinstance(model, PeftModel) else load_file(Path(model) / WEIGHTS_FILE)
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def set_strength(model: PeftModel, strength: float, adapter: str = "") -> None:
    """0 is the base, 1 the adapter as trained; of one adapter, or of all that the model carries."""
    if not math.isfinite(strength):
        raise KitError(f"strength {strength} is none. Wanted a number: 0 is the base, 1 the adapter as trained.")
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name in [adapter] if adapter else [*module.scaling]:
                if name in module.scaling:
                    module.set_scale(name, strength)


@contextlib.contextmanager
def adapter_enabled(model: torch.nn.Module, finetuned: bool, adapter: str = DEFAULT_ADAPTER) -> Iterator[None]:
    """With `tuned` false the base exactly, else with that adapter, as long as the block lasts; a bare model is always the
    base, though it may carry what was added for others."""
    if finetuned and isinstance(model, PeftModel):
        set_active_adapter(model, adapter)
        yield
        return
    # PEFT's own way would leave weights that are only heard as if they were to be learnt
    layers = [(layer, [weight.requires_grad for weight in layer.parameters()]) for layer in unwrap(model).modules()
              if isinstance(layer, LoraLayer) and not layer.disable_adapters]
    for layer, _ in layers:
        layer.enable_adapters(False)
    try:
        yield
    finally:
        for layer, learnt in layers:
            layer.enable_adapters(True)
            for weight, each in zip(layer.parameters(), learnt):
                weight.requires_grad_(each)


def set_active_adapter(model: PeftModel, adapter: str) -> None:
    """Let this one of the model's adapters speak; the base's weights stay where they are."""
    if model.active_adapters != [adapter]:
        model.set_adapter(adapter, inference_mode=True)


def merge(model: PeftModel) -> torch.nn.Module:
    """The base with the adapter added into its weights; cannot be undone."""
    return model.merge_and_unload()


def save_weights(model: PeftModel, path: Path) -> None:
    """The adapter's weights alone as one file, which `restore` puts back."""
    weights = _weights(model)
    write_bytes(path, as_safetensors({name: weight.detach().cpu().contiguous() for name, weight in weights.items()}))


@torch.no_grad()
def load_weights(model: PeftModel, path: Path) -> None:
    """Put weights that `keep` or `save` wrote into the adapter of `model`, in place; those of another are refused."""
    try:
        kept = load_file(path)
    except (SafetensorError, OSError) as error:
        raise KitError(f"{path} cannot be read as weights of an adapter ({error}). {RESTORE}") from error
    mine = _weights(model)
    shapes = {name: [tuple(of[name].shape) if name in of else "missing" for of in (kept, mine)] for name in {**kept, **mine}}
    if other := sorted(name for name, (there, here) in shapes.items() if there != here):
        there, here = shapes[other[0]]
        raise KitError(f"{path} was kept of another adapter: {other[0]} is {there} there and {here} in the model. Give the "
                      "file of a training with the same base, rank and targets.")
    for name, weight in mine.items():
        weight.copy_(kept[name])


def save(model: PeftModel, folder: Path, base: Base, recipe_json: str, voice: dict) -> None:
    """PEFT files, the recipe, and what the adapter belongs to, as one folder."""
    model.peft_config["default"].base_model_name_or_path = base.name
    model.peft_config["default"].revision = base.revision or None
    belongs = {"base": base.name, "revision": base.revision, "base_fingerprint": base.fingerprint,
               "codebooks": base.spec.num_codebooks, **voice}
    with atomic_folder(folder) as beside:
        model.save_pretrained(beside, save_embedding_layers=False)
        (beside / "README.md").unlink(missing_ok=True)  # PEFT's card is a form with nothing filled in
        (beside / "config.json").write_text(recipe_json, encoding="utf-8")
        (beside / METADATA_FILE).write_text(json.dumps(belongs, indent=2) + "\n", encoding="utf-8")


def load(base: Base, folder: Path) -> PeftModel:
    """The base with a saved adapter; refuses an adapter that was trained for other weights."""
    check_compatible(base, Path(folder), read_metadata(folder))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of keys; they are known to be right
        model = fused_lora.fuse_lora_layers(PeftModel.from_pretrained(base.model, folder))
    return model.eval().requires_grad_(False)


def add(model: PeftModel, base: Base, folder: Path) -> str:
    """One more adapter beside those that the model carries already; returns what `switch` calls it.

    The adapter that speaks goes on speaking, and a folder that is refused leaves the model as it was."""
    check_compatible(base, Path(folder), read_metadata(folder))
    name = f"voice{next(NUMBERS)}"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.load_adapter(folder, name)
    fused_lora.fuse_lora_layers(model).eval().requires_grad_(False)
    return name


def remove(model: PeftModel, adapter: str) -> None:
    """Forget one of the adapters; its memory is free from the next sentence on. The last stays: PEFT cannot be without."""
    others = [name for name in model.peft_config if name != adapter]
    if others:
        if model.active_adapters == [adapter]:
            set_active_adapter(model, others[0])
        model.delete_adapter(adapter)


def _weights(model: PeftModel, adapter: str = DEFAULT_ADAPTER) -> dict[str, torch.Tensor]:
    """An adapter's weights under the names of its file; they share their memory with the model."""
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def _part(name: str) -> str | None:
    return next((part for part, prefix in PARTS.items() if name.startswith(prefix.removesuffix(r"\.model"))), None)
