"""Codes -> adapter: `fit` trains a run's adapter from wherever it stopped."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from transformers import PrinterCallback, TrainerCallback

from tts_kit import checkpoint
from tts_kit import recipe as recipes
from tts_kit import runtime as runtimes
from tts_kit.data import consent
from tts_kit.model import compiling, load, lora, tables, terms
from tts_kit.physics import Physics
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run, write_text
from tts_kit.runtime import Runtime
from tts_kit.tokens import cache
from tts_kit.tokens.clip import Clip
from tts_kit.tokens.prompt import Writer
from tts_kit.tuning import batches, ears, processes, watch
from tts_kit.tuning.choosing import Choice
from tts_kit.tuning.trainer import CsmTrainer, arguments, last_whole_checkpoint

CODES, RECORDINGS = "codes.sha256", "recordings.sha256"
"""Beside the checkpoints: which codes they have learnt, and from which clips those were made."""


def fit(recipe: Recipe, run: Run, runtime: Runtime, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train the adapter of a run, or go on where it stopped; returns the adapter folder.

    Processes that a launcher started share every step, which stays the same: only the first one evaluates and writes."""
    with processes.explaining():
        processes.join(runtime)
        with processes.one_voice():
            adapter = _fit(recipe, run, runtime, callbacks)
        if processes.is_first():
            consent.accompany(run, adapter)
        processes.wait()
        return adapter


def _fit(recipe: Recipe, run: Run, runtime: Runtime, callbacks: Sequence[TrainerCallback]) -> Path:
    if processes.is_first():
        print(terms.binds(recipe.base))
        consent.remind(run, thorough=True)
    clips = cache.of_run(run)
    refuse_other_claims(recipe, run)
    if (run.adapter / lora.VOICE).exists():
        print(f"{run.adapter} is already trained with this recipe. To train again choose another run name, or delete it "
              f"and {run.training}.")
        return run.adapter
    progress = watch.Progress()
    base, trainer = prepare(recipe, run, clips, runtime, [*[progress] * processes.is_first(), *callbacks])
    if listener := ears.of(base, recipe, run, clips):
        trainer.add_callback(listener)
    if processes.is_first():
        write_text(run.training / recipes.FILE, recipe.to_json())
        write_text(run.training / CODES, cache.digest(run.codes))
        write_text(run.training / RECORDINGS, consent.recordings(run))
    last = last_whole_checkpoint(run.training)
    print(f"Going on from {last.name}." if last else "Starting from the base model.")
    start, first = time.monotonic(), int(last.name.split("-")[1]) if last else 0
    trainer.args.eval_on_start = last is None
    with checkpoint.quiet(), contextlib.closing(progress):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    seconds, steps = time.monotonic() - start, trainer.state.global_step - first
    if processes.is_first():
        _finish(trainer, base, recipe, run, ears.settle(listener, trainer), seconds, steps)
    return run.adapter


def launch(recipe: Recipe, run: Run, gpus: int) -> Path:
    """`fit` in as many processes as there are GPUs; the recipe travels in the run's folder."""
    refuse_other_claims(recipe, run)
    recipes.remember(run, recipe)
    command = f"-m accelerate.commands.launch --multi_gpu --num_processes {gpus} -m tts_kit train --run {run.name}"
    if subprocess.run([sys.executable, *command.split()], cwd=run.folder.parent.parent, check=False).returncode:
        raise Problem(f"training with {gpus} processes has stopped; why stands above. The same command goes on from the "
                      "last checkpoint.")
    return run.adapter


def prepare(recipe: Recipe, run: Run, clips: Sequence[Clip], runtime: Runtime,
            callbacks: Sequence[TrainerCallback] = ()) -> tuple[load.Base, CsmTrainer]:
    """The base with a fresh adapter, and a trainer over the run's codes."""
    engine, why = load.choose_engine(recipe.engine, runtime)
    print(f"{runtime.why} Engine: {engine} ({why}).")
    base = load.base(recipe.base, runtime, recipe.revision, engine, codec_device="cpu")
    if cache.made_by(run.codes) != base.codec.fingerprint():
        raise Problem(f"{run.codes} was made by another codec than that of {recipe.base}. Run `python -m tts_kit tokenize` "
                      "with the same --base again; codes that fit are kept.")
    model = lora.attach(base.model, recipe.rank, recipe.alpha, recipe.targets, recipe.seed)
    print(lora.describe(lora.census(model)))
    if recipe.text_off_gpu or runtime.is_short:
        tables.move_away(base.model)
        print(f"Text embeddings stay in main memory ({'as asked' if recipe.text_off_gpu else 'the card is small'}).")
    compiled, why = compiling.choose(recipe, runtime)
    print(f"Layers are {'compiled' if compiled else 'not compiled'} ({why}).")
    if compiled:
        compiling.layers(base.model)
    steps = batches.Steps([clip for clip in clips if clip.split == "train"], base.writer, recipe,
                          processes.count())
    held_out = [batches.write(clip, base.writer) for clip in clips if clip.split == "held_out"]
    print(f"{len(steps.scored)} clips to learn from, {len(held_out)} held out; {recipe.steps} steps pass the data "
          f"{steps.passes:.1f} times{f', each shared by {processes.count()} processes' * (processes.count() > 1)}.")
    watchers = [watch.Record(run), watch.Samples(base, recipe, run, steps.speaker)] if processes.is_first() else []
    trainer = CsmTrainer(model, arguments(recipe, run, runtime), steps, batches.for_evaluation(held_out, recipe),
                         runtime, callbacks=[*watchers, *callbacks])
    trainer.remove_callback(PrinterCallback)
    return base, trainer


def refuse_other_claims(recipe: Recipe, run: Run) -> None:
    """A run that has learnt something goes on with what gives the same adapter from the same codes, or not at all."""
    if not (last_whole_checkpoint(run.training) or (run.adapter / lora.VOICE).exists()):
        return
    known = recipes.read(run.training / recipes.FILE)
    if different := {name: both for name, both in recipe.differences(known).items() if name not in recipes.COSTS}:
        listed = "; ".join(f"{name} is {now!r}, there it is {then!r}" for name, (now, then) in different.items())
        raise Problem(f"{run.training / recipes.FILE} already holds another recipe: {listed}. Give the same values to "
                      f"go on with this one, choose another run name, or delete {run.training} and {run.adapter} to begin "
                      "anew.")
    if (run.training / CODES).read_text(encoding="utf-8") != cache.digest(run.codes):
        raise Problem(f"{run.training} was trained on other codes than {run.codes} holds now. Choose another run name for "
                      f"the new codes, or delete {run.training} and {run.adapter}.")


def rehearse(recipe: Recipe, run: Run, runtime: Runtime) -> dict:
    """What a training would be, without loading any weight: counts from the meta device, clips from the codes."""
    clips = cache.of_run(run)
    engine, _ = load.choose_engine(recipe.engine, runtime)
    bare = load.without_weights(recipe.base, recipe.revision)
    writer = Writer(checkpoint.tokenizer(recipe.base, recipe.revision), Physics.of(bare.config))
    steps = batches.Steps([clip for clip in clips if clip.split == "train"], writer, recipe)
    counts = lora.census(lora.attach(bare, recipe.rank, recipe.alpha, recipe.targets))
    return {"trainable": sum(count["trainable"] for count in counts.values()),
            "modules": {part: count["modules"] for part, count in counts.items()},
            "clips": len(steps.scored), "steps": recipe.steps, "passes": round(steps.passes, 1),
            "device": runtime.device, "dtype": str(runtime.dtype).removeprefix("torch."), "engine": engine}


def _finish(trainer: CsmTrainer, base: load.Base, recipe: Recipe, run: Run, chosen: Choice, seconds: float,
            steps: int) -> None:
    before, after = watch.evaluations(trainer, chosen.step)
    movement = lora.moved(trainer.model)
    if not all(movement.values()):
        still = ", ".join(part for part, largest in movement.items() if not largest)
        raise Problem(f"the adapter of {still} has not moved at all until step {chosen.step}. Train again under another "
                      "run name with a higher --learning-rate, more --steps or fewer --warmup-steps.")
    metrics = {"before": before, "after": after, "adapter_moved": movement,
               "seconds_since_start_or_resume": round(seconds, 1), "steps_since_start_or_resume": steps,
               "steps": recipe.steps,
               "chosen_step": chosen.step, "chosen_by": chosen.by, "chosen_because": chosen.why,
               "passes": round(trainer.train_dataset.passes * chosen.step / recipe.steps, 2),
               "machine": runtimes.machine(), "versions": runtimes.versions()}
    voice = {"speaker": trainer.train_dataset.speaker, "run": run.name,
             "codes": cache.digest(run.codes), "recordings": (run.training / RECORDINGS).read_text(encoding="utf-8"),
             "metrics": metrics}
    lora.save(trainer.model, run.adapter, base, recipe.to_json(), voice)
    print(f"Held-out loss: backbone {before['eval_backbone_loss']:.3f} -> {after['eval_backbone_loss']:.3f}, depth "
          f"{before['eval_depth_loss']:.3f} -> {after['eval_depth_loss']:.3f}. Adapter: {run.adapter}")
    if after["eval_loss"] > before["eval_loss"]:
        print("On held-out clips the adapter is worse than the base: it has learnt the training clips by heart. Try fewer "
              "steps, a lower learning rate or more data.")
