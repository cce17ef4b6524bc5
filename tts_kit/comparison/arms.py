"""The ways to say a sentence: the recording, the codec's ceiling, base, clone, finetuned and both; and their knobs."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from tts_kit.data.manifest import TRAIN, Utterance
from tts_kit.errors import KitError
from tts_kit.model import lora
from tts_kit.run import Run
from tts_kit.speech.speak import Reference, Voice
from tts_kit.training import generation_eval

SPOKEN_ARMS = {"base": (False, False), "clone": (False, True), "finetuned": (True, False), "finetuned+clone": (True, True)}
"""Spoken arms: (with the adapter, with the reference)."""
OLD_NAMES = {"tuned": "finetuned", "tuned+clone": "finetuned+clone"}
"""Earlier spellings, which the command line still accepts."""
GIVEN_ARMS = ("ground_truth", "codec")
REFERENCE_SECONDS = 6.0
SAMPLING = ("temperature", "depth_temperature")
SETTINGS = {"temperature": (0, 10), "depth_temperature": (0, 10), "strength": (0, 10), "checkpoint": (0, 10 ** 9),
         "references": (1, 8), "reference_seconds": (1, 60)}
"""What can be turned, from where to where: how boldly is sampled, how much of the adapter is heard (0 is the base, 1 the
adapter as trained), the step of the training whose adapter speaks, how many clips are cloned and how long about they are."""
OF_ADAPTER, OF_REFERENCE = ("strength", "checkpoint"), ("references", "reference_seconds")
WHOLE = ("checkpoint", "references")


@dataclass(frozen=True)
class Arm:
    """One way to speak with the voice's own model."""
    name: str
    """As it is written: finetuned, or finetuned:strength=0.5."""
    finetuned: bool
    cloned: bool
    knobs: tuple[tuple[str, float], ...] = ()
    """What is set otherwise than usual."""

    @property
    def meaning(self) -> str:
        """What it is, for a page."""
        turned = ", ".join(f"{name.replace('_', ' ')} {value:g}" for name, value in self.knobs)
        return f"As {self.name.partition(':')[0]}, with {turned}." if turned else ""


def parse(text: str) -> Arm:
    """An arm as it is written: one of SPOKEN, and behind a colon what is turned (finetuned:strength=0.5,temperature=0.3)."""
    kind, _, turned = text.partition(":")
    kind = OLD_NAMES.get(kind, kind)
    if kind not in SPOKEN_ARMS:
        raise KitError(f"there is no arm {kind[:40]!r}; arms are {', '.join(SPOKEN_ARMS)}. Choose among them.")
    finetuned, cloned = SPOKEN_ARMS[kind]
    knobs = tuple(sorted(_knob(text, each, finetuned, cloned) for each in turned.split(",") if each))
    if len({name for name, _ in knobs}) < len(knobs):
        raise KitError(f"the arm {text[:80]!r} sets a knob twice. Give each once.")
    return Arm(kind + (":" if knobs else "") + ",".join(f"{name}={value:g}" for name, value in knobs), finetuned, cloned, knobs)


def _knob(arm: str, text: str, finetuned: bool, cloned: bool) -> tuple[str, float]:
    name, _, written = text.partition("=")
    if name not in SETTINGS:
        raise KitError(f"there is no knob {name[:40]!r}; knobs are {', '.join(SETTINGS)}. Choose among them.")
    if (name in OF_ADAPTER and not finetuned) or (name in OF_REFERENCE and not cloned):
        fitting = [each for each, (adapted, given) in SPOKEN_ARMS.items() if (adapted if name in OF_ADAPTER else given)]
        raise KitError(f"the arm {arm[:80]!r} has no {name}: that is a knob of {' and '.join(fitting)}.")
    try:
        value = float(written)
    except ValueError:
        value = -1.0
    least, most = SETTINGS[name]
    if not least <= value <= most or (name in WHOLE and value != int(value)):
        whole = "a whole number" if name in WHOLE else "a number"
        raise KitError(f"{name} is {written[:20]!r}; wanted {whole} from {least:g} to {most:g}.")
    return name, value


def references(arm: Arm, utterances: Sequence[Utterance]) -> tuple[Reference, ...]:
    """What an arm clones."""
    knobs = dict(arm.knobs)
    return pick_references(utterances, knobs.get("reference_seconds", REFERENCE_SECONDS),
                           int(knobs.get("references", 1))) if arm.cloned else ()


def pick_references(utterances: Sequence[Utterance], seconds: float = REFERENCE_SECONDS,
                    count: int = 1) -> tuple[Reference, ...]:
    """The training clips nearest to so many seconds; held-out clips are never heard by the model."""
    learnt = sorted((each for each in utterances if each.split == TRAIN),
                    key=lambda each: (abs(each.seconds - seconds), each.id))
    if len(learnt) < count:
        raise KitError(f"{count} references were asked for; there are {len(learnt)} training clips. Ask for fewer.")
    return tuple(Reference(each.audio, each.text) for each in learnt[:count])


def pick_reference(utterances: Sequence[Utterance]) -> Reference:
    """The training clip nearest to six seconds."""
    return pick_references(utterances)[0]


@contextlib.contextmanager
def apply_settings(arm: Arm, voice: Voice, run: Run) -> Iterator[Voice]:
    """The voice with its knobs turned as the arm says, for as long as the block lasts."""
    knobs = dict(arm.knobs)
    sampling = replace(voice.sampling, **{name: knobs[name] for name in SAMPLING if name in knobs})
    try:
        if "checkpoint" in knobs:
            lora.load_weights(voice.model, _kept(run, int(knobs["checkpoint"])))
        if "strength" in knobs:
            voice.set_strength(knobs["strength"])
        yield replace(voice, sampling=sampling)
    finally:
        if "strength" in knobs:
            voice.set_strength(1.0)
        if "checkpoint" in knobs:
            lora.load_weights(voice.model, run.adapter / lora.WEIGHTS_FILE)


def _kept(run: Run, step: int) -> Path:
    """The adapter as it was at a step of the training."""
    places = [run.training / generation_eval.FOLDER / f"step-{step:06d}" / lora.WEIGHTS_FILE,
              run.training / f"checkpoint-{step}" / lora.WEIGHTS_FILE]
    found = next((place for place in places if place.is_file()), None)
    if found is None:
        there = sorted({int(path.parent.name.split("-")[1]) for pattern in (f"{generation_eval.FOLDER}/step-*", "checkpoint-*")
                        for path in run.training.glob(f"{pattern}/{lora.WEIGHTS_FILE}")})
        raise KitError(f"no adapter was kept at step {step} of {run.training}; kept were those of "
                      f"{', '.join(map(str, there)) or 'no step'}. Train with --generation-eval-steps to keep more.")
    return found
