"""CSM's two losses over codes: the backbone predicts codebook 0 of the next frame, the depth decoder the others."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, pad
from transformers import CsmForConditionalGeneration

from tts_kit.model import attention
from tts_kit.model.embed import embed_inputs

CHUNK = {"gpu": 128, "cpu": 64}
"""Frames that the depth decoder computes at once: enough to fill a GPU, few enough for a CPU's cache."""


@dataclass
class LossSums:
    """Summed cross-entropies, and the number of frames each was summed over."""
    backbone: torch.Tensor
    frames: int
    depth: torch.Tensor
    depth_frames: int
    by_codebook: torch.Tensor
    """(codebooks,) detached sums, of the first codebook over `frames`, of the others over `depth_frames`."""


def loss_sums(model: CsmForConditionalGeneration, batch: dict, scale: float | torch.Tensor = 1.0) -> LossSums:
    """Return the losses of a batch of training/dataset before averaging.

    `scale` is roughly what the gradient of a sum will be multiplied by, which keeps float16 in range."""
    hidden = model.backbone_model(inputs_embeds=embed_inputs(model, batch), position_ids=batch["position_ids"],
                                  use_cache=False,
                                  **attention.attention_kwargs(model, batch["packed_clips"])).last_hidden_state
    # a frame is predicted from the position before it
    states, targets = hidden.flatten(0, 1).index_select(0, batch["predictor_index"]), batch["targets"]
    backbone = cross_entropy(model.lm_head(states).float(), targets[:, 0], reduction="sum")
    depth_frame_index = batch["depth_frame_index"]
    depth, by_codebook = depth_loss(model, states.index_select(0, depth_frame_index),
                                    targets.index_select(0, depth_frame_index), scale)
    return LossSums(backbone, len(targets), depth, len(depth_frame_index), torch.cat([backbone.detach()[None], by_codebook]))


def depth_loss(model: CsmForConditionalGeneration, states: torch.Tensor, codes: torch.Tensor,
               scale: float | torch.Tensor = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of N frames and each codebook's part, from backbone states (N, H) and codes (N, codebooks)."""
    weights = [weight for weight in model.depth_decoder.parameters() if weight.requires_grad]
    return ChunkedDepthLoss.apply(model, codes, scale, torch.is_grad_enabled(), states, *weights)


class ChunkedDepthLoss(torch.autograd.Function):
    """The depth loss a chunk of frames at a time, with the gradient taken in the forward pass.

    Activations live only as long as their chunk: memory does not grow with the batch, and nothing is computed twice."""

    @staticmethod
    def forward(context, model, codes, scale, with_gradient, states, *weights):
        by_codebook = torch.zeros(codes.shape[1] - 1, device=codes.device)
        state_gradient, weight_gradients = torch.zeros_like(states), [torch.zeros_like(weight) for weight in weights]
        size, head = CHUNK["cpu" if states.device.type == "cpu" else "gpu"], model.depth_decoder.codebooks_head.weight
        if states.device.type == "cuda" and not head.requires_grad:  # rows of 2051 numbers forbid wide loads
            head = pad(head, (0, -head.shape[2] % 8))
        for start in range(0, len(states), size):
            chunk = slice(start, start + size)
            with torch.set_grad_enabled(with_gradient):
                chunk_states = states[chunk].detach().requires_grad_(with_gradient)
                chunk_sums = codebook_cross_entropy(depth_hidden(model, chunk_states, codes[chunk]), head,
                                                    codes[chunk, 1:].T, model.depth_decoder.config.vocab_size)
                scaled_sum = chunk_sums.sum() * scale
            by_codebook += chunk_sums.detach()
            if with_gradient:
                state_gradient[chunk], *gradients = torch.autograd.grad(scaled_sum, (chunk_states, *weights))
                for total, gradient in zip(weight_gradients, gradients):
                    total += gradient
        context.gradients, context.scale = (state_gradient, *weight_gradients), scale
        context.mark_non_differentiable(by_codebook)
        return by_codebook.sum(), by_codebook

    @staticmethod
    def backward(context, gradient, _):
        factor = gradient / context.scale
        return (None, None, None, None, *(stored * factor for stored in context.gradients))


def codebook_cross_entropy(hidden: torch.Tensor, head: torch.Tensor, codes: torch.Tensor, vocab_size: int) -> torch.Tensor:
    """Return summed cross-entropies (codebooks,) in float32, from hidden states (codebooks, N, H), a head of each codebook,
    of which columns from `vocab_size` on are padding, and codes (codebooks, N)."""
    logits = torch.bmm(hidden, head)[..., :vocab_size].float()
    return cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view(codes.shape).sum(1)


def depth_hidden(model: CsmForConditionalGeneration, states: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
    """Return the depth decoder's states (codebooks - 1, N, H), from backbone states (N, H) and codes (N, codebooks)."""
    depth = model.depth_decoder
    offsets = torch.arange(codes.shape[1] - 1, device=codes.device) * depth.config.vocab_size
    embedded = depth.model.embed_tokens(codes[:, :-1] + offsets)
    # concatenated: transformers writes the state into a leaf tensor, which gradient checkpointing forbids
    inputs = torch.cat([states[:, None].to(embedded.dtype), embedded], dim=1)
    # an explicit mask: transformers 5.17 fails where there are as many frames as codebooks
    mask = torch.full(2 * (codes.shape[1],), -torch.inf, dtype=inputs.dtype, device=inputs.device).triu(1)[None, None]
    out = depth.model(inputs_embeds=inputs, attention_mask=mask, use_cache=False).last_hidden_state
    return out[:, 1:].transpose(0, 1)
