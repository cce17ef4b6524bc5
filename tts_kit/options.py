"""What the verbs can be told on the command line, and what they were told."""

import argparse
import dataclasses
from collections.abc import Callable
from pathlib import Path

from tts_kit.config import BACKENDS, COMPILE, LORA_TARGETS, Config, field_help
from tts_kit.errors import KitError

DEVICES = ("auto", "cuda", "mps", "cpu")
DTYPES = ("auto", "float32", "bfloat16")
ARMS = ("base", "clone", "finetuned", "finetuned+clone")
TRIALS = ("ab", "smos", "preference", "abx", "cmos")
PLANNED = ("revision", "rank", "lora_targets", "steps", "tokens_per_batch", "gradient_accumulation_steps", "packing", "context_probability",
           "depth_frame_fraction", "gradient_checkpointing", "offload_text_embeddings", "eval_steps")
CHOICES = {"lora_targets": LORA_TARGETS, "backend": BACKENDS, "compile": COMPILE}


def verb(verbs: argparse._SubParsersAction, name: str, function: Callable, explanation: str, run: bool = True,
         computes: bool = True, default: str = "voice") -> argparse.ArgumentParser:
    """A parser of its own for a verb; most work on a run, and compute something."""
    made = verbs.add_parser(name, help=explanation, description=explanation)
    made.set_defaults(verb=function)
    if run:
        made.add_argument("--run", default=default, help=f"name of the run; its folder is runs/NAME (default {default})")
    if run and computes:
        made.add_argument("--device", default="auto", choices=DEVICES, help="where to compute")
        made.add_argument("--dtype", default="auto", choices=DTYPES, help="in which precision the network computes "
                          "(auto: 16 bits on NVIDIA GPUs; a processor that multiplies bfloat16 itself learns faster in it)")
    return made


def comparison(verb: argparse.ArgumentParser, sentences: int, seeds: list[int]) -> None:
    """How much is compared."""
    verb.add_argument("--sentences", type=count, default=sentences,
                      help=f"how many held-out sentences (default {sentences})")
    verb.add_argument("--seeds", type=count, nargs="+", default=seeds,
                      help=f"takes of each sentence, by seed (default {' '.join(map(str, seeds))})")


def contest(verb: argparse.ArgumentParser) -> None:
    """Who is compared, how the knobs stand, and what people said."""
    verb.add_argument("--arms", nargs="+", metavar="ARM", default=list(ARMS),
                      help=f"of the voice's model: {', '.join(ARMS)}, with knobs behind a colon (finetuned:strength=0.5, "
                      "finetuned:checkpoint=40, clone:references=3); other systems: kokoro, pocket-tts, xtts-v2, f5-tts, "
                      f"orpheus-3b, dia; clips of any other: folder:NAME=PATH (default {' '.join(ARMS)})")
    verb.add_argument("--blind", nargs="*", choices=TRIALS, default=list(TRIALS[:2]),
                      help="what listeners are asked on the page for them (default ab smos; nothing: no such page)")
    verb.add_argument("--votes", nargs="+", type=Path, default=[], metavar="FILE",
                      help="what listeners sent back; it is counted and joins the verdict")
    verb.add_argument("--knob", type=knob, action="append", default=[], metavar="NAME=VALUE,VALUE",
                      help="instead of the arms, turn this knob (temperature, depth_temperature, strength, checkpoint, "
                      "references, reference_seconds), on sentences and clips that are not held out; may be given often")
    verb.add_argument("--knobs-of", choices=ARMS, default="finetuned", help="the arm whose knobs are turned (default tuned)")


def planner(verb: argparse.ArgumentParser) -> None:
    """What the doctor looks at, and what it plans for."""
    verb.add_argument("--plan", action="store_true", help="what training would need on the usual GPUs: batch, memory, "
                      "minutes and dollars, for the clips and the recipe of --run with what is given here")
    verb.add_argument("--run", help="of --plan: name of the run (default: an example of one hour)")
    config(verb, ("base", *PLANNED))


def plans(told: argparse.Namespace) -> bool:
    """Whether the doctor was asked for a plan; what only a plan heeds is refused without."""
    if not told.plan and (needless := [name for name in ("run", *PLANNED) if vars(told)[name] is not None]):
        raise KitError(f"--{needless[0].replace('_', '-')} says for what to plan: give --plan too, or leave it out.")
    return told.plan


def knob(text: str) -> tuple[str, list[float]]:
    """NAME=VALUE,VALUE as a name and numbers."""
    name, _, values = text.partition("=")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE,VALUE, as in strength=0.5,1,1.5") from error


def config(verb: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Options out of the recipe's fields; one that is not given keeps what the run remembers, or the default."""
    explanations = field_help()
    group = verb.add_argument_group("recipe", "What is not given stays as the run remembers it.")
    for field in dataclasses.fields(Config):
        if field.name in names and not any(field.name == action.dest for action in verb._actions):
            kind = type(field.default)
            how = {"action": argparse.BooleanOptionalAction} if kind is bool else (
                {"nargs": "+"} if kind is tuple else {"type": kind, "choices": CHOICES.get(field.name)})
            group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, default=None,
                               help=f"{explanations[field.name]} (at first {field.default})".replace("%", "%%"), **how)


def given(told: argparse.Namespace) -> dict:
    """The recipe's fields that were given on the command line."""
    found = {field.name: vars(told).get(field.name) for field in dataclasses.fields(Config)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None}


def count(text: str) -> int:
    """A whole number from 0 that fits where seeds go."""
    number = int(text)
    if not 0 <= number < 2**62:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**62")
    return number
