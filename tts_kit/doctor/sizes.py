"""How large the user's batches are, and what batches like them cost: counted at some sizes, linear in between."""

import random
from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil

import numpy as np
import torch
from tqdm.auto import tqdm

from tts_kit import checkpoint
from tts_kit.data import utterance
from tts_kit.doctor import cost
from tts_kit.doctor.cards import Card
from tts_kit.physics import Physics
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.tokens.clip import Clip
from tts_kit.tokens.prompt import Example, Writer
from tts_kit.tuning import batches

EXAMPLE = 600, 6.0, "The ferry to Oslo leaves at half past seven, and the last one back leaves at midnight."
"""Clips, seconds of each and what each says, where no run is given."""
MOST = 6000
"""Positions beyond which no batch is counted, because it takes too long."""


class Voice:
    """The clips that are learnt from and those held out, as sequences of the base."""

    def __init__(self, clips: Sequence[Clip], recipe: Recipe, physics: Physics, writer: Writer):
        self.clips, self.recipe = [clip for clip in clips if clip.split == utterance.TRAIN], recipe
        if not self.clips:
            raise Problem(f"none of {len(clips)} clips is there to learn from. Make the run's data again.")
        self.held_out = [batches.write(clip, writer) for clip in clips if clip.split == utterance.HELD_OUT]
        self.seconds = sum(len(clip.codes) for clip in self.clips) / physics.frame_rate
        self.steps = batches.Steps(self.clips, writer, recipe)
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
class Rung:
    """One size of batch."""
    positions: int
    training: cost.Step
    evaluation: cost.Step

    @property
    def peak(self) -> int:
        return max(self.training.peak, self.evaluation.peak)


class Ladder:
    """Batches of three sizes of one voice, each counted: the longest clip alone, what is asked for, and more."""

    def __init__(self, voice: Voice, checkpointing: bool):
        self.voice, self.model = voice, cost.network(voice.recipe, checkpointing)
        asked, most = voice.recipe.tokens_per_batch * voice.recipe.accumulation, min(voice.whole, MOST)
        self.rungs: list[Rung] = []
        for size in tqdm((voice.longest, min(asked, most), min(4 * asked, most)), desc="counting a step", leave=False):
            if not self.rungs or size >= self.rungs[-1].positions + voice.longest:
                self.rungs.append(self._count(size))

    def peak(self, positions: float) -> float:
        """Bytes that a batch of this size needs beside the weights."""
        return _along(positions, [0, *self._positions()], [0, *(rung.peak for rung in self.rungs)])

    def seconds(self, positions: float, card: Card, learns: bool = True) -> float:
        """Of one micro-batch of this size."""
        steps = [rung.training if learns else rung.evaluation for rung in self.rungs]
        busy = _along(positions, [0, *self._positions()], [0, *(step.busy(card) for step in steps)])
        # the smallest batch is as many operations as any that fits into one chunk
        first = self.rungs[0].positions
        launches = _along(max(positions, first), self._positions(), [step.launches for step in steps])
        return max(busy, launches * cost.LAUNCH)

    def largest(self, room: float) -> int:
        """Positions of the largest batch that needs no more than `room` bytes; 0 where not even the longest clip fits."""
        if self.rungs[0].peak > room:
            return 0
        found = int(_along(room, [rung.peak for rung in self.rungs], self._positions()))
        return min(max(found - found % 10, self.rungs[0].positions), self.voice.whole)

    def near(self, positions: float) -> Rung:
        """The counted size that is nearest to this one."""
        return min(self.rungs, key=lambda rung: abs(rung.positions - positions))

    def _positions(self) -> list[int]:
        return [rung.positions for rung in self.rungs]

    def _count(self, positions: int) -> Rung:
        recipe, examples = self.voice.recipe, self.voice.filled(positions)
        made = [batches.collate(examples, batches.sample_depth(examples, ratio, 0), recipe.packing)
                for ratio in (recipe.depth_ratio, 1.0)]
        training, evaluation = (cost.step(self.model, batch, learns) for batch, learns in zip(made, (True, False)))
        return Rung(training.positions, training, evaluation)


def voice(recipe: Recipe, run: Run | None) -> Voice:
    """The run's clips by their lengths alone; without a run the example."""
    config = checkpoint.config(recipe.base, recipe.revision)
    physics, writer = Physics.of(config), Writer(checkpoint.tokenizer(recipe.base, recipe.revision), Physics.of(config))
    if run is None:
        count, seconds, said = EXAMPLE
        held = max(utterance.FEWEST_HELD_OUT, round(count * recipe.held_out))
        told = [(said, seconds, utterance.HELD_OUT if number < held else utterance.TRAIN) for number in range(count)]
    elif (run.data / utterance.MANIFEST).is_file():
        told = [(each.text, each.seconds, each.split) for each in utterance.read(run.data)]
    else:
        told = [(clip.text, len(clip.codes) / physics.frame_rate, clip.split) for clip in cache.of_run(run)]
    return Voice([_silent(f"clip {number}", *each, physics) for number, each in enumerate(told, 1)], recipe, physics, writer)


def _silent(name: str, text: str, seconds: float, split: str, physics: Physics) -> Clip:
    """A clip of this length whose codes are all the same."""
    codes = torch.zeros(ceil(round(seconds * physics.frame_rate, 3)), physics.codebooks, dtype=torch.int16)
    return Clip(name, text, "0", "", "", split, codes)


def _along(value: float, given: list[float], found: list[float]) -> float:
    """On the line between the counted points, or on beyond the last two of them."""
    if len(given) > 1 and value > given[-1]:
        return found[-1] + (value - given[-1]) * (found[-1] - found[-2]) / (given[-1] - given[-2])
    return float(np.interp(value, given, found))
