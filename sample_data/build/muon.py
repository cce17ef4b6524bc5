"""One optimizer out of two: Muon for the matrices inside the layers, AdamW for tables, heads and norms."""

import torch
from torch import nn

BETAS = (0.9, 0.95)


class MuonAdamW(torch.optim.Optimizer):
    """Both at one learning rate: Muon's updates are scaled to the size that AdamW's have."""

    def __init__(self, model: nn.Module, rate: float, decay: float):
        inside = {weight for name, weight in model.named_parameters() if ".layers." in name and weight.dim() == 2}
        outside = [weight for weight in model.parameters() if weight not in inside]
        inside = [weight for weight in model.parameters() if weight in inside]
        self.parts = (torch.optim.Muon(inside, rate, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
                      torch.optim.AdamW(outside, rate, betas=BETAS, weight_decay=decay,
                                        fused=outside[0].device.type != "mps"))
        # the very groups of the two, so that a schedule that sets the rate here sets it there
        super().__init__([group for part in self.parts for group in part.param_groups], {})

    @torch.no_grad()
    def step(self, closure=None):
        if closure is not None:
            raise ValueError("a closure would have to be evaluated for two optimizers")
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]
