"""Whether to compile, and compiling layer by layer: one kernel where there were six, after a minute or two of waiting."""

import torch
from torch.utils._triton import has_triton

from tts_kit.config import Config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError

MIN_STEPS_TO_COMPILE = 600
"""Micro-batches from which a run is faster with the time of compiling counted; reckoned, not measured: compiling takes
about 90 s and a compiled micro-batch of CSM-1B is about 0.15 s faster on an L4, 0.03 s on an A100."""


def should_compile(config: Config, device_config: DeviceConfig) -> tuple[bool, str]:
    """Whether to compile, and why."""
    count = config.steps * config.gradient_accumulation_steps
    if config.compile == "yes":
        if device_config.device == "cuda" and not has_triton():
            raise KitError("compile is 'yes', but torch finds no Triton, which writes the kernels. Install Triton, or say "
                          "--compile no.")
        return True, "asked for; the first steps take a minute or two"
    if config.compile == "no":
        return False, "as asked"
    if device_config.device != "cuda":
        return False, f"on {device_config.device} it would hardly be faster"
    if not has_triton():
        return False, "torch finds no Triton, which writes the kernels"
    if count < MIN_STEPS_TO_COMPILE:
        return False, f"{count} micro-batches are too few to win back a minute or two; from {MIN_STEPS_TO_COMPILE} on they are enough"
    return True, f"{count} micro-batches win back the minute or two that the first of them take longer"


def compile_layers(model: torch.nn.Module) -> None:
    """Compile each layer of a CSM by itself, on its first call, for batches of any size."""
    for layer in (*model.backbone_model.layers, *model.depth_decoder.model.layers):
        layer.compile(dynamic=True)
