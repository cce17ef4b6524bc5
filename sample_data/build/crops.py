"""Sample batches of random crops from many waves; a batch depends only on its step, so a resumed training repeats none."""

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import torch

from sample_data.build.codec_config import CodecConfig
from tts_kit import audio
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec

GAINS = (0.4, 1.1)


class CropSampler:
    """Samples all times of the speech with equal probability; prepares the next batch in a background thread."""

    def __init__(self, waves: Sequence[np.ndarray], spec: ModelSpec, config: CodecConfig,
                 features: Sequence[np.ndarray] | None = None, rank: int = 0):
        if not any(len(wave) for wave in waves):
            raise KitError("there is no speech to train the codec on. Give a corpus that is not empty.")
        self.waves, self.spec, self.config, self.features, self.rank = waves, spec, config, features, rank
        self.ends = np.cumsum([len(wave) for wave in waves])
        self.frames = max(1, round(config.crop_seconds * spec.frame_rate))
        self.samples = self.frames * spec.samples_per_frame
        self._executor = ThreadPoolExecutor(1)
        self._prefetched: dict[int, Future] = {}

    def batch(self, step: int) -> dict[str, torch.Tensor]:
        """Return `waves` (batch, samples), `levels` (batch,) and, with a teacher, `features` (batch, frames, width).

        `levels` is the number of codebooks that a crop is decoded from."""
        prefetched = self._prefetched.pop(step, None)
        self._prefetched = {step + 1: self._executor.submit(self.sample, step + 1)}
        return prefetched.result() if prefetched else self.sample(step)

    def sample(self, step: int) -> dict[str, torch.Tensor]:
        """Sample the batch of a step in this thread."""
        rng = np.random.default_rng([self.config.seed, step, self.rank])
        crops = [self._crop(rng) for _ in range(self.config.batch_size)]
        num_codebooks = self.spec.num_codebooks
        # squared, so that a good share of the crops with fewer codebooks has only the first
        few = 1 + (num_codebooks * rng.random(len(crops)) ** 2).astype(np.int64)
        levels = np.where(rng.random(len(crops)) < self.config.all_codebooks, num_codebooks, few)
        batch = {"waves": torch.from_numpy(np.stack([wave for wave, _ in crops])), "levels": torch.from_numpy(levels)}
        if self.features is not None:
            batch["features"] = torch.from_numpy(np.stack([features for _, features in crops]))
        return batch

    def _crop(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
        max_change = self.config.speed_perturbation
        speed = 1 + rng.uniform(-max_change, max_change) * (rng.random() < 0.5)
        position, gain = int(rng.integers(self.ends[-1])), rng.uniform(*GAINS)
        index = int(np.searchsorted(self.ends, position, side="right"))
        wave, length = self.waves[index], round(self.samples * speed)
        start = min(position - (int(self.ends[index]) - len(wave)), max(0, len(wave) - length))
        # a longer part, resampled to `samples`, plays faster
        crop = audio.resample(wave[start:start + length], length, self.samples)[:self.samples] * np.float32(gain)
        features = None if self.features is None else self._features_at(index, start, speed)
        return np.pad(crop, (0, self.samples - len(crop))), features

    def _features_at(self, index: int, start: int, speed: float) -> np.ndarray:
        """Interpolate the features (frames, width) of a crop from those of the whole wave; zeros after its end."""
        whole, frame_size = self.features[index].astype(np.float32), self.spec.samples_per_frame
        positions = (start + (np.arange(self.frames) + 0.5) * frame_size * speed) / frame_size - 0.5
        inside = np.clip(positions, 0, len(whole) - 1)
        lower = np.floor(inside).astype(int)
        fraction = (inside - lower)[:, None].astype(np.float32)
        interpolated = whole[lower] * (1 - fraction) + whole[np.minimum(lower + 1, len(whole) - 1)] * fraction
        return interpolated * (positions < len(whole))[:, None]
