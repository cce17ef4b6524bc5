"""Python and its packages against the versions known to be bad.

Packages are looked up in the installer's records and imported only where they are asked something, so that the doctor
also works on the machine where one is missing or broken.
"""

import importlib
import importlib.metadata
import re
import sys

from tts_kit.doctor.check import INSTALL, Check

RULES = (  # package, from this version, below this one, state, why; the first that fits decides
    # what is refused or doubted ends where requirements.txt begins
    ("torch", "0", "2.5", "fail", "transformers 5 switches torch off below 2.5"),
    ("torch", "2.5", "2.9", "warn", "the kit asks for 2.9 or newer"),
    ("transformers", "0", "4.52", "fail", "it has no CSM yet"),
    ("transformers", "4.52", "4.53", "fail", "it leaves the end of speech unlabelled, so that a voice never learns to stop"),
    ("transformers", "4.53", "5", "warn", "the kit is tested with transformers 5"),
    ("transformers", "5", "5.17", "warn", "the kit asks for 5.17 or newer"),
    ("transformers", "5.17", "5.21", "ok", "it loads CSM with a random audio embedding; repaired at load"),
    ("peft", "0", "0.18", "fail", "it imports names that transformers 5 no longer has"),
    ("peft", "0.18", "0.19.1", "warn", "transformers 5.17 asks for 0.19.1"),
    ("accelerate", "0", "1.1", "fail", "the trainer of transformers needs 1.1"),
    ("accelerate", "1.1", "1.10", "warn", "the kit asks for 1.10 or newer"),
)
REQUIRED = ("torch", "transformers", "peft", "accelerate", "datasets", "soundfile", "soxr", "pyloudnorm")


def check_all() -> list[Check]:
    """Python, each required package, and what other packages bring along."""
    return [python(sys.version_info[:3]), *(package(name, installed(name)) for name in REQUIRED),
            vision(installed("torch"), installed("torchvision"), _requirements("torchvision")), torchaudio(), mp3()]


def python(version: tuple[int, ...]) -> Check:
    """Only 3.11 was tested; torch and transformers ask for 3.10 or newer."""
    seen = ".".join(map(str, version))
    if version < (3, 10):
        return Check("Python", "fail", f"{seen}; torch and transformers need 3.10", "Install Python 3.11 and use it.")
    if version >= (3, 14):
        return Check("Python", "warn", f"{seen}; only 3.11 was tried",
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


def unsloth(version: str | None, kind: str) -> Check:
    """An engine that may be absent; without CUDA it cannot load CSM."""
    if version and kind != "cuda":
        return Check("unsloth", "warn", f"{version}, but it needs a GPU, and torch sees none",
                     "Leave the engine at auto or plain here.")
    return Check("unsloth", "ok", version or "not installed; the plain engine does without")


def _requirements(name: str) -> list[str]:
    try:
        return importlib.metadata.requires(name) or []
    except importlib.metadata.PackageNotFoundError:
        return []


def _numbers(version: str) -> tuple[int, ...]:
    """5.17.0rc1+cpu -> (5, 17, 0)."""
    return tuple(int(part) for part in re.match(r"[\d.]*", version)[0].split(".") if part)
