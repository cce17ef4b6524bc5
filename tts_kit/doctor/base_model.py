"""The model to start from: whole in a folder, or to be had from the hub."""

import importlib
import json
from pathlib import Path

from tts_kit.doctor.check import INSTALL, Check

LOG_IN = ("Accept its terms on its hub page and run `hf auth login` (older: `huggingface-cli login`; on Colab: the "
          "HF_TOKEN secret), or use the open mirror unsloth/csm-1b.")


def token() -> Check:
    """Whether a hub token is stored; never which."""
    try:
        found = importlib.import_module("huggingface_hub").get_token() is not None
    except ImportError:
        return Check("hub token", "fail", "huggingface_hub is not installed", INSTALL)
    return Check("hub token", "ok", "present" if found else "none; needed only for gated or private models")


def in_folder(folder: Path) -> Check:
    """A checkpoint in a folder: configuration, all weights as safetensors, tokenizer."""
    missing = _missing(folder)
    if missing:
        return Check("base model", "fail", f"folder {folder} lacks {', '.join(missing)}",
                     "Copy or download the checkpoint again, whole; pickled weights (.bin, .pt) are not opened.")
    return Check("base model", "ok", f"folder {folder}")


def on_hub(base: str, timeout: float = 5.0) -> Check:
    """Whether the hub would hand out `base` to this machine: the question that downloading it asks first."""
    if "/" not in base:
        return Check("base model", "fail", f"{base} is no folder here, and no hub id (owner/name)", "Check the spelling.")
    try:
        hub, errors = importlib.import_module("huggingface_hub"), importlib.import_module("huggingface_hub.errors")
    except ImportError:
        return Check("base model", "fail", "huggingface_hub is not installed", INSTALL)
    try:
        hub.get_hf_file_metadata(hub.hf_hub_url(base, "config.json"), timeout=timeout)
    except errors.GatedRepoError:
        return Check("base model", "fail", f"{base} is gated and this machine has no access", LOG_IN)
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError):
        return Check("base model", "fail", f"{base} is no folder here, and no model on the hub that this machine may see",
                     "Check the spelling of the path or the hub id; for a private model run `hf auth login`.")
    except errors.HfHubHTTPError as error:
        return _refused(base, error.response.status_code)
    except _no_answer() as error:
        return _offline(base, hub, type(error).__name__)
    return Check("base model", "ok", f"{base} on the hub, access granted")


def cache() -> list[Path]:
    """Where the hub's client keeps models; empty without the client."""
    try:
        return [Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)]
    except ImportError:
        return []


def _refused(base: str, status: int) -> Check:
    if status in (401, 403):
        return Check("base model", "fail", f"the hub refuses {base} to the token of this machine (answer {status})",
                     f"Renew the token. If the model is gated: {LOG_IN}")
    return Check("base model", "warn", f"the hub answered {status} for {base}", "Wait a little and ask again.")


def _offline(base: str, hub, reason: str) -> Check:
    """Without the hub a model can still be whole in the cache."""
    config = hub.try_to_load_from_cache(base, "config.json")
    if isinstance(config, str) and not _missing(Path(config).parent):
        return Check("base model", "ok", f"{base} in the cache; the hub was not reached ({reason})")
    return Check("base model", "warn", f"{base} is not in the cache and the hub was not reached ({reason})",
                 "Go online (and unset HF_HUB_OFFLINE), or give a folder that holds the checkpoint.")


def _no_answer() -> tuple[type[Exception], ...]:
    """What the hub's client raises when nobody answers: its newer versions raise httpx's errors, the older OSError."""
    try:
        return OSError, importlib.import_module("httpx").HTTPError
    except ImportError:
        return (OSError,)


def _missing(folder: Path) -> list[str]:
    """Files without which a checkpoint cannot be opened; an index names its own."""
    wanted = ["config.json"]
    index = folder / "model.safetensors.index.json"
    try:
        wanted += sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except FileNotFoundError:
        wanted.append("model.safetensors")
    except (json.JSONDecodeError, KeyError, TypeError, AttributeError):
        return [f"a readable {index.name}"]
    missing = [name for name in wanted if not (folder / name).is_file()]
    return missing if any(folder.glob("tokenizer*")) else [*missing, "tokenizer.json"]
