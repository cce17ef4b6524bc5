"""Every setting of a run in one frozen object: defaults, help texts, validation, saving and loading."""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path

from tts_kit.errors import KitError
from tts_kit.io import read_json, write_text
from tts_kit.run import Run

CONFIG_FILE = "config.json"
LORA_TARGETS = ("both", "backbone", "depth")
BACKENDS = ("auto", "peft", "unsloth")
COMPILE = ("auto", "yes", "no")
CHECKPOINT_DEFAULT = -1.0
"""Value of a sampling field that is left to the checkpoint's generation config."""
RESUME_MAY_CHANGE = ("gradient_checkpointing", "offload_text_embeddings", "compile")
"""Fields that change what a training costs and not its result: a resumed training may change them."""


def setting(default: object, help: str, choices: tuple | None = None) -> dataclasses.Field:
    """A dataclass field with its help text and choices, which the command line reads."""
    return dataclasses.field(default=default, metadata={"help": help, "choices": choices})


@dataclass(frozen=True)
class Config:
    base: str = setting("sesame/csm-1b", "base model: a hub id (sesame/csm-1b, unsloth/csm-1b) or a folder")
    revision: str = setting("", "hub revision of the base model; empty: the newest")
    speaker: str = setting("", "speaker of the data to train on; may be empty if there is only one")
    split_seed: int = setting(3407, "seed of the choice of held-out sessions")
    seed: int = setting(3407, "seed of LoRA initialization, clip order and sampled depth frames")

    max_seconds: float = setting(30.0, "longest clip accepted, in seconds")
    max_characters: int = setting(600, "longest transcript accepted, in characters")
    held_out: float = setting(0.1, "share of the clips held out for evaluation; whole sessions if there are several")

    rank: int = setting(32, "LoRA rank")
    alpha: float = setting(32.0, "LoRA alpha; the adapter is scaled by alpha / rank")
    lora_targets: str = setting("both", "decoder whose projections get LoRA layers", LORA_TARGETS)

    steps: int = setting(200, "optimizer steps")
    learning_rate: float = setting(2e-4, "peak learning rate")
    warmup_steps: int = setting(10, "steps of linear warm-up before the linear decay")
    weight_decay: float = setting(0.001, "AdamW weight decay")
    tokens_per_batch: int = setting(1400, "positions (text and frames) in a micro-batch; 1400 is about eight clips of 10 s")
    gradient_accumulation_steps: int = setting(1, "micro-batches per optimizer step")
    packing: bool = setting(True, "pack clips end to end into one row instead of padding them")
    context_probability: float = setting(0.0, "probability that a training clip is preceded by another clip of the speaker, "
                                              "as context without loss")
    depth_frame_fraction: float = setting(1 / 16, "fraction of frames that train the depth decoder, sampled anew each step "
                                                  "(compute amortization)")
    depth_loss_weight: float = setting(1.0, "weight of the depth loss relative to the backbone loss")
    gradient_checkpointing: bool = setting(False, "recompute activations in the backward pass: slower, less memory")
    offload_text_embeddings: bool = setting(False, "keep the text embeddings in main memory (0.5 GB for CSM-1B); always so "
                                                   "on GPUs below 12 GB")
    compile: str = setting("auto", "torch.compile the layers; auto: if the run is long enough to win back the compile time",
                           COMPILE)
    backend: str = setting("auto", "peft (transformers and PEFT), unsloth, or auto", BACKENDS)

    eval_steps: int = setting(50, "steps between evaluations on held-out clips; the first is before training")
    sample_steps: int = setting(100, "steps between audio samples of sample_texts; 0: none")
    save_steps: int = setting(50, "steps between checkpoints")
    sample_texts: tuple[str, ...] = setting(
        ("The ferry to Oslo leaves at half past seven.", "Where did Laura put the keys?"),
        "sentences synthesized with fixed seeds during training")
    generation_eval_steps: int = setting(0, "steps between generation evaluations (WER, SIM of synthesized sentences); the "
                                            "earliest checkpoint as good as the best is kept instead of the last; 0: never")
    early_stopping_patience: int = setting(0, "generation evaluations without improvement that stop the training; 0: never")

    temperature: float = setting(CHECKPOINT_DEFAULT, "sampling temperature of codebook 0; 0: greedy, -1: the checkpoint's")
    depth_temperature: float = setting(CHECKPOINT_DEFAULT, "sampling temperature of the other codebooks; 0: greedy, -1: the "
                                                           "checkpoint's")
    top_k: int = setting(int(CHECKPOINT_DEFAULT), "candidates kept in sampling; -1: the checkpoint's")

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, expected = getattr(self, field.name), type(field.default)
            is_number = expected is float and isinstance(value, int) and not isinstance(value, bool)
            self._require(type(value) is expected or is_number, field.name, f"of type {expected.__name__}")
            if choices := field.metadata["choices"]:
                self._require(value in choices, field.name, f"one of {', '.join(choices)}")
        self._require(self.sample_texts and all(isinstance(text, str) for text in self.sample_texts), "sample_texts",
                      "a tuple of sentences")
        for name in ("max_seconds", "max_characters", "rank", "alpha", "learning_rate", "tokens_per_batch", "steps",
                     "eval_steps", "gradient_accumulation_steps", "depth_frame_fraction", "save_steps"):
            self._require(getattr(self, name) > 0, name, "a number above 0")
        for name in ("warmup_steps", "sample_steps", "generation_eval_steps", "early_stopping_patience", "weight_decay",
                     "depth_loss_weight"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name, minimum in (("temperature", 0), ("depth_temperature", 0), ("top_k", 1)):
            value = getattr(self, name)
            self._require(value == CHECKPOINT_DEFAULT or value >= minimum, name,
                          f"{minimum} or more, or -1 for the checkpoint's value")
        self._require(self.depth_frame_fraction <= 1, "depth_frame_fraction", "at most 1")
        self._require(0 < self.held_out < 1, "held_out", "between 0 and 1")
        self._require(0 <= self.context_probability <= 1, "context_probability", "between 0 and 1")

    def _require(self, condition: object, name: str, expected: str) -> None:
        if not condition:
            raise KitError(f"config: {name} is {getattr(self, name)!r}; it must be {expected}.")

    def replace(self, **changes) -> "Config":
        """The same config with some fields changed."""
        return dataclasses.replace(self, **changes)

    def differences(self, other: "Config") -> dict[str, tuple]:
        """Fields that differ, with both values."""
        return {field.name: (getattr(self, field.name), getattr(other, field.name)) for field in dataclasses.fields(self)
                if getattr(self, field.name) != getattr(other, field.name)}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """Read a config that `to_json` wrote."""
    saved = read_json(path, "Restore it, or choose another run name.")
    if unknown := sorted(set(saved) - {field.name for field in dataclasses.fields(Config)}):
        raise KitError(f"{path} has fields that this version does not know: {', '.join(unknown)}. "
                       "It was written by another version of tts_kit; use that one, or remove the fields.")
    saved["sample_texts"] = tuple(saved.get("sample_texts", Config.sample_texts))
    return Config(**saved)


def load_config(run: Run, **changes) -> Config:
    """The config stored with a run (of its training, else of its last stage), with `changes` applied."""
    saved = [path for path in (run.training / CONFIG_FILE, run.folder / CONFIG_FILE) if path.exists()]
    return (read_config(saved[0]) if saved else Config()).replace(**changes)


def save_config(run: Run, config: Config) -> None:
    """Store the config of a finished stage for the stages after it."""
    write_text(run.folder / CONFIG_FILE, config.to_json())
