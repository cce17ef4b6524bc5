"""Clips -> the micro-batches of a training, all planned before the first step, so that it can resume at any step."""

import dataclasses
import itertools
import math
from collections import defaultdict
from collections.abc import Sequence

import torch
from torch.nn.utils.rnn import pad_sequence

from tts_kit.config import EPOCHS, MAX_STEPS, MIN_STEPS, Config
from tts_kit.model.attention import PackedClips
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import IGNORE_INDEX, Example, PromptBuilder, Turn

Item = tuple[int, int | None]  # index of a clip, and index of the clip that precedes it as context, if any


class MicroBatchDataset(torch.utils.data.Dataset):
    """Micro-batch `i` of the training: a pure function of clips, config, `i` and the number of processes.

    The processes take micro-batches in turn. If those of a step do not divide evenly, its clips are resharded."""

    def __init__(self, clips: Sequence[EncodedClip], prompt_builder: PromptBuilder, config: Config, num_processes: int = 1):
        self.config, self.speaker = config, clips[0].source
        self.micro_batches_per_step = micro_batches_per_rank(config, num_processes) * num_processes
        self.examples = [build_example(clip, prompt_builder) for clip in clips]
        self.examples_without_text = [build_example(dataclasses.replace(clip, text=""), prompt_builder) for clip in clips
                                      if config.condition_dropout]
        lengths, speakers = [len(example) for example in self.examples], [clip.speaker for clip in clips]
        self.plan, self.epochs = plan_micro_batches(lengths, speakers, prompt_builder.spec.max_positions, config)

    def __len__(self) -> int:
        return len(self.plan) // self.config.gradient_accumulation_steps * self.micro_batches_per_step

    def __getitem__(self, index: int) -> dict:
        step, part = divmod(index, self.micro_batches_per_step)
        count = self.config.gradient_accumulation_steps
        generator = torch.Generator().manual_seed(self.config.seed + step)
        planned = [[self.example(item, torch.rand(1, generator=generator).item() >= self.config.condition_dropout)
                    for item in items] for items in self.plan[step * count:(step + 1) * count]]
        micro_batches = reshard(planned, self.micro_batches_per_step)
        masks = sample_depth_frames([*itertools.chain(*micro_batches)], self.config.depth_frame_fraction,
                                    self.config.seed + step)
        start = sum(map(len, micro_batches[:part]))
        examples, depth_masks = micro_batches[part], masks[start:start + len(micro_batches[part])]
        # a process without clips in this step computes the first clip of the step with weight 0
        batch = collate(examples or micro_batches[0][:1], depth_masks or masks[:1], self.config.packing)
        return batch | {"frames_in_step": sum(map(len, masks)), "loss_weight": int(bool(examples)),
                        "depth_frames_in_step": sum(int(mask.sum()) for mask in masks)}

    def example(self, item: Item, with_text: bool = True) -> Example:
        """The sequence of a planned item: a clip, with its text or without, after its context, if it has one."""
        clip, context = item
        target = (self.examples if with_text else self.examples_without_text)[clip]
        return target if context is None else join(without_labels(self.examples[context]), target)


def default_steps(lengths: Sequence[int], config: Config) -> int:
    """Return the steps that make EPOCHS passes over clips of these lengths in positions, within the limits."""
    items = [(clip, None) for clip in sorted(range(len(lengths)), key=lambda clip: lengths[clip])]
    steps = math.ceil(EPOCHS * len(_fill_batches(items, lengths, config)) / config.gradient_accumulation_steps)
    return min(MAX_STEPS, max(MIN_STEPS, steps))


def micro_batches_per_rank(config: Config, num_processes: int) -> int:
    """Micro-batches of a step that each of several processes computes."""
    return math.ceil(config.gradient_accumulation_steps / num_processes)


def reshard(micro_batches: list[list[Example]], parts: int) -> list[list[Example]]:
    """Split a step's micro-batches into `parts` of about equal length, in the same order.

    As many micro-batches as parts stay as they are. With few clips some parts are empty, but never the first."""
    if len(micro_batches) == parts:
        return micro_batches
    examples = [*itertools.chain(*micro_batches)]
    ends = [*itertools.accumulate(map(len, examples))]
    centers = [end - len(example) / 2 for example, end in zip(examples, ends)]
    assigned = [int((center - centers[0]) * parts / ends[-1]) for center in centers]
    return [[example for example, number in zip(examples, assigned) if number == part] for part in range(parts)]


def build_example(clip: EncodedClip, prompt_builder: PromptBuilder) -> Example:
    """The training sequence of a clip: one turn, every frame a label."""
    return prompt_builder.build(clip.id, [Turn(clip.text, clip.source, clip.codes)])


def without_labels(example: Example) -> Example:
    """The same sequence without loss: context for another one."""
    return dataclasses.replace(example, labels=torch.full_like(example.labels, IGNORE_INDEX))


def join(context: Example, target: Example) -> Example:
    """Two examples as one sequence."""
    return Example(target.name, *(torch.cat([getattr(context, column), getattr(target, column)])
                                  for column in ("input_ids", "codes", "audio_mask", "labels")))


def plan_micro_batches(lengths: Sequence[int], speakers: Sequence[str], max_positions: int,
                       config: Config) -> tuple[list[list[Item]], float]:
    """Items of every micro-batch of the training, and how many epochs they are."""
    clips_of = defaultdict(list)
    for clip, speaker in enumerate(speakers):
        clips_of[speaker].append(clip)
    total = config.steps * config.gradient_accumulation_steps
    plan, epoch = [], 0
    while len(plan) < total:
        generator = torch.Generator().manual_seed(config.seed * 1_000_003 + epoch)
        plan += _plan_epoch(lengths, [clips_of[speaker] for speaker in speakers], max_positions, config, generator)
        epoch += 1
    return plan[:total], epoch * total / len(plan)


def sample_depth_frames(examples: Sequence[Example], fraction: float, seed: int) -> list[torch.Tensor]:
    """For each example a mask over its labeled frames, of those that train the depth decoder in this step: the end frame, as
    in transformers, and a random fraction of the rest, sampled over all examples together."""
    lengths = [example.target_frames for example in examples]
    mask = torch.zeros(sum(lengths), dtype=torch.bool)
    mask[torch.tensor(lengths).cumsum(0) - 1] = True
    candidates = (~mask).nonzero()[:, 0]
    order = torch.randperm(len(candidates), generator=torch.Generator().manual_seed(seed))
    mask[candidates[order[:math.ceil(len(candidates) * fraction)]]] = True
    return list(mask.split(lengths))


def collate(examples: Sequence[Example], depth_masks: Sequence[torch.Tensor], packing: bool) -> dict:
    """Examples -> tensors (rows, positions, ...), the positions that predict a label, and the labels that train depth.
    Position ids restart at each packed clip; padding needs no mask, because attention is causal."""
    def arrange(columns: list[torch.Tensor], padding_value: int) -> torch.Tensor:
        return torch.cat(columns)[None] if packing else pad_sequence(columns, batch_first=True, padding_value=padding_value)

    lengths = [len(example) for example in examples]
    labels = torch.cat([example.labels for example in examples])
    # true where the next position is a labeled frame
    predicts = [torch.cat([example.labels[1:, 0] != IGNORE_INDEX, torch.tensor([False])]) for example in examples]
    # padding counts on, so that transformers does not take it for another packed clip
    position_ids = (torch.cat([torch.arange(length) for length in lengths])[None] if packing
                    else torch.arange(max(lengths)).repeat(len(lengths), 1))
    return {
        "input_ids": arrange([example.input_ids for example in examples], 0),
        "codes": arrange([example.codes for example in examples], 0),
        "audio_mask": arrange([example.audio_mask for example in examples], False),
        "position_ids": position_ids,
        "packed_clips": _pack_index(lengths) if packing else None,
        "predictor_index": arrange(predicts, False).flatten().nonzero()[:, 0],
        "targets": labels[labels[:, 0] != IGNORE_INDEX],
        "depth_frame_index": torch.cat(list(depth_masks)).nonzero()[:, 0],
        "clip_ids": [example.name for example in examples],
    }


def evaluation_batches(examples: Sequence[Example], config: Config) -> list[dict]:
    """Held-out examples in batches under the token budget, every frame in both losses."""
    lengths = [len(example) for example in examples]
    order = sorted(range(len(examples)), key=lambda clip: lengths[clip])
    batches = [[examples[clip] for clip, _ in items]
               for items in _fill_batches([(clip, None) for clip in order], lengths, config)]
    return [collate(batch, sample_depth_frames(batch, 1.0, 0), config.packing) for batch in batches]


def _plan_epoch(lengths: Sequence[int], same_speaker: Sequence[list[int]], max_positions: int, config: Config,
                generator: torch.Generator) -> list[list[Item]]:
    """All clips once, bucketed by length, the batches in random order."""
    # noise on the lengths, so that a clip shares its batch with other clips in each epoch
    noise = 1 + 0.2 * torch.rand(len(lengths), generator=generator)
    order = sorted(range(len(lengths)), key=lambda clip: lengths[clip] * noise[clip].item())
    items = [(clip, _sample_context(clip, same_speaker[clip], lengths, max_positions, config, generator)) for clip in order]
    batches = _fill_batches(items, lengths, config)
    return [batches[index] for index in torch.randperm(len(batches), generator=generator)]


def _sample_context(clip: int, same_speaker: list[int], lengths: Sequence[int], max_positions: int, config: Config,
                    generator: torch.Generator) -> int | None:
    """With the config's probability another clip of the same speaker, if both fit into the model."""
    if len(same_speaker) < 2 or torch.rand(1, generator=generator).item() >= config.context_probability:
        return None
    index = int(torch.randint(len(same_speaker) - 1, (1,), generator=generator))
    context = same_speaker[index + (index >= same_speaker.index(clip))]
    return context if lengths[context] + lengths[clip] <= max_positions else None


def _fill_batches(items: Sequence[Item], lengths: Sequence[int], config: Config) -> list[list[Item]]:
    """Fill batches in order up to the token budget; a clip longer than the budget is a batch of its own."""
    batches, sizes = [[]], []
    for clip, context in items:
        sizes = [*sizes, lengths[clip] + (0 if context is None else lengths[context])]
        tokens = sum(sizes) if config.packing else max(sizes) * len(sizes)
        if len(sizes) > 1 and tokens > config.tokens_per_batch:
            batches.append([])
            sizes = sizes[-1:]
        batches[-1].append((clip, context))
    return batches


def _pack_index(lengths: Sequence[int]) -> PackedClips:
    """Indices from the packed row to padded clips (clips, longest), and from those, flattened, back to the row."""
    starts = torch.tensor([0, *lengths]).cumsum(0)[:-1, None]
    offsets = torch.arange(max(lengths))
    inside = offsets < torch.tensor(lengths)[:, None]
    return (offsets + starts).where(inside, starts), inside.flatten().nonzero()[:, 0]
