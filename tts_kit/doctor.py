"""What on this machine would stop a run or spoil it, found before the run, with what to do about each.

Packages are looked up in the installer's records and imported only where they are asked something, so that the doctor
also works on the machine where one is missing or broken.
"""

import importlib
import importlib.metadata
import json
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

INSTALL = "Run `pip install -r requirements.txt -c constraints.txt`."
LOG_IN = ("Accept its terms on its hub page and run `hf auth login` (older: `huggingface-cli login`; on Colab: the "
          "HF_TOKEN secret), or use the open mirror unsloth/csm-1b.")
SMALL = 1e9
"""Weights below this many bytes, as of a tiny model in a folder, ask nothing special of a machine."""
NEEDS = "CSM-1B with LoRA is computed to need about 5 GB (3.3 weights, 0.43 adapter and optimizer, the rest activations)"

RULES = (  # package, from this version, below this one, state, why; the first that fits decides
    ("torch", "0", "2.5", "fail", "transformers 5 switches torch off below 2.5"),
    ("transformers", "0", "4.52", "fail", "it has no CSM yet"),
    ("transformers", "4.52", "4.53", "fail", "it leaves the end of speech unlabelled, so that a voice never learns to stop"),
    ("transformers", "4.53", "5", "warn", "the kit is tested with transformers 5"),
    ("transformers", "5", "5.21", "ok", "it loads CSM with a random audio embedding; repaired at load"),
    ("peft", "0", "0.18", "fail", "it imports names that transformers 5 no longer has"),
    ("peft", "0.18", "0.19.1", "warn", "transformers 5.17 asks for 0.19.1"),
    ("accelerate", "0", "1.1", "fail", "the trainer of transformers needs 1.1"),
)
REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "soundfile", "soxr", "pyloudnorm")


@dataclass(frozen=True)
class Check:
    name: str
    state: str
    """ok, warn or fail."""
    seen: str
    do: str = ""
    """What to do about it; empty when the state is ok."""


def examine(base: str, folder: Path = Path("runs")) -> list[Check]:
    """Everything worth knowing before training `base` with its runs under `folder`."""
    local = Path(base)
    small = local.is_dir() and sum(file.stat().st_size for file in local.glob("*.safetensors")) < SMALL
    checks = [python(sys.version_info[:3]), *(package(name, installed(name)) for name in REQUIRED)]
    checks += [vision(installed("torch"), installed("torchvision"), _requirements("torchvision")), torchaudio(), mp3()]
    checks += hardware(small)
    checks.append(disk(folder, "disk for runs", 1e9 if small else 10e9, "clips, codes and checkpoints"))
    if not local.is_dir():
        download = "the base model (CSM-1B: 3.3 GB in 16 bits, 6.6 in 32)"
        checks += [disk(cache, "disk for models", 10e9, download) for cache in _model_cache()]
    return [*checks, token(), folder_of_model(local) if local.is_dir() else on_hub(base)]


def report(checks: list[Check]) -> str:
    """Aligned plain text; under each line that is not ok stands what to do."""
    width = max(len(check.name) for check in checks)
    lines = []
    for check in checks:
        lines.append(f"{check.state:<4}  {check.name:<{width}}  {check.seen}")
        if check.state != "ok":
            lines.append(f"{'':<4}  {'':<{width}}  -> {check.do}")
    count = {state: sum(check.state == state for check in checks) for state in ("ok", "warn", "fail")}
    lines.append(f"{count['fail']} to repair, {count['warn']} to know about, {count['ok']} in order.")
    return "\n".join(lines)


def python(version: tuple[int, ...]) -> Check:
    """The kit is tested on 3.11; its packages are built for 3.10 to 3.13 throughout."""
    seen = ".".join(map(str, version))
    if version < (3, 10):
        return Check("Python", "fail", f"{seen}; torch and transformers need 3.10", "Install Python 3.11 and use it.")
    if version >= (3, 14):
        return Check("Python", "warn", f"{seen}; nothing here was tried above 3.13",
                     "Use Python 3.10 to 3.13 if a package fails to install or import.")
    return Check("Python", "ok", seen)


def installed(name: str) -> str | None:
    """The version in the installer's records, None when the package is missing."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None


def package(name: str, version: str | None) -> Check:
    """One required package against the versions known to be bad."""
    if version is None:
        return Check(name, "fail", "not installed", INSTALL)
    for which, start, end, state, why in RULES:
        if which == name and _numbers(start) <= _numbers(version) < _numbers(end):
            return Check(name, state, f"{version}; {why}", "" if state == "ok" else INSTALL)
    return Check(name, "ok", version)


def vision(torch: str | None, torchvision: str | None, requirements: list[str], system: str = sys.platform) -> Check:
    """Whether torchvision, which other packages bring along, was built for this torch; if not, transformers breaks."""
    if torchvision is None or torch is None:
        return Check("torchvision", "ok", "not installed; not needed" if torchvision is None else torchvision)
    ours, theirs = torch.partition("+")[2], torchvision.partition("+")[2]
    wanted = next((found[1] for line in requirements if (found := re.match(r"torch\s*\(?==\s*([\d.]+)", line))), None)
    # on Linux a torchvision without a tag is the CUDA build of PyPI; elsewhere the CPU build has no tag either
    other_build = theirs != ours if ours and theirs else ours == "cpu" and system == "linux"
    if other_build or (wanted and _numbers(wanted) != _numbers(torch)):
        return Check("torchvision", "fail",
                     f"{torchvision}, built for torch {wanted or 'of another kind'}{f' {theirs}' if theirs else ''}, beside "
                     f"torch {torch}: transformers fails with 'operator torchvision::nms does not exist'",
                     "Run `pip uninstall torchvision` (the kit does not need it), or install the one built for this torch.")
    return Check("torchvision", "ok", f"{torchvision}, fits torch {torch}")


def torchaudio() -> Check:
    version = installed("torchaudio")
    return Check("torchaudio", "ok", f"{version}, not used" if version else "not installed; not needed")


def mp3() -> Check:
    """Whether soundfile opens its library, and whether that can write MP3 for the listening page."""
    try:
        soundfile = importlib.import_module("soundfile")
    except (ImportError, OSError) as error:
        return Check("libsndfile", "fail", f"soundfile cannot be used: {error}",
                     f"{INSTALL} If it says that libsndfile is missing: `apt-get install libsndfile1`.")
    version = soundfile.__libsndfile_version__
    if "MP3" not in soundfile.available_formats():
        return Check("libsndfile", "warn", f"{version} cannot write MP3, which the listening page uses",
                     "Run `pip install -U soundfile`; its wheels bring a libsndfile that can.")
    return Check("libsndfile", "ok", f"{version}, writes MP3")


def hardware(small: bool) -> list[Check]:
    """Device, memory, and unsloth, which works only on a GPU."""
    try:
        runtime = importlib.import_module("tts_kit.runtime")
    except (ImportError, OSError) as error:
        return [Check("device", "fail", f"unknown, because a package cannot be imported: {error}", INSTALL)]
    chosen = runtime.choose()
    memory = ram(runtime.memory(), small)
    engine = unsloth(installed("unsloth"), chosen.device)
    if chosen.device == "cuda":
        name, total, free = runtime.gpu_memory()
        return [Check("device", "ok", chosen.why), gpu(name, total, free, small), memory, engine]
    driver = Path("/proc/driver/nvidia/version").exists()
    return [device(chosen.device, chosen.why, small, driver, runtime.on_colab()), memory, engine]


def device(kind: str, why: str, small: bool, driver: bool, colab: bool) -> Check:
    """A machine without CUDA; `driver`: it has an NVIDIA driver all the same."""
    if driver:
        return Check("device", "warn", f"{why} An NVIDIA driver is here, but torch cannot use it",
                     "Install a torch build for CUDA (https://pytorch.org/get-started), or check CUDA_VISIBLE_DEVICES.")
    if small or kind == "mps":
        return Check("device", "ok", why)
    where = "On Colab: Runtime > Change runtime type > T4 GPU." if colab else "Use a machine with a GPU of 8 GB or more."
    return Check("device", "warn", f"{why} That works for tiny models; CSM-1B needs a GPU to be practical", where)


def gpu(name: str, total: int, free: int | None, small: bool) -> Check:
    """GPU memory in bytes, as it is and as it is free now (None: not known)."""
    seen = f"{total / 1e9:.1f} GB on {name}" + (f", {free / 1e9:.1f} free" if free is not None else "")
    if small:
        return Check("GPU memory", "ok", f"{seen}; enough for a tiny model")
    if total < 5e9:
        return Check("GPU memory", "fail", f"{seen}; {NEEDS}", "Use a GPU of 8 GB or more; Colab's free T4 has 16.")
    if total < 8e9:
        return Check("GPU memory", "warn", f"{seen}; {NEEDS}", "Set tokens_per_batch to 350, two clips of ten seconds.")
    if free is None or free < 5e9:
        return Check("GPU memory", "warn", f"{seen}; {NEEDS}",
                     "Another program or notebook holds the rest (`nvidia-smi` names it): shut it down first.")
    return Check("GPU memory", "ok", seen)


def ram(total: int, small: bool) -> Check:
    seen = f"{total / 1e9:.0f} GB"
    if total < 8e9 and not small:
        return Check("memory", "warn", f"{seen}; CSM-1B takes up to 6.6 GB while it loads in float32",
                     "Use a machine with 8 GB or more, or close other programs before loading.")
    return Check("memory", "ok", seen)


def unsloth(version: str | None, kind: str) -> Check:
    """An engine that may be absent; without CUDA it cannot load CSM."""
    if version and kind != "cuda":
        return Check("unsloth", "warn", f"{version}, but it needs a GPU, and torch sees none",
                     "Leave the engine at auto or plain here.")
    return Check("unsloth", "ok", version or "not installed; the plain engine does without")


def disk(folder: Path, name: str, wanted: float, what: str) -> Check:
    """Free bytes on the disk where `folder` is or will be, against `wanted`."""
    place = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    free = shutil.disk_usage(place).free
    seen = f"{free / 1e9:.1f} GB free at {folder}"
    if free < wanted:
        return Check(name, "warn", f"{seen}; {wanted / 1e9:.0f} GB are comfortable for {what}",
                     "Free some space, or choose a folder on another disk (HF_HOME moves the models).")
    return Check(name, "ok", seen)


def token() -> Check:
    """Whether a hub token is stored; never which."""
    try:
        found = importlib.import_module("huggingface_hub").get_token() is not None
    except ImportError:
        return Check("hub token", "fail", "huggingface_hub is not installed", INSTALL)
    return Check("hub token", "ok", "present" if found else "none; needed only for gated or private models")


def folder_of_model(folder: Path) -> Check:
    """A checkpoint in a folder: configuration, all weights as safetensors, tokenizer."""
    missing = _missing(folder)
    if missing:
        return Check("base model", "fail", f"folder {folder} lacks {', '.join(missing)}",
                     "Copy or download the checkpoint again, whole; pickled weights (.bin, .pt) are not opened.")
    return Check("base model", "ok", f"folder {folder}")


def on_hub(base: str, timeout: float = 5.0) -> Check:
    """Whether the hub would hand out `base` to this machine: the question that downloading it asks first."""
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


def _model_cache() -> list[Path]:
    try:
        return [Path(importlib.import_module("huggingface_hub.constants").HF_HUB_CACHE)]
    except ImportError:
        return []


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _numbers(version: str) -> tuple[int, ...]:
    """5.17.0rc1+cpu -> (5, 17, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)
