"""Whether to compile, and compiling layer by layer: one kernel where there were six, after a minute or two of waiting."""

import torch
from torch.utils._triton import has_triton

from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.runtime import Runtime

PAYS_FROM = 600
"""Micro-batches from which a run is faster with the time of compiling counted; reckoned, not measured: compiling takes
about 90 s and a compiled micro-batch of CSM-1B is about 0.15 s faster on an L4, 0.03 s on an A100."""


def choose(recipe: Recipe, runtime: Runtime) -> tuple[bool, str]:
    """Whether to compile, and why."""
    count = recipe.steps * recipe.accumulation
    if recipe.compile == "yes":
        if runtime.device == "cuda" and not has_triton():
            raise Problem("compile is 'yes', but torch finds no Triton, which writes the kernels. Install Triton, or say "
                          "--compile no.")
        return True, "asked for; the first steps take a minute or two"
    if recipe.compile == "no":
        return False, "as asked"
    if runtime.device != "cuda":
        return False, f"on {runtime.device} it would hardly be faster"
    if not has_triton():
        return False, "torch finds no Triton, which writes the kernels"
    if count < PAYS_FROM:
        return False, f"{count} micro-batches are too few to win back a minute or two; from {PAYS_FROM} on they are enough"
    return True, f"{count} micro-batches win back the minute or two that the first of them take longer"


def layers(model: torch.nn.Module) -> None:
    """Compile each layer of a CSM by itself, on its first call, for batches of any size."""
    for layer in (*model.backbone_model.layers, *model.depth_decoder.model.layers):
        layer.compile(dynamic=True)
