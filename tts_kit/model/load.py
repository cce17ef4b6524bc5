"""Loading a base model: embedding tie repaired, codec in float32, its layers compiled where that pays."""

import dataclasses
import hashlib
import importlib.util
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils._triton import has_triton
from transformers import CsmConfig, CsmForConditionalGeneration
from transformers.utils import GENERATION_CONFIG_NAME

from tts_kit import pretrained
from tts_kit.config import Config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.model import attention, embed, loss
from tts_kit.tokens import codec
from tts_kit.tokens.prompt import PromptBuilder, Turn

BACKBONE_TABLE = "backbone_model.embed_tokens.embed_audio_tokens.weight"
DEPTH_TABLE = "depth_decoder.model.embed_tokens.weight"
MIN_STEPS_TO_COMPILE = 1600
"""Micro-batches from which compiling pays. An estimate, not measured: compiling eight variants of a layer takes about four
minutes on two cores, and a compiled micro-batch of CSM-1B is about 0.15 s faster on an L4, 0.03 s on an A100."""


@dataclass
class Base:
    """A loaded base model with everything that belongs to it."""
    model: CsmForConditionalGeneration
    codec: codec.Codec
    prompt_builder: PromptBuilder
    spec: pretrained.ModelSpec
    device_config: DeviceConfig
    name: str
    revision: str
    generation_config: dict  # as the checkpoint has it, for `Sampling.from_generation_config`
    fingerprint: str  # identifies the weights that an adapter is trained for; the same for every mirror of them


def load_base(name: str, device_config: DeviceConfig, revision: str = "", backend: str = "peft",
              codec_device: str = "", **prompt_options: object) -> Base:
    """Load a CSM, frozen, with its codec in float32 on the same device or on `codec_device`; options are PromptBuilder's."""
    config = pretrained.config(name, revision)
    model = (_load_with_unsloth if backend == "unsloth" else _load_with_transformers)(name, revision, device_config)
    spec = pretrained.ModelSpec.of(config)
    # the codec is loaded on its own, so that no training mode, cast or adapter of the model reaches it
    model.codec_model = None
    model.requires_grad_(False).eval()
    if device_config.dtype == torch.float16:
        keep_residual_in_float32(model)
    base = Base(model, codec.load(name, revision, codec_device or device_config.device),
                PromptBuilder(pretrained.tokenizer(name, revision), spec, **prompt_options), spec, device_config, name,
                pretrained.commit_hash(name, revision) or revision,
                pretrained.optional_json(name, GENERATION_CONFIG_NAME, revision), fingerprint(model))
    if device_config.dtype == torch.float16 and not has_finite_logits(base):
        print(f"{name} overflows in float16 on a test sentence; it is loaded in float32, which takes twice the memory.")
        return load_base(name, dataclasses.replace(device_config, dtype=torch.float32), revision, backend, codec_device,
                         **prompt_options)
    return base


def keep_residual_in_float32(model: CsmForConditionalGeneration) -> None:
    """Take all but projections and heads to float32, and with it the residual stream: numbers in float16 end at 65504."""
    for name, weight in model.named_parameters():
        if not name.endswith(("_proj.weight", "head.weight")):
            weight.data = weight.data.float()


@torch.no_grad()
def has_finite_logits(base: Base) -> bool:
    """Whether all logits of a sentence with two seconds of random frames are finite numbers."""
    model, spec, device = base.model, base.spec, base.model.device
    codes = torch.randint(1, spec.codebook_size, (25, spec.num_codebooks), generator=torch.Generator().manual_seed(0))
    prompt = base.prompt_builder.build("test sentence", [Turn("Where did Laura put the keys?", "0", codes)])
    batch = {name: getattr(prompt, name)[None].to(device) for name in ("input_ids", "codes", "audio_mask")}
    with torch.autocast(device.type, base.device_config.dtype):
        states = model.backbone_model(inputs_embeds=embed.embed_inputs(model, batch), use_cache=False).last_hidden_state[0]
        depth_states = loss.depth_hidden(model, states[-len(codes):], codes.to(device))
        logits = model.lm_head(states), torch.bmm(depth_states, model.depth_decoder.codebooks_head.weight)
    return all(bool(part.isfinite().all()) for part in logits)


def fingerprint(model: CsmForConditionalGeneration) -> str:
    """Return a digest of the signs of head and first layers, which are the same in every precision."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        if name == "lm_head.weight" or (".layers.0." in name and weight.dim() == 2):
            digest.update(name.encode())
            digest.update(np.packbits(torch.signbit(weight.detach()).cpu().numpy()).tobytes())
    return digest.hexdigest()[:16]


def without_weights(name: str, revision: str = "", config: CsmConfig | None = None) -> CsmForConditionalGeneration:
    """Return the network without weights, for counting parameters and operations."""
    config = config or pretrained.config(name, revision)
    with torch.device("meta"):
        model = CsmForConditionalGeneration(config)
    attention.install(model)
    return model


def choose_backend(requested: str, device_config: DeviceConfig) -> tuple[str, str]:
    """Return the training backend, and the reason."""
    if requested != "unsloth":
        return "peft", "as requested" if requested == "peft" else "its results equal transformers'; unsloth on request only"
    if device_config.device != "cuda" or importlib.util.find_spec("unsloth") is None:
        raise KitError(f"backend 'unsloth' needs an NVIDIA GPU (the device is {device_config.device}) and `pip install "
                       "\"tts-kit[unsloth]\"`; backend 'peft' runs everywhere.")
    return "unsloth", "as requested"


def tie(model: CsmForConditionalGeneration, missing: set[str], name: str) -> None:
    """Make backbone and depth decoder share one audio embedding table, or refuse the checkpoint.

    transformers 5.0 to 5.20 save the shared table once, and on loading initialize the other one at random; 5.21 and later
    tie it themselves."""
    tables = {BACKBONE_TABLE, DEPTH_TABLE}
    if lost := sorted(missing if tables <= missing else missing - tables):
        raise KitError(f"{name} lacks {len(lost)} weights, among them {lost[0]}. A model with random parts cannot be "
                       "fine-tuned; download the complete checkpoint again.")
    if not model.config.tie_codebooks_embeddings:
        return
    backbone, depth = model.backbone_model.embed_tokens.embed_audio_tokens, model.depth_decoder.model.embed_tokens
    if backbone.weight is depth.weight:
        return
    if BACKBONE_TABLE in missing:
        backbone.weight = depth.weight
    elif DEPTH_TABLE in missing or torch.equal(backbone.weight, depth.weight):
        depth.weight = backbone.weight
    else:
        raise KitError(f"{name} says that its two audio embedding tables are one (tie_codebooks_embeddings), but they "
                       "differ: it was saved after a broken load. Use the original checkpoint.")


def untie(model: CsmForConditionalGeneration) -> CsmForConditionalGeneration:
    """Give backbone and depth decoder a table each, so that both are saved and no version has to tie them on loading."""
    table = model.backbone_model.embed_tokens.embed_audio_tokens
    table.weight = torch.nn.Parameter(table.weight.detach().clone())
    return model


def _load_with_transformers(name: str, revision: str, device_config: DeviceConfig) -> CsmForConditionalGeneration:
    model, report = pretrained.weights(CsmForConditionalGeneration, name, revision, dtype=device_config.dtype,
                                       attn_implementation="sdpa")
    tie(model, {key for key in report["missing_keys"] if not key.startswith("codec_model.")}, name)
    model.to(device_config.device)
    attention.install(model)
    return model


def _load_with_unsloth(name: str, revision: str, device_config: DeviceConfig) -> CsmForConditionalGeneration:
    from unsloth import FastModel

    if pretrained.original_weights(name, revision):
        raise KitError(f"backend 'unsloth' does not read the original layout of {name}. Give --backend peft.")
    with pretrained.explain_load_errors(name):
        model, _ = FastModel.from_pretrained(name, revision=revision or None, auto_model=CsmForConditionalGeneration,
                                             dtype=device_config.dtype, load_in_4bit=False, full_finetuning=False)
    # unsloth does not report missing tensors; a random backbone table differs from the other one and is refused
    tie(model, set(), name)
    # it leaves some projections in another dtype, which works under autocast only; buffers stay as they are, because RoPE's
    # frequencies are wrong in 16 bits
    for weight in model.parameters():
        weight.data = weight.data.to(device_config.dtype)
    attention.install(model)  # packed clips without a mask of the row's length squared
    return model


def should_compile(config: Config, device_config: DeviceConfig) -> tuple[bool, str]:
    """Return whether to compile the layers, and the reason."""
    if config.compile == "no":
        return False, "as requested"
    if device_config.device == "cuda" and not has_triton():
        reason = "torch finds no Triton, which it needs to compile for a GPU"
        if config.compile == "yes":
            raise KitError(f"compile is 'yes', but {reason}. Install Triton, or give --compile no.")
        return False, reason
    if config.compile == "yes":
        return True, "as requested; the first steps take some minutes"
    if device_config.device != "cuda":
        return False, f"it is hardly faster on {device_config.device}"
    micro_batches = config.steps * config.gradient_accumulation_steps
    return (micro_batches >= MIN_STEPS_TO_COMPILE,
            f"it pays from {MIN_STEPS_TO_COMPILE} micro-batches on; these are {micro_batches}")


def compile_layers(model: CsmForConditionalGeneration) -> None:
    """Compile each layer on its own, at its first call, for batches of any size."""
    # of both parts: the first layer and the others, one clip and several, training and evaluation; more would stay eager
    torch._dynamo.config.recompile_limit = max(16, torch._dynamo.config.recompile_limit)
    for layer in (*model.backbone_model.layers, *model.depth_decoder.model.layers):
        layer.compile(dynamic=True)
