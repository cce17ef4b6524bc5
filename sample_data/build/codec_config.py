"""What a codec training can be told; defaults are for two CPU cores, a GPU wants a larger `batch` and an adversary."""

import ast
import dataclasses
import inspect
from dataclasses import dataclass

from tts_kit.errors import KitError


@dataclass(frozen=True)
class CodecRecipe:
    shape: str = "tiny"
    """Whose codec: a name in `shape.SHAPES`."""
    seed: int = 0
    """Decides weights, crops and codebooks."""
    begin_with: str = ""
    """Folder of a trained codec whose weights and codebooks this training begins with, instead of with nothing."""
    keep_codes: bool = False
    """Train only what turns codes into sound, so that codes made with `begin_with` stay what they are."""
    steps: int = 0
    """Optimizer steps; 0 lets `minutes` decide. Only counted steps make two trainings equal to the bit."""
    minutes: float = 40.0
    """How long to train when `steps` is 0; time before an interruption counts."""
    batch: int = 8
    """Crops in one step."""
    seconds: float = 1.28
    """Length of a crop."""
    speed: float = 0.1
    """Half of the crops are played up to this much faster or slower, which makes more voices of the ones there are."""
    learning_rate: float = 1e-3
    """Peak learning rate; a cosine leads down to a twentieth of it."""
    warmup_steps: int = 100
    """Steps of linear warm-up."""
    free_steps: int = 300
    """First steps, in which the latents pass without being quantized."""
    pool_seconds: float = 1200.0
    """Speech whose latents start the codebooks, by k-means."""
    decay: float = 0.99
    """Of the running means that are the codes."""
    all_levels: float = 0.5
    """Share of crops that are rebuilt from all codebooks; the others from a random number of them."""
    commitment: float = 0.25
    """Weight of the latents' distance to their codes."""
    wave_weight: float = 1.0
    """Weight of the absolute difference of the samples."""
    teacher_weight: float = 2.0
    """Weight of the first codebook's likeness to a teacher's features, where there is a teacher."""
    adversary_from: float = 1.0
    """Share of the training after which discriminators join; 1 for never."""
    adversary_channels: int = 16
    """Width of the discriminators."""
    adversary_seconds: float = 0.64
    """How much of every crop the discriminators hear."""
    adversary_rate: float = 5e-4
    """Peak learning rate of the discriminators."""
    deceit_weight: float = 0.1
    """Weight of being taken for real."""
    likeness_weight: float = 0.3
    """Weight of having the discriminators' features of the real."""
    save_steps: int = 500
    """Steps between checkpoints."""
    eval_steps: int = 2000
    """Steps between evaluations on held-out speech; the codec so far is exported with them."""

    def __post_init__(self):
        positive = ("minutes", "batch", "seconds", "learning_rate", "pool_seconds", "save_steps", "eval_steps",
                    "adversary_channels", "adversary_seconds", "adversary_rate")
        for name in positive:
            self._require(getattr(self, name) > 0, name, "above 0")
        for name in ("steps", "warmup_steps", "free_steps", "commitment", "wave_weight", "teacher_weight",
                     "deceit_weight", "likeness_weight"):
            self._require(getattr(self, name) >= 0, name, "0 or more")
        for name in ("decay", "all_levels", "adversary_from"):
            self._require(0 <= getattr(self, name) <= 1, name, "between 0 and 1")
        self._require(not self.keep_codes or self.begin_with, "keep_codes", "given together with begin_with")
        self._require(0 <= self.speed < 0.5, "speed", "at least 0 and below 0.5")

    def _require(self, holds: bool, name: str, wanted: str) -> None:
        if not holds:
            raise KitError(f"codec training: {name} is {getattr(self, name)!r}; it must be {wanted}.")

    def replace(self, **changes) -> "CodecRecipe":
        """The same recipe with some fields changed."""
        return dataclasses.replace(self, **changes)

    def agree(self, saved: dict, where: object) -> None:
        """Make sure that a training begun with the fields `saved` is this one."""
        mine = dataclasses.asdict(self)
        if different := sorted(name for name in mine | saved if mine.get(name) != saved.get(name)):
            listed = "; ".join(f"{name} is {mine.get(name)!r}, there it is {saved.get(name)!r}" for name in different)
            raise KitError(f"{where} was begun with other settings: {listed}. Choose another --out, or give the same "
                          "values to go on with this one.")


def explanations() -> list[str]:
    """What each field means, in their order: the docstring that follows it."""
    body = ast.parse(inspect.getsource(CodecRecipe)).body[0].body
    return [text.value.value for text in body if isinstance(text, ast.Expr)]
