"""Watching a training: a progress bar, the record and plot of both losses, and samples to hear."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from tts_kit import audio, text
from tts_kit.config import Config
from tts_kit.evaluation import stats
from tts_kit.generation import generate
from tts_kit.io import read_rows, write_bytes, write_rows
from tts_kit.model import lora
from tts_kit.model.load import Base
from tts_kit.run import Run
from tts_kit.tokens.prompt import Turn

RECORD = "log.jsonl"


class ProgressCallback(TrainerCallback):
    """One bar for the whole training, with the newest losses behind it."""

    def __init__(self):
        self.bar, self.shown = None, {}

    def on_train_begin(self, args, state, control, **_):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_log(self, args, state, control, logs=None, **_):
        names = {"backbone_loss": "backbone", "depth_loss": "depth", "eval_loss": "held out"}
        self.shown |= {short: f"{logs[name]:.3f}" for name, short in names.items() if name in logs}
        if self.bar:
            self.bar.set_postfix(self.shown, refresh=False)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(state.global_step - self.bar.n)

    def close(self) -> None:
        """Also after an interruption, so that what is printed next has a line of its own."""
        if self.bar:
            self.bar.close()


class LossPlotCallback(TrainerCallback):
    """Everything logged, as rows of training/log.jsonl; the plot is drawn from them."""

    def __init__(self, run: Run):
        self.path = run.training / RECORD

    def on_evaluate(self, args, state, control, **_):
        write_rows(self.path, state.log_history)
        picture = io.BytesIO()
        plot_losses(self.path).savefig(picture, dpi=120)
        write_bytes(self.path.with_name("losses.png"), picture.getvalue())


class SampleCallback(TrainerCallback):
    """The same sentences with the same seeds at every so many steps, to hear what the losses mean."""

    def __init__(self, base: Base, config: Config, run: Run, speaker: str):
        self.base, self.config, self.speaker = base, config, speaker
        self.folder = run.training / "samples"

    def on_train_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.speak(state.global_step)

    def on_step_end(self, args, state, control, **_):
        if self.config.sample_steps and state.global_step % self.config.sample_steps == 0:
            self.speak(state.global_step)

    def speak(self, step: int) -> None:
        """Write samples/step-000100/1.wav, 2.wav, ..."""
        if not self.config.sample_steps:
            return
        said = generate_samples(self.base, self.config, self.speaker, self.config.sample_texts)
        for number, (wave, _) in enumerate(said, 1):
            audio.write(self.folder / f"step-{step:06d}" / f"{number}.wav", wave, self.base.spec.sample_rate)


def generate_samples(base: Base, config: Config, speaker: str, sentences: Sequence[str]) -> list[tuple[np.ndarray, bool]]:
    """Each sentence in one batch, as (samples,), and whether it ended by itself; a sentence has always the same seed."""
    lines = [text.normalize(sentence) for sentence in sentences]
    prompts = [base.prompt_builder.build(f"sentence {number}", [Turn(line, speaker)]) for number, line in enumerate(lines, 1)]
    limits = [round(text.max_speech_seconds(line) * base.spec.frame_rate) for line in lines]
    model = base.model
    was_training = model.training
    model.eval()
    takes = generate.generate(lora.unwrap(model), base.spec, prompts, base.sampling.asked(config),
                           [config.seed + number for number in range(len(lines))], limits)
    model.train(was_training)
    return [(base.codec.decode([take.codes])[0], take.ended_with_eos) for take in takes]


def evaluations(trainer: Trainer, step: int) -> tuple[dict, dict]:
    """Held-out losses of the base and of the adapter at `step`, which the model holds now; the first is remembered over
    interruptions."""
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    if step not in [row["step"] for row in rows]:
        trainer.evaluate()
        rows.append(trainer.state.log_history[-1] | {"step": step})
    found = next(row for row in reversed(rows) if row["step"] == step)
    keep = [name for name in rows[0] if name.startswith("eval_")]
    return tuple({name: row[name] for name in keep} for row in (rows[0], found))


def plot_losses(path: Path):
    """Both losses of a training, learnt and held out, as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    rows = read_rows(path)
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, part in zip(figure.subplots(1, 2), ("backbone", "depth")):
        learnt = [(row["step"], row[f"{part}_loss"]) for row in rows if f"{part}_loss" in row]
        held_out = [(row["step"], row[f"eval_{part}_loss"]) for row in rows if f"eval_{part}_loss" in row]
        axis.plot(*zip(*learnt), color="0.75", linewidth=1, label="training") if learnt else None
        if held_out:
            axis.plot(*zip(*held_out), color="#b3402a", marker="o", markersize=4, label="held out")
            axis.axhline(held_out[0][1], color="#b3402a", linestyle=":", linewidth=1, label="base model")
        axis.set(title=f"{part} loss", xlabel="step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    return figure


def plot_generation_eval(rows: Sequence[dict], chosen: int):
    """What judges heard at every step, with how sure it is, as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    steps = sorted({row["step"] for row in rows})
    for axis, (title, top, bottom) in zip(figure.subplots(1, 2), (("SIM", "sim", ""),
                                                                  ("WER", "word_errors", "ref_words"))):
        found = [stats.bootstrap_ratio(stats.sums_by_sentence([row for row in rows if row["step"] == step], top, bottom))
                 for step in steps]
        values = [each.value for each in found]
        apart = [[max(0.0, each.value - each.low) for each in found], [max(0.0, each.high - each.value) for each in found]]
        axis.errorbar(steps, values, apart, color="#b3402a", marker="o", markersize=4, linewidth=1, capsize=2)
        if steps[0] == 0:
            axis.axhline(values[0], color="#b3402a", linestyle=":", linewidth=1, label="base model")
        if chosen in steps:
            axis.axvline(chosen, color="0.75", linewidth=6, zorder=0, label="kept")
        axis.set(title=title, xlabel="step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False) if axis.get_legend_handles_labels()[0] else None
    return figure
