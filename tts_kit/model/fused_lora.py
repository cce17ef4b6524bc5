"""PEFT's LoRA projection with less traffic: in the precision of its input, scaled and added in the product itself."""

import torch
from peft.tuners.lora import layer as peft_layer
from torch.nn.functional import linear


class FusedLoraLinear(peft_layer.Linear):
    """A projection of PEFT in every other respect. PEFT would take inputs to float32, and scale and add in passes of their
    own, which together move more bytes than the products."""

    def forward(self, x: torch.Tensor, *arguments, **options) -> torch.Tensor:
        names = [name for name in self.active_adapters if name in self.lora_A]
        if self.disable_adapters or self.merged or len(names) != 1 or arguments or options:
            return super().forward(x, *arguments, **options)
        name, = names
        down = linear(x, self.lora_A[name].weight.to(x.dtype)).flatten(0, -2)
        up = self.lora_B[name].weight.to(down.dtype)
        plain = self.base_layer(x)
        return torch.addmm(plain.flatten(0, -2), down, up.T, alpha=self.scaling[name]).view_as(plain)


def fuse_lora_layers(model: torch.nn.Module) -> torch.nn.Module:
    """Let plain LoRA projections compute this way; others, such as another engine's, are left as they are."""
    for module in model.modules():
        if type(module) is peft_layer.Linear and not module.lora_variant and not any(module.lora_bias.values()) and all(
                isinstance(dropout, torch.nn.Identity) for dropout in module.lora_dropout.values()):
            module.__class__ = FusedLoraLinear
    return model
