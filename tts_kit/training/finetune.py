"""Codes -> adapter: `fit` trains a run's adapter from wherever it stopped."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from tts_kit import device, pretrained
from tts_kit.config import CONFIG_FILE, RESUME_MAY_CHANGE, Config, read_config, save_config
from tts_kit.data import consent
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.io import write_text
from tts_kit.model import compile, license, load, lora, offload
from tts_kit.run import Run
from tts_kit.spec import ModelSpec
from tts_kit.tokens import cache
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import callbacks as watch
from tts_kit.training import dataset, distributed, generation_eval
from tts_kit.training.checkpoint_selection import SelectedCheckpoint
from tts_kit.training.trainer import CsmTrainer, last_complete_checkpoint, training_arguments

CODES, RECORDINGS = "codes.sha256", "recordings.sha256"
"""Beside the checkpoints: which codes they have learnt, and from which clips those were made."""


def finetune(config: Config, run: Run, device_config: DeviceConfig, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train the adapter of a run, or go on where it stopped; returns the adapter folder.

    Processes that a launcher started share every step, which stays the same: only the first one evaluates and writes."""
    with distributed.explain_peer_errors():
        distributed.init(device_config)
        with distributed.rank_zero_stdout():
            adapter = _fit(config, run, device_config, callbacks)
        if distributed.is_rank_zero():
            consent.attach(run, adapter)
        distributed.barrier()
        return adapter


def _fit(config: Config, run: Run, device_config: DeviceConfig, callbacks: Sequence[TrainerCallback]) -> Path:
    if distributed.is_rank_zero():
        print(license.license_notice(config.base))
        consent.warn_if_missing(run, thorough=True)
    clips = cache.load_run(run)
    check_resume_compatible(config, run)
    if (run.adapter / lora.METADATA_FILE).exists():
        print(f"{run.adapter} is already trained with this recipe. To train again choose another run name, or delete it "
              f"and {run.training}.")
        return run.adapter
    progress = watch.ProgressCallback()
    base, trainer = prepare(config, run, clips, device_config, [*[progress] * distributed.is_rank_zero(), *callbacks])
    if listener := generation_eval.build(base, config, run, clips):
        trainer.add_callback(listener)
    if distributed.is_rank_zero():
        write_text(run.training / CONFIG_FILE, config.to_json())
        write_text(run.training / CODES, cache.digest(run.codes))
        write_text(run.training / RECORDINGS, consent.audio_digest(run))
    last = last_complete_checkpoint(run.training)
    print(f"Going on from {last.name}." if last else "Starting from the base model.")
    start, first = time.monotonic(), int(last.name.split("-")[1]) if last else 0
    trainer.args.eval_on_start = last is None
    with pretrained.quiet(), contextlib.closing(progress):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds, steps = time.monotonic() - start, trainer.state.global_step - first
    if distributed.is_rank_zero():
        _finish(trainer, base, config, run, generation_eval.load_best(listener, trainer), seconds, steps)
    return run.adapter


def launch(config: Config, run: Run, gpus: int) -> Path:
    """`fit` in as many processes as there are GPUs; the recipe travels in the run's folder."""
    check_resume_compatible(config, run)
    save_config(run, config)
    command = f"-m accelerate.commands.launch --multi_gpu --num_processes {gpus} -m tts_kit train --run {run.name}"
    if subprocess.run([sys.executable, *command.split()], cwd=run.folder.parent.parent, check=False).returncode:
        raise KitError(f"training with {gpus} processes has stopped; why stands above. The same command goes on from the "
                      "last checkpoint.")
    return run.adapter


def prepare(config: Config, run: Run, clips: Sequence[EncodedClip], device_config: DeviceConfig,
            callbacks: Sequence[TrainerCallback] = ()) -> tuple[load.Base, CsmTrainer]:
    """The base with a fresh adapter, and a trainer over the run's codes."""
    engine, why = load.choose_backend(config.backend, device_config)
    print(f"{device_config.reason} Engine: {engine} ({why}).")
    base = load.load_base(config.base, device_config, config.revision, engine, codec_device="cpu")
    if cache.codec_fingerprint(run.codes) != base.codec.fingerprint():
        raise KitError(f"{run.codes} was made by another codec than that of {config.base}. Run `tts-kit tokenize` "
                      "with the same --base again; codes that fit are kept.")
    model = lora.add_lora(base.model, config.rank, config.alpha, config.lora_targets, config.seed)
    print(lora.format_parameter_table(lora.count_parameters(model)))
    if config.offload_text_embeddings or device_config.low_memory:
        offload.offload_text_embeddings(base.model)
        print(f"Text embeddings stay in main memory ({'as asked' if config.offload_text_embeddings else 'the card is small'}).")
    compiled, why = compile.should_compile(config, device_config)
    print(f"Layers are {'compiled' if compiled else 'not compiled'} ({why}).")
    if compiled:
        compile.compile_layers(base.model)
    steps = dataset.MicroBatchDataset([clip for clip in clips if clip.split == "train"], base.prompt_builder, config,
                          distributed.world_size())
    held_out = [dataset.build_example(clip, base.prompt_builder) for clip in clips if clip.split == "held_out"]
    print(f"{len(steps.scored)} clips to learn from, {len(held_out)} held out; {config.steps} steps pass the data "
          f"{steps.passes:.1f} times{f', each shared by {distributed.world_size()} processes' * (distributed.world_size() > 1)}.")
    watchers = [watch.LossPlotCallback(run), watch.SampleCallback(base, config, run, steps.speaker)] if distributed.is_rank_zero() else []
    trainer = CsmTrainer(model, training_arguments(config, run, device_config), steps, dataset.for_evaluation(held_out, config),
                         device_config, callbacks=[*watchers, *callbacks])
    trainer.remove_callback(PrinterCallback)
    return base, trainer


def check_resume_compatible(config: Config, run: Run) -> None:
    """A run that has learnt something goes on with what gives the same adapter from the same codes, or not at all."""
    if not (last_complete_checkpoint(run.training) or (run.adapter / lora.METADATA_FILE).exists()):
        return
    known = read_config(run.training / CONFIG_FILE)
    if different := {name: both for name, both in config.differences(known).items() if name not in RESUME_MAY_CHANGE}:
        listed = "; ".join(f"{name} is {now!r}, there it is {then!r}" for name, (now, then) in different.items())
        raise KitError(f"{run.training / CONFIG_FILE} already holds another recipe: {listed}. Give the same values to "
                      f"go on with this one, choose another run name, or delete {run.training} and {run.adapter} to begin "
                      "anew.")
    if (run.training / CODES).read_text(encoding="utf-8") != cache.digest(run.codes):
        raise KitError(f"{run.training} was trained on other codes than {run.codes} holds now. Choose another run name for "
                      f"the new codes, or delete {run.training} and {run.adapter}.")


def dry_run(config: Config, run: Run, device_config: DeviceConfig) -> dict:
    """What a training would be, without loading any weight: counts from the meta device, clips from the codes."""
    clips = cache.load_run(run)
    engine, _ = load.choose_backend(config.backend, device_config)
    bare = load.without_weights(config.base, config.revision)
    prompt_builder = PromptBuilder(pretrained.tokenizer(config.base, config.revision), ModelSpec.of(bare.config))
    steps = dataset.MicroBatchDataset([clip for clip in clips if clip.split == "train"], prompt_builder, config)
    counts = lora.count_parameters(lora.add_lora(bare, config.rank, config.alpha, config.lora_targets))
    return {"trainable": sum(count["trainable"] for count in counts.values()),
            "modules": {part: count["modules"] for part, count in counts.items()},
            "clips": len(steps.scored), "steps": config.steps, "passes": round(steps.passes, 1),
            "device": device_config.device, "dtype": str(device_config.dtype).removeprefix("torch."), "backend": engine}


def _finish(trainer: CsmTrainer, base: load.Base, config: Config, run: Run, chosen: SelectedCheckpoint, seconds: float,
            steps: int) -> None:
    before, after = watch.evaluations(trainer, chosen.step)
    movement = lora.max_lora_b(trainer.model)
    if not all(movement.values()):
        still = ", ".join(part for part, largest in movement.items() if not largest)
        raise KitError(f"the adapter of {still} has not moved at all until step {chosen.step}. Train again under another "
                      "run name with a higher --learning-rate, more --steps or fewer --warmup-steps.")
    metrics = {"before": before, "after": after, "adapter_moved": movement,
               "seconds_since_start_or_resume": round(seconds, 1), "steps_since_start_or_resume": steps,
               "steps": config.steps,
               "chosen_step": chosen.step, "chosen_by": chosen.by, "chosen_because": chosen.why,
               "passes": round(trainer.train_dataset.passes * chosen.step / config.steps, 2),
               "machine": device.machine(), "versions": device.versions()}
    voice = {"speaker": trainer.train_dataset.speaker, "run": run.name,
             "codes": cache.digest(run.codes), "recordings": (run.training / RECORDINGS).read_text(encoding="utf-8"),
             "metrics": metrics}
    lora.save(trainer.model, run.adapter, base, config.to_json(), voice)
    print(f"Held-out loss: backbone {before['eval_backbone_loss']:.3f} -> {after['eval_backbone_loss']:.3f}, depth "
          f"{before['eval_depth_loss']:.3f} -> {after['eval_depth_loss']:.3f}. Adapter: {run.adapter}")
    if after["eval_loss"] > before["eval_loss"]:
        print("On held-out clips the adapter is worse than the base: it has learnt the training clips by heart. Try fewer "
              "steps, a lower learning rate or more data.")
