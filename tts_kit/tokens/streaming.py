"""Streaming decoder of Mimi: every layer keeps the state that its next chunk needs, so that chunks join without seams."""

import numpy as np
import torch
from torch import nn
from transformers import DynamicCache, MimiModel
from transformers.models.mimi import modeling_mimi as mimi

from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.tokens.codec import Codec


class StreamingDecoder:
    """Decodes one utterance in chunks of any sizes; joined they equal what `Codec.decode` makes of all its codes."""

    def __init__(self, codec: Codec):
        self.codec = codec
        self.layers = [_streaming(layer) for layer in _decoder_layers(codec.model)]

    @torch.inference_mode()
    def decode(self, codes: torch.Tensor) -> np.ndarray:
        """Decode the next (frames, codebooks) to (samples,) float32 of the same duration."""
        if not len(codes):
            return np.zeros(0, dtype=np.float32)
        with device.full_float32():
            hidden = self.codec.model.quantizer.decode(codes.T[None].to(self.codec.device, torch.long))
            for layer in self.layers:
                hidden = layer(hidden)
        return hidden[0, 0].cpu().numpy()


class _Conv1d:
    """A causal convolution; its state is the end of its input, which the next chunk begins with."""

    def __init__(self, layer: mimi.MimiConv1d):
        conv = layer.conv
        if not layer.causal or conv.stride[0] != 1 or layer.pad_mode not in ("constant", "replicate"):
            raise _unsupported(f"a convolution with use_causal_conv {layer.causal}, stride {conv.stride[0]}, pad_mode "
                               f"{layer.pad_mode!r}", "causal ones of stride 1, with pad_mode 'constant' or 'replicate'")
        self.conv, self.replicate = conv, layer.pad_mode == "replicate"
        self.context = (conv.kernel_size[0] - 1) * conv.dilation[0]
        self.state: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        if self.state is None:
            first = hidden[..., :1] if self.replicate else torch.zeros_like(hidden[..., :1])
            self.state = first.expand(-1, -1, self.context)
        hidden = torch.cat([self.state, hidden], dim=2)
        # a copy, because a view would keep the whole chunk in memory
        self.state = hidden[..., hidden.shape[2] - self.context:].clone()
        return self.conv(hidden)


class _ConvTranspose1d:
    """A transposed convolution; its state is the tail that overlaps the next chunk and is added there."""

    def __init__(self, layer: mimi.MimiConvTranspose1d):
        if not layer.causal or layer.padding_left:
            raise _unsupported(f"a transposed convolution cut at its beginning (use_causal_conv {layer.causal}, "
                               f"trim_right_ratio {layer.trim_right_ratio:g})", "causal ones with trim_right_ratio 1")
        self.conv, self.stride = layer.conv, layer.conv.stride[0]
        self.state: torch.Tensor | None = None

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        length, parts = hidden.shape[2], self._taps(hidden).split(self.stride, dim=2)
        output = hidden.new_zeros(len(parts[0]), length + len(parts) - 1, self.stride)
        if self.state is not None:
            output[:, :len(parts) - 1] = self.state
        for delay, part in enumerate(parts):
            output[:, delay:delay + length, :part.shape[2]] += part
        self.state = output[:, length:].clone()
        output = output[None, :, :length].flatten(2)
        # the bias comes last: added before, the tail would bring it a second time
        return output if self.conv.bias is None else output + self.conv.bias[:, None]

    def _taps(self, hidden: torch.Tensor) -> torch.Tensor:
        """(1, channels, length) -> (output channels, length, taps): what each position adds to those from its own on."""
        # a matrix product: torch's transposed convolution is up to four times slower on so few positions
        _, channels, taps = self.conv.weight.shape
        groups, length = self.conv.groups, hidden.shape[2]
        weight = self.conv.weight.reshape(groups, -1, channels * taps)
        output = hidden.reshape(groups, -1, length).transpose(1, 2) @ weight
        return output.view(groups, length, channels, taps).transpose(1, 2).reshape(groups * channels, length, taps)


class _ResnetBlock:
    def __init__(self, layer: mimi.MimiResnetBlock):
        self.block = [_streaming(part) for part in layer.block]
        self.shortcut = _streaming(layer.shortcut)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        residual = self.shortcut(hidden)
        for part in self.block:
            hidden = part(hidden)
        return residual + hidden


class _Transformer:
    """The transformer; its state is the KV cache of its sliding window."""

    def __init__(self, layer: mimi.MimiTransformerModel):
        rope_type = layer.rotary_emb.rope_type
        if rope_type != "default":
            raise _unsupported(f"rope_type {rope_type!r}", "'default', where no position depends on how many follow")
        self.layer = layer
        self.kv_cache = DynamicCache(config=layer.config)

    def __call__(self, hidden: torch.Tensor) -> torch.Tensor:
        return self.layer(hidden.transpose(1, 2), past_key_values=self.kv_cache, use_cache=True)[0].transpose(1, 2)


STATEFUL = {mimi.MimiConv1d: _Conv1d, mimi.MimiConvTranspose1d: _ConvTranspose1d, mimi.MimiResnetBlock: _ResnetBlock,
            mimi.MimiTransformerModel: _Transformer}
STATELESS = (nn.ELU, nn.Identity)


def _decoder_layers(model: MimiModel) -> list[nn.Module]:
    """Return what `MimiModel.decode` runs after the quantizer, in order."""
    # transformers 5.17 has these parts in the model, 5.23 has them in a decoder model of its own
    separate = hasattr(model.decoder, "decoder_seanet")
    holder, convolutions = (model.decoder, model.decoder.decoder_seanet) if separate else (model, model.decoder)
    return [holder.upsample, holder.decoder_transformer, *convolutions.layers]


def _streaming(layer: nn.Module):
    """Return a layer's streaming counterpart, which uses the layer's own weights."""
    if type(layer) in STATEFUL:
        return STATEFUL[type(layer)](layer)
    if not isinstance(layer, STATELESS):
        supported = ", ".join(kind.__name__ for kind in (*STATEFUL, *STATELESS))
        raise _unsupported(f"a layer {type(layer).__name__}", f"only {supported}")
    return layer


def _unsupported(feature: str, supported: str) -> KitError:
    return KitError(f"this codec cannot be decoded in chunks without seams: it has {feature}; wanted {supported}. Decode "
                    "whole utterances instead (`Codec.decode`, or `speak`).")
