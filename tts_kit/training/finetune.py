"""Train a run's adapter: `finetune` starts, or resumes from the last complete checkpoint."""

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from tts_kit import device, pretrained
from tts_kit.config import CONFIG_FILE, EPOCHS, MAX_STEPS, MIN_STEPS, RESUME_MAY_CHANGE, Config, save_config
from tts_kit.data import consent, manifest
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.io import write_text
from tts_kit.model import embed, license, load, lora
from tts_kit.pretrained import ModelSpec
from tts_kit.run import INPUTS, Run, changed_inputs, lock, read_inputs, write_inputs
from tts_kit.tokens import cache
from tts_kit.tokens.cache import EncodedClip
from tts_kit.tokens.prompt import PromptBuilder, prompt_options
from tts_kit.training import callbacks as training_callbacks
from tts_kit.training import dataset, distributed, generation_eval, trackers
from tts_kit.training.generation_eval import SelectedCheckpoint
from tts_kit.training.trainer import CsmTrainer, last_complete_checkpoint, training_arguments

MAX_EPOCHS, ALPHA_PER_RANK = 20, (0.5, 2)  # passes, and range of alpha / rank, beyond which there is a warning


def finetune(config: Config, run: Run, device_config: DeviceConfig, callbacks: Sequence[TrainerCallback] = (),
             customize: Callable[[load.Base, CsmTrainer], None] | None = None) -> Path:
    """Train the adapter of a run, or resume; returns the adapter folder. `customize` may change the new trainer.

    Processes started by a launcher share every step, which stays the same; only rank 0 evaluates and writes."""
    with distributed.explain_peer_errors():
        distributed.init(device_config)
        with distributed.rank_zero_stdout(), contextlib.ExitStack() as stack:
            clips = cache.load_run(run)
            if distributed.is_rank_zero():
                stack.enter_context(lock(run.training))
            adapter = _finetune(config, run, clips, device_config, callbacks, customize)
        if distributed.is_rank_zero():
            consent.attach(run, adapter)
        distributed.broadcast_bool(lambda: True)  # the others wait until rank 0 has written
        return adapter


def _finetune(config: Config, run: Run, clips: Sequence[EncodedClip], device_config: DeviceConfig,
              callbacks: Sequence[TrainerCallback], customize: Callable[[load.Base, CsmTrainer], None] | None) -> Path:
    trackers.check_installed(config)
    if distributed.is_rank_zero():
        print(license.license_notice(config.base))
        consent.warn_if_missing(run, thorough=True)
    config = fill_defaults(config, clips)
    inputs = _inputs(config, run)
    check_inputs(run, inputs)
    recorded = read_inputs(run.training) if (run.training / INPUTS).exists() else {}
    checkpoint = last_complete_checkpoint(run.training)
    is_extended = checkpoint is not None and config.steps > recorded["steps"]
    is_trained = (run.adapter / lora.METADATA_FILE).exists()
    if is_trained and lora.read_metadata(run.adapter).get("metrics", {}).get("steps", config.steps) == config.steps:
        print(f"{run.adapter} is already trained with this config. Give more --steps to train on, another run name to train "
              f"again (train --run NEW --from {run.name}), or delete it and {run.training}.")
        return run.adapter
    progress = training_callbacks.ProgressCallback()
    base, trainer = prepare(config, run, clips, device_config, [*[progress] * distributed.is_rank_zero(), *callbacks])
    if customize:
        customize(base, trainer)
    inputs["base_fingerprint"] = base.fingerprint
    check_inputs(run, inputs)
    evaluation = generation_eval.build(base, config, run, clips)
    if evaluation:
        trainer.add_callback(evaluation)
    if distributed.is_rank_zero():
        if not recorded or (not checkpoint and changed_inputs(run.training, **inputs)):
            generation_eval.remove_results(run)
            write_inputs(run.training, **inputs, recordings=consent.audio_digest(run))
        write_text(run.training / CONFIG_FILE, config.to_json())
        if is_extended:
            write_inputs(run.training, **inputs, recordings=recorded["recordings"])
    print(f"Resuming from {checkpoint.name}." if checkpoint else "Starting from the base model.")
    if is_extended:
        print(f"Extended from {recorded['steps']} to {config.steps} steps: after one step the learning rate is that of a "
              f"training of {config.steps} steps from the start, and decays linearly to 0.")
    trainer.args.eval_on_start = checkpoint is None
    if distributed.is_rank_zero() and config.report_to != ("none",):
        tracking = trackers.TrackerCallback(config, run, base.spec.sample_rate, evaluation,
                                            int(checkpoint.name.split("-")[1]) if checkpoint else 0)
        for callback in (*tracking.trackers, tracking):
            trainer.add_callback(callback)
    with pretrained.quiet(), contextlib.closing(progress):
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if distributed.is_rank_zero():
        _save_adapter(trainer, base, config, run, generation_eval.load_best(evaluation, trainer))
    return run.adapter


def fill_defaults(config: Config, clips: Sequence[EncodedClip]) -> Config:
    """The config with the steps and alpha that depend on clips and rank, where they were left to the kit."""
    config = config.replace(alpha=config.alpha or float(config.rank))
    if config.steps:
        return config
    spec = ModelSpec.of(pretrained.config(config.base, config.revision))
    builder = PromptBuilder(pretrained.tokenizer(config.base, config.revision), spec, **prompt_options(config))
    lengths = [len(dataset.build_example(clip, builder)) for clip in clips if clip.split == "train"]
    config = config.replace(steps=dataset.default_steps(lengths, config))
    print(f"{config.steps} steps: {EPOCHS} passes over {len(lengths)} training clips, but at least {MIN_STEPS} and at most "
          f"{MAX_STEPS} steps (--steps sets others).")
    return config


def warnings(config: Config, epochs: float, minutes: float) -> list[str]:
    """Sentences about settings and data that make a good voice unlikely."""
    texts, low_high = [], [round(config.rank * factor, 1) for factor in ALPHA_PER_RANK]
    if minutes < manifest.MIN_MINUTES:
        texts.append(f"Little data: {minutes:.1f} minutes to train on; {manifest.MIN_MINUTES} are the minimum for a "
                     "recognisable voice, and cloning from one clip may do as well.")
    if epochs > MAX_EPOCHS:
        texts.append(f"Many passes: {config.steps} steps are {epochs:.0f} passes over the clips; 5 to 10 are usual, more "
                     "learn the clips by heart. Use more data or fewer --steps.")
    if not low_high[0] <= config.alpha <= low_high[1]:
        texts.append(f"Alpha {config.alpha:g} with rank {config.rank} scales the adapter by {config.alpha / config.rank:g}; "
                     f"usual is --alpha {low_high[0]:g} to {low_high[1]:g}.")
    return texts


def launch(config: Config, run: Run, gpus: int) -> Path:
    """Run `finetune` in as many processes as there are GPUs; the config is passed on in the run folder."""
    trackers.check_installed(config)
    config = fill_defaults(config, cache.load_run(run))
    check_inputs(run, _inputs(config, run))
    save_config(run, config)
    command = f"-m accelerate.commands.launch --multi_gpu --num_processes {gpus} -m tts_kit train --run {run.name}"
    if subprocess.run([sys.executable, *command.split()], cwd=run.folder.parent.parent, check=False).returncode:
        raise KitError(f"training with {gpus} processes has stopped; the reason is printed above. The same command resumes "
                       "from the last checkpoint.")
    return run.adapter


def prepare(config: Config, run: Run, clips: Sequence[EncodedClip], device_config: DeviceConfig,
            callbacks: Sequence[TrainerCallback] = ()) -> tuple[load.Base, CsmTrainer]:
    """The base model with a new adapter, and a trainer over the run's codes."""
    backend, reason = load.choose_backend(config.backend, device_config)
    print(f"{device_config.reason} Backend: {backend} ({reason}).")
    base = load.load_base(config.base, device_config, config.revision, backend, codec_device="cpu",
                          **prompt_options(config))
    device_config = base.device_config  # float32 where float16 overflows
    if read_inputs(run.codes).get("codec") != base.codec.fingerprint():
        raise KitError(f"{run.codes} was made by another codec than that of {config.base}. Run `tts-kit tokenize` with the "
                       "same --base again; codes that fit are kept.")
    model = lora.add_lora(base.model, config.rank, config.alpha, config.lora_targets, config.seed)
    for part, count in lora.count_parameters(model).items():
        print(f"{part}: {count['modules']} adapted modules, {count['trainable']:,} trainable parameters, "
              f"{count['parameters']:,} of the base.")
    if config.offload_text_embeddings or device_config.low_memory:
        embed.offload_text_embeddings(base.model)
        print(f"Text embeddings stay in main memory ({'as set' if config.offload_text_embeddings else 'small GPU'}).")
    compiled, reason = load.should_compile(config, device_config)
    print(f"Layers are {'compiled' if compiled else 'not compiled'} ({reason}).")
    if compiled:
        load.compile_layers(base.model)
    processes = distributed.world_size()
    train_clips = [clip for clip in clips if clip.split == "train"]
    micro_batches = dataset.MicroBatchDataset(train_clips, base.prompt_builder, config, processes)
    held_out = [dataset.build_example(clip, base.prompt_builder) for clip in clips if clip.split == "held_out"]
    print(f"{len(train_clips)} training clips, {len(held_out)} held out; {config.steps} steps are "
          f"{micro_batches.epochs:.1f} epochs{f', each step shared by {processes} processes' * (processes > 1)}.")
    seconds = sum(len(clip.codes) for clip in train_clips) / base.spec.frame_rate
    for warning in warnings(config, micro_batches.epochs, seconds / 60):
        print(warning)
    if distributed.is_rank_zero():
        callbacks = [training_callbacks.LossPlotCallback(run),
                     training_callbacks.SampleCallback(base, config, run, micro_batches.speaker), *callbacks]
    trainer = CsmTrainer(model, training_arguments(config, run, device_config), micro_batches,
                         dataset.evaluation_batches(held_out, config), device_config, callbacks=[*callbacks])
    trainer.remove_callback(PrinterCallback)
    return base, trainer


def check_inputs(run: Run, inputs: dict) -> None:
    """Refuse to resume a training, or to call an adapter trained, with other inputs than it began with."""
    if not (last_complete_checkpoint(run.training) or (run.adapter / lora.METADATA_FILE).exists()):
        return
    changed, recorded = changed_inputs(run.training, **inputs), read_inputs(run.training)
    if changed == ["steps"] and inputs["steps"] > recorded["steps"] and last_complete_checkpoint(run.training):
        return
    if changed:
        differences = "; ".join(f"{name} is {inputs[name]!r} and was {recorded.get(name)!r}" for name in changed)
        raise KitError(f"{run.training} was started with other inputs: {differences}. Use the same ones to resume, choose "
                       f"another run name (train --run NEW --from {run.name} shares the data), or delete {run.training} and "
                       f"{run.adapter} to start over.")


def dry_run(config: Config, run: Run, device_config: DeviceConfig) -> dict:
    """What a training would be, without loading weights: parameters from the meta device, clips from the codes."""
    clips = [clip for clip in cache.load_run(run) if clip.split == "train"]
    model = load.without_weights(config.base, config.revision)
    prompt_builder = PromptBuilder(pretrained.tokenizer(config.base, config.revision), ModelSpec.of(model.config),
                                   **prompt_options(config))
    config = fill_defaults(config, clips)
    micro_batches = dataset.MicroBatchDataset(clips, prompt_builder, config)
    counts = lora.count_parameters(lora.add_lora(model, config.rank, config.alpha, config.lora_targets))
    return {"trainable": sum(count["trainable"] for count in counts.values()),
            "clips": len(clips), "steps": config.steps, "epochs": round(micro_batches.epochs, 1),
            "device": device_config.device, "dtype": str(device_config.dtype).removeprefix("torch."),
            "backend": load.choose_backend(config.backend, device_config)[0], "parts": counts}


def _inputs(config: Config, run: Run) -> dict:
    """What decides the adapter: the config, but for fields that only change the cost, and the codes."""
    fields = {name: value for name, value in json.loads(config.to_json()).items() if name not in RESUME_MAY_CHANGE}
    return fields | {"codes": cache.digest(run.codes)}


def _save_adapter(trainer: CsmTrainer, base: load.Base, config: Config, run: Run, selected: SelectedCheckpoint) -> None:
    losses = {row["step"]: {name: value for name, value in row.items() if name.startswith("eval_")}
              for row in trainer.state.log_history if "eval_loss" in row}
    before, after = losses[0], losses[selected.step]
    if untrained := lora.untrained_parts(trainer.model):
        raise KitError(f"the adapter of {', '.join(untrained)} has not changed at all by step {selected.step}. Train again "
                       "under another run name with a higher --learning-rate, more --steps or fewer --warmup-steps.")
    metrics = {"before": before, "after": after, "steps": config.steps, "selected_step": selected.step,
               "selection_reason": selected.reason,
               "epochs": round(trainer.train_dataset.epochs * selected.step / config.steps, 2),
               "machine": device.machine(), "versions": device.versions()}
    inputs = read_inputs(run.training)
    lora.save(trainer.model, run.adapter, base, config.to_json(), {
        "speaker": trainer.train_dataset.speaker, "run": run.name, "codes": inputs["codes"],
        "recordings": inputs["recordings"], "metrics": metrics})
    print(f"Held-out loss: backbone {before['eval_backbone_loss']:.3f} -> {after['eval_backbone_loss']:.3f}, depth "
          f"{before['eval_depth_loss']:.3f} -> {after['eval_depth_loss']:.3f}. Adapter: {run.adapter}")
    if after["eval_loss"] > before["eval_loss"]:
        print("The adapter's held-out loss is above the base model's: it overfits the training clips. Use fewer steps, a "
              "lower learning rate or more data.")
