"""One optimizer step against the public notebook's way: python -m tests.benchmarks.train_step --shape small --against stock

Both sides run the loop of transformers' Trainer over the same clips, `--batch` of them a step, and train LoRA on the same
projections of the same network with random weights. *stock* is Trainer and PEFT as the public notebook uses them: audio is
encoded by transformers' own forward in every step, audio padded to 10 s and text to 256 positions, micro-batches of two; its
known bugs are fixed, so that at depth ratio 1 both sides optimize the same loss, which is checked first. The kit trains on
codes that were encoded before. `--against repeated` compares the kit with itself: batches that never come again against a
few that do, which shows what every new shape of a batch costs.
"""

import argparse
import ast
import fractions
import itertools
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import transformers
from transformers import PrinterCallback, TrainerCallback

from tests.benchmarks import measure, notebook, shapes
from tts_kit import device as devices
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

WHAT, REPEATED = "train_step", "repeated"
RATIOS = ("1", "1/4", "1/16")
SECONDS = ("2-10", "10")
RANK, SEED = notebook.RANK, notebook.SEED
STEPS = {"cuda": 20, "cpu": 1, "mps": 1}
"""Optimizer steps in one run of the Trainer's loop."""
DIFFERENT = 4
"""Different batches in a run; after the last the first is used again."""
AGREEMENT = {"cpu": 1e-5, "cuda": 1e-4, "mps": 1e-4}
"""Relative difference allowed between the losses of the two sides. On a GPU another order of additions can change a code at
a quantization boundary."""


@dataclass(frozen=True)
class TrainSet:
    """The clips that both sides train on, encoded and as audio."""
    clips: list[EncodedClip]
    raw_clips: list[shapes.AudioClip]
    prompt_builder: PromptBuilder
    batch: int
    steps: int

    @property
    def step_clips(self) -> list[list[int]]:
        """Return the indices of the clips of each step of a run."""
        indices = list(range(len(self.clips)))
        batches = [indices[start:start + self.batch] for start in range(0, len(indices), self.batch)]
        return [batches[step % len(batches)] for step in range(self.steps)]

    @property
    def frames(self) -> float:
        """Return the mean number of frames of a step."""
        return sum(len(self.clips[index].codes) for indices in self.step_clips for index in indices) / self.steps


class Stopwatch(TrainerCallback):
    """Seconds per optimizer step, from the begin of the training loop to the end of its last step."""

    def __init__(self, device: str):
        self.device, self.start, self.seconds = device, 0.0, 0.0

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = measure.current_time(self.device)

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == state.max_steps:
            self.seconds = (measure.current_time(self.device) - self.start) / state.max_steps


@dataclass
class Side:
    """A trainer that can be run repeatedly, with its stopwatch."""
    trainer: transformers.Trainer
    stopwatch: Stopwatch
    plans: Iterator[list] | None = None
    """The batches of each run, if they differ"""

    def run(self) -> float:
        """Train once and return the seconds per step."""
        if self.plans:
            self.trainer.train_dataset.plan = next(self.plans)
        with pretrained.quiet():
            self.trainer.train()
        return self.stopwatch.seconds

    def peak_bytes(self) -> int | None:
        """Return the peak bytes of a run: weights, optimizer state and what a step holds in addition."""
        states = [value for state in self.trainer.optimizer.state.values() for value in state.values()
                  if isinstance(value, torch.Tensor)]
        model = self.trainer.model
        held_bytes = measure.tensor_bytes([*model.parameters(), *model.buffers(), *states], self.stopwatch.device)
        extra_bytes = measure.extra_peak_bytes(self.run, self.stopwatch.device)
        return None if extra_bytes is None else held_bytes + extra_bytes


def kit_side(model, train_set: TrainSet, ratio: float, device_config: DeviceConfig, folder: Path, changes: dict) -> Side:
    """Return the kit's trainer as `finetune.prepare` makes it, each step one micro-batch of the given clips."""
    config = Config(steps=train_set.steps, rank=RANK, alpha=float(RANK), depth_frame_fraction=ratio, seed=SEED, **changes)
    data = dataset.MicroBatchDataset(train_set.clips, train_set.prompt_builder, config)
    data.plan = [[(index, None) for index in indices] for indices in train_set.step_clips]
    arguments = trainer.training_arguments(config, Run("kit", folder), device_config)
    arguments.save_strategy = arguments.eval_strategy = "no"
    stopwatch = Stopwatch(device_config.device)
    csm_trainer = trainer.CsmTrainer(model, arguments, data, [], device_config, callbacks=[stopwatch])
    csm_trainer.remove_callback(PrinterCallback)
    return Side(csm_trainer, stopwatch)


def stock_side(model, train_set: TrainSet, device_config: DeviceConfig, folder: Path) -> Side:
    """Return Trainer and PEFT as the notebook uses them."""
    examples = notebook.padded_examples(train_set.clips, train_set.raw_clips, train_set.prompt_builder)
    arguments = notebook.arguments(train_set.batch, train_set.steps, device_config, folder)
    stopwatch = Stopwatch(device_config.device)
    ordered = [examples[index] for indices in train_set.step_clips for index in indices]
    stock_trainer = notebook.StockTrainer(model=model, args=arguments, train_dataset=ordered, callbacks=[stopwatch])
    stock_trainer.remove_callback(PrinterCallback)
    return Side(stock_trainer, stopwatch)


def relative_loss_difference(model, train_set: TrainSet, device: str) -> float:
    """Return the relative difference of both sides' losses on two clips at ratio 1 in float32; raise if it is too large."""
    shortest = sorted(range(len(train_set.clips)), key=lambda index: len(train_set.clips[index].codes))[:2]
    clips, raw_clips = ([items[index] for index in shortest] for items in (train_set.clips, train_set.raw_clips))
    examples = [dataset.build_example(clip, train_set.prompt_builder) for clip in clips]
    batch = dataset.collate(examples, dataset.sample_depth_frames(examples, 1.0, 0), packing=True)
    stock_batch = transformers.default_data_collator(notebook.padded_examples(clips, raw_clips, train_set.prompt_builder))
    with torch.no_grad(), devices.full_float32():
        sums = loss.loss_sums(model, to_device(batch, device))
        kit_losses = (sums.backbone / sums.frames, sums.depth / sums.depth_frames / (len(sums.by_codebook) - 1))
        outputs = model(**to_device(stock_batch, device))
    stock_losses = (outputs.backbone_loss, outputs.depth_decoder_loss)
    difference = max(abs(kit.item() / stock.item() - 1) for kit, stock in zip(kit_losses, stock_losses))
    if not difference <= AGREEMENT[device]:
        raise KitError(f"the losses of the two sides differ by {difference:.1e}, relative: {kit_losses} and {stock_losses}; "
                       f"at most {AGREEMENT[device]} is allowed. The timed work would differ: run tests/test_model_loss.py.")
    return difference


def to_device(batch: dict, device: str) -> dict:
    return {name: value.to(device) if isinstance(value, torch.Tensor) else value for name, value in batch.items()}


def compare(options: argparse.Namespace, device_config: DeviceConfig, folder: Path) -> list[dict]:
    """Return the rows of every clip length and depth ratio."""
    device = device_config.device
    steps = options.steps or STEPS[device]
    kit_model = shapes.network(options.shape, device)
    train_sets, max_difference, encoding_seconds = {}, 0.0, {}
    for seconds in options.seconds:
        raw_clips = shapes.random_clips(options.shape, options.batch * min(steps, DIFFERENT), shapes.seconds_range(seconds))
        start = measure.current_time(device)
        clips = shapes.encode_clips(raw_clips, Codec(kit_model.codec_model, shapes.spec(options.shape)))
        encoding_seconds[seconds] = (measure.current_time(device) - start) / len(clips)
        train_sets[seconds] = TrainSet(clips, raw_clips, shapes.prompt_builder(options.shape), options.batch, steps)
        max_difference = max(max_difference, relative_loss_difference(kit_model, train_sets[seconds], device))
    print(f"At depth ratio 1 the losses of both sides agree within {max_difference:.0e}.")
    kit_model = with_lora(kit_model, device_config)
    stock_model = (notebook.unsloth_model(options.shape, device_config, folder) if options.against == "unsloth"
                   else notebook.stock_model(options.shape, device_config))
    rows, changes = [], dict(options.set)
    for seconds, train_set in train_sets.items():
        sides = {options.against: stock_side(stock_model, train_set, device_config, folder)}
        sides |= {ratio: kit_side(kit_model, train_set, float(fractions.Fraction(ratio)), device_config, folder, changes)
                  for ratio in options.ratios}
        results = time_sides(sides, train_set, options.repeats, device)
        settings = {"seconds": seconds, "batch": options.batch, "steps": steps, "rank": RANK, "device": device,
                    "dtype": str(device_config.dtype), "threads": torch.get_num_threads(), "optimizer": notebook.OPTIMIZER,
                    "losses_apart": max_difference, "encoding_once_seconds_per_clip": encoding_seconds[seconds], **changes}
        stock_result = {"name": notebook.SIDES[options.against], **results[options.against]}
        benchmark = WHAT if options.dtype == "auto" else f"{WHAT} {options.dtype}"
        rows += [measure.row(benchmark, options.shape, options.against, {"depth_frame_fraction": ratio, **settings},
                             results[ratio], stock_result) for ratio in options.ratios]
    return rows


def with_lora(model, device_config: DeviceConfig):
    """Return the kit's network as `finetune.prepare` makes it."""
    model.codec_model = None
    shapes.cast(model, device_config.dtype)
    attention.install(model)
    return lora.add_lora(model, RANK, float(RANK), "both", SEED)


def compare_new_batches(options: argparse.Namespace, device_config: DeviceConfig, folder: Path) -> list[dict]:
    """Return the rows of the kit on batches that never come again, against the kit on a few that do."""
    steps, batch = options.steps or STEPS[device_config.device], options.batch
    model, builder = with_lora(shapes.network(options.shape, device_config.device), device_config), shapes.prompt_builder(
        options.shape)
    rows, changes = [], dict(options.set)
    for seconds in options.seconds:
        sides = {}
        for name, count in (("kit", steps * (options.repeats + 1)), ("other", min(steps, DIFFERENT))):
            clips = shapes.random_codes(options.shape, batch * count, shapes.seconds_range(seconds))
            sides[name] = TrainSet(clips, [], builder, batch, steps)
        for ratio in options.ratios:
            trained = {name: kit_side(model, train_set, float(fractions.Fraction(ratio)), device_config, folder, changes)
                       for name, train_set in sides.items()}
            trained["kit"].plans = new_batches(batch, steps)
            durations = measure.alternate({name: side.run for name, side in trained.items()}, options.repeats)
            settings = {"depth_frame_fraction": ratio, "seconds": seconds, "batch": batch, "steps": steps, "rank": RANK,
                        "device": device_config.device, "dtype": str(device_config.dtype), "by": "batches that come again",
                        **changes}
            rows.append(measure.row(WHAT, options.shape, REPEATED, settings, *(
                measure.speed(durations[name], batch, "clips/s", seconds_are="per optimizer step") for name in sides)))
    return rows


def new_batches(batch: int, steps: int) -> Iterator[list]:
    """Yield the plan of each run: the next clips, none of them a second time."""
    for run in itertools.count():
        starts = range(run * steps * batch, (run + 1) * steps * batch, batch)
        yield [[(index, None) for index in range(start, start + batch)] for start in starts]


def time_sides(sides: dict[str, Side], train_set: TrainSet, repeats: int, device: str) -> dict[str, dict]:
    """Return speed and memory of each side: timed in turn, then one more run to measure memory."""
    durations = measure.alternate({name: side.run for name, side in sides.items()}, repeats)
    results = {}
    for name, runs in durations.items():
        results[name] = measure.speed(runs, train_set.batch, "clips/s", peak_bytes=sides[name].peak_bytes(),
                                      memory=measure.MEMORY[device])
        results[name]["frames_per_second"] = train_set.frames / results[name]["seconds"]
        results[name]["seconds_are"] = "per optimizer step"
    return results


def main(arguments: Sequence[str] | None = None) -> dict:
    parser = measure.parser(__doc__)
    parser.add_argument("--against", choices=(*notebook.SIDES, REPEATED), default="stock")
    parser.add_argument("--dtype", choices=devices.DTYPES, default="auto", help="of both sides")
    parser.add_argument("--seconds", nargs="+", default=SECONDS, help="clip lengths: 10, 2-10, or several of them")
    parser.add_argument("--ratios", nargs="+", default=RATIOS, help="depth ratios of the kit")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps of a run; 0 for 1 on a CPU, 20 on a GPU")
    parser.add_argument("--batch", type=int, default=8, help="clips of a step")
    parser.add_argument("--set", nargs="+", default=[], type=parse_setting, metavar="NAME=VALUE", help="of the kit's config")
    options = parser.parse_args(arguments)
    device_config = devices.choose(options.device, options.dtype)
    print(device_config.reason)
    if reason := notebook.missing_requirement(options.against, device_config):
        print(f"{options.against} is not measured: {reason}.")
        missing = measure.not_measured(reason)
        rows = [measure.row(WHAT, options.shape, options.against, {}, missing, missing)]
    else:
        with tempfile.TemporaryDirectory() as folder:
            compare_with = compare_new_batches if options.against == REPEATED else compare
            rows = compare_with(options, device_config, Path(folder))
    return measure.report(rows, device_config.device, options.out)


def parse_setting(text: str) -> tuple[str, object]:
    name, _, value = text.partition("=")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


if __name__ == "__main__":
    main()
