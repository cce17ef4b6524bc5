"""How far a copy is from a sound: spectra at several scales, and discriminators that learn what gives copies away."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FLOOR = 1e-4
"""Amplitude below which nothing is heard: -80 dB of full scale."""


class Spectra(nn.Module):
    """Distances between waves (batch, samples), over windows of several lengths."""

    def __init__(self, rate: int, windows: Sequence[int] = (256, 512, 1024, 2048)):
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            self.register_buffer(f"shape_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel_{window}", mel_filters(min(80, window // 12), window, rate), persistent=False)

    def forward(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Mean over the windows of: absolute difference of log-mel spectra, and half the share of energy that is wrong."""
        total = 0
        for window in self.windows:
            shape, filters = getattr(self, f"shape_{window}"), getattr(self, f"mel_{window}")
            ours, theirs = magnitudes(made, shape), magnitudes(real, shape)
            mel = ((filters @ ours + FLOOR).log() - (filters @ theirs + FLOOR).log()).abs().mean()
            wrong = (ours - theirs).square().sum((1, 2)).add(1e-12).sqrt() / (theirs.square().sum((1, 2)).sqrt() + FLOOR)
            total = total + mel + 0.5 * wrong.mean()
        return total / len(self.windows)


def magnitudes(waves: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Waves (batch, samples) as (batch, bins, frames); a sine's magnitude is its amplitude."""
    found = transform(waves, shape)
    # not abs(), whose gradient at silence is not a number
    return (found.real.square() + found.imag.square() + 1e-14).sqrt()


def transform(waves: torch.Tensor, shape: torch.Tensor) -> torch.Tensor:
    """Complex spectrum (batch, bins, frames) with a quarter of the window as hop."""
    window = len(shape)
    return torch.stft(waves, window, window // 4, window=shape, return_complex=True) * (2 / shape.sum())


def mel_filters(bands: int, window: int, rate: int) -> torch.Tensor:
    """Triangles (bands, window // 2 + 1) with equal steps on the mel scale, none narrower than one frequency bin."""
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = 700 * (10 ** (np.linspace(0, np.log10(1 + rate / 2 / 700), bands + 2)) - 1)
    half_width = np.maximum(edges[2:] - edges[:-2], 2 * frequencies[1]) / 2
    triangles = np.maximum(0, 1 - np.abs(frequencies - edges[1:-1, None]) / half_width[:, None])
    return torch.from_numpy(triangles).float()


class Discriminator(nn.Module):
    """Judges patches of the complex spectrum at one window length, as EnCodec's does."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.register_buffer("shape", torch.hann_window(window), persistent=False)
        # (dilation in time, stride in frequency): each layer hears longer and lower
        inner = [_convolution(channels, channels, (3, 7), stride=(1, 2), dilation=(dilation, 1)) for dilation in (1, 2, 4)]
        self.layers = nn.ModuleList([_convolution(2, channels, (3, 7), stride=(1, 2)), *inner,
                                     _convolution(channels, channels, (3, 3))])
        self.last = _convolution(channels, 1, (3, 3))

    def forward(self, waves: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Waves (batch, samples) -> a verdict per patch, above 0 for real, and the features it rests on."""
        found = transform(waves.float(), self.shape).transpose(1, 2)
        # the root keeps quiet partials in sight of the loud ones
        scale = (found.real.square() + found.imag.square() + FLOOR ** 2) ** -0.25
        hidden, features = torch.stack([found.real * scale, found.imag * scale], 1), []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.last(hidden), features


def _convolution(inner: int, outer: int, kernel: tuple[int, int], stride=(1, 1), dilation=(1, 1)) -> nn.Module:
    padding = tuple((size - 1) * spread // 2 for size, spread in zip(kernel, dilation))
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(inner, outer, kernel, stride, padding, dilation))


class Adversary(nn.Module):
    """Discriminators at several window lengths, with hinge losses."""

    def __init__(self, windows: Sequence[int] = (256, 512, 1024), channels: int = 16):
        super().__init__()
        self.judges = nn.ModuleList([Discriminator(window, channels) for window in windows])

    def unmasking(self, made: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """The discriminators' own loss: real above 1, made below -1."""
        losses = [F.relu(1 - judge(real)[0]).mean() + F.relu(1 + judge(made.detach())[0]).mean() for judge in self.judges]
        return torch.stack(losses).mean()

    def deceit(self, made: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The codec's losses: being taken for real, and having the features of the real."""
        fooling, likeness = [], []
        for judge in self.judges:
            verdict, ours = judge(made)
            with torch.no_grad():
                _, theirs = judge(real)
            fooling.append(F.relu(1 - verdict).mean())
            likeness += [(mine - wanted).abs().mean() / wanted.abs().mean().clamp(min=1e-5)
                         for mine, wanted in zip(ours, theirs)]
        return torch.stack(fooling).mean(), torch.stack(likeness).mean()
