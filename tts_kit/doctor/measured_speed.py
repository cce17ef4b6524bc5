"""What a run's own training took, which is better than any computation."""

import re
from dataclasses import dataclass

from tts_kit.config import CONFIG_FILE, Config, read_config
from tts_kit.doctor import gpus
from tts_kit.doctor.gpus import Gpu
from tts_kit.io import read_json
from tts_kit.model import lora
from tts_kit.run import Run

INDIFFERENT = {"steps", "seed", "speaker", "split_seed", "learning_rate", "warmup_steps", "weight_decay", "alpha",
               "depth_loss_weight", "max_seconds", "max_characters", "held_out", "early_stopping_patience", "temperature", "depth_temperature",
               "top_k"}
"""What a recipe can change without a step taking longer."""


@dataclass(frozen=True)
class Measured:
    machine: str
    seconds: float
    """Of a step, with its share of evaluations, samples and listens."""
    steps: int
    """That were measured."""

    @property
    def name(self) -> str:
        """The graphics card, or the processor of a machine without one."""
        parts = self.machine.split(", ")
        return re.sub(r"\((R|TM)\)", "", parts[3] if len(parts) > 3 else parts[0])[:22]

    @property
    def card(self) -> Gpu | None:
        return gpus.match(self.machine)


def for_run(run: Run, config: Config) -> tuple[Measured | None, str]:
    """What the run's training took if it was one like `recipe`, and a sentence about it."""
    if not (run.adapter / lora.METADATA_FILE).is_file():
        return None, f"{run.folder} holds no finished training yet: no row is measured."
    metrics = read_json(run.adapter / lora.METADATA_FILE, lora.RESTORE).get("metrics", {})
    seconds = metrics.get("seconds_since_start_or_resume")
    steps = metrics.get("steps_since_start_or_resume", metrics.get("steps"))
    if not seconds or not steps:
        return None, f"{run.adapter} does not say how long its training took: no row is measured."
    trained = read_config(run.adapter / CONFIG_FILE)
    changed = {name: both for name, both in config.differences(trained).items() if name not in INDIFFERENT}
    if changed:
        listed = ", ".join(f"{name} {then}" for name, (_, then) in [*changed.items()][:3]) + ", ..." * (len(changed) > 3)
        return None, f"{run.folder} was trained otherwise ({listed}), so that no row is measured."
    found = Measured(metrics.get("machine", "an unknown machine"), seconds / steps, steps)
    return found, (f"measured: {steps} steps of {run.folder} took {seconds:,.0f} s on {found.machine}, with evaluations, "
                   "samples and listens.")
