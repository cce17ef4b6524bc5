"""Codes -> adapter: transformers' Trainer with our own loss, and `fit`, which runs it from wherever it stopped."""

import contextlib
import os
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback, TrainingArguments

from tts_kit import checkpoint
from tts_kit import recipe as recipes
from tts_kit import runtime as runtimes
from tts_kit.model import load, lora, loss
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run, explaining_refusals, write_text
from tts_kit.runtime import Runtime
from tts_kit.tokens import cache
from tts_kit.tokens.cache import Clip
from tts_kit.tuning import batches, ears, watch
from tts_kit.tuning.choosing import Choice

CODES = "codes.sha256"
WHOLE = "whole"
"""A file that marks a checkpoint as completely written."""


class CsmTrainer(transformers.Trainer):
    """Trains on `batches.Steps`; the loss is backbone + depth_weight * depth, both means over what a step scores."""

    def __init__(self, model, args: TrainingArguments, steps: batches.Steps, held_out: list[dict], runtime: Runtime,
                 **kwargs):
        super().__init__(model=model, args=args, train_dataset=steps, eval_dataset=held_out, data_collator=_only, **kwargs)
        self.runtime, self.depth_weight = runtime, steps.recipe.depth_weight
        self.model_accepts_loss_kwargs = False
        self._parts: list[torch.Tensor] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss; shares add up to the loss of one big batch."""
        with self._arithmetic():
            sums = loss.sums(lora.bare(self.model), inputs)
        parts = torch.stack([sums.backbone / inputs["frames_in_step"],
                             sums.depth / inputs["depth_in_step"] / (len(sums.by_codebook) - 1)])
        total = parts[0] + self.depth_weight * parts[1]
        if not torch.isfinite(total):
            raise Problem(self._blame(inputs))
        if model.training:
            self._parts.append(parts.detach())
        # Trainer divides by the number of micro-batches; ours are shares already
        return total * self.current_gradient_accumulation_steps

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Both losses over all held-out frames, and each codebook's own."""
        was_training = self.model.training
        self.model.eval()
        total, frames = 0, 0
        with torch.no_grad(), self._arithmetic():
            for batch in self.eval_dataset:
                sums = loss.sums(lora.bare(self.model), self._prepare_inputs(batch))
                total, frames = total + sums.by_codebook, frames + sums.frames
        self.model.train(was_training)
        each = (total / frames).tolist()
        backbone, depth = each[0], sum(each[1:]) / (len(each) - 1)
        metrics = {"eval_loss": backbone + self.depth_weight * depth, "eval_backbone_loss": backbone,
                   "eval_depth_loss": depth, "eval_loss_by_codebook": [round(value, 4) for value in each]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            steps = len(self._parts) / self.args.gradient_accumulation_steps
            means = (torch.stack(self._parts).sum(0) / steps).tolist()
            logs |= {"backbone_loss": means[0], "depth_loss": means[1]}
            self._parts.clear()
        super().log(logs, start_time)
        # to Trainer the run is one epoch; a person wants to know how often the clips were heard
        share = self.state.global_step / self.args.max_steps
        self.state.log_history[-1]["epoch"] = round(self.train_dataset.passes * share, 3)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained, as safetensors: the adapter, or a whole model; Trainer would also pickle its arguments."""
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(output_dir or self.args.output_dir, **options)

    def _save_checkpoint(self, model, trial) -> None:
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with explaining_refusals(folder):
            super()._save_checkpoint(model, trial)
            write_text(folder / WHOLE, "")

    def _get_train_sampler(self, *_) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _arithmetic(self):
        if self.runtime.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.runtime.device, self.runtime.dtype)

    @torch.no_grad()
    def _blame(self, inputs: dict) -> str:
        """Which clips of a micro-batch have no finite loss by themselves."""
        scored = {example.name: example for example in self.train_dataset.scored}
        guilty = []
        for name in inputs["names"]:
            batch = batches.for_evaluation([scored[name]], self.train_dataset.recipe)[0]
            with self._arithmetic():
                sums = loss.sums(lora.bare(self.model), self._prepare_inputs(batch))
            if not torch.isfinite(sums.backbone + sums.depth):
                guilty.append(name)
        return (f"step {self.state.global_step + 1}: the loss is not a finite number; clip "
                f"{', '.join(guilty) or 'by clip it is finite, together they are not: ' + ', '.join(inputs['names'])}. "
                "Listen to it, check its text and leave it out of the data, or lower --learning-rate; with a new run name "
                f"where {self.args.output_dir} holds a checkpoint already.")


def fit(recipe: Recipe, run: Run, runtime: Runtime, callbacks: Sequence[TrainerCallback] = ()) -> Path:
    """Train the adapter of a run, or go on where it stopped; returns the adapter folder."""
    clips = cache.of_run(run)
    refuse_other_claims(recipe, run)
    if (run.adapter / lora.VOICE).exists():
        print(f"{run.adapter} is already trained with this recipe. To train again choose another run name, or delete it "
              f"and {run.training}.")
        return run.adapter
    progress = watch.Progress()
    base, trainer = prepare(recipe, run, clips, runtime, [progress, *callbacks])
    if listener := ears.of(base, recipe, run, clips):
        trainer.add_callback(listener)
    write_text(run.training / recipes.FILE, recipe.to_json())
    write_text(run.training / CODES, cache.digest(run.codes))
    last = last_whole_checkpoint(run.training)
    print(f"Going on from {last.name}." if last else "Starting from the base model.")
    start = time.monotonic()
    trainer.args.eval_on_start = last is None
    with checkpoint.quiet(), contextlib.closing(progress):
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    return _finish(trainer, base, recipe, run, ears.settle(listener, trainer), time.monotonic() - start)


def prepare(recipe: Recipe, run: Run, clips: Sequence[Clip], runtime: Runtime,
            callbacks: Sequence[TrainerCallback] = ()) -> tuple[load.Base, CsmTrainer]:
    """The base with a fresh adapter, and a trainer over the run's codes."""
    engine, why = load.choose_engine(recipe.engine, runtime)
    print(f"{runtime.why} Engine: {engine} ({why}).")
    base = load.base(recipe.base, runtime, recipe.revision, engine)
    if cache.made_by(run.codes) != base.codec.fingerprint():
        raise Problem(f"{run.codes} was made by another codec than that of {recipe.base}. Run `python -m tts_kit tokenize` "
                      "with the same --base again; codes that fit are kept.")
    model = lora.attach(base.model, recipe.rank, recipe.alpha, recipe.targets, recipe.seed)
    print(lora.describe(lora.census(model)))
    steps = batches.Steps([clip for clip in clips if clip.split == "train"], base.writer, recipe)
    held_out = [batches.write(clip, base.writer) for clip in clips if clip.split == "held_out"]
    print(f"{len(steps.scored)} clips to learn from, {len(held_out)} held out; {recipe.steps} steps pass the data "
          f"{steps.passes:.1f} times.")
    watchers = [watch.Record(run), watch.Samples(base, recipe, run, steps.speaker), *callbacks]
    trainer = CsmTrainer(model, arguments(recipe, run, runtime), steps, batches.for_evaluation(held_out, recipe),
                         runtime, callbacks=watchers)
    trainer.remove_callback(PrinterCallback)
    return base, trainer


def arguments(recipe: Recipe, run: Run, runtime: Runtime) -> TrainingArguments:
    """The recipe in the words of transformers' Trainer."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise Problem(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: several processes were started, but a run is trained by "
                      "one. Start `python -m tts_kit train` without a launcher.")
    made = TrainingArguments(
        output_dir=str(run.training), max_steps=recipe.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=recipe.accumulation, learning_rate=recipe.learning_rate,
        warmup_steps=recipe.warmup_steps, weight_decay=recipe.weight_decay, lr_scheduler_type="linear",
        optim="adamw_torch_fused" if runtime.device != "mps" else "adamw_torch", seed=recipe.seed,
        # bf16 runs under our own autocast; float16 also needs Trainer's loss scaler
        fp16=runtime.dtype == torch.float16 and runtime.device == "cuda", use_cpu=runtime.device == "cpu",
        gradient_checkpointing=recipe.checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps", eval_steps=recipe.evaluate_every, save_steps=recipe.save_every, save_total_limit=2,
        logging_steps=1, logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=runtime.device == "cuda")
    # with several GPUs in sight Trainer would ask for as many micro-batches at once and split them
    assert made.device is not None
    made._n_gpu = min(made._n_gpu, 1)
    return made


def refuse_other_claims(recipe: Recipe, run: Run) -> None:
    """A run that has learnt something goes on with the same recipe and codes, or not at all."""
    if not (last_whole_checkpoint(run.training) or (run.adapter / lora.VOICE).exists()):
        return
    if different := recipe.differences(recipes.read(run.training / recipes.FILE)):
        listed = "; ".join(f"{name} is {now!r}, there it is {then!r}" for name, (now, then) in different.items())
        raise Problem(f"{run.training / recipes.FILE} already holds another recipe: {listed}. Give the same values to "
                      f"go on with this one, choose another run name, or delete {run.training} and {run.adapter} to begin "
                      "anew.")
    if (run.training / CODES).read_text(encoding="utf-8") != cache.digest(run.codes):
        raise Problem(f"{run.training} was trained on other codes than {run.codes} holds now. Choose another run name for "
                      f"the new codes, or delete {run.training} and {run.adapter}.")


def last_whole_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{WHOLE}")]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def rehearse(recipe: Recipe, run: Run, runtime: Runtime) -> dict:
    """What a training would be, without loading any weight: counts from the meta device, clips from the codes."""
    clips = cache.of_run(run)
    engine, _ = load.choose_engine(recipe.engine, runtime)
    model = lora.attach(load.without_weights(recipe.base, recipe.revision), recipe.rank, recipe.alpha, recipe.targets)
    counts = lora.census(model)
    return {"trainable": sum(count["trainable"] for count in counts.values()),
            "modules": {part: count["modules"] for part, count in counts.items()},
            "clips": sum(clip.split == "train" for clip in clips), "steps": recipe.steps, "device": runtime.device,
            "dtype": str(runtime.dtype).removeprefix("torch."), "engine": engine}


def _finish(trainer: CsmTrainer, base: load.Base, recipe: Recipe, run: Run, chosen: Choice, seconds: float) -> Path:
    before, after = watch.evaluations(trainer, chosen.step)
    movement = lora.moved(trainer.model)
    if not all(movement.values()):
        still = ", ".join(part for part, largest in movement.items() if not largest)
        raise Problem(f"after {chosen.step} steps the adapter of {still} has not moved at all. Train again under another "
                      "run name with a higher --learning-rate, more --steps or fewer --warmup-steps.")
    metrics = {"before": before, "after": after, "adapter_moved": movement,
               "seconds_since_start_or_resume": round(seconds, 1), "steps": recipe.steps,
               "chosen_step": chosen.step, "chosen_by": chosen.by, "chosen_because": chosen.why,
               "passes": round(trainer.train_dataset.passes * chosen.step / recipe.steps, 2),
               "machine": runtimes.machine(), "versions": runtimes.versions()}
    voice = {"speaker": trainer.train_dataset.speaker, "run": run.name,
             "codes": cache.digest(run.codes), "metrics": metrics}
    lora.save(trainer.model, run.adapter, base, recipe.to_json(), voice)
    print(f"Held-out loss: backbone {before['eval_backbone_loss']:.3f} -> {after['eval_backbone_loss']:.3f}, depth "
          f"{before['eval_depth_loss']:.3f} -> {after['eval_depth_loss']:.3f}. Adapter: {run.adapter}")
    if after["eval_loss"] > before["eval_loss"]:
        print("On held-out clips the adapter is worse than the base: it has learnt the training clips by heart. Try fewer "
              "steps, a lower learning rate or more data.")
    return run.adapter


def _only(items: list[dict]) -> dict:
    """The dataset's items are micro-batches already, and come one by one."""
    item, = items
    return item
