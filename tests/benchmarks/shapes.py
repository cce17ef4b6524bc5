"""The networks that speed is measured with, built in memory with random weights, and clips made of nothing.

Needs torch, transformers, peft and this repository, nothing else; no hub, no sample audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CsmForConditionalGeneration

from sample_data.build import shape
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder

SHAPES = ("csm-1b", "small", "tiny", "toy")
LETTERS = 4.4
"""Letters in a second of text: as many as the real tokenizer has tokens, since here a letter is a token."""


@dataclass(frozen=True)
class Sound:
    """A wave and the text that it is said to say."""
    text: str
    wave: np.ndarray
    """(samples,) float32, whole frames"""


def spec(name: str) -> ModelSpec:
    return ModelSpec.of(shape.config(name))


def prompt_builder(name: str) -> PromptBuilder:
    """Of the byte tokenizer; the ids of csm-1b's own text are no quicker to look up."""
    return PromptBuilder(shape.tokenizer(name), spec(name))


def network(name: str, device: str) -> CsmForConditionalGeneration:
    """The whole network in float32 with random weights, its codec inside; the same for the same name and device."""
    with torch.device(device):
        return shape.untrained(name).requires_grad_(False).eval()


def cast(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Weights in another dtype as `from_pretrained` loads them: buffers, such as the frequencies of RoPE, stay float32."""
    for weight in part.parameters():
        weight.data = weight.data.to(dtype)


def seconds(text: str) -> tuple[float, float]:
    """'10' or '2-10' as the shortest and longest clip."""
    try:
        least, most = (float(each) for each in (text.split("-") * 2)[:2])
    except ValueError:
        raise KitError(f"seconds is {text!r}; wanted a number, or two with a dash between: 10 or 2-10.") from None
    return least, most


def sounds(name: str, count: int, between: tuple[float, float], seed: int = 0) -> list[Sound]:
    """Clips whose lengths stand evenly between two bounds, in a shuffled order; noise and tones, and letters."""
    chance, numbers = np.random.default_rng(seed), spec(name)
    lengths = chance.permutation(np.linspace(*between, count) if count > 1 else np.array([between[1]]))
    return [_sound(length, numbers, chance) for length in lengths]


def encoded(waves: Sequence[Sound], codec: Codec) -> list[EncodedClip]:
    """Clips with the codes that the codec gives, one by one as transformers does it in its forward."""
    return [EncodedClip(f"clip{number}", each.text, "0", "", f"clip{number}", "train", codec.encode([each.wave])[0])
            for number, each in enumerate(waves)]


def _sound(length: float, numbers: ModelSpec, chance: np.random.Generator) -> Sound:
    samples = round(length * numbers.frame_rate) * numbers.samples_per_frame
    times = np.arange(samples) / numbers.sample_rate
    wave = 0.02 * chance.standard_normal(samples)
    for pitch in chance.uniform(80, 2000, 8):
        wave += 0.05 * np.sin(2 * np.pi * times * pitch) * np.sin(np.pi * times * chance.uniform(0.5, 4)) ** 2
    text = "".join(chance.choice(list("abcdefghijklmnopqrstuvwxyz "), round(LETTERS * length)))
    return Sound(text, wave.astype(np.float32))
