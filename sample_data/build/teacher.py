"""A listener whose understanding the first codebook may follow: the encoder of a Whisper, run by faster-whisper."""

import itertools
from collections.abc import Callable

import numpy as np

from tts_kit import audio
from tts_kit.data import transcribe
from tts_kit.errors import KitError

RATE, FRAMES_PER_SECOND, WINDOW = 16_000, 50, 30


def load(name: str, rate: int, frame_rate: float = 12.5) -> Callable[[np.ndarray], np.ndarray]:
    """A function from a wave (samples,) at `rate`, 30 s at most, to features (frames, width) at `frame_rate`; the Whisper by
    its folder, or `bundled`."""
    model = transcribe.load_whisper(name)

    def listen(wave: np.ndarray) -> np.ndarray:
        seconds = len(wave) / rate
        if seconds > WINDOW:
            raise KitError(f"a clip lasts {seconds:.1f} s; Whisper hears {WINDOW} s at once. Cut the clips shorter.")
        spectrum = model.feature_extractor(audio.resample(wave, rate, RATE))
        heard = np.asarray(model.encode(spectrum[:, :2 * FRAMES_PER_SECOND * WINDOW]), np.float32)[0]
        # the mean of what Whisper says within each frame
        edges = np.arange(np.ceil(seconds * frame_rate) + 1) * FRAMES_PER_SECOND / frame_rate
        spans = itertools.pairwise(edges.astype(int))
        return np.stack([heard[begin:max(begin + 1, end)].mean(0) for begin, end in spans])

    return listen
