"""Other TTS systems as arms: they run in environments of their own, or a folder holds their clips."""

import collections
import contextlib
import hashlib
import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

import numpy as np

from tts_kit import audio, device, text
from tts_kit.comparison.arms import ARMS, GENERATED_ARMS
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.progress import tqdm
from tts_kit.speech.voice import Reference

FOLDER = "folder:"
RUNNER = Path(__file__).with_name("external_runner.py")
PYTHON = ">=3.11,<3.13"
TIME_LIMITS = 3600.0, 600.0  # seconds for installing, downloading and loading a system, and for one line
MAX_REASON = 500
MAX_SECONDS = 120.0
PASSED_VARIABLES = frozenset({
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "UV_CACHE_DIR",
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_OFFLINE", "UV_PYTHON_INSTALL_DIR",
    "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY"})
"""All that a system gets of the user's environment: where to fetch and store, and what to compute on."""


@dataclass(frozen=True)
class ExternalSystem:
    packages: list[str]
    license: str  # of the weights, and what it obliges the user to
    gigabytes: float  # approximate download of the weights
    clones: bool = True  # whether it clones the reference; otherwise it has a voice of its own
    deterministic: bool = False  # whether all seeds give the same speech; then it speaks each sentence once, as seed 0
    needs_gpu: bool = False
    needs_token: bool = False
    """Whether the hub gives its weights only to those who accepted terms there; no other system gets HF_TOKEN."""
    agreement: str = ""  # the variable that a user sets to 1 to accept the license


SYSTEMS = {name: ExternalSystem(**fields) for name, fields in tomllib.loads(
    Path(__file__).with_suffix(".toml").read_text(encoding="utf-8")).items()}
"""Name of the arm -> system."""


@dataclass(frozen=True)
class ExternalArm:
    name: str
    folder: Path | None = None  # of its clips, if they are given

    @property
    def description(self) -> str:
        if self.folder:
            return "Clips that were given."
        system = SYSTEMS[self.name]
        return f"Another system: {system.packages[0]}, {'with the reference' if system.clones else 'in a voice of its own'}."


@dataclass(frozen=True)
class ExternalClip:
    sentence: int
    seed: int
    digest: str = ""  # of the file in a folder: the same digest, the same clip
    samples: np.ndarray | None = None  # (samples,) at `rate`; None where there is a problem
    rate: int = 0
    problem: str = ""


def parse(arm: str) -> ExternalArm:
    """Return the arm of a system's name, or of folder:NAME (a folder of that name) or folder:NAME=PATH."""
    if arm in SYSTEMS:
        return ExternalArm(arm)
    if not arm.startswith(FOLDER):
        raise KitError(f"there is no arm {arm[:60]!r}. Arms of the model: {', '.join(GENERATED_ARMS)}, with settings after "
                       f"a colon (finetuned:strength=0.5). Other systems: {', '.join(SYSTEMS)}. Clips of any other: "
                       f"{FOLDER}NAME=PATH.")
    name, _, path = arm.removeprefix(FOLDER).partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", name) or name in {*ARMS, *SYSTEMS}:
        raise KitError(f"{arm[:60]!r} calls an arm {name[:40]!r}; wanted folder:NAME=PATH with a name of 1 to 32 letters, "
                       "digits, '.', '_' or '-' that no other arm has. Choose another name.")
    return ExternalArm(name, Path(path or name).expanduser())


def from_folder(name: str, folder: Path, count: int) -> Iterator[ExternalClip]:
    """Yield the clips of a folder, named by sentence and seed (NNN.wav, NNN-SEED.wav), at least one for each of `count`
    sentences."""
    if not folder.is_dir():
        raise KitError(f"{name}: {folder} is no folder. Wanted one with files named by the number of their sentence: "
                       "001.wav, or 001-1.wav and 001-2.wav for two samples.")
    files, unmatched = collections.defaultdict(dict), []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        parts = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,9}))?\.(?:wav|flac|mp3|ogg)", path.name, re.IGNORECASE)
        number, seed = (int(parts[1]), int(parts[2] or 0)) if parts else (0, 0)
        if 1 <= number <= count and seed not in files[number] and manifest.resolve_inside(folder, path.name):
            files[number][seed] = path
        else:
            unmatched.append(repr(path.name))
    if unmatched:
        print(f"{name}: {len(unmatched)} entries of {folder} match no sentence and are left out: {', '.join(unmatched[:5])}"
              f"{', ...' if len(unmatched) > 5 else ''}")
    if not any(files.values()):
        raise KitError(f"{name}: nothing in {folder} matches one of the {count} sentences. Wanted files named 001.wav to "
                       f"{count:03d}.wav.")
    for number in range(1, count + 1):
        for seed, path in sorted(files[number].items()):
            digest = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
            yield _read(ExternalClip(number, seed, digest), path, path.name)
        if not files[number]:
            yield ExternalClip(number, 0, problem="missing: there is no file for this sentence")


def _read(clip: ExternalClip, path: Path, name: str) -> ExternalClip:
    """Return the clip with the samples of a file, or with the problem that it has."""
    try:
        rate, _, _ = audio.probe(path, name)
        return replace(clip, samples=audio.read(path, rate, MAX_SECONDS, name), rate=rate)
    except KitError as error:
        return replace(clip, problem=str(error))


def synthesize(name: str, texts: Sequence[str], seeds: Sequence[int], reference: Reference,
               existing: Container[tuple[int, int]]) -> Iterator[ExternalClip]:
    """Make the clip of each text and seed by a system; those of the (sentence, seed) in `existing` are left out."""
    clips = [ExternalClip(number, seed) for number in range(1, len(texts) + 1)
             for seed in ((0,) if SYSTEMS[name].deterministic else seeds) if (number, seed) not in existing]
    lines = [(text.normalize(texts[clip.sentence - 1]), clip.seed) for clip in clips]
    done = 0
    try:
        for path, error in _run(name, reference, lines) if lines else ():
            clip = clips[done]
            done += 1
            yield replace(clip, problem=error) if error else _read(clip, path, "its speech")
    except KitError as error:
        yield from (replace(clip, problem=str(error)) for clip in clips[done:])


def unavailable_reason(name: str) -> str:
    """Return why this machine cannot run a system; empty where it can."""
    system = SYSTEMS[name]
    if system.agreement and os.environ.get(system.agreement) != "1":
        return f"its license obliges you ({system.license}). If you accept it, set {system.agreement}=1"
    if not uv():
        return "it runs in an environment that uv makes, and uv is missing. Install it: pip install uv"
    if system.needs_gpu and "cuda" not in device.available_devices():
        return "it needs an NVIDIA GPU, and torch sees none here"
    return ""


def _run(name: str, reference: Reference, lines: Sequence[tuple[str, int]]) -> Iterator[tuple[Path, str]]:
    """Run a system; yield for each (text, seed) the WAV that it wrote, and its error, empty where there is none."""
    if reason := unavailable_reason(name):
        raise KitError(reason)
    print(describe(name))
    with tempfile.TemporaryDirectory(prefix="tts_kit-") as scratch, (Path(scratch) / "log.txt").open("w+b") as log:
        folder = Path(scratch)
        rate = audio.probe(reference.path)[0]
        audio.write(folder / "reference.wav", audio.read(reference.path, rate), rate)
        job = {"function": name.replace("-", "_"), "reference": str(folder / "reference.wav"),
               "transcript": text.normalize(reference.text), "lines": lines}
        # a session of its own, so that Ctrl-C reaches tts_kit alone, which then ends the process and all its children
        with subprocess.Popen(command(name), bufsize=0, env=environment(name), cwd=folder, stdin=subprocess.PIPE,
                              stdout=subprocess.PIPE, stderr=log, start_new_session=True) as process:
            try:
                with contextlib.suppress(BrokenPipeError):
                    process.stdin.write(json.dumps(job).encode() + b"\n")
                if error := _next_error(process, log, TIME_LIMITS[0], "to install and load"):
                    raise KitError(error)
                for number in tqdm(range(len(lines)), desc=name, unit="clip"):
                    yield folder / f"{number}.wav", _next_error(process, log, TIME_LIMITS[1], "for a line")
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)


def _next_error(process: subprocess.Popen, log: BinaryIO, seconds: float, task: str) -> str:
    """Return what the runner replies to the next line of its job: an error, empty where there is none."""
    if not select.select([process.stdout], [], [], seconds)[0]:
        raise KitError(f"it took more than {seconds:g} seconds {task} and was stopped")
    if reply := process.stdout.readline():
        return json.loads(reply)[:MAX_REASON]
    log.seek(0)
    message = " ".join(log.read().decode("utf-8", "replace").split())
    raise KitError(message[-MAX_REASON:] or "it ended without a message")


def describe(name: str) -> str:
    """Return what is about to be installed, on which terms, in one line."""
    system = SYSTEMS[name]
    voice = "clones the reference" if system.clones else "speaks with a voice of its own"
    return (f"{name}: {', '.join(system.packages)}; weights about {system.gigabytes:g} GB, {system.license}; {voice}"
            f"{', the same for every seed' * system.deterministic}.")


def uv() -> str:
    """Return where uv is, which makes the environments; empty where it is not installed."""
    installed = Path(sys.executable).with_name("uv")  # in a virtual environment that is not activated
    return shutil.which("uv") or (str(installed) if installed.is_file() else "")


def command(name: str) -> list[str]:
    """Return the command that runs the runner in the environment of a system, which uv keeps in its cache."""
    packages = [word for package in SYSTEMS[name].packages for word in ("--with", package)]
    return [uv(), "run", "--quiet", "--isolated", "--no-project", "--python", PYTHON, *packages, "python", "-I", str(RUNNER)]


def environment(name: str) -> dict[str, str]:
    """Return the variables of a system's process: no secret of the user but the token that its weights need."""
    system = SYSTEMS[name]
    passed = PASSED_VARIABLES | {system.agreement} | ({"HF_TOKEN"} if system.needs_token else set())
    # otherwise the hub's client sends the token that it finds on disk
    no_token = {} if system.needs_token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    return {variable: value for variable, value in os.environ.items() if variable in passed} | no_token
