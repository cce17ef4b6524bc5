"""Clips -> what is said in them and how sure the transcriber is; a second transcriber shows where to doubt the first.

In goes the folder of a cut recording; out comes one table beside its clips for each transcriber, a row for each clip.
"""

import dataclasses
import functools
import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, io, text
from tts_kit.data import segment, whisper_weights
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, reason

RATE = 16_000
USUAL = {"cuda": "large-v3-turbo"}
ELSEWHERE = "small"
SAVE_EVERY = 10
LISTENED = 30
"""Seconds by which the language is told."""
SMALLER = {"large-v3-turbo": "small", "large-v3": "small", "medium": "small", "small": "base", "base": "tiny",
           whisper_weights.BUNDLED: whisper_weights.TINY}
"""Who doubts whom."""
SLOWER = 1.08
"""How much longer a clip lasts when it is heard a second time."""


@dataclass(frozen=True)
class Transcript:
    """What one transcriber makes of one clip."""
    file: str
    text: str
    """Normalised; empty where it heard nothing that can be spoken."""
    original_text: str
    """As the transcriber wrote it."""
    confidence: float
    """Geometric mean of the probabilities of its tokens, 0 to 1."""
    silence: float
    """Probability that nobody speaks."""
    language: str = ""
    """Two letters: what it was heard as."""


@dataclass(frozen=True)
class Transcriber:
    name: str
    write: Callable[[np.ndarray, str], tuple[str, float, float]]
    """((samples,) at 16 kHz, language) -> words, confidence, silence."""
    tell: Callable[[np.ndarray], str]
    """(samples,) at 16 kHz -> the language's two letters."""
    only: str = ""
    """The one language it knows, empty for many."""


def load(name: str, device_config: DeviceConfig) -> Transcriber:
    """A Whisper by name or folder, `bundled` for the one in two wheels, or the usual one of the device for ""."""
    try:
        from faster_whisper import WhisperModel
    except ImportError as error:
        raise KitError("writing down what is said needs faster-whisper: pip install faster-whisper -c constraints.txt. Or "
                      "give the clips with a metadata.csv of your own.") from error
    name = name or USUAL.get(device_config.device, ELSEWHERE)
    device, kind = ("cuda", "float16") if device_config.device == "cuda" else ("cpu", "int8")
    try:
        model = WhisperModel(whisper_weights.place(name), device=device, compute_type=kind)
    except (OSError, ValueError, RuntimeError) as error:
        raise KitError(f"the transcriber {name!r} could not be loaded ({reason(error)}). Give a name that faster-whisper "
                      "knows (tiny, base, small, medium, large-v3-turbo), a folder, or "
                      f"{whisper_weights.BUNDLED!r} where there is no hub.") from error
    return Transcriber(name, functools.partial(_write, model), lambda samples: model.detect_language(samples)[0],
                       "" if model.model.is_multilingual else "en")


def second_pass_model(first: Transcriber, device_config: DeviceConfig) -> Transcriber:
    """Who hears everything again: a smaller network, which errs elsewhere; the first one, slowly, where there is none or
    where it does not know the language."""
    slow = slowed(first)
    if first.name not in SMALLER:
        return slow
    try:
        other = load(SMALLER[first.name], device_config)
    except KitError as problem:
        print(f"{first.name} hears everything twice itself, slower the second time: {problem}")
        return slow

    def write(samples: np.ndarray, language: str) -> tuple[str, float, float]:
        return (other if other.only in ("", language) else slow).write(samples, language)

    return dataclasses.replace(other, write=write, tell=first.tell)


def slowed(one: Transcriber) -> Transcriber:
    """The same transcriber, hearing every clip slower and lower: what it then writes otherwise, it only guessed."""
    def write(samples: np.ndarray, language: str) -> tuple[str, float, float]:
        return one.write(audio.resample(samples, RATE, round(SLOWER * RATE)), language)

    return dataclasses.replace(one, name=f"{one.name} slowly", write=write)


def _write(model, samples: np.ndarray, language: str) -> tuple[str, float, float]:
    segments, _ = model.transcribe(samples, language=language, beam_size=5, temperature=0.0, without_timestamps=True,
                                   condition_on_previous_text=False, vad_filter=False)
    heard = list(segments)
    if not heard:
        return "", 0.0, 1.0
    tokens = [max(1, len(each.tokens)) for each in heard]
    confidence = np.exp(np.average([each.avg_logprob for each in heard], weights=tokens))
    return " ".join(each.text.strip() for each in heard), float(confidence), max(each.no_speech_prob for each in heard)


def transcribe(folder: Path, transcriber: Transcriber, language: str = "") -> list[Transcript]:
    """What is said in every kept clip of a cut recording; goes on where it stopped, and is made once."""
    pieces = [piece for piece in segment.read_segments(folder) if not piece.reason]
    table = folder / transcripts_path(transcriber.name)
    done = {each.file: each for each in read(table) if language in ("", each.language)}
    missing = [piece.file for piece in pieces if piece.file not in done]
    language = language or (_language(folder, pieces, transcriber) if missing else "")
    for number, file in enumerate(tqdm(missing, desc=f"{transcriber.name} writes", unit="clip", disable=not missing)):
        done[file] = _heard(folder, file, transcriber, language)
        if number % SAVE_EVERY == 0:
            io.write_rows(table, [dataclasses.asdict(each) for each in done.values()])
    found = [done[piece.file] for piece in pieces]
    io.write_rows(table, [dataclasses.asdict(each) for each in found])
    return found


def read(table: Path) -> list[Transcript]:
    """The rows of a transcriber's table, none where it was never asked."""
    return [Transcript(**row) for row in io.read_rows(table)] if table.is_file() else []


def transcripts_path(name: str) -> str:
    """The table's name for a transcriber; two folders of one name are two transcribers."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", Path(name).name).strip("-.") or "whisper"
    where = "" if Path(name).name == name else f"-{hashlib.sha256(name.encode()).hexdigest()[:6]}"
    return f"heard-{plain}{where}.jsonl"


def check_language(language: str) -> None:
    """Refuse what no Whisper knows, before an hour is cut."""
    from faster_whisper.tokenizer import _LANGUAGE_CODES

    if language and language not in _LANGUAGE_CODES:
        raise KitError(f"language {language!r} is unknown; wanted two letters like en, de or fr, or nothing to have it told "
                      "by the recording.")


def _heard(folder: Path, file: str, transcriber: Transcriber, language: str) -> Transcript:
    original, confidence, silence = transcriber.write(audio.read(folder / file, RATE), language)
    try:
        said = text.normalize(original)
    except KitError:  # nothing that a person could say; the review shows it first
        said = ""
    return Transcript(file, said, original, round(confidence if said else 0.0, 4), round(silence, 4),
                      language)


def _language(folder: Path, pieces: Sequence[segment.Segment], transcriber: Transcriber) -> str:
    """The language of a recording, told once by its first half minute, so that no clip is heard in another."""
    some, seconds = [], 0.0
    for piece in pieces:
        if seconds < LISTENED:
            some.append(audio.read(folder / piece.file, RATE))
            seconds += piece.seconds
    return transcriber.tell(np.concatenate(some)) if some else "en"
