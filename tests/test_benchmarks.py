"""The speed benchmarks: both sides do the same work, are timed fairly, and results are complete."""

import json
import statistics

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


def train_set(steps: int = 1) -> tuple[torch.nn.Module, train_step.TrainSet]:
    """Return the toy model with its codec, and four clips of different lengths."""
    model = shapes.network("toy", "cpu")
    raw_clips = shapes.random_clips("toy", 4, (2, 6))
    clips = shapes.encode_clips(raw_clips, Codec(model.codec_model, shapes.spec("toy")))
    return model, train_step.TrainSet(clips, raw_clips, shapes.prompt_builder("toy"), 4, steps)


def check_row(row: dict) -> None:
    """Check that a row has every key, and that its ratio follows from its speeds and these from the median durations."""
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


def test_committed_results_are_complete():
    """Mistake: a committed result without its machine or command, with too few runs, or with a ratio that does not match."""
    for name, row in ROWS:
        check_row(row)
        assert row["command"].startswith("python -m tests.benchmarks."), name
        assert all(len(side["runs"]) >= 5 for side in (row["kit"], row["other"]) if "runs" in side), name
        assert "/tmp/" not in json.dumps(row), name


def test_sides_alternate_and_the_warm_up_round_is_dropped():
    """Mistake: all runs of one side, then all of the other, so that a machine that slows down favors the first; a warm-up
    run is counted."""
    order, values = [], iter([100.0, 100.0, *range(1, 11)])

    def side(name):
        return lambda: order.append(name) or float(next(values))

    durations = measure.alternate({"A": side("A"), "B": side("B")}, 5)
    assert order == ["A", "B"] * 6
    assert durations == {"A": [1.0, 3.0, 5.0, 7.0, 9.0], "B": [2.0, 4.0, 6.0, 8.0, 10.0]}


def test_speed_is_the_median_of_the_runs():
    """Mistake: the mean is used, which a single disturbed run can dominate."""
    side = measure.speed([2.0, 1.0, 90.0, 3.0, 2.5], 8, "clips/s")
    assert (side["seconds"], side["speed"], side["fastest"], side["slowest"]) == (2.5, 3.2, 1.0, 90.0)


def test_memory_is_the_peak_of_live_tensors():
    """Mistake: memory is the sum of all allocations or what is left at the end, or a shared storage is counted twice."""
    def allocate():
        for _ in range(3):
            torch.zeros(1 << 20)
        tensor = torch.ones(1 << 20)
        return tensor + 1

    assert 8 << 20 <= measure.extra_peak_bytes(allocate, "cpu") < 9 << 20
    weight = torch.zeros(1000)
    assert measure.tensor_bytes([weight, weight.view(10, 100), torch.zeros(5)], "cpu") == pytest.approx(4020, abs=64)


def test_stock_inputs_equal_those_of_the_processor():
    """Mistake: the stock side gets inputs that the notebook's processor would not produce."""
    from transformers import CsmProcessor, EncodecFeatureExtractor

    _, clip_set = train_set()
    spec, audio_clip, encoded = clip_set.prompt_builder.spec, clip_set.raw_clips[0], clip_set.clips[0]
    processor = CsmProcessor(EncodecFeatureExtractor(sampling_rate=spec.sample_rate), clip_set.prompt_builder.tokenizer)
    reference = processor(
        text=f"<|begin_of_text|>[0]{audio_clip.text}<|end_of_text|><|AUDIO|><|audio_eos|>", audio=audio_clip.wave,
        output_labels=True,
        text_kwargs={"padding": "max_length", "max_length": notebook.POSITIONS, "padding_side": "right"},
        audio_kwargs={"max_length": 240_001, "padding": "max_length", "sampling_rate": 24_000})
    example = notebook.padded_examples([encoded], [audio_clip], clip_set.prompt_builder)[0]
    for name in ("attention_mask", "labels", "input_values", "input_values_cutoffs"):
        np.testing.assert_array_equal(example[name].numpy(), reference[name][0].numpy(), err_msg=name)
    attended = example["attention_mask"].bool()
    assert example["input_ids"].shape == (notebook.POSITIONS,)
    assert torch.equal(example["input_ids"][attended], reference["input_ids"][0][attended])


def test_both_sides_start_from_the_same_loss(tmp_path):
    """Mistake: the two trainings optimize different losses: depth weighed 31 times, a mean of means over micro-batches,
    padding or the EOS frame scored by only one side."""
    model, clip_set = train_set(steps=2)
    assert train_step.relative_loss_difference(model, clip_set, "cpu") <= 1e-5
    model.codec_model = None
    kit = train_step.kit_side(lora.add_lora(model, 32, 32.0), clip_set, 1.0, CPU, tmp_path, {})
    stock = train_step.stock_side(notebook.stock_model("toy", CPU), clip_set, CPU, tmp_path)
    losses = []
    for side in (kit, stock):
        assert side.run() > 0
        losses.append([row["loss"] for row in side.trainer.state.log_history if "loss" in row])
    assert len(losses[0]) == len(losses[1]) == 2
    assert losses[0][0] == pytest.approx(losses[1][0], rel=1e-5)


def test_different_losses_are_refused():
    """Mistake: two sides that do different work are timed."""
    model, clip_set = train_set()
    swapped = train_step.TrainSet(clip_set.clips, clip_set.raw_clips[::-1], clip_set.prompt_builder, 4, 1)
    with pytest.raises((KitError, IndexError, RuntimeError)):
        train_step.relative_loss_difference(model, swapped, "cpu")
    silent_clips = [shapes.AudioClip(clip.text, 0 * clip.wave) for clip in clip_set.raw_clips]
    with pytest.raises(KitError, match="differ by"):
        silent = train_step.TrainSet(clip_set.clips, silent_clips, clip_set.prompt_builder, 4, 1)
        train_step.relative_loss_difference(model, silent, "cpu")


def test_both_sides_train_the_same_parameters_on_the_same_clips(tmp_path):
    """Mistake: adapters on the codec slow only the stock side, or the sides train on different clips."""
    model, clip_set = train_set(steps=3)
    model.codec_model = None
    stock_model = notebook.stock_model("toy", CPU)
    assert not [name for name, _ in stock_model.named_parameters() if "codec" in name and "lora_" in name]
    kit = train_step.kit_side(lora.add_lora(model, 32, 32.0), clip_set, 0.25, CPU, tmp_path, {}).trainer
    stock = train_step.stock_side(stock_model, clip_set, CPU, tmp_path).trainer
    assert sum(parameter.requires_grad * parameter.numel() for parameter in kit.model.parameters()) == sum(
        parameter.requires_grad * parameter.numel() for parameter in stock.model.parameters())
    assert kit.args.max_steps == stock.args.max_steps == 3 == len(kit.train_dataset)
    for step in range(3):
        kit_texts = kit.train_dataset[step]["input_ids"][~kit.train_dataset[step]["audio_mask"]]
        examples = [stock.train_dataset[4 * step + index] for index in range(4)]
        stock_texts = torch.cat([example["input_ids"][(example["labels"] == -100) & example["attention_mask"].bool()]
                                 for example in examples])
        assert torch.equal(kit_texts, stock_texts)


@pytest.mark.slow
def test_train_step_writes_its_result(tmp_path, capsys):
    """Mistake: the benchmark runs only on its author's machine, or prints something else than it writes."""
    train_step.main(["--shape", "toy", "--repeats", "2", "--batch", "4", "--seconds", "2", "--ratios", "1", "1/16",
                     "--device", "cpu", "--out", str(tmp_path)])
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result == json.loads((tmp_path / "train_step-toy-stock-cpu.json").read_text(encoding="utf-8"))
    rows = measure.rows_of(result)
    assert [row["settings"]["depth_frame_fraction"] for row in rows] == ["1", "1/16"]
    for row in rows:
        check_row(row)
        assert len(row["kit"]["runs"]) == len(row["other"]["runs"]) == 2
        assert row["kit"]["peak_bytes"] > 0 and row["other"]["peak_bytes"] > 0
    assert rows[1]["kit"]["peak_bytes"] < rows[0]["kit"]["peak_bytes"]


def test_new_batches_never_come_again(tmp_path):
    """Mistake: every run has the same batches, so that whatever is built once for a shape is built in the warm-up."""
    row = train_step.main(["--shape", "toy", "--repeats", "2", "--batch", "2", "--seconds", "2-10", "--steps", "3",
                           "--ratios", "1/16", "--against", "repeated", "--device", "cpu", "--out", str(tmp_path)])
    check_row(row)
    assert (tmp_path / "train_step-toy-repeated-cpu.json").is_file() and len(row["kit"]["runs"]) == 2
    plans = train_step.new_batches(2, 3)
    clips = [index for _ in range(3) for micro_batch in next(plans) for index, _ in micro_batch]
    assert clips == list(range(2 * 3 * 3))
    codes = shapes.random_codes("toy", 18, (2, 10))
    assert len({len(clip.codes) for clip in codes}) == 18 and codes[0].codes.max() < shapes.spec("toy").codebook_size


def test_a_side_that_cannot_run_is_reported(tmp_path, capsys):
    """Mistake: a crash or a missing row where the other side has requirements that this machine does not meet."""
    result = train_step.main(["--shape", "toy", "--against", "unsloth", "--device", "cpu", "--out", str(tmp_path)])
    assert "unsloth is not measured: unsloth" in capsys.readouterr().out
    check_row(result)
