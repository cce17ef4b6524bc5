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
<<<<<<< HEAD

    def register(func: Callable) -> Callable:
        COMMANDS[func.__name__.replace("_", "-")] = func, description, epilog, all_options
        return func
    return register


@command("all stages on the bundled voice, or on yours, with the bundled model: no GPU, no hub",
         option("--source", default="example:emma", help="your recording, a folder of recordings or of clips with texts, "
                "as prepare takes it, instead of the bundled voice"),
         *comparison_options(10, [1, 2]), config=ALL_GROUPS, run="demo")
def demo(args: argparse.Namespace) -> None:
    from tts_kit import pipeline

    run, changes = Run(args.run), config_changes(args)
    if not run.codes.exists() and not args.base:
        changes = {"base": str(TINY_CSM), **pipeline.TINY_PRESET} | changes
    pipeline.run_all(args.source, load_config(run, **changes), run, _device_config(args), args.sentences, args.seeds)


@command("recordings, or clips with transcripts -> checked clips",
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
def prepare(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest, report
    from tts_kit.data import prepare as preparation

    if args.eval_source and args.held_out is not None:
        raise KitError("--held-out is a share of the clips, --eval-source names the clips: give one of the two.")
    run = Run(args.run)
    config = load_config(run, **config_changes(args))
    source, is_recording = args.source, ingest.is_recording(args.source)
    if is_recording:
        source = ingest.ingest(source, run, _device_config(args), args.asr_model, args.verify_asr_model, args.language,
                               config.speaker)
        if args.spoken_text is None and (foreign := sorted({*ingest.languages(run)} - {"en"})):
            print(f"Numbers are not written out for the model: the language is {', '.join(foreign)} (--spoken-text does).")
            config = config.replace(spoken_text=False)
    # hours of segmenting and transcribing are not refused for one bad clip
    preparation.prepare(source, run, config, args.skip_bad or is_recording, args.eval_source)
    print(report.brief_advice(run))
    _print_next(run)


@command("correct the transcripts of recordings on a local page",
         option("--port", type=int, default=0, help="port of the page (default: any free one)"), computes=False)
def review(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest

    run = Run(args.run)
    ingest.serve_review(run, load_config(run), args.port)


@command("the data as a page: how much, how clean, what to check first", computes=False)
def report(args: argparse.Namespace) -> None:
    from tts_kit.data import report

    report.display(Run(args.run))


@command("clips -> codes of the codec, encoded once", config=("base model",))
def tokenize(args: argparse.Namespace) -> None:
    from tts_kit.tokens import cache

    run = Run(args.run)
    cache.tokenize(load_config(run, **config_changes(args)), run, _device_config(args))
    _print_next(run)


@command("codes -> LoRA adapter",
         option("--from", dest="source", metavar="RUN", help="begin a new run with the data, codes and stored settings of "
                "this one; the files are shared, not copied"),
         option("--dry-run", action="store_true", help="count what would be trained, without loading weights"),
         option("--json", action="store_true", help="print the dry run as a JSON object"),
         config=("text", *TRAINING_GROUPS, "sampling"))
def train(args: argparse.Namespace) -> None:
    from tts_kit.training import finetune

    run = Run(args.run)
    if args.source:
        share(Run(args.source), run)
    config = load_config(run, **config_changes(args))
    if not args.dry_run:
        finetune.finetune(config, run, _device_config(args))
        _print_next(run)
        return
    summary = finetune.dry_run(config, run, _device_config(args))
    print(json.dumps(summary) if args.json else "\n".join(f"{name}: {value}" for name, value in summary.items()))


@command("text -> speech",
         option("text", nargs="?", default="", help="text of any length; or --script"),
         option("--out", default="speech.wav", metavar="FILE", help="output file, .wav or .flac"),
         option("--seed", type=non_negative_int, default=0, help="sampling seed"),
         option("--retries", type=non_negative_int, default=0, help="new attempts for a sentence without EOS"),
         option("--best-of", type=int, default=1, metavar="N", help="generate each sentence N times and keep the best, by "
                "words, then similarity, as a small Whisper and a speaker embedding judge them"),
         option("--stream", action="store_true", help="write while generating"),
         option("--no-watermark", dest="watermark", action="store_false", help="leave out the watermark"),
         option("--no-loudness-normalization", dest="normalize_loudness", action="store_false", help="leave the level as "
                "the model has it, instead of -18 LUFS for every sentence and true peaks below -1 dBFS"),
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
         option("--reference", group="voice", metavar="FILE", help="clip to clone"),
         option("--reference-text", group="voice", metavar="TEXT", help="transcript of that clip"),
         config=("text", "base model", "sampling"))
def speak(args: argparse.Namespace) -> None:
    _import_csm()
    from tts_kit import text
    from tts_kit.data import consent
    from tts_kit.speech import speak as speech
    from tts_kit.speech import stream
    from tts_kit.speech.voice import Reference, find_adapter

    if bool(args.text) == bool(args.script):
        raise KitError('give a text, as in tts-kit speak "Hello.", or --script FILE with a dialogue.')
    if args.script:
        _speak_script(args)
        return
    if args.voice or args.turns:
        raise KitError("--voice and --turns belong to --script. The voice of a text is that of --run or --adapter.")
    if bool(args.reference) != bool(args.reference_text):
        raise KitError("a reference is a clip and its transcript: give --reference FILE and --reference-text TEXT, or "
                       "neither.")
    if args.stream and (args.retries or args.best_of != 1):
        raise KitError("--stream hands out audio at once, so nothing can be generated again: leave --retries and --best-of "
                       "out.")
    if args.no_adapter and args.strength is not None:
        raise KitError("--strength scales the adapter, and --no-adapter leaves it out: give one of the two.")
    speech.check_path(args.out, args.watermark)
    run, chooser = Run(args.run), _take_chooser(args)
    voice = _load_voice(args, run, args.adapter or run.adapter, may_be_base=args.no_adapter)
    if foreign := text.other_scripts(args.text):
        print(f"{foreign}: {Path(voice.base.name).name} was trained on Latin script, and speaks nothing of the kind unless "
              "the adapter was trained on it.")
    if args.strength is not None:
        voice.set_strength(args.strength)
    if not args.no_adapter:
        consent.warn_if_missing(run, adapter=(args.adapter and (find_adapter(args.adapter) or args.adapter)) or "")
    reference = Reference(args.reference, args.reference_text) if args.reference else None
    if args.stream:
        spoken = stream.SpeechStream(args.text, voice, reference, not args.no_adapter, args.seed)
    else:
        spoken = speech.speak(args.text, voice, reference, not args.no_adapter, args.seed, args.retries, chooser)
        for generation in spoken.generations if chooser else ():
            print(generation.choice)
    spoken.save(args.out, args.watermark)
    detail = f"first audio after {spoken.first_audio_seconds or 0:.2f} s" if args.stream else (
        f"{spoken.attempts} attempt{'s' * (spoken.attempts != 1)}")
    remedy = "another --seed" if args.stream else "--retries 2 or another --seed"
    ending = "ended with EOS" if spoken.ended_with_eos else f"reached the length limit; try {remedy}"
    print(f"{args.out}: {spoken.seconds:.1f} s in {spoken.wall_seconds:.1f} s, {detail}, {ending}.")
    if not args.watermark:
        print("No watermark, as requested: nothing in this file tells that it is synthetic.")


def _take_chooser(args: argparse.Namespace) -> object | None:
    if args.best_of == 1:
        return None
    from tts_kit.data import manifest
    from tts_kit.speech.best_of import TakeChooser

    run = Run(args.run)
    recorded = manifest.read(run.data) if run.data.exists() and not args.adapter else []
    clips = [clip.audio for clip in recorded if clip.split == manifest.TRAIN][:10]
    return TakeChooser(args.best_of, [args.reference] if args.reference else clips)


def _speak_script(args: argparse.Namespace) -> None:
    from tts_kit.data import consent
    from tts_kit.speech import dialogue
    from tts_kit.speech import speak as speech
    from tts_kit.speech.voice import BASE, find_adapter, find_reference, parse_voices

    given = [name for name in ("stream", "adapter", "no_adapter", "reference", "reference_text") if getattr(args, name)]
    given += ["strength"] * (args.strength is not None)
    if given:
        raise KitError(f"--{given[0].replace('_', '-')} is not for a dialogue, whose voices are given by "
                       "--voice NAME=PATH.")
    speech.check_path(args.out, args.watermark)
    if args.turns and (Path(args.turns).is_file() or any(Path(args.turns).glob("*"))):
        raise KitError(f"{args.turns} exists and is not an empty folder. Give --turns another one.")
    lines, run, sources = dialogue.read_script(args.script), Run(args.run), parse_voices(args.voice)
    if run.adapter.exists():
        sources = {run.name: run.adapter} | sources
    dialogue.check_speakers(lines, sources)
    sources = {line.speaker: sources[line.speaker] for line in lines}
    for source in sources.values():
        if str(source) != BASE and not find_reference(source) and (folder := find_adapter(source)):
            consent.warn_if_missing(run, adapter=folder)
    spoken = dialogue.dialogue(lines, _load_voices(args, sources), args.seed, args.retries, args.pause)
    spoken.save(args.out, args.watermark)
    if args.turns:
        spoken.save_turns(args.turns, args.watermark)
    failed = [line.label for line, turn in zip(spoken.lines, spoken.turns) if not turn.ended_with_eos]
    print(f"{args.out}: {len(lines)} turns, {spoken.seconds:.1f} s in {spoken.wall_seconds:.1f} s, " + (
        f"{', '.join(failed)} reached the length limit; try --retries 2 or another --seed." if failed else
        "all ended with EOS."))


@command("held-out sentences in every arm -> a verdict and a page",
         *comparison_options(10, [1, 2, 3], stored=True),
         option("--arms", nargs="+", metavar="ARM", default=list(GENERATED_ARMS), stored=True,
                help=f"arms of the model: {', '.join(GENERATED_ARMS)}, with settings after a colon (finetuned:strength=0.5, "
                "finetuned:checkpoint=40, clone:references=3); external systems: kokoro, pocket-tts, xtts-v2, f5-tts, "
                "orpheus-3b; clips of any other system: folder:NAME=PATH (default: all arms of the model)"),
         option("--listening-test", group="listening test", nargs="*", choices=("ab", "smos", "cmos"),
                default=["ab", "smos"], help="test types on the listeners' page; no value: no page (default ab smos)"),
         option("--responses", group="listening test", nargs="+", type=Path, default=[], metavar="FILE",
                help="responses of listeners, which join the verdict; nothing is synthesized or scored again"),
         option("--sweep", group="sweep", type=_setting_values, action="append", default=[], metavar="NAME=VALUE,VALUE",
                help="compare values of a setting (temperature, depth_temperature, guidance, strength, best_of, "
                "checkpoint, references, reference_seconds ...) instead of arms, on sentences that are not held out; may be "
                "repeated"),
         option("--sweep-arm", group="sweep", choices=GENERATED_ARMS, default="finetuned", help="arm that is swept"),
         option("--recommend", group="sweep", action="store_true", help="find the guidance, strength and temperature with "
                "the best SIM and WER, on sentences that are not held out, and keep them with the adapter as its defaults; "
                "options such as --guidance win over them"),
         config=("text", "base model", "sampling"))
def compare(args: argparse.Namespace) -> None:
    from tts_kit.comparison import compare as comparison

    run = Run(args.run)
    if args.responses:
        if args.sweep or args.recommend or not (args.sentences is args.seeds is args.arms is None):
            raise KitError("--responses counts answers to the comparison as it is: leave --sentences, --seeds, --arms, "
                           "--sweep and --recommend out.")
        comparison.count_responses(run, args.responses)
        return
    given = [field.name for field in dataclasses.fields(Config) if field.metadata["group"] == "sampling"
             and getattr(args, field.name) is not None]
    if args.recommend and (given or args.sweep or args.arms):
        name = given[0].replace("_", "-") if given else "sweep" if args.sweep else "arms"
        raise KitError(f"--recommend measures the fine-tuned voice against its own settings: leave --{name} out.")
    voice = _load_voice(args, run, run.adapter)
    if args.recommend:
        from tts_kit.comparison import recommend

        recommend.recommend(run, voice, **{name: value for name in ("sentences", "seeds")
                                           if (value := getattr(args, name)) is not None})
        return
    if not args.sweep:
        comparison.compare(run, voice, args.sentences, args.seeds, args.arms, test_types=args.listening_test)
        _print_next(run)
        return
    settings: dict[str, list[float]] = {}
    for name, values in args.sweep:
        settings.setdefault(name, []).extend(values)
    comparison.run_sweep(run, voice, settings, args.sweep_arm, args.sentences or 10, args.seeds or [1, 2, 3])


@command("voices behind OpenAI's speech API, and a page to try them",
         option("--voice", action="append", default=[], metavar="NAME=PATH", help="another voice: an adapter folder, a base "
                "or merged model, a hub id, a clip to clone with its transcript in a .txt beside it or as CLIP:TEXT, or "
                "`base`; may be repeated (default: the run's, and `base`)"),
         option("--queue-timeout", type=float, default=120.0, help="seconds that a request may wait in the queue"),
         option("--no-watermark", dest="watermark", action="store_false", help="leave out the watermark"),
         option("--no-loudness-normalization", dest="normalize_loudness", action="store_false", help="leave the level as "
                "the model has it, instead of -18 LUFS for every sentence and true peaks below -1 dBFS"),
         option("--host", group="network", metavar="ADDRESS", default="127.0.0.1",
                help="address to bind (default 127.0.0.1, this machine only)"),
         option("--port", group="network", type=non_negative_int, default=8000, help="port; 0: any free one"),
         option("--api-key", group="network", action="append", default=[], metavar="KEY", help="key that clients must send; "
                "may be repeated; required for other hosts than this machine. The variable TTS_KIT_KEY is one too, and "
                "stays private"),
         config=("text", "base model", "sampling"))
def serve(args: argparse.Namespace) -> None:
    _import_csm()
    try:
        from tts_kit.server import app as server
    except ModuleNotFoundError as error:
        if error.name not in ("av", "fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise KitError(f'the server needs {error.name}: pip install "tts-kit[serve]"') from error

    from tts_kit.speech.voice import BASE, parse_voices

    run = Run(args.run)
    voices = parse_voices(args.voice)
    if run.adapter.exists() or not voices:
        voices = {run.name: run.adapter} | voices
        voices.setdefault(BASE, BASE)
    server.run_server(lambda: _load_voices(args, voices), args.host, args.port, server.read_api_keys(args.api_key),
                      args.watermark, args.queue_timeout)


@command("whether audio files carry the watermark",
         option("files", nargs="+", metavar="FILE", help="WAV, FLAC, MP3, OGG, Opus; M4A and others if PyAV is installed. "
                "Exit status 0: all carry it, 1: one does not, 2: one cannot be read"),
         option("--json", action="store_true", help="print a JSON object for each file"), run=None)
def detect_watermark(args: argparse.Namespace) -> int:
    from tts_kit import watermark

    return watermark.report_files(args.files, args.json)


@command("the runs of this folder: finished stages, and the next command", run=None)
def status(args: argparse.Namespace) -> None:
    print(describe_runs())


@command("record whose voice it is and who permitted a model of it",
         option("--who", default="", help="the speaker, or the system that generated the speech"),
         option("--kind", metavar="KIND", default="", help="own (my voice), written (written permission), licensed (a "
                "corpus whose licence allows it, or public domain), synthetic (a TTS system)"),
         option("--statement", metavar="TEXT", default="", help="the statement, word for word"), computes=False)
def consent(args: argparse.Namespace) -> None:
    from tts_kit.data import consent

    print(consent.ensure(Run(args.run), args.who, args.kind, args.statement))


@command("the voice with its model card, as a folder or on the hub",
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
def export(args: argparse.Namespace) -> None:
    from tts_kit.export import release

    run = Run(args.run)
    if args.push_to_hub:
        release.check_push(run, args.push_to_hub, args.public)
    folder = release.export(run, args.out, args.merged, args.base or "", args.revision or "", args.strength, args.dtype,
                            args.push_to_hub, args.watermark, args.language,
                            args.layout)
    print(release.push(run, folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


@command("the data for `datasets`, as a folder or on the hub",
         option("--out", type=Path, help="new folder (default: dataset of the run)"),
         option("--push-to-hub", group="hub", metavar="OWNER/NAME", help="push to the hub; an exported folder is pushed as "
                "it is"),
         option("--public", group="hub", action="store_true", help="visible to everybody (default: private)"),
         computes=False)
def export_dataset(args: argparse.Namespace) -> None:
    from tts_kit.data import export

    run = Run(args.run)
    folder = args.out or run.folder / "dataset"
    if not (args.push_to_hub and folder.is_dir()):
        if args.push_to_hub:
            export.check_push(run, args.push_to_hub, args.public)
        export.export(run, folder)
    print(export.push(folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


@command("check machine, packages and base model; plan a training",
         option("--plan", action="store_true", help="plan a training on common GPUs: batch, memory, minutes and dollars, "
                "for the clips and config of --run with the options given here"),
         option("--run", help="run to plan for (default: an example of one hour)"),
         config=TRAINING_GROUPS, run=None)
def doctor(args: argparse.Namespace) -> int:
    if args.plan:
        from tts_kit.doctor import plan

        print(plan.format_plan(Run(args.run) if args.run else None, **config_changes(args)))
        return 0
    for name in ("run", *config_changes(args)):
        if name != "base" and vars(args)[name] is not None:
            raise KitError(f"--{name.replace('_', '-')} is an option of --plan: give --plan too, or leave it out.")
    from tts_kit.doctor import checks

    results = checks.run_checks(args.base or Config.base)
    print(checks.format_report(results))
    return int(any(check.status == "fail" for check in results))


def _import_csm() -> None:
    """Import CSM's network as if scikit-learn and SciPy were absent: for metrics that CSM never uses transformers would load
    them, which takes longer than torch."""
    absent = [name for name in ("sklearn", "scipy") if name not in sys.modules]
    sys.modules.update(dict.fromkeys(absent))
    try:
        importlib.import_module("transformers.models.csm.modeling_csm")
    finally:
        for name in absent:
            del sys.modules[name]


def _device_config(args: argparse.Namespace):
    from tts_kit import device

    return device.choose(args.device, args.dtype)


def _print_next(run: Run) -> None:
    print(f"Next: {next_command(run)}")


def _adjust(voice, args: argparse.Namespace) -> None:
    """Give a voice the options for prompts and sampling; a lexicon is added to the voice's own."""
    changes, own = config_changes(args), voice.base.prompt_builder.options
    given = {name: changes[name] for name in own if name in changes}
    if "lexicon" in given:
        given["lexicon"] = tuple((dict(own["lexicon"]) | dict(given["lexicon"])).items())
    voice.set_prompt_options(**given)
    voice.normalize_loudness = getattr(args, "normalize_loudness", True)
    voice.sampling = voice.sampling.override(Config(**changes))


def _load_voice(args: argparse.Namespace, run: Run, adapter: str | Path, may_be_base: bool = False):
    """Load the adapter's voice, or the base model alone, with the sampling options given."""
    from tts_kit.speech.voice import load_voice
    from tts_kit.tokens.prompt import prompt_options

    base, revision = args.base or "", args.revision or ""
    if may_be_base and not Path(adapter).exists():
        config = load_config(run, **config_changes(args))
        adapter, base, revision = None, config.base, config.revision
    voice = load_voice(_device_config(args), adapter, base, revision)
    if adapter is None:
        voice.set_prompt_options(**prompt_options(config))
    _adjust(voice, args)
    return voice


def _load_voices(args: argparse.Namespace, sources: dict[str, str | Path]) -> dict:
    """Load voices by name, with the sampling options given."""
    from tts_kit.speech.voice import load_voices

    voices = load_voices(_device_config(args), sources, args.base or "", args.revision or "")
    for voice in voices.values():
        _adjust(voice, args)
    return voices


def _version() -> str:
    try:
        return importlib.metadata.version("tts-kit")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, running from a checkout)"
=======
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
        option("--reference", group="voice", metavar="FILE", help="clip to clone"),
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
        option("--recommend", group="sweep", action="store_true", help="find the guidance, strength and temperature with "
               "the best SIM and WER, on sentences that are not held out, and keep them with the adapter as its defaults; "
               "options such as --guidance win over them"),
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
>>>>>>> cut_judge
