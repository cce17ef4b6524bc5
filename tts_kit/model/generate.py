"""The only generation loop: prompts in, codes out; equal to transformers' `generate` when greedy."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn.functional import pad
from transformers import DynamicCache

from tts_kit.model import loss
from tts_kit.physics import Physics
from tts_kit.recipe import AS_BASE, Recipe
from tts_kit.tokens.prompt import Example


@dataclass(frozen=True)
class Sampling:
    temperature: float = 0.9
    """Of codebook 0; 0 takes the likeliest."""
    depth_temperature: float = 0.9
    """Of the other codebooks; 0 takes the likeliest."""
    top_k: int = 50

    @staticmethod
    def recommended(told: dict) -> "Sampling":
        """As a checkpoint's generation config has it; where that says nothing, as CSM-1B."""
        names = {"temperature": "temperature", "depth_decoder_temperature": "depth_temperature", "top_k": "top_k"}
        return Sampling(**{name: told[theirs] for theirs, name in names.items() if told.get(theirs) is not None})

    def asked(self, recipe: Recipe) -> "Sampling":
        """This one, with what a recipe asks for otherwise."""
        told = {name: getattr(recipe, name) for name in ("temperature", "depth_temperature", "top_k")}
        return replace(self, **{name: value for name, value in told.items() if value != AS_BASE})


@dataclass
class Take:
    """What was said for one prompt."""
    codes: torch.Tensor
    """(frames, codebooks) int16, without the end frame."""
    stopped: bool
    """Whether the model ended the utterance itself, rather than the frame limit."""


def takes(model, physics: Physics, prompts: Sequence[Example], sampling: Sampling, seeds: Sequence[int],
          limits: Sequence[int]) -> list[Take]:
    """Speak several prompts at once; a prompt's result depends on its own seed, not on its neighbours."""
    frames, ends = [], [None] * len(prompts)
    for count, frame in enumerate(stream(model, physics, prompts, sampling, seeds)):
        frames.append(frame.to(torch.int16).cpu())
        for row, finished in enumerate(is_end(frame).tolist()):
            if ends[row] is None and (finished or count + 1 >= limits[row]):
                ends[row] = (count, True) if finished else (count + 1, False)
        if None not in ends:
            break
    codes = torch.stack(frames, dim=1)
    return [Take(codes[row, :end].clone(), stopped) for row, (end, stopped) in enumerate(ends)]


@torch.inference_mode()
def stream(model, physics: Physics, prompts: Sequence[Example], sampling: Sampling,
           seeds: Sequence[int]) -> Iterator[torch.Tensor]:
    """Endless frames (prompts, codebooks), end frames included; the caller decides when to stop."""
    device = model.device
    generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
    inputs, mask = _left_padded(model, prompts)
    cache = DynamicCache(config=model.backbone_model.config)
    while True:
        positions = (mask.cumsum(1) - 1).clamp(min=0)[:, -inputs.shape[1]:]
        out = model.backbone_model(inputs_embeds=inputs, attention_mask=mask, position_ids=positions,
                                   past_key_values=cache, use_cache=True)
        state = out.last_hidden_state[:, -1]
        first = choose(model.lm_head(state), physics, sampling.temperature, sampling.top_k, generators)
        frame = _rest_of_frame(model, physics, state, first, sampling, generators)
        yield frame
        inputs = model.backbone_model.embed_tokens(frame[:, None])
        mask = pad(mask, (0, 1), value=1)


def is_end(frame: torch.Tensor) -> torch.Tensor:
    """(prompts,) whether a frame ends the utterance: all codes but the last are 0, the rule transformers stops by."""
    return (frame[:, :-1] == 0).all(dim=1)


def choose(logits: torch.Tensor, physics: Physics, temperature: float, top_k: int, generators: list) -> torch.Tensor:
    """Logits (prompts, words) -> (prompts,) codes; words that the codec does not know are never chosen."""
    logits = logits[:, :physics.codebook_size].float()
    if temperature == 0:
        return logits.argmax(dim=1)
    logits = logits / temperature
    weakest = logits.topk(min(top_k, logits.shape[1])).values[:, -1:]
    chances = logits.masked_fill(logits < weakest, -torch.inf).softmax(dim=1)
    # the first of independent exponential clocks is a draw from the distribution; each prompt has its own clocks
    clocks = torch.stack([torch.empty_like(chances[0]).exponential_(generator=generator) for generator in generators])
    return (chances / clocks).argmax(dim=1)


def _rest_of_frame(model, physics: Physics, state: torch.Tensor, first: torch.Tensor, sampling: Sampling,
                   generators: list) -> torch.Tensor:
    """Backbone state (prompts, hidden) and codebook 0 -> a whole frame (prompts, codebooks)."""
    depth, codes = model.depth_decoder, [first]
    words = depth.config.vocab_size
    cache = DynamicCache(config=depth.config)
    inputs = torch.stack([state, depth.model.embed_tokens(first)], dim=1)
    for book in range(1, physics.codebooks):
        out = depth.model(inputs_embeds=inputs, past_key_values=cache, use_cache=True).last_hidden_state[:, -1]
        logits = out @ depth.codebooks_head.weight[book - 1]
        codes.append(choose(logits, physics, sampling.depth_temperature, sampling.top_k, generators))
        inputs = depth.model.embed_tokens(codes[-1] + book * words)[:, None]
    return torch.stack(codes, dim=1)


def _left_padded(model, prompts: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any lengths -> embeddings (prompts, longest, hidden) and the mask of real positions."""
    rows, longest = [], max(len(prompt) for prompt in prompts)
    mask = torch.zeros(len(prompts), longest, dtype=torch.long, device=model.device)
    for row, prompt in enumerate(prompts):
        batch = {name: getattr(prompt, name)[None].to(model.device) for name in ("ids", "codes", "is_frame")}
        rows.append(pad(loss.embed(model, batch)[0], (0, 0, longest - len(prompt), 0)))
        mask[row, longest - len(prompt):] = 1
    return torch.stack(rows), mask
