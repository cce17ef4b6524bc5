"""What can be told of a dataset without listening to it: for every clip its pace, level, noise, pitch, band and voice."""

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio
from tts_kit.data import quality_flags, speaker_embedding
from tts_kit.data.manifest import SAMPLE_RATE, Utterance

FRAME = SAMPLE_RATE // 50
LOWEST, HIGHEST = 60.0, 450.0
"""Hertz between which a voice is looked for."""
VOICED = 0.5
"""Likeness of a frame to itself a period later from which on it has a pitch."""
INAUDIBLE = -70.0
"""Decibels under the strongest band at which a frequency is taken as not recorded."""
SHINGLE, ALIKE = 3, 0.2
"""Words that two texts must share in a row to be compared, and the share that may differ in near-duplicates."""


@dataclass(frozen=True)
class AudioStats:
    """One clip of the data."""
    clip: Utterance
    pace: float
    """Characters a second."""
    level: float
    """LUFS."""
    ratio: float
    """Decibels of its loud moments over its quiet ones."""
    pitch: float
    """Hertz, the median of voiced moments; 0 where none is."""
    bandwidth_hz: float
    """Hertz up to which something was recorded."""
    unlike: float
    """How much less like the usual voice its strangest moment is; 0 where nobody compared voices."""


def measure(utterances: Sequence[Utterance]) -> list[AudioStats]:
    """Every clip is read once; voices are compared where Resemblyzer is installed."""
    compared, rows, sounds = speaker_embedding.is_installed(), [], []
    for clip in tqdm(utterances, desc="measuring", unit="clip"):
        samples = audio.read(clip.audio, SAMPLE_RATE)
        rows.append((clip, len(clip.text) / clip.seconds, audio.loudness(samples, SAMPLE_RATE), snr_db(samples),
                     pitch(samples), bandwidth_hz(samples)))
        sounds.append(speaker_embedding.embed_windows(audio.resample(samples, SAMPLE_RATE, speaker_embedding.SAMPLE_RATE)) if compared else None)
    return [AudioStats(*row, unlike) for row, unlike in zip(rows, speaker_embedding.speaker_outlier_score(sounds))]


def snr_db(samples: np.ndarray) -> float:
    """Decibels between the loud and the quiet moments of (samples,); digital silence is no moment."""
    power = (_frames(samples, FRAME) ** 2).mean(axis=1)
    power = power[power > 1e-10]
    return float(10 * np.log10(np.percentile(power, 95) / np.percentile(power, 10))) if len(power) else 0.0


def pitch(samples: np.ndarray) -> float:
    """Hertz of (samples,) at 24 kHz: the median over the frames that repeat themselves; 0 where none does."""
    slow = audio.resample(samples, SAMPLE_RATE, 16_000).astype(np.float64)
    frames = _frames(slow, 800)  # 50 ms hold three periods of the deepest voice
    frames = frames[(frames ** 2).mean(axis=1) > 0.1 * (frames ** 2).mean()]
    spectra = np.fft.rfft(frames - frames.mean(axis=1, keepdims=True), 2048, axis=1)
    likeness = np.fft.irfft(np.abs(spectra) ** 2, axis=1)[:, :800]
    likeness = likeness / (likeness[:, :1] + 1e-12) / (1 - np.arange(800) / 800)  # later ones overlap less
    first, last = round(16_000 / HIGHEST), round(16_000 / LOWEST)
    best = likeness[:, first:last].max(axis=1, initial=0.0)
    # the earliest peak that is nearly as high: the highest may be twice the period
    early = (likeness[:, first:last] > 0.9 * best[:, None]).argmax(axis=1)
    periods = np.array([first + begin + likeness[row, first + begin:first + begin + 16].argmax()
                        for row, begin in enumerate(early)])
    voiced = best > VOICED
    return float(np.median(16_000 / periods[voiced])) if voiced.any() else 0.0


def bandwidth_hz(samples: np.ndarray) -> float:
    """The highest frequency of (samples,) that is not far under the strongest, in hertz."""
    frames = _frames(samples, 1024) * np.hanning(1024)
    power = (np.abs(np.fft.rfft(frames, axis=1)) ** 2).mean(axis=0)
    power = np.convolve(power, np.ones(5) / 5, "same")
    return float(np.flatnonzero(power > power.max() * 10 ** (INAUDIBLE / 10))[-1] * SAMPLE_RATE / 1024) if power.max() > 0 else 0.0


def near_duplicates(utterances: Sequence[Utterance]) -> list[tuple[Utterance, Utterance]]:
    """Pairs that say nearly the same; the first one of each text stands for the later ones."""
    said_by: dict[tuple[str, ...], list[int]] = defaultdict(list)
    pairs = []
    for number, each in enumerate(utterances):
        words = quality_flags.words(each.text)
        keys = {words[start:start + SHINGLE] for start in range(max(1, len(words) - SHINGLE + 1))}
        earlier = sorted(set(itertools.chain(*(said_by[key] for key in keys))))
        twin = next((other for other in earlier
                     if quality_flags.word_edit_distance(utterances[other].text, each.text) <= ALIKE), None)
        if twin is not None:
            pairs.append((utterances[twin], each))
        for key in keys:
            said_by[key].append(number)
    return pairs


def _frames(samples: np.ndarray, size: int) -> np.ndarray:
    """(frames, size) of whole frames; a shorter clip is one frame, filled up."""
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    return padded[:len(padded) // size * size].reshape(-1, size).astype(np.float64)
