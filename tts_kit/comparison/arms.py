"""The arms of a comparison: how each one speaks, and the settings that an arm can change."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts_kit.config import MAX_GUIDANCE, MAX_TAKES
from tts_kit.errors import KitError

Pairs = Sequence[tuple[str, str]]  # names of arms that are compared, the first one with the second


@dataclass(frozen=True)
class ArmInfo:
    description: str  # for the column of the page
    name: str  # in the sentences of the verdict
    short_name: str  # in the headline, and beside the players of the model card
    adapter: bool = False  # whether the fine-tuned adapter speaks
    reference: bool = False  # whether the model is prompted with a reference clip
    generated: bool = True  # whether the model speaks at all; otherwise the clips are recordings of the voice


ARMS = {  # in the order of columns and tables
    "ground_truth": ArmInfo("The recording itself.", "the recording", "the recording", generated=False),
    "codec": ArmInfo("The recording encoded and decoded by the codec: the upper bound of every generated arm.",
                     "resynthesis by the codec", "resynthesis", generated=False),
    "base": ArmInfo("The model as downloaded.", "the base model", "the base model"),
    "clone": ArmInfo("The base model with a reference clip of the voice (zero-shot cloning).",
                     "zero-shot cloning", "cloning", reference=True),
    "finetuned": ArmInfo("The fine-tuned model.", "the fine-tuned model", "fine-tuning", adapter=True),
    "finetuned+clone": ArmInfo("The fine-tuned model with the reference clip.",
                               "fine-tuning with the reference clip", "fine-tuning with a reference", adapter=True,
                               reference=True),
}
GIVEN_ARMS = tuple(name for name, info in ARMS.items() if not info.generated)
GENERATED_ARMS = tuple(name for name, info in ARMS.items() if info.generated)
OLD_NAMES = {"real": "ground_truth", "tuned": "finetuned", "tuned+clone": "finetuned+clone"}
"""Spellings of earlier versions, which are accepted on input."""


@dataclass(frozen=True)
class Setting:
    """A setting that an arm can change from its default."""
    minimum: float
    maximum: float
    integer: bool = False
    needs: str = ""  # "adapter" or "reference", without which the setting has no effect


SETTINGS = {"temperature": Setting(0, 10), "depth_temperature": Setting(0, 10),
            "guidance": Setting(0, MAX_GUIDANCE), "depth_guidance": Setting(0, 1),
            "reference_guidance": Setting(0, MAX_GUIDANCE, needs="reference"),
            "best_of": Setting(1, MAX_TAKES, integer=True),  # takes of a sentence, among which models choose
            "strength": Setting(0, 10, needs="adapter"),  # scale of the adapter: 0 is the base, 1 the adapter as trained
            "checkpoint": Setting(0, 10 ** 9, integer=True, needs="adapter"),  # step of the training whose adapter speaks
            "references": Setting(1, 8, integer=True, needs="reference"),  # number of reference clips
            "reference_seconds": Setting(1, 60, needs="reference")}  # length of the clips that are chosen


@dataclass(frozen=True)
class Arm:
    """One way to speak with the model of the voice."""
    name: str  # as it is written: finetuned, or finetuned:strength=0.5
    settings: tuple[tuple[str, float], ...] = ()  # the settings that differ from the defaults

    @property
    def info(self) -> ArmInfo:
        return ARMS[self.name.partition(":")[0]]

    @property
    def description(self) -> str:
        changes = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.settings)
        return f"{self.info.description} With {changes}." if changes else self.info.description


def kind_of(text: str) -> str:
    """Return the name of an arm without its settings, and in the spelling of this version."""
    kind = text.partition(":")[0]
    return OLD_NAMES.get(kind, kind)


def parse(text: str) -> Arm:
    """Return the arm of a text such as clone or finetuned:strength=0.5,temperature=0.3, whose kind is a generated one."""
    kind, settings = kind_of(text), {}
    for assignment in filter(None, text.partition(":")[2].split(",")):
        name, _, value = assignment.partition("=")
        if name in settings:
            raise KitError(f"the arm {text[:80]!r} sets {name} twice. Give each setting once.")
        settings[name] = _parse_setting(kind, name, value)
    assignments = ",".join(f"{name}={value:g}" for name, value in sorted(settings.items()))
    return Arm(kind + ":" * bool(settings) + assignments, tuple(sorted(settings.items())))


def _parse_setting(kind: str, name: str, text: str) -> float:
    if name not in SETTINGS:
        raise KitError(f"there is no setting {name[:40]!r}; settings are {', '.join(SETTINGS)}. Choose among them.")
    setting = SETTINGS[name]
    if setting.needs and not getattr(ARMS[kind], setting.needs):
        fitting = [other for other, info in ARMS.items() if getattr(info, setting.needs)]
        raise KitError(f"the arm {kind} has no {name}, which is a setting of {' and '.join(fitting)}.")
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not setting.minimum <= value <= setting.maximum or (setting.integer and value != int(value)):
        raise KitError(f"{name} is {text[:20]!r}; wanted {'an integer' if setting.integer else 'a number'} from "
                       f"{setting.minimum:g} to {setting.maximum:g}.")
    return value
