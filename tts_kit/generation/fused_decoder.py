"""A Llama decoder for generation: LoRA and norm scales merged into fused projections, and a static KV cache."""

import torch
from peft.tuners.lora import LoraLayer
from torch.linalg import vector_norm
from torch.nn.functional import rms_norm, scaled_dot_product_attention, silu

from tts_kit.errors import KitError


def merged_weight(projection: torch.nn.Module, adapter: str | None) -> torch.Tensor:
    """Return the weight of a projection, with what the adapter of this name adds to it."""
    if not isinstance(projection, LoraLayer):
        return projection.weight
    assert not projection.merged, "an adapter was merged in place; use merge_and_unload"
    weight = projection.get_base_layer().weight
    return weight + projection.get_delta_weight(adapter).to(weight.dtype) if adapter in projection.lora_A else weight


class FusedDecoder:
    """The layers of CSM's backbone or depth decoder as four matrices each, for a few positions at a time.

    The matrices are copies. `load_weights` fills them in place, so that captured CUDA graphs stay valid."""

    def __init__(self, decoder: torch.nn.Module):
        config = decoder.config
        if config.attention_bias or config.mlp_bias or config.hidden_act != "silu":
            raise KitError(f"the model's layers have attention_bias={config.attention_bias}, mlp_bias={config.mlp_bias}, "
                           f"hidden_act={config.hidden_act!r}; generation supports layers without bias and with 'silu' "
                           "only. Use a checkpoint of CSM's own architecture.")
        self.decoder, self.final_norm = decoder, decoder.norm.weight
        self.num_heads, self.num_kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.head_dim, self.intermediate_size = decoder.layers[0].self_attn.head_dim, config.intermediate_size
        self.eps, self.norm_factor = config.rms_norm_eps, config.hidden_size ** -0.5
        self.norm_floor = torch.full((), (config.hidden_size * self.eps) ** 0.5, device=self.final_norm.device)
        self.dtype = decoder.layers[0].mlp.down_proj.weight.dtype  # of products and cache; norms may have another
        self.layers: list[tuple[torch.Tensor, ...]] = []  # of each layer the weights (out, in) of qkv, o, gate_up and down

    def load_weights(self, adapter: str | None) -> None:
        """Merge and fuse the model's weights as they are now, with the adapter of this name or without any."""
        row_order = self._rope_row_order()
        for number, layer in enumerate(self.decoder.layers):
            attention, mlp = layer.self_attn, layer.mlp
            q, k, v, o, gate, up, down = (merged_weight(projection, adapter) for projection in (
                attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj, mlp.gate_proj, mlp.up_proj,
                mlp.down_proj))
            weights = (torch.cat([q, k, v])[row_order] * layer.input_layernorm.weight, o,
                       torch.cat([gate, up]) * layer.post_attention_layernorm.weight, down)
            if number == len(self.layers):
                self.layers.append(tuple(torch.empty_like(weight, dtype=self.dtype) for weight in weights))
            for fused, weight in zip(self.layers[number], weights):
                fused.copy_(weight)

    def new_kv_cache(self, batch: int, length: int) -> list[torch.Tensor]:
        """Return an empty cache, of each layer keys and behind them values: (B, 2 * kv_heads, length, head_dim)."""
        return [self.final_norm.new_zeros(batch, 2 * self.num_kv_heads, length, self.head_dim, dtype=self.dtype)
                for _ in self.decoder.layers]

    def rope_freqs(self, length: int) -> torch.Tensor:
        """Return complex factors (length, heads + 2 * kv_heads, head_dim / 2) that rotate queries and keys, not values."""
        position_ids = torch.arange(length, device=self.final_norm.device)[None]
        cos, sin = self.decoder.rotary_emb(self.final_norm.float(), position_ids=position_ids)
        freqs = torch.complex(cos[0, :, :self.head_dim // 2], sin[0, :, :self.head_dim // 2])
        values = torch.ones_like(freqs)
        return torch.stack([freqs] * (self.num_heads + self.num_kv_heads) + [values] * self.num_kv_heads, dim=1)

    def __call__(self, hidden: torch.Tensor, rope_freqs: torch.Tensor, kv_cache: list[torch.Tensor],
                 cache_position: torch.Tensor | slice, kv_len: int, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Compute hidden states (B, T, H) from inputs (B, T, H) with these rotary factors.

        Keys and values are written to `cache_position`. Queries attend to the first `kv_len` positions of the cache as far
        as the additive mask (B, 1, T, kv_len) allows; without a mask, causally."""
        shape, x = hidden.shape, hidden.flatten(0, 1)  # (B * T, H)
        for (qkv_weight, o_weight, gate_up_weight, down_weight), layer_cache in zip(self.layers, kv_cache):
            qkv = self._apply_rotary(torch.mm(self._rms_norm(x), qkv_weight.T), rope_freqs, shape)
            new_kv = qkv[:, :, self.num_heads:].transpose(1, 2)
            if isinstance(cache_position, slice):
                layer_cache[:, :, cache_position] = new_kv
            else:
                layer_cache.index_copy_(2, cache_position, new_kv)
            x = self._add_product(x, self._attend(qkv[:, :, :self.num_heads], layer_cache[:, :, :kv_len], mask), o_weight)
            gate_up = torch.mm(self._rms_norm(x), gate_up_weight.T)
            x = self._add_product(x, silu(gate_up[:, :self.intermediate_size]).mul_(gate_up[:, self.intermediate_size:]),
                                  down_weight)
        return (self._rms_norm(x) * self.final_norm).view(shape)

    def _add_product(self, x: torch.Tensor, y: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        """Add a projection to the residual stream (B * T, H), which with float16 weights is float32."""
        return torch.addmm(x, y, weight.T) if x.dtype == self.dtype else x + torch.mm(y, weight.T)

    def _rms_norm(self, x: torch.Tensor) -> torch.Tensor:
        """RMSNorm without its scale, which is merged into the matrix that follows."""
        if x.device.type != "cpu" or self.dtype != torch.float32:
            return rms_norm(x, x.shape[-1:], eps=self.eps).to(self.dtype)
        # torch has no fused kernel for it on the CPU; these four operations replace its eight
        return x / (torch.hypot(vector_norm(x, dim=-1, keepdim=True), self.norm_floor) * self.norm_factor)

    def _rope_row_order(self) -> torch.Tensor:
        """Return the order of the rows of q, k and v that makes the two halves of each rotated pair neighbours.

        transformers rotates element i with element i + head_dim / 2; a complex product needs them side by side."""
        rows = torch.arange((self.num_heads + 2 * self.num_kv_heads) * self.head_dim, device=self.final_norm.device)
        rotated = (self.num_heads + self.num_kv_heads) * self.head_dim
        return torch.cat([rows[:rotated].view(-1, 2, self.head_dim // 2).transpose(1, 2).flatten(), rows[rotated:]])

    def _apply_rotary(self, qkv: torch.Tensor, rope_freqs: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """Rotate (B * T, ...) -> (B, T, heads + 2 * kv_heads, head_dim)."""
        pairs = torch.view_as_complex(qkv.float().view(*shape[:2], -1, self.head_dim // 2, 2))
        return torch.view_as_real(pairs * rope_freqs).view(*shape[:2], -1, self.head_dim).to(qkv.dtype)

    def _attend(self, query: torch.Tensor, layer_cache: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        """Attend with queries (B, T, heads, head_dim) -> (B * T, heads * head_dim)."""
        key, value = layer_cache[:, :self.num_kv_heads], layer_cache[:, self.num_kv_heads:]
        batch, length = query.shape[:2]
        if length == 1:
            # heads that share a key stand in the dimension of positions, so that no key is repeated
            query = query.view(batch, self.num_kv_heads, -1, self.head_dim)
            return scaled_dot_product_attention(query, key, value, mask).reshape(batch, -1)
        out = scaled_dot_product_attention(query.transpose(1, 2), key, value, mask, is_causal=mask is None,
                                           enable_gqa=self.num_heads != self.num_kv_heads)
        return out.transpose(1, 2).flatten(0, 1).flatten(1)
