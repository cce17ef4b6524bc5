"""Sampling settings, classifier-free guidance, and sampling a token from logits without any host-device synchronization.

Guidance pushes logits away from those of the same prompt without its text, or without its context."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import torch

from tts_kit.config import CHECKPOINT_DEFAULT, Config
from tts_kit.tokens.prompt import Example, PromptBuilder, Turn

FIELDS = {"temperature": "temperature", "depth_decoder_temperature": "depth_temperature", "top_k": "top_k"}
"""Name in a checkpoint's generation_config.json -> field of `Sampling` and of `Config`."""


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.9  # of codebook 0; 0 is greedy
    depth_temperature: float = 0.9  # of the other codebooks; 0 is greedy
    top_k: int = 50
    guidance: float = 1.0  # scale of classifier-free guidance by the text; 1: none
    reference_guidance: float = 1.0  # the same by the context, which is the reference clip
    depth_guidance: float = 0.0  # share of the guidance that codebooks other than 0 get too

    @property
    def guidance_scales(self) -> tuple[float, ...]:
        """The scales of the kinds of guidance in use."""
        return tuple(scale for scale in (self.guidance, self.reference_guidance) if scale != 1)

    @property
    def depth_guidance_scales(self) -> tuple[float, ...]:
        """The scales for the depth decoder; empty if it is not guided."""
        return tuple(1 + (scale - 1) * self.depth_guidance for scale in self.guidance_scales if self.depth_guidance)

    @property
    def do_sample(self) -> bool:
        """Whether anything is sampled, rather than all greedy."""
        return self.temperature > 0 or self.depth_temperature > 0

    @classmethod
    def from_generation_config(cls, generation_config: dict) -> "Sampling":
        """Return what a checkpoint recommends; CSM-1B's values where it recommends nothing."""
        return cls(**{field: generation_config[name] for name, field in FIELDS.items()
                      if generation_config.get(name) is not None})

    def override(self, config: Config) -> "Sampling":
        """Return these settings with those that the config sets itself."""
        values = {field.name: getattr(config, field.name) for field in fields(self)}
        return replace(self, **{name: value for name, value in values.items() if value != CHECKPOINT_DEFAULT})


def guided_prompt(builder: PromptBuilder, name: str, context: Sequence[Turn], target: Turn, sampling: Sampling) -> Example:
    """Return the prompt of a turn after its context, with the unconditional prompts that the sampling's guidance needs."""
    unconditional = {"guidance": [*context, replace(target, text="")], "reference_guidance": [target]}
    return replace(builder.build(name, [*context, target]), unconditional=tuple(
        builder.build(name, turns) for scale, turns in unconditional.items() if getattr(sampling, scale) != 1))


def guide(logits: torch.Tensor, scales: Sequence[float]) -> torch.Tensor:
    """Return guided logits (B, vocab) from those of all rows: B conditional ones, then B of each kind that has a scale."""
    if not scales:
        return logits
    conditional, *unconditional = logits.float().chunk(1 + len(scales))
    return sum(((scale - 1) * (conditional - other) for scale, other in zip(scales, unconditional)), start=conditional)


def draw_gumbel_noise(noise: torch.Tensor, generators: Sequence[torch.Generator]) -> None:
    """Fill (B, ...) with Gumbel noise in place, each row from a generator of its own, so that batching changes no result."""
    for row, generator in zip(noise, generators):
        row.exponential_(generator=generator)
    noise.log_().neg_()


def sample_token(logits: torch.Tensor, temperature: float, noise: torch.Tensor) -> torch.Tensor:
    """Sample token ids (B,) from logits (B, vocab) among as many candidates as `noise` (B, top_k) is wide."""
    if temperature == 0:
        return logits.argmax(dim=1)
    top_logits, token_ids = logits.float().topk(min(noise.shape[1], logits.shape[1]))
    # Gumbel-max trick: the argmax of logits / temperature + noise is a draw from the softmax
    sampled = torch.add(noise[:, :top_logits.shape[1]], top_logits, alpha=1 / temperature).argmax(dim=1, keepdim=True)
    return token_ids.gather(1, sampled)[:, 0]
