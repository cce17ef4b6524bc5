"""Train a Mimi codec one step at a time: encode, quantize, decode, compare, and update weights and codebooks."""

import contextlib
import math
import os
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import MimiModel

from sample_data.build import model_shapes, processes, quantizer
from sample_data.build.codec_config import CodecConfig
from sample_data.build.codec_loss import Discriminators, SpectralLoss
from sample_data.build.crops import CropSampler
from tts_kit import pretrained
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec
from tts_kit.training import distributed

COLLAPSED = 0.02  # share of the latents' energy that varies from frame to frame, below which they have collapsed
CHECK_EVERY = 50
AVERAGE_EVERY = 4  # steps between updates of the averaged weights, which move 70 MB
MIN_LEARNING_RATE = 0.03  # share of the peak that the learning rate decays to
ADVERSARIAL_WARMUP_STEPS = 300  # steps in which the discriminators learn before they have their full weight


class CodecTrainer:
    """The codec, the average of its weights, its discriminators and their optimizers; `step` updates all of them once."""

    def __init__(self, waves: Sequence[np.ndarray], config: CodecConfig, device_config: DeviceConfig,
                 features: Sequence[np.ndarray] | None = None):
        torch.manual_seed(config.seed)
        with pretrained.quiet():
            csm_config = model_shapes.config(config.shape)
            self.codec = MimiModel(csm_config.codec_config)
        if config.init_from:
            self.codec, _ = pretrained.weights(MimiModel, config.init_from, dtype=torch.float32)
        else:
            quantizer.init_projections(self.codec, config.seed)
            _rescale_initial_weights(self.codec)
        width = 1 if features is None else features[0].shape[1]
        average = get_ema_multi_avg_fn(config.weight_ema_decay ** AVERAGE_EVERY)
        self.averaged = AveragedModel(self.codec, multi_avg_fn=average)
        self.modules = {"codec": self.codec, "averaged": self.averaged,
                        "discriminators": Discriminators(channels=config.discriminator_channels),
                        "teacher_head": nn.Linear(csm_config.codec_config.codebook_dim, width)}
        if config.decoder_only:
            _freeze_encoder(self.codec)
        self.config, self.device, self.spec = config, device_config.device, ModelSpec.of(csm_config)
        self.use_bfloat16 = device_config.dtype == torch.bfloat16
        for module in self.modules.values():
            module.to(self.device).train()
        self.spectral_loss = SpectralLoss(self.spec.sample_rate).to(self.device)
        self.crops = CropSampler(waves, self.spec, config, features, int(os.environ.get("RANK", "0")))
        self.optimizers = {
            "codec_optimizer": self._optimizer(config.learning_rate, "codec", "teacher_head"),
            "discriminator_optimizer": self._optimizer(config.discriminator_learning_rate, "discriminators")}
        self.steps, self.seconds, self.adversarial_steps, self.variance_ratios = 0, 0.0, 0, []

    def _optimizer(self, learning_rate: float, *names: str) -> torch.optim.AdamW:
        weights = [weight for name in names for weight in self.modules[name].parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, learning_rate, betas=(0.8, 0.99), weight_decay=1e-4, fused=self.device != "mps")

    @property
    def progress(self) -> float:
        """Completed share of the training: of its steps, or of its time if no number of steps is given."""
        config = self.config
        return self.steps / config.steps if config.steps else self.seconds / (60 * config.minutes)

    @property
    def is_quantizing(self) -> bool:
        """Whether the codebooks are initialized."""
        return bool(self.config.init_from) or self.steps > self.config.unquantized_steps

    def counters(self) -> dict:
        """Return what `resume` needs."""
        return {"step": self.steps, "seconds": self.seconds, "adversarial_steps": self.adversarial_steps,
                "variance_ratios": self.variance_ratios}

    def resume(self, counters: dict) -> None:
        """Restore the counters of a checkpoint of this training; `checkpoint.load` restores its tensors."""
        self.steps, self.seconds, self.adversarial_steps, self.variance_ratios = (
            counters[name] for name in self.counters())
        for codebook in quantizer.codebooks(self.codec):
            codebook._embed = None

    def step(self) -> dict[str, torch.Tensor]:
        """Update everything once; returns the losses."""
        start_time, config = time.monotonic(), self.config
        if self.steps == config.unquantized_steps and not config.init_from:
            self._init_codebooks()
        self._set_learning_rate()
        batch = {name: value.to(self.device) for name, value in self.crops.batch(self.steps).items()}
        real = batch["waves"]
        latents = self._encode(real)
        decoded, branches, losses = self._decode(latents, batch)
        self.optimizers["codec_optimizer"].zero_grad()
        gradient, wave_losses = self._wave_gradient(decoded.detach().requires_grad_(), real)
        code_losses = [loss for loss in losses.values() if loss.requires_grad]  # none if only the decoder is trained
        torch.autograd.backward([decoded, *code_losses], [gradient, *[None] * len(code_losses)])
        losses |= wave_losses
        total = sum(losses.values())
        trained = [weight for weight in (*self.codec.parameters(), *self.modules["teacher_head"].parameters())
                   if weight.grad is not None]
        processes.mean_([weight.grad for weight in trained])
        nn.utils.clip_grad_norm_(trained, 1.0)
        self.optimizers["codec_optimizer"].step()
        if branches and not config.decoder_only:
            quantizer.update_codebooks(self.codec, branches, config.ema_decay,
                                       np.random.default_rng([config.seed, self.steps, 1]))
        if self.steps % AVERAGE_EVERY == 0:
            self.averaged.update_parameters(self.codec)
        self._check_health(latents, total)
        self.steps += 1
        elapsed = torch.tensor([time.monotonic() - start_time])
        processes.mean_([elapsed])  # all processes must see the same progress
        self.seconds += elapsed.item()
        return {name: value.detach() for name, value in losses.items()}

    def _encode(self, waves: torch.Tensor) -> torch.Tensor:
        """Encode waves (batch, samples) to latents (batch, hidden, frames), as `MimiModel.encode` does."""
        with self._autocast():
            hidden = self.codec.encoder(waves[:, None])
        hidden = self.codec.encoder_transformer(hidden.float().transpose(1, 2), use_cache=False)[0].transpose(1, 2)
        return self.codec.downsample(hidden)

    def _decode(self, latents: torch.Tensor, batch: dict) -> tuple[torch.Tensor, list, dict]:
        """Quantize and decode latents to waves (batch, samples), as `MimiModel.decode` does.

        Returns the waves, the branches of the quantizer, and the losses of the codes."""
        losses, branches = {}, []
        if self.steps < self.config.unquantized_steps and not self.config.init_from:
            quantized = quantizer.bypass(self.codec, latents)
            inputs = [branch.input_proj(latents) for branch in quantizer.branches(self.codec)]
            anchors, first_output = map(quantizer.anchor, inputs), inputs[0]
        else:
            quantized, branches = quantizer.quantize(self.codec, latents, batch["levels"])
            losses["commitment"] = self.config.commitment_weight * sum(branch.commitment for branch in branches)
            anchors, first_output = (branch.anchor for branch in branches), branches[0].output
        losses["anchor"] = self.config.anchor_weight * sum(anchors)
        if "features" in batch:
            predicted = self.modules["teacher_head"](first_output.transpose(1, 2))
            losses["teacher"] = self.config.teacher_weight * (
                1 - F.cosine_similarity(predicted, batch["features"], -1).mean())
        hidden = self.codec.upsample(quantized).transpose(1, 2)
        hidden = self.codec.decoder_transformer(hidden, use_cache=False)[0].transpose(1, 2)
        with self._autocast():
            waves = _run_decoder(self.codec, hidden)
        return waves.float(), branches, losses

    def _wave_gradient(self, decoded: torch.Tensor, real: torch.Tensor) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the gradient at the decoded waves of all losses that compare them with the real ones, and the losses.

        The gradients of the discriminators' losses get a norm relative to that of the others, as in EnCodec, because the
        losses themselves are of no common scale."""
        losses = {"spectral": self.spectral_loss(decoded, real),
                  "waveform": self.config.waveform_weight * (decoded - real).abs().mean()}
        [gradient] = torch.autograd.grad(sum(losses.values()), decoded)
        if self.progress >= self.config.discriminator_start:
            length = min(decoded.shape[1], round(self.config.discriminator_seconds * self.spec.sample_rate))
            rng = np.random.default_rng([self.config.seed, self.steps, 2])
            part = slice(start := int(rng.integers(decoded.shape[1] - length + 1)), start + length)
            gradients, losses["discriminators"] = self._train_discriminators(decoded[:, part], real[:, part])
            self.adversarial_steps += 1
            ramp = min(1.0, self.adversarial_steps / ADVERSARIAL_WARMUP_STEPS)
            weights = self.config.adversarial_weight, self.config.feature_matching_weight
            norm = gradient.norm()
            for weight, addition in zip(weights, gradients):
                gradient[:, part] += ramp * weight * norm / addition.norm().clamp(min=1e-9) * addition
        return gradient, losses

    def _train_discriminators(self, decoded: torch.Tensor,
                              real: torch.Tensor) -> tuple[tuple[torch.Tensor, torch.Tensor], torch.Tensor]:
        """Update the discriminators; returns the gradients of the codec's two losses by them, and their own loss."""
        decoded = decoded.detach().requires_grad_()
        discriminators = self.modules["discriminators"]
        with self._autocast():
            loss, *codec_losses = discriminators.losses(decoded, real)
        weights = list(discriminators.parameters())
        for weight, gradient in zip(weights, torch.autograd.grad(loss, weights, retain_graph=True)):
            weight.grad = gradient
        gradients = tuple(torch.autograd.grad(codec_loss, decoded, retain_graph=True)[0] for codec_loss in codec_losses)
        processes.mean_([weight.grad for weight in weights])
        self.optimizers["discriminator_optimizer"].step()
        return gradients, loss.detach()

    @torch.no_grad()
    def _init_codebooks(self) -> None:
        """Initialize the codebooks by k-means over the latents of many batches; one batch has too few vectors."""
        count = math.ceil(self.config.kmeans_seconds / (self.config.batch_size * self.crops.samples / self.spec.sample_rate))
        # step numbers that no training reaches, so that these crops are not those of the next batches
        pool = [self._encode(self.crops.sample(10 ** 9 + index)["waves"].to(self.device)) for index in range(count)]
        vectors = torch.cat([latents.transpose(1, 2).flatten(0, 1) for latents in pool])
        quantizer.init_codebooks(self.codec, vectors, np.random.default_rng([self.config.seed, 3]))
        for codebook in quantizer.codebooks(self.codec):  # all processes take those of the first
            values = [codebook.cluster_usage, codebook.embed_sum]
            distributed.all_reduce_sum([value.mul_(distributed.is_rank_zero()) for value in values])
            codebook._embed = None

    def _set_learning_rate(self) -> None:
        config = self.config
        decay = (min(1.0, self.progress) - config.decay_start) / max(1e-9, 1 - config.decay_start)
        factor = min(1.0, (self.steps + 1) / max(1, config.warmup_steps), 1 - (1 - MIN_LEARNING_RATE) * decay)
        for group in self.optimizers["codec_optimizer"].param_groups:
            group["lr"] = config.learning_rate * factor

    def _check_health(self, latents: torch.Tensor, total: torch.Tensor) -> None:
        """Raise an error if the loss is not finite or the latents have collapsed, instead of training to the end."""
        if (self.steps + 1) % CHECK_EVERY:
            return
        if not torch.isfinite(total):
            raise KitError(f"step {self.steps + 1}: the loss is not a finite number. Lower --learning-rate, and start again "
                           "with another --out.")
        self.variance_ratios = [*self.variance_ratios, quantizer.temporal_variance_ratio(latents)][-3:]
        if len(self.variance_ratios) == 3 and max(self.variance_ratios) < COLLAPSED:
            raise KitError(f"step {self.steps + 1}: the latents have collapsed: only {max(self.variance_ratios):.2%} of "
                           f"their energy varies from frame to frame; {COLLAPSED:.0%} or more is needed. All frames would "
                           "get the same codes. Lower --learning-rate or raise --unquantized-steps, and start again with "
                           "another --out.")

    def _autocast(self):
        return torch.autocast(self.device, torch.bfloat16) if self.use_bfloat16 else contextlib.nullcontext()


def _run_decoder(codec: MimiModel, hidden: torch.Tensor) -> torch.Tensor:
    """Run Mimi's decoder, (batch, hidden, frames) -> (batch, samples), with its last layer as a matrix product: oneDNN is
    slow at convolutions to one channel."""
    *layers, last = codec.decoder.layers
    for layer in layers:
        hidden = layer(hidden)
    kernel_size = last.conv.weight.shape[2]
    padded = last._pad1d(hidden, (kernel_size - 1, 0), mode=last.pad_mode)
    products = torch.bmm(last.conv.weight.transpose(1, 2).expand(len(padded), -1, -1), padded)
    return sum(products[:, tap, tap:tap + hidden.shape[2]] for tap in range(kernel_size)) + last.conv.bias


def _freeze_encoder(codec: MimiModel) -> None:
    """Freeze everything that determines the codes."""
    for part in (codec.encoder, codec.encoder_transformer, codec.downsample,
                 *(branch.input_proj for branch in quantizer.branches(codec))):
        part.requires_grad_(False)


def _rescale_initial_weights(codec: MimiModel) -> None:
    """Correct the initial weights of transformers: biases larger than the signal, and a hundred times too loud an output."""
    for name, weight in codec.named_parameters():
        if name.endswith("conv.bias"):
            weight.data.zero_()
    codec.decoder.layers[-1].conv.weight.data.mul_(0.01)
