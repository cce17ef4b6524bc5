"""The only generation loop: prompts in, codes out; equal to transformers' `generate` when greedy."""

import contextlib
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

import torch
from torch.nn.functional import pad

from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.model import loss
from tts_kit.spec import ModelSpec
from tts_kit.tokens.prompt import Example

PIPELINE_DEPTH = 4
"""Frames that a GPU may be ahead of what is looked at: nobody waits for it, and at the end so many are thrown away."""
TALKERS: WeakKeyDictionary = WeakKeyDictionary()
"""Of every model that has spoken what it speaks with, kept as long as the model."""


@dataclass
class Generation:
    """What was said for one prompt."""
    codes: torch.Tensor
    """(frames, codebooks) int16, without the end frame."""
    ended_with_eos: bool
    """Whether the model ended the utterance itself, rather than the frame limit."""


def generate(model, spec: ModelSpec, prompts: Sequence[Example], sampling: Sampling, seeds: Sequence[int],
          limits: Sequence[int], int8: bool = False) -> list[Generation]:
    """Speak several prompts at once; a prompt's result depends on its own seed, not on its neighbours.

    The limits are looked at with every frame, so that whoever gives them may lower them meanwhile."""
    frames, ends = [], [None] * len(prompts)
    with contextlib.closing(stream(model, spec, prompts, sampling, seeds, max(limits), int8)) as coming:
        for count, frame in enumerate(coming):
            frames.append(frame)
            for row, finished in enumerate(is_eos_frame(frame).tolist()):
                if ends[row] is None and (finished or count + 1 >= limits[row]):
                    ends[row] = (count, True) if finished else (count + 1, False)
            if None not in ends:
                break
    codes = torch.stack(frames, dim=1).to(torch.int16)
    return [Generation(codes[row, :end].clone(), ended_with_eos) for row, (end, ended_with_eos) in enumerate(ends)]


@torch.inference_mode()
def stream(model, spec: ModelSpec, prompts: Sequence[Example], sampling: Sampling, seeds: Sequence[int],
           most: int | None = None, int8: bool = False) -> Iterator[torch.Tensor]:
    """Frames (prompts, codebooks) on the CPU, end frames included, until the caller stops or there are `most`."""
    inputs, real = left_pad_prompts(model, prompts)
    most = most or spec.max_positions - inputs.shape[1]
    with talker(model, spec, int8).conversation(len(prompts), inputs.shape[1] + most, sampling) as conversation:
        late, coming = PIPELINE_DEPTH if conversation.graph else 0, deque()
        for frame in conversation.frames(inputs, real, seeds, most):
            coming.append(frame)
            if len(coming) > late:
                yield coming.popleft().wait()
        for frame in coming:
            yield frame.wait()


def talker(model, spec: ModelSpec, int8: bool = False) -> InferenceEngine:
    """What a model speaks with, with the weights and adapters that it has now."""
    made = TALKERS.setdefault(model, {})
    if int8 not in made:
        made[int8] = InferenceEngine(model, spec, int8)
    made[int8].refresh()
    return made[int8]


def is_eos_frame(frame: torch.Tensor) -> torch.Tensor:
    """(prompts,) whether a frame ends the utterance: all codes but the last are 0, the rule transformers stops by."""
    return (frame[:, :-1] == 0).all(dim=1)


def left_pad_prompts(model, prompts: Sequence[Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Prompts of any lengths -> embeddings (prompts, longest, hidden) and which positions are real, on the CPU."""
    rows, longest = [], max(len(prompt) for prompt in prompts)
    device = model.lm_head.weight.device
    mask = torch.zeros(len(prompts), longest, dtype=torch.bool)
    for row, prompt in enumerate(prompts):
        batch = {name: column[None].to(device) for name, column in (
            ("input_ids", prompt.input_ids), ("codes", prompt.codes), ("audio_mask", prompt.audio_mask))}
        rows.append(pad(loss.embed_inputs(model, batch)[0], (0, 0, longest - len(prompt), 0)))
        mask[row, longest - len(prompt):] = True
    return torch.stack(rows), mask
