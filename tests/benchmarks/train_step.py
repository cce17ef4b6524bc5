"""One optimizer step against the public notebook's way: python -m tests.benchmarks.train_step --shape small --against stock

Both sides run the loop of transformers' Trainer over the same clips, `--batch` of them a step, and learn LoRA on the same
projections of the same random network. *stock* is Trainer and PEFT as the public notebook uses them: sound in, encoded by
transformers' own forward in every step, sound padded to 10 s and text to 256 positions, micro-batches of two; with its known
bugs mended, so that at depth ratio 1 both optimise the same loss, which is checked first. The kit takes codes made before.
"""

import argparse
import ast
import fractions
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PrinterCallback, TrainerCallback

from tests.benchmarks import measure, notebook, shapes
from tts_kit import device as runtime
from tts_kit import pretrained
from tts_kit.config import Config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.model import attention, lora, loss
from tts_kit.run import Run
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.codec import Codec
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import dataset, trainer

WHAT = "train_step"
RATIOS = ("1", "1/4", "1/16")
SECONDS = ("2-10", "10")
RANK, SEED = notebook.RANK, notebook.SEED
STEPS = {"cuda": 20, "cpu": 1, "mps": 1}
"""Of one run of the Trainer's loop."""
DIFFERENT = 4
"""Batches of different clips in a run, after which the first comes again."""
AGREEMENT = {"cpu": 1e-5, "cuda": 1e-4, "mps": 1e-4}
"""Of both losses, relative. On a GPU a code that lies between two may fall to either in another order of additions."""


@dataclass(frozen=True)
class Material:
    """What both sides learn from."""
    clips: list[EncodedClip]
    sounds: list[shapes.Sound]
    prompt_builder: PromptBuilder
    batch: int
    steps: int

    @property
    def groups(self) -> list[list[int]]:
        """Clips of each step of a run."""
        places = list(range(len(self.clips)))
        different = [places[first:first + self.batch] for first in range(0, len(places), self.batch)]
        return [different[step % len(different)] for step in range(self.steps)]

    @property
    def frames(self) -> float:
        """Frames of a step, the mean over a run."""
        return sum(len(self.clips[place].codes) for group in self.groups for place in group) / self.steps


class Stopwatch(TrainerCallback):
    """Seconds per optimizer step from the loop's begin to the end of its last step, everything counted."""

    def __init__(self, device: str):
        self.device, self.begun, self.seconds = device, 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.begun = measure.now(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            self.seconds = (measure.now(self.device) - self.begun) / state.max_steps


@dataclass
class Side:
    """A trainer that can be run again and again."""
    trainer: transformers.Trainer
    watch: Stopwatch

    def run(self) -> float:
        """Seconds per step of one run."""
        with pretrained.quiet():
            self.trainer.train()
        return self.watch.seconds

    def peak(self) -> int | None:
        """Bytes at the peak of a run: weights, the optimizer's state, and what a step holds beside them."""
        states = [each for state in self.trainer.optimizer.state.values() for each in state.values()
                  if isinstance(each, torch.Tensor)]
        model = self.trainer.model
        own = measure.held([*model.parameters(), *model.buffers(), *states], self.watch.device)
        more = measure.above(self.run, self.watch.device)
        return None if more is None else own + more


def kit(model, material: Material, ratio: float, taken: DeviceConfig, folder: Path, changes: dict) -> Side:
    """The kit's trainer as `finetune.prepare` makes it, each step one micro-batch of the given clips."""
    config = Config(steps=material.steps, rank=RANK, alpha=float(RANK), depth_frame_fraction=ratio, seed=SEED, **changes)
    data = dataset.MicroBatchDataset(material.clips, material.prompt_builder, config)
    data.plan = [[(place, None) for place in group] for group in material.groups]
    asked = trainer.training_arguments(config, Run("kit", folder), taken)
    asked.save_strategy = asked.eval_strategy = "no"
    watch = Stopwatch(taken.device)
    made = trainer.CsmTrainer(model, asked, data, [], taken, callbacks=[watch])
    made.remove_callback(PrinterCallback)
    return Side(made, watch)


def stock(model, material: Material, taken: DeviceConfig, folder: Path) -> Side:
    """Trainer and PEFT as the notebook uses them."""
    items = notebook.padded(material.clips, material.sounds, material.prompt_builder)
    asked = notebook.arguments(material.batch, material.steps, taken, folder)
    watch = Stopwatch(taken.device)
    order = [items[place] for group in material.groups for place in group]
    made = notebook.StockTrainer(model=model, args=asked, train_dataset=order, callbacks=[watch])
    made.remove_callback(PrinterCallback)
    return Side(made, watch)


def check(model, material: Material, device: str) -> float:
    """How far apart the two losses of two clips are at ratio 1, relative, in float32; too far is refused."""
    shortest = sorted(range(len(material.clips)), key=lambda place: len(material.clips[place].codes))[:2]
    clips, sounds = ([of[place] for place in shortest] for of in (material.clips, material.sounds))
    examples = [dataset.build_example(clip, material.prompt_builder) for clip in clips]
    batch = dataset.collate(examples, dataset.sample_depth_frames(examples, 1.0, 0), packing=True)
    items = transformers.default_data_collator(notebook.padded(clips, sounds, material.prompt_builder))
    with torch.no_grad(), runtime.full_float32():
        sums = loss.loss_sums(model, _on(batch, device))
        ours = (sums.backbone / sums.frames, sums.depth / sums.depth_frames / (len(sums.by_codebook) - 1))
        out = model(**_on(items, device))
    theirs = (out.backbone_loss, out.depth_decoder_loss)
    apart = max(abs(mine.item() / other.item() - 1) for mine, other in zip(ours, theirs))
    if not apart <= AGREEMENT[device]:
        raise KitError(f"the losses of the two sides differ by {apart:.1e}, relative: {ours} and {theirs}; wanted at most "
                      f"{AGREEMENT[device]}. What is timed would not be the same work: run tests/test_model_loss.py.")
    return apart


def _on(batch: dict, device: str) -> dict:
    return {name: each.to(device) if isinstance(each, torch.Tensor) else each for name, each in batch.items()}


def compare(options: argparse.Namespace, taken: DeviceConfig, folder: Path) -> list[dict]:
    """The rows of every clip length and depth ratio."""
    steps = options.steps or STEPS[taken.device]
    ours = shapes.network(options.shape, taken.device)
    materials, apart, encoding = {}, 0.0, {}
    for spread in options.seconds:
        sounds = shapes.sounds(options.shape, options.batch * min(steps, DIFFERENT), shapes.seconds(spread))
        begun = measure.now(taken.device)
        clips = shapes.encoded(sounds, Codec(ours.codec_model, shapes.spec(options.shape)))
        encoding[spread] = (measure.now(taken.device) - begun) / len(clips)
        materials[spread] = Material(clips, sounds, shapes.prompt_builder(options.shape), options.batch, steps)
        apart = max(apart, check(ours, materials[spread], taken.device))
    print(f"At depth ratio 1 both sides have the same loss, within {apart:.0e}.")
    ours.codec_model = None
    shapes.cast(ours, taken.dtype)
    attention.install(ours)
    ours = lora.add_lora(ours, RANK, float(RANK), "both", SEED)
    theirs = (notebook.unsloth_model(options.shape, taken, folder) if options.against == "unsloth"
              else notebook.stock_model(options.shape, taken))
    rows = []
    for spread, material in materials.items():
        sides = {options.against: stock(theirs, material, taken, folder)}
        sides |= {ratio: kit(ours, material, float(fractions.Fraction(ratio)), taken, folder, dict(options.set))
                  for ratio in options.ratios}
        found = measured(sides, material, options.repeats, taken.device)
        settings = {"seconds": spread, "batch": options.batch, "steps": steps, "rank": RANK, "device": taken.device,
                    "dtype": str(taken.dtype), "threads": torch.get_num_threads(), "optimizer": notebook.OPTIMIZER,
                    "losses_apart": apart, "encoding_once_seconds_per_clip": encoding[spread], **dict(options.set)}
        other = {"name": notebook.SIDES[options.against], **found[options.against]}
        what = WHAT if options.dtype == "auto" else f"{WHAT} {options.dtype}"
        rows += [measure.row(what, options.shape, options.against, {"depth_frame_fraction": ratio, **settings}, found[ratio],
                             other)
                 for ratio in options.ratios]
    return rows


def measured(sides: dict[str, Side], material: Material, repeats: int, device: str) -> dict[str, dict]:
    """Speed and memory of each side, timed in turn, then filled once more for its memory."""
    seconds = measure.alternate({name: side.run for name, side in sides.items()}, repeats)
    found = {}
    for name, taken in seconds.items():
        found[name] = measure.speed(taken, material.batch, "clips/s", peak_bytes=sides[name].peak(),
                                    memory=measure.MEMORY[device])
        found[name]["frames_per_second"] = material.frames / found[name]["seconds"]
        found[name]["seconds_are"] = "per optimizer step"
    return found


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=shapes.SHAPES, required=True)
    parser.add_argument("--against", choices=notebook.SIDES, default="stock")
    parser.add_argument("--device", choices=measure.DEVICES, default="auto")
    parser.add_argument("--dtype", choices=runtime.DTYPES, default="auto", help="of both sides")
    parser.add_argument("--seconds", nargs="+", default=SECONDS, help="clip lengths: 10, 2-10, or several of them")
    parser.add_argument("--ratios", nargs="+", default=RATIOS, help="depth ratios of the kit")
    parser.add_argument("--repeats", type=int, default=measure.REPEATS, help="runs of each side, after one that is dropped")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps of a run; 0 for 1 on a CPU, 20 on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--set", nargs="+", default=[], type=_setting, metavar="NAME=VALUE", help="of the kit's recipe")
    parser.add_argument("--out", "--folder", type=Path, default=measure.RESULTS)
    options = parser.parse_args(arguments)
    taken = runtime.choose(options.device, options.dtype)
    print(taken.reason)
    if why := notebook.why_not(options.against, taken):
        print(f"{options.against} is not measured: {why}.")
        nothing = measure.not_measured(why)
        rows = [measure.row(WHAT, options.shape, options.against, {}, nothing, nothing)]
    else:
        with tempfile.TemporaryDirectory() as folder:
            rows = compare(options, taken, Path(folder))
    return measure.report(rows, taken.device, options.out)


def _setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    main()
