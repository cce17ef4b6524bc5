"""Merged weights: base model plus adapter as one checkpoint, in the layout of transformers or in CSM's original one."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CsmForConditionalGeneration
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from tts_kit import device, layouts, pretrained
from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_json, write_json
from tts_kit.model import load, lora
from tts_kit.speech.voice import SPEECH_FILE, default_sampling, recommended_settings
from tts_kit.tokens.prompt import prompt_options

PROCESSOR_FILES = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
                   "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files of a processor; which of them exist depends on the transformers version that saved the base model."""
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(adapter: Path, folder: Path, base: str, revision: str = "", strength: float = 1.0, dtype: str = "auto",
          layout: str = "transformers") -> None:
    """Write merged weights to a folder. In 16 bits they take half the space, and the sums are rounded."""
    metadata = lora.read_metadata(adapter)
    revision = revision or (metadata["revision"] if base == metadata["base"] else "")
    loaded = load.load_base(base, device.choose("cpu", "float32"), revision)
    finetuned = lora.load(loaded, adapter)
    lora.set_strength(finetuned, strength)
    config = read_config(adapter / CONFIG_FILE)
    recommended = recommended_settings(metadata)
    sampling = replace(default_sampling(loaded, config), **{name: recommended[name] for name in recommended
                                                            if name != "strength"})
    model = finetuned.merge_and_unload()
    for part in (model.backbone_model, model.depth_decoder, model.lm_head, model.embed_text_tokens):
        part.to(DTYPES[dtype])
    if layout == "original":
        write_original(model, folder)
    else:
        model.codec_model = loaded.codec.model  # in float32, because 16 bits would change the codes
        model.set_attn_implementation("sdpa")  # others do not know the kit's own attention
        with pretrained.quiet():
            load.untie(model).save_pretrained(folder)
        _check_embeddings_saved(folder)
    write_json(folder / GENERATION_CONFIG_NAME, _generation_config(model, sampling))
    source = pretrained.tokenizer_source(base, revision)
    for path in filter(None, (pretrained.file(source[0], name, source[1]) for name in PROCESSOR_FILES)):
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    write_json(folder / SPEECH_FILE, {"speaker": metadata["speaker"], "strength": strength,
                                      **prompt_options(config), **asdict(sampling)})


def write_original(model: CsmForConditionalGeneration, folder: Path) -> None:
    """Write the weights, without the codec, and the config as Sesame's repository has them."""
    weights = {name: weight.detach() for name, weight in model.named_parameters(remove_duplicate=False)}
    if not torch.equal(weights[load.BACKBONE_TABLE], weights.pop(load.DEPTH_TABLE)):
        raise KitError("backbone and depth decoder have an audio embedding each, and the original layout has one for both. "
                       "Export with --layout transformers.")
    folder.mkdir(parents=True, exist_ok=True)
    save_file(layouts.convert(weights, model.config, to_original=True), folder / SAFE_WEIGHTS_NAME)
    model.config.save_pretrained(folder)
    write_json(folder / CONFIG_NAME, read_json(folder / CONFIG_NAME, "") | layouts.flavor_fields(model.config))


def _generation_config(model: CsmForConditionalGeneration, sampling: Sampling) -> dict:
    """The sampling settings as transformers reads them.

    Without transformers' own `_from_model_config`, with which it ignores the settings of the depth decoder."""
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "use_cache")
    settings = {name: value for name in names if (value := getattr(model.generation_config, name, None)) is not None}
    for prefix, temperature in (("", sampling.temperature), ("depth_decoder_", sampling.depth_temperature)):
        settings[f"{prefix}do_sample"] = bool(temperature)
        if temperature:
            settings |= {f"{prefix}temperature": temperature, f"{prefix}top_k": sampling.top_k}
    return settings


def _check_embeddings_saved(folder: Path) -> None:
    """Both audio embedding tables must be saved, though equal: transformers 5.0 to 5.20 initialize a missing one."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names |= set(file.keys())
    if missing := {load.BACKBONE_TABLE, load.DEPTH_TABLE} - names:
        raise KitError(f"this version of transformers does not save {missing.pop()}, so that it would be loaded at "
                       "random. Export with the versions in constraints.txt.")
