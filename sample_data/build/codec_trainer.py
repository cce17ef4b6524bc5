"""One step of teaching a Mimi codec: heard, quantized, rebuilt, compared, and every weight and code moved a little."""

import contextlib
import math
import time
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from transformers import MimiModel

from sample_data.build import model_shapes, quantizer
from sample_data.build.codec_config import CodecRecipe
from sample_data.build.codec_loss import Adversary, Spectra
from sample_data.build.crops import Crops
from tts_kit import pretrained
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.pretrained import ModelSpec

COLLAPSED = 0.02
"""Share of the latents' energy that must differ from frame to frame."""
WATCH_EVERY = 50


class Training:
    """The codec, what judges it, and the state of both; one `step` at a time."""

    def __init__(self, waves: Sequence[np.ndarray], recipe: CodecRecipe, device_config: DeviceConfig,
                 features: Sequence[np.ndarray] | None = None):
        torch.manual_seed(recipe.seed)
        with pretrained.quiet():
            config = model_shapes.config(recipe.shape)
            self.codec = MimiModel(config.codec_config)
        if recipe.begin_with:
            self.codec, _ = pretrained.weights(MimiModel, recipe.begin_with, dtype=torch.float32)
        else:
            quantizer.prepare(self.codec, recipe.seed)
            _quieten(self.codec)
        width = 1 if features is None else features[0].shape[1]
        self.modules = {"codec": self.codec, "adversary": Adversary(channels=recipe.adversary_channels),
                        "listener": nn.Linear(config.codec_config.codebook_dim, width)}
        if recipe.keep_codes:
            _freeze_codes(self.codec)
        self.recipe, self.device, self.spec = recipe, device_config.device, ModelSpec.of(config)
        self.fast = device_config.dtype == torch.bfloat16
        for module in self.modules.values():
            module.to(self.device).train()
        self.spectra = Spectra(self.spec.sample_rate).to(self.device)
        self.crops = Crops(waves, self.spec, recipe, features)
        self.optimizers = {"builder": self._optimizer(recipe.learning_rate, "codec", "listener"),
                           "unmasker": self._optimizer(recipe.adversary_rate, "adversary")}
        self.steps, self.seconds, self.spreads = 0, 0.0, []

    def _optimizer(self, rate: float, *names: str) -> torch.optim.AdamW:
        weights = [weight for name in names for weight in self.modules[name].parameters() if weight.requires_grad]
        return torch.optim.AdamW(weights, rate, betas=(0.8, 0.99), weight_decay=1e-4, fused=self.device != "mps")

    @property
    def progress(self) -> float:
        """Share of the training that is done: of the steps, or of the time where no steps are given."""
        recipe = self.recipe
        return self.steps / recipe.steps if recipe.steps else self.seconds / (60 * recipe.minutes)

    @property
    def quantizing(self) -> bool:
        """Whether the codebooks have been started."""
        return bool(self.recipe.begin_with) or self.steps > self.recipe.free_steps

    def resume(self, steps: int, seconds: float, spreads: Sequence[float]) -> None:
        """Stand where a checkpoint of this training stood; its tensors are loaded by `snapshot`."""
        self.steps, self.seconds, self.spreads = steps, seconds, list(spreads)
        for codebook in quantizer.codebooks(self.codec):
            codebook._embed = None

    def step(self) -> dict[str, torch.Tensor]:
        """One update of everything; the losses and, once there are codebooks, the share of codes in use."""
        begun, recipe = time.monotonic(), self.recipe
        if self.steps == recipe.free_steps and not recipe.begin_with:
            self._start_codebooks()
        self._set_rates()
        batch = {name: value.to(self.device) for name, value in self.crops.batch(self.steps).items()}
        real = batch["waves"]
        latents = self._latents(real)
        made, branches, parts = self._rebuild(latents, batch)
        parts |= {"spectra": self.spectra(made, real), "wave": recipe.wave_weight * (made - real).abs().mean()}
        if self.progress >= recipe.adversary_from:
            parts |= self._confront(made, real)
        total = sum(parts.values())
        self.optimizers["builder"].zero_grad()
        total.backward()
        nn.utils.clip_grad_norm_(self.codec.parameters(), 1.0)
        self.optimizers["builder"].step()
        if branches and not recipe.keep_codes:
            quantizer.learn(self.codec, branches, recipe.decay, np.random.default_rng([recipe.seed, self.steps, 1]))
        self._watch(latents, total)
        self.steps += 1
        self.seconds += time.monotonic() - begun
        return {name: value.detach() for name, value in parts.items()}

    def _latents(self, waves: torch.Tensor) -> torch.Tensor:
        """Waves (batch, samples) -> (batch, hidden, frames), as `MimiModel.encode` makes them."""
        with self._quickly():
            heard = self.codec.encoder(waves[:, None])
        heard = self.codec.encoder_transformer(heard.float().transpose(1, 2), use_cache=False)[0].transpose(1, 2)
        return self.codec.downsample(heard)

    def _rebuild(self, latents: torch.Tensor, batch: dict) -> tuple[torch.Tensor, list, dict]:
        """Latents -> waves (batch, samples), as `MimiModel.decode` makes them, and the losses on the way."""
        parts, branches = {}, []
        if self.steps < self.recipe.free_steps and not self.recipe.begin_with:
            passed = quantizer.bypass(self.codec, latents)
            first = quantizer.branches(self.codec)[0].input_proj(latents)
        else:
            passed, branches = quantizer.quantize(self.codec, latents, batch["levels"])
            parts["commitment"] = self.recipe.commitment * sum(branch.commitment for branch in branches)
            first = branches[0].output
        if "features" in batch:
            guess = self.modules["listener"](first.transpose(1, 2))
            parts["teacher"] = self.recipe.teacher_weight * (1 - F.cosine_similarity(guess, batch["features"], -1).mean())
        hidden = self.codec.upsample(passed).transpose(1, 2)
        hidden = self.codec.decoder_transformer(hidden, use_cache=False)[0].transpose(1, 2)
        with self._quickly():
            made = _decode(self.codec, hidden)
        return made.float(), branches, parts

    def _confront(self, made: torch.Tensor, real: torch.Tensor) -> dict:
        """Train the discriminators on a part of every crop; returns what they make the codec lose."""
        adversary, unmasker = self.modules["adversary"], self.optimizers["unmasker"]
        part = min(made.shape[1], round(self.recipe.adversary_seconds * self.spec.sample_rate))
        begin = int(np.random.default_rng([self.recipe.seed, self.steps, 2]).integers(made.shape[1] - part + 1))
        made, real = made[:, begin:begin + part], real[:, begin:begin + part]
        unmasker.zero_grad()
        with self._quickly():
            unmasking = adversary.unmasking(made, real)
        unmasking.backward()
        unmasker.step()
        adversary.requires_grad_(False)
        with self._quickly():
            deceit, likeness = adversary.deceit(made, real)
        adversary.requires_grad_(True)
        return {"deceit": self.recipe.deceit_weight * deceit, "likeness": self.recipe.likeness_weight * likeness}

    @torch.no_grad()
    def _start_codebooks(self) -> None:
        """K-means over the latents of many batches; one batch has too few vectors for the codes."""
        count = math.ceil(self.recipe.pool_seconds / (self.recipe.batch * self.crops.samples / self.spec.sample_rate))
        # numbers far behind any training's own, so that the pool is no rehearsal of the next batches
        pool = [self._latents(self.crops.make(10 ** 9 + number)["waves"].to(self.device)) for number in range(count)]
        vectors = torch.cat([latents.transpose(1, 2).flatten(0, 1) for latents in pool])
        quantizer.start(self.codec, vectors, np.random.default_rng([self.recipe.seed, 3]))

    def _set_rates(self) -> None:
        cosine = 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * min(1.0, self.progress)))
        share = cosine * min(1.0, (self.steps + 1) / max(1, self.recipe.warmup_steps))
        peaks = {"builder": self.recipe.learning_rate, "unmasker": self.recipe.adversary_rate}
        for name, optimizer in self.optimizers.items():
            for group in optimizer.param_groups:
                group["lr"] = peaks[name] * share

    def _watch(self, latents: torch.Tensor, total: torch.Tensor) -> None:
        """Stop a training that has become hopeless, instead of letting it run to its end."""
        if (self.steps + 1) % WATCH_EVERY:
            return
        if not torch.isfinite(total):
            raise KitError(f"step {self.steps + 1}: the loss is not a finite number. Lower --learning-rate; the same "
                           f"command "
                          "with another --out begins anew.")
        self.spreads = [*self.spreads, quantizer.spread(latents)][-3:]
        if len(self.spreads) == 3 and max(self.spreads) < COLLAPSED:
            raise KitError(f"step {self.steps + 1}: the latents have collapsed: only {max(self.spreads):.2%} of their "
                           f"energy "
                          f"differs from frame to frame, wanted {COLLAPSED:.0%} or more. Such a codec says the same at "
                          "every moment. Lower --learning-rate, or raise --free-steps; another --out begins anew.")

    def _quickly(self):
        return torch.autocast(self.device, torch.bfloat16) if self.fast else contextlib.nullcontext()


def _decode(codec: MimiModel, hidden: torch.Tensor) -> torch.Tensor:
    """Mimi's decoder, (batch, hidden, frames) -> (batch, samples), its last layer as a product: oneDNN is slow at
    convolutions to one channel."""
    *layers, last = codec.decoder.layers
    for layer in layers:
        hidden = layer(hidden)
    taps = last.conv.weight.shape[2]
    padded = last._pad1d(hidden, (taps - 1, 0), mode=last.pad_mode)
    each = torch.bmm(last.conv.weight.transpose(1, 2).expand(len(padded), -1, -1), padded)
    return sum(each[:, tap, tap:tap + hidden.shape[2]] for tap in range(taps)) + last.conv.bias


def _freeze_codes(codec: MimiModel) -> None:
    """Everything up to the codes stays as it is."""
    for part in (codec.encoder, codec.encoder_transformer, codec.downsample,
                 *(branch.input_proj for branch in quantizer.branches(codec))):
        part.requires_grad_(False)


def _quieten(codec: MimiModel) -> None:
    """Transformers' first weights let the biases drown the speech, and speak a hundred times louder than it."""
    for name, weight in codec.named_parameters():
        if name.endswith("conv.bias"):
            weight.data.zero_()
    codec.decoder.layers[-1].conv.weight.data.mul_(0.01)
