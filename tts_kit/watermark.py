"""Inaudible watermark in synthetic speech, and its detection: the network of Perth, by Resemble AI (MIT).

The watermark is Perth's own, the same for everyone who uses it: it says that speech is synthetic, not who made it. Only the
weights of Perth's package are read; nothing is imported, because it needs torchaudio and unpickles the weights."""

import functools
import hashlib
import importlib.metadata
import io
import json
import math
import sys
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from tts_kit import audio
from tts_kit.errors import KitError

PACKAGE, VERSION = "resemble-perth", "1.0.1"
WEIGHTS = "perth/perth_net/pretrained/implicit/perth_net_250000.pth.tar"
SHA256 = "a15bce457ebc53ce5e6c9c3f11df78cf7ee2bf9cdab0a798902135b4c4027670"
SAMPLE_RATE, WINDOW, HOP = 32_000, 2_048, 320  # of the spectrogram that Perth was trained on
BANDS, HIDDEN_SIZE = 128, 256  # frequencies below 2 kHz, which carry the watermark; channels of the network
MIN_DB, RANGE_DB = -180.0, 195.0  # a magnitude of MIN_DB is 0 to the network, RANGE_DB more is 1
SILENCE = 0.05  # share of the loudest frame's magnitude; only digital silence is below it, and carries no watermark
BLOCK_SECONDS, CONTEXT_SECONDS = 10.0, 0.25  # audio that is processed at once, and what the network sees before and after it
MIN_SCORE, MIN_SCORE_SHORT, SHORT_SECONDS = 0.5, 0.8, 3.0
"""`detect` gives marked speech MIN_SCORE or more; some human speech comes close, and exceeds it in less than SHORT_SECONDS,
so that short audio needs MIN_SCORE_SHORT."""


def apply(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return (samples,) with the watermark, float32 within [-1, 1]; deterministic; silence is unchanged."""
    return np.concatenate([np.zeros(0, np.float32), *apply_stream([samples], rate)])


def apply_stream(chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Yield the watermarked chunks (samples,), cut elsewhere and CONTEXT_SECONDS later; joined they equal `apply`."""
    # blocks begin where a frame of the spectrogram begins, so that the watermark continues as if nothing had been cut
    step = rate // math.gcd(rate, SAMPLE_RATE // HOP)
    context = math.ceil(CONTEXT_SECONDS * rate / step) * step
    buffer, done = np.zeros(0, np.float32), 0
    for chunk in _short_chunks(chunks, rate):
        buffer = np.concatenate([buffer, chunk])
        ready = (len(buffer) - context) // step * step
        if ready > done:
            yield _apply_to(buffer, rate, done, ready)
            passed = max(0, ready - context)
            buffer, done = buffer[passed:], ready - passed
    if len(buffer) > done:
        yield _apply_to(buffer, rate, done, len(buffer))


def detect(samples: np.ndarray, rate: int) -> float:
    """Return a score from 0 to 1 that (samples,) carry the watermark: the highest of any block; 0 for silence."""
    samples = _check(samples)
    length, count = round(BLOCK_SECONDS * rate), max(1, round(len(samples) / (BLOCK_SECONDS * rate)))
    return max(_score(samples[number * length:(number + 1) * length if number + 1 < count else None], rate)
               for number in range(count))


def min_score(seconds: float) -> float:
    """Return the score from which audio of this duration counts as watermarked."""
    return MIN_SCORE if seconds >= SHORT_SECONDS else MIN_SCORE_SHORT


def detect_file(path: str | Path) -> tuple[float, bool]:
    """Return the score of an audio file of any length, read in blocks, and whether it counts as watermarked."""
    score, seconds = 0.0, 0.0
    for block in audio.read_blocks(path, SAMPLE_RATE, min_rate=0):
        if seconds == 0 or len(block) >= SHORT_SECONDS * SAMPLE_RATE:  # a short end is not scored alone
            score = max(score, detect(block, SAMPLE_RATE))
        seconds += len(block) / SAMPLE_RATE
    return score, score >= min_score(seconds)


def report_files(paths: Iterable[str | Path], as_json: bool = False) -> int:
    """Print whether each file is watermarked; return 0 if all are, 1 if one is not, 2 if one cannot be read."""
    network()
    status = 0
    for path in paths:
        try:
            score, is_marked = detect_file(path)
            print(json.dumps({"file": str(path), "watermarked": is_marked, "score": round(score, 4)}) if as_json else
                  f"{path}: " + (f"watermarked as synthetic speech (score {score:.2f} of 1)." if is_marked else
                                 f"no watermark found (score {score:.2f} of 1), which does not prove that a person spoke."))
            status = max(status, int(not is_marked))
        except KitError as problem:
            if as_json:
                print(json.dumps({"file": str(path), "error": str(problem)}))
            print(problem, file=sys.stderr)
            status = 2
    return status


@functools.cache
def network() -> "Perth":
    """Return Perth's network; raises a KitError if its weights are not installed, or not those that were tested."""
    try:
        path = Path(importlib.metadata.distribution(PACKAGE).locate_file(WEIGHTS))
        content = path.read_bytes()
    except (importlib.metadata.PackageNotFoundError, OSError) as error:
        raise KitError(f"{PACKAGE} is not installed, which watermarks synthetic speech. Install it: pip install "
                       f"--no-deps {PACKAGE}=={VERSION}. With --no-watermark speak, serve and export do without.") from error
    if hashlib.sha256(content).hexdigest() != SHA256:
        raise KitError(f"{path} is not the file of {PACKAGE} {VERSION} (another SHA-256) and was not opened. Install that: "
                       f"pip install --no-deps --force-reinstall {PACKAGE}=={VERSION}")
    perth = Perth()
    # a torch archive holds a pickle, which is not opened, and the plain numbers of every tensor in a file of its own
    with zipfile.ZipFile(io.BytesIO(content)) as archive, torch.no_grad():
        for number, weight in enumerate(perth.parameters()):
            values = np.frombuffer(archive.read(f"archive/data/{number}"), np.float32).copy()
            weight.copy_(torch.from_numpy(values).view_as(weight))
    return perth.eval().requires_grad_(False)


class Perth(nn.Module):
    """Encoder and decoder of the watermark on log magnitudes (1, frequencies, frames); parameters in the file's order."""

    def __init__(self):
        super().__init__()
        self.encoder = _layers(BANDS)
        self.slow_decoder, self.decoder, self.fast_decoder = _layers(2), _layers(2), _layers(2)

    def encode(self, magnitudes: torch.Tensor) -> torch.Tensor:
        """Return what the watermark adds to the lowest bands, (1, BANDS, frames)."""
        return self.encoder(magnitudes[:, :BANDS]) * _active(magnitudes)

    def decode(self, magnitudes: torch.Tensor) -> float:
        """Return the score, a weighted mean of three speeds, because speech may have been stretched."""
        outputs = []
        for decoder, speed in ((self.slow_decoder, 1.25), (self.decoder, 1.0), (self.fast_decoder, 0.75)):
            frames = int(magnitudes.shape[2] * speed)
            bands = functional.interpolate(magnitudes[:, :BANDS], frames, mode="linear", align_corners=True)
            active = functional.interpolate(_active(magnitudes), frames, mode="nearest")
            outputs.append((decoder(bands) * active).sum(2)[0] / active.sum())
        weights, scores = torch.stack(outputs).T
        return float((weights.softmax(0) * scores).sum())


def _layers(out_channels: int) -> nn.Sequential:
    """Return convolutions over time with a rectifier between them."""
    convolutions = [nn.Conv1d(BANDS, HIDDEN_SIZE, 1), *(nn.Conv1d(HIDDEN_SIZE, HIDDEN_SIZE, 7, padding=3) for _ in range(5))]
    activated = [layer for convolution in convolutions for layer in (convolution, nn.LeakyReLU())]
    return nn.Sequential(*activated, nn.Conv1d(HIDDEN_SIZE, out_channels, 1))


def _active(magnitudes: torch.Tensor) -> torch.Tensor:
    """Return a mask (1, 1, frames): 1 where there is sound."""
    total = magnitudes.sum(1, keepdim=True)
    return (total > total.max() * SILENCE).float()


def _short_chunks(chunks: Iterable[np.ndarray], rate: int) -> Iterator[np.ndarray]:
    """Cut long chunks, whose spectrogram would need much memory."""
    length = round(BLOCK_SECONDS * rate)
    for chunk in map(_check, chunks):
        yield from (chunk[start:start + length] for start in range(0, len(chunk), length))


def _check(samples: np.ndarray) -> np.ndarray:
    samples = np.asarray(samples, np.float32)
    if samples.ndim != 1 or not np.isfinite(samples).all():
        raise KitError(f"a watermark needs (samples,) of finite numbers, without NaN; these are of shape {samples.shape}. "
                       "Mix them to one channel, or leave this clip out.")
    return samples


def _spectrogram(samples: np.ndarray, rate: int) -> tuple[torch.Tensor, torch.Tensor, int]:
    """Return a complex spectrogram (1, frequencies, frames), its scaled log magnitudes, and its samples at SAMPLE_RATE."""
    wave = audio.resample(samples, rate, SAMPLE_RATE)
    padded = torch.from_numpy(np.pad(wave, (0, max(0, WINDOW - len(wave)))))
    spectrogram = torch.stft(padded[None], WINDOW, HOP, window=torch.hann_window(WINDOW), return_complex=True)
    magnitudes = (20 * spectrogram.abs().clip(10 ** (MIN_DB / 20)).log10() - MIN_DB) / RANGE_DB
    return spectrogram, magnitudes, len(padded)


@torch.inference_mode()
def _apply_to(samples: np.ndarray, rate: int, begin: int, end: int) -> np.ndarray:
    """Return samples[begin:end] with the watermark; the rest is context for the network."""
    if not np.any(samples):
        return samples[begin:end].copy()
    spectrogram, magnitudes, length = _spectrogram(samples, rate)
    change = torch.zeros_like(spectrogram)
    change[:, :BANDS] = spectrogram[:, :BANDS] * (10 ** (network().encode(magnitudes) * RANGE_DB / 20) - 1)
    # only the watermark is resampled: the speech keeps its samples, and everything above 2 kHz
    added = torch.istft(change, WINDOW, HOP, window=torch.hann_window(WINDOW), length=length)[0].numpy()
    added = audio.resample(added, SAMPLE_RATE, rate)[begin:end]
    return (samples[begin:end] + np.pad(added, (0, end - begin - len(added)))).clip(-1, 1)


@torch.inference_mode()
def _score(samples: np.ndarray, rate: int) -> float:
    if not np.any(samples):
        return 0.0
    return min(1.0, max(0.0, network().decode(_spectrogram(samples, rate)[1])))
