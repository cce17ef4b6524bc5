"""Opening a base checkpoint in any layout, from the hub or a folder: config, tokenizer and safetensors, with errors that say
what to do."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from transformers import AutoConfig, AutoTokenizer, CsmConfig, CsmForConditionalGeneration, PreTrainedTokenizerBase
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, cached_file, logging
from transformers.utils.hub import extract_commit_hash

from tts_kit import hub, layouts
from tts_kit.errors import KitError, reason
from tts_kit.io import read_json

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
LLAMA_3_TOKENIZER = "unsloth/csm-1b"  # for checkpoints without a tokenizer; open to everybody
MIMI, CODEC_FOLDER = "kyutai/mimi", "codec"  # of checkpoints in the original layout, which has no codec


@dataclass(frozen=True)
class ModelSpec:
    """The numbers that a checkpoint fixes."""
    sample_rate: int
    samples_per_frame: int
    num_codebooks: int  # codes in a frame; the backbone predicts the first, the depth decoder the others
    codebook_size: int  # codes that the codec knows; the model's vocabulary is a little larger
    max_positions: int  # positions (text tokens and frames) of the backbone
    audio_token_id: int  # text token id that stands for a frame
    audio_eos_token_id: int  # text token id that stands for the frame that ends an utterance

    @property
    def frame_rate(self) -> float:
        """Frames per second."""
        return self.sample_rate / self.samples_per_frame

    @classmethod
    def of(cls, config: CsmConfig) -> "ModelSpec":
        codec = config.codec_config
        return cls(codec.sampling_rate, round(codec.sampling_rate / codec.frame_rate), config.num_codebooks,
                   codec.codebook_size, config.max_position_embeddings, config.audio_token_id, config.audio_eos_token_id)


def config(base: str, revision: str = "") -> CsmConfig:
    """Return the config of a CSM checkpoint; any other model is refused."""
    if not Path(base).is_dir() and not hub.is_repo_id(base):
        raise KitError(f"{base} is no folder here, and no hub id, which has the form owner/name. Check the spelling.")
    if Path(base).is_dir():
        check_no_pickles(base, [path.name for path in Path(base).iterdir()])
    if "model_type" not in optional_json(base, CONFIG_NAME, revision) and (files := original_weights(base, revision)):
        shapes = {name: shape for path in files for name, shape in weight_shapes(path).items()}
        source, source_revision, folder = codec_source(base, revision)
        codec_config = optional_json(source, str(Path(folder, CONFIG_NAME)), source_revision)
        with quiet():
            return layouts.config_from_shapes(shapes, codec_config, base)
    with explain_load_errors(base):
        model_config = AutoConfig.from_pretrained(base, revision=revision or None)
    if not isinstance(model_config, CsmConfig):
        raise KitError(f"{base} is a {model_config.model_type!r} model; this kit fine-tunes CSM (model_type 'csm', with a "
                       "backbone and a depth decoder). Give sesame/csm-1b, unsloth/csm-1b or a folder of such a model.")
    return model_config


def cached_tokenizer(base: str, revision: str = "") -> PreTrainedTokenizerBase | None:
    """Return a tokenizer from the hub's cache alone."""
    with quiet(), contextlib.suppress(OSError, ValueError):
        return AutoTokenizer.from_pretrained(base, revision=revision or None, local_files_only=True)


def tokenizer(base: str, revision: str = "") -> PreTrainedTokenizerBase:
    base, revision = tokenizer_source(base, revision)
    with explain_load_errors(base):
        return AutoTokenizer.from_pretrained(base, revision=revision or None)


def tokenizer_source(base: str, revision: str = "") -> tuple[str, str]:
    """Return where a checkpoint's tokenizer is, and its revision: Llama 3's has to be fetched for most original ones."""
    if any(file(base, name, revision) for name in TOKENIZER_FILES) or not original_weights(base, revision):
        return base, revision
    if (size := config(base, revision).text_vocab_size) != layouts.LLAMA_3_VOCABULARY:
        raise KitError(f"{base} has no tokenizer, and {size} text tokens, which are not Llama 3's. Put tokenizer.json and "
                       "tokenizer_config.json of the model that it was trained with beside its weights.")
    return LLAMA_3_TOKENIZER, ""


def codec_source(base: str, revision: str = "") -> tuple[str, str, str]:
    """Return where an original checkpoint's codec is, its revision and folder there; Mimi's own if it has none."""
    has_codec = file(base, f"{CODEC_FOLDER}/{CONFIG_NAME}", revision)
    return (base, revision, CODEC_FOLDER) if has_codec else (MIMI, "", "")


def original_weights(base: str, revision: str = "") -> list[Path]:
    """Return the weights files of a checkpoint in the original layout; none if it has transformers'."""
    chosen = optional_json(base, CONFIG_NAME, revision).get("transformers_weights")
    names = (chosen, SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)
    path = next((path for name in names if name and (path := file(base, name, revision))), None)
    if path is None:
        return []
    is_sharded = path.suffix == ".json"
    shards = read_json(path, "Download the checkpoint again.").get("weight_map", {}) if is_sharded else weight_shapes(path)
    if layouts.ORIGINAL_ONLY not in shards:
        return []
    return [file(base, name, revision) for name in sorted({*shards.values()})] if is_sharded else [path]


def weight_shapes(path: Path) -> dict[str, list[int]]:
    """Return names and shapes of the weights in a file, which are not read."""
    try:
        with safe_open(path, "np") as opened:
            return {name: opened.get_slice(name).get_shape() for name in opened.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise KitError(f"{damage_reason(path, error)}. Download it again.") from error


def commit_hash(base: str, revision: str = "") -> str:
    """Return the commit that the hub served; empty for a folder."""
    if Path(base).is_dir():
        return ""
    path = file(base, CONFIG_NAME, revision) or next(iter(original_weights(base, revision)), None)
    return extract_commit_hash(str(path), None) or ""


def optional_json(base: str, name: str, revision: str = "") -> dict:
    """Return the content of a JSON file of the checkpoint, empty where there is none.

    Of generation_config.json transformers itself would drop the depth decoder's settings."""
    path = file(base, name, revision)
    return read_json(path, "Download the checkpoint again.") if path else {}


def file(base: str, name: str, revision: str = "") -> Path | None:
    """Return the path of one of the checkpoint's files, if it has it."""
    with explain_load_errors(base):
        path = cached_file(base, name, revision=revision or None, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


def weights(model_class: type, base: str, revision: str = "", **kwargs) -> tuple:
    """Return a model and its loading report, from safetensors only; the original layout is converted."""
    if Path(base).is_dir():
        check_no_pickles(base, [path.name for path in Path(base).iterdir()])
        for path in sorted(Path(base).glob("*.safetensors")):
            weight_shapes(path)
    source = {"pretrained_model_name_or_path": base, "revision": revision or None, "use_safetensors": True}
    if model_class is CsmForConditionalGeneration and (files := original_weights(base, revision)):
        model_config = config(base, revision)
        loaded = {name: weight for path in files for name, weight in load_file(path).items()}  # mapped into memory, not read
        source = {"pretrained_model_name_or_path": None, "config": model_config,
                  "state_dict": layouts.convert(loaded, model_config)}
    with explain_load_errors(base):
        return model_class.from_pretrained(**source, output_loading_info=True, **kwargs)


def damage_reason(path: Path, error: SafetensorError) -> str:
    """Return what is wrong with a weights file that cannot be opened."""
    with path.open("rb") as file:
        is_pointer = file.read(20).startswith(b"version https://git")
    if is_pointer:
        return f"{path} is a git-lfs pointer, without the weights: fetch them with `git lfs pull`"
    return f"{path} is damaged or incompletely downloaded: {path.stat().st_size:,} bytes ({reason(error)})"


def check_no_pickles(source: str | Path, files: Iterable[str]) -> None:
    """Refuse a model whose weights are there as a pickle only."""
    by_suffix = {Path(file).suffix: file for file in sorted(files)}
    pickles = [by_suffix[suffix] for suffix in PICKLE_SUFFIXES if suffix in by_suffix]
    if pickles and ".safetensors" not in by_suffix:
        raise KitError(f"{source} has its weights as a pickle ({pickles[0]}), which can run any program when it is opened, "
                       "so it is not opened. Wanted: safetensors. Ask its author to save it so, or, if you trust them, "
                       "save its weights yourself as model.safetensors with safetensors.torch.save_file.")


@contextlib.contextmanager
def explain_load_errors(base: str) -> Iterator[None]:
    """Load quietly, and turn the libraries' errors into `KitError`."""
    with quiet():
        try:
            yield
        except GatedRepoError as error:
            raise KitError(f"{base} is gated and this machine has no access. Accept its terms on its hub page and run `hf "
                           "auth login` (on Colab: the HF_TOKEN secret), or use the open mirror unsloth/csm-1b.") from error
        except LocalEntryNotFoundError as error:
            raise KitError(f"{base} is not on this machine, and could not be read from the hub or its cache: the hub does "
                           "not answer. Check the network (https://status.huggingface.co) and HF_HUB_OFFLINE, or give a "
                           "folder that has it.") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise KitError(f"{base} was found neither as a folder nor on the hub. Check the spelling, and log in (hf auth "
                           "login) if it is private.") from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            origin = "the folder" if Path(base).is_dir() else "the hub or its cache"
            raise KitError(f"{base} could not be read from {origin}: {reason(error)}. Wanted: config.json, "
                           "model.safetensors and the tokenizer files of a CSM checkpoint. Offline, give a folder that has "
                           "them.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' and the hub's tables, progress bars and warnings, which CSM's special ids always cause."""
    with contextlib.ExitStack() as stack:
        for library in (logging, hub_logging):
            stack.callback(library.set_verbosity, library.get_verbosity())
            library.set_verbosity_error()
        if logging.is_progress_bar_enabled():
            stack.callback(logging.enable_progress_bar)
            logging.disable_progress_bar()
        yield
