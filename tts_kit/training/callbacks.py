"""Trainer callbacks: progress bar, loss log and plot, audio samples; and the plots of a training."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from tts_kit import audio, text
from tts_kit.config import Config
from tts_kit.evaluation import stats
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_rows, write_bytes, write_rows
from tts_kit.model import lora
from tts_kit.model.load import Base
from tts_kit.run import Run
from tts_kit.tokens.prompt import Turn

LOG_FILE, LOSS_PLOT = "log.jsonl", "losses.png"
RED, GREY = "#b3402a", "0.75"


class ProgressCallback(TrainerCallback):
    """One progress bar for the whole training, with the latest losses."""

    def __init__(self):
        self.bar, self.losses = None, {}

    def on_train_begin(self, args, state, control, **_):
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, desc="training", unit="step")

    def on_log(self, args, state, control, logs=None, **_):
        names = {"backbone_loss": "backbone", "depth_loss": "depth", "eval_loss": "held out"}
        self.losses |= {short: f"{logs[name]:.3f}" for name, short in names.items() if name in logs}
        if self.bar:
            self.bar.set_postfix(self.losses, refresh=False)

    def on_step_end(self, args, state, control, **_):
        self.bar.update(state.global_step - self.bar.n)

    def close(self) -> None:
        """Close the bar, also after an interruption, so that the next output starts on a line of its own."""
        if self.bar:
            self.bar.close()


class LossPlotCallback(TrainerCallback):
    """Writes everything logged to training/log.jsonl, and the plot of the losses."""

    def __init__(self, run: Run):
        self.path = run.training / LOG_FILE

    def on_evaluate(self, args, state, control, **_):
        write_rows(self.path, state.log_history)
        write_figure(self.path.with_name(LOSS_PLOT), plot_losses(self.path))


class SampleCallback(TrainerCallback):
    """Synthesizes the same sentences with the same seeds every `sample_steps` steps."""

    def __init__(self, base: Base, config: Config, run: Run, speaker: str):
        self.base, self.config, self.speaker = base, config, speaker
        self.folder = run.training / "samples"

    def on_train_begin(self, args, state, control, **_):
        if self.config.sample_steps and state.global_step == 0:
            self.write_samples(0)

    def on_step_end(self, args, state, control, **_):
        if self.config.sample_steps and state.global_step % self.config.sample_steps == 0:
            self.write_samples(state.global_step)

    def write_samples(self, step: int) -> None:
        """Write samples/step-000100/1.wav, 2.wav, ..."""
        samples = generate_samples(self.base, self.config, self.speaker, self.config.sample_texts)
        for number, (wave, _) in enumerate(samples, 1):
            audio.write(self.folder / f"step-{step:06d}" / f"{number}.wav", wave, self.base.spec.sample_rate)


def generate_samples(base: Base, config: Config, speaker: str, sentences: Sequence[str]) -> list[tuple[np.ndarray, bool]]:
    """(samples,) of each sentence, and whether it ended with EOS; one batch, and a fixed seed for each sentence."""
    texts = [text.normalize(sentence) for sentence in sentences]
    prompts = [base.prompt_builder.build(f"sentence {number}", [Turn(line, speaker)])
               for number, line in enumerate(texts, 1)]
    max_frames = [round(text.max_speech_seconds(line) * base.spec.frame_rate) for line in texts]
    # an engine for these samples alone: its copies of the weights are outdated after the next step, and take memory
    engine = InferenceEngine(base.model, base.spec, lora.DEFAULT_ADAPTER)
    sampling = Sampling.from_generation_config(base.generation_config).override(config)
    generations = engine.generate(prompts, sampling, [config.seed + number for number in range(len(texts))], max_frames)
    return [(base.codec.decode([generation.codes])[0], generation.ended_with_eos) for generation in generations]


def evaluations(trainer: Trainer, step: int) -> tuple[dict, dict]:
    """Held-out losses of the base model, and of the adapter at `step`, which the model holds now."""
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    if step not in [row["step"] for row in rows]:
        trainer.evaluate()
        rows.append(trainer.state.log_history[-1] | {"step": step})
    after = next(row for row in reversed(rows) if row["step"] == step)
    return tuple({name: row[name] for name in rows[0] if name.startswith("eval_")} for row in (rows[0], after))


def write_figure(path: Path, figure) -> None:
    """Write a matplotlib figure as PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    write_bytes(path, buffer.getvalue())


def plot_losses(log_file: Path):
    """A matplotlib figure of the backbone and the depth loss, training and held out."""
    rows = read_rows(log_file)
    figure, axes = _two_panels("backbone loss", "depth loss")
    for axis, part in zip(axes, ("backbone", "depth")):
        train = [(row["step"], row[f"{part}_loss"]) for row in rows if f"{part}_loss" in row]
        held_out = [(row["step"], row[f"eval_{part}_loss"]) for row in rows if f"eval_{part}_loss" in row]
        if train:
            axis.plot(*zip(*train), color=GREY, linewidth=1, label="training")
        # written at each evaluation, the first of which is the base model's
        axis.plot(*zip(*held_out), color=RED, marker="o", markersize=4, label="held out")
        axis.axhline(held_out[0][1], color=RED, linestyle=":", linewidth=1, label="base model")
        axis.legend(frameon=False)
    return figure


def plot_generation_eval(sim: dict[int, stats.Estimate], wer: dict[int, stats.Estimate], selected: int):
    """A matplotlib figure of SIM and WER at every evaluated step, with 95 % confidence intervals."""
    figure, axes = _two_panels("SIM (95 % CI)", "WER (95 % CI)")
    for axis, estimates in zip(axes, (sim, wer)):
        steps, values = list(estimates), [estimate.value for estimate in estimates.values()]
        intervals = [[max(0.0, estimate.value - estimate.low) for estimate in estimates.values()],
                     [max(0.0, estimate.high - estimate.value) for estimate in estimates.values()]]
        axis.errorbar(steps, values, intervals, color=RED, marker="o", markersize=4, linewidth=1, capsize=2)
        if steps[0] == 0:
            axis.axhline(values[0], color=RED, linestyle=":", linewidth=1, label="base model")
        if selected in steps:
            axis.axvline(selected, color=GREY, linewidth=6, zorder=0, label="selected")
        if axis.get_legend_handles_labels()[0]:
            axis.legend(frameon=False)
    return figure


def _two_panels(*titles: str):
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, title in zip(axes, titles):
        axis.set(title=title, xlabel="step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes
