"""Attention of clips that lie end to end in one row: each looks back into itself alone, without a mask as large as the row
squared, and without transformers asking the device where one clip ends."""

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

NAME = "clip_by_clip"
PackedClips = tuple[torch.Tensor, torch.Tensor]
"""For every place of clips side by side, (clips, longest), where it lies in the row; and for each of the row the reverse."""


def install(model: torch.nn.Module) -> None:
    """Let a model of transformers attend this way when it is told to, and as ever when not."""
    AttentionInterface.register(NAME, packed_attention)
    AttentionMaskInterface.register(NAME, sdpa_mask)
    model.set_attn_implementation({"": NAME})
    if model.device.type == "cpu" and model.dtype == torch.bfloat16:
        # on 32 positions in 16 bits plain products are faster on a processor than torch's fused attention
        model.depth_decoder.set_attn_implementation("eager")


def attention_kwargs(model: torch.nn.Module, clips: PackedClips | None) -> dict:
    """What to tell the backbone beside its inputs: rows that are clips, or clips in a row."""
    if model.config._attn_implementation != NAME:
        return {}
    # of four dimensions, a mask is left alone by transformers; this one stands for looking back
    return {"attention_mask": torch.empty(1, 1, 1, 1, device="cpu"), "clips": clips}


def packed_attention(module: torch.nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor,
                 attention_mask: torch.Tensor | None, clips: PackedClips | None = None, **more) -> tuple[torch.Tensor, None]:
    """(rows, heads, positions, size) of each -> (rows, positions, heads, size), as transformers calls it."""
    if attention_mask is None or attention_mask.numel() != 1:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **more)
    if clips is None:
        return sdpa_attention_forward(module, query, key, value, None, **more)
    apart, together = clips
    query, key, value = (_side_by_side(each, apart) for each in (query, key, value))
    heard, _ = sdpa_attention_forward(module, query, key, value, None, **more)
    return heard.flatten(0, 1).index_select(0, together)[None], None


def _side_by_side(row: torch.Tensor, apart: torch.Tensor) -> torch.Tensor:
    """(1, heads, positions, size) -> (clips, heads, longest, size); what is behind a clip's end is seen by nobody in it."""
    return row[0].transpose(0, 1).index_select(0, apart.flatten()).unflatten(0, apart.shape).transpose(1, 2)
