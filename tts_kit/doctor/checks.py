"""Checks of this machine, its packages and the base model before a training; each problem comes with its fix.

Packages are looked up in pip's records and imported only where they are used, so that a missing or broken one is a line of
the report and not a crash."""

import importlib
import importlib.metadata
import json
import platform
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.version import Version

from tts_kit.errors import KitError, install_command, other_environment, reason

INSTALL = f"Run `{install_command()}`."
SMALL_MODEL_BYTES = 1e9  # local checkpoints below this size, such as the bundled one, need no GPU
GPU_MEMORY = ("CSM-1B with LoRA needs about 10 GB by default: 4.3 for weights, adapter, optimizer and CUDA, 2.2 for the "
              "merged weights that generate samples, the rest for activations")
REPORTED = ("torch", "transformers", "peft", "accelerate", "datasets", "soundfile", "soxr", "pyloudnorm")
"""Packages that the report always names; the other requirements only where they are missing or too old."""
RANDOM_EMBEDDING = SpecifierSet(">=5.17,<5.21")
"""Versions of transformers that load CSM with a random audio embedding."""
MIN_TORCHAO = Version("0.16")  # for peft 0.21


@dataclass(frozen=True)
class Check:
    name: str
    status: str  # ok, warn or fail
    detail: str
    fix: str = ""  # empty when the status is ok


def run_checks(base: str, folder: Path = Path("runs")) -> list[Check]:
    """Check everything that training `base` with runs under `folder` depends on."""
    local = Path(base)
    small = local.is_dir() and sum(file.stat().st_size for file in local.glob("*.safetensors")) < SMALL_MODEL_BYTES
    packages = [check_package(requirement, _version(requirement.name)) for requirement in requirements()]
    checks = [check_python(), *(check for check in packages if check.name in REPORTED or check.status == "fail"),
              *filter(None, [check_torchao(_version("torchao"))])]
    functions = {"libsndfile": check_libsndfile, "torchvision": check_torchvision, "device": lambda: check_hardware(small),
                 "disk for runs": lambda: check_disk("disk for runs", folder, 1e9 if small else 10e9,
                                                     "clips, codes and checkpoints")}
    if local.is_dir():
        functions["base model"] = lambda: check_local_model(local)
    else:
        functions |= {"disk for models": check_hub_cache, "base model": lambda: check_hub_model(base)}
    for name, function in functions.items():
        try:
            results = function()
        except (ImportError, OSError) as error:
            results = Check(name, "fail", f"unknown, because a package cannot be imported: {error}", INSTALL)
        checks += results if isinstance(results, list) else [results]
    return checks


def format_report(checks: list[Check]) -> str:
    """Return the checks as aligned text, each problem followed by its fix."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.status:<4}  {check.name:<{width}}  {check.detail}")
        if check.fix:
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.fix}")
    counts = {status: sum(check.status == status for check in checks) for status in ("fail", "warn", "ok")}
    lines.append(f"{counts['fail']} failed, {counts['warn']} warnings, {counts['ok']} ok.")
    return "\n".join(lines)


def check_python() -> Check:
    """Name this Python, and the one of the working folder's environment if that is another."""
    detail = f"{platform.python_version()} ({sys.executable})"
    if python := other_environment():
        return Check("python", "warn", f"{detail}; this folder has an environment with the kit",
                     f"Run `{python} -m tts_kit doctor`.")
    return Check("python", "ok", detail)


def requirements() -> list[Requirement]:
    """Return what everybody needs: requirements.txt, or what the installed package has recorded of it."""
    path = Path(__file__).parents[2] / "requirements.txt"
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else importlib.metadata.requires("tts-kit")
    lines = [line.partition("#")[0] for line in lines if "extra ==" not in line]
    return [Requirement(line) for line in lines if line]


def check_package(requirement: Requirement, version: str | None) -> Check:
    """Check the version of a required package."""
    if version is None:
        return Check(requirement.name, "fail", "not installed", INSTALL)
    if not requirement.specifier.contains(version, prereleases=True):
        return Check(requirement.name, "fail", f"{version}; tts_kit requires {requirement.specifier}", INSTALL)
    note = "; it loads CSM with a random audio embedding; repaired at load" * (
        requirement.name == "transformers" and version in RANDOM_EMBEDDING)
    return Check(requirement.name, "ok", f"{version}{note}")


def check_torchvision() -> Check:
    """Check that torchvision, which other packages install, was built for this torch; otherwise transformers fails."""
    version = _version("torchvision")
    if version is None:
        return Check("torchvision", "ok", "not installed; not needed")
    try:
        importlib.import_module("torchvision")
    except (ImportError, RuntimeError, OSError) as error:  # operator torchvision::nms does not exist
        return Check("torchvision", "fail", f"{version} was not built for torch {_version('torch')}, so that transformers "
                     f"fails: {error}", "Run `pip uninstall torchvision`; tts_kit does not need it.")
    return Check("torchvision", "ok", version)


def check_torchao(version: str | None) -> Check | None:
    """Warn of a torchao that PEFT refuses, such as that of Colab's images."""
    if version is None or Version(version) >= MIN_TORCHAO:
        return None
    return Check("torchao", "warn", f"{version}; PEFT adapts no model beside a torchao older than {MIN_TORCHAO}. tts_kit "
                 "hides it, other programs fail", "Run `pip uninstall torchao`; tts_kit does not need it.")


def check_libsndfile() -> Check:
    import soundfile  # fails where its library is missing

    return Check("libsndfile", "ok", soundfile.__libsndfile_version__)


def check_hardware(small: bool) -> list[Check]:
    """Check device and memory."""
    from tts_kit import colab, device

    memory = check_memory(device.memory(), small)
    try:
        chosen = device.choose()
    except KitError as error:  # a driver or a torch that does not fit the GPU
        problem, _, fix = str(error).partition(". ")
        return [Check("device", "fail", problem, fix), memory]
    if chosen.device == "cuda":
        return [Check("device", "ok", chosen.reason), check_gpu(*device.gpu_memory(), small), memory]
    return [check_device(chosen.device, chosen.reason, small, colab.is_colab()), memory]


def check_device(device: str, reason: str, small: bool, is_colab: bool) -> Check:
    """Check a machine without an NVIDIA GPU."""
    if small or device == "mps":
        return Check("device", "ok", reason)
    fix = "On Colab: Runtime > Change runtime type > T4 GPU." if is_colab else "Use a machine with a GPU of 10 GB or more."
    return Check("device", "warn", f"{reason} Enough for tiny models; CSM-1B needs a GPU to be practical", fix)


def check_gpu(name: str, total: int, free: int, small: bool) -> Check:
    """Check the bytes of GPU memory, in total and free at the moment."""
    detail = f"{total / 1e9:.1f} GB on {name}, {free / 1e9:.1f} free"
    if small or free >= 10e9:
        return Check("GPU memory", "ok", detail)
    status, fix = "warn", "Another program or notebook uses the rest (`nvidia-smi` lists it): close it first."
    if total < 5e9:
        status, fix = "fail", "Use a GPU of 10 GB or more; Colab's free T4 has 16."
    elif total < 10e9:
        fix = "Train with --tokens-per-batch 350 --gradient-accumulation-steps 4 --sample-steps 0."
    return Check("GPU memory", status, f"{detail}; {GPU_MEMORY}", fix)


def check_memory(total: int, small: bool) -> Check:
    if total < 8e9 and not small:
        return Check("memory", "warn", f"{total / 1e9:.0f} GB; CSM-1B takes up to 6.6 GB while it loads in float32",
                     "Use a machine with 8 GB or more, or close other programs before loading.")
    return Check("memory", "ok", f"{total / 1e9:.0f} GB")


def check_disk(name: str, folder: Path, min_free: float, purpose: str) -> Check:
    """Check the free bytes of the disk on which `folder` is or will be."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free at {folder}"
    if free < min_free:
        return Check(name, "warn", f"{detail}; {min_free / 1e9:.0f} GB are recommended for {purpose}",
                     "Free some space, or choose a folder on another disk (HF_HOME moves the models).")
    return Check(name, "ok", detail)


def check_hub_cache() -> Check:
    """Check the disk to which models are downloaded."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return check_disk("disk for models", Path(HF_HUB_CACHE), 10e9, "the base model (CSM-1B: 3.3 GB in 16 bits, 6.6 in 32)")


def check_local_model(folder: Path) -> Check:
    """Check a checkpoint folder: configuration, all weights as safetensors, tokenizer; or original weights alone."""
    if missing := _missing_files(folder):
        return Check("base model", "fail", f"folder {folder} lacks {', '.join(missing)}",
                     "Copy or download the whole checkpoint again; pickled weights (.bin, .pt) are not opened.")
    original = "; original layout: what it lacks of codec and tokenizer is fetched from the hub" * _is_original(folder)
    return Check("base model", "ok", f"folder {folder}{original}")


def check_hub_model(base: str, timeout: float = 5.0) -> Check:
    """Check that the hub lets this machine download `base`, or that it is in the cache."""
    import httpx
    import huggingface_hub as hub
    from huggingface_hub import errors

    try:
        if "/" not in base:
            raise errors.HFValidationError
        try:
            hub.get_hf_file_metadata(hub.hf_hub_url(base, "config.json"), timeout=timeout)
        except errors.EntryNotFoundError:  # the original layout may be without one
            hub.get_hf_file_metadata(hub.hf_hub_url(base, "model.safetensors"), timeout=timeout)
        return Check("base model", "ok", f"{base} on the hub, access granted")
    except errors.GatedRepoError:
        return Check("base model", "fail", f"{base} is gated and this machine has no access", "Accept the terms on its hub "
                     "page and run `hf auth login` (on Colab: set the secret HF_TOKEN), or use the open mirror "
                     "unsloth/csm-1b.")
    except (errors.RepositoryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError):
        return Check("base model", "fail", f"{base} is no folder here, and no model on the hub that this machine may access",
                     "Check the spelling of the path or the hub id (owner/name); for a private model run `hf auth login`.")
    except (OSError, httpx.HTTPError) as error:
        cached = [hub.try_to_load_from_cache(base, name) for name in ("config.json", "model.safetensors")]
        if any(isinstance(path, str) and not _missing_files(Path(path).parent) for path in cached):
            return Check("base model", "ok", f"{base} in the cache; the hub was not reached")
        return Check("base model", "warn", f"{base} is not in the cache, and the hub was not reached or refused: "
                     f"{reason(error)}", "Go online (and unset HF_HUB_OFFLINE), renew this machine's token, or give a "
                     "folder that holds the checkpoint.")


def _missing_files(folder: Path) -> list[str]:
    """Files without which the checkpoint in `folder` cannot be loaded; an index (the config may name it) lists weights."""
    required, path = ["config.json"], folder / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        path = folder / config.get("transformers_weights", "model.safetensors.index.json")
        required += ([path.name] if path.suffix == ".safetensors" else
                     sorted({*json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()}))
    except FileNotFoundError:
        required.append("model.safetensors")
    except (ValueError, KeyError, TypeError, AttributeError):
        return [f"a readable {path.name}"]
    if not any(folder.glob("tokenizer*")):
        required.append("tokenizer.json")
    missing = [name for name in required if not (folder / name).is_file()]
    return [] if {*missing} <= {"config.json", "tokenizer.json"} and _is_original(folder) else missing


def _is_original(folder: Path) -> bool:
    from tts_kit import pretrained

    try:
        return bool(pretrained.original_weights(str(folder)))
    except KitError:  # damaged files, which loading names
        return False


def _version(name: str) -> str | None:
    """The installed version, None when the package is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
