"""CSM's input embedding: text tokens, whose table may stay in main memory, and frames as the sum of their codes' rows."""

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


class OffloadedEmbedding(torch.nn.Module):
    """An embedding whose table stays in main memory; only the rows that are looked up go to the device."""

    def __init__(self, embedding: torch.nn.Embedding):
        super().__init__()
        self._embedding = (embedding.cpu(),)  # in a tuple, so that `.to(device)` does not find it

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self._embedding[0](ids.cpu()).to(ids.device)


def offload_text_embeddings(model: CsmForConditionalGeneration) -> None:
    """Keep the text embeddings, half a gigabyte of CSM-1B, in main memory."""
    model.embed_text_tokens = OffloadedEmbedding(model.embed_text_tokens)


def prefetch_text(model: CsmForConditionalGeneration, batch: dict) -> dict:
    """Return a batch on the CPU with the embeddings of its text, if those are offloaded, so that no step waits for them."""
    embedding = model.embed_text_tokens
    return batch | {"text": embedding(batch["input_ids"])} if isinstance(embedding, OffloadedEmbedding) else batch
