"""Logits -> codes: how daring a draw is, and the draw itself, which never waits for the device."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from tts_kit.config import CHECKPOINT_DEFAULT, Config


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.9
    """Of codebook 0; 0 takes the likeliest."""
    depth_temperature: float = 0.9
    """Of the other codebooks; 0 takes the likeliest."""
    top_k: int = 50

    @property
    def draws(self) -> bool:
        """Whether anything is left to chance."""
        return self.temperature > 0 or self.depth_temperature > 0

    @staticmethod
    def recommended(told: dict) -> "Sampling":
        """As a checkpoint's generation config has it; where that says nothing, as CSM-1B."""
        names = {"temperature": "temperature", "depth_decoder_temperature": "depth_temperature", "top_k": "top_k"}
        return Sampling(**{name: told[theirs] for theirs, name in names.items() if told.get(theirs) is not None})

    def asked(self, config: Config) -> "Sampling":
        """This one, with what a recipe asks for otherwise."""
        told = {name: getattr(config, name) for name in ("temperature", "depth_temperature", "top_k")}
        return replace(self, **{name: value for name, value in told.items() if value != CHECKPOINT_DEFAULT})


class GumbelNoise:
    """Random numbers for one frame at a time, each prompt's out of its own seed, whatever company it keeps."""

    def __init__(self, seeds: Sequence[int], numbers: torch.Tensor):
        self.numbers = numbers
        """(prompts, codebooks, candidates) draws from the Gumbel distribution."""
        self.generators = [torch.Generator(numbers.device).manual_seed(seed) for seed in seeds]

    def draw(self) -> None:
        """The numbers of the next frame, in place."""
        for row, generator in zip(self.numbers, self.generators):
            row.exponential_(generator=generator)
        self.numbers.log_().neg_()


def sample_token(logits: torch.Tensor, temperature: float, luck: torch.Tensor) -> torch.Tensor:
    """Logits (prompts, words) and luck (prompts, candidates) -> (prompts,) words, out of so many likeliest ones."""
    if temperature == 0:
        return logits.argmax(dim=1)
    best, words = logits.float().topk(min(luck.shape[1], logits.shape[1]))
    # the largest sum of log-chance and Gumbel noise is a draw from the distribution
    drawn = torch.add(luck[:, :best.shape[1]], best, alpha=1 / temperature).argmax(dim=1, keepdim=True)
    return words.gather(1, drawn)[:, 0]
