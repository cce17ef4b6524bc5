"""Training from codes to an adapter folder: what a step optimizes, and what is kept after interruptions."""

import dataclasses
import json
import re
import shutil
import signal
import time
from pathlib import Path

import process
import pytest
import torch
from conftest import make_clip, spread_logits
from safetensors.torch import load_file, save
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._triton import has_triton

from sample_data.build import model_shapes
from tts_kit import device as runtime
from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.data import consent, manifest
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_rows, write_bytes, write_rows, write_text
from tts_kit.model import load, lora, loss
from tts_kit.run import Run, write_inputs
from tts_kit.tokens import cache, codec
from tts_kit.tokens.prompt import Turn
from tts_kit.training import callbacks, finetune, generation_eval, trainer

CPU = runtime.choose("cpu")
TOY_CODEC = codec.Codec(model_shapes.untrained("toy").codec_model, None).fingerprint()
TEXTS = ("Hello.", "A longer sentence, said slowly.", "Why?", "Four words are here.")


def with_codes(run: Run, clips, codec="") -> Run:
    """Write the codes of these clips into a run, as if they had been tokenized; return the run."""
    write_inputs(run.codes, codec=codec or TOY_CODEC)
    rows = []
    for number, clip in enumerate(clips):
        key = f"{number:032x}"
        label = {"key": key, "frames": str(len(clip.codes)), "codebooks": str(clip.codes.shape[1])}
        write_bytes(cache.entry_path(run.codes, key), save({"codes": clip.codes}, metadata=label))
        rows.append({"id": clip.id, "text": clip.text, "source": clip.source, "speaker": clip.speaker,
                     "session": clip.session, "split": clip.split, "key": key})
    write_rows(run.codes / "index.jsonl", rows)
    return run


@pytest.fixture
def run(tmp_path):
    """Twelve clips of different lengths, two of them held out."""
    clips = [make_clip(f"clip{number}", 5 + number, TEXTS[number % 4], "held_out" if number < 2 else "train")
             for number in range(12)]
    return with_codes(Run("one", tmp_path), clips)


def prepare_trainer(config, run, device_config=CPU):
    return finetune.prepare(config, run, cache.load_run(run), device_config)


def adapter(folder) -> dict:
    return load_file(Path(folder) / lora.WEIGHTS_FILE)


def trainable_weights(model_trainer) -> dict:
    return {name: weight.detach() for name, weight in model_trainer.model.named_parameters() if weight.requires_grad}


def same(one: dict, other: dict, **tolerance) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def test_the_logged_loss_is_the_sum_of_both_parts(config, run):
    """Mistake: Trainer scales the depth loss by 31, or divides once more by the accumulation steps."""
    _, model_trainer = prepare_trainer(config.replace(gradient_accumulation_steps=2, depth_loss_weight=0.5), run)
    model_trainer.train()
    rows = [row for row in model_trainer.state.log_history if "loss" in row]
    assert len(rows) == config.steps
    for row in rows:
        assert row["loss"] == pytest.approx(row["backbone_loss"] + 0.5 * row["depth_loss"], rel=1e-5)
        assert 3.3 < row["backbone_loss"] < 3.8 and 3.3 < row["depth_loss"] < 3.8  # ln 35 = 3.56, untrained


def test_four_micro_batches_equal_one_big_batch(config, run):
    """Mistake: a mean of means: clips of unequal length change the accumulated gradient."""
    big = config.replace(tokens_per_batch=100_000, gradient_accumulation_steps=1, steps=1, depth_frame_fraction=0.5,
                         learning_rate=0.1)
    _, whole = prepare_trainer(big, run)
    order = [item for batch in whole.train_dataset.plan for item in batch]
    _, parts = prepare_trainer(big.replace(gradient_accumulation_steps=4), run)
    parts.train_dataset.plan = [order[:1], order[1:2], order[2:6], order[6:]]
    gradients = []
    for model_trainer in (whole, parts):
        captured = {}
        model_trainer.create_optimizer()
        step = model_trainer.optimizer.step

        def keep(*args, model_trainer=model_trainer, captured=captured, step=step, **kwargs):
            captured.update({name: weight.grad.clone() for name, weight in model_trainer.model.named_parameters()
                             if weight.grad is not None})
            return step(*args, **kwargs)

        model_trainer.args.max_grad_norm = 0.0
        model_trainer.optimizer.step = keep
        model_trainer.train()
        gradients.append(captured)
    assert len(gradients[0]) == 56
    same(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    losses = [model_trainer.state.log_history[0]["loss"] for model_trainer in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_gradient_checkpointing_gives_the_same_adapter(config, run, tmp_path):
    """Mistake: gradient checkpointing with LoRA crashes on a leaf written in place, trains nothing, or is never active."""
    calls, adapters = {}, {}
    for name, gradient_checkpointing in (("plain", False), ("saving", True)):
        changed = config.replace(gradient_checkpointing=gradient_checkpointing, eval_steps=1000)
        base, model_trainer = prepare_trainer(changed, run)
        calls[name] = 0
        for part in (base.model.backbone_model, base.model.depth_decoder.model):
            part.layers[0].mlp.register_forward_pre_hook(
                lambda module, _, name=name: calls.update({name: calls[name] + module.training}))
        model_trainer.train()
        adapters[name] = trainable_weights(model_trainer)
    same(adapters["plain"], adapters["saving"], rtol=1e-4, atol=1e-6)
    assert calls["saving"] == 2 * calls["plain"] > 0


def test_evaluation_is_the_mean_over_all_held_out_frames(config, run, base):
    """Mistake: held-out losses averaged over batches of unequal size, or measured only after training began."""
    _, model_trainer = prepare_trainer(config, run)
    expected = model_trainer.evaluate()
    _, small = prepare_trainer(config.replace(tokens_per_batch=10), run)
    assert small.evaluate()["eval_backbone_loss"] == pytest.approx(expected["eval_backbone_loss"], rel=1e-6)
    assert small.evaluate()["eval_depth_loss"] == pytest.approx(expected["eval_depth_loss"], rel=1e-6)
    finetune.finetune(config, run, CPU)
    rows = [row for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    metrics = json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]
    assert [metrics[when]["eval_loss"] for when in ("before", "after")] == [rows[0]["eval_loss"], rows[2]["eval_loss"]]
    assert rows[0]["eval_loss"] == pytest.approx(expected["eval_loss"])


@pytest.mark.slow
def test_one_clip_is_trained_until_its_codes_are_generated(config, run, tmp_path):
    """Mistake: any mismatch between labels, heads and generation: then a clip cannot be reproduced."""
    clip = make_clip("only", 6, "Remember me.")
    held_out = [make_clip(f"held{number}", 4, split="held_out") for number in range(2)]
    with_codes(run, [clip, *held_out])
    base, model_trainer = prepare_trainer(config.replace(rank=16, alpha=32, steps=200, learning_rate=0.01, eval_steps=1000,
                                                         save_steps=1000), run)
    spread_logits(base)
    model_trainer.train()
    model_trainer.model.eval()
    prompt = base.prompt_builder.build("again", [Turn(clip.text, clip.source)])
    generation, = InferenceEngine(base.model, base.spec, lora.DEFAULT_ADAPTER).generate([prompt], Sampling(0, 0), [0], [20])
    assert generation.ended_with_eos
    assert generation.codes.tolist() == clip.codes.tolist()


def test_killed_training_resumes_to_the_same_weights(config, run, tmp_path):
    """Mistake: after SIGKILL the order of clips, the optimizer or the schedule starts again, or an incomplete checkpoint is
    read."""
    config = config.replace(steps=30, save_steps=3, eval_steps=15, depth_frame_fraction=0.25)
    whole = with_codes(Run("whole", tmp_path), cache.read(run.codes))
    finetune.finetune(config, whole, CPU)
    (tmp_path / "config.json").write_text(config.to_json())
    script = ("import sys, torch; torch.set_num_threads(1)\n"
              "from tts_kit import config, device; from tts_kit.run import Run; from tts_kit.training import finetune\n"
              "finetune.finetune(config.read_config(sys.argv[1]), Run('one', sys.argv[2]), device.choose('cpu'))\n")
    killed = process.Process(["-c", script, tmp_path / "config.json", tmp_path])
    deadline = time.monotonic() + 900
    while trainer.last_complete_checkpoint(run.training) is None and killed.poll() is None:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    killed.kill()
    ended = killed.wait()
    assert ended.returncode == -signal.SIGKILL, ended
    last = trainer.last_complete_checkpoint(run.training)
    broken = run.training / "checkpoint-29"
    broken.mkdir()  # as a kill in the middle of saving leaves it
    (broken / "trainer_state.json").write_text("{")
    finetune.finetune(config, run, CPU)
    assert not (run.adapter / "checkpoint").exists() and last is not None
    same(adapter(run.adapter), adapter(whole.adapter))
    rows, expected = (read_rows(trained_run.training / callbacks.LOG_FILE) for trained_run in (run, whole))
    assert [row["step"] for row in rows] == [row["step"] for row in expected]


@pytest.mark.parametrize("logging_steps", [1, 7], ids=["logged at once", "logged later"])
def test_a_clip_without_a_finite_loss_stops_the_run_and_is_named(config, run, logging_steps):
    """Mistake: one broken clip turns every weight into NaN and the run goes on for hours, or all clips are named."""
    clips = cache.read(run.codes)
    poisoned = make_clip("poisoned", 8, "Here is a tilde ~ in it.")
    with_codes(run, [*clips, poisoned])
    base, model_trainer = prepare_trainer(config.replace(steps=20, spoken_text=False), run)
    tilde = base.prompt_builder.tokenizer("~", add_special_tokens=False).input_ids[0]
    base.model.embed_text_tokens.weight.data[tilde] = float("nan")
    model_trainer.args.logging_steps = logging_steps
    with pytest.raises(KitError, match=r"step \d+: the loss is not a finite number for a batch of the clips ") as error:
        model_trainer.train()
    named = re.search(r"clips (.*?)\. Listen", str(error.value))[1].split(", ")
    assert "poisoned" in named and len(named) < len(clips) - 2
    last = trainer.last_complete_checkpoint(run.training)
    assert last is None or all(torch.isfinite(weight).all() for weight in adapter(last).values())


def test_a_complete_checkpoint_exists_at_every_moment(config, run, monkeypatch):
    """Mistake: an interrupted save counts as a checkpoint, and the last complete one is removed in its favour."""
    config = config.replace(steps=4, save_steps=1)
    finetune.finetune(config, run, CPU)
    (run.adapter / lora.METADATA_FILE).unlink()
    shutil.rmtree(run.training / "checkpoint-4")
    broken = run.training / "checkpoint-9"
    broken.mkdir()  # as a kill while it was saved leaves it
    complete = []

    def write_marker(path, text):
        complete.append([folder.name for folder in trainer.complete_checkpoints(run.training)])
        write_text(path, text)

    monkeypatch.setattr(trainer, "write_text", write_marker)
    finetune.finetune(config, run, CPU)
    assert complete == [["checkpoint-3"]] and not broken.exists()
    assert [folder.name for folder in trainer.complete_checkpoints(run.training)] == ["checkpoint-3", "checkpoint-4"]


@pytest.mark.slow
def test_rare_logging_logs_the_same_losses(config, run, tmp_path):
    """Mistake: where losses are read every tenth step, the curve has a tenth of its points, or means of ten; or weights are
    saved and evaluated before the losses were checked."""
    losses = []
    for logging_steps in (1, 5):
        changed = config.replace(steps=7, eval_steps=3, save_steps=6, gradient_accumulation_steps=2)
        run_copy = with_codes(Run(f"every{logging_steps}", tmp_path), cache.read(run.codes))
        _, model_trainer = prepare_trainer(changed, run_copy)
        model_trainer.args.logging_steps = logging_steps
        model_trainer.train()
        rows = [row for row in model_trainer.state.log_history if "backbone_loss" in row]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
        losses.append([(row["backbone_loss"], row["depth_loss"]) for row in rows])
    assert [step for row in model_trainer.state.log_history if "loss" in row for step in [row["step"]]] == [3, 5, 6, 7]
    for every_step, every_fifth in zip(*losses):
        assert every_step == pytest.approx(every_fifth, rel=1e-6)


def test_a_step_never_waits_for_the_device(config, run):
    """Mistake: a number is read, or a mask of unknown size made, in the middle of a step, and the GPU idles."""
    _, model_trainer = prepare_trainer(config, run)
    inputs = model_trainer.train_dataset[0]
    with Waits() as waits:
        sums = loss.loss_sums(lora.unwrap(model_trainer.model), inputs)
        (sums.backbone + sums.depth).backward()
    assert not waits.operations


class Waits(TorchDispatchMode):
    """Records operations whose result the host has to read."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.operations.append(function)
        return function(*args, **(kwargs or {}))


def test_offloaded_text_embeddings_train_the_same(config, run, tmp_path):
    """Mistake: the table moves back with the model, is read on the device, or gives other rows."""
    adapters = []
    for offload in (False, True):
        base, model_trainer = prepare_trainer(config.replace(offload_text_embeddings=offload),
                                              with_codes(Run(f"offload{offload}", tmp_path), cache.read(run.codes)))
        assert ("embed_text_tokens.weight" in dict(base.model.named_parameters())) is not offload
        batch = model_trainer.data_collator([model_trainer.train_dataset[0]])
        assert ("text" in batch) is offload
        model_trainer.train()
        adapters.append(trainable_weights(model_trainer))
    same(*adapters)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler, and there is no g++")
@pytest.mark.timeout(1200)  # the compiler, beside two other processes
def test_compiled_layers_train_the_same(config, run, tmp_path, capsys):
    """Mistake: compiled layers lose the adapter or the clips' borders, or are reported as compiled and are not."""
    adapters = []
    for compile_setting in ("no", "yes"):
        base, model_trainer = prepare_trainer(config.replace(compile=compile_setting, steps=2, eval_steps=2),
                                              with_codes(Run(compile_setting, tmp_path), cache.read(run.codes)))
        assert (base.model.backbone_model.layers[0]._compiled_call_impl is not None) is (compile_setting == "yes")
        model_trainer.train()
        adapters.append(trainable_weights(model_trainer))
    assert "not compiled (as requested)" in capsys.readouterr().out
    same(*adapters, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("steps", "device", "expected", "pattern"), [
    (load.MIN_STEPS_TO_COMPILE, "cpu", False, "on cpu"), (20, "cuda", False, "these are 20|no Triton"),
    (load.MIN_STEPS_TO_COMPILE, "cuda", True, "it pays from|no Triton")])
def test_compiling_is_chosen_where_it_saves_time(config, steps, device, expected, pattern):
    """Mistake: sixty steps wait two minutes for a compiler, or a long run is not compiled."""
    compiled, reason = load.should_compile(config.replace(steps=steps), dataclasses.replace(CPU, device=device))
    assert re.search(pattern, reason)
    assert compiled is (expected and has_triton())


def test_another_config_in_the_same_run_is_refused(config, run):
    """Mistake: a run continues with other values than it started with, or is overwritten."""
    finetune.finetune(config, run, CPU)
    before = adapter(run.adapter)
    with pytest.raises(KitError, match=r"started with other inputs: rank is 8 and was 4; steps is 9 and was 4. Use"):
        finetune.finetune(config.replace(rank=8, steps=9), run, CPU)
    same(adapter(run.adapter), before)


def test_an_out_of_memory_run_resumes_with_less_memory(config, run):
    """Mistake: out of memory at step 60, and the settings that would help are refused as another config."""
    finetune.finetune(config, run, CPU)
    before = adapter(run.adapter)
    (run.adapter / lora.METADATA_FILE).unlink()
    shutil.rmtree(max(run.training.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    finetune.finetune(config.replace(gradient_checkpointing=True, offload_text_embeddings=True, compile="no"), run, CPU)
    same(adapter(run.adapter), before)
    assert read_config(run.training / CONFIG_FILE).gradient_checkpointing


def test_an_adapter_gets_the_consent_after_an_interruption(config, run, capsys):
    """Mistake: a training that is killed between saving its weights and the consent leaves an adapter without consent; or a
    missing consent is not reported."""
    recorded = consent.Consent("Anna", "own", "I agree.", "2024-02-29T12:00:00+00:00", 6, 12.5, "0" * 64)
    consent.write(recorded, run.folder)
    for _ in ("trained", "already trained"):
        assert consent.read(finetune.finetune(config, run, CPU)) == recorded
        (run.adapter / consent.FILE).unlink()
    assert "No consent" not in capsys.readouterr().out
    (run.folder / consent.FILE).unlink()
    finetune.finetune(config, run, CPU)
    assert "No consent to the voice of run" in capsys.readouterr().out


def test_a_start_with_other_inputs_keeps_other_files(config, run):
    """Mistake: samples or notes in the training's folder are deleted because the first start ended before a checkpoint."""
    write_inputs(run.training, rank=64)
    note = run.training / "samples" / "step-000000" / "1.wav"
    write_bytes(note, b"a sample of the first start")
    stale = run.training / generation_eval.FOLDER / "step-000000"
    write_bytes(stale / "01.flac", b"of other inputs")
    finetune.finetune(config, run, CPU)
    assert note.read_bytes() == b"a sample of the first start" and not stale.exists()


def test_a_part_without_a_change_is_refused(config, run):
    """Mistake: an adapter whose depth decoder never changed is saved as a trained one."""
    with pytest.raises(KitError, match="the adapter of depth has not changed at all by step 4"):
        finetune.finetune(config.replace(depth_loss_weight=0.0), run, CPU)
    assert not run.adapter.exists()


def test_a_run_without_a_step_accepts_another_config(config, run, toy):
    """Mistake: a misspelt base or a batch too large for the GPU blocks the run's name for ever."""
    with pytest.raises(KitError, match="no/such"):
        finetune.finetune(config.replace(base="no/such"), run, CPU)
    assert finetune.finetune(config, run, CPU) == run.adapter


@pytest.mark.parametrize("training_state", ["finished", "interrupted"])
def test_a_run_is_bound_to_its_codes(config, run, training_state):
    """Mistake: an adapter of old clips is reported as trained, or a resume continues with other clips."""
    finetune.finetune(config, run, CPU)
    if training_state == "interrupted":
        (run.adapter / lora.METADATA_FILE).unlink()
    with_codes(run, [*cache.read(run.codes), make_clip("new", 9)])
    with pytest.raises(KitError, match="other inputs: codes is .* and was .*another run name"):
        finetune.finetune(config, run, CPU)


def test_codes_of_other_recordings_are_refused(config, run):
    """Mistake: the same sentences are recorded again, the codes are not made again, and the old recordings are trained
    on."""
    rows = [{"id": clip.id, "text": clip.text, "split": clip.split, "sha256": "one"} for clip in cache.read(run.codes)]
    write_rows(run.data / manifest.MANIFEST, rows)
    write_inputs(run.codes, codec=TOY_CODEC, manifest=manifest.digest(run.data))
    assert len(cache.load_run(run)) == len(rows), "codes are enough where the clips are missing"
    write_rows(run.data / manifest.MANIFEST, [{**rows[0], "sha256": "another recording"}, *rows[1:]])
    with pytest.raises(KitError, match="made from other data than .*tokenize"):
        cache.load_run(run)


def test_codes_older_than_the_data_are_refused(config, run):
    """Mistake: new data is prepared, the codes are not made again, and the old clips are trained on."""
    write_rows(run.data / "manifest.jsonl", [{"id": "another", "text": "Words.", "split": "train"}])
    write_inputs(run.data, source="another")
    with pytest.raises(KitError, match="made from other data than .*tokenize"):
        finetune.finetune(config, run, CPU)


def test_micro_batches_are_never_dropped():
    """Mistake: with two visible GPUs Trainer loads two items at once, and one of them is dropped."""
    with pytest.raises(ValueError, match="too many values"):
        trainer._single_item(None, [{}, {}])


def test_an_empty_sample_is_no_crash(config, run):
    """Mistake: the codec is asked to decode nothing, and the training ends in its traceback at the same step each time."""
    base, _ = prepare_trainer(config.replace(sample_steps=2), run)
    base.model.lm_head.weight.data.zero_()
    base.model.depth_decoder.codebooks_head.weight.data.zero_()
    callbacks.SampleCallback(base, config.replace(sample_steps=2, temperature=0.0, depth_temperature=0.0), run,
                             "0").write_samples(2)
    assert (run.training / "samples" / "step-000002" / "1.wav").is_file()


def test_a_finished_run_is_not_trained_again(config, run, capsys):
    """Mistake: a notebook that is run again discards an hour of training."""
    finetune.finetune(config, run, CPU)
    modified = (run.adapter / lora.WEIGHTS_FILE).stat().st_mtime_ns
    finetune.finetune(config, run, CPU)
    assert "already trained" in capsys.readouterr().out
    assert (run.adapter / lora.WEIGHTS_FILE).stat().st_mtime_ns == modified


def test_samples_plot_and_metrics_are_written(config, run):
    """Mistake: a training without samples, plot or metrics."""
    finetune.finetune(config.replace(sample_steps=2, sample_texts=("One.", "Two?")), run, CPU)
    files = sorted(str(path.relative_to(run.training)) for path in run.training.glob("samples/*/*.wav"))
    assert files == [f"samples/step-{step:06d}/{number}.wav" for step in (0, 2, 4) for number in (1, 2)]
    assert (run.training / "losses.png").read_bytes().startswith(b"\x89PNG")
    metadata = json.loads((run.adapter / lora.METADATA_FILE).read_text())
    assert metadata["metrics"]["after"]["eval_loss"] < metadata["metrics"]["before"]["eval_loss"]
    assert metadata["speaker"] == "0" and len(metadata["base_fingerprint"]) == 16
    assert not list(run.adapter.glob("*.bin")) and not list(run.adapter.glob("README.md"))


def test_a_full_disk_during_saving_keeps_the_last_checkpoint(config, run, tmp_path):
    """Mistake: a full disk leaves half a checkpoint that is taken for a complete one."""
    config = config.replace(steps=6)
    (tmp_path / "config.json").write_text(config.to_json())
    script = ("import resource, sys, torch; torch.set_num_threads(1)\n"
              "from tts_kit import config, device; from tts_kit.run import Run; from tts_kit.training import finetune\n"
              "from transformers import TrainerCallback\n"
              "class Full(TrainerCallback):\n"
              "    def on_step_end(self, args, state, control, **_):\n"
              "        if state.global_step == 3: resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))\n"
              "settings = config.read_config(sys.argv[1])\n"
              "finetune.finetune(settings, Run('one', sys.argv[2]), device.choose('cpu'), [Full()])\n")
    out = process.run(["-c", script, tmp_path / "config.json", tmp_path])
    assert out.returncode != 0
    assert "the disk is full" in out.stderr and "run the same command again" in out.stderr
    assert trainer.last_complete_checkpoint(run.training).name == "checkpoint-2"
    assert finetune.finetune(config, run, CPU) == run.adapter


def test_the_progress_callback_of_trl_works(config, run):
    """Mistake: a callback written for the Trainer of transformers fails with this one."""
    from trl import RichProgressCallback

    assert finetune.finetune(config, run, CPU, callbacks=[RichProgressCallback()]) == run.adapter


def test_codes_of_another_codec_are_refused(config, run):
    """Mistake: codes of one codec train a model that decodes with another."""
    with_codes(run, cache.read(run.codes), codec="another")
    with pytest.raises(KitError, match="made by another codec.*tokenize.*--base"):
        prepare_trainer(config, run)


def test_missing_or_damaged_codes_are_named(config, run, tmp_path):
    """Mistake: a truncated cache entry ends in a traceback of safetensors, or another clip's entry is trained on."""
    with pytest.raises(KitError, match="neither data nor codes. Begin with .*prepare SOURCE --run empty"):
        finetune.finetune(config, Run("empty", tmp_path), CPU)
    entries = sorted(run.codes.glob("entries/*"))
    whole = entries[3].read_bytes()
    for content, message in ((whole[:40], "cannot be read"), (entries[4].read_bytes(), "holds something else")):
        entries[3].write_bytes(content)
        with pytest.raises(KitError, match=rf"{entries[3].name} \(clip clip3\) {message}.*tokenize.*again"):
            prepare_trainer(config, run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bit_training_keeps_adapter_and_losses_in_float32(config, run, dtype):
    """Mistake: 16-bit norms or cross-entropy, an adapter rounded at every step, or a dtype clash in the first batch."""
    float32_trainer = prepare_trainer(config, run)[1]
    expected = float32_trainer.evaluate()
    # without a GPU there is no loss scaler for float16; everything else of its path runs here
    half_precision = runtime.DeviceConfig("cpu", dtype, "")
    base, model_trainer = prepare_trainer(config, run, half_precision)
    metrics = model_trainer.evaluate()
    for name in ("eval_backbone_loss", "eval_depth_loss"):
        assert metrics[name] == pytest.approx(expected[name], rel=5e-3)
    assert {weight.dtype for weight in model_trainer.model.parameters() if weight.requires_grad} == {torch.float32}
    with model_trainer._autocast():
        sums = loss.loss_sums(base.model, model_trainer.train_dataset[0])
        assert sums.depth.dtype == sums.backbone.dtype == torch.float32
        assert base.model.backbone_model.layers[0].mlp.up_proj(torch.ones(1, 32)).dtype == dtype
        normed = base.model.backbone_model.norm(torch.full((1, 32), 300.0, dtype=dtype))
    assert torch.isfinite(normed).all()  # 300 squared is no float16
    model_trainer.train()
    assert all(weight.any() for name, weight in model_trainer.model.named_parameters() if "lora_B" in name)
    callbacks.SampleCallback(base, config.replace(sample_steps=1, sample_texts=("One.",)), run, "0").write_samples(9)
    assert (run.training / "samples" / "step-000009" / "1.wav").is_file()
