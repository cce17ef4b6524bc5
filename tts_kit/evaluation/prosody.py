"""How a clip is spoken: how long, how high, and how both compare with real clips."""

import statistics
from collections.abc import Iterable

import numpy as np

from tts_kit import audio
from tts_kit.data import audio_stats
from tts_kit.data.manifest import SAMPLE_RATE as HEARD_AT

SEMITONES = 12.0
"""In an octave."""


def seconds(samples: np.ndarray, rate: int) -> float:
    """From the first sound to the last of (samples,); pauses in between are part of speaking."""
    return round(len(audio.trim(samples, rate, 0.0, 0.0)) / rate, 3)


def pitch(samples: np.ndarray, rate: int) -> float | None:
    """Hertz of (samples,), the median of its voiced moments; None where there is none."""
    return audio_stats.pitch(audio.resample(samples, rate, HEARD_AT)) or None


def semitones(seen: float | None, usual: float | None) -> float | None:
    """How much higher `seen` is than `usual`, lower where negative; None where either is unknown."""
    return SEMITONES * float(np.log2(seen / usual)) if seen and usual else None


def ratio(seen: float | None, usual: float | None) -> float | None:
    """1 where both are alike; None where either is unknown."""
    return seen / usual if seen and usual else None


def usual(values: Iterable[float | None]) -> float | None:
    """The median of what is known."""
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None
