"""Codes to sound while they come: every layer keeps what its next chunk needs, so that the seams cannot be heard."""

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, MimiModel
from transformers.models.mimi import modeling_mimi as mimi

from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.tokens.codec import Codec


class StreamingDecoder:
    """One utterance, decoded in chunks of any sizes; joined they are what `Codec.decode` makes of the whole."""

    def __init__(self, codec: Codec):
        self.codec = codec
        self.steps = [_keeping(layer) for layer in _layers(codec.model)]

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """The next (frames, codebooks) -> (samples,) float32, as long as these frames."""
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        with device.full_float32():
            sound = self.codec.model.quantizer.decode(codes.T[None].to(self.codec.device, torch.long))
            for step in self.steps:
                sound = step(sound)
        return sound[0, 0].cpu().numpy()


class _Convolution:
    """A causal convolution; keeps the end of its input, which the next chunk begins with."""

    def __init__(self, layer: mimi.MimiConv1d):
        conv = layer.conv
        if not layer.causal:
            raise _refusal("a convolution that looks ahead (use_causal_conv is false)", "causal ones")
        if conv.stride[0] != 1:
            raise _refusal(f"a convolution of stride {conv.stride[0]} in its decoder", "stride 1")
        if layer.pad_mode not in ("constant", "replicate"):
            raise _refusal(f"pad_mode {layer.pad_mode!r}", "'constant' or 'replicate', which need nothing that comes later")
        self.conv, self.repeats = conv, layer.pad_mode == "replicate"
        self.reach = (conv.kernel_size[0] - 1) * conv.dilation[0]
        self.kept: torch.Tensor | None = None

    def __call__(self, sound: torch.Tensor) -> torch.Tensor:
        if self.kept is None:
            before = sound[..., :1] if self.repeats else torch.zeros_like(sound[..., :1])
            self.kept = before.expand(-1, -1, self.reach)
        sound = torch.cat([self.kept, sound], dim=2)
        # a copy, because a view would hold the whole chunk
        self.kept = sound[..., sound.shape[2] - self.reach:].clone()
        return self.conv(sound)


class _Transposed:
    """A transposed convolution; keeps the tail that reaches into the next chunk, and adds it there."""

    def __init__(self, layer: mimi.MimiConvTranspose1d):
        if not layer.causal or layer.padding_left:
            raise _refusal(f"a transposed convolution cut at its beginning (use_causal_conv {layer.causal}, "
                           f"trim_right_ratio {layer.trim_right_ratio:g})", "causal ones with trim_right_ratio 1")
        self.conv, self.stride = layer.conv, layer.conv.stride[0]
        self.kept: torch.Tensor | None = None

    def __call__(self, sound: torch.Tensor) -> torch.Tensor:
        length, parts = sound.shape[2], self._spread(sound).split(self.stride, dim=2)
        made = sound.new_zeros(len(parts[0]), length + len(parts) - 1, self.stride)
        if self.kept is not None:
            made[:, :len(parts) - 1] = self.kept
        for late, part in enumerate(parts):
            made[:, late:late + length, :part.shape[2]] += part
        self.kept = made[:, length:].clone()
        made = made[None, :, :length].flatten(2)
        # the bias comes last: added before, the tail would bring it a second time
        return made if self.conv.bias is None else made + self.conv.bias[:, None]

    def _spread(self, sound: torch.Tensor) -> torch.Tensor:
        """(1, channels, length) -> (channels out, length, taps): what each moment adds to those from its own on.

        A matrix product, because torch's own transposed convolution is up to four times as slow on so few moments.
        """
        _, outputs, taps = self.conv.weight.shape
        groups, length = self.conv.groups, sound.shape[2]
        weight = self.conv.weight.reshape(groups, -1, outputs * taps)
        parts = sound.reshape(groups, -1, length).transpose(1, 2) @ weight
        return parts.view(groups, length, outputs, taps).transpose(1, 2).reshape(groups * outputs, length, taps)


class _Residual:
    """A residual block, whose two ways are equally late."""

    def __init__(self, layer: mimi.MimiResnetBlock):
        self.block = [_keeping(each) for each in layer.block]
        self.shortcut = _keeping(layer.shortcut)

    def __call__(self, sound: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(sound)
        for step in self.block:
            sound = step(sound)
        return residual + sound


class _Transformer:
    """The transformer; keeps the keys and values inside its sliding window, and where it is."""

    def __init__(self, layer: mimi.MimiTransformerModel):
        kind = layer.rotary_emb.rope_type
        if kind != "default":
            raise _refusal(f"positions of the kind {kind!r}", "'default', where none depends on how many follow")
        self.layer = layer
        self.cache = DynamicCache(config=layer.config)

    def __call__(self, sound: torch.Tensor) -> torch.Tensor:
        return self.layer(sound.transpose(1, 2), past_key_values=self.cache, use_cache=True)[0].transpose(1, 2)


KEEPING = {mimi.MimiConv1d: _Convolution, mimi.MimiConvTranspose1d: _Transposed, mimi.MimiResnetBlock: _Residual,
           mimi.MimiTransformerModel: _Transformer}
STATELESS = (nn.ELU, nn.Identity)


def _layers(model: MimiModel) -> list[nn.Module]:
    """What `MimiModel.decode` runs after the quantizer, in order."""
    # transformers 5.17 has these parts in the model, 5.23 has them in a decoder model of its own
    apart = hasattr(model.decoder, "decoder_seanet")
    holder, convolutions = (model.decoder, model.decoder.decoder_seanet) if apart else (model, model.decoder)
    return [holder.upsample, holder.decoder_transformer, *convolutions.layers]


def _keeping(layer: nn.Module):
    """The counterpart of a layer that goes on where its last chunk ended; it uses the layer's own weights."""
    if type(layer) in KEEPING:
        return KEEPING[type(layer)](layer)
    if not isinstance(layer, STATELESS):
        known = ", ".join(kind.__name__ for kind in (*KEEPING, *STATELESS))
        raise _refusal(f"a layer {type(layer).__name__}", f"only {known}")
    return layer


def _refusal(seen: str, wanted: str) -> KitError:
    return KitError(f"this codec cannot be decoded in chunks without seams: it has {seen}; wanted {wanted}. Decode whole "
                   "utterances instead (`Codec.decode`, or speak without --stream).")
