"""What the verbs can be told on the command line, and what they were told."""

import argparse
import dataclasses
from collections.abc import Callable

from tts_kit import recipe as recipes
from tts_kit.recipe import Recipe

DEVICES = ("auto", "cuda", "mps", "cpu")
CHOICES = {"targets": recipes.TARGETS, "engine": recipes.ENGINES}


def verb(verbs: argparse._SubParsersAction, name: str, function: Callable, explanation: str, run: bool = True,
         computes: bool = True, default: str = "voice") -> argparse.ArgumentParser:
    """A parser of its own for a verb; most work on a run, and compute something."""
    made = verbs.add_parser(name, help=explanation, description=explanation)
    made.set_defaults(verb=function)
    if run:
        made.add_argument("--run", default=default, help=f"name of the run; its folder is runs/NAME (default {default})")
    if run and computes:
        made.add_argument("--device", default="auto", choices=DEVICES, help="where to compute")
    return made


def comparison(verb: argparse.ArgumentParser, sentences: int, seeds: list[int]) -> None:
    """How much is compared."""
    verb.add_argument("--sentences", type=count, default=sentences,
                      help=f"how many held-out sentences (default {sentences})")
    verb.add_argument("--seeds", type=count, nargs="+", default=seeds,
                      help=f"takes of each sentence, by seed (default {' '.join(map(str, seeds))})")


def recipe(verb: argparse.ArgumentParser, names: tuple[str, ...]) -> None:
    """Options out of the recipe's fields; one that is not given keeps what the run remembers, or the default."""
    explanations = recipes.explanations()
    group = verb.add_argument_group("recipe", "What is not given stays as the run remembers it.")
    for field in dataclasses.fields(Recipe):
        if field.name in names and not any(field.name == action.dest for action in verb._actions):
            kind = type(field.default)
            how = {"action": argparse.BooleanOptionalAction} if kind is bool else (
                {"nargs": "+"} if kind is tuple else {"type": kind, "choices": CHOICES.get(field.name)})
            group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, default=None,
                               help=f"{explanations[field.name]} (at first {field.default})".replace("%", "%%"), **how)


def given(told: argparse.Namespace) -> dict:
    """The recipe's fields that were given on the command line."""
    found = {field.name: vars(told).get(field.name) for field in dataclasses.fields(Recipe)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in found.items() if value is not None}


def count(text: str) -> int:
    """A whole number from 0 that fits where seeds go."""
    number = int(text)
    if not 0 <= number < 2**62:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**62")
    return number
