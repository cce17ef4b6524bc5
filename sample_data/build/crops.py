"""Batches of crops out of many waves, each decided by its step's number alone, so that a resumed training repeats none."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from sample_data.build.codec_config import CodecRecipe
from tts_kit import audio
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec

GAINS = (0.4, 1.1)


class Crops:
    """Every moment of the speech is equally likely; the batch after the one asked for is made in the background."""

    def __init__(self, waves: Sequence[np.ndarray], spec: ModelSpec, config: CodecRecipe,
                 features: Sequence[np.ndarray] | None = None):
        if not any(len(wave) for wave in waves):
            raise KitError("there is no speech to train the codec on. Give a corpus that holds some.")
        self.waves, self.spec, self.config, self.features = waves, spec, config, features
        self.ends = np.cumsum([len(wave) for wave in waves])
        self.frames = max(1, round(config.seconds * spec.frame_rate))
        self.samples = self.frames * spec.samples_per_frame
        self._maker = ThreadPoolExecutor(1)
        self._ahead: dict[int, Future] = {}

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """`waves` (batch, samples), `levels` (batch,) and, with a teacher, `features` (batch, frames, width)."""
        ready = self._ahead.pop(step, None)
        self._ahead = {step + 1: self._maker.submit(self.make, step + 1)}
        return ready.result() if ready else self.make(step)

    def make(self, step: int) -> dict[str, torch.Tensor]:
        chance = np.random.default_rng([self.config.seed, step])
        crops = [self._crop(chance) for _ in range(self.config.batch)]
        books = self.spec.num_codebooks
        levels = np.where(chance.random(len(crops)) < self.config.all_levels, books,
                          chance.integers(1, books + 1, len(crops)))
        made = {"waves": torch.from_numpy(np.stack([wave for wave, _ in crops])), "levels": torch.from_numpy(levels)}
        if self.features is not None:
            made["features"] = torch.from_numpy(np.stack([features for _, features in crops]))
        return made

    def _crop(self, chance: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        speed = 1 + chance.uniform(-self.config.speed, self.config.speed) * (chance.random() < 0.5)
        moment, gain = int(chance.integers(self.ends[-1])), chance.uniform(*GAINS)
        number = int(np.searchsorted(self.ends, moment, side="right"))
        wave, wanted = self.waves[number], round(self.samples * speed)
        begin = min(moment - (int(self.ends[number]) - len(wave)), max(0, len(wave) - wanted))
        # played in the time of `samples`, a longer cut is a faster one
        cut = audio.resample(wave[begin:begin + wanted], wanted, self.samples)[:self.samples] * np.float32(gain)
        features = None if self.features is None else self._heard(number, begin, speed)
        return np.pad(cut, (0, self.samples - len(cut))), features

    def _heard(self, number: int, begin: int, speed: float) -> np.ndarray:
        """(frames, width) of a crop, read between the frames of the whole wave; zeros behind its end."""
        whole, size = self.features[number].astype(np.float32), self.spec.samples_per_frame
        places = (begin + (np.arange(self.frames) + 0.5) * size * speed) / size - 0.5
        inside = np.clip(places, 0, len(whole) - 1)
        lower = np.floor(inside).astype(int)
        share = (inside - lower)[:, None].astype(np.float32)
        between = whole[lower] * (1 - share) + whole[np.minimum(lower + 1, len(whole) - 1)] * share
        return between * (places < len(whole))[:, None]
