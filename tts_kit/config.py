"""Every setting of a run in one frozen object: defaults, help texts, validation, saving and loading."""

import dataclasses
import json
import operator
from dataclasses import dataclass
from pathlib import Path

from tts_kit.errors import KitError
from tts_kit.io import read_json, write_text
from tts_kit.run import Run

CONFIG_FILE = "config.json"
LORA_TARGETS = ("both", "backbone", "depth")
TRACKERS = ("none", "trackio", "wandb", "tensorboard")
MAX_GUIDANCE, MAX_TAKES = 5.0, 8  # takes of a sentence, the best of which is kept
CHECKPOINT_DEFAULT = -1.0  # value of a sampling field that is left to the checkpoint's generation config
EPOCHS, MIN_STEPS, MAX_STEPS = 7, 100, 2000
"""Passes over the training clips that the default number of steps makes, and its limits."""
RESUME_MAY_CHANGE = ("gradient_checkpointing", "offload_text_embeddings", "compile", "report_to")
"""Fields that do not change what a training results in: a resumed training may change them."""

LIMITS = {"above": (operator.gt, "above"), "minimum": (operator.ge, "at least"), "below": (operator.lt, "below"),
          "maximum": (operator.le, "at most")}


def setting(group: str, default: object, help: str, choices: tuple | None = None, **limits: float) -> dataclasses.Field:
    """A dataclass field with its group, help, choices and limits: the command line reads these, and `Config` checks them."""
    return dataclasses.field(default=default, metadata=dict(group=group, help=help, choices=choices, limits=limits))


@dataclass(frozen=True)
class Config:
    base: str = setting("base model", "sesame/csm-1b", "hub id (sesame/csm-1b, unsloth/csm-1b) or folder")
    revision: str = setting("base model", "", "revision on the hub; empty: the newest")
    prefix_space: bool = setting("base model", False, "a space between [speaker] and text, as MisoTTS was trained with; "
                                 "kept with the run and the adapter")

    spoken_text: bool = setting("text", True, "give the model 5 km as `five kilometers`, in training and speaking; texts "
                                "stay as they are written. For English: --no-spoken-text for other languages; kept with "
                                "the run and the adapter")
    lexicon: tuple[tuple[str, str], ...] = setting(
        "text", (), "CSV file of words and how they are spoken, for names; kept with the run and the adapter")

    speaker: str = setting("data", "", "speaker to train on; may be empty if there is only one")
    split_seed: int = setting("data", 3407, "seed of the choice of held-out sessions")
    max_seconds: float = setting("data", 30.0, "longest clip accepted, in seconds", above=0)
    max_characters: int = setting("data", 600, "longest transcript accepted", above=0)
    held_out: float = setting("data", 0.1, "share of the clips held out for evaluation; whole sessions if there are several",
                              above=0, below=1)

    rank: int = setting("LoRA", 32, "rank of the adapter", above=0)
    alpha: float = setting("LoRA", 0.0, "the adapter is scaled by alpha / rank (default: alpha is the rank)", above=0)
    lora_targets: str = setting("LoRA", "both", "decoder whose projections get LoRA layers", choices=LORA_TARGETS)

    seed: int = setting("training", 3407, "seed of LoRA initialization, clip order and sampled depth frames")
    steps: int = setting("training", 0, f"optimizer steps; more than before continue a finished training (default: {EPOCHS} "
                         f"passes over the clips, at least {MIN_STEPS} steps, at most {MAX_STEPS})", above=0)
    learning_rate: float = setting("training", 2e-4, "peak learning rate", above=0)
    warmup_steps: int = setting("training", 10, "steps of linear warm-up before the linear decay", minimum=0)
    weight_decay: float = setting("training", 0.001, "AdamW weight decay", minimum=0)
    depth_loss_weight: float = setting("training", 1.0, "weight of the depth loss relative to the backbone loss", minimum=0)
    depth_frame_fraction: float = setting("training", 1 / 16, "share of frames that train the depth decoder, sampled anew "
                                          "each step (compute amortization)", above=0, maximum=1)
    context_probability: float = setting("training", 0.0, "probability that another clip of the speaker precedes a training "
                                         "clip, as context without loss", minimum=0, maximum=1)
    condition_dropout: float = setting("training", 0.0, "probability that a clip is trained without its text, which "
                                       "guidance needs; without context are all but context_probability", minimum=0,
                                       below=1)

    tokens_per_batch: int = setting("memory and speed", 1400, "positions (text and frames) in a micro-batch; 1400 is about "
                                    "eight clips of 10 s", above=0)
    gradient_accumulation_steps: int = setting("memory and speed", 1, "micro-batches per optimizer step", above=0)
    packing: bool = setting("memory and speed", True, "pack clips end to end into one row instead of padding them")
    gradient_checkpointing: bool = setting("memory and speed", False, "recompute activations in the backward pass: slower, "
                                           "less memory")
    offload_text_embeddings: bool = setting("memory and speed", False, "keep the text embeddings in main memory (0.5 GB for "
                                            "CSM-1B); always so on GPUs below 12 GB")
    compile: str = setting("memory and speed", "auto", "torch.compile the layers; auto: if the run is long enough to win "
                           "back the compile time", choices=("auto", "yes", "no"))
    backend: str = setting("memory and speed", "auto", "peft (transformers and PEFT), unsloth, or auto",
                           choices=("auto", "peft", "unsloth"))

    eval_steps: int = setting("evaluation", 50, "steps between evaluations on held-out clips; the first is before training",
                              above=0)
    save_steps: int = setting("evaluation", 50, "steps between checkpoints", above=0)
    sample_steps: int = setting("evaluation", 100, "steps between audio samples of sample_texts; 0: none", minimum=0)
    sample_texts: tuple[str, ...] = setting(
        "evaluation", ("The ferry to Oslo leaves at half past seven.", "Where did Laura put the keys?"),
        "sentences synthesized with fixed seeds during training")
    generation_eval_steps: int = setting("evaluation", 0, "steps between generation evaluations (WER, SIM of synthesized "
                                         "sentences); the earliest checkpoint as good as the best is kept instead of the "
                                         "last; 0: never", minimum=0)
    early_stopping_patience: int = setting("evaluation", 0, "generation evaluations without improvement that stop the "
                                           "training; 0: never", minimum=0)

    report_to: tuple[str, ...] = setting("evaluation", ("none",), "trackers that get losses, samples and generation metrics",
                                         choices=TRACKERS)

    temperature: float = setting("sampling", CHECKPOINT_DEFAULT, "of codebook 0; 0: greedy, -1: the checkpoint's", minimum=0)
    depth_temperature: float = setting("sampling", CHECKPOINT_DEFAULT, "of the other codebooks; 0: greedy, -1: the "
                                       "checkpoint's", minimum=0)
    guidance: float = setting("sampling", CHECKPOINT_DEFAULT, "scale of classifier-free guidance by the text, up to "
                              f"{MAX_GUIDANCE:g}; 1: none, -1: the voice's", minimum=0, maximum=MAX_GUIDANCE)
    reference_guidance: float = setting("sampling", CHECKPOINT_DEFAULT, "the same by the reference clip", minimum=0,
                                        maximum=MAX_GUIDANCE)
    depth_guidance: float = setting("sampling", CHECKPOINT_DEFAULT, "share of the guidance that codebooks other than 0 get, "
                                    "0 to 1", minimum=0, maximum=1)
    top_k: int = setting("sampling", int(CHECKPOINT_DEFAULT), "candidates kept in sampling; -1: the checkpoint's", minimum=1)

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, expected, metadata = getattr(self, field.name), type(field.default), field.metadata
            is_number = expected is float and type(value) is int
            self._require(type(value) is expected or is_number, field.name, f"of type {expected.__name__}")
            if metadata["choices"]:
                values = value if isinstance(value, tuple) else (value,)
                self._require(set(values).issubset(metadata["choices"]), field.name,
                              f"one of {', '.join(metadata['choices'])}")
            for name, limit in metadata["limits"].items():
                is_within, words = LIMITS[name]
                self._require(value == field.default or is_within(value, limit), field.name, f"{words} {limit}")
        self._require(self.sample_texts and all(isinstance(text, str) for text in self.sample_texts), "sample_texts",
                      "a tuple of sentences")
        self._require(all(len(row) == 2 and all(isinstance(cell, str) for cell in row) for row in self.lexicon), "lexicon",
                      "a tuple of (word, spoken as)")
        self._require(self.report_to and ("none" not in self.report_to or len(self.report_to) == 1), "report_to",
                      "none, or names of trackers")

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
    return Config(**{name: tuple(tuple(item) if isinstance(item, list) else item for item in value)
                     if isinstance(value, list) else value for name, value in saved.items()})


def load_config(run: Run, **changes) -> Config:
    """The config stored with a run (of its training, else of its last stage), with `changes` applied."""
    saved = [path for path in (run.training / CONFIG_FILE, run.folder / CONFIG_FILE) if path.exists()]
    return (read_config(saved[0]) if saved else Config()).replace(**changes)


def save_config(run: Run, config: Config) -> None:
    """Store the config of a finished stage for the stages after it."""
    write_text(run.folder / CONFIG_FILE, config.to_json())
