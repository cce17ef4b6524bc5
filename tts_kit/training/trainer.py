"""Transformers' Trainer with our own loss, and no question to the device while it has work to do."""

import contextlib
import functools
import os
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from peft import PeftModel
from torch.utils.data import SequentialSampler
from transformers import TrainerCallback, TrainingArguments

from tts_kit.config import Config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.io import explain_os_errors, write_text
from tts_kit.model import lora, loss, offload
from tts_kit.run import Run
from tts_kit.training import dataset, distributed

COMPLETE_MARKER = "whole"
"""A file that marks a checkpoint as completely written."""
LOG_EVERY = {"cpu": 1, "cuda": 10, "mps": 10}
"""Steps between looks at the losses: each look waits for the device, which then waits for us."""


class CsmTrainer(transformers.Trainer):
    """Trains on `batches.Steps`; the loss is backbone + depth_weight * depth, both means over what a step scores."""

    def __init__(self, model, args: TrainingArguments, steps: dataset.MicroBatchDataset, held_out: list[dict], device_config: DeviceConfig,
                 **kwargs):
        super().__init__(model=model, args=args, train_dataset=steps, eval_dataset=held_out,
                         data_collator=functools.partial(_only, lora.unwrap(model)), **kwargs)
        self.device_config, self.depth_loss_weight = device_config, steps.config.depth_loss_weight
        self.model_accepts_loss_kwargs = False
        # No DDP: it reduces in its own forward, which our loss goes around, and it divides by the number of processes.
        # `training_step` adds the gradients up instead; those of an adapter are small enough for one message.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.add_callback(FlushLossesCallback())
        self._parts: list[torch.Tensor] = []
        self._before: list[torch.Tensor] = []

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss; shares add up to the loss of one big batch."""
        a_depth_sum = 1 / inputs["depth_frames_in_step"] / (inputs["codes"].shape[-1] - 1)
        scaler = self.accelerator.scaler
        with self._arithmetic():
            sums = loss.loss_sums(lora.unwrap(self.model), inputs,
                             a_depth_sum * self.depth_loss_weight * (scaler.get_scale() if scaler else 1))
        parts = torch.stack([sums.backbone / inputs["frames_in_step"], sums.depth * a_depth_sum]) * inputs["loss_weight"]
        if model.training:
            self._keep(parts.detach(), inputs)
        # Trainer divides by the number of micro-batches; ours are shares already
        return (parts[0] + self.depth_loss_weight * parts[1]) * self.current_gradient_accumulation_steps

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward; after a step's last micro-batch each process holds the gradient of the whole step."""
        share = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            # before the scaler and the clipping look at them: both decide alike in all processes then
            distributed.all_reduce_sum([weight.grad for weight in self._learnt()])
        return share * distributed.world_size()  # Trainer logs the mean over processes, and these are shares of one sum

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Both losses over all held-out frames, and each codebook's own; the first process computes them."""
        if not distributed.is_rank_zero():
            self.control.should_evaluate = False
            return {}
        was_training = self.model.training
        self.model.eval()
        total, frames = 0, 0
        with torch.no_grad(), self._arithmetic():
            for batch in self.eval_dataset:
                sums = loss.loss_sums(lora.unwrap(self.model), self._prepare_inputs(batch))
                total, frames = total + sums.by_codebook, frames + sums.frames
        self.model.train(was_training)
        each = (total / frames).tolist()
        backbone, depth = each[0], sum(each[1:]) / (len(each) - 1)
        metrics = {"eval_loss": backbone + self.depth_loss_weight * depth, "eval_backbone_loss": backbone,
                   "eval_depth_loss": depth, "eval_loss_by_codebook": [round(value, 4) for value in each]}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict, start_time: float | None = None) -> None:
        if "loss" in logs and self._parts:
            *before, (backbone, depth) = self._look()
            for steps_ago, parts in zip(range(len(before), 0, -1), before):
                self.state.log_history.append({"backbone_loss": parts[0], "depth_loss": parts[1],
                                               "step": self.state.global_step - steps_ago})
            logs |= {"backbone_loss": backbone, "depth_loss": depth}
        super().log(logs, start_time)
        # to Trainer the run is one epoch; a person wants to know how often the clips were heard
        share = self.state.global_step / self.args.max_steps
        self.state.log_history[-1]["epoch"] = round(self.train_dataset.passes * share, 3)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """What is trained, as safetensors: the adapter, or a whole model; Trainer would also pickle its arguments."""
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(output_dir or self.args.output_dir, **options)

    def store_flos(self) -> None:
        """Nobody reads this count, and Trainer would ask all processes for it when only the first one saves."""

    def _save_checkpoint(self, model, trial) -> None:
        if not distributed.is_rank_zero():
            return  # the state of its own random numbers, which nothing here draws on, is all that it would add
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with explain_os_errors(folder):
            super()._save_checkpoint(model, trial)
            write_text(folder / COMPLETE_MARKER, "")

    def _get_train_sampler(self, *_) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _arithmetic(self):
        if self.device_config.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_config.device, self.device_config.dtype)

    def _keep(self, parts: torch.Tensor, inputs: dict) -> None:
        """Losses of a micro-batch until the next look at them; on a processor, where looking is free, at once."""
        at_once = self.args.logging_steps == 1 and distributed.world_size() == 1
        if not self._parts:
            self._before = [] if at_once else [weight.detach().clone() for weight in self._learnt()]
        self._parts.append(parts)
        if at_once and not torch.isfinite(parts).all():
            raise KitError(self._blame(inputs, self.state.global_step + 1))

    def _look(self) -> list[tuple[float, float]]:
        """Both losses of each step since the last look, which is where the host waits for the device."""
        parts, size = distributed.all_gather(torch.stack(self._parts)).cpu(), self.args.gradient_accumulation_steps
        broken = (~torch.isfinite(parts).all(dim=2)).T.nonzero()
        if len(broken):
            first, process = broken[0].tolist()
            place = (self.state.global_step * size - parts.shape[1] + first) * len(parts) + process
            with torch.no_grad():
                for weight, before in zip(self._learnt(), self._before):
                    weight.copy_(before)  # what was learnt from nonsense would call every clip guilty
            step = place // self.train_dataset.parts + 1
            raise KitError(self._blame(self._prepare_inputs(self.train_dataset[place]), step))
        self._parts.clear()
        return [tuple(step.sum((0, 1)).tolist()) for step in parts.split(size, dim=1)]

    def _learnt(self) -> list[torch.nn.Parameter]:
        return [weight for weight in self.model.parameters() if weight.requires_grad]

    @torch.no_grad()
    def _blame(self, inputs: dict, step: int) -> str:
        """Which clips of a micro-batch have no finite loss by themselves."""
        scored = {example.name: example for example in self.train_dataset.scored}
        guilty = []
        for name in inputs["clip_ids"]:
            batch = dataset.for_evaluation([scored[name]], self.train_dataset.config)[0]
            with self._arithmetic():
                sums = loss.loss_sums(lora.unwrap(self.model), self._prepare_inputs(batch))
            if not torch.isfinite(sums.backbone + sums.depth):
                guilty.append(name)
        return (f"step {step}: the loss is not a finite number; clip "
                f"{', '.join(guilty) or 'by clip it is finite, together they are not: ' + ', '.join(inputs['names'])}. "
                "Listen to it, check its text and leave it out of the data, or lower --learning-rate; with a new run name "
                f"where {self.args.output_dir} holds a checkpoint already.")


class FlushLossesCallback(TrainerCallback):
    """Nothing is saved or evaluated, and no training ends, before the losses up to there were looked at."""

    def on_step_end(self, args, state, control, **_):
        if control.should_save or control.should_evaluate or control.should_training_stop:
            control.should_log = True


class OnSaveCallback(TrainerCallback):
    """Calls a function whenever a checkpoint has been written."""

    def __init__(self, call: Callable[[], None]):
        self.call = call

    def on_save(self, args, state, control, **_):
        self.call()


def training_arguments(config: Config, run: Run, device_config: DeviceConfig) -> TrainingArguments:
    """The recipe in the words of transformers' Trainer."""
    if os.environ.get("WORLD_SIZE", "1") != str(distributed.world_size()):
        raise KitError(f"WORLD_SIZE is {os.environ['WORLD_SIZE']}: several processes were started for what one has to do. "
                      "Start it without a launcher.")
    made = TrainingArguments(
        output_dir=str(run.training), max_steps=config.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=dataset.micro_batches_per_rank(config, distributed.world_size()), learning_rate=config.learning_rate,
        warmup_steps=config.warmup_steps, weight_decay=config.weight_decay, lr_scheduler_type="linear",
        optim="adamw_torch_fused" if device_config.device != "mps" else "adamw_torch", seed=config.seed,
        # bf16 runs under our own autocast; float16 also needs Trainer's loss scaler
        fp16=device_config.dtype == torch.float16 and device_config.device == "cuda", use_cpu=device_config.device == "cpu",
        gradient_checkpointing=config.gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps", eval_steps=config.eval_steps, save_steps=config.save_steps, save_total_limit=2,
        logging_steps=LOG_EVERY[device_config.device], logging_nan_inf_filter=False, report_to="none", disable_tqdm=True,
        remove_unused_columns=False, dataloader_pin_memory=device_config.device == "cuda",
        accelerator_config={"non_blocking": device_config.device == "cuda"})
    # with several GPUs in sight Trainer would ask for as many micro-batches at once and split them
    assert made.device is not None
    made._n_gpu = min(made._n_gpu, 1)
    return made


def last_complete_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint that was written to its end."""
    found = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return max(found, key=lambda path: int(path.name.split("-")[1]), default=None)


def _only(model: torch.nn.Module, items: list[dict]) -> dict:
    """The dataset's items are micro-batches already, and come one by one."""
    item, = items
    return offload.prefetch_text(model, item)
