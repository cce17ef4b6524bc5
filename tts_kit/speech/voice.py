"""Voices: a loaded base with or without an adapter, from folders or the hub; several adapters can share one base."""

import contextlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from peft import PeftModel
from transformers import CsmForConditionalGeneration
from transformers.utils import CONFIG_NAME

from tts_kit import audio, hub, io, pretrained
from tts_kit import config as kit_config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.run import NAME, bundled_base
from tts_kit.text import normalize
from tts_kit.tokens.prompt import PROMPT_OPTIONS, PromptBuilder, Turn, prompt_options

BASE = "base"
"""In place of the path of a voice: the model of the other voices, without an adapter."""
CLIP = re.compile(r"(.+?\.(?:wav|flac|mp3|ogg|opus))(?::(.*))?", re.IGNORECASE | re.DOTALL)
SPEECH_FILE = "speech.json"  # stored with merged weights: the speaker, and how the voice is prompted and sampled
REFERENCE_FILE = "reference.flac"  # stored with an adapter or merged weights: the clip that is recommended as a reference
MAX_REFERENCE_SECONDS = 60
RECOMMENDED = {"strength": 10.0, "guidance": kit_config.MAX_GUIDANCE, "temperature": 10.0}
"""Settings that an adapter's metadata may recommend, with their largest value; the smallest is 0."""


@dataclass
class Voice:
    """A base model, with or without an adapter, ready to speak."""
    base: load.Base
    model: PeftModel | CsmForConditionalGeneration  # the base's network, wrapped by PEFT if there is an adapter
    speaker: str = "0"
    sampling: Sampling = field(default_factory=Sampling)
    adapter: str = lora.DEFAULT_ADAPTER  # which of the model's adapters is this voice's
    engine: InferenceEngine | None = None  # made for this voice, unless it is that of a voice on the same base
    context: list[Turn] = field(default_factory=list)  # reference clips that precede every prompt, unless others are given
    is_trained: bool = False  # whether it was trained as that speaker
    normalize_loudness: bool = True  # of texts and dialogues, spoken or streamed; arms of a comparison stay as they are
    strength: float = 1.0  # scale of its adapter; changed by `set_strength`

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
        self.strength = strength
        self.engine.invalidate()

    def apply(self, settings: Mapping[str, float]) -> None:
        """Set the strength and sampling settings that are given."""
        if settings.get("strength", self.strength) != self.strength:
            self.set_strength(settings["strength"])
        self.sampling = replace(self.sampling, **{name: settings[name] for name in settings if name != "strength"})

    def set_prompt_options(self, **options: object) -> None:
        """Set arguments of this voice's PromptBuilder; other voices on the same base stay as they are."""
        builder = self.base.prompt_builder
        if builder.options != (options := builder.options | options):
            self.base = replace(self.base, prompt_builder=PromptBuilder(builder.tokenizer, builder.spec, **options))

    def override(self, **changes: object) -> None:
        """Set the fields of Config that are about prompts and sampling; a lexicon is added to the voice's own."""
        own = self.base.prompt_builder.options
        options = {name: changes[name] for name in own if name in changes}
        if "lexicon" in options:
            options["lexicon"] = tuple((dict(own["lexicon"]) | dict(options["lexicon"])).items())
        self.set_prompt_options(**options)
        self.sampling = self.sampling.override(kit_config.Config(**changes))

    def load_weights(self, path: Path) -> None:
        """Replace the adapter's weights by those of a file, such as those of a training's checkpoint."""
        lora.load_weights(self.model, path, self.adapter)
        self.engine.invalidate()


@dataclass(frozen=True)
class Reference:
    """A clip of the voice to clone, as a path or the bytes of a file, and its exact transcript."""
    path: str | Path | bytes
    text: str


References = Reference | tuple[Reference, ...] | None


def load_voice(device_config: DeviceConfig, source: str | Path | None = None, base: str = "", revision: str = "") -> Voice:
    """Load the voice of an adapter, of merged weights or of a base, each from a folder or the hub.

    Without a source it is the voice of `base`. With an adapter, `base` overrides the base that the adapter names."""
    folder = find_adapter(source) if source else None
    if folder is None:
        if source and base not in ("", str(source)):
            raise KitError(f"{source} is a complete model, not an adapter for {base}. Leave --base out.")
        return _voice_of_base(load.load_base(str(source or base), device_config, revision))
    metadata = lora.read_metadata(folder)
    if base in ("", metadata["base"]):
        base, revision = bundled_base(metadata["base"]), revision or metadata["revision"]
    try:
        loaded = load.load_base(base, device_config, revision)
    except KitError as error:
        raise KitError(f"{source} needs the base it was trained for, {base}. {error} If the base is somewhere else now, "
                       "give --base FOLDER.") from error
    return _voice_of_adapter(loaded, lora.load(loaded, folder), folder)


def load_voices(device_config: DeviceConfig, sources: Mapping[str, str | Path], base: str = "",
                revision: str = "") -> dict[str, Voice]:
    """Load voices by name; those with the same base share its network and an engine, so that only one speaks at a time.

    A source is an adapter or a run's folder, a complete model, a clip to clone (see `find_reference`) or BASE; the last two
    speak on the base of the first voice, or on `base`."""
    voices: dict[str, Voice] = {}
    references = {name: find_reference(source) for name, source in sources.items()}
    on_first = [name for name, source in sources.items() if references[name] or str(source) == BASE]
    for name, source in sources.items():
        if name in on_first:
            continue
        # those whose model carries an adapter come first, as a base is wrapped by PEFT only once
        loaded = sorted(voices.values(), key=lambda voice: not voice.is_finetuned)
        folder = find_adapter(source)
        if folder is None:
            shared = next((voice for voice in loaded if voice.base.name == str(source)), None)
            new = shared and _voice_of_base(shared.base, shared.engine)
        else:
            fingerprint = lora.read_metadata(folder)["base_fingerprint"]
            shared = next((voice for voice in loaded if voice.base.fingerprint == fingerprint), None)
            new = shared and add_adapter(shared, folder)
        voices[name] = new or load_voice(device_config, source, base, revision)
    for name in on_first:
        first = next(iter(voices.values()), None)
        voice = _voice_of_base(first.base, first.engine) if first else load_voice(
            device_config, base=base or kit_config.Config.base, revision=revision)
        voices[name] = replace(voice, context=encode_references(voice, references[name]))
    return {name: voices[name] for name in sources}


def parse_voices(options: Sequence[str]) -> dict[str, str]:
    """Return --voice NAME=PATH options as paths by name."""
    voices: dict[str, str] = {}
    for option in options:
        name, _, path = option.partition("=")
        if not path or not re.fullmatch(NAME, name) or name in voices:
            raise KitError(f"--voice {option}: wanted NAME=PATH, with a different name for each voice, of letters, digits, "
                           "'.', '_' or '-', as in --voice anna=runs/anna/adapter.")
        voices[name] = path
    return voices


def find_reference(source: str | Path) -> Reference | None:
    """Return the clip that a source names, CLIP:TRANSCRIPT or a clip beside a .txt with its transcript; None for a model."""
    match = CLIP.fullmatch(str(source))
    if not match or Path(source).is_dir():
        return None
    clip, text = Path(match[1]), match[2]
    transcript = clip.with_suffix(".txt")
    if not text and transcript.is_file():
        text = io.read_text(transcript, str(transcript))
    if not text:
        raise KitError(f"the clip {clip} has no transcript. Write its exact words into {transcript}, or behind the clip: "
                       f'"{clip}:These are its words."')
    return Reference(clip, text)


def encode_references(voice: Voice, references: References) -> list[Turn]:
    """Encode reference clips as the turns before a sentence."""
    context = []
    for reference in [references] if isinstance(references, Reference) else references or ():
        if not isinstance(reference.path, bytes) and not Path(reference.path).is_file():
            raise KitError(f"the reference {reference.path} is no file. Give a clip of the voice, 3 to 10 seconds long, and "
                           "its exact words.")
        rate = voice.base.spec.sample_rate
        wave = audio.close_ending(audio.read(reference.path, rate, MAX_REFERENCE_SECONDS), rate)
        context.append(Turn(normalize(reference.text), voice.speaker, voice.base.codec.encode([wave])[0], in_loss=False))
    return context


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
            folder = Path(snapshot_download(source, allow_patterns=(lora.WEIGHTS_FILE, REFERENCE_FILE, "*.json")))
            if (folder / lora.CONFIG_FILE).is_file() and not (folder / lora.WEIGHTS_FILE).is_file():
                pretrained.check_no_pickles(source, HfApi().list_repo_files(source))
    if (folder / "adapter" / lora.CONFIG_FILE).is_file():  # of a run
        return folder / "adapter"
    # an adapter has a config.json too: the training's
    is_adapter = any((folder / name).is_file() for name in (lora.CONFIG_FILE, lora.METADATA_FILE, lora.WEIGHTS_FILE))
    if is_adapter or not folder.is_dir():
        return folder
    return None if (folder / CONFIG_NAME).is_file() or pretrained.original_weights(str(source)) else folder


def _voice_of_adapter(base: load.Base, model: PeftModel, folder: Path, adapter: str = lora.DEFAULT_ADAPTER,
                      engine: InferenceEngine | None = None) -> Voice:
    """Return the voice of an adapter: sampled as the base recommends, as the training's config sets, and as was measured
    to be best; prompted as trained, and with a reference clip if that was measured to be best."""
    config, metadata = kit_config.read_config(folder / kit_config.CONFIG_FILE), lora.read_metadata(folder)
    voice = Voice(base, model, metadata["speaker"], default_sampling(base, config), adapter, engine, is_trained=True)
    voice.set_prompt_options(**prompt_options(config))
    voice.apply(recommended_settings(metadata))
    voice.context = recommended_context(voice, folder / REFERENCE_FILE, metadata.get("recommended", {}))
    return voice


def default_sampling(base: load.Base, config: kit_config.Config) -> Sampling:
    """Return the sampling of an adapter trained with a config, without what is recommended for it."""
    return Sampling.from_generation_config(base.generation_config).override(config)


def recommended_settings(metadata: dict) -> dict[str, float]:
    """Return the settings that an adapter's metadata recommends; checked, as it may come from anywhere."""
    recommended = metadata.get("recommended", {})
    settings = recommended.get("settings") if isinstance(recommended, dict) and recommended else recommended
    if not isinstance(settings, dict) or not all(
            type(value) in (int, float) and 0 <= value <= RECOMMENDED.get(name, -1) for name, value in settings.items()):
        limits = ", ".join(f"{name} from 0 to {limit:g}" for name, limit in RECOMMENDED.items())
        raise KitError(f"{lora.METADATA_FILE} recommends {str(settings)[:80]}; wanted {limits}. Measure again with tts-kit "
                       "compare --recommend, or remove `recommended` from the file.")
    return settings


def recommended_context(voice: Voice, clip: Path | None, saved: Mapping) -> list[Turn]:
    """Return the context of a voice with which it is recommended to use a reference clip: `saved` has its transcript."""
    text = saved.get("reference", "")
    if not isinstance(text, str) or (text and not clip):
        raise KitError(f"the reference clip that is recommended for the voice is {clip}, its transcript {str(text)[:80]!r}; "
                       f"wanted {REFERENCE_FILE} beside the weights, and a text. Export the voice again.")
    return encode_references(voice, Reference(clip, text)) if text else []


def _voice_of_base(base: load.Base, engine: InferenceEngine | None = None) -> Voice:
    """Return the voice of a complete model; merged weights have a file that says as whom they speak, and how."""
    saved = pretrained.optional_json(base.name, SPEECH_FILE, base.revision)
    sampling = replace(Sampling.from_generation_config(base.generation_config), **{
        each.name: saved[each.name] for each in fields(Sampling) if each.name in saved})
    voice = Voice(base, base.model, str(saved.get("speaker", "0")), sampling, engine=engine, is_trained="speaker" in saved)
    voice.set_prompt_options(**prompt_options(kit_config.Config()) | {name: saved[name] for name in PROMPT_OPTIONS
                                                                      if name in saved})
    if saved.get("reference"):
        clip = pretrained.file(base.name, REFERENCE_FILE, base.revision)
        voice.context = recommended_context(voice, clip, saved)
    return voice
