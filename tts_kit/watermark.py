"""An inaudible mark in speech that a machine made, and finding it again: Perth's network, by Resemble AI (MIT).

The mark is Perth's own, one and the same for all who use it: it says that a machine spoke, not which one. Of Perth's package
only the weights are read, and nothing is imported: it wants torchaudio, and opens the weights by unpickling.
"""

import functools
import hashlib
import importlib.metadata
import io
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import torch
from torch import nn
from torch.nn import functional

from tts_kit import audio
from tts_kit.errors import KitError

PACKAGE, VERSION = "resemble-perth", "1.0.1"
WEIGHTS = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
SHA256 = "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670"
RATE, WINDOW, HOP = 32_000, 2_048, 320
"""Samples a second, of one spectrum, and from one to the next, as Perth was trained."""
BANDS, WIDTH = 128, 256
"""Frequencies below 2 kHz, where the mark is; the network's width."""
FLOOR, RANGE = -180.0, 195.0
"""Decibels that are a level of 0, and how many more are 1."""
LOUD = 0.05
"""Of the loudest spectrum's levels; only digital silence is below, and carries no mark."""
SPECTRA = RATE // HOP
"""A second."""
PIECE, AROUND = 10.0, 0.25
"""Seconds that are marked or looked at in one go, and how much the network hears before and after."""
SURE, SURE_OF_LITTLE, LITTLE = 0.5, 0.8, 3.0
"""What `detect` gives of marked speech is SURE or more; some people's speech comes near it, and in less than LITTLE seconds
above it, so that little sound needs more."""


def apply(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) with the mark in it, float32 and within [-1, 1]; the same each time; silence as it came."""
    return np.concatenate([np.zeros(0, np.float32), *apply_stream([samples], rate)])


def apply_stream(chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """What `mark` makes of the chunks (samples,) joined, in other chunks and AROUND seconds of sound later."""
    # pieces begin where a spectrum begins, so that the mark goes on as if nothing had been cut
    step = rate // math.gcd(rate, SPECTRA)
    around = math.ceil(AROUND * rate / step) * step
    held, done = np.zeros(0, np.float32), 0
    for chunk in _pieces(chunks, rate):
        held = np.concatenate([held, chunk])
        ready = (len(held) - around) // step * step
        if ready > done:
            yield _marked(held, rate, done, ready)
            passed = max(0, ready - around)
            held, done = held[passed:], ready - passed
    if len(held) > done:
        yield _marked(held, rate, done, len(held))


def detect(samples: np.ndarray, rate: int) -> float:
    """How sure it is, 0 to 1, that (samples,) hold the mark: of the surest PIECE seconds; 0 in silence."""
    samples = _checked(samples)
    length, pieces = round(PIECE * rate), max(1, round(len(samples) / (PIECE * rate)))
    parts = [samples[number * length:(number + 1) * length if number + 1 < pieces else None] for number in range(pieces)]
    return max(_seen(part, rate) for part in parts)


def min_score(seconds: float) -> float:
    """How sure `detect` must be of so much sound."""
    return SURE if seconds >= LITTLE else SURE_OF_LITTLE


def detect_file(path: str | Path) -> tuple[float, bool]:
    """How sure `detect` is of a sound file of any length and rate, read piece by piece, and whether that is enough."""
    sure, seconds = 0.0, 0.0
    blocks, rate = _blocks(path)
    try:
        for piece in _whole(blocks):
            if not np.isfinite(piece).all():
                raise KitError(f"{path} holds samples that are not numbers (NaN or infinity). Export it again.")
            sure, seconds = max(sure, detect(piece, rate)), seconds + len(piece) / rate
    except audio.UNREADABLE as error:
        raise KitError(f"{path} breaks off ({str(error).rstrip('.')}). Copy it again from the original.") from error
    return sure, sure >= min_score(seconds)


def report_files(paths: Iterable[str | Path]) -> int:
    """Print of each file whether it has the mark; 0 where all have it, 1 where one has not, 2 where one cannot be read."""
    network()
    worst = 0
    for path in paths:
        try:
            sure, enough = detect_file(path)
        except KitError as problem:
            print(problem, file=sys.stderr)
            worst = 2
            continue
        worst = max(worst, int(not enough))
        print(f"{path}: " + (f"marked as made by a machine ({sure:.2f} of 1)." if enough else
                             f"no mark found ({sure:.2f} of 1), which does not prove that a person spoke."))
    return worst


@functools.cache
def network() -> "Perth":
    """Perth's network with its weights; a Problem where they are not installed, or are not those that were tested."""
    try:
        path = Path(importlib.metadata.distribution(PACKAGE).locate_file(WEIGHTS))
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise KitError(f"{PACKAGE} is not installed, which marks speech as made by a machine. Install it: pip install "
                      f"--no-deps {PACKAGE}=={VERSION}. With --no-watermark speak, serve and export do without.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise KitError(f"{path} is not the file of {PACKAGE} {VERSION} (another SHA-256) and was not opened. Install that: "
                      f"pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}")
    found = Perth()
    # the file is torch's archive: a pickle, which is left alone, and every tensor's plain numbers under its place in line
    with zipfile.ZipFile(io.BytesIO(content)) as archive, torch.no_grad():
        for number, weight in enumerate(found.parameters()):
            numbers = np.frombuffer(archive.read(f"archive/data/{number}"), np.float32).copy()
            weight.copy_(torch.from_numpy(numbers).view_as(weight))
    return found.eval().requires_grad_(False)


class Layer(nn.Module):
    """A convolution over time, and a bend after it."""

    def __init__(self, bands: int, width: int, kernel: int, bends: bool = True):
        super().__init__()
        self.conv, self.bends = nn.Conv1d(bands, width, kernel, padding=kernel // 2), bends

    def forward(self, levels: torch.Tensor) -> torch.Tensor:
        return functional.leaky_relu(self.conv(levels)) if self.bends else self.conv(levels)


class Perth(nn.Module):
    """What the mark adds to levels (1, frequencies, frames), and whether it is in them; weights in the file's order."""

    def __init__(self):
        super().__init__()
        self.adds = _layers(BANDS)
        self.slow, self.normal, self.fast = _layers(2), _layers(2), _layers(2)

    def added(self, levels: torch.Tensor) -> torch.Tensor:
        """(1, BANDS, frames) to be added."""
        return self.adds(levels[:, :BANDS]) * _loud(levels)

    def seen(self, levels: torch.Tensor) -> float:
        """Three looks, at its own pace and at two others, as speech may be stretched; each says how much it counts."""
        looks = torch.stack([self._look(self.slow, levels, 1.25), self._look(self.normal, levels, 1.0),
                             self._look(self.fast, levels, 0.75)])
        return float((looks[:, 0].softmax(0) * looks[:, 1]).sum())

    @staticmethod
    def _look(layers: nn.Module, levels: torch.Tensor, pace: float) -> torch.Tensor:
        """(2,): how much this look counts, and what it sees."""
        bands, loud = levels[:, :BANDS], _loud(levels)
        if pace != 1.0:
            frames = int(levels.shape[2] * pace)
            bands = functional.interpolate(bands, frames, mode="linear", align_corners=True)
            loud = functional.interpolate(loud, frames, mode="nearest")
        return (layers(bands) * loud).sum(2)[0] / loud.sum()


def _layers(out: int) -> nn.Sequential:
    return nn.Sequential(Layer(BANDS, WIDTH, 1), *(Layer(WIDTH, WIDTH, 7) for _ in range(5)), Layer(WIDTH, out, 1, False))


def _loud(levels: torch.Tensor) -> torch.Tensor:
    """(1, 1, frames): 1 where there is sound."""
    total = levels.sum(1, keepdim=True)
    return (total > total.max() * LOUD).float()


def _pieces(chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """The chunks, long ones cut: a long one would need memory for the spectra of all of it."""
    length = round(PIECE * rate)
    for chunk in map(_checked, chunks):
        yield from (chunk[start:start + length] for start in range(0, len(chunk), length))


def _blocks(path: str | Path) -> tuple[Iterator[np.ndarray], int]:
    """(samples,) or (samples, channels) at a time, and their rate; what libsndfile cannot read FFmpeg may."""
    try:
        rate = soundfile.info(str(path)).samplerate
    except audio.UNREADABLE:
        return audio.read_blocks(path, RATE), RATE
    return soundfile.blocks(str(path), round(PIECE * rate), dtype="float32"), rate


def _whole(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The blocks in mono, with a short last one at the end of the one before: alone it would be too little to judge by."""
    last = np.zeros(0, np.float32)
    for block in blocks:
        block = block.reshape(len(block), -1).mean(axis=1)
        if len(block) < len(last) / 2:
            block = np.concatenate([last, block])
        elif len(last):
            yield last
        last = block
    if len(last):
        yield last


def _checked(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise KitError(f"a mark needs (samples,) of finite numbers; these are of shape {samples.shape}"
                      f"{' and not all numbers' * (not np.isfinite(samples).all())}. Mix them to one channel, or leave "
                      "this clip out.")
    return samples


def _spectra(samples: np.ndarray, rate: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """(1, frequencies, frames) complex, their levels, and the samples at RATE that they stand for."""
    wave = audio.resample(samples, rate, RATE)
    padded = torch.from_numpy(np.pad(wave, (0, max(0, WINDOW - len(wave)))))
    spectra = torch.stft(padded[None], WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    return spectra, (20 * spectra.abs().clip(10 ** (FLOOR / 20)).log10() - FLOOR) / RANGE, len(padded)


@torch.inference_mode()
def _marked(heard: np.ndarray, rate: int, begin: int, end: int) -> np.ndarray:
    """`heard` from `begin` to `end` with the mark; the rest is there to be heard by the network."""
    if not np.any(heard):
        return heard[begin:end].copy()
    spectra, levels, length = _spectra(heard, rate)
    change = torch.zeros_like(spectra)
    change[:, :BANDS] = spectra[:, :BANDS] * (10 ** (network().added(levels) * RANGE / 20) - 1)
    # only what is added goes through the resampler: the speech keeps its samples, and all that is above 2 kHz
    added = torch.istft(change, WINDOW, HOP, window=torch.hann_window(WINDOW), length=length)[0].numpy()
    added = audio.resample(added, RATE, rate)[begin:end]
    return (heard[begin:end] + np.pad(added, (0, end - begin - len(added)))).clip(-1, 1)


@torch.inference_mode()
def _seen(samples: np.ndarray, rate: int) -> float:
    if not np.any(samples):
        return 0.0
    return min(1.0, max(0.0, network().seen(_spectra(samples, rate)[1])))
