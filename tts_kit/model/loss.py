"""Two named losses over codes: the backbone predicts codebook 0 of the next frame, the depth decoder the rest of it."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, embedding_bag

from tts_kit.model import attention

CHUNK = {"gpu": 128, "cpu": 64}
"""Frames that the depth decoder learns from at once: enough to fill a GPU, few enough for a processor's cache."""


@dataclass
class LossSums:
    """Summed cross-entropies and how many frames each was summed over."""
    backbone: torch.Tensor
    frames: int
    depth: torch.Tensor
    depth_frames: int
    by_codebook: torch.Tensor
    """(codebooks,) sums per codebook, the first over `frames`, the others over `depth_frames`; detached."""


def loss_sums(model, batch: dict, scale: float = 1.0) -> LossSums:
    """Losses of one batch as made by `tuning.batches`, before any averaging; `scale` is about how large the gradient of a
    sum will be, which only matters to float16."""
    hidden = model.backbone_model(inputs_embeds=embed_inputs(model, batch), position_ids=batch["position_ids"], use_cache=False,
                                  **attention.attention_kwargs(model, batch["packed_clips"])).last_hidden_state
    # each scored frame is predicted from the position before it
    states, targets = hidden.flatten(0, 1).index_select(0, batch["predictor_index"]), batch["targets"]
    backbone = cross_entropy(model.lm_head(states).float(), targets[:, 0], reduction="sum")
    chosen = batch["depth_frame_index"]
    depth, by_codebook = depth_sum(model, states.index_select(0, chosen), targets.index_select(0, chosen), scale)
    return LossSums(backbone, len(targets), depth, len(chosen), torch.cat([backbone.detach()[None], by_codebook]))


def embed_inputs(model, batch: dict) -> torch.Tensor:
    """(rows, positions, hidden): text embeddings, and the sum of a frame's code embeddings where a frame stands."""
    table = model.backbone_model.embed_tokens
    codes = batch["codes"] + table.audio_tokens_offsets
    audio = embedding_bag(codes.flatten(0, 1), table.embed_audio_tokens.weight, mode="sum").view(*codes.shape[:2], -1)
    text = batch["text"] if "text" in batch else model.embed_text_tokens(batch["input_ids"])
    return torch.where(batch["audio_mask"][..., None], audio, text)


def depth_sum(model, states: torch.Tensor, codes: torch.Tensor, scale: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Backbone states (frames, hidden) and codes (frames, codebooks) -> the summed loss, and its part of each codebook."""
    weights = [weight for weight in model.depth_decoder.parameters() if weight.requires_grad]
    return ChunkedDepthLoss.apply(model, codes, scale, torch.is_grad_enabled(), states, *weights)


class ChunkedDepthLoss(torch.autograd.Function):
    """The depth loss a few frames at a time. What a chunk needs for its gradient lives only as long as the chunk: the
    gradient is taken on the way forward, nothing is computed twice, and memory does not grow with the batch."""

    @staticmethod
    def forward(context, model, codes, scale, learning, states, *weights):
        by_codebook = torch.zeros(codes.shape[1] - 1, device=codes.device)
        into_states, into_weights = torch.zeros_like(states), [torch.zeros_like(weight) for weight in weights]
        size = CHUNK["cpu" if states.device.type == "cpu" else "gpu"]
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            with torch.set_grad_enabled(learning):
                part = states[chunk].detach().requires_grad_(learning)
                each = CodebookCrossEntropy.apply(depth_states(model, part, codes[chunk]), model.depth_decoder.codebooks_head.weight,
                                   codes[chunk, 1:].T)
                total = each.sum() * scale
            by_codebook += each.detach()
            if learning:
                into_states[chunk], *others = torch.autograd.grad(total, (part, *weights))
                for into, other in zip(into_weights, others):
                    into += other
        context.gradients, context.scale = (into_states, *into_weights), scale
        context.mark_non_differentiable(by_codebook)
        return by_codebook.sum(), by_codebook

    @staticmethod
    def backward(context, gradient, _):
        factor = gradient / context.scale
        return (None, None, None, None, *(found * factor for found in context.gradients))


class CodebookCrossEntropy(torch.autograd.Function):
    """States (codebooks, frames, hidden), one head a codebook and codes (codebooks, frames) -> (codebooks,) summed
    cross-entropies in float32. The chances turn into the gradient where they stand: logits are most of the memory."""

    @staticmethod
    def forward(context, states, weight, codes):
        chances = torch.bmm(states, weight).float().log_softmax(dim=2)
        each = -chances.gather(2, codes[..., None]).sum((1, 2))
        into_states, into_weight, _ = context.needs_input_grad
        if into_states or into_weight:
            wrong = chances.exp_().scatter_add_(2, codes[..., None], chances.new_full((*codes.shape, 1), -1.0))
            wrong = wrong.to(states.dtype)
            context.into_states = torch.bmm(wrong, weight.transpose(1, 2)) if into_states else None
            context.into_weight = torch.bmm(states.transpose(1, 2), wrong) if into_weight else None
        return each

    @staticmethod
    def backward(context, gradient):
        found = (context.into_states, context.into_weight)
        return (*(each if each is None else each * gradient[:, None, None] for each in found), None)


def depth_states(model, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Backbone states (frames, hidden) and codes (frames, codebooks) -> (codebooks - 1, frames, hidden) for the heads."""
    depth = model.depth_decoder
    offsets = torch.arange(codes.shape[1] - 1, device=codes.device) * depth.config.vocab_size
    before = depth.model.embed_tokens(codes[:, :-1] + offsets)
    # concatenated rather than written into: transformers writes into a leaf there, which checkpointing forbids
    inputs = torch.cat([states[:, None].to(before.dtype), before], dim=1)
    # without a mask of its own transformers 5.17 fails on exactly as many frames as there are codebooks
    causal = torch.full(2 * (codes.shape[1],), -torch.inf, dtype=inputs.dtype, device=inputs.device).triu(1)[None, None]
    out = depth.model(inputs_embeds=inputs, attention_mask=causal, use_cache=False).last_hidden_state
    return out[:, 1:].transpose(0, 1)
