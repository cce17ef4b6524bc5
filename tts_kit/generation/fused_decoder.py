"""A decoder made ready to speak: adapters and norms merged, projections side by side, keys and values in fixed places."""

from collections.abc import Sequence

import torch
from peft.tuners.lora import LoraLayer
from torch.linalg import vector_norm
from torch.nn.functional import linear, rms_norm, scaled_dot_product_attention, silu

from tts_kit.errors import KitError

FEW = 8
"""Rows up to which 8-bit weights are multiplied as they are; for more it is faster to write them out first."""


def merged(projection: torch.nn.Module) -> torch.Tensor:
    """The weight of a projection; where an adapter is on, with what it adds, as a copy."""
    if not isinstance(projection, LoraLayer):
        return projection.weight
    weight = projection.get_base_layer().weight
    if projection.disable_adapters or projection.merged:
        return weight
    for name in projection.active_adapters:
        if name in projection.lora_A:
            weight = weight + projection.get_delta_weight(name).to(weight.dtype)
    return weight


class FusedLinear:
    """Projections of one input as one matrix, the scales of the norm before them merged in, its rows in an order if told."""

    def __init__(self, projections: Sequence[torch.nn.Module], norm: torch.nn.Module | None = None,
                 order: torch.Tensor | None = None):
        self.projections, self.norm, self.order = projections, norm, order
        self.make_room(self.now())
        self.refresh()

    def now(self) -> torch.Tensor:
        """(out, in) as weights and adapters are at this moment."""
        weight = torch.cat([merged(each) for each in self.projections])
        weight = weight if self.order is None else weight[self.order]
        return weight if self.norm is None else weight * self.norm.weight


class Dense(FusedLinear):
    """Weights as they are."""

    def make_room(self, weight: torch.Tensor) -> None:
        self.across = torch.empty_like(weight).T

    def refresh(self) -> None:
        """Take the weights as they are now, in place."""
        self.across.copy_(self.now().T)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        return torch.mm(x, self.across)

    def onto(self, sum: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The sum with what comes out added."""
        return torch.addmm(sum, x, self.across)


class Rounded(FusedLinear):
    """Weights of 8 bits with one scale a row: a quarter or half of the bytes, and not quite the same."""

    def make_room(self, weight: torch.Tensor) -> None:
        self.scale = torch.empty_like(weight[:, 0], dtype=torch.bfloat16)
        self.weight = torch.empty_like(weight, dtype=torch.int8)

    def refresh(self) -> None:
        """Take the weights as they are now, in place."""
        weight = self.now().float()
        self.scale.copy_(weight.abs().amax(dim=1).clamp(min=1e-12) / 127)
        # divided by the scale as it was rounded, so that its own error is made up for
        self.weight.copy_((weight / self.scale.float()[:, None]).round().clamp(-127, 127))

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if len(x) <= FEW:
            return torch.ops.aten._weight_int8pack_mm(x.to(torch.bfloat16), self.weight, self.scale).to(x.dtype)
        return linear(x, self.weight.to(x.dtype) * self.scale.to(x.dtype)[:, None])

    def onto(self, sum: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        """The sum with what comes out added."""
        return sum + self(x)


class Layer:
    """Attention and feed-forward part as four matrices."""

    def __init__(self, layer: torch.nn.Module, matrix: type[FusedLinear], order: torch.Tensor):
        attention, feed = layer.self_attn, layer.mlp
        self.qkv = matrix([attention.q_proj, attention.k_proj, attention.v_proj], layer.input_layernorm, order)
        self.out = matrix([attention.o_proj])
        self.gate_up = matrix([feed.gate_proj, feed.up_proj], layer.post_attention_layernorm)
        self.down = matrix([feed.down_proj])


class FusedDecoder:
    """The layers of a backbone or depth decoder of transformers, for a few positions at a time."""

    def __init__(self, decoder: torch.nn.Module, matrix: type[FusedLinear] = Dense):
        config = decoder.config
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise KitError(f"the model's layers have attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias}, "
                          f"hidden_act={config.hidden_act!r}; speaking knows layers without bias and with 'silu' only. Use "
                          "a checkpoint of CSM's own architecture.")
        self.heads, self.groups, self.size = (config.num_attention_heads, config.num_key_value_heads,
                                              decoder.layers[0].self_attn.head_dim)
        self.epsilon, self.decoder, self.last = config.rms_norm_eps, decoder, decoder.norm.weight
        self.middle, self.share = config.intermediate_size, config.hidden_size ** -0.5
        self.floor = torch.tensor((config.hidden_size * self.epsilon) ** 0.5, device=self.last.device)
        order = self._pairs_together()
        self.layers = [Layer(layer, matrix, order) for layer in decoder.layers]

    def refresh(self) -> None:
        """Take the weights, and what the adapters add to them, as they are now."""
        for layer in self.layers:
            for matrix in (layer.qkv, layer.out, layer.gate_up, layer.down):
                matrix.refresh()

    def room(self, prompts: int, places: int) -> list[torch.Tensor]:
        """Empty places for keys, and behind them values, of each layer: (prompts, 2 * heads, places, size)."""
        return [self.last.new_zeros(prompts, 2 * self.groups, places, self.size) for _ in self.layers]

    def turns(self, positions: int) -> torch.Tensor:
        """(positions, heads, size / 2) complex numbers that turn queries and keys by their positions, and leave values."""
        places = torch.arange(positions, device=self.last.device)
        cosine, sine = self.decoder.rotary_emb(self.last.float(), position_ids=places[None])
        turn = torch.complex(cosine[0, :, :self.size // 2], sine[0, :, :self.size // 2])
        rest = torch.ones_like(turn)
        return torch.stack([turn] * (self.heads + self.groups) + [rest] * self.groups, dim=1)

    def __call__(self, x: torch.Tensor, turns: torch.Tensor, room: list[torch.Tensor], places: torch.Tensor | slice,
                 seen: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Positions (prompts, positions, hidden), which are put into `places`, see the first `seen` places, as far as the
        mask lets them; without one a few positions see what is before them."""
        shape, x = x.shape, x.flatten(0, 1)
        for layer, said in zip(self.layers, room):
            qkv = self._turned(layer.qkv(self._level(x)), turns, shape)
            new = qkv[:, :, self.heads:].transpose(1, 2)
            if isinstance(places, slice):
                said[:, :, places] = new
            else:
                said.index_copy_(2, places, new)
            x = layer.out.onto(x, self._attend(qkv[:, :, :self.heads], said[:, :, :seen], mask))
            gate_up = layer.gate_up(self._level(x))
            x = layer.down.onto(x, silu(gate_up[:, :self.middle]).mul_(gate_up[:, self.middle:]))
        return (self._level(x) * self.last).view(shape)

    def _level(self, x: torch.Tensor) -> torch.Tensor:
        """The norm of transformers, whose scales are merged into the matrix behind it."""
        if x.device.type != "cpu" or x.dtype != torch.float32:
            return rms_norm(x, x.shape[-1:], eps=self.epsilon)
        # there it is no kernel of its own but eight, of which these four are enough
        return x / (torch.hypot(vector_norm(x, dim=-1, keepdim=True), self.floor) * self.share)

    def _pairs_together(self) -> torch.Tensor:
        """The rows of queries, keys and values, ordered so that the two numbers that are turned as one complex number, which
        transformers has half a head apart, are neighbours."""
        rows = torch.arange((self.heads + 2 * self.groups) * self.size, device=self.last.device)
        turned, rest = rows.split([(self.heads + self.groups) * self.size, self.groups * self.size])
        return torch.cat([turned.view(-1, 2, self.size // 2).transpose(1, 2).flatten(), rest])

    def _turned(self, qkv: torch.Tensor, turns: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """(prompts, positions, heads, size): all heads times the complex numbers of their position."""
        pairs = torch.view_as_complex(qkv.float().view(*shape[:2], -1, self.size // 2, 2))
        return torch.view_as_real(pairs * turns).view(*shape[:2], -1, self.size).to(qkv.dtype)

    def _attend(self, queries: torch.Tensor, said: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Queries (prompts, positions, heads, size) -> (prompts * positions, heads * size)."""
        keys, values = said[:, :self.groups], said[:, self.groups:]
        prompts, positions = queries.shape[:2]
        if positions == 1:
            # queries that share keys stand side by side as if they were positions
            queries = queries.view(prompts, self.groups, -1, self.size)
            return scaled_dot_product_attention(queries, keys, values, mask).reshape(prompts, -1)
        heard = scaled_dot_product_attention(queries.transpose(1, 2), keys, values, mask, is_causal=mask is None,
                                             enable_gqa=self.heads != self.groups)
        return heard.transpose(1, 2).flatten(0, 1).flatten(1)
