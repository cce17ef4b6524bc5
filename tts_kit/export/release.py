"""Export a trained voice as a folder for others, its adapter or merged weights, with a model card; push it to the hub."""

import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import CsmForConditionalGeneration
from transformers.utils import CONFIG_NAME, GENERATION_CONFIG_NAME, SAFE_WEIGHTS_NAME

from tts_kit import device, hub, layouts, pretrained
from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.data import consent
from tts_kit.errors import KitError
from tts_kit.export import card
from tts_kit.generation.sampling import Sampling
from tts_kit.io import atomic_folder, check_replaceable, read_json, write_json, write_text
from tts_kit.model import license, load, lora
from tts_kit.run import Run
from tts_kit.speech.voice import REFERENCE_FILE, SPEECH_FILE, default_sampling, recommended_settings
from tts_kit.tokens.prompt import prompt_options

DATA_FILE = "data.json"  # how much data the adapter was trained on, and its source
LAYOUTS = ("transformers", "original")
PROCESSOR_FILES = ("tokenizer_config.json", "processor_config.json", "preprocessor_config.json", "tokenizer.json",
                   "special_tokens_map.json", "chat_template.jinja", "chat_template.json")
"""Files of a processor; which of them exist depends on the transformers version that saved the base model."""
DTYPES = {"auto": torch.float32, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def export(run: Run, out: str | Path = "", merge: bool = False, base: str = "", revision: str = "",
           strength: float | None = None, dtype: str = "auto", location: str = "", watermarked: bool = True,
           language: str = "", layout: str = LAYOUTS[0]) -> Path:
    """Write a run's voice with its card to a folder, by default in the run's own; replaces an older export of it.

    `base` is the base model as others find it, or its folder here; `location` is where others will find the export. Merged
    weights have the adapter at `strength`: by default the recommended one, or 1."""
    kind = "adapter" if not merge else "merged" if layout == LAYOUTS[0] else layout
    out = Path(out) if out else run.folder / "release" / kind
    if layout != LAYOUTS[0] and not merge:
        raise KitError("an adapter has the layout of transformers; only merged weights can have the original one. Give "
                       "--merged too.")
    if strength is not None and not merge:
        raise KitError(f"strength {strength:g} can be merged in; the strength of an adapter is set when it speaks (speak "
                       "--strength). Give --merged too.")
    check_replaceable(out, hub.RELEASE_FILE)
    older = read_json(out / hub.RELEASE_FILE, "Choose another --out.") if (out / hub.RELEASE_FILE).is_file() else {}
    if older and (older.get("voice"), older.get("kind")) != (run.name, kind):
        raise KitError(f"{out} holds the voice {older.get('voice')} as {older.get('kind')}, which would be replaced by "
                       f"{run.name} as {kind}. Choose another --out, or remove it.")
    metadata = lora.read_metadata(run.adapter)
    base = base or metadata["base"]
    strength = recommended_settings(metadata).get("strength", 1.0) if strength is None else strength
    summary = card.summarize(run, base, language, strength)
    license_name = license.license_of(summary.base, base)
    with atomic_folder(out) as staging:
        if merge:
            write_merged(run.adapter, staging, base, revision, strength, dtype, layout)
        else:
            copy_adapter(run.adapter, staging, summary, revision)
        if summary.data:
            write_json(staging / DATA_FILE, summary.data)
        if summary.consent:
            consent.write(summary.consent, staging)
        write_json(staging / hub.RELEASE_FILE, {
            "kind": kind, "voice": run.name, "base": summary.base, "strength": strength, "watermarked_samples": watermarked,
            "versions": device.versions()})
        # folders of this machine are not named
        location = location or (out.name if out.is_absolute() else str(out))
        card.write(summary, staging, location, license_name, kind, watermarked)
    return out


def copy_adapter(adapter: Path, folder: Path, summary: card.RunSummary, revision: str = "") -> None:
    """Copy the adapter's files; they name the base model as others find it, and no folder of this machine."""
    revision_field = {"revision": revision} if revision else {}
    shutil.copyfile(adapter / lora.WEIGHTS_FILE, folder / lora.WEIGHTS_FILE)
    copy_reference(adapter, folder)
    write_json(folder / lora.METADATA_FILE, summary.metadata | {"base": summary.base} | revision_field)
    peft_config = read_json(adapter / lora.CONFIG_FILE, lora.RESTORE)
    write_json(folder / lora.CONFIG_FILE, peft_config | {"base_model_name_or_path": summary.base} | revision_field)
    write_text(folder / CONFIG_FILE, summary.config.replace(base=summary.base).to_json())


def copy_reference(adapter: Path, folder: Path) -> dict[str, str]:
    """Copy the reference clip that is recommended for an adapter, if there is one; returns its transcript."""
    recommended = lora.read_metadata(adapter).get("recommended") or {}
    if not recommended.get("reference"):
        return {}
    shutil.copyfile(adapter / REFERENCE_FILE, folder / REFERENCE_FILE)
    return {"reference": recommended["reference"]}


def write_merged(adapter: Path, folder: Path, base: str, revision: str = "", strength: float = 1.0, dtype: str = "auto",
                 layout: str = LAYOUTS[0]) -> None:
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
    if layout != LAYOUTS[0]:
        write_original(model, folder)
    else:
        model.codec_model = loaded.codec.model  # in float32, because 16 bits would change the codes
        model.set_attn_implementation("sdpa")  # others do not know the kit's own attention
        with pretrained.quiet():
            load.untie(model).save_pretrained(folder)
        check_embeddings_saved(folder)
    write_json(folder / GENERATION_CONFIG_NAME, _generation_config(model, sampling))
    source = pretrained.tokenizer_source(base, revision)
    for path in filter(None, (pretrained.file(source[0], name, source[1]) for name in PROCESSOR_FILES)):
        shutil.copyfile(path, folder / path.name)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes files that only their owner may read
    write_json(folder / SPEECH_FILE, {"speaker": metadata["speaker"], "strength": strength, **prompt_options(config),
                                      **asdict(sampling), **copy_reference(adapter, folder)})


def check_embeddings_saved(folder: Path) -> None:
    """Both audio embedding tables must be saved, though equal: transformers 5.0 to 5.20 initialize a missing one."""
    names = set()
    for path in folder.glob("*.safetensors"):
        with safe_open(path, "np") as file:
            names |= set(file.keys())
    if missing := {load.BACKBONE_TABLE, load.DEPTH_TABLE} - names:
        raise KitError(f"this version of transformers does not save {missing.pop()}, so that it would be loaded at "
                       "random. Export with the versions in constraints.txt.")


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


def check_push(run: Run, name: str, public: bool) -> None:
    """Refuse, before anything is written, a malformed repository name and a public voice without consent."""
    hub.check_repo_id(name)
    if public and (reason := card.consent_problem(run, lora.read_metadata(run.adapter))):
        raise KitError(f"A voice is made public only with consent. {reason}")


def push(run: Run, folder: Path, name: str, public: bool = False) -> str:
    """Push an exported folder to the hub as model `owner/name`, public only with consent; returns its URL."""
    check_push(run, name, public)
    if public and consent.read(folder) != consent.for_run(run):
        raise KitError(f"A voice is made public only with consent, and {folder} was exported without this run's. "
                       "Export again.")
    return hub.push(folder, name, "model", "One voice", public)
