"""Everything a run can be told, in one frozen object whose defaults stand only here."""

import ast
import dataclasses
import inspect
import itertools
import json
from dataclasses import dataclass
from pathlib import Path

from tts_kit.errors import KitError
from tts_kit.io import read_json, write_text
from tts_kit.run import Run

CONFIG_FILE = "recipe.json"
LORA_TARGETS = ("both", "backbone", "depth")
BACKENDS = ("auto", "peft", "unsloth")
COMPILE = ("auto", "yes", "no")
CHECKPOINT_DEFAULT = -1.0
"""A sampling field that is left to the base."""
RESUME_MAY_CHANGE = ("gradient_checkpointing", "offload_text_embeddings", "compile")
"""Fields that change what a training costs and not what comes of it: one that has begun may go on with others."""


@dataclass(frozen=True)
class Config:
    base: str = "sesame/csm-1b"
    """Model to start from: a hub id (sesame/csm-1b, unsloth/csm-1b) or a folder."""
    revision: str = ""
    """Hub revision of the base, empty for the newest."""
    speaker: str = ""
    """Which speaker of the data to learn, empty when there is only one."""
    split_seed: int = 3407
    """Seed of the choice of held-out recordings."""
    seed: int = 3407
    """Seed of the adapter's start, of the order of clips and of the sampled depth frames."""

    max_seconds: float = 30.0
    """Longest clip accepted."""
    max_characters: int = 600
    """Longest transcript accepted."""
    held_out: float = 0.1
    """Share of the clips kept for evaluation, whole recordings where there are several."""

    rank: int = 32
    """LoRA rank: how much the adapter can say."""
    alpha: float = 32.0
    """LoRA alpha; alpha / rank scales the adapter."""
    lora_targets: str = "both"
    """Which part learns: both, backbone or depth."""

    steps: int = 200
    """Optimizer steps."""
    learning_rate: float = 2e-4
    """Peak learning rate."""
    warmup_steps: int = 10
    """Steps of linear warm-up before the linear decay."""
    weight_decay: float = 0.001
    """AdamW weight decay."""
    tokens_per_batch: int = 1400
    """Positions (text and frames) in one micro-batch; about eight clips of ten seconds."""
    gradient_accumulation_steps: int = 1
    """Micro-batches per optimizer step."""
    packing: bool = True
    """Lay clips end to end in one row instead of padding them side by side."""
    context_probability: float = 0.0
    """Share of training clips that are preceded by another clip of the voice, which is heard but not scored."""
    depth_frame_fraction: float = 1 / 16
    """Share of frames that train the depth decoder, drawn afresh each step."""
    depth_loss_weight: float = 1.0
    """Weight of the depth loss beside the backbone loss."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: slower, less memory."""
    offload_text_embeddings: bool = False
    """Keep the text embeddings in main memory, half a gigabyte for CSM-1B; on cards below 12 GB they always are."""
    compile: str = "auto"
    """Compile the layers: yes, no, or auto, which does where a run is long enough to win back the minutes it takes."""
    backend: str = "auto"
    """peft (transformers and PEFT), unsloth, or auto."""

    eval_steps: int = 50
    """Steps between evaluations on held-out clips; the first is before any training."""
    sample_steps: int = 100
    """Steps between spoken samples of sample_texts; 0 for none."""
    save_steps: int = 50
    """Steps between checkpoints."""
    sample_texts: tuple[str, ...] = ("The ferry to Oslo leaves at half past seven.", "Where did Laura put the keys?")
    """Sentences spoken with fixed seeds during training."""
    generation_eval_steps: int = 0
    """Steps between listens: judges hear the kit's own sentences, and the earliest step as good as the best is kept
    instead of the last; 0 for never. Needs judges, and each time about as long as it takes to say twelve sentences
    and write them down."""
    early_stopping_patience: int = 0
    """Listens without a better one after which the training ends early; 0 for never."""

    temperature: float = CHECKPOINT_DEFAULT
    """Sampling temperature of codebook 0; 0 is greedy, -1 what the base recommends."""
    depth_temperature: float = CHECKPOINT_DEFAULT
    """Sampling temperature of the other codebooks; 0 is greedy, -1 what the base recommends."""
    top_k: int = int(CHECKPOINT_DEFAULT)
    """Candidates kept when sampling; -1 for as many as the base recommends."""

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, kind = getattr(self, field.name), type(field.default)
            number = kind is float and isinstance(value, int) and not isinstance(value, bool)
            _require(type(value) is kind or number, field.name, value, f"of type {kind.__name__}")
        texts = self.sample_texts
        _require(texts and all(isinstance(each, str) for each in texts), "sample_texts", texts, "a tuple of sentences")
        positive = ("max_seconds", "max_characters", "rank", "alpha", "learning_rate", "tokens_per_batch",
                    "gradient_accumulation_steps", "depth_frame_fraction", "steps", "eval_steps", "save_steps")
        for name in positive:
            _require(getattr(self, name) > 0, name, getattr(self, name), "a number above 0")
        for name in ("warmup_steps", "sample_steps", "generation_eval_steps", "early_stopping_patience", "weight_decay", "depth_loss_weight"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name, least in (("temperature", 0), ("depth_temperature", 0), ("top_k", 1)):
            value = getattr(self, name)
            _require(value == CHECKPOINT_DEFAULT or value >= least, name, value, f"{least} or more, or -1 for what the base recommends")
        _require(self.depth_frame_fraction <= 1, "depth_frame_fraction", self.depth_frame_fraction, "at most 1")
        _require(0 < self.held_out < 1, "held_out", self.held_out, "between 0 and 1")
        _require(0 <= self.context_probability <= 1, "context_probability", self.context_probability, "between 0 and 1")
        _require(self.lora_targets in LORA_TARGETS, "lora_targets", self.lora_targets, f"one of {', '.join(LORA_TARGETS)}")
        _require(self.backend in BACKENDS, "backend", self.backend, f"one of {', '.join(BACKENDS)}")
        _require(self.compile in COMPILE, "compile", self.compile, f"one of {', '.join(COMPILE)}")

    def but(self, **changes) -> "Config":
        """The same recipe with some fields changed."""
        return dataclasses.replace(self, **changes)

    def differences(self, other: "Config") -> dict[str, tuple]:
        """Fields that differ, with both values."""
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def read_config(path: Path) -> Config:
    """A recipe saved by `to_json`."""
    saved = read_json(path, "Restore it, or choose another run name.")
    known = {field.name for field in dataclasses.fields(Config)}
    if strange := sorted(set(saved) - known):
        raise KitError(f"{path} has fields this version does not know: {', '.join(strange)}. "
                      "It was written by another version of the kit; use that one, or remove the fields.")
    saved["sample_texts"] = tuple(saved.get("sample_texts", Config.sample_texts))
    return Config(**saved)


def load_config(run: Run, **given) -> Config:
    """The recipe a run has had so far, changed by what is given now."""
    saved = [path for path in (run.training / CONFIG_FILE, run.folder / CONFIG_FILE) if path.exists()]
    return (read_config(saved[0]) if saved else Config()).but(**given)


def save_config(run: Run, config: Config) -> None:
    """Keep the recipe of a finished stage for the stages after it."""
    write_text(run.folder / CONFIG_FILE, config.to_json())


def field_help() -> dict[str, str]:
    """What each field means: the docstring that follows it."""
    body = ast.parse(inspect.getsource(Config)).body[0].body
    return {field.target.id: text.value.value for field, text in itertools.pairwise(body)
            if isinstance(field, ast.AnnAssign) and isinstance(text, ast.Expr)}


def _require(holds: bool, name: str, seen, wanted: str) -> None:
    if not holds:
        raise KitError(f"recipe: {name} is {seen!r}; it must be {wanted}.")
