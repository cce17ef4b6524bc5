"""Classifier-free guidance: logits pushed away from those of the same prompt without its text, or without its context."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from tts_kit.generation.sampling import Sampling
from tts_kit.tokens.prompt import Example, PromptBuilder, Turn


def build_prompt(builder: PromptBuilder, name: str, context: Sequence[Turn], target: Turn, sampling: Sampling) -> Example:
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
