"""LoRA adapters: which projections they cover, saving, checking and loading them, their strength, merging."""

import contextlib
import hashlib
import json
import math
import re
import sys
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from peft.import_utils import is_torchao_available
from peft.tuners.lora import LoraLayer
from peft.tuners.lora import layer as peft_layer
from safetensors import SafetensorError
from safetensors.torch import load_file
from safetensors.torch import save as safetensors_bytes
from torch.nn.functional import linear
from transformers import CsmForConditionalGeneration

from tts_kit import config as kit_config
from tts_kit import pretrained
from tts_kit.errors import KitError
from tts_kit.io import atomic_folder, read_json, write_bytes, write_json
from tts_kit.model.load import Base

WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE = "adapter_model.safetensors", "adapter_config.json", "adapter_meta.json"
RESTORE = "Restore the folder from a copy, or train again in another run."
PARTS = {"backbone": r"backbone_model", "depth": r"depth_decoder\.model", "codec": r"codec_model"}
PROJECTIONS = r"\.layers\.\d+\.(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
"""Anchored by the part's name in front: a plain list of names would put dead adapters on the frozen codec too."""
FREE_SETTINGS = {"r", "lora_alpha", "base_model_name_or_path", "revision", "inference_mode", "peft_version", "auto_mapping"}
"""What an adapter_config.json may set. All else has to be PEFT's default: generation supports nothing else, and some
settings (init_lora_weights) change the base, which other voices may share."""
DEFAULT_ADAPTER = "default"
"""PEFT's name for a model's first adapter. Later ones are numbered, as a voice's own name may be that of a module."""


class FusedLoraLinear(peft_layer.Linear):
    """PEFT's LoRA projection in the dtype of its input, with scaling and addition inside the matrix product.

    PEFT's own forward casts inputs to float32, and scales and adds in separate passes that move more bytes than the
    products themselves."""

    cast_weights: tuple[torch.Tensor, torch.Tensor] | None = None  # A and B in 16 bits, inside `cast_once`

    def forward(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or args or kwargs:
            return super().forward(x, *args, **kwargs)
        name, = names
        x = x.to(self.base_layer.weight.dtype)  # of a float32 residual stream above float16 weights
        lora_a, lora_b = self.cast_weights or (self.lora_A[name].weight, self.lora_B[name].weight)
        down = linear(x, lora_a.to(x.dtype)).flatten(0, -2)
        out = self.base_layer(x)
        return torch.addmm(out.flatten(0, -2), down, lora_b.to(down.dtype).T, alpha=self.scaling[name]).view_as(out)


@contextlib.contextmanager
def cast_once(layers: Sequence[FusedLoraLinear], dtype: torch.dtype) -> Iterator[None]:
    """Compute with copies of these layers' adapter in `dtype`, cast now and all at once, instead of in every layer.

    Gradients reach the float32 weights. What gradient checkpointing computes again later casts by itself."""
    weights = [part[DEFAULT_ADAPTER].weight for layer in layers for part in (layer.lora_A, layer.lora_B)]
    copies = []
    if weights and dtype != torch.float32:
        flat = torch.cat([weight.flatten() for weight in weights]).to(dtype)
        copies = [copy.view_as(weight) for copy, weight in zip(flat.split([*map(torch.numel, weights)]), weights)]
    for layer, *pair in zip(layers, copies[::2], copies[1::2]):
        layer.cast_weights = tuple(pair)
    try:
        yield
    finally:
        for layer in layers:
            layer.cast_weights = None


def fuse_lora_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Turn plain LoRA projections into fused ones; variants, such as another backend's, stay as they are."""
    for module in model.modules():
        if type(module) is peft_layer.Linear and not module.lora_variant and not any(module.lora_bias.values()) and all(
                isinstance(dropout, torch.nn.Identity) for dropout in module.lora_dropout.values()):
            module.__class__ = FusedLoraLinear
    return model


def target_pattern(targets: str) -> str:
    """Return the regular expression of the projections of a preset (both, backbone, depth)."""
    parts = ("backbone", "depth") if targets == "both" else (targets,)
    return f"({'|'.join(PARTS[part] for part in parts)}){PROJECTIONS}"


def hide_old_torchao() -> None:
    """Make a torchao that PEFT refuses, such as that of Colab's images, count as not installed in this process.

    PEFT looks for torchao whenever it adapts a layer, and raises an error if it is older than it supports."""
    try:
        is_torchao_available()
    except ImportError:
        sys.modules["torchao"] = None


def add_lora(model: CsmForConditionalGeneration, rank: int, alpha: float, targets: str = "both", seed: int = 0) -> PeftModel:
    """Add a fresh adapter to a base model; all else stays frozen."""
    hide_old_torchao()
    peft_config = LoraConfig(r=rank, lora_alpha=alpha or rank, lora_dropout=0.0, target_modules=target_pattern(targets))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fuse_lora_layers(get_peft_model(model, peft_config))


def unwrap(model: torch.nn.Module) -> CsmForConditionalGeneration:
    """Return the CSM itself; PEFT has put the adapter's layers into it."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def count_parameters(model: torch.nn.Module) -> dict[str, dict[str, int]]:
    """Return the number of adapted modules, trainable parameters and base parameters of each part."""
    counts = {part: {"modules": 0, "trainable": 0, "parameters": 0} for part in PARTS}
    for name, weight in unwrap(model).named_parameters():
        if part := _part(name):
            counts[part]["modules"] += ".lora_A." in name
            counts[part]["trainable"] += weight.numel() if weight.requires_grad else 0
            counts[part]["parameters"] += weight.numel() if ".lora_" not in name else 0
    return counts


def untrained_parts(model: torch.nn.Module) -> list[str]:
    """Return the parts whose LoRA adds nothing: all their B matrices are zero, as they begin."""
    learned = {}
    for name, weight in unwrap(model).named_parameters():
        if ".lora_B." in name and (part := _part(name)):
            learned[part] = learned.get(part, False) or bool(weight.detach().any())
    return [part for part, has_learned in learned.items() if not has_learned]


def fingerprint(model: PeftModel | Path) -> str:
    """Return a digest of the weights of a model's first adapter, or of the one in a folder."""
    weights = _weights(model) if isinstance(model, PeftModel) else load_file(Path(model) / WEIGHTS_FILE)
    digest = hashlib.sha256()
    for name, weight in sorted(weights.items()):
        digest.update(name.encode())
        digest.update(weight.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def set_strength(model: PeftModel, strength: float, adapter: str = DEFAULT_ADAPTER) -> None:
    """Scale an adapter: 0 is the base, 1 the adapter as trained. An engine that has its weights has to be invalidated."""
    if not math.isfinite(strength):
        raise KitError(f"strength is {strength}; it must be a finite number: 0 is the base, 1 the adapter as trained.")
    for module in model.modules():
        if isinstance(module, LoraLayer) and adapter in module.scaling:
            module.set_scale(adapter, strength)


def save_weights(model: PeftModel, path: Path) -> None:
    """Write the adapter's weights alone, for `load_weights`."""
    weights = {name: weight.detach().cpu().contiguous() for name, weight in _weights(model).items()}
    write_bytes(path, safetensors_bytes(weights))


@torch.no_grad()
def load_weights(model: PeftModel, path: Path, adapter: str = DEFAULT_ADAPTER) -> None:
    """Replace the weights of a model's adapter by those of a file, in place.

    An engine that has its weights has to be invalidated."""
    weights = _weights(model, adapter)
    saved = _read_weights(path, {name: list(weight.shape) for name, weight in weights.items()})
    for name, weight in weights.items():
        weight.copy_(saved[name])


def save(model: PeftModel, folder: Path, base: Base, config_json: str, metadata: dict) -> None:
    """Write an adapter's folder: PEFT's files, the training's config, and the metadata with the base it belongs to."""
    peft_config = model.peft_config[DEFAULT_ADAPTER]
    peft_config.base_model_name_or_path, peft_config.revision = base.name, base.revision or None
    metadata = {"base": base.name, "revision": base.revision, "base_fingerprint": base.fingerprint,
                "codebooks": base.spec.num_codebooks, **metadata}
    with atomic_folder(folder) as staging:
        model.save_pretrained(staging, save_embedding_layers=False)
        (staging / "README.md").unlink(missing_ok=True)  # PEFT's card is an empty form
        (staging / kit_config.CONFIG_FILE).write_text(config_json, encoding="utf-8")
        (staging / METADATA_FILE).write_text(json.dumps(metadata, indent=2) + "\n", encoding="utf-8")


def load(base: Base, folder: Path, model: PeftModel | None = None, name: str = DEFAULT_ADAPTER) -> PeftModel:
    """Put a saved adapter on a base, or on its model that has adapters already; one that is refused changes nothing."""
    check_compatible(base, Path(folder), read_metadata(folder))
    hide_old_torchao()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT warns of missing keys, which were checked
        if model:
            model.load_adapter(folder, name)
        else:
            assert not any(isinstance(module, LoraLayer) for module in base.model.modules()), "give the model with adapters"
            model = PeftModel.from_pretrained(base.model, folder)
    return fuse_lora_layers(model).eval().requires_grad_(False)


def read_metadata(folder: Path) -> dict:
    """Return the metadata of an adapter's folder, after checking its files and settings; no weight is loaded."""
    folder = Path(folder)
    if not folder.exists():
        raise KitError(f"{folder} does not exist: nothing was trained there yet. `tts-kit train --run NAME` makes it.")
    if folder.is_dir():
        pretrained.check_no_pickles(folder, [path.name for path in folder.iterdir()])
    for name in (WEIGHTS_FILE, CONFIG_FILE, METADATA_FILE):
        if not (folder / name).is_file():
            raise KitError(f"{folder} is not an adapter of this kit: {name} is missing. Give the folder that `tts-kit "
                           "train` wrote, usually runs/NAME/adapter.")
    metadata = read_json(folder / METADATA_FILE, RESTORE)
    if missing := [name for name in ("base", "revision", "base_fingerprint", "speaker") if name not in metadata]:
        raise KitError(f"{folder / METADATA_FILE} lacks {' and '.join(missing)}. {RESTORE}")
    settings = read_json(folder / CONFIG_FILE, RESTORE)
    allowed = {name: [value] for name, value in LoraConfig(peft_type="LORA").to_dict().items() if name not in FREE_SETTINGS}
    allowed["target_modules"] = [target_pattern(targets) for targets in kit_config.LORA_TARGETS]
    for name, values in allowed.items():
        value = settings.get(name) if name == "target_modules" else settings.get(name, values[0])
        # versions of PEFT write "empty" in different ways
        if (value or None) not in [allowed_value or None for allowed_value in values]:
            raise KitError(f"{folder / CONFIG_FILE} has {name} {value!r}; wanted {' or '.join(map(repr, values))}: the kit "
                           "supports plain LoRA only. Train with `tts-kit train`, or restore the file.")
    return metadata


def add_metadata(folder: Path, **fields: object) -> None:
    """Add fields to the metadata of an adapter's folder."""
    write_json(folder / METADATA_FILE, read_metadata(folder) | fields)


def check_compatible(base: Base, folder: Path, metadata: dict) -> None:
    """Refuse an adapter that was trained for another base, or whose weights have other names or shapes than its config."""
    if metadata["base_fingerprint"] != base.fingerprint:
        raise KitError(f"{folder} was trained for {metadata['base']} (weights {metadata['base_fingerprint']}), but "
                       f"{base.name} is loaded (weights {base.fingerprint}). Load it with --base {metadata['base']}.")
    settings = read_json(folder / CONFIG_FILE, RESTORE)
    rank, expected = settings.get("r"), {}
    for name, module in base.model.named_modules():
        if re.fullmatch(settings["target_modules"], name):
            # the base layer, where another adapter is on the projection already
            out_features, in_features = getattr(module, "base_layer", module).weight.shape
            expected[f"base_model.model.{name}.lora_A.weight"] = [rank, in_features]
            expected[f"base_model.model.{name}.lora_B.weight"] = [out_features, rank]
    _read_weights(folder / WEIGHTS_FILE, expected)


def _read_weights(path: Path, expected: dict[str, list[int]]) -> dict[str, torch.Tensor]:
    """Return the weights of a file, after checking that they have the expected names and shapes."""
    try:
        saved = load_file(path)
    except SafetensorError as error:
        raise KitError(f"{pretrained.damage_reason(path, error)}. {RESTORE}") from error
    shapes = {name: list(weight.shape) for name, weight in saved.items()}
    for name in sorted(shapes | expected):
        if shapes.get(name) != expected.get(name):
            raise KitError(f"{path} has the weights of another adapter: {name} is {shapes.get(name, 'missing')}; wanted "
                           f"{expected.get(name, 'nothing of that name')}. Give a file of the same base, rank and targets, "
                           "or restore it from a copy.")
    return saved


def _weights(model: PeftModel, adapter: str = DEFAULT_ADAPTER) -> dict[str, torch.Tensor]:
    """Return an adapter's weights by their names in its file; they share memory with the model."""
    return get_peft_model_state_dict(model, adapter_name=adapter, save_embedding_layers=False)


def _part(name: str) -> str | None:
    return next((part for part, prefix in PARTS.items() if name.startswith(prefix.removesuffix(r"\.model"))), None)
