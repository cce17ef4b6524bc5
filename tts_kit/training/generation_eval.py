"""Listening to a training: judges hear the same sentences at every so many steps, and any of these steps can be kept."""

import dataclasses
import io
import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm
from transformers import Trainer, TrainerCallback

from tts_kit import audio
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.evaluation import metrics
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels
from tts_kit.io import atomic_folder, read_rows, write_bytes, write_rows, write_text
from tts_kit.model import lora
from tts_kit.model.load import Base
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.tokens.cache import EncodedClip
from tts_kit.training import callbacks, checkpoint_selection, distributed, grid
from tts_kit.training.checkpoint_selection import SelectedCheckpoint

SENTENCES = Path(__file__).with_name("sentences.txt")
FEWEST_SENTENCES = 5
MOST_REFERENCES = 20
ROWS, FOLDER, SAID, MADE = "ears.jsonl", "ears", "said.jsonl", "made.json"


class GenerationEvalCallback(TrainerCallback):
    """Listens to the base and at every so many steps; each step's adapter is kept beside its clips."""

    def __init__(self, base: Base, config: Config, run: Run, clips: Sequence[EncodedClip], metric_models: MetricModels | None):
        self.base, self.config, self.run, self.metric_models = base, config, run, metric_models
        self.learnt = [clip for clip in clips if clip.split == "train"]
        self.sentences = read_sentences(clips)
        self.folder, self.table = run.training / FOLDER, run.training / ROWS
        self._centre: np.ndarray | None = None
        self._over = False

    def on_train_begin(self, args, state, control, model=None, **_):
        self._over = distributed.broadcast_bool(lambda: self._begin(state.global_step, model))

    def on_step_end(self, args, state, control, model=None, **_):
        step = state.global_step
        if step % self.config.generation_eval_steps == 0 or step == state.max_steps:
            control.should_evaluate = True  # the losses of a step that may be kept are told as well
            self._over = distributed.broadcast_bool(lambda: self._hear(step, model))
        if self._over and step < state.max_steps:
            tqdm.write(f"The training ends at step {step} of {state.max_steps}: {self.recipe.early_stopping_patience} "
                       f"{'listens' if self.recipe.early_stopping_patience > 1 else 'listen'} without a better step.")
            control.should_training_stop = True

    def _begin(self, now: int, model: torch.nn.Module) -> bool:
        """Hear what was not heard yet; whether the training is over already."""
        self._claim()
        there = {int(path.name.split("-")[1]) for path in self.folder.glob("step-*")}
        # after an interruption what was said is judged, and not said again
        for step in sorted(each for each in there | {0} if each <= now):
            if step in there or now == 0:
                self.listen(step, model)
        return self._is_over(now)

    def _hear(self, step: int, model: torch.nn.Module) -> bool:
        self.listen(step, model)
        return self._is_over(step)

    def listen(self, step: int, model: torch.nn.Module) -> None:
        """Say, keep and judge one step, as far as that is not done; then show all steps."""
        place = self._place(step)
        if not place.exists():
            self._say(step, model, place)
        others, mine = ([row for row in self.rows() if (row["step"] == step) is own] for own in (False, True))
        if {row["metrics"] for row in mine} != {self.metric_models.name}:
            bar = tqdm(read_rows(place / SAID), desc=f"listening to step {step}", unit="clip", leave=False)
            rows = [self._judge(row) for row in bar]
            write_rows(self.table, sorted(others + rows, key=lambda row: (row["step"], row["sentence"])))
            self.show()

    def rows(self) -> list[dict]:
        """One row for each step and sentence that was heard so far."""
        return read_rows(self.table) if self.table.exists() else []

    def show(self, settled: bool = False) -> Path:
        """Draw training/ears.png and write training/ears.html; returns the page."""
        rows, picture = self.rows(), io.BytesIO()
        choice = checkpoint_selection.select(rows, self.config.steps)
        callbacks.plot_generation_eval(rows, choice.step).savefig(picture, dpi=120)
        write_bytes(self.run.training / "ears.png", picture.getvalue())
        return grid.write(rows, self.run.training, f"{self.run.name}: what each step sounds like",
                          choice.why if settled else f"So far: {choice.why}", choice.step)

    def settle(self, trainer: Trainer) -> SelectedCheckpoint:
        """Choose the step to keep, put its adapter into the model, and say why."""
        choice = checkpoint_selection.select(self.rows(), self.config.steps)
        if choice.by == checkpoint_selection.BY_GENERATION_EVAL:
            lora.load_weights(trainer.model, self._place(choice.step) / lora.WEIGHTS_FILE)
        print(f"{choice.why}\nHear every step: {self.show(settled=True).resolve().as_uri()}")
        return choice

    def _is_over(self, step: int) -> bool:
        return checkpoint_selection.should_stop_early([row for row in self.rows() if row["step"] <= step], self.config.early_stopping_patience)

    def _place(self, step: int) -> Path:
        return self.folder / f"step-{step:06d}"

    def _claim(self) -> None:
        """What was heard of a training with other settings is not mixed in."""
        made = json.dumps({"base": self.base.fingerprint, "codes": cache.digest(self.run.codes),
                           "sentences": self.sentences, "recipe": json.loads(self.config.to_json())}, indent=2)
        path = self.folder / MADE
        if not path.exists() or path.read_text(encoding="utf-8") != made:
            shutil.rmtree(self.folder, ignore_errors=True)
            self.table.unlink(missing_ok=True)
            write_text(path, made)

    def _say(self, step: int, model: torch.nn.Module, place: Path) -> None:
        rate, rows = self.base.spec.sample_rate, []
        said = callbacks.generate_samples(self.base, self.config, self.learnt[0].source, self.sentences)
        with atomic_folder(place) as beside:
            if step != checkpoint_selection.BASE_MODEL:
                lora.save_weights(model, beside / lora.WEIGHTS_FILE)
            for number, (sentence, (wave, ended_with_eos)) in enumerate(zip(self.sentences, said), 1):
                name = f"{number:02d}.flac"
                audio.write(beside / name, wave, rate)
                rows.append({"step": step, "sentence": number, "text": sentence, "file": f"{FOLDER}/{place.name}/{name}",
                             "seed": self.config.seed + number - 1, "ended_with_eos": ended_with_eos,
                             "seconds": round(len(wave) / rate, 3)})
            write_rows(beside / SAID, rows)

    def _judge(self, row: dict) -> dict:
        found = self.metric_models.measure(metrics.read(self.run.training / row["file"]), metrics.SAMPLE_RATE, row["text"])
        # a judge that breaks down tells as much of a clip as one that has no sound to hear
        failure = found.failure or "; ".join(found.failed.values())
        wrong = found.ref_words if found.word_errors is None else found.word_errors
        return row | {"transcript": found.transcript, "ref_words": found.ref_words, "word_errors": wrong,
                      "sim": round(self._likeness(found), 4), "failure": failure, "metrics": self.metric_models.name}

    def _likeness(self, found: ClipMetrics) -> float:
        """Cosine to the mean of clips that were learnt from, as the codec plays them; a clip without sound is like nobody.

        Held-out clips are left for the comparison, and no sentence said here is among those learnt.
        """
        if found.embedding is None:
            return 0.0
        if self._centre is None:
            mean = np.mean([self.metric_models.embed(wave, self.base.spec.sample_rate) for wave in self._real()], axis=0)
            self._centre = mean / np.linalg.norm(mean)
        return float(found.embedding @ self._centre)

    def _real(self) -> list[np.ndarray]:
        """Up to MOST_REFERENCES clips that were learnt from, evenly out of all of them."""
        count = min(len(self.learnt), MOST_REFERENCES)
        waves = [self.base.codec.decode([self.learnt[place * len(self.learnt) // count].codes])[0] for place in range(count)]
        rate = self.base.spec.sample_rate
        if sounding := [wave for wave in waves if not metrics.unusable_reason(wave, rate)]:
            return sounding
        raise KitError(f"none of {count} clips that were learnt from holds any sound, so that nothing can be compared with "
                      "the voice. Look at the data, or train with --generation-eval-steps 0.")


def build(base: Base, config: Config, run: Run, clips: Sequence[EncodedClip]) -> GenerationEvalCallback | None:
    """Ears for a training, if it asks for them; none, and why, where judges or sentences are missing."""
    if not config.generation_eval_steps:
        return None
    last = "The last step will be kept."
    if not metrics.load_available():
        print(f"Nobody can listen to the training: judges are not installed. Install them: {metrics.INSTALL}\n{last}")
    elif len(read_sentences(clips)) < FEWEST_SENTENCES:
        print(f"Nobody can listen to the training: only {len(read_sentences(clips))} of the kit's sentences are not in the data "
              f"itself, and fewer than {FEWEST_SENTENCES} say nothing. {last}")
    else:
        # words and voice are what is chosen by; the other judges would only take their time
        metric_models = dataclasses.replace(metrics.load(), predict_mos=None, predict_mos_2=None, predict_noise_mos=None,
                                        embed_speaker_2=None) if distributed.is_rank_zero() else None
        return GenerationEvalCallback(base, config, run, clips, metric_models)
    return None


def load_best(ears: GenerationEvalCallback | None, trainer: Trainer) -> SelectedCheckpoint:
    """The step to keep; the model holds its adapter then."""
    return ears.settle(trainer) if ears else SelectedCheckpoint(trainer.state.global_step, checkpoint_selection.LAST_STEP, "")


def read_sentences(clips: Sequence[EncodedClip]) -> list[str]:
    """The kit's sentences but those of the data: one learnt by heart says nothing, one held out is for the comparison."""
    taken = {_bare(clip.text) for clip in clips}
    return [line for line in SENTENCES.read_text(encoding="utf-8").splitlines() if _bare(line) not in taken]


def _bare(text: str) -> str:
    return " ".join(re.findall(r"[^\W_]+", text.casefold()))
