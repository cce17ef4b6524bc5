"""Combine two optimizers in one: Muon for the matrices inside the layers, AdamW for embeddings, heads and norms."""

import torch
from torch import nn

ADAMW_BETAS = (0.9, 0.95)


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW with one learning rate: Muon's updates are scaled to the size of AdamW's."""

    def __init__(self, model: nn.Module, learning_rate: float, weight_decay: float):
        matrix_set = {weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2}
        other_weights = [weight for weight in model.parameters() if weight not in matrix_set]
        matrices = [weight for weight in model.parameters() if weight in matrix_set]
        self.optimizers = (torch.optim.Muon(matrices, learning_rate, weight_decay=weight_decay,
                                            adjust_lr_fn="match_rms_adamw"),
                           torch.optim.AdamW(other_weights, learning_rate, betas=ADAMW_BETAS, weight_decay=weight_decay,
                                             fused=other_weights[0].device.type != "mps"))
        # the same group objects as in the two optimizers, so that a schedule that sets the rate here sets it there
        super().__init__([group for optimizer in self.optimizers for group in optimizer.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("a closure would be evaluated once for each of the two optimizers")
        for optimizer in self.optimizers:
            optimizer.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"optimizers": [optimizer.state_dict() for optimizer in self.optimizers]}

    def load_state_dict(self, state_dict: dict) -> None:
        for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.param_groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
