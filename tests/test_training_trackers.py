"""Experiment trackers: what reaches them, that nothing does unasked, and that a resumed training continues the same run.

The trackers are small modules of the same names that record their calls; the last test needs the real ones."""

import importlib.util
import json
import sys

import numpy as np
import pytest
from conftest import make_clip
from test_training_finetune import CPU, TEXTS, with_codes
from transformers import TrainerCallback

from tts_kit import audio, cli
from tts_kit.config import RESUME_MAY_CHANGE, Config, read_config
from tts_kit.errors import KitError
from tts_kit.io import write_text
from tts_kit.run import Run
from tts_kit.training import finetune, generation_eval, trainer

FAKE = """
import types
calls, run = [], None
class Config(dict):
    def update(self, values, allow_val_change): dict.update(self, values)
class Audio:
    def __init__(self, path, caption): self.path, self.caption = path, caption
class Run:
    def __init__(self): self.summary = {}
    def _label(self, code): pass
config = Config()
context_vars = types.SimpleNamespace(current_space_id=types.SimpleNamespace(get=lambda: None))
def init(**options):
    global run
    run = Run()
    calls.append(("init", options))
def define_metric(*names, **options): pass
def log(values): calls.append(("log", values))
def finish():
    global run
    run = None
    calls.append(("finish", {}))
"""
WRITER = """
class SummaryWriter:
    instances = []
    def __init__(self, log_dir, purge_step):
        self.log_dir, self.purge_step, self.scalars, self.audio = log_dir, purge_step, [], []
        self.instances.append(self)
    def add_scalar(self, name, value, step): self.scalars.append((name, value, step))
    def add_audio(self, name, wave, step, rate): self.audio.append((name, wave, step, rate))
    def add_text(self, *_): pass
    def flush(self): pass
    def close(self): pass
"""
ALL = ("trackio", "wandb", "tensorboard")
installed = pytest.mark.skipif(not all(map(importlib.util.find_spec, ALL)), reason="trackers are not installed")


class Interruption(TrainerCallback):
    """Ends the training after the third step, whose losses are logged and which no checkpoint holds."""

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == 3:
            raise KeyboardInterrupt


class Evaluation(generation_eval.GenerationEvalCallback):
    """Scores that need no metric models."""

    def _evaluate(self, step, model, generate=True):
        return False

    def scores(self, step):
        return {"eval_sim": 0.5 + step / 10, "eval_wer": 0.25} if step % self.config.generation_eval_steps == 0 else {}


@pytest.fixture
def run(tmp_path):
    clips = [make_clip(f"clip{number}", 5 + number, TEXTS[number % 4], "held_out" if number < 2 else "train")
             for number in range(6)]
    return with_codes(Run("one", tmp_path / "runs"), clips)


@pytest.fixture
def tracked(config, monkeypatch):
    monkeypatch.setattr(generation_eval, "build", lambda *arguments: Evaluation(*arguments, None))
    return config.replace(report_to=ALL, sample_steps=2, sample_texts=("One.", "Two."), generation_eval_steps=2)


@pytest.fixture
def trackers(tmp_path, monkeypatch):
    """The three modules, fresh."""
    folder = tmp_path / "modules"
    for path, text in (("trackio/__init__.py", FAKE), ("wandb/__init__.py", FAKE), ("tensorboard/__init__.py", ""),
                       ("wandb/sdk/lib/config_util.py", "class ConfigError(Exception): pass"), ("writer.py", WRITER)):
        write_text(folder / path, text)
    monkeypatch.syspath_prepend(folder)
    for name in ("trackio", "wandb", "wandb.sdk", "wandb.sdk.lib", "wandb.sdk.lib.config_util", "tensorboard", "writer"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    import trackio
    import wandb
    import writer

    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    yield trackio, wandb, writer.SummaryWriter
    for name in [name for name in sys.modules if name.partition(".")[0] in (*ALL, "writer")]:
        del sys.modules[name]


def logged(module) -> dict[str, dict[int, object]]:
    """Name -> step -> value of what a module was given."""
    values = {}
    for call, row in module.calls:
        for name, value in row.items() if call == "log" else ():
            values.setdefault(name, {})[row["train/global_step"]] = value
    return values


def test_every_tracker_gets_losses_samples_and_scores(tracked, run, trackers):
    """Mistake: only the training loss arrives; samples or scores at another step than that of their making."""
    finetune.finetune(tracked, run, CPU)
    trackio, wandb, writers = trackers
    writer, = writers.instances
    scalars = {}
    for name, value, step in writer.scalars:
        scalars.setdefault(name, {})[step] = value
    for values in (logged(trackio), logged(wandb), scalars):
        assert [*values["train/backbone_loss"]] == [*values["train/depth_loss"]] == [1, 2, 3, 4]
        assert [*values["eval/loss"]] == [0, 2, 4]
        assert values["eval/sim"] == {0: 0.5, 2: 0.7, 4: 0.9} and values["eval/wer"] == {0: 0.25, 2: 0.25, 4: 0.25}
    for module in (trackio, wandb):
        sample = logged(module)["samples/2"]
        assert {step: (clip.path, clip.caption) for step, clip in sample.items()} == {
            step: (str(run.training / f"samples/step-{step:06d}/2.wav"), "Two.") for step in (0, 2, 4)}
    assert [(name, step, rate) for name, _, step, rate in writer.audio] == [
        (f"samples/{number}", step, 24_000) for step in (0, 2, 4) for number in (1, 2)]
    wave = audio.read(run.training / "samples/step-000004/2.wav", 24_000)
    np.testing.assert_array_equal(writer.audio[-1][1].numpy(), wave[None])
    assert trackio.calls[0] == ("init", {"project": "tts-kit", "name": "one", "resume": "allow", "space_id": None,
                                         "private": None, "bucket_id": None})
    assert trackio.calls[-1][0] == wandb.calls[-1][0] == "finish" and wandb.run is None
    rows = [json.loads(line) for line in (run.training / "log.jsonl").read_text().splitlines()]
    assert all(len(row["eval_loss_by_codebook"]) == 4 for row in rows if "eval_loss" in row)


def test_a_resumed_training_continues_the_same_run_of_the_tracker(tracked, run, trackers):
    """Mistake: every resume is a run of its own; what an interrupted start logged after its checkpoint stays beside what the
    next one logs; or a tracker added later counts as another training."""
    trackio, wandb, writers = trackers
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(tracked, run, CPU, [Interruption()])
    finetune.finetune(tracked.replace(report_to=("wandb", "trackio", "tensorboard")), run, CPU)
    for module in (trackio, wandb):
        starts = [options for call, options in module.calls if call == "init"]
        assert len(starts) == 2 and starts[0] == starts[1] and starts[0]["name"] == "one"
    starts = [options for call, options in wandb.calls if call == "init"]
    assert starts[0] == {"project": "tts-kit", "name": "one", "resume": "allow",
                         "id": (run.training / "wandb_id").read_text()} and len(starts[0]["id"]) == 8
    assert [writer.purge_step for writer in writers.instances] == [1, 3]
    assert {writer.log_dir for writer in writers.instances} == {str(run.training / "tensorboard")}
    assert 0 not in {step for _, _, step, _ in writers.instances[1].audio}


def test_nothing_is_tracked_unasked(config, run, trackers):
    """Mistake: an installed tracker is taken as consent, as older versions of transformers did."""
    finetune.finetune(config, run, CPU)
    trackio, wandb, writers = trackers
    assert trackio.calls == wandb.calls == writers.instances == [] and not (run.training / "wandb_id").exists()


def test_a_tracker_that_is_not_installed_is_refused_before_training(config, run, monkeypatch):
    """Mistake: the import fails after the weights were loaded, or the training goes on without logging."""
    for name in ALL:
        monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, find=importlib.util.find_spec: (
        None if name in ALL else find(name)))
    wanted = config.replace(report_to=("wandb", "trackio"))
    for start in (lambda: finetune.finetune(wanted, run, CPU), lambda: finetune.launch(wanted, run, 2)):
        with pytest.raises(KitError, match="wandb and trackio, not installed here. Install: pip install wandb trackio; or"):
            start()
    assert not run.training.exists()


def test_trackers_are_named_on_the_command_line(tmp_path):
    """Mistake: one name only; a name that no tracker has; none beside a tracker; a list that is another config."""
    args = cli.build_parser().parse_args(["train", "--report-to", "wandb", "tensorboard"])
    assert cli.config_changes(args) == {"report_to": ("wandb", "tensorboard")}
    with pytest.raises(SystemExit):
        cli.build_parser().parse_args(["train", "--report-to", "mlflow"])
    for names in (("none", "wandb"), (), ("mlflow",)):
        with pytest.raises(KitError, match="report_to is"):
            Config(report_to=names)
    assert Config().report_to == ("none",) and "report_to" in RESUME_MAY_CHANGE
    write_text(tmp_path / "config.json", Config(report_to=("wandb",)).to_json())
    assert read_config(tmp_path / "config.json").report_to == ("wandb",)


@installed
def test_the_real_trackers_take_all_of_it(tracked, run, tmp_path, monkeypatch):
    """Mistake: an argument that the real module does not know. Everything stays on this machine."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_DIR", str(tmp_path)), ("TRACKIO_DIR", str(tmp_path / "trackio"))):
        monkeypatch.setenv(name, value)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(tracked, run, CPU, [Interruption()])
    finetune.finetune(tracked, run, CPU)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run.training / "tensorboard"), size_guidance={"audio": 0, "scalars": 0})
    events.Reload()
    assert [event.step for event in events.Scalars("train/backbone_loss")] == [1, 2, 3, 4]
    assert [event.step for event in events.Scalars("eval/sim")] == [event.step for event in events.Audio("samples/1")] == [
        0, 2, 4]
    assert trainer.PROJECT in str(sorted(tmp_path.rglob("*.db")))
    assert len({path.name.split("-")[-1] for path in (tmp_path / "wandb").glob("offline-run-*")}) == 1
