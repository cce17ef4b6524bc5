"""Losses of the codec: a multi-scale spectral loss, and multi-scale STFT discriminators with hinge losses."""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

FLOOR = 1e-4  # inaudible amplitude, -80 dB of full scale, that is added before logarithms and divisions


class SpectralLoss(nn.Module):
    """Distance between waves (batch, samples), over windows of several lengths."""

    def __init__(self, rate: int, windows: Sequence[int] = (256, 512, 1024, 2048)):
        super().__init__()
        self.windows = tuple(windows)
        for window in self.windows:
            self.register_buffer(f"window_{window}", torch.hann_window(window), persistent=False)
            self.register_buffer(f"mel_{window}", mel_filters(min(80, window // 12), window, rate), persistent=False)

    def forward(self, decoded: torch.Tensor, real: torch.Tensor) -> torch.Tensor:
        """Return the mean over the windows of: L1 of log-mel spectra, and half the relative L2 of the spectra."""
        total = 0
        for size in self.windows:
            window, filters = getattr(self, f"window_{size}"), getattr(self, f"mel_{size}")
            decoded_spectrum, real_spectrum = magnitudes(decoded, window), magnitudes(real, window)
            mel = ((filters @ decoded_spectrum + FLOOR).log() - (filters @ real_spectrum + FLOOR).log()).abs().mean()
            error = (decoded_spectrum - real_spectrum).square().sum((1, 2)).add(1e-12).sqrt()
            convergence = error / (real_spectrum.square().sum((1, 2)).sqrt() + FLOOR)
            total = total + mel + 0.5 * convergence.mean()
        return total / len(self.windows)


def magnitudes(waves: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Return the magnitude spectrum (batch, bins, frames) of waves (batch, samples); a sine's is its amplitude."""
    spectrum = stft(waves, window)
    # not abs(), whose gradient at silence is NaN
    return (spectrum.real.square() + spectrum.imag.square() + 1e-14).sqrt()


def stft(waves: torch.Tensor, window: torch.Tensor) -> torch.Tensor:
    """Return the complex spectrum (batch, bins, frames), with a quarter of the window as hop."""
    size = len(window)
    return torch.stft(waves, size, size // 4, window=window, return_complex=True) * (2 / window.sum())


def mel_filters(bands: int, window: int, rate: int) -> torch.Tensor:
    """Return triangular filters (bands, window // 2 + 1) equally spaced in mel, none narrower than one frequency bin."""
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = 700 * (10 ** (np.linspace(0, np.log10(1 + rate / 2 / 700), bands + 2)) - 1)
    half_width = np.maximum(edges[2:] - edges[:-2], 2 * frequencies[1]) / 2
    triangles = np.maximum(0, 1 - np.abs(frequencies - edges[1:-1, None]) / half_width[:, None])
    return torch.from_numpy(triangles).float()


class Discriminator(nn.Module):
    """Classifies patches of the complex spectrum at one window length, as EnCodec's does."""

    def __init__(self, window: int, channels: int):
        super().__init__()
        self.register_buffer("window", torch.hann_window(window), persistent=False)
        width = 2 * channels
        self.layers = nn.ModuleList([
            _convolution(2, channels, (3, 9), stride=(1, 4)),  # the spectra shrink early, which makes it cheap
            _convolution(channels, width, (3, 5), stride=(2, 2)),
            _convolution(width, width, (3, 5), stride=(1, 2)),
            _convolution(width, width, (3, 3))])
        self.last = _convolution(width, 1, (3, 3))

    def forward(self, waves: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return a score for each patch of waves (batch, samples), above 0 for real, and the features of all layers."""
        spectrum = stft(waves.float(), self.window).transpose(1, 2)
        # the square root of the magnitudes, so that quiet partials count beside loud ones, and near 1, or nothing is learned
        scale = 10 * (spectrum.real.square() + spectrum.imag.square() + FLOOR ** 2) ** -0.25
        hidden, features = torch.stack([spectrum.real * scale, spectrum.imag * scale], 1), []
        for layer in self.layers:
            hidden = F.leaky_relu(layer(hidden), 0.2)
            features.append(hidden)
        return self.last(hidden), features


def _convolution(in_channels: int, out_channels: int, kernel: tuple[int, int], stride=(1, 1)) -> nn.Module:
    padding = tuple(size // 2 for size in kernel)
    return nn.utils.parametrizations.weight_norm(nn.Conv2d(in_channels, out_channels, kernel, stride, padding))


class Discriminators(nn.Module):
    """Discriminators at several window lengths, with hinge losses."""

    def __init__(self, windows: Sequence[int] = (256, 512, 1024), channels: int = 16):
        super().__init__()
        self.scales = nn.ModuleList([Discriminator(window, channels) for window in windows])

    def losses(self, decoded: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the discriminators' own loss (scores of real waves above 1, of decoded ones below -1), and the codec's
        adversarial loss and feature matching loss."""
        own, adversarial, feature_matching = [], [], []
        for scale in self.scales:
            (real_score, real_features), (score, features) = scale(real), scale(decoded)
            own.append(F.relu(1 - real_score).mean() + F.relu(1 + score).mean())
            adversarial.append(-score.mean())
            targets = [layer.detach() for layer in real_features]
            feature_matching += [(layer - target).abs().mean() / target.abs().mean().clamp(min=1e-5)
                                 for layer, target in zip(features, targets)]
        return torch.stack(own).mean(), torch.stack(adversarial).mean(), torch.stack(feature_matching).mean()
