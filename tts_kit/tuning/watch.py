"""Watching a training: a progress bar, the record and plot of both losses, and samples to hear."""

import io
from pathlib import Path

from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from tts_kit import audio, text
from tts_kit.model import generate, lora
from tts_kit.model.load import Base
from tts_kit.recipe import Recipe
from tts_kit.run import Run, read_rows, write_bytes, write_rows
from tts_kit.tokens.prompt import Turn

RECORD = "log.jsonl"


class Progress(TrainerCallback):
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


class Record(TrainerCallback):
    """Everything logged, as rows of training/log.jsonl; the plot is drawn from them."""

    def __init__(self, run: Run):
        self.path = run.training / RECORD

    def on_evaluate(self, args, state, control, **_):
        write_rows(self.path, state.log_history)
        picture = io.BytesIO()
        plot(self.path).savefig(picture, dpi=120)
        write_bytes(self.path.with_name("losses.png"), picture.getvalue())


class Samples(TrainerCallback):
    """The same sentences with the same seeds at every so many steps, to hear what the losses mean."""

    def __init__(self, base: Base, recipe: Recipe, run: Run, speaker: str):
        self.base, self.recipe, self.speaker = base, recipe, speaker
        self.folder = run.training / "samples"

    def on_train_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.speak(state.global_step)

    def on_step_end(self, args, state, control, **_):
        if self.recipe.sample_every and state.global_step % self.recipe.sample_every == 0:
            self.speak(state.global_step)

    def speak(self, step: int) -> None:
        """Write samples/step-000100/1.wav, 2.wav, ..."""
        base, recipe = self.base, self.recipe
        if not recipe.sample_every:
            return
        lines = [text.normalise(line) for line in recipe.sample_texts]
        prompts = [base.writer.write(f"sample {number}", [Turn(line, self.speaker)])
                   for number, line in enumerate(lines, 1)]
        limits = [round(text.budget_seconds(line) * base.physics.frame_rate) for line in lines]
        model = base.model
        was_training = model.training
        model.eval()
        takes = generate.takes(lora.bare(model), base.physics, prompts,
                               base.sampling.asked(recipe),
                               [recipe.seed + number for number in range(len(lines))], limits)
        model.train(was_training)
        for number, take in enumerate(takes, 1):
            wave = base.codec.decode([take.codes])[0]
            audio.write(self.folder / f"step-{step:06d}" / f"{number}.wav", wave, base.physics.sample_rate)


def first_and_last_evaluation(trainer: Trainer) -> tuple[dict, dict]:
    """Held-out losses of the base and of the finished adapter; the first is remembered over interruptions."""
    rows = [row for row in trainer.state.log_history if "eval_loss" in row]
    if rows[-1]["step"] != trainer.state.max_steps:
        trainer.evaluate()
        rows.append(trainer.state.log_history[-1])
    keep = [name for name in rows[0] if name.startswith("eval_")]
    return tuple({name: row[name] for name in keep} for row in (rows[0], rows[-1]))


def plot(path: Path):
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
