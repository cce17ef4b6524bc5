"""Trainer callbacks: progress bar, loss log and plot, audio samples."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from transformers import TrainerCallback

from tts_kit import audio, text
from tts_kit.config import Config
from tts_kit.evaluation.stats import Estimate
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling, guided_prompt
from tts_kit.io import write_bytes, write_rows
from tts_kit.model import lora
from tts_kit.model.load import Base
from tts_kit.progress import tqdm
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

        def losses(name: str) -> dict[int, float]:
            return {row["step"]: row[name] for row in state.log_history if name in row}

        write_plot(self.path.with_name(LOSS_PLOT),
                   {"backbone loss": losses("eval_backbone_loss"), "depth loss": losses("eval_depth_loss")},
                   train_losses={"backbone loss": losses("backbone_loss"), "depth loss": losses("depth_loss")})


class SampleCallback(TrainerCallback):
    """Synthesizes the same sentences with the same seeds every `sample_steps` steps."""

    def __init__(self, base: Base, config: Config, run: Run, speaker: str):
        self.base, self.config, self.run, self.speaker = base, config, run, speaker

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
            audio.write(sample_folder(self.run, step) / f"{number}.wav", wave, self.base.spec.sample_rate)


def sample_folder(run: Run, step: int) -> Path:
    return run.training / "samples" / f"step-{step:06d}"


def generate_samples(base: Base, config: Config, speaker: str, sentences: Sequence[str]) -> list[tuple[np.ndarray, bool]]:
    """(samples,) of each sentence, and whether it ended with EOS; one batch, and a fixed seed for each sentence."""
    texts = [text.normalize(sentence) for sentence in sentences]
    sampling = Sampling.from_generation_config(base.generation_config).override(config)
    prompts = [guided_prompt(base.prompt_builder, f"sentence {number}", [], Turn(line, speaker), sampling)
               for number, line in enumerate(texts, 1)]
    max_frames = [round(text.max_speech_seconds(base.prompt_builder.spoken(line)) * base.spec.frame_rate) for line in texts]
    # an engine for these samples alone: its copies of the weights are outdated after the next step, and take memory
    engine = InferenceEngine(base.model, base.spec, lora.DEFAULT_ADAPTER)
    generations = engine.generate(prompts, sampling, [config.seed + number for number in range(len(texts))], max_frames)
    return [(base.codec.decode([generation.codes])[0], generation.ended_with_eos) for generation in generations]


def write_plot(path: Path, panels: dict[str, dict[int, float | Estimate]], selected: int | None = None,
               train_losses: dict[str, dict[int, float]] | None = None) -> None:
    """Write a PNG with a panel for each title: the value at every evaluated step, with its interval if it has one."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(9, 3.4), layout="constrained")
    for axis, (title, values) in zip(figure.subplots(1, len(panels)), panels.items()):
        if train_losses and train_losses[title]:
            axis.plot(*zip(*train_losses[title].items()), color=GREY, linewidth=1, label="training")
        if selected in values:
            axis.axvline(selected, color=GREY, linewidth=6, zorder=0, label="selected")
        points = [(value.value, value.low, value.high) if isinstance(value, Estimate) else (value, value, value)
                  for value in values.values()]
        heights, low, high = np.array(points).T
        axis.errorbar(list(values), heights, np.maximum(0, [heights - low, high - heights]), color=RED, marker="o",
                      markersize=4, linewidth=1, capsize=2, label="held out" if train_losses else None)
        if 0 in values:
            axis.axhline(heights[0], color=RED, linestyle=":", linewidth=1, label="base model")
        axis.set(title=title, xlabel="step")
        axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=120)
    write_bytes(path, buffer.getvalue())
