"""Extract features of speech for the first codebook to predict, with the encoder of a Whisper run by faster-whisper."""

import itertools
from collections.abc import Callable

import numpy as np

from tts_kit import audio
from tts_kit.data import transcribe
from tts_kit.errors import KitError

RATE, FRAMES_PER_SECOND, MAX_SECONDS = 16_000, 50, 30


def load(name: str, rate: int, frame_rate: float = 12.5) -> Callable[[np.ndarray], np.ndarray]:
    """Return a function from a wave (samples,) at `rate`, at most 30 s, to features (frames, width) at `frame_rate`.

    `name` is the folder of a Whisper, or `bundled`."""
    model = transcribe.load_whisper(name)

    def extract_features(wave: np.ndarray) -> np.ndarray:
        seconds = len(wave) / rate
        if seconds > MAX_SECONDS:
            raise KitError(f"a clip lasts {seconds:.1f} s; Whisper accepts {MAX_SECONDS} s at once. Make the clips shorter.")
        spectrum = model.feature_extractor(audio.resample(wave, rate, RATE))
        encoded = np.asarray(model.encode(spectrum[:, :2 * FRAMES_PER_SECOND * MAX_SECONDS]), np.float32)[0]
        # the mean of Whisper's frames within each frame of the codec
        edges = np.arange(np.ceil(seconds * frame_rate) + 1) * FRAMES_PER_SECOND / frame_rate
        spans = itertools.pairwise(edges.astype(int))
        return np.stack([encoded[start:max(start + 1, end)].mean(0) for start, end in spans])

    return extract_features
