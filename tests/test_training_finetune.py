"""Training from codes to an adapter folder: what a step optimizes, and what survives interruptions."""

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
    """A run that holds these clips as if they had been tokenized."""
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


def prepared(config, run, arithmetic=CPU):
    return finetune.prepare(config, run, cache.load_run(run), arithmetic)


def adapter(folder) -> dict:
    return load_file(Path(folder) / lora.WEIGHTS_FILE)


def same(one: dict, other: dict, **tolerance) -> None:
    assert one.keys() == other.keys()
    for name in one:
        torch.testing.assert_close(one[name], other[name], **(tolerance or {"rtol": 0, "atol": 0}), msg=name)


def test_logged_loss_is_the_sum_of_both_named_parts(config, run):
    """Mistake: Trainer scales the depth loss by 31, or divides once more by the accumulation steps."""
    _, made = prepared(config.replace(gradient_accumulation_steps=2, depth_loss_weight=0.5), run)
    made.train()
    rows = [row for row in made.state.log_history if "loss" in row]
    assert len(rows) == config.steps
    for row in rows:
        assert row["loss"] == pytest.approx(row["backbone_loss"] + 0.5 * row["depth_loss"], rel=1e-5)
        assert 3.3 < row["backbone_loss"] < 3.8 and 3.3 < row["depth_loss"] < 3.8  # ln 35 = 3.56, untrained


def test_four_micro_batches_are_one_big_batch(config, run):
    """Mistake: a mean of means; clips of unequal length make the accumulated gradient another one."""
    big = config.replace(tokens_per_batch=100_000, gradient_accumulation_steps=1, steps=1, depth_frame_fraction=0.5,
                         learning_rate=0.1)
    _, whole = prepared(big, run)
    order = [item for batch in whole.train_dataset.plan for item in batch]
    _, parts = prepared(big.replace(gradient_accumulation_steps=4), run)
    parts.train_dataset.plan = [order[:1], order[1:2], order[2:6], order[6:]]
    gradients = []
    for made in (whole, parts):
        captured = {}
        made.create_optimizer()
        step = made.optimizer.step

        def keep(*args, made=made, captured=captured, step=step, **kwargs):
            captured.update({name: weight.grad.clone() for name, weight in made.model.named_parameters()
                             if weight.grad is not None})
            return step(*args, **kwargs)

        made.args.max_grad_norm = 0.0
        made.optimizer.step = keep
        made.train()
        gradients.append(captured)
    assert len(gradients[0]) == 56
    same(gradients[0], gradients[1], rtol=1e-4, atol=1e-7)
    losses = [made.state.log_history[0]["loss"] for made in (whole, parts)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_checkpointing_computes_again_and_gives_the_same_adapter(config, run, tmp_path):
    """Mistake: gradient checkpointing with LoRA crashes on a leaf written in place, trains nothing, or is never on."""
    calls, made = {}, {}
    for name, gradient_checkpointing in (("plain", False), ("saving", True)):
        base, trained = prepared(config.replace(gradient_checkpointing=gradient_checkpointing, eval_steps=1000), run)
        calls[name] = 0
        for part in (base.model.backbone_model, base.model.depth_decoder.model):
            part.layers[0].mlp.register_forward_pre_hook(
                lambda module, _, name=name: calls.update({name: calls[name] + module.training}))
        trained.train()
        made[name] = {key: weight.detach() for key, weight in trained.model.named_parameters() if weight.requires_grad}
    same(made["plain"], made["saving"], rtol=1e-4, atol=1e-6)
    assert calls["saving"] == 2 * calls["plain"] > 0


def test_evaluation_is_the_mean_over_all_held_out_frames(config, run, base):
    """Mistake: held-out losses averaged over batches of unequal size, or measured only after training began."""
    _, made = prepared(config, run)
    alone = made.evaluate()
    _, small = prepared(config.replace(tokens_per_batch=10), run)
    assert small.evaluate()["eval_backbone_loss"] == pytest.approx(alone["eval_backbone_loss"], rel=1e-6)
    assert small.evaluate()["eval_depth_loss"] == pytest.approx(alone["eval_depth_loss"], rel=1e-6)
    finetune.finetune(config, run, CPU)
    rows = [row for row in read_rows(run.training / callbacks.LOG_FILE) if "eval_loss" in row]
    assert [row["step"] for row in rows] == [0, 2, 4]
    metrics = json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]
    assert [metrics[when]["eval_loss"] for when in ("before", "after")] == [rows[0]["eval_loss"], rows[2]["eval_loss"]]
    assert rows[0]["eval_loss"] == pytest.approx(alone["eval_loss"])


def test_one_clip_is_learnt_until_its_codes_come_back(config, run, tmp_path):
    """Mistake: anything between labels, heads and generation that does not fit: then a clip cannot be reproduced."""
    clip = make_clip("only", 6, "Remember me.")
    held = [make_clip(f"held{number}", 4, split="held_out") for number in range(2)]
    with_codes(run, [clip, *held])
    base, made = prepared(config.replace(rank=16, alpha=32, steps=200, learning_rate=0.01, eval_steps=1000,
                                            save_steps=1000), run)
    spread_logits(base)
    made.train()
    made.model.eval()
    prompt = base.prompt_builder.build("again", [Turn(clip.text, clip.source)])
    take, = InferenceEngine(base.model, base.spec, lora.DEFAULT_ADAPTER).generate([prompt], Sampling(0, 0), [0], [20])
    assert take.ended_with_eos
    assert take.codes.tolist() == clip.codes.tolist()


def test_killed_training_resumes_to_the_same_weights(config, run, tmp_path):
    """Mistake: after SIGKILL the order of clips, the optimizer or the schedule starts anew, or a half checkpoint is read."""
    config = config.replace(steps=30, save_steps=3, eval_steps=15, depth_frame_fraction=0.25)
    whole = with_codes(Run("whole", tmp_path), cache.read(run.codes))
    finetune.finetune(config, whole, CPU)
    (tmp_path / "config.json").write_text(config.to_json())
    script = ("import sys, torch; torch.set_num_threads(1)\n"
              "from tts_kit import config, device; from tts_kit.run import Run; from tts_kit.training import finetune\n"
              "finetune.finetune(config.read_config(sys.argv[1]), Run('one', sys.argv[2]), device.choose('cpu'))\n")
    killed = process.Process(["-c", script, tmp_path / "config.json", tmp_path])
    deadline = time.monotonic() + 120
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
    kept, wanted = (read_rows(one.training / callbacks.LOG_FILE) for one in (run, whole))
    assert [row["step"] for row in kept] == [row["step"] for row in wanted]


@pytest.mark.parametrize("every", [1, 7], ids=["looked at once", "looked at late"])
def test_a_clip_without_a_finite_loss_stops_the_run_by_name(config, run, every):
    """Mistake: one broken clip turns every weight into NaN and the run goes on for hours, or all clips are called guilty."""
    clips = cache.read(run.codes)
    poisoned = make_clip("poisoned", 8, "Here is a tilde ~ in it.")
    with_codes(run, [*clips, poisoned])
    base, made = prepared(config.replace(steps=20), run)
    tilde = base.prompt_builder.tokenizer("~", add_special_tokens=False).input_ids[0]
    base.model.embed_text_tokens.weight.data[tilde] = float("nan")
    made.args.logging_steps = every
    with pytest.raises(KitError, match=r"step \d+: the loss is not a finite number for a batch of the clips ") as error:
        made.train()
    named = re.search(r"clips (.*?)\. Listen", str(error.value))[1].split(", ")
    assert "poisoned" in named and len(named) < len(clips) - 2
    last = trainer.last_complete_checkpoint(run.training)
    assert last is None or all(torch.isfinite(weight).all() for weight in adapter(last).values())


def test_a_complete_checkpoint_is_there_at_every_moment(config, run, monkeypatch):
    """Mistake: what an interrupted save left counts as a checkpoint, and the last complete one is removed in its favour."""
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


def test_looking_seldom_sees_the_same(config, run, tmp_path):
    """Mistake: where the host looks at the losses every tenth step, the curve has a tenth of its points, or means of ten; or
    weights are saved and held-out clips judged before anybody saw what was learnt."""
    seen = []
    for every in (1, 5):
        _, made = prepared(config.replace(steps=7, eval_steps=3, save_steps=6, gradient_accumulation_steps=2),
                           with_codes(Run(f"every{every}", tmp_path), cache.read(run.codes)))
        made.args.logging_steps = every
        made.train()
        rows = [row for row in made.state.log_history if "backbone_loss" in row]
        assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6, 7]
        seen.append([(row["backbone_loss"], row["depth_loss"]) for row in rows])
    assert [step for row in made.state.log_history if "loss" in row for step in [row["step"]]] == [3, 5, 6, 7]
    for often, seldom in zip(*seen):
        assert often == pytest.approx(seldom, rel=1e-6)


def test_a_step_never_waits_for_the_device(config, run):
    """Mistake: a number is asked for, or a mask of unknown size made, in the middle of a step, and the GPU runs dry."""
    _, made = prepared(config, run)
    inputs = made.train_dataset[0]
    with Waits() as waits:
        sums = loss.loss_sums(lora.unwrap(made.model), inputs)
        (sums.backbone + sums.depth).backward()
    assert not waits.seen


class Waits(TorchDispatchMode):
    """Remembers operations whose result the host has to know."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default):
            self.seen.append(function)
        return function(*args, **(kwargs or {}))


def test_text_embeddings_in_main_memory_train_the_same(config, run, tmp_path):
    """Mistake: the table moves back with the model, is asked for on the device, or gives other rows."""
    made = []
    for far in (False, True):
        base, trained = prepared(config.replace(offload_text_embeddings=far),
                                 with_codes(Run(f"far{far}", tmp_path), cache.read(run.codes)))
        assert ("embed_text_tokens.weight" in dict(base.model.named_parameters())) is not far
        batch = trained.data_collator([trained.train_dataset[0]])
        assert ("text" in batch) is far
        trained.train()
        made.append({name: weight.detach() for name, weight in trained.model.named_parameters() if weight.requires_grad})
    same(*made)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="compiling needs a C++ compiler, and there is no g++")
def test_compiled_layers_train_the_same(config, run, tmp_path, capsys):
    """Mistake: compiled layers lose the adapter or the clips' borders, or are called compiled and are not."""
    made = []
    for wanted in ("no", "yes"):
        base, trained = prepared(config.replace(compile=wanted, steps=2, eval_steps=2),
                                 with_codes(Run(wanted, tmp_path), cache.read(run.codes)))
        assert (base.model.backbone_model.layers[0]._compiled_call_impl is not None) is (wanted == "yes")
        trained.train()
        made.append({name: weight.detach() for name, weight in trained.model.named_parameters() if weight.requires_grad})
    assert "not compiled (as requested)" in capsys.readouterr().out
    same(*made, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("steps", "device", "wanted", "why"), [
    (load.MIN_STEPS_TO_COMPILE, "cpu", False, "on cpu"), (20, "cuda", False, "these are 20|no Triton"),
    (load.MIN_STEPS_TO_COMPILE, "cuda", True, "it pays from|no Triton")])
def test_compiling_is_decided_by_what_it_pays(config, steps, device, wanted, why):
    """Mistake: sixty steps wait two minutes for a compiler, or a long run goes without."""
    compiled, reason = load.should_compile(config.replace(steps=steps), dataclasses.replace(CPU, device=device))
    assert re.search(why, reason)
    assert compiled is (wanted and has_triton())


def test_another_recipe_in_the_same_run_is_refused(config, run):
    """Mistake: a run goes on with other values than it began with, or is overwritten."""
    finetune.finetune(config, run, CPU)
    before = adapter(run.adapter)
    with pytest.raises(KitError, match=r"started with other inputs: rank is 8 and was 4; steps is 9 and was 4. Use"):
        finetune.finetune(config.replace(rank=8, steps=9), run, CPU)
    same(adapter(run.adapter), before)


def test_a_run_that_did_not_fit_goes_on_in_less_memory(config, run):
    """Mistake: out of memory at step 60, and what would save it is another recipe."""
    finetune.finetune(config, run, CPU)
    before = adapter(run.adapter)
    (run.adapter / lora.METADATA_FILE).unlink()
    shutil.rmtree(max(run.training.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1])))
    finetune.finetune(config.replace(gradient_checkpointing=True, offload_text_embeddings=True, compile="no"), run, CPU)
    same(adapter(run.adapter), before)
    assert read_config(run.training / CONFIG_FILE).gradient_checkpointing


def test_an_adapter_gets_the_consent_however_training_ended(config, run, capsys):
    """Mistake: a training that is killed between its weights and the consent leaves a voice that is nobody's for good; or
    nobody is reminded that there is none."""
    made = consent.Consent("Anna", "own", "I agree.", "2024-02-29T12:00:00+00:00", 6, 12.5, "0" * 64)
    consent.write(made, run.folder)
    for _ in ("trained", "already trained"):
        assert consent.read(finetune.finetune(config, run, CPU)) == made
        (run.adapter / consent.FILE).unlink()
    assert "No consent" not in capsys.readouterr().out
    (run.folder / consent.FILE).unlink()
    finetune.finetune(config, run, CPU)
    assert "No consent to the voice of run" in capsys.readouterr().out


def test_a_start_with_other_inputs_keeps_what_is_not_its_own(config, run):
    """Mistake: samples or notes in the training's folder are deleted because the first start ended before a checkpoint."""
    write_inputs(run.training, rank=64)
    note = run.training / "samples" / "step-000000" / "1.wav"
    write_bytes(note, b"what the first start said")
    stale = run.training / generation_eval.FOLDER / "step-000000"
    write_bytes(stale / "01.flac", b"of other inputs")
    finetune.finetune(config, run, CPU)
    assert note.read_bytes() == b"what the first start said" and not stale.exists()


def test_a_part_that_has_learned_nothing_is_refused(config, run):
    """Mistake: an adapter whose depth decoder never changed is saved as a trained one."""
    with pytest.raises(KitError, match="the adapter of depth has not changed at all by step 4"):
        finetune.finetune(config.replace(depth_loss_weight=0.0), run, CPU)
    assert not run.adapter.exists()


def test_a_run_that_has_learnt_nothing_takes_another_recipe(config, run, toy):
    """Mistake: a misspelt base or a batch too large for the card blocks the run's name for ever."""
    with pytest.raises(KitError, match="no/such"):
        finetune.finetune(config.replace(base="no/such"), run, CPU)
    assert finetune.finetune(config, run, CPU) == run.adapter


@pytest.mark.parametrize("trained_by_then", ["finished", "ended_with_eos"])
def test_a_run_is_bound_to_its_codes(config, run, trained_by_then):
    """Mistake: an adapter of old clips is called trained, or a resume goes on with other clips."""
    finetune.finetune(config, run, CPU)
    if trained_by_then == "ended_with_eos":
        (run.adapter / lora.METADATA_FILE).unlink()
    with_codes(run, [*cache.read(run.codes), make_clip("new", 9)])
    with pytest.raises(KitError, match="other inputs: codes is .* and was .*another run name"):
        finetune.finetune(config, run, CPU)


def test_codes_of_other_recordings_are_refused(config, run):
    """Mistake: the same sentences are recorded again, the codes are forgotten, and the old recordings are trained on."""
    rows = [{"id": clip.id, "text": clip.text, "split": clip.split, "sha256": "one"} for clip in cache.read(run.codes)]
    write_rows(run.data / manifest.MANIFEST, rows)
    write_inputs(run.codes, codec=TOY_CODEC, manifest=manifest.digest(run.data))
    assert len(cache.load_run(run)) == len(rows), "codes are enough where the clips are not there"
    write_rows(run.data / manifest.MANIFEST, [{**rows[0], "sha256": "another take"}, *rows[1:]])
    with pytest.raises(KitError, match="made from other data than .*tokenize"):
        cache.load_run(run)


def test_codes_older_than_the_data_are_refused(config, run):
    """Mistake: new data is prepared, the codes are forgotten, and the old clips are trained on."""
    write_rows(run.data / "manifest.jsonl", [{"id": "another", "text": "Words.", "split": "train"}])
    write_inputs(run.data, source="another")
    with pytest.raises(KitError, match="made from other data than .*tokenize"):
        finetune.finetune(config, run, CPU)


def test_micro_batches_are_never_dropped():
    """Mistake: with two GPUs in sight Trainer loads two items at once, and one of them is thrown away."""
    with pytest.raises(ValueError, match="too many values"):
        trainer._single_item(None, [{}, {}])


def test_a_sample_that_ends_at_once_is_no_crash(config, run):
    """Mistake: the codec is asked to decode nothing, and the training ends in its traceback at the same step each time."""
    base, _ = prepared(config.replace(sample_steps=2), run)
    base.model.lm_head.weight.data.zero_()
    base.model.depth_decoder.codebooks_head.weight.data.zero_()
    callbacks.SampleCallback(base, config.replace(sample_steps=2, temperature=0.0, depth_temperature=0.0), run,
                             "0").write_samples(2)
    assert (run.training / "samples" / "step-000002" / "1.wav").is_file()


def test_a_finished_run_is_not_trained_again(config, run, capsys):
    """Mistake: running a notebook again throws an hour of training away."""
    finetune.finetune(config, run, CPU)
    stamp = (run.adapter / lora.WEIGHTS_FILE).stat().st_mtime_ns
    finetune.finetune(config, run, CPU)
    assert "already trained" in capsys.readouterr().out
    assert (run.adapter / lora.WEIGHTS_FILE).stat().st_mtime_ns == stamp


def test_samples_plot_and_metrics_are_there(config, run):
    """Mistake: a training of which nothing can be seen or heard."""
    finetune.finetune(config.replace(sample_steps=2, sample_texts=("One.", "Two?")), run, CPU)
    heard = sorted(str(path.relative_to(run.training)) for path in run.training.glob("samples/*/*.wav"))
    assert heard == [f"samples/step-{step:06d}/{number}.wav" for step in (0, 2, 4) for number in (1, 2)]
    assert (run.training / "losses.png").read_bytes().startswith(b"\x89PNG")
    belongs = json.loads((run.adapter / lora.METADATA_FILE).read_text())
    assert belongs["metrics"]["after"]["eval_loss"] < belongs["metrics"]["before"]["eval_loss"]
    assert belongs["speaker"] == "0" and len(belongs["base_fingerprint"]) == 16
    assert not list(run.adapter.glob("*.bin")) and not list(run.adapter.glob("README.md"))


def test_a_full_disk_during_saving_says_so_and_keeps_the_checkpoint(config, run, tmp_path):
    """Mistake: a full disk leaves half a checkpoint that is taken for a whole one."""
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


def test_trl_progress_callback_plugs_in(config, run):
    """Mistake: trl is asked for in requirements.txt and nothing of it works with this trainer."""
    from trl import RichProgressCallback

    assert finetune.finetune(config, run, CPU, callbacks=[RichProgressCallback()]) == run.adapter


def test_codes_of_another_codec_are_refused(config, run):
    """Mistake: codes of one codec are trained into a model that speaks through another."""
    with_codes(run, cache.read(run.codes), codec="another")
    with pytest.raises(KitError, match="made by another codec.*tokenize.*--base"):
        prepared(config, run)


def test_codes_that_are_missing_or_damaged_are_named(config, run, tmp_path):
    """Mistake: a truncated cache entry ends in a traceback of safetensors, or a foreign one is trained on."""
    with pytest.raises(KitError, match="neither data nor codes. Begin with .*prepare SOURCE --run empty"):
        finetune.finetune(config, Run("empty", tmp_path), CPU)
    entries = sorted(run.codes.glob("entries/*"))
    whole = entries[3].read_bytes()
    for content, complaint in ((whole[:40], "cannot be read"), (entries[4].read_bytes(), "holds something else")):
        entries[3].write_bytes(content)
        with pytest.raises(KitError, match=rf"{entries[3].name} \(clip clip3\) {complaint}.*tokenize.*again"):
            prepared(config, run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_16_bit_arithmetic_keeps_the_adapter_and_the_losses_in_float32(config, run, dtype):
    """Mistake: 16-bit norms or cross-entropy, an adapter rounded at every step, or a dtype clash in the first batch."""
    exact = prepared(config, run)[1]
    wanted = exact.evaluate()
    # without a GPU there is no loss scaler for float16; everything else of its path runs here
    half = runtime.DeviceConfig("cpu", dtype, "")
    base, made = prepared(config, run, half)
    seen = made.evaluate()
    for name in ("eval_backbone_loss", "eval_depth_loss"):
        assert seen[name] == pytest.approx(wanted[name], rel=5e-3)
    assert {weight.dtype for weight in made.model.parameters() if weight.requires_grad} == {torch.float32}
    with made._autocast():
        sums = loss.loss_sums(base.model, made.train_dataset[0])
        assert sums.depth.dtype == sums.backbone.dtype == torch.float32
        assert base.model.backbone_model.layers[0].mlp.up_proj(torch.ones(1, 32)).dtype == dtype
        normed = base.model.backbone_model.norm(torch.full((1, 32), 300.0, dtype=dtype))
    assert torch.isfinite(normed).all()  # 300 squared is no float16
    made.train()
    assert all(weight.any() for name, weight in made.model.named_parameters() if "lora_B" in name)
    callbacks.SampleCallback(base, config.replace(sample_steps=1, sample_texts=("One.",)), run, "0").write_samples(9)
    assert (run.training / "samples" / "step-000009" / "1.wav").is_file()
