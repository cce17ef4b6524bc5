"""The base model: from the hub or a folder, its embedding tie repaired, its codec in float32, by a chosen engine."""

import contextlib
import hashlib
import importlib.util
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from transformers import CsmForConditionalGeneration

from tts_kit import pretrained
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling
from tts_kit.model import attention
from tts_kit.spec import ModelSpec
from tts_kit.tokens import codec
from tts_kit.tokens.prompt import PromptBuilder

BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"


class ModelBusyError(KitError):
    """A network that is asked to say two things at once."""


@dataclass
class Base:
    """A loaded model with everything that belongs to it."""
    model: torch.nn.Module
    codec: codec.Codec
    prompt_builder: PromptBuilder
    spec: ModelSpec
    device_config: DeviceConfig
    name: str
    revision: str
    backend: str
    sampling: Sampling
    """As the checkpoint wants to be sampled."""
    fingerprint: str
    """Names the weights an adapter is trained for; a mirror of the same weights has the same name."""
    turn: threading.Lock = field(default_factory=threading.Lock)
    """Held while a voice speaks, as all that share the network speak with the same copies of its weights."""

    @contextlib.contextmanager
    def taken(self) -> Iterator[None]:
        """For one that speaks, as long as the block lasts; another one is refused meanwhile."""
        if not self.turn.acquire(blocking=False):
            raise ModelBusyError(f"{self.name} is still saying something else, in this voice or one that shares it, and would mix "
                        "the two. Let that end, or close it, or load the voice apart.")
        try:
            yield
        finally:
            self.turn.release()


def load_base(name: str, device_config: DeviceConfig, revision: str = "", backend: str = "peft", codec_device: str = "") -> Base:
    """Load a CSM on the device and in the dtype of `runtime`, frozen; its codec there too, or on a device of its own."""
    config = pretrained.config(name, revision)
    loader = _with_unsloth if backend == "unsloth" else _with_transformers
    model = loader(name, revision, device_config)
    spec = ModelSpec.of(config)
    sound = codec.load(name, revision, codec_device or device_config.device)
    model.codec_model = None  # kept beside the model in float32, where no training mode, cast or adapter reaches it
    model.requires_grad_(False).eval()
    prompt_builder = PromptBuilder(pretrained.tokenizer(name, revision), spec)
    return Base(model, sound, prompt_builder, spec, device_config, name, pretrained.resolved_revision(config, revision), backend,
                Sampling.recommended(pretrained.generation(name, revision)), fingerprint(model))


def fingerprint(model: CsmForConditionalGeneration) -> str:
    """A name for head and first layers, from their signs alone, which are the same in every precision."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name == "lm_head.weight" or (".layers.0." in name and weight.dim() == 2):
            digest.update(name.encode())
            digest.update(np.packbits(torch.signbit(weight.detach()).cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def without_weights(name: str, revision: str = "") -> CsmForConditionalGeneration:
    """The same network on the meta device: for counting, at no cost."""
    config = pretrained.config(name, revision)
    with torch.device("meta"):
        model = CsmForConditionalGeneration(config)
    attention.install(model)
    return model


def choose_backend(asked: str, device_config: DeviceConfig) -> tuple[str, str]:
    """The backend and the reason for it."""
    installed = importlib.util.find_spec("unsloth") is not None
    if asked == "unsloth":
        if not installed or device_config.device != "cuda":
            missing = "unsloth is not installed" if not installed else f"the device is {device_config.device}"
            raise KitError(f"backend 'unsloth' was asked for, but {missing}. It needs an NVIDIA GPU and "
                          "`pip install -r requirements-gpu.txt -c constraints.txt`; backend 'peft' runs everywhere.")
        return "unsloth", "asked for"
    if asked == "peft":
        return "peft", "asked for"
    return "peft", ("it is proven equal to transformers" + (", unsloth is used when asked for" if installed else ""))


def tie(model: CsmForConditionalGeneration, missing: set[str], name: str) -> None:
    """Make backbone and depth decoder share one audio table, or refuse the checkpoint.

    transformers 5.0 to 5.20 save the shared table once and load the other copy at random.
    """
    if odd := sorted(missing - {BACKBONE_TABLE, DEPTH_TABLE}):
        part = "the depth decoder" if all(key.startswith("depth_decoder.") for key in odd) else "weights"
        raise KitError(f"{name} lacks {part}: {len(odd)} tensors, among them {odd[0]}. A model with random parts cannot be "
                      "tuned; download the whole checkpoint again.")
    if {BACKBONE_TABLE, DEPTH_TABLE} <= missing:
        raise KitError(f"{name} has no audio embeddings ({BACKBONE_TABLE}). Download the whole checkpoint again.")
    if not model.config.tie_codebooks_embeddings:
        return
    backbone, depth = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    if BACKBONE_TABLE in missing:
        backbone.weight = depth.weight
    elif DEPTH_TABLE in missing or torch.equal(backbone.weight, depth.weight):
        depth.weight = backbone.weight
    else:
        raise KitError(f"{name} says its two audio tables are one (tie_codebooks_embeddings), but they differ: it was saved "
                      "after a broken load. Use the original checkpoint.")


def untie(model: CsmForConditionalGeneration) -> CsmForConditionalGeneration:
    """The model with both audio tables of its own, so that both are saved: transformers 5.0 to 5.20 do not tie them on
    loading, and draw one anew that is not in the file."""
    table = model.backbone_model.embed_tokens.embed_audio_tokens
    table.weight = torch.nn.Parameter(table.weight.detach().clone())
    return model


def _with_transformers(name: str, revision: str, device_config: DeviceConfig) -> CsmForConditionalGeneration:
    model, report = pretrained.weights(CsmForConditionalGeneration, name, revision, dtype=device_config.dtype,
                                       attn_implementation=device_config.attention)
    tie(model, {key for key in report["missing_keys"] if not key.startswith("codec_model.")}, name)
    model.to(device_config.device)
    attention.install(model)
    return model


def _with_unsloth(name: str, revision: str, device_config: DeviceConfig) -> CsmForConditionalGeneration:
    from unsloth import FastModel

    with pretrained.explain_load_errors(name):
        model, _ = FastModel.from_pretrained(name, revision=revision or None, auto_model=CsmForConditionalGeneration,
                                             dtype=device_config.dtype, load_in_4bit=False, full_finetuning=False)
    # unsloth does not report what was missing; a random backbone table shows as a difference and is refused
    tie(model, set(), name)
    # it leaves some projections in another dtype, which only autocast forgives, and speaking runs without
    return model.to(device_config.dtype)
