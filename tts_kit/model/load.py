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

from tts_kit import checkpoint
from tts_kit.model import attention
from tts_kit.model.sampling import Sampling
from tts_kit.physics import Physics
from tts_kit.problem import Problem
from tts_kit.runtime import Runtime
from tts_kit.tokens import codec
from tts_kit.tokens.prompt import Writer

BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"


class Taken(Problem):
    """A network that is asked to say two things at once."""


@dataclass
class Base:
    """A loaded model with everything that belongs to it."""
    model: torch.nn.Module
    codec: codec.Codec
    writer: Writer
    physics: Physics
    runtime: Runtime
    name: str
    revision: str
    engine: str
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
            raise Taken(f"{self.name} is still saying something else, in this voice or one that shares it, and would mix "
                        "the two. Let that end, or close it, or load the voice apart.")
        try:
            yield
        finally:
            self.turn.release()


def base(name: str, runtime: Runtime, revision: str = "", engine: str = "plain", codec_device: str = "") -> Base:
    """Load a CSM on the device and in the dtype of `runtime`, frozen; its codec there too, or on a device of its own."""
    config = checkpoint.config(name, revision)
    loader = _with_unsloth if engine == "unsloth" else _with_transformers
    model = loader(name, revision, runtime)
    physics = Physics.of(config)
    sound = codec.load(name, revision, codec_device or runtime.device)
    model.codec_model = None  # kept beside the model in float32, where no training mode, cast or adapter reaches it
    model.requires_grad_(False).eval()
    writer = Writer(checkpoint.tokenizer(name, revision), physics)
    return Base(model, sound, writer, physics, runtime, name, checkpoint.exact_revision(config, revision), engine,
                Sampling.recommended(checkpoint.generation(name, revision)), fingerprint(model))


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
    config = checkpoint.config(name, revision)
    with torch.device("meta"):
        model = CsmForConditionalGeneration(config)
    attention.install(model)
    return model


def choose_engine(asked: str, runtime: Runtime) -> tuple[str, str]:
    """The engine and the reason for it."""
    installed = importlib.util.find_spec("unsloth") is not None
    if asked == "unsloth":
        if not installed or runtime.device != "cuda":
            missing = "unsloth is not installed" if not installed else f"the device is {runtime.device}"
            raise Problem(f"engine 'unsloth' was asked for, but {missing}. It needs an NVIDIA GPU and "
                          "`pip install -r requirements-gpu.txt -c constraints.txt`; engine 'plain' runs everywhere.")
        return "unsloth", "asked for"
    if asked == "plain":
        return "plain", "asked for"
    return "plain", ("it is proven equal to transformers" + (", unsloth is used when asked for" if installed else ""))


def tie(model: CsmForConditionalGeneration, missing: set[str], name: str) -> None:
    """Make backbone and depth decoder share one audio table, or refuse the checkpoint.

    transformers 5.0 to 5.20 save the shared table once and load the other copy at random.
    """
    if odd := sorted(missing - {BACKBONE_TABLE, DEPTH_TABLE}):
        part = "the depth decoder" if all(key.startswith("depth_decoder.") for key in odd) else "weights"
        raise Problem(f"{name} lacks {part}: {len(odd)} tensors, among them {odd[0]}. A model with random parts cannot be "
                      "tuned; download the whole checkpoint again.")
    if {BACKBONE_TABLE, DEPTH_TABLE} <= missing:
        raise Problem(f"{name} has no audio embeddings ({BACKBONE_TABLE}). Download the whole checkpoint again.")
    if not model.config.tie_codebooks_embeddings:
        return
    backbone, depth = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    if BACKBONE_TABLE in missing:
        backbone.weight = depth.weight
    elif DEPTH_TABLE in missing or torch.equal(backbone.weight, depth.weight):
        depth.weight = backbone.weight
    else:
        raise Problem(f"{name} says its two audio tables are one (tie_codebooks_embeddings), but they differ: it was saved "
                      "after a broken load. Use the original checkpoint.")


def untie(model: CsmForConditionalGeneration) -> CsmForConditionalGeneration:
    """The model with both audio tables of its own, so that both are saved: transformers 5.0 to 5.20 do not tie them on
    loading, and draw one anew that is not in the file."""
    table = model.backbone_model.embed_tokens.embed_audio_tokens
    table.weight = torch.nn.Parameter(table.weight.detach().clone())
    return model


def _with_transformers(name: str, revision: str, runtime: Runtime) -> CsmForConditionalGeneration:
    model, report = checkpoint.weights(CsmForConditionalGeneration, name, revision, dtype=runtime.dtype,
                                       attn_implementation=runtime.attention)
    tie(model, {key for key in report["missing_keys"] if not key.startswith("codec_model.")}, name)
    model.to(runtime.device)
    attention.install(model)
    return model


def _with_unsloth(name: str, revision: str, runtime: Runtime) -> CsmForConditionalGeneration:
    from unsloth import FastModel

    with checkpoint.opening(name):
        model, _ = FastModel.from_pretrained(name, revision=revision or None, auto_model=CsmForConditionalGeneration,
                                             dtype=runtime.dtype, load_in_4bit=False, full_finetuning=False)
    # unsloth does not report what was missing; a random backbone table shows as a difference and is refused
    tie(model, set(), name)
    # it leaves some projections in another dtype, which only autocast forgives, and speaking runs without
    return model.to(runtime.dtype)
