"""Settings of a codec training; the defaults suit two CPU cores, a GPU needs a larger batch and discriminators."""

import ast
import dataclasses
import inspect
from dataclasses import dataclass

from tts_kit.errors import KitError


@dataclass(frozen=True)
class CodecConfig:
    shape: str = "tiny"
    """Model shape whose codec is trained: a name in `model_shapes.SHAPES`."""
    seed: int = 0
    """Seed of weights, crops and codebooks."""
    init_from: str = ""
    """Folder of a trained codec whose weights and codebooks are the initial ones; random weights if empty."""
    decoder_only: bool = False
    """Train only the decoder, so that the codes of `init_from` do not change."""
    steps: int = 0
    """Optimizer steps; if 0, `minutes` decides. Two trainings are equal to the bit only with a number of steps."""
    minutes: float = 40.0
    """Duration of the training when `steps` is 0; time before an interruption counts."""
    processes: int = 1
    """Processes that share a step, each with one thread; two are faster than two threads."""
    batch_size: int = 8
    """Crops in one step of one process."""
    crop_seconds: float = 1.28
    """Length of a crop."""
    speed_perturbation: float = 0.1
    """Half of the crops are resampled to play up to this much faster or slower, which adds voices."""
    learning_rate: float = 1e-3
    """Peak learning rate."""
    decay_start: float = 0.67
    """Share of the training after which the learning rate decays linearly, to 3 % of its peak."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    unquantized_steps: int = 300
    """First steps, in which the latents are not quantized."""
    kmeans_seconds: float = 1200.0
    """Speech whose latents initialize the codebooks, by k-means."""
    ema_decay: float = 0.99
    """Decay of the moving averages that are the codes."""
    weight_ema_decay: float = 0.999
    """Decay of the moving average of the weights, which is exported."""
    all_codebooks: float = 0.8
    """Probability that a crop is decoded from all codebooks; the others use a random number of them."""
    commitment_weight: float = 0.25
    """Weight of the distance between latents and their codes."""
    anchor_weight: float = 0.1
    """Weight of the penalty for latents that wander, grow or lie in few dimensions."""
    waveform_weight: float = 1.0
    """Weight of the absolute difference of the samples."""
    teacher_weight: float = 2.0
    """Weight of the cosine distance between the first codebook's output and a teacher's features, if there is a teacher."""
    discriminator_start: float = 1.0
    """Share of the training after which discriminators are used; 1 for never."""
    discriminator_channels: int = 16
    """Width of the discriminators."""
    discriminator_seconds: float = 0.64
    """Length of the part of each crop that the discriminators get."""
    discriminator_learning_rate: float = 8e-4
    """Learning rate of the discriminators."""
    adversarial_weight: float = 0.7
    """Norm of the adversarial loss's gradient at the waves, as a multiple of that of the reconstruction losses."""
    feature_matching_weight: float = 1.0
    """The same for the distance between the discriminators' features of decoded and of real speech."""
    save_steps: int = 500
    """Steps between checkpoints."""
    eval_steps: int = 2000
    """Steps between evaluations on held-out speech; each also exports the codec."""

    def __post_init__(self):
        positive = ("minutes", "batch_size", "crop_seconds", "learning_rate", "kmeans_seconds", "save_steps", "eval_steps",
                    "discriminator_channels", "discriminator_seconds", "discriminator_learning_rate", "processes")
        for name in positive:
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("steps", "warmup_steps", "unquantized_steps", "commitment_weight", "anchor_weight", "waveform_weight",
                     "teacher_weight", "adversarial_weight", "feature_matching_weight"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("ema_decay", "weight_ema_decay", "all_codebooks", "discriminator_start", "decay_start"):
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        self._require(not self.decoder_only or self.init_from, "decoder_only", "given together with init_from")
        self._require(0 <= self.speed_perturbation < 0.5, "speed_perturbation", "at least 0 and below 0.5")

    def _require(self, is_valid: bool, name: str, requirement: str) -> None:
        if not is_valid:
            raise KitError(f"codec training: {name} is {getattr(self, name)!r}; it must be {requirement}.")

    def replace(self, **changes) -> "CodecConfig":
        """Return a copy with some fields changed."""
        return dataclasses.replace(self, **changes)

    def check_same(self, saved: dict, path: object) -> None:
        """Raise an error if the training in `path` was started with other settings, `saved`."""
        settings = dataclasses.asdict(self)
        if different := sorted(name for name in settings | saved if settings.get(name) != saved.get(name)):
            differences = "; ".join(f"{name} was {saved.get(name)!r}, now it is {settings.get(name)!r}"
                                    for name in different)
            raise KitError(f"{path} was trained with other settings: {differences}. Choose another --out, or give the same "
                          "values to continue this training.")


def explanations() -> list[str]:
    """Return the docstring of each field, in their order."""
    body = ast.parse(inspect.getsource(CodecConfig)).body[0].body
    return [text.value.value for text in body if isinstance(text, ast.Expr)]
