"""Opening a base checkpoint, from the hub or a folder: quietly, from safetensors only, with errors for people."""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

from huggingface_hub.errors import GatedRepoError, HFValidationError, LocalEntryNotFoundError, RepositoryNotFoundError
from huggingface_hub.utils import logging as hub_logging
from safetensors import SafetensorError, safe_open
from transformers import AutoConfig, AutoTokenizer, CsmConfig
from transformers.utils import GENERATION_CONFIG_NAME, cached_file, logging

from tts_kit import hub
from tts_kit.errors import KitError, reason
from tts_kit.io import read_json

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def config(base: str, revision: str = "") -> CsmConfig:
    """The configuration of a CSM checkpoint; anything else is refused."""
    if not Path(base).is_dir() and not hub.is_repo_id(base):
        raise KitError(f"{base} is no folder here, and no hub id, which has the form owner/name. Check the spelling.")
    with explain_load_errors(base):
        found = AutoConfig.from_pretrained(base, revision=revision or None)
    if not isinstance(found, CsmConfig):
        raise KitError(f"{base} is a {found.model_type!r} model; this kit fine-tunes CSM (model_type 'csm', with a backbone "
                      "and a depth decoder). Give sesame/csm-1b, unsloth/csm-1b or a folder of such a model.")
    return found


def tokenizer(base: str, revision: str = ""):
    with explain_load_errors(base):
        return AutoTokenizer.from_pretrained(base, revision=revision or None)


def generation(base: str, revision: str = "") -> dict:
    """What the checkpoint says about sampling, empty where it says nothing; read as it stands, because transformers
    overlooks what it says of the depth decoder where it was derived from a model's config."""
    return optional_json(base, GENERATION_CONFIG_NAME, revision)


def optional_json(base: str, name: str, revision: str = "") -> dict:
    """What a JSON file of the checkpoint says, empty where there is none."""
    path = file(base, name, revision)
    return read_json(path, "Download the checkpoint again.") if path else {}


def file(base: str, name: str, revision: str = "") -> Path | None:
    """One of the checkpoint's files, if it has it."""
    with explain_load_errors(base):
        path = cached_file(base, name, revision=revision or None, _raise_exceptions_for_missing_entries=False)
    return Path(path) if path else None


def weights(kind, base: str, revision: str = "", **options) -> tuple:
    """A model of class `kind` and the report of what was missing; pickled weights are never opened."""
    if Path(base).is_dir():
        check_no_pickles(base, [path.name for path in Path(base).iterdir()])
        _refuse_damaged(Path(base))
    with explain_load_errors(base):
        return kind.from_pretrained(base, revision=revision or None, use_safetensors=True, output_loading_info=True,
                                    **options)


def damage_reason(path: Path, error: SafetensorError) -> str:
    """What is wrong with a file of weights that cannot be opened."""
    with path.open("rb") as file:
        is_pointer = file.read(20).startswith(b"version https://git")
    if is_pointer:
        return f"{path} is a pointer of git-lfs, and no weights: fetch them with `git lfs pull`"
    return f"{path} is damaged, or was downloaded by half: {path.stat().st_size:,} bytes ({reason(error)})"


def check_no_pickles(place: str | Path, files: Iterable[str]) -> None:
    """Weights that are there as a pickle only are named, and never opened."""
    suffixes = {Path(file).suffix: file for file in sorted(files)}
    if ".safetensors" not in suffixes and (pickled := [suffixes[each] for each in PICKLED if each in suffixes]):
        raise KitError(f"{place} has its weights as a pickle ({pickled[0]}), which may run any program when it is opened, so "
                      "it is not. Wanted: safetensors. Ask whoever made it to save it so.")


def _refuse_damaged(folder: Path) -> None:
    for path in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(path, "np"):
                continue
        except SafetensorError as error:
            raise KitError(f"{damage_reason(path, error)}. Download it again.") from error


def resolved_revision(found: CsmConfig, asked: str) -> str:
    """The commit that the hub served, or what was asked for when the base is a folder."""
    return getattr(found, "_commit_hash", None) or asked


@contextlib.contextmanager
def explain_load_errors(base: str) -> Iterator[None]:
    """Silence the loader's tables and turn its errors into sentences."""
    with quiet():
        try:
            yield
        except GatedRepoError as error:
            raise KitError(f"{base} is gated and this machine has no access. Accept its terms on its hub page and run `hf "
                          "auth login` (on Colab: the HF_TOKEN secret), or use the open mirror unsloth/csm-1b.") from error
        except LocalEntryNotFoundError as error:
            raise KitError(f"{base} is not on this machine, and could not be read from the hub or its cache: the hub does "
                          "not answer. Check the network (https://status.huggingface.co) and HF_HUB_OFFLINE, or give a "
                          "folder that holds it.") from error
        except (RepositoryNotFoundError, HFValidationError) as error:
            raise KitError(f"{base} was found neither as a folder nor on the hub. Check the spelling, and log in (hf auth "
                          "login) if it is private.") from error
        except (OSError, ValueError, RuntimeError, SafetensorError) as error:
            where = "the folder" if Path(base).is_dir() else "the hub or its cache"
            raise KitError(f"{base} could not be read from {where}: {reason(error)}. Wanted: config.json, model.safetensors "
                          "and the tokenizer files of a CSM checkpoint. Offline, give a folder that holds them.") from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Transformers without its tables, bars and warnings about ids that CSM has on purpose."""
    loudness, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    loudness_of_hub = hub_logging.get_verbosity()
    logging.set_verbosity_error()
    hub_logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(loudness)
        hub_logging.set_verbosity(loudness_of_hub)
        if bars:
            logging.enable_progress_bar()
