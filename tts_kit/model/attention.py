"""Attention of packed clips: each clip in a row attends to itself only, without a mask of the row's length squared."""

import functools

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import repeat_kv, sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "packed_clips"
PackedClips = tuple[torch.Tensor, torch.Tensor]
"""`unpack_index` (clips, longest): where in the row each position of each clip stands; `pack_index` (T,): where in the
flattened clips each position of the row stands."""


def install(model: torch.nn.Module) -> None:
    """Register this attention with transformers and let the model use it; without packed clips it is plain sdpa."""
    # below compute capability 8 no fused kernel takes grouped queries
    repeats_kv = model.device.type == "cuda" and torch.cuda.get_device_properties(model.device).major < 8
    AttentionInterface.register(NAME, functools.partial(packed_attention, repeats_kv=repeats_kv))
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"": NAME})
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        # with 32 positions in bfloat16 plain matrix products are faster on a CPU than torch's fused attention
        model.depth_decoder.set_attn_implementation("eager")


def attention_kwargs(model: torch.nn.Module, clips: PackedClips | None) -> dict:
    """Return what to pass to the backbone: the index of packed clips, or None for a clip per row."""
    if model.config._attn_implementation != NAME:
        return {}
    # transformers passes a mask of four dimensions on as it is, and does not build one; this one stands for "causal"
    return {"attention_mask": torch.empty(1, 1, 1, 1, device="cpu"), "clips": clips}


def packed_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                     attention_mask: torch.Tensor | None, clips: PackedClips | None = None, repeats_kv: bool = False,
                     **kwargs) -> tuple[torch.Tensor, None]:
    """Attend with (B, heads, T, head_dim) -> (B, T, heads, head_dim), as transformers calls it."""
    # with float16 projections and a float32 residual stream RoPE makes queries and keys float32
    query, key = query.to(value.dtype), key.to(value.dtype)
    if attention_mask is not None and attention_mask.numel() != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    if repeats_kv:  # without a module transformers does not group the queries
        groups = query.shape[1] // key.shape[1]
        module, key, value = None, repeat_kv(key, groups), repeat_kv(value, groups)
    if clips is None:
        return sdpa_attention_forward(module, query, key, value, None, **kwargs)
    unpack_index, pack_index = clips
    # (1, heads, T, head_dim) -> (clips, heads, longest, head_dim); no position attends to the padding behind its clip
    query, key, value = (
        packed[0].transpose(0, 1).index_select(0, unpack_index.flatten()).unflatten(0, unpack_index.shape).transpose(1, 2)
        for packed in (query, key, value))
    out, _ = sdpa_attention_forward(module, query, key, value, None, **kwargs)
    return out.flatten(0, 1).index_select(0, pack_index)[None], None
