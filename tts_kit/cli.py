"""tts-kit COMMAND: the options of every command, and the parser that runs one."""

import argparse
import dataclasses
import difflib
import importlib.metadata
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tts_kit import commands
from tts_kit.commands import config_changes
from tts_kit.comparison.arms import GENERATED_ARMS
from tts_kit.config import CHECKPOINT_DEFAULT, Config
from tts_kit.errors import KitError, report_errors
from tts_kit.run import Run, bundled_base
from tts_kit.spoken_text import read_lexicon
from tts_kit.status import missing_run_hint

TRAINING_GROUPS = ("base model", "LoRA", "training", "memory and speed", "evaluation")
ALL_GROUPS = ("data", "text", *TRAINING_GROUPS, "sampling")  # groups of Config's fields


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = build_parser()
    args, unknown = parser.parse_known_args(arguments)
    if unknown:
        parser.commands.get(args.command, parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if args.func is None:
        parser.print_help()
        return 2
    if getattr(args, "base", None):
        args.base = bundled_base(args.base)
    try:
        Config(**config_changes(args))  # refuses what is out of range before anything is loaded
        return args.func(args) or 0
    except KitError as error:
        run = getattr(args, "run", None)
        if run and str(run.folder) in str(error) and (hint := missing_run_hint(run.name)):
            raise KitError(f"{error} {hint}") from error
        raise


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that suggests commands and options of a similar name."""
    commands: Mapping[str, "Parser"] = {}

    def error(self, message: str):
        """Exit with the message and what may have been meant."""
        near = []
        if match := re.search(r"argument COMMAND: invalid choice: '([^']*)'", message):
            message = f"there is no command {match[1]!r}"
            near = difflib.get_close_matches(match[1], COMMANDS, n=1)
            near += [name for name in COMMANDS if name.startswith(match[1])]
        elif match := re.search(r"unrecognized arguments: .*?(--[\w-]+)", message):
            names = {name: name for action in self._actions for name in action.option_strings}
            # --lr is --learning-rate
            names |= {f"--{''.join(word[0] for word in name[2:].split('-'))}": name for name in names if "-" in name[3:]}
            near = [names[name] for name in difflib.get_close_matches(match[1], names, n=1)]
        if near:
            message += f". Did you mean {' or '.join(dict.fromkeys(near))}?"
        super().error(message)


def build_parser() -> Parser:
    """All commands with their options."""
    parser = Parser(
        prog="tts-kit", usage="tts-kit COMMAND [options]",
        description="Fine-tune a token-based TTS model on one voice, and measure whether it helped.",
        epilog="prepare, tokenize, train and compare are the stages of a run. `tts-kit COMMAND --help` lists the options.")
    parser.add_argument("--version", action="version", version=f"tts-kit {_version()}")
    parser.set_defaults(func=None, command=None)
    subparsers = parser.add_subparsers(title="commands", metavar="COMMAND")
    parser.commands = subparsers.choices
    for name, (func, description, epilog, options) in COMMANDS.items():
        positional = "".join(f" {option.settings.get('metavar') or option.names[0].upper()}" for option in options
                             if not option.names[0].startswith("-"))
        command_parser = subparsers.add_parser(
            name, prog=f"tts-kit {name}", usage=f"tts-kit {name}{positional} [options]", help=description,
            description=description, epilog=epilog)
        command_parser.set_defaults(func=func, command=name)
        add_options(command_parser, options)
    return parser


def _version() -> str:
    try:
        return importlib.metadata.version("tts-kit")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, running from a checkout)"


class Option(NamedTuple):
    """An argument of a command: what argparse's add_argument takes, and its group in --help."""
    names: tuple[str, ...]
    group: str
    settings: dict


def option(*names: str, help: str, group: str = "", default: object = None, stored: bool = False, **settings) -> Option:
    """Describe an argument; its help ends with its default. A `stored` one is None if it is not given."""
    if "default" not in help and default not in (None, "", CHECKPOINT_DEFAULT) and not isinstance(default, list | tuple):
        help += f" (default {default:g})" if isinstance(default, float) else f" (default {default})"
    if names[0].startswith("-") and not settings.get("choices") and "action" not in settings:
        settings.setdefault("metavar", {int: "N", non_negative_int: "N", float: "X"}.get(settings.get("type"), "NAME"))
    if default is not None:
        settings["default"] = None if stored else default
    return Option(names, group, settings | {"help": help.replace("%", "%%")})


def config_options(groups: Iterable[str]) -> list[Option]:
    """Options for groups of Config's fields; one that is not given keeps the run's stored value, or the default."""
    options = []
    for field in dataclasses.fields(Config):
        if field.metadata["group"] in groups:
            kind = {bool: {"action": argparse.BooleanOptionalAction}, tuple: {"nargs": "+", "metavar": "TEXT"}}.get(
                type(field.default), {"type": type(field.default)})
            if field.name == "lexicon":
                kind = {"type": read_lexicon, "metavar": "FILE"}
            if choices := field.metadata["choices"]:
                kind |= {"choices": choices, "metavar": None}
            options.append(option(f"--{field.name.replace('_', '-')}", help=field.metadata["help"], dest=field.name,
                                  group=field.metadata["group"], default=field.default, stored=True, **kind))
    return options


def add_options(parser: argparse.ArgumentParser, options: Iterable[Option]) -> None:
    """Add options to a parser, in their groups."""
    groups = {"": parser}
    for names, group, settings in options:
        if group not in groups:
            groups[group] = parser.add_argument_group(group)
        groups[group].add_argument(*names, **settings)


def comparison_options(sentences: int, seeds: list[int], stored: bool = False) -> list[Option]:
    """The size of a comparison; with `stored` None if it is not given."""
    return [option("--sentences", type=non_negative_int, default=sentences, stored=stored,
                   help="number of held-out sentences"),
            option("--seeds", type=non_negative_int, nargs="+", default=seeds, stored=stored,
                   help=f"each sentence is generated once per seed (default {' '.join(map(str, seeds))})")]


def non_negative_int(text: str) -> int:
    """An integer that is valid as a count and as a seed."""
    number = int(text)
    if not 0 <= number < 2**62:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**62")
    return number


def setting_values(text: str) -> tuple[str, list[float]]:
    """The name and the values of a setting that is swept."""
    name, _, values = text.partition("=")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE,VALUE, as in strength=0.5,1,1.5") from error


COMMANDS: dict[str, tuple[Callable, str, str, list[Option]]] = {}
"""Name -> function, description, epilog and options of every command, in the order of --help."""


def command(func: Callable, description: str, *options: Option, config: Sequence[str] = (), run: str | None = "voice",
            computes: bool = True) -> None:
    """Make a function the command of its name, with options, groups of Config's fields, a run and a device."""
    all_options = [*options, *config_options(config)]
    if run:
        all_options.insert(0, option("--run", type=Run, default=run, help="name of the run, whose folder is runs/NAME"))
    if run and computes:
        all_options += [
            option("--device", group="device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="device"),
            option("--dtype", group="device", default="auto", choices=("auto", "float32", "bfloat16"),
                   help="compute dtype; auto: 16 bits on NVIDIA GPUs, else float32")]
    epilog = "A run stores its settings: an option that is not given keeps the stored value." if config else ""
    COMMANDS[func.__name__.replace("_", "-")] = func, description, epilog, all_options


SPEECH_OPTIONS = [
    option("--no-watermark", dest="watermark", action="store_false", help="leave out the watermark"),
    option("--no-loudness-normalization", dest="normalize_loudness", action="store_false", help="leave the level as the "
           "model has it, instead of -18 LUFS for every sentence and true peaks below -1 dBFS")]
"""Of the commands that speak."""

command(commands.demo, "all stages on the bundled voice, or on yours, with the bundled model: no GPU, no hub",
        option("--source", default="example:emma", help="your recording, a folder of recordings or of clips with texts, "
               "as prepare takes it, instead of the bundled voice"),
        *comparison_options(10, [1, 2]), config=ALL_GROUPS, run="demo")

command(commands.prepare, "recordings, or clips with transcripts -> checked clips",
        option("source", help="a recording, a folder of recordings or a URL, to segment and transcribe; a folder with "
               "metadata.csv, a .jsonl file, a hub dataset (owner/name); or an example: example:emma is the bundled voice, "
               "example:recording one long take of it, example:allison a human voice, to download"),
        option("--eval-source", metavar="SOURCE", default="", help="hold out the clips of this source instead of a share "
               "of the first one's"),
        option("--skip-bad", action="store_true", help="leave out bad clips and list them, instead of stopping"),
        option("--asr-model", group="recordings", default="", help="Whisper model, by name or folder, or `bundled`, which "
               "needs no hub (default: large-v3-turbo on a GPU, else small)"),
        option("--verify-asr-model", group="recordings", default="", help="second Whisper model, whose disagreements are "
               "flagged (default: a smaller one; none: no second pass)"),
        option("--language", group="recordings", default="", help="two letters (default: detected)"),
        config=("data", "text"))

command(commands.review, "correct the transcripts of recordings on a local page",
        option("--port", type=int, default=0, help="port of the page (default: any free one)"), computes=False)

command(commands.report, "the data as a page: how much, how clean, what to check first", computes=False)

command(commands.tokenize, "clips -> codes of the codec, encoded once", config=("base model",))

command(commands.train, "codes -> LoRA adapter",
        option("--from", type=Run, dest="source", metavar="RUN", help="begin a new run with the data, codes and stored "
               "settings of this one; the files are shared, not copied"),
        option("--dry-run", action="store_true", help="count what would be trained, without loading weights"),
        option("--json", action="store_true", help="print the dry run as a JSON object"),
        config=("text", *TRAINING_GROUPS, "sampling"))

command(commands.speak, "text -> speech",
        option("text", nargs="?", default="", help="text of any length; or --script"),
        option("--out", default="speech.wav", metavar="FILE", help="output file, .wav or .flac"),
        option("--seed", type=non_negative_int, default=0, help="sampling seed"),
        option("--retries", type=non_negative_int, default=0, help="new attempts for a sentence without EOS"),
        option("--best-of", type=int, default=1, metavar="N", help="generate each sentence N times and keep the best, by "
               "words, then similarity, as a small Whisper and a speaker embedding judge them"),
        *SPEECH_OPTIONS,
        option("--script", group="dialogue", metavar="FILE", help="speak a dialogue: a text file with a line `[NAME] "
               "words` for every turn, each spoken with those before it as context"),
        option("--voice", group="dialogue", action="append", default=[], metavar="NAME=PATH", help="voice of a speaker: a "
               "folder of a run or adapter, a model, a clip to clone with its transcript in a .txt beside it or as "
               "CLIP:TEXT, or `base`; may be repeated (default: the run's, for the speaker of its name)"),
        option("--pause", group="dialogue", type=float, default=0.4, help="seconds between two turns"),
        option("--turns", group="dialogue", metavar="FOLDER", help="also write each turn to a file there"),
        option("--adapter", group="voice", metavar="PATH", help="adapter folder or hub id (default: the run's)"),
        option("--no-adapter", group="voice", action="store_true", help="use the base model alone"),
        option("--strength", group="voice", type=float, help="scale of the adapter; 0: the base model, 1: as trained "
               "(default: 1, or what compare --recommend has kept)"),
        option("--reference", group="voice", metavar="FILE", help="clip to clone (default: none, or what compare "
               "--recommend has kept)"),
        option("--reference-text", group="voice", metavar="TEXT", help="transcript of that clip"),
        config=("text", "base model", "sampling"))

command(commands.compare, "held-out sentences in every arm -> a verdict and a page",
        *comparison_options(10, [1, 2, 3], stored=True),
        option("--arms", nargs="+", metavar="ARM", default=list(GENERATED_ARMS), stored=True,
               help=f"arms of the model: {', '.join(GENERATED_ARMS)}, with settings after a colon (finetuned:strength=0.5, "
               "finetuned:checkpoint=40, clone:references=3); external systems: kokoro, pocket-tts, xtts-v2, f5-tts, "
               "orpheus-3b; clips of any other system: folder:NAME=PATH (default: all arms of the model)"),
        option("--listening-test", group="listening test", nargs="*", choices=("ab", "smos", "cmos"),
               default=["ab", "smos"], help="test types on the listeners' page; no value: no page (default ab smos)"),
        option("--responses", group="listening test", nargs="+", type=Path, default=[], metavar="FILE",
               help="responses of listeners, which join the verdict; nothing is synthesized or scored again"),
        option("--sweep", group="sweep", type=setting_values, action="append", default=[], metavar="NAME=VALUE,VALUE",
               help="compare values of a setting (temperature, depth_temperature, guidance, strength, best_of, "
               "checkpoint, references, reference_seconds ...) instead of arms, on sentences that are not held out; may be "
               "repeated"),
        option("--sweep-arm", group="sweep", choices=GENERATED_ARMS, default="finetuned", help="arm that is swept"),
        option("--recommend", group="sweep", action="store_true", help="find the guidance, strength and temperature, with a "
               "reference clip or without, that have the best SIM and WER, on sentences that are not held out, and keep "
               "them with the adapter as its defaults; options such as --guidance win over them"),
        config=("text", "base model", "sampling"))

command(commands.serve, "voices behind OpenAI's speech API, and a page to try them",
        option("--voice", action="append", default=[], metavar="NAME=PATH", help="another voice: an adapter folder, a base "
               "or merged model, a hub id, a clip to clone with its transcript in a .txt beside it or as CLIP:TEXT, or "
               "`base`; may be repeated (default: the run's, and `base`)"),
        option("--queue-timeout", type=float, default=120.0, help="seconds that a request may wait in the queue"),
        *SPEECH_OPTIONS,
        option("--host", group="network", metavar="ADDRESS", default="127.0.0.1",
               help="address to bind (default 127.0.0.1, this machine only)"),
        option("--port", group="network", type=non_negative_int, default=8000, help="port; 0: any free one"),
        option("--api-key", group="network", action="append", default=[], metavar="KEY", help="key that clients must send; "
               "may be repeated; required for other hosts than this machine. The variable TTS_KIT_KEY is one too, and "
               "stays private"),
        config=("text", "base model", "sampling"))

command(commands.detect_watermark, "whether audio files carry the watermark",
        option("files", nargs="+", metavar="FILE", help="WAV, FLAC, MP3, OGG, Opus; M4A and others if PyAV is installed. "
               "Exit status 0: all carry it, 1: one does not, 2: one cannot be read"),
        option("--json", action="store_true", help="print a JSON object for each file"), run=None)

command(commands.status, "the runs of this folder: finished stages, and the next command", run=None)

command(commands.consent, "record whose voice it is and who permitted a model of it",
        option("--who", default="", help="the speaker, or the system that generated the speech"),
        option("--kind", metavar="KIND", default="", help="own (my voice), written (written permission), licensed (a "
               "corpus whose licence allows it, or public domain), synthetic (a TTS system)"),
        option("--statement", metavar="TEXT", default="", help="the statement, word for word"), computes=False)

command(commands.export, "the voice with its model card, as a folder or on the hub",
        option("--out", metavar="PATH", default="", help="folder (default: release/adapter or release/merged of the run)"),
        option("--no-watermark", dest="watermark", action="store_false", help="leave it out of the card's clips"),
        option("--language", default="", help="two letters, for the card (default: that of the transcribed recordings)"),
        option("--merged", group="merged weights", action="store_true", help="export merged weights for plain transformers "
               "instead of the adapter"),
        option("--layout", group="merged weights", default="transformers", choices=("transformers", "original"),
               help="names and order of the weights; original: as in Sesame's repository, without codec, for candle or "
               "mlx-audio"),
        option("--strength", group="merged weights", type=float, help="scale of the merged adapter (default: 1, or what "
               "compare --recommend has kept)"),
        option("--dtype", group="merged weights", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
               help="dtype of the weights; auto: float32, which is exact"),
        option("--push-to-hub", group="hub", metavar="OWNER/NAME", default="", help="push to the hub as this model"),
        option("--public", group="hub", action="store_true", help="visible to everybody, which requires a consent record "
               "(default: private)"),
        config=("base model",), computes=False)

command(commands.export_dataset, "the data for `datasets`, as a folder or on the hub",
        option("--out", type=Path, help="new folder (default: dataset of the run)"),
        option("--push-to-hub", group="hub", metavar="OWNER/NAME", help="push to the hub; an exported folder is pushed as "
               "it is"),
        option("--public", group="hub", action="store_true", help="visible to everybody (default: private)"),
        computes=False)

command(commands.doctor, "check machine, packages and base model; plan a training",
        option("--plan", action="store_true", help="plan a training on common GPUs: batch, memory, minutes and dollars, "
               "for the clips and config of --run with the options given here"),
        option("--run", type=Run, help="run to plan for (default: an example of one hour)"),
        config=TRAINING_GROUPS, run=None)
