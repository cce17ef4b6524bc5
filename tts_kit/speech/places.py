"""Where voices lie: adapters and whole models, in folders or on the hub; nothing but safetensors and JSON is fetched."""

from dataclasses import replace
from pathlib import Path

from huggingface_hub import HfApi, snapshot_download
from transformers.utils import CONFIG_NAME

from tts_kit import checkpoint, hub
from tts_kit.model import parcel
from tts_kit.model.sampling import Sampling
from tts_kit.problem import Problem

FETCHED = (parcel.WEIGHTS, "*.json")
VOICE = "speech.json"
"""Beside merged weights: as whom they speak, and how they are sampled."""


def adapter(place: str | Path) -> Path | None:
    """The folder of the adapter at a place, fetched if it is on the hub; None where a whole model lies there."""
    folder = Path(place)
    if not folder.exists() and isinstance(place, str) and hub.is_name(place):
        folder = _fetch(place)
    is_whole = (folder / CONFIG_NAME).is_file() and not (folder / parcel.CONFIG).is_file()
    return None if is_whole else folder


def whole(place: str | Path | None, base: str) -> str:
    """The name of a whole model, for which another base makes no sense."""
    if place and base not in ("", str(place)):
        raise Problem(f"{place} is a whole model, and no adapter that could be put on {base}. Leave --base out.")
    return str(place or base)


def manner(name: str, revision: str, sampling: Sampling) -> dict:
    """As whom a whole model speaks, and how it is sampled: merged weights say it in a file of their own."""
    told = checkpoint.told(name, VOICE, revision)
    own = {field: told[field] for field in ("temperature", "depth_temperature", "top_k") if field in told}
    return {"speaker": str(told.get("speaker", "0")), "sampling": replace(sampling, **own)}


def _fetch(name: str) -> Path:
    """What a repository on the hub has of an adapter; of a whole model only what is small."""
    with checkpoint.opening(name):
        folder = Path(snapshot_download(name, allow_patterns=FETCHED))
        if (folder / parcel.CONFIG).is_file() and not (folder / parcel.WEIGHTS).is_file():
            checkpoint.refuse_pickles(name, HfApi().list_repo_files(name))
    return folder
