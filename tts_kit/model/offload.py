"""The text embeddings in main memory: half a gigabyte that a small GPU has better uses for."""

import torch


class OffloadedEmbedding(torch.nn.Module):
    """Stands where the table was; ids go to main memory and rows come back."""

    def __init__(self, table: torch.nn.Embedding):
        super().__init__()
        self.held = (table.cpu(),)  # in a tuple, where no `.to(device)` finds it

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.held[0](ids.cpu()).to(ids.device)


def offload_text_embeddings(model: torch.nn.Module) -> None:
    """Keep the text embeddings of a CSM in main memory from now on."""
    model.embed_text_tokens = OffloadedEmbedding(model.embed_text_tokens)


def prefetch_text(model: torch.nn.Module, batch: dict) -> dict:
    """A batch on its way to the device, with the rows of its text if the table is far, so that nobody waits for them."""
    table = model.embed_text_tokens
    return batch | {"text": table(batch["input_ids"])} if isinstance(table, OffloadedEmbedding) else batch
