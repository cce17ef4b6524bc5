"""Merged weights: the base with the voice added in, as a checkpoint that plain transformers loads and speaks with."""

import shutil
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors import safe_open
from transformers import CsmForConditionalGeneration
from transformers.utils import GENERATION_CONFIG_NAME

from tts_kit import device, pretrained
from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_json, write_json
from tts_kit.model import load, lora
from tts_kit.speech.voice import SPEECH_FILE

TOKENIZER, PROCESSOR, LISTENER = "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"
BESIDE = (TOKENIZER, PROCESSOR, LISTENER, "tokenizer.json", "special_tokens_map.json", "chat_template.jinja",
          "chat_template.json")
"""What a processor is made of; which of them there are depends on the version that saved the base."""
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def write(adapter: Path, folder: Path, base: str = "", revision: str = "", strength: float = 1.0,
          dtype: str = "auto") -> None:
    """Fill a folder. In 16 bits it takes half the space, and sums of base and adapter are rounded."""
    belongs = lora.read_metadata(adapter)
    base, revision = base or belongs["base"], revision or belongs["revision"] * (base in ("", belongs["base"]))
    loaded = load.load_base(base, device.choose("cpu", "float32"), revision)
    finetuned = lora.load(loaded, adapter)
    lora.set_strength(finetuned, strength)
    sampling = Sampling.from_generation_config(loaded.generation_config).override(read_config(adapter / CONFIG_FILE))
    model = lora.merge(finetuned)
    for part in (model.backbone_model, model.depth_decoder, model.lm_head, model.embed_text_tokens):
        part.to(DTYPES[dtype])
    model.codec_model = loaded.codec.model  # in float32, as 16 bits would change the codes
    model.set_attn_implementation("sdpa")  # the kit's own has a name that others do not know
    with pretrained.quiet():
        load.untie(model).save_pretrained(folder)
    check_embeddings_saved(folder)
    write_json(folder / GENERATION_CONFIG_NAME, generation(model, sampling))
    for path in filter(None, (pretrained.file(base, name, revision) for name in BESIDE)):
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that nobody else may read
    write_v4_processor(folder)
    write_json(folder / SPEECH_FILE, {"speaker": belongs["speaker"], "strength": strength, **asdict(sampling)})


def generation(model: CsmForConditionalGeneration, sampling: Sampling) -> dict:
    """How the voice is sampled, as transformers reads it.

    It overlooks what is said of the depth decoder where the file says that it was derived from a model's config, as
    transformers itself writes."""
    kept = ("bos_token_id", "eos_token_id", "pad_token_id", "max_new_tokens", "use_cache")
    told = {name: value for name in kept if (value := getattr(model.generation_config, name, None)) is not None}
    for prefix, temperature in (("", sampling.temperature), ("depth_decoder_", sampling.depth_temperature)):
        drawn = {"temperature": temperature, "top_k": sampling.top_k} if temperature else {}
        told |= {f"{prefix}{name}": value for name, value in ({"do_sample": bool(temperature)} | drawn).items()}
    return told


def write_v4_processor(folder: Path) -> None:
    """What transformers 5 wrote of a processor, as 4 reads it too: that knows other names for the same tokenizers, and looks
    for what hears sound in a file of its own."""
    remedy = "Download the base again."
    told = read_json(folder / TOKENIZER, remedy) if (folder / TOKENIZER).is_file() else {}
    if told.get("tokenizer_class") == "TokenizersBackend":
        write_json(folder / TOKENIZER, told | {"tokenizer_class": "PreTrainedTokenizerFast",
                                               "model_input_names": ["input_ids", "attention_mask"]})
    told = read_json(folder / PROCESSOR, remedy) if (folder / PROCESSOR).is_file() else {}
    if listener := told.pop("feature_extractor", None):
        write_json(folder / PROCESSOR, told)
        write_json(folder / LISTENER, listener | {"processor_class": "CsmProcessor"})


def check_embeddings_saved(folder: Path) -> None:
    """Both audio tables have to be saved, though they are equal: transformers 5.0 to 5.20 draw the one that is not anew."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names |= set(file.keys())
    if lost := {load.BACKBONE_TABLE, load.DEPTH_TABLE} - names:
        raise KitError(f"this version of transformers saves {lost.pop()} no more, so that others would load it at random. "
                      "Export with the versions in constraints.txt.")
