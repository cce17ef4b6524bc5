"""Two named losses over codes: the backbone predicts codebook 0 of the next frame, the depth decoder the rest of it."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, embedding_bag


@dataclass
class Sums:
    """Summed cross-entropies and how many frames each was summed over."""
    backbone: torch.Tensor
    frames: int
    depth: torch.Tensor
    depth_frames: int
    by_codebook: torch.Tensor
    """(codebooks,) sums per codebook, the first over `frames`, the others over `depth_frames`; detached."""


def sums(model, batch: dict) -> Sums:
    """Losses of one batch as made by `tuning.batches`, before any averaging."""
    hidden = model.backbone_model(inputs_embeds=embed(model, batch), position_ids=batch["positions"],
                                  use_cache=False).last_hidden_state
    # each scored frame is predicted from the position before it
    states, targets = hidden.flatten(0, 1)[batch["predictors"]], batch["targets"]
    backbone = cross_entropy(model.lm_head(states).float(), targets[:, 0], reduction="sum")
    chosen = batch["depth_rows"]
    depth = _by_codebook(depth_logits(model, states[chosen], targets[chosen]), targets[chosen])
    return Sums(backbone, len(targets), depth.sum(), len(chosen),
                torch.cat([backbone.detach()[None], depth.detach()]))


def embed(model, batch: dict) -> torch.Tensor:
    """(rows, positions, hidden): text embeddings, and the sum of a frame's code embeddings where a frame stands."""
    table = model.backbone_model.embed_tokens
    codes = batch["codes"] + table.audio_tokens_offsets
    audio = embedding_bag(codes.flatten(0, 1), table.embed_audio_tokens.weight, mode="sum").view(*codes.shape[:2], -1)
    return torch.where(batch["is_frame"][..., None], audio, model.embed_text_tokens(batch["ids"]))


def depth_logits(model, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Backbone states (frames, hidden) and codes (frames, codebooks) -> (codebooks - 1, frames, words) logits."""
    depth = model.depth_decoder
    offsets = torch.arange(codes.shape[1] - 1, device=codes.device) * depth.config.vocab_size
    before = depth.model.embed_tokens(codes[:, :-1] + offsets)
    # concatenated rather than written into: transformers writes into a leaf there, which checkpointing forbids
    inputs = torch.cat([states[:, None].to(before.dtype), before], dim=1)
    # without a mask of its own transformers 5.17 fails on exactly as many frames as there are codebooks
    causal = torch.full(2 * (codes.shape[1],), -torch.inf, dtype=inputs.dtype, device=inputs.device).triu(1)[None, None]
    out = depth.model(inputs_embeds=inputs, attention_mask=causal, use_cache=False).last_hidden_state
    return torch.bmm(out[:, 1:].transpose(0, 1), depth.codebooks_head.weight)


def _by_codebook(logits: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """(codebooks - 1,) summed cross-entropy, in float32."""
    count, frames, words = logits.shape
    each = cross_entropy(logits.float().reshape(-1, words), codes[:, 1:].T.reshape(-1), reduction="none")
    return each.view(count, frames).sum(1)
