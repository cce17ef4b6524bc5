"""Clips -> every micro-batch of the run, decided before the first step, so that a run can be resumed at any of them."""

import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from tts_kit.config import Config
from tts_kit.model.attention import PackedClips
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import IGNORE_INDEX, Example, PromptBuilder, Turn

Item = tuple[int, int | None]
"""A clip, and the clip heard before it if any."""


class MicroBatchDataset(torch.utils.data.Dataset):
    """Micro-batch `i` of the run, a pure function of clips, recipe, `i` and how many processes share a step.

    They take turns over the micro-batches. Where a step's do not come out even, its clips are dealt out anew."""

    def __init__(self, clips: Sequence[EncodedClip], prompt_builder: PromptBuilder, config: Config, processes: int = 1):
        self.config, self.speaker = config, clips[0].source
        self.parts = micro_batches_per_rank(config, processes) * processes
        self.heard = [build_example(clip, prompt_builder, in_loss=False) for clip in clips]
        self.scored = [build_example(clip, prompt_builder) for clip in clips]
        self.plan, self.passes = plan(self.scored, [clip.speaker for clip in clips], prompt_builder.spec.max_positions, config)

    def __len__(self) -> int:
        return len(self.plan) // self.config.gradient_accumulation_steps * self.parts

    def __getitem__(self, index: int) -> dict:
        step, part = divmod(index, self.parts)
        first = step * self.config.gradient_accumulation_steps
        micro_batches = reshard([[self.example(item) for item in items]
                              for items in self.plan[first:first + self.config.gradient_accumulation_steps]], self.parts)
        chosen = sample_depth_frames([*itertools.chain(*micro_batches)], self.config.depth_frame_fraction, self.config.seed + step)
        before = sum(len(examples) for examples in micro_batches[:part])
        mine = micro_batches[part]
        # a process that has nothing to do in a step computes its first clip too, which does not count there
        batch = collate(mine or micro_batches[0][:1], chosen[before:before + len(mine)] or chosen[:1], self.config.packing)
        return batch | {"frames_in_step": sum(len(mask) for mask in chosen),
                        "depth_frames_in_step": sum(int(mask.sum()) for mask in chosen), "loss_weight": int(bool(mine))}

    def example(self, item: Item) -> Example:
        clip, context = item
        return self.scored[clip] if context is None else join(self.heard[context], self.scored[clip])


def micro_batches_per_rank(config: Config, processes: int) -> int:
    """Micro-batches of a step for each of several processes."""
    return math.ceil(config.gradient_accumulation_steps / processes)


def reshard(micro_batches: list[list[Example]], parts: int) -> list[list[Example]]:
    """A step's micro-batches as so many parts: as they are, or else cut anew, the order kept, where the lengths are even;
    where clips are few some of the parts, but never the first one, are empty."""
    if len(micro_batches) == parts:
        return micro_batches
    examples = [*itertools.chain(*micro_batches)]
    ends = torch.tensor([len(example) for example in examples], dtype=torch.float64).cumsum(0)
    middles = [(end - len(example) / 2).item() for example, end in zip(examples, ends)]
    places = [int((middle - middles[0]) * parts / ends[-1].item()) for middle in middles]
    return [[example for example, place in zip(examples, places) if place == part] for part in range(parts)]


def build_example(clip: EncodedClip, prompt_builder: PromptBuilder, in_loss: bool = True) -> Example:
    """A clip as a training sequence of one turn."""
    return prompt_builder.build(clip.id, [Turn(clip.text, clip.source, clip.codes, in_loss)])


def join(context: Example, target: Example) -> Example:
    """Two turns in one sequence."""
    return Example(target.name, *(torch.cat([getattr(context, column), getattr(target, column)])
                                  for column in ("input_ids", "codes", "audio_mask", "labels")))


def plan(examples: Sequence[Example], speakers: Sequence[str], longest: int,
         config: Config) -> tuple[list[list[Item]], float]:
    """Items of every micro-batch of the run, and how many times the data is passed."""
    said_by = defaultdict(list)
    for index, speaker in enumerate(speakers):
        said_by[speaker].append(index)
    companions = [said_by[speaker] for speaker in speakers]
    wanted = config.steps * config.gradient_accumulation_steps
    batches, epoch = [], 0
    while len(batches) < wanted:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        batches += _one_pass(examples, companions, longest, config, generator)
        epoch += 1
    return batches[:wanted], epoch * wanted / len(batches) if batches else 0.0


def sample_depth_frames(examples: Sequence[Example], ratio: float, seed: int) -> list[torch.Tensor]:
    """For each example a mask over its scored frames: those that train the depth decoder this time.

    The end frame always does, as in transformers; of the others a share, drawn over all the examples together.
    """
    masks = [torch.zeros(example.target_frames, dtype=torch.bool) for example in examples]
    flat = torch.cat(masks)
    ends = torch.tensor([len(mask) for mask in masks]).cumsum(0) - 1
    flat[ends] = True
    others = (~flat).nonzero()[:, 0]
    order = torch.randperm(len(others), generator=torch.Generator().manual_seed(seed))
    flat[others[order[:math.ceil(len(others) * ratio)]]] = True
    return list(flat.split([len(mask) for mask in masks]))


def collate(examples: Sequence[Example], depth: Sequence[torch.Tensor], packing: bool) -> dict:
    """Examples -> tensors: input_ids, codes, audio_mask, positions (rows, positions, ...), and which frames are scored.

    Packed clips are told apart by positions that begin anew; padding needs no mask, because attention looks back only.
    """
    lay = _end_to_end if packing else _side_by_side
    predictors = (lay([_before_scored(example) for example in examples], False)).flatten().nonzero()[:, 0]
    labels = torch.cat([example.labels for example in examples])
    return {
        "input_ids": lay([example.input_ids for example in examples], 0),
        "codes": lay([example.codes for example in examples], 0),
        "audio_mask": lay([example.audio_mask for example in examples], False),
        "position_ids": _positions([len(example) for example in examples], packing),
        "packed_clips": _apart_and_together([len(example) for example in examples]) if packing else None,
        "predictor_index": predictors,
        "targets": labels[labels[:, 0] != IGNORE_INDEX],
        "depth_frame_index": torch.cat(list(depth)).nonzero()[:, 0],
        "clip_ids": [example.name for example in examples],
    }


def for_evaluation(examples: Sequence[Example], config: Config) -> list[dict]:
    """Held-out clips in batches under the token budget, every frame scored by both losses."""
    order = sorted(range(len(examples)), key=lambda index: len(examples[index]))
    groups = _under_budget([(index, None) for index in order], [len(example) for example in examples], config)
    batches = [[examples[index] for index, _ in group] for group in groups]
    return [collate(batch, sample_depth_frames(batch, 1.0, 0), config.packing) for batch in batches]


def _one_pass(examples: Sequence[Example], companions: Sequence[list[int]], longest: int, config: Config,
              generator: torch.Generator) -> list[list[Item]]:
    """All clips once, in a new order, neighbours in length together."""
    lengths = [len(example) for example in examples]
    # a little noise on the length mixes the company a clip keeps from pass to pass
    noise = 1 + 0.2 * torch.rand(len(examples), generator=generator)
    order = sorted(range(len(examples)), key=lambda index: lengths[index] * noise[index].item())
    items = [(index, _context(index, companions[index], lengths, longest, config, generator)) for index in order]
    batches = _under_budget(items, lengths, config)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator)]


def _context(index: int, companions: list[int], lengths: list[int], longest: int, config: Config,
             generator: torch.Generator) -> int | None:
    """Another clip of the same speaker to be heard first, in a share of the cases."""
    if len(companions) < 2 or torch.rand(1, generator=generator).item() >= config.context_probability:
        return None
    place = int(torch.randint(len(companions) - 1, (1,), generator=generator))
    other = companions[place + (place >= companions.index(index))]
    return other if lengths[other] + lengths[index] <= longest else None


def _under_budget(items: Sequence[Item], lengths: Sequence[int], config: Config) -> list[list[Item]]:
    """Fill batches in order; a clip longer than the budget travels alone."""
    batches, sizes = [[]], []
    for item in items:
        size = lengths[item[0]] + (0 if item[1] is None else lengths[item[1]])
        grown = [*sizes, size]
        cost = sum(grown) if config.packing else max(grown) * len(grown)
        if sizes and cost > config.tokens_per_batch:
            batches.append([])
            grown = [size]
        batches[-1].append(item)
        sizes = grown
    return batches


def _before_scored(example: Example) -> torch.Tensor:
    """(positions,) true where the next position is a scored frame."""
    return torch.cat([example.labels[1:, 0] != IGNORE_INDEX, torch.zeros(1, dtype=torch.bool)])


def _positions(lengths: Sequence[int], packing: bool) -> torch.Tensor:
    """Places in the clip; padding just counts on, so that transformers does not take it for another clip."""
    if packing:
        return torch.cat([torch.arange(length) for length in lengths])[None]
    return torch.arange(max(lengths)).repeat(len(lengths), 1)


def _apart_and_together(lengths: Sequence[int]) -> PackedClips:
    """Where in the row the places of clips side by side lie, and the reverse."""
    longest, starts = max(lengths), torch.tensor([0, *lengths]).cumsum(0)
    apart = torch.arange(longest) + starts[:-1, None]
    inside = torch.arange(longest) < torch.tensor(lengths)[:, None]
    return apart.where(inside, starts[:-1, None]), inside.flatten().nonzero()[:, 0]


def _end_to_end(columns: Sequence[torch.Tensor], _fill) -> torch.Tensor:
    return torch.cat(list(columns))[None]


def _side_by_side(columns: Sequence[torch.Tensor], fill) -> torch.Tensor:
    return pad_sequence(list(columns), batch_first=True, padding_value=fill)
