"""How large the user's batches are, and what batches like them cost: counted at some sizes, linear in between."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from tqdm.auto import tqdm

from tts_kit import pretrained
from tts_kit.config import Config
from tts_kit.data import manifest
from tts_kit.doctor import step_cost
from tts_kit.doctor.gpus import Gpu
from tts_kit.errors import KitError
from tts_kit.run import Run
from tts_kit.spec import ModelSpec
from tts_kit.tokens import cache
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import Example, PromptBuilder
from tts_kit.training import dataset

EXAMPLE = 600, 6.0, "The ferry to Oslo leaves at half past seven, and the last one back leaves at midnight."
"""Clips, seconds of each and what each says, where no run is given."""
MOST = 6000
"""Positions beyond which no batch is counted, because it takes too long."""


class TrainingData:
    """The clips that are learnt from and those held out, as sequences of the base."""

    def __init__(self, clips: Sequence[EncodedClip], recipe: Config, spec: ModelSpec, prompt_builder: PromptBuilder):
        self.clips, self.recipe = [clip for clip in clips if clip.split == manifest.TRAIN], recipe
        if not self.clips:
            raise KitError(f"none of {len(clips)} clips is there to learn from. Make the run's data again.")
        self.held_out = [dataset.build_example(clip, prompt_builder) for clip in clips if clip.split == manifest.HELD_OUT]
        self.seconds = sum(len(clip.codes) for clip in self.clips) / spec.frame_rate
        self.steps = dataset.MicroBatchDataset(self.clips, prompt_builder, recipe)
        sizes = [[len(self.steps.example(item)) for item in items] for items in self.steps.plan]
        self.mean = sum(sum(some) if recipe.packing else max(some) * len(some) for some in sizes) / len(sizes)
        """Positions in a micro-batch of the recipe."""
        self.longest = max(max(some) for some in sizes)
        self.of_clip = sum(map(sum, sizes)) / sum(map(len, sizes))
        """Positions of a clip on average, with the one heard before it if any."""
        self.whole = round(self.of_clip * len(self.clips))
        """Positions of all clips."""

    def filled(self, positions: int) -> list[Example]:
        """The longest example and as many others as fit: any of them where they are packed, else the next in length."""
        items = [item for items in self.steps.plan for item in items]
        items.sort(key=lambda item: -len(self.steps.example(item)))
        if self.recipe.packing:
            random.Random(0).shuffle(others := items[1:])
            items[1:] = others
        taken, size = [], 0
        while size < positions or not taken:
            taken.append(self.steps.example(items[len(taken) % len(items)]))
            size += len(taken[-1]) if self.recipe.packing else len(taken[0])
        return taken if size <= positions or len(taken) == 1 else taken[:-1]


@dataclass(frozen=True)
class CostPoint:
    """One size of batch."""
    positions: int
    training: step_cost.StepCost
    evaluation: step_cost.StepCost

    @property
    def peak(self) -> int:
        return max(self.training.peak, self.evaluation.peak)


class CostCurve:
    """Batches of three sizes of one voice, each counted: the longest clip alone, what is asked for, and more."""

    def __init__(self, voice: TrainingData, gradient_checkpointing: bool):
        self.voice, self.model = voice, step_cost.network(voice.recipe, gradient_checkpointing)
        asked, most = voice.recipe.tokens_per_batch * voice.recipe.gradient_accumulation_steps, min(voice.whole, MOST)
        self.rungs: list[CostPoint] = []
        for size in tqdm((voice.longest, min(asked, most), min(4 * asked, most)), desc="counting a step", leave=False):
            if not self.rungs or size >= self.rungs[-1].positions + voice.longest:
                self.rungs.append(self._count(size))

    def peak(self, positions: float) -> float:
        """Bytes that a batch of this size needs beside the weights."""
        return _along(positions, [0, *self._positions()], [0, *(rung.peak for rung in self.rungs)])

    def seconds(self, positions: float, card: Gpu, learns: bool = True) -> float:
        """Of one micro-batch of this size."""
        steps = [rung.training if learns else rung.evaluation for rung in self.rungs]
        busy = _along(positions, [0, *self._positions()], [0, *(step.busy(card) for step in steps)])
        # the smallest batch is as many operations as any that fits into one chunk
        first = self.rungs[0].positions
        launches = _along(max(positions, first), self._positions(), [step.launches for step in steps])
        return max(busy, launches * step_cost.LAUNCH)

    def largest(self, room: float) -> int:
        """Positions of the largest batch that needs no more than `room` bytes; 0 where not even the longest clip fits."""
        if self.rungs[0].peak > room:
            return 0
        found = int(_along(room, [rung.peak for rung in self.rungs], self._positions()))
        return min(max(found - found % 10, self.rungs[0].positions), self.voice.whole)

    def near(self, positions: float) -> CostPoint:
        """The counted size that is nearest to this one."""
        return min(self.rungs, key=lambda rung: abs(rung.positions - positions))

    def _positions(self) -> list[int]:
        return [rung.positions for rung in self.rungs]

    def _count(self, positions: int) -> CostPoint:
        recipe, examples = self.voice.recipe, self.voice.filled(positions)
        made = [dataset.collate(examples, dataset.sample_depth_frames(examples, ratio, 0), recipe.packing)
                for ratio in (recipe.depth_frame_fraction, 1.0)]
        training, evaluation = (step_cost.step(self.model, batch, learns) for batch, learns in zip(made, (True, False)))
        return CostPoint(training.positions, training, evaluation)


def training_data(recipe: Config, run: Run | None) -> TrainingData:
    """The run's clips by their lengths alone; without a run the example."""
    config = pretrained.config(recipe.base, recipe.revision)
    spec, prompt_builder = ModelSpec.of(config), PromptBuilder(pretrained.tokenizer(recipe.base, recipe.revision), ModelSpec.of(config))
    if run is None:
        count, seconds, said = EXAMPLE
        held = max(manifest.MIN_HELD_OUT, round(count * recipe.held_out))
        told = [(said, seconds, manifest.HELD_OUT if number < held else manifest.TRAIN) for number in range(count)]
    elif (run.data / manifest.MANIFEST).is_file():
        told = [(each.text, each.seconds, each.split) for each in manifest.read(run.data)]
    else:
        told = [(clip.text, len(clip.codes) / spec.frame_rate, clip.split) for clip in cache.load_run(run)]
    return TrainingData([_silent(f"clip {number}", *each, spec) for number, each in enumerate(told, 1)], recipe, spec, prompt_builder)


def _silent(name: str, text: str, seconds: float, split: str, spec: ModelSpec) -> EncodedClip:
    """A clip of this length whose codes are all the same."""
    codes = torch.zeros(ceil(round(seconds * spec.frame_rate, 3)), spec.num_codebooks, dtype=torch.int16)
    return EncodedClip(name, text, "0", "", "", split, codes)


def _along(value: float, given: list[float], found: list[float]) -> float:
    """On the line between the counted points, or on beyond the last two of them."""
    if len(given) > 1 and value > given[-1]:
        return found[-1] + (value - given[-1]) * (found[-1] - found[-2]) / (given[-1] - given[-2])
    return float(np.interp(value, given, found))
