"""Networks with random weights and random clips for the speed benchmarks.

Needs only torch, transformers, peft and this repository; no hub, no sample audio.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from transformers import CsmForConditionalGeneration

from sample_data.build import model_shapes
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder

SHAPES = ("csm-1b", "small", "tiny", "toy")
LETTERS = 4.4
"""Letters per second of audio: as many as the real tokenizer has tokens, since a letter is a token of the byte tokenizer."""


@dataclass(frozen=True)
class AudioClip:
    """A waveform and its transcript."""
    text: str
    wave: np.ndarray
    """(samples,) float32, a whole number of frames"""


def spec(name: str) -> ModelSpec:
    return ModelSpec.of(model_shapes.config(name))


def prompt_builder(name: str) -> PromptBuilder:
    """Return a prompt builder with the byte tokenizer; the lookup of csm-1b's own token ids costs the same."""
    return PromptBuilder(model_shapes.tokenizer(name), spec(name))


def network(name: str, device: str) -> CsmForConditionalGeneration:
    """Return the network with its codec, random float32 weights; the same for the same name and device."""
    with torch.device(device):
        return model_shapes.untrained(name).requires_grad_(False).eval()


def cast(part: torch.nn.Module, dtype: torch.dtype) -> None:
    """Cast weights as `from_pretrained` does: buffers, such as the frequencies of RoPE, stay float32."""
    for weight in part.parameters():
        weight.data = weight.data.to(dtype)


def seconds_range(text: str) -> tuple[float, float]:
    """Parse '10' or '2-10' into the shortest and longest clip length."""
    try:
        shortest, longest = (float(value) for value in (text.split("-") * 2)[:2])
    except ValueError:
        raise KitError(f"--seconds is {text!r}; give a number, or two with a dash between: 10 or 2-10.") from None
    return shortest, longest


def random_clips(name: str, count: int, seconds: tuple[float, float], seed: int = 0) -> list[AudioClip]:
    """Return clips of noise, tones and random letters, their lengths evenly spaced between two bounds and shuffled."""
    rng = np.random.default_rng(seed)
    return [_random_clip(length, spec(name), rng) for length in _lengths(count, seconds, rng)]


def random_codes(name: str, count: int, seconds: tuple[float, float], seed: int = 0) -> list[EncodedClip]:
    """Return clips of random codes and letters with lengths as those of `random_clips`, for what needs no audio."""
    rng, shape = np.random.default_rng(seed), spec(name)
    clips = []
    for index, length in enumerate(_lengths(count, seconds, rng)):
        frames = rng.integers(shape.codebook_size, size=(round(length * shape.frame_rate), shape.num_codebooks))
        clips.append(EncodedClip(f"clip{index}", _random_text(length, rng), "0", "", f"clip{index}", "train",
                                 torch.from_numpy(frames.astype(np.int16))))
    return clips


def encode_clips(clips: Sequence[AudioClip], codec: Codec) -> list[EncodedClip]:
    """Encode clips one at a time, as transformers' forward does."""
    return [EncodedClip(f"clip{index}", clip.text, "0", "", f"clip{index}", "train", codec.encode([clip.wave])[0])
            for index, clip in enumerate(clips)]


def _random_clip(seconds: float, spec: ModelSpec, rng: np.random.Generator) -> AudioClip:
    samples = round(seconds * spec.frame_rate) * spec.samples_per_frame
    times = np.arange(samples) / spec.sample_rate
    wave = 0.02 * rng.standard_normal(samples)
    for pitch in rng.uniform(80, 2000, 8):
        wave += 0.05 * np.sin(2 * np.pi * times * pitch) * np.sin(np.pi * times * rng.uniform(0.5, 4)) ** 2
    return AudioClip(_random_text(seconds, rng), wave.astype(np.float32))


def _random_text(seconds: float, rng: np.random.Generator) -> str:
    return "".join(rng.choice(list("abcdefghijklmnopqrstuvwxyz "), round(LETTERS * seconds)))


def _lengths(count: int, seconds: tuple[float, float], rng: np.random.Generator) -> np.ndarray:
    return rng.permutation(np.linspace(*seconds, count) if count > 1 else np.array([seconds[1]]))
