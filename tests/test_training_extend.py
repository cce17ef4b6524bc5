"""Training on: more steps on the same run, another run with the same data, default steps, warnings, one process a run."""

import json
import shutil

import pytest
from test_training_finetune import CPU, adapter, run, same, with_codes  # noqa: F401 - `run` is a fixture
from transformers import TrainerCallback

from tts_kit import cli, status
from tts_kit.config import RESUME_MAY_CHANGE, Config, load_config
from tts_kit.errors import KitError
from tts_kit.io import read_rows, write_bytes, write_rows
from tts_kit.model import lora
from tts_kit.run import Run, lock, share, write_inputs
from tts_kit.tokens import cache
from tts_kit.training import callbacks, dataset, finetune


class Stop(TrainerCallback):
    """Ends the training as Ctrl-C does, after a step."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def learning_rates(run: Run) -> list[float]:  # noqa: F811
    return [row["learning_rate"] for row in read_rows(run.training / callbacks.LOG_FILE) if "learning_rate" in row]


def test_a_finished_training_goes_on(config, run, tmp_path, capsys):  # noqa: F811
    """Mistake: more steps are refused, begin at the base model, stay at the rate 0 at which the first ones ended, or follow
    another schedule after an interruption."""
    config = config.replace(warmup_steps=1)
    copy = Run("copy", tmp_path)
    finetune.finetune(config, run, CPU)
    first = adapter(run.adapter)
    shutil.copytree(run.folder, copy.folder)
    capsys.readouterr()
    finetune.finetune(config.replace(steps=9), run, CPU)
    output = capsys.readouterr().out
    assert "Resuming from checkpoint-4." in output and "Extended from 4 to 9 steps: after one step the learning" in output
    metadata = lora.read_metadata(run.adapter)["metrics"]
    assert metadata["steps"] == metadata["selected_step"] == 9 and load_config(run).steps == 9
    assert all((first[name] != weight).any() for name, weight in adapter(run.adapter).items() if "lora_B" in name)
    peak, line = config.learning_rate, [(9 - step) / 8 for step in range(10)]
    assert learning_rates(run)[4:] == pytest.approx([0.0, *(peak * share for share in line[5:9])])
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(config.replace(steps=9), copy, CPU, [Stop(7)])
    assert lora.read_metadata(copy.adapter)["metrics"]["steps"] == 4, "the old adapter stays until then"
    assert status.next_command(copy) == "tts-kit train --run copy"
    finetune.finetune(load_config(copy), copy, CPU)
    assert "Resuming from checkpoint-6." in capsys.readouterr().out
    same(adapter(copy.adapter), adapter(run.adapter))
    assert status.stages(copy)["adapter"] == "step 9" and status.next_command(copy).startswith("tts-kit speak")
    finetune.finetune(config.replace(steps=9), copy, CPU)
    assert "already trained" in capsys.readouterr().out
    with pytest.raises(KitError, match="steps is 5 and was 9"):
        finetune.finetune(config.replace(steps=5), copy, CPU)
    with pytest.raises(KitError, match="rank is 2 and was 4"):
        finetune.finetune(config.replace(steps=12, rank=2), copy, CPU)


def test_a_longer_training_begins_with_the_same_batches(config, run, base):  # noqa: F811
    """Mistake: the clips of the steps that are already trained come once more, others never."""
    clips = [clip for clip in cache.read(run.codes) if clip.split == "train"]
    short, long = (dataset.MicroBatchDataset(clips, base.prompt_builder, config.replace(steps=steps)) for steps in (4, 9))
    assert long.plan[:4] == short.plan and len(long.plan) == 9


def test_a_run_from_another_shares_its_files(config, run, tmp_path, monkeypatch, capsys):  # noqa: F811
    """Mistake: trying other settings means copying the data, encoding it again, or losing it with the first run."""
    source, fork = Run("one", tmp_path / "runs"), Run("two", tmp_path / "runs")
    shutil.copytree(run.folder, source.folder)
    write_bytes(source.data / "clips" / "a.flac", b"sound")
    write_inputs(source.data, source="somewhere")
    write_rows(source.data / "rejected.jsonl", [])
    share(source, fork)
    share(source, fork)  # goes on after an interruption
    for name in ("data/clips/a.flac", next(source.codes.rglob("*.safetensors")).relative_to(source.folder)):
        assert (source.folder / name).samefile(fork.folder / name)
    shutil.rmtree(source.data)
    shutil.rmtree(fork.data)
    monkeypatch.chdir(tmp_path)
    command = ["train", "--run", "three", "--from", "one", "--steps", "2", "--device", "cpu"]
    options = {"base": config.base, "rank": "2", "tokens-per-batch": "150", "sample-steps": "0"}
    assert cli.main([*command, *(word for name, value in options.items() for word in (f"--{name}", value))]) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("Next: tts-kit ")
    shutil.rmtree(source.folder)
    assert cache.digest(fork.codes) == cache.digest(Run("three", tmp_path / "runs").codes)
    assert [clip.id for clip in cache.read(fork.codes)] == [clip.id for clip in cache.read(run.codes)]
    with pytest.raises(KitError, match="runs/one has no codes to share"):
        share(source, Run("four", tmp_path / "runs"))
    write_inputs(fork.codes, codec="another")
    with pytest.raises(KitError, match="two/codes already holds something else"):
        share(Run("three", tmp_path / "runs"), fork)


def test_a_second_training_of_a_run_is_refused(config, run):  # noqa: F811
    """Mistake: two processes train the same run to its end, and overwrite each other's checkpoints."""
    with lock(run.training), pytest.raises(KitError, match="training is in use by another process"):
        finetune.finetune(config, run, CPU)
    finetune.finetune(config.replace(steps=1), run, CPU)


@pytest.mark.parametrize(("clips", "accumulation", "steps"), [(4, 1, 100), (400, 1, 700), (400, 2, 350), (2000, 1, 2000)])
def test_the_default_steps_are_passes_within_limits(config, clips, accumulation, steps):
    """Mistake: 200 steps whatever the data: 200 passes over a minute of speech, a fraction of one over ten hours."""
    config = config.replace(tokens_per_batch=400, gradient_accumulation_steps=accumulation)
    assert dataset.default_steps([100] * clips, config) == steps


def test_defaults_follow_data_and_rank(config, run, capsys):  # noqa: F811
    """Mistake: --rank 8 leaves alpha at 32, four times the strength; the steps are stored as 'default' and change later."""
    config = config.replace(steps=0, alpha=0.0)
    filled = finetune.fill_defaults(config, cache.read(run.codes))
    assert (filled.steps, filled.alpha) == (100, 4.0) and "100 steps: 7 passes" in capsys.readouterr().out
    assert finetune.fill_defaults(filled, []) == filled and capsys.readouterr().out == ""
    assert finetune.dry_run(config, run, CPU)["steps"] == 100


@pytest.mark.parametrize(("changes", "epochs", "minutes", "words"), [
    ({}, 7, 30, []), ({}, 7, 1.2, ["Little data: 1.2 minutes"]), ({}, 200, 30, ["200 passes over the clips"]),
    ({"rank": 8, "alpha": 32.0}, 7, 30, ["rank 8 scales the adapter by 4; usual is --alpha 4 to 16"]),
    ({"rank": 16, "alpha": 32.0}, 7, 30, [])])
def test_what_makes_a_good_voice_unlikely_is_said_before_training(changes, epochs, minutes, words):
    """Mistake: 'little data' and 'many passes' stand in a report that nobody opens, alpha far from the rank nowhere."""
    texts = finetune.warnings(Config(**({"rank": 32, "alpha": 32.0, "steps": 200} | changes)), epochs, minutes)
    assert len(texts) == len(words) and all(word in text for word, text in zip(words, texts))


def test_an_empty_run_is_refused_before_the_licence(tmp_path, capsys):
    """Mistake: the licence of a model is printed for a run that has nothing to train on."""
    with pytest.raises(KitError, match="neither data nor codes"):
        finetune.finetune(Config(), Run("empty", tmp_path), CPU)
    assert capsys.readouterr().out == "" and not (tmp_path / "empty").exists()


def test_the_training_stores_its_inputs_as_before(config, run):  # noqa: F811
    """Mistake: a training that was never extended records something new, and older runs cannot resume."""
    finetune.finetune(config.replace(steps=1), run, CPU)
    recorded = json.loads((run.training / "inputs.json").read_text())
    assert recorded.keys() == {"format", "codes", "recordings", "base_fingerprint"} | {
        field for field in json.loads(config.to_json()) if field not in RESUME_MAY_CHANGE}
