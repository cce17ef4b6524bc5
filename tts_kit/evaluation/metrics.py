"""What is measured on a clip: which words are heard in it, whose voice it is, how natural it sounds; one protocol."""

import contextlib
import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from tts_kit import audio
from tts_kit.errors import KitError
from tts_kit.evaluation import prosody, wer

SAMPLE_RATE = 16_000
"""Every judge hears this rate, whatever the model speaks at."""
PAD = 0.1
SHORTEST = 0.1
INSTALL = ("pip install -r requirements-judges.txt -c constraints.txt && pip install --no-deps -r "
           "requirements-judges-alone.txt")
WORST_NATURALNESS = 1.0
NO_WORDS = "no words are heard"
SETS = ("auto", "online", "offline", "none")


@dataclass(frozen=True)
class ClipMetrics:
    """What the judges say of one clip; None where a judge broke down or has nothing to say."""
    ref_words: int
    """Words of the text, normalised."""
    word_errors: int | None
    """Words left out, added or replaced; all of them in a clip without sound, None where the text has none."""
    ref_chars: int
    char_errors: int | None
    transcript: str
    """What was written down."""
    failure: str
    """Why nothing could be heard: missing, empty, silent, broken, no words; empty where something could."""
    mos: float | None = WORST_NATURALNESS
    """Predicted opinion, 1 to 5."""
    mos_2: float | None = None
    embedding: np.ndarray | None = None
    """The voice as a direction, of length 1; None in a clip without sound."""
    embedding_2: np.ndarray | None = None
    noise_mos: float | None = None
    """Predicted opinion of the background alone, 1 to 5: how free of noise it is."""
    f0: float | None = None
    """Hertz, the median; None where nothing is voiced."""
    speech_seconds: float = 0.0
    """From the first sound to the last."""
    speech_rate: float | None = None
    """Words heard in a second."""
    failed: dict[str, str] = field(default_factory=dict)
    """Measure -> which judge broke down on this clip, and how."""


@dataclass(frozen=True)
class MetricModels:
    """A set of judges, whichever is installed; each takes (samples,) at 16 kHz."""
    names: dict[str, str]
    """Measure -> judge and version, as results name it."""
    transcribe: Callable[[np.ndarray], str]
    embed_speaker: Callable[[np.ndarray], np.ndarray]
    """The voice as numbers; of two clips, the more alike the smaller the angle between them."""
    rate: Callable[[np.ndarray], float]
    threads: int = 2
    predict_noise_mos: Callable[[np.ndarray], float] | None = None
    embed_speaker_2: Callable[[np.ndarray], np.ndarray] | None = None
    """A second opinion of the voice, and of naturalness, where the set has one."""
    predict_mos_2: Callable[[np.ndarray], float] | None = None

    @property
    def name(self) -> str:
        return name(self.names)

    def judge(self, samples: np.ndarray | None, rate: int, text: str) -> ClipMetrics:
        """All measures of (samples,) that should say `text`; None where there is no clip."""
        if failure := unusable_reason(samples, rate):
            words, letters = wer.length(text)
            worst = WORST_NATURALNESS if self.predict_mos_2 else None
            return ClipMetrics(words, words or None, letters, letters or None, "", failure, WORST_NATURALNESS, worst)
        failed = {}
        heard = self._ask("wer", self.transcribe, levelled(samples, rate), failed)
        (words, letters), wrong = wer.length(text), (None, None)
        if heard is not None:
            wrong = wer.edit_counts(text, heard)
        said, wave = wer.normalize(heard or ""), prepared(samples, rate)
        return ClipMetrics(words, wrong[0], letters, wrong[1], heard or "", NO_WORDS if heard is not None and not said else "",
                         self._ask("mos", self.rate, wave, failed),
                         self._ask("mos_2", self.predict_mos_2, wave, failed),
                         **self._sound(wave, said, failed), failed=failed)

    def know(self, samples: np.ndarray, rate: int, text: str) -> ClipMetrics:
        """What is to be known of a real clip that others are compared with; its words are taken for granted."""
        if failure := unusable_reason(samples, rate):
            raise KitError(f"a clip to compare voices with is {failure}. Leave it out, or record it again.")
        failed, (words, letters) = {}, wer.length(text)
        sound = self._sound(prepared(samples, rate), wer.normalize(text), failed)
        return ClipMetrics(words, None, letters, None, text, "", None, **sound, failed=failed)

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """The voice of (samples,) as a direction of length 1."""
        if failure := unusable_reason(samples, rate):
            raise KitError(f"a clip to compare voices with is {failure}. Leave it out, or record it again.")
        with few_threads(self.threads):
            return _direction(self.embed_speaker, prepared(samples, rate))

    def voice(self, samples: np.ndarray | None, rate: int) -> np.ndarray | None:
        """As `embed`; None where there is nothing to hear or the judge broke down."""
        if unusable_reason(samples, rate):
            return None
        return self._ask("sim", functools.partial(_direction, self.embed_speaker), prepared(samples, rate), {})

    def _sound(self, wave: np.ndarray, said: str, failed: dict[str, str]) -> dict:
        """Voice, noise, pitch and pace of a prepared clip (samples,) in which `said` is heard."""
        seconds = prosody.seconds(wave, SAMPLE_RATE)
        return {"embedding": self._ask("sim", functools.partial(_direction, self.embed_speaker), wave, failed),
                "embedding_2": self._ask("sim_2", self.embed_speaker_2 and functools.partial(_direction, self.embed_speaker_2),
                                         wave, failed),
                "noise_mos": self._ask("noise_mos", self.predict_noise_mos, wave, failed), "f0": prosody.pitch(wave, SAMPLE_RATE),
                "speech_seconds": seconds, "speech_rate": len(said.split()) / seconds if said and seconds else None}

    def _ask(self, measure: str, judge: Callable | None, wave: np.ndarray, failed: dict[str, str]):
        """What a judge says; None where there is none or it broke down, which goes into `failed`."""
        if judge is None:
            return None
        try:
            with few_threads(self.threads):
                found = judge(wave)
            if not isinstance(found, str) and not np.isfinite(found).all():
                raise ValueError("it gave no number")
        except Exception as error:  # any package may raise anything; one clip must not cost the judging of all others
            failed[measure] = f"{self.names.get(measure, measure)}: {type(error).__name__}: {error}"
            return None
        return found


def load(threads: int = 2, device: str = "auto", wanted: str = "") -> MetricModels:
    """The set of judges `wanted` (auto, online or offline; else what TTS_KIT_JUDGES says), on at most `threads` threads.

    auto takes the online set where it is installed and its weights are here or can be fetched; which and why is printed.
    """
    from tts_kit.evaluation import bundled, hub_models

    wanted = _wish(wanted)
    if wanted == "none":
        raise KitError("No judges were asked for, and now some are needed. Change TTS_KIT_JUDGES, or the argument.")
    why = "as asked" if wanted == "offline" else hub_models.lacking(device)
    if not why:
        try:
            found = hub_models.load(threads, device)
            print(f"Judges: {found.name}. The online set, as its packages and weights are here.")
            return found
        except KitError as problem:  # what is fetched may still fail to come
            why = str(problem).rstrip(".")
    if wanted == "online":
        raise KitError(f"The online judges were asked for, and {why}. Install them with: {hub_models.INSTALL}; or ask for auto.")
    found = bundled.load(threads)
    print(f"Judges: {found.name}. The offline set: {why}.")
    return found


def load_available(device: str = "auto", wanted: str = "") -> str:
    """The name of the set that `load` would give without fetching anything, empty where none is installed; nothing heavy
    is imported for it."""
    from tts_kit.evaluation import bundled, hub_models

    wanted = _wish(wanted)
    if wanted == "none":
        return ""
    if wanted != "offline" and not hub_models.missing() and hub_models.is_here(device):
        return name(hub_models.names(device))
    return "" if bundled.missing() or wanted == "online" else name(bundled.names())


def _wish(wanted: str) -> str:
    wanted = wanted or os.environ.get("TTS_KIT_JUDGES", "auto")
    if wanted not in SETS:
        raise KitError(f"{wanted!r} is no set of judges; wanted one of {', '.join(SETS)}. Change TTS_KIT_JUDGES, or the "
                      "argument.")
    return wanted


def name(names: dict[str, str]) -> str:
    """A set of judges in one line; scores of two sets are not compared."""
    return ", ".join(f"{metric.upper().replace('_', ' ')}: {model}" for metric, model in names.items())


def unusable_reason(samples: np.ndarray | None, rate: int) -> str:
    """What keeps (samples,) from being heard, empty where nothing does."""
    if samples is None:
        return "missing"
    if not np.isfinite(samples).all():
        return "broken"
    if len(samples) < SHORTEST * rate:
        return "empty"
    return "silent" if np.abs(samples).max() < audio.SILENCE_LUFS else ""


def read(path: str | Path, rate: int = SAMPLE_RATE) -> np.ndarray | None:
    """A clip as (samples,), silence included; None where there is no file, not a number where it cannot be read."""
    try:
        return audio.read(path, rate)
    except KitError as problem:
        # a silent or unreadable clip is a result and not a mishap
        if not Path(path).is_file():
            return None
        if Path(path).stat().st_size == 0:
            return np.zeros(0, np.float32)
        return np.zeros(rate, np.float32) if str(problem).startswith(f"{path} is silent") else np.full(1, np.nan, np.float32)


def levelled(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) at 16 kHz and at one loudness: judges hear louder speech as another voice."""
    return audio.normalize_loudness(audio.resample(samples, rate, SAMPLE_RATE), SAMPLE_RATE)


def prepared(samples: np.ndarray, rate: int) -> np.ndarray:
    """`levelled`, and with PAD around the voice, whatever silence was there."""
    padded = np.pad(audio.resample(samples, rate, SAMPLE_RATE), (round(PAD * SAMPLE_RATE), 0))
    return audio.normalize_loudness(audio.trim(padded, SAMPLE_RATE, PAD, PAD), SAMPLE_RATE)


def count_wrong_words(text: str, heard: str) -> tuple[int, int]:
    """(words of `text`, words that `heard` has wrong): added words count too, so that it can be more than all."""
    words, wrong = wer.length(text)[0], wer.edit_counts(text, heard)[0]
    return words, wer.length(heard)[0] if wrong is None else wrong


def _direction(embed_speaker: Callable[[np.ndarray], np.ndarray], wave: np.ndarray) -> np.ndarray:
    """(width,) of length 1; not a number where the judge gave nothing."""
    voice = np.asarray(embed_speaker(wave), dtype=np.float64)
    with np.errstate(invalid="ignore"):
        return voice / np.linalg.norm(voice)


@contextlib.contextmanager
def few_threads(most: int) -> Iterator[None]:
    """At most so many threads of torch inside."""
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)
