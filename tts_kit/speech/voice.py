"""Voices: a loaded base with or without an adapter, from folders or the hub; several adapters can share one base."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from transformers import CsmForConditionalGeneration
from transformers.utils import CONFIG_NAME

from tts_kit import config as kit_config
from tts_kit import hub, pretrained
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.tokens.prompt import PromptBuilder

SPEECH_FILE = "speech.json"  # stored with merged weights: the speaker, and how the voice is prompted and sampled


@dataclass
class Voice:
    """A base model, with or without an adapter, ready to speak."""
    base: load.Base
    model: PeftModel | CsmForConditionalGeneration  # the base's network, wrapped by PEFT if there is an adapter
    speaker: str = "0"
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str = lora.DEFAULT_ADAPTER  # which of the model's adapters is this voice's
    engine: InferenceEngine | None = None  # made for this voice, unless it is that of a voice on the same base

    def __post_init__(self):
        self.engine = self.engine or InferenceEngine(lora.unwrap(self.model), self.base.spec)

    @property
    def is_finetuned(self) -> bool:
        return isinstance(self.model, PeftModel)

    @contextlib.contextmanager
    def acquire_engine(self, finetuned: bool = True) -> Iterator[InferenceEngine]:
        """Provide the engine for this voice alone, loaded with its adapter, or with the base if `finetuned` is false."""
        with self.engine.exclusive():
            self.engine.load_adapter(self.adapter if finetuned and self.is_finetuned else None)
            yield self.engine

    def set_strength(self, strength: float) -> None:
        """Scale the adapter: 0 is the base, 1 the adapter as trained."""
        if not self.is_finetuned:
            raise KitError(f"strength is {strength:g}, but {self.base.name} is loaded without an adapter. Load one.")
        lora.set_strength(self.model, strength, self.adapter)
        self.engine.invalidate()

    def set_prefix_space(self, prefix_space: bool) -> None:
        """Set whether a space follows the speaker in prompts; other voices on the same base stay as they are."""
        builder = self.base.prompt_builder
        if builder.prefix_space != prefix_space:
            self.base = replace(self.base, prompt_builder=PromptBuilder(builder.tokenizer, builder.spec, prefix_space))

    def load_weights(self, path: Path) -> None:
        """Replace the adapter's weights by those of a file, such as those of a training's checkpoint."""
        lora.load_weights(self.model, path, self.adapter)
        self.engine.invalidate()


@dataclass(frozen=True)
class Reference:
    """A clip of the voice to clone, and its exact transcript."""
    path: Path
    text: str


References = Reference | tuple[Reference, ...] | None


def load_voice(device_config: DeviceConfig, source: str | Path | None = None, base: str = "", revision: str = "") -> Voice:
    """Load the voice of an adapter, of merged weights or of a base, each from a folder or the hub.

    Without a source it is the voice of `base`. With an adapter, `base` overrides the base that the adapter names."""
    folder = find_adapter(source) if source else None
    if folder is None:
        if source and base not in ("", str(source)):
            raise KitError(f"{source} is a complete model, not an adapter for {base}. Leave --base out.")
        loaded = load.load_base(str(source or base), device_config, revision)
        return _voice_of_base(loaded, revision)
    metadata = lora.read_metadata(folder)
    if base in ("", metadata["base"]):
        base, revision = metadata["base"], revision or metadata["revision"]
    try:
        loaded = load.load_base(base, device_config, revision)
    except KitError as error:
        raise KitError(f"{source} needs the base it was trained for, {base}. {error} If the base is somewhere else now, "
                       "give --base FOLDER.") from error
    return _voice_of_adapter(loaded, lora.load(loaded, folder), folder)


def load_voices(device_config: DeviceConfig, sources: Mapping[str, str | Path], base: str = "",
                revision: str = "") -> dict[str, Voice]:
    """Load voices by name; those with the same base share its network and an engine, so that only one speaks at a time."""
    voices: dict[str, Voice] = {}
    for name, source in sources.items():
        # those whose model carries an adapter come first, as a base is wrapped by PEFT only once
        loaded = sorted(voices.values(), key=lambda voice: not voice.is_finetuned)
        folder = find_adapter(source)
        if folder is None:
            shared = next((voice for voice in loaded if voice.base.name == str(source)), None)
            new = shared and _voice_of_base(shared.base, shared.base.revision, shared.engine)
        else:
            fingerprint = lora.read_metadata(folder)["base_fingerprint"]
            shared = next((voice for voice in loaded if voice.base.fingerprint == fingerprint), None)
            new = shared and add_adapter(shared, folder)
        voices[name] = new or load_voice(device_config, source, base, revision)
    return voices


def add_adapter(voice: Voice, folder: Path) -> Voice:
    """Load one more adapter on the base of a voice, which itself stays as it was."""
    adapter = f"voice{len(voice.model.peft_config) + 1}" if voice.is_finetuned else lora.DEFAULT_ADAPTER
    model = lora.load(voice.base, folder, voice.model if voice.is_finetuned else None, adapter)
    voice.engine.invalidate()
    return _voice_of_adapter(voice.base, model, folder, adapter, voice.engine)


def find_adapter(source: str | Path) -> Path | None:
    """Return the folder of an adapter, fetched if it is on the hub; None where the source is a complete model."""
    folder = Path(source)
    if not folder.exists() and isinstance(source, str) and hub.is_repo_id(source):
        with pretrained.explain_load_errors(source):
            # of a complete model only the small files
            folder = Path(snapshot_download(source, allow_patterns=(lora.WEIGHTS_FILE, "*.json")))
            if (folder / lora.CONFIG_FILE).is_file() and not (folder / lora.WEIGHTS_FILE).is_file():
                pretrained.check_no_pickles(source, HfApi().list_repo_files(source))
    # an adapter has a config.json too: the training's
    is_adapter = any((folder / name).is_file() for name in (lora.CONFIG_FILE, lora.METADATA_FILE, lora.WEIGHTS_FILE))
    if is_adapter or not folder.is_dir():
        return folder
    return None if (folder / CONFIG_NAME).is_file() or pretrained.original_weights(str(source)) else folder


def _voice_of_adapter(base: load.Base, model: PeftModel, folder: Path, adapter: str = lora.DEFAULT_ADAPTER,
                      engine: InferenceEngine | None = None) -> Voice:
    """Return the voice of an adapter: sampled as the base recommends and the training's config sets, prompted as trained."""
    config = kit_config.read_config(folder / kit_config.CONFIG_FILE)
    sampling = Sampling.from_generation_config(base.generation_config).override(config)
    voice = Voice(base, model, lora.read_metadata(folder)["speaker"], sampling, adapter, engine)
    voice.set_prefix_space(config.prefix_space)
    return voice


def _voice_of_base(base: load.Base, revision: str, engine: InferenceEngine | None = None) -> Voice:
    """Return the voice of a complete model; merged weights have a file that says as whom they speak, and how."""
    saved = pretrained.optional_json(base.name, SPEECH_FILE, revision)
    sampling = replace(Sampling.from_generation_config(base.generation_config), **{
        name: saved[name] for name in ("temperature", "depth_temperature", "top_k") if name in saved})
    voice = Voice(base, base.model, str(saved.get("speaker", "0")), sampling, engine=engine)
    voice.set_prefix_space(saved.get("prefix_space", False))
    return voice
