"""Experiment trackers: Trainer's own callbacks log the losses; here samples as audio and the generation metrics too."""

import importlib.util
import os
import uuid

import torch
from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback
from transformers.integrations.integration_utils import get_reporting_integration_callbacks

from tts_kit import audio
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import write_text
from tts_kit.run import Run
from tts_kit.training import callbacks
from tts_kit.training.generation_eval import GenerationEvalCallback
from tts_kit.training.trainer import PROJECT

TENSORBOARD_FOLDER, WANDB_ID = "tensorboard", "wandb_id"
"""Under training/: TensorBoard's files; the id by which a resumed training continues the same run of Weights & Biases."""


def check_installed(config: Config) -> None:
    """Refuse trackers that are not installed."""
    if missing := [name for name in config.report_to if name != "none" and not importlib.util.find_spec(name)]:
        raise KitError(f"report_to names {' and '.join(missing)}, not installed here. Install: pip install "
                       f"{' '.join(missing)}; or choose --report-to none.")


class TrackerCallback(TrainerCallback):
    """Logs a step's samples and scores to the trackers; comes after the callbacks that make these, and after `trackers`."""

    def __init__(self, config: Config, run: Run, sample_rate: int, evaluation: GenerationEvalCallback | None,
                 resumed_step: int):
        self.config, self.run, self.sample_rate, self.evaluation = config, run, sample_rate, evaluation
        self.modules, self.writer = {}, None
        self.trackers: list[TrainerCallback] = []  # Trainer's own callbacks
        for name in set(config.report_to) - {"none"}:
            if name == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                # hides what was logged after the checkpoint that is resumed from
                self.writer = SummaryWriter(str(run.training / TENSORBOARD_FOLDER), purge_step=resumed_step + 1)
                self.trackers.append(TensorBoardCallback(self.writer))
            else:
                self.modules[name] = importlib.import_module(name)
                self.trackers += [tracker() for tracker in get_reporting_integration_callbacks(name)]
        if wandb := self.modules.get("wandb"):  # its run is the one that Trainer's callback then uses
            id_file = run.training / WANDB_ID
            if not id_file.exists():
                write_text(id_file, uuid.uuid4().hex[:8])
            wandb.finish()  # what an interrupted training left open
            wandb.init(project=os.environ.get("WANDB_PROJECT", PROJECT), name=run.name,
                       id=id_file.read_text(encoding="utf-8"), resume="allow")

    def on_train_begin(self, args, state, control, **_):
        if state.global_step == 0:
            self.on_step_end(args, state, control)

    def on_step_end(self, args, state, control, **_):
        if self.config.sample_steps and state.global_step % self.config.sample_steps == 0:
            self._log_samples(state.global_step)
        if self.evaluation and (scores := self.evaluation.scores(state.global_step)):
            for tracker in self.trackers:
                tracker.on_log(args, state, control, logs=scores)

    def on_train_end(self, args, state, control, **_):
        if wandb := self.modules.get("wandb"):
            wandb.finish()  # Trainer leaves it open, and the next training of this process would log to it

    def _log_samples(self, step: int) -> None:
        folder = callbacks.sample_folder(self.run, step)
        paths = {f"samples/{number}": folder / f"{number}.wav" for number in range(1, len(self.config.sample_texts) + 1)}
        for module in self.modules.values():
            clips = {name: module.Audio(str(path), caption=sentence)
                     for (name, path), sentence in zip(paths.items(), self.config.sample_texts)}
            module.log(clips | {"train/global_step": step})
        if self.writer:
            for name, path in paths.items():
                wave = torch.from_numpy(audio.read(path, self.sample_rate))
                self.writer.add_audio(name, wave[None], step, self.sample_rate)
            self.writer.flush()
