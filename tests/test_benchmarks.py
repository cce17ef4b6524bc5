"""The speed benchmarks: that both sides do the same work, that they are timed fairly, that results say what they are."""

import json
import statistics
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.benchmarks import measure, notebook, shapes, train_step
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.model import lora
from tts_kit.tokens.codec import Codec

CPU = device.choose("cpu")
KEYS = {"what", "shape", "against", "settings", "kit", "other", "ratio", "machine", "versions", "command", "clock"}
ROWS = [(path.stem, row) for path in sorted(measure.RESULTS.rglob("*.json"))
        for row in measure.rows_of(json.loads(path.read_text(encoding="utf-8")))]


def material(steps: int = 1) -> tuple[torch.nn.Module, train_step.Material]:
    """The toy whole, and four clips of different lengths."""
    model = shapes.network("toy", "cpu")
    sounds = shapes.sounds("toy", 4, (2, 6))
    clips = shapes.encoded(sounds, Codec(model.codec_model, shapes.spec("toy")))
    return model, train_step.Material(clips, sounds, shapes.prompt_builder("toy"), 4, steps)


def agrees(row: dict) -> None:
    """A row has every key, and its ratio is the ratio of its speeds, which are those of its medians."""
    assert row.keys() >= KEYS and row["machine"] and row["versions"]["torch"] and row["command"].startswith("python -m ")
    sides = [row["kit"], row["other"]]
    if any("not_measured" in side for side in sides):
        assert row["ratio"] is None and all(side.get("not_measured", "measured") for side in sides)
        return
    assert sides[0]["unit"] == sides[1]["unit"]
    assert row["ratio"] == pytest.approx(sides[0]["speed"] / sides[1]["speed"], rel=1e-6)
    for side in sides:
        assert side["seconds"] == pytest.approx(statistics.median(side["runs"]), rel=1e-3)
        assert side["fastest"] <= side["seconds"] <= side["slowest"]


def test_committed_results_are_whole():
    """Mistake: a committed result without its machine or command, too few runs, or a ratio that its figures do not give."""
    for name, row in ROWS:
        agrees(row)
        assert row["command"].startswith("python -m tests.benchmarks."), name
        assert all(len(side["runs"]) >= 5 for side in (row["kit"], row["other"]) if "runs" in side), name
        assert "/tmp/" not in json.dumps(row), name


def test_sides_take_turns_and_the_first_round_is_dropped():
    """Mistake: all runs of one side, then all of the other, so that a machine that slows down favours the first; a warm-up
    counted."""
    order, answers = [], iter([100.0, 100.0, *range(1, 11)])

    def side(name):
        return lambda: order.append(name) or float(next(answers))

    found = measure.alternate({"A": side("A"), "B": side("B")}, 5)
    assert order == ["A", "B"] * 6
    assert found == {"A": [1.0, 3.0, 5.0, 7.0, 9.0], "B": [2.0, 4.0, 6.0, 8.0, 10.0]}


def test_speed_is_that_of_the_median_run():
    """Mistake: a mean, which one disturbed run decides, called a median."""
    side = measure.speed([2.0, 1.0, 90.0, 3.0, 2.5], 8, "clips/s")
    assert (side["seconds"], side["speed"], side["fastest"], side["slowest"]) == (2.5, 3.2, 1.0, 90.0)


def test_memory_is_the_most_that_was_held_at_once():
    """Mistake: counting all that was ever taken, or what was left at the end, or the same tensor twice."""
    def work():
        for _ in range(3):
            torch.zeros(1 << 20)
        first = torch.ones(1 << 20)
        return first + 1

    assert 8 << 20 <= measure.above(work, "cpu") < 9 << 20
    weight = torch.zeros(1000)
    assert measure.held([weight, weight.view(10, 100), torch.zeros(5)], "cpu") == pytest.approx(4020, abs=64)


def test_stock_reads_what_the_processor_makes():
    """Mistake: the other side is given an input that the notebook's processor would not make."""
    from transformers import CsmProcessor, EncodecFeatureExtractor

    _, made = material()
    numbers, sound, clip = made.prompt_builder.spec, made.sounds[0], made.clips[0]
    processor = CsmProcessor(EncodecFeatureExtractor(sampling_rate=numbers.sample_rate), made.prompt_builder.tokenizer)
    wanted = processor(
        text=f"<|begin_of_text|>[0]{sound.text}<|end_of_text|><|AUDIO|><|audio_eos|>", audio=sound.wave, output_labels=True,
        text_kwargs={"padding": "max_length", "max_length": notebook.POSITIONS, "padding_side": "right"},
        audio_kwargs={"max_length": 240_001, "padding": "max_length", "sampling_rate": 24_000})
    found = notebook.padded([clip], [sound], made.prompt_builder)[0]
    for name in ("attention_mask", "labels", "input_values", "input_values_cutoffs"):
        np.testing.assert_array_equal(found[name].numpy(), wanted[name][0].numpy(), err_msg=name)
    heard = found["attention_mask"].bool()
    assert found["input_ids"].shape == (notebook.POSITIONS,)
    assert torch.equal(found["input_ids"][heard], wanted["input_ids"][0][heard])


def test_both_sides_start_from_the_same_loss(tmp_path):
    """Mistake: a comparison of two trainings that do not optimise the same: depth weighed 31 times, a mean of means over
    micro-batches, padding or the end frame scored by one side only."""
    model, made = material(steps=2)
    assert train_step.check(model, made, "cpu") <= 1e-5
    model.codec_model = None
    ours = train_step.kit(lora.add_lora(model, 32, 32.0), made, 1.0, CPU, tmp_path, {})
    theirs = train_step.stock(notebook.stock_model("toy", CPU), made, CPU, tmp_path)
    logged = []
    for side in (ours, theirs):
        assert side.run() > 0
        logged.append([row["loss"] for row in side.trainer.state.log_history if "loss" in row])
    assert len(logged[0]) == len(logged[1]) == 2
    assert logged[0][0] == pytest.approx(logged[1][0], rel=1e-5)


def test_another_loss_is_refused():
    """Mistake: timing goes on although the two sides do not do the same work."""
    model, made = material()
    swapped = train_step.Material(made.clips, made.sounds[::-1], made.prompt_builder, 4, 1)
    with pytest.raises((KitError, IndexError, RuntimeError)):
        train_step.check(model, swapped, "cpu")
    silent = [shapes.Sound(each.text, 0 * each.wave) for each in made.sounds]
    with pytest.raises(KitError, match="differ by"):
        train_step.check(model, train_step.Material(made.clips, silent, made.prompt_builder, 4, 1), "cpu")


def test_the_codec_carries_no_adapter_and_each_step_has_the_same_clips(tmp_path):
    """Mistake: dead adapters that slow only the other side, or steps over different clips."""
    model, made = material(steps=3)
    model.codec_model = None
    other = notebook.stock_model("toy", CPU)
    assert not [name for name, _ in other.named_parameters() if "codec" in name and "lora_" in name]
    ours = train_step.kit(lora.add_lora(model, 32, 32.0), made, 0.25, CPU, tmp_path, {}).trainer
    theirs = train_step.stock(other, made, CPU, tmp_path).trainer
    assert sum(each.requires_grad * each.numel() for each in ours.model.parameters()) == sum(
        each.requires_grad * each.numel() for each in theirs.model.parameters())
    assert ours.args.max_steps == theirs.args.max_steps == 3 == len(ours.train_dataset)
    for step in range(3):
        texts = ours.train_dataset[step]["input_ids"][~ours.train_dataset[step]["audio_mask"]]
        items = [theirs.train_dataset[4 * step + place] for place in range(4)]
        said = torch.cat([each["input_ids"][(each["labels"] == -100) & each["attention_mask"].bool()] for each in items])
        assert torch.equal(texts, said)


def test_train_step_runs_to_its_end(tmp_path, capsys):
    """Mistake: a benchmark that only ever ran on its author's machine."""
    train_step.main(["--shape", "toy", "--repeats", "2", "--batch", "4", "--seconds", "2", "--ratios", "1", "1/16",
                     "--device", "cpu", "--out", str(tmp_path)])
    found = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert found == json.loads((tmp_path / "train_step-toy-stock-cpu.json").read_text(encoding="utf-8"))
    rows = measure.rows_of(found)
    assert [row["settings"]["depth_frame_fraction"] for row in rows] == ["1", "1/16"]
    for row in rows:
        agrees(row)
        assert len(row["kit"]["runs"]) == len(row["other"]["runs"]) == 2
        assert row["kit"]["peak_bytes"] > 0 and row["other"]["peak_bytes"] > 0
    assert rows[1]["kit"]["peak_bytes"] < rows[0]["kit"]["peak_bytes"]


def test_what_cannot_run_here_is_said(tmp_path, capsys):
    """Mistake: a crash, or silence, where the other side needs what this machine has not."""
    found = train_step.main(["--shape", "toy", "--against", "unsloth", "--device", "cpu", "--out", str(tmp_path)])
    assert "unsloth is not measured: unsloth" in capsys.readouterr().out
    agrees(found)


def test_speed_benchmarks_need_only_torch_transformers_and_peft():
    """Mistake: an import that a lent GPU machine without network cannot satisfy."""
    absent = ("soundfile", "soxr", "matplotlib", "datasets", "pytest", "pyloudnorm", "trl", "faster_whisper", "librosa")
    script = (f"import sys\nsys.modules.update(dict.fromkeys({absent}))\n"  # None there makes an import fail
              "from tests.benchmarks import measure, notebook, shapes, train_step")
    out = subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[1], capture_output=True, text=True,
                         check=False)
    assert out.returncode == 0, out.stderr
