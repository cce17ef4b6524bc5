"""CSM's input embedding: text tokens, and frames of codes as the sum of their code embeddings."""

import torch
from torch.nn.functional import embedding_bag
from transformers import CsmForConditionalGeneration


def embed_inputs(model: CsmForConditionalGeneration, batch: dict) -> torch.Tensor:
    """Return (B, T, H): the text embedding, or where `audio_mask` the sum of the embeddings of the frame's codes."""
    embed_tokens = model.backbone_model.embed_tokens
    codes = batch["codes"] + embed_tokens.audio_tokens_offsets
    audio = embedding_bag(codes.flatten(0, 1), embed_tokens.embed_audio_tokens.weight, mode="sum").view(*codes.shape[:2], -1)
    text = batch["text"] if "text" in batch else model.embed_text_tokens(batch["input_ids"])
    return torch.where(batch["audio_mask"][..., None], audio, text)
