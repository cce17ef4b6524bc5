"""transformers.Trainer with the kit's loss, gradients summed over processes, and logging that does not stall the device."""

import contextlib
import functools
import shutil
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
from tts_kit.model import embed, lora, loss
from tts_kit.run import Run
from tts_kit.training import dataset, distributed

COMPLETE_MARKER = "complete"  # file that marks a checkpoint as completely written
MAX_CHECKPOINTS = 2
PROJECT = "tts-kit"  # of trackio and Weights & Biases
LOGGING_STEPS = {"cpu": 1, "cuda": 10, "mps": 10}  # steps between reads of the losses: each read waits for the device


class CsmTrainer(transformers.Trainer):
    """Trains on a `MicroBatchDataset`; loss = backbone + depth_loss_weight * depth, both means over the frames of a step."""

    def __init__(self, model, args: TrainingArguments, micro_batches: dataset.MicroBatchDataset, held_out: list[dict],
                 device_config: DeviceConfig, **kwargs):
        super().__init__(model=model, args=args, train_dataset=micro_batches, eval_dataset=held_out,
                         data_collator=functools.partial(_single_item, lora.unwrap(model)), **kwargs)
        self.device_config, self.depth_loss_weight = device_config, micro_batches.config.depth_loss_weight
        self.model_accepts_loss_kwargs = False
        self._lora_layers = [module for module in model.modules() if isinstance(module, lora.FusedLoraLinear)]
        # No DDP: it reduces in its own forward, which our loss bypasses, and it divides by the number of processes.
        # `training_step` sums the gradients instead; those of an adapter fit into one message.
        self.accelerator.prepare_model = functools.partial(self.accelerator.prepare_model, evaluation_mode=True)
        self.add_callback(FlushLossesCallback())
        self._buffered_losses: list[torch.Tensor] = []  # (2,) backbone and depth loss of each micro-batch

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        """This micro-batch's share of the step's loss; the shares of a step sum to the loss of one big batch."""
        per_depth_loss = 1 / inputs["depth_frames_in_step"] / (inputs["codes"].shape[-1] - 1)
        scale = per_depth_loss * (self.depth_loss_weight or 1)  # the gradient is divided by it again: never 0
        if scaler := self.accelerator.scaler:  # its own number stays on the device, where nobody waits for it
            scale = scaler.scale(torch.full((), scale, device=inputs["codes"].device))
        with self._autocast(), lora.cast_once(self._lora_layers, self.device_config.dtype):
            sums = loss.loss_sums(lora.unwrap(self.model), inputs, scale)
        shares = torch.stack([sums.backbone / inputs["frames_in_step"], sums.depth * per_depth_loss]) * inputs["loss_weight"]
        if model.training:
            self._buffered_losses.append(shares.detach())
        # Trainer divides by the number of micro-batches, and these are shares already
        return (shares[0] + self.depth_loss_weight * shares[1]) * self.current_gradient_accumulation_steps

    def training_step(self, model, inputs, num_items_in_batch=None) -> torch.Tensor:
        """Forward and backward; after the last micro-batch of a step each process holds the gradient of the whole step."""
        share = super().training_step(model, inputs, num_items_in_batch)
        if self.accelerator.sync_gradients:
            # before loss scaler and clipping read them, so that both decide alike in all processes
            distributed.all_reduce_sum([weight.grad for weight in self.model.parameters() if weight.requires_grad])
        return share * distributed.world_size()  # Trainer logs the mean over processes, and the shares are a sum

    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Both losses over all held-out frames, and the loss of each codebook; computed by rank 0 only."""
        if not distributed.is_rank_zero():
            self.control.should_evaluate = False
            return {}
        was_training = self.model.training
        self.model.eval()
        total, frames = 0, 0
        with torch.no_grad(), self._autocast():
            for batch in self.eval_dataset:
                sums = loss.loss_sums(lora.unwrap(self.model), self._prepare_inputs(batch))
                total, frames = total + sums.by_codebook, frames + sums.frames
        self.model.train(was_training)
        by_codebook = (total / frames).tolist()
        backbone, depth = by_codebook[0], sum(by_codebook[1:]) / (len(by_codebook) - 1)
        metrics = {"eval_loss": backbone + self.depth_loss_weight * depth, "eval_backbone_loss": backbone,
                   "eval_depth_loss": depth}
        self.log(metrics)
        # trackers take numbers only
        self.state.log_history[-1]["eval_loss_by_codebook"] = [round(value, 4) for value in by_codebook]
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def log(self, logs: dict, start_time: float | None = None) -> None:
        """Add both losses of every step since the last log, and the epoch as passes over the clips."""
        if "loss" in logs and self._buffered_losses:
            *earlier, losses = self._flush_losses()
            for step, earlier_losses in enumerate(earlier, self.state.global_step - len(earlier)):
                self.state.log_history.append(earlier_losses | {"step": step})
            logs |= losses
        super().log(logs, start_time)
        # for Trainer the whole training is one epoch
        share = self.state.global_step / self.args.max_steps
        self.state.log_history[-1]["epoch"] = round(self.train_dataset.epochs * share, 3)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the trained weights as safetensors, adapter or whole model; Trainer would also pickle its arguments."""
        options = {"save_embedding_layers": False} if isinstance(self.model, PeftModel) else {}
        self.model.save_pretrained(output_dir or self.args.output_dir, **options)

    def store_flos(self) -> None:
        """Do nothing: Trainer would gather this count from all processes, and only rank 0 saves."""

    def _save_checkpoint(self, model, trial) -> None:
        if not distributed.is_rank_zero():
            return  # other ranks would only add the state of their random generators, which nothing here draws from
        folder = Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}"
        with explain_os_errors(folder):
            super()._save_checkpoint(model, trial)
            write_text(folder / COMPLETE_MARKER, "")
        # Trainer would do this before the marker is there, and count what interrupted saves left
        kept = [*complete_checkpoints(folder.parent)[-MAX_CHECKPOINTS:], Path(self.state.best_model_checkpoint or folder)]
        for checkpoint in set(folder.parent.glob("checkpoint-*")).difference(kept):
            (checkpoint / COMPLETE_MARKER).unlink(missing_ok=True)
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _get_train_sampler(self, *_) -> SequentialSampler:
        return SequentialSampler(self.train_dataset)

    def _autocast(self):
        if self.device_config.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device_config.device, self.device_config.dtype)

    def _flush_losses(self) -> list[dict[str, float]]:
        """Both losses of each step since the last flush; here the host waits for the device."""
        losses = torch.stack(self._buffered_losses)  # (micro-batches, 2)
        self._buffered_losses.clear()
        distributed.all_reduce_sum([losses])
        losses, processes = losses.cpu(), distributed.world_size()
        nonfinite = (~torch.isfinite(losses).all(dim=1)).nonzero()
        count = self.args.gradient_accumulation_steps
        if len(nonfinite):
            micro_batch = self.state.global_step * count - len(losses) + nonfinite[0].item()
            clips = [clip for rank in range(processes)
                     for clip in self.train_dataset[micro_batch * processes + rank]["clip_ids"]]
            raise KitError(f"step {micro_batch // count + 1}: the loss is not a finite number for a batch of the clips "
                           f"{', '.join(clips)}. Listen to them, check their texts, or lower --learning-rate; use a new run "
                           f"name if {self.args.output_dir} already holds a checkpoint.")
        return [dict(zip(("backbone_loss", "depth_loss"), step.sum(0).tolist())) for step in losses.split(count)]


class FlushLossesCallback(TrainerCallback):
    """Log, and thereby check the losses, before anything is saved or evaluated; evaluate before the training ends."""

    def on_step_end(self, args, state, control, **_):
        control.should_evaluate |= control.should_training_stop and args.eval_strategy != "no"
        control.should_log = control.should_log or control.should_save or control.should_evaluate


class OnSaveCallback(TrainerCallback):
    """Calls a function whenever a checkpoint has been written."""

    def __init__(self, function: Callable[[], None]):
        self.function = function

    def on_save(self, args, state, control, **_):
        self.function()


def training_arguments(config: Config, run: Run, device_config: DeviceConfig) -> TrainingArguments:
    """The config as transformers' TrainingArguments."""
    arguments = TrainingArguments(
        output_dir=str(run.training), max_steps=config.steps, per_device_train_batch_size=1,
        gradient_accumulation_steps=dataset.micro_batches_per_rank(config, distributed.world_size()),
        learning_rate=config.learning_rate, warmup_steps=config.warmup_steps, weight_decay=config.weight_decay,
        lr_scheduler_type="linear", optim="adamw_torch_fused" if device_config.device != "mps" else "adamw_torch",
        seed=config.seed,
        # bf16 runs under our own autocast; float16 also needs Trainer's loss scaler
        fp16=device_config.dtype == torch.float16 and device_config.device == "cuda", use_cpu=device_config.device == "cpu",
        gradient_checkpointing=config.gradient_checkpointing, gradient_checkpointing_kwargs={"use_reentrant": False},
        eval_strategy="steps", eval_steps=config.eval_steps, save_steps=config.save_steps,
        logging_steps=LOGGING_STEPS[device_config.device], logging_nan_inf_filter=False, disable_tqdm=True,
        report_to="none", run_name=run.name, project=PROJECT,  # the callbacks of trackers are added by `trackers`
        remove_unused_columns=False, dataloader_pin_memory=device_config.device == "cuda",
        accelerator_config={"non_blocking": device_config.device == "cuda"})
    # with several GPUs visible Trainer would ask for as many micro-batches at once and split them
    assert arguments.device is not None
    arguments._n_gpu = min(arguments._n_gpu, 1)
    return arguments


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints that were completely written, in the order of their steps."""
    checkpoints = [path.parent for path in folder.glob(f"checkpoint-*/{COMPLETE_MARKER}")]
    return sorted(checkpoints, key=lambda path: int(path.name.split("-")[1]))


def last_complete_checkpoint(folder: Path) -> Path | None:
    return next(reversed(complete_checkpoints(folder)), None)


def _single_item(model: torch.nn.Module, items: list[dict]) -> dict:
    """Data collator: the dataset's items are micro-batches already, and come one at a time."""
    micro_batch, = items
    return embed.prefetch_text(model, micro_batch)
