"""Where voices lie: adapters and whole models, in folders or on the hub; nothing but safetensors and JSON is fetched."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from transformers.utils import CONFIG_NAME

from tts_kit import hub, pretrained
from tts_kit.errors import KitError
from tts_kit.generation.sampling import Sampling
from tts_kit.model import adapter_io

FETCHED = (adapter_io.WEIGHTS_FILE, "*.json")
VOICE = "speech.json"
"""Beside merged weights: as whom they speak, and how they are sampled."""


def find_adapter(place: str | Path) -> Path | None:
    """The folder of the adapter at a place, fetched if it is on the hub; None where a whole model lies there."""
    folder = Path(place)
    if not folder.exists() and isinstance(place, str) and hub.is_repo_id(place):
        folder = _fetch(place)
    is_whole = (folder / CONFIG_NAME).is_file() and not (folder / adapter_io.CONFIG_FILE).is_file()
    return None if is_whole else folder


def require_no_base(place: str | Path | None, base: str) -> str:
    """The name of a whole model, for which another base makes no sense."""
    if place and base not in ("", str(place)):
        raise KitError(f"{place} is a whole model, and no adapter that could be put on {base}. Leave --base out.")
    return str(place or base)


def speaker_and_sampling(name: str, revision: str, sampling: Sampling) -> dict:
    """As whom a whole model speaks, and how it is sampled: merged weights say it in a file of their own."""
    told = pretrained.optional_json(name, VOICE, revision)
    own = {field: told[field] for field in ("temperature", "depth_temperature", "top_k") if field in told}
    return {"speaker": str(told.get("speaker", "0")), "sampling": replace(sampling, **own)}


def _fetch(name: str) -> Path:
    """What a repository on the hub has of an adapter; of a whole model only what is small."""
    with pretrained.explain_load_errors(name):
        folder = Path(snapshot_download(name, allow_patterns=FETCHED))
        if (folder / adapter_io.CONFIG_FILE).is_file() and not (folder / adapter_io.WEIGHTS_FILE).is_file():
            pretrained.check_no_pickles(name, HfApi().list_repo_files(name))
    return folder
