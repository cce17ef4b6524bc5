"""The graphics cards a voice is usually trained on: what they hold, how fast they are, what an hour of them costs."""

import re
from dataclasses import dataclass

PRICES = "Modal's list prices of late 2025, which may have changed"


@dataclass(frozen=True)
class Gpu:
    name: str
    pattern: str
    """Finds the card in the name that torch gives it."""
    memory: float
    """GB as torch reports them, which is a little less than the box says."""
    arithmetic: float
    """Dense 16-bit TFLOP/s of the tensor cores, as NVIDIA's data sheet has them."""
    bandwidth: float
    """GB/s of its memory."""
    price: float
    """Dollars an hour."""


GPUS = (
    Gpu("T4", r"\bT4\b", 15.6, 65, 320, 0.59),
    Gpu("L4", r"\bL4\b", 23.6, 121, 300, 0.80),
    # AWS's own variant has 70, not the 125 of the A10
    Gpu("A10G", r"\bA10G\b", 23.6, 70, 600, 1.10),
    Gpu("A100 40 GB", r"\bA100\b.*\b40GB\b", 42.3, 312, 1555, 2.10),
    Gpu("A100 80 GB", r"\bA100\b.*\b80GB\b", 85.0, 312, 2039, 2.50),
    Gpu("H100", r"\bH100\b", 85.0, 989, 3350, 3.95),
    Gpu("H200", r"\bH200\b", 150.0, 989, 4800, 4.54),
)


def match(machine: str) -> Gpu | None:
    """The card in a machine as `runtime.machine` describes it; None for a machine without one of these."""
    return next((card for card in GPUS if re.search(card.pattern, machine)), None)
