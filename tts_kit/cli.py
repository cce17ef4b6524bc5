"""tts-kit COMMAND: fine-tune a token-based TTS model on one voice, and measure whether it helped."""

import argparse
import dataclasses
import importlib.metadata
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from tts_kit.comparison.arms import GENERATED_ARMS
from tts_kit.config import CHECKPOINT_DEFAULT, Config, load_config
from tts_kit.errors import KitError, report_errors
from tts_kit.run import Run

# torch and transformers are imported inside the commands, so that --help is fast
DATA_FIELDS = ("speaker", "split_seed", "max_seconds", "max_characters", "held_out")
BASE_FIELDS = ("base", "revision")
SAMPLING_FIELDS = ("temperature", "depth_temperature", "top_k")
PLAN_FIELDS = ("revision", "rank", "lora_targets", "steps", "tokens_per_batch", "gradient_accumulation_steps", "packing",
               "context_probability", "depth_frame_fraction", "gradient_checkpointing", "offload_text_embeddings",
               "eval_steps")
ALL_FIELDS = tuple(field.name for field in dataclasses.fields(Config))


@report_errors
def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command."""
    parser = build_parser()
    args = parser.parse_args(arguments)
    if args.func is None:
        parser.print_help()
        return 2
    return args.func(args) or 0


def build_parser() -> argparse.ArgumentParser:
    """All commands with their options."""
    parser = argparse.ArgumentParser(
        prog="tts-kit", description="Fine-tune a token-based TTS model on one voice, and measure whether it helped.",
        epilog="prepare, tokenize, train and compare are the stages of a run; `tts-kit COMMAND --help` lists options.")
    parser.add_argument("--version", action="version", version=f"tts-kit {_version()}")
    parser.set_defaults(func=None)
    commands = parser.add_subparsers(metavar="COMMAND")
    for add_command in (_add_demo, _add_prepare, _add_review, _add_report, _add_tokenize, _add_train, _add_speak,
                        _add_compare, _add_serve, _add_consent, _add_export, _add_export_dataset, _add_detect_watermark,
                        _add_doctor):
        add_command(commands)
    return parser


# ------------------------------------------------------------------------------------------------------------- stages


def _add_prepare(commands) -> None:
    parser = _command(commands, "prepare", prepare, "recordings, or clips with transcripts -> checked, split clips")
    parser.add_argument("source", help="a recording, a folder of recordings or a URL, to segment and transcribe; a folder "
                        "with metadata.csv, a .jsonl file, a hub dataset (owner/name); or an example: example:emma is the "
                        "bundled voice, example:recording one long take of it, example:allison a human voice, to download")
    group = parser.add_argument_group("recordings")
    group.add_argument("--asr-model", default="", help="Whisper model, by name or folder, or `bundled`, which needs no "
                       "hub (default: large-v3-turbo on a GPU, else small)")
    group.add_argument("--verify-asr-model", default="", help="second Whisper model, whose disagreements are flagged "
                       "(default: a smaller one; none: no second pass)")
    group.add_argument("--language", default="", help="two letters (default: detected)")
    parser.add_argument("--eval-source", metavar="SOURCE", default="", help="hold out the clips of this source instead of a "
                        "share of the first one's")
    parser.add_argument("--skip-bad", action="store_true", help="leave out bad clips and list them, instead of stopping")
    add_config_options(parser, DATA_FIELDS)


def prepare(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest
    from tts_kit.data import prepare as preparation

    if args.eval_source and args.held_out is not None:
        raise KitError("--held-out is a share of the clips, --eval-source names the clips: give one of the two.")
    run = Run(args.run)
    config = load_config(run, **config_changes(args))
    source, is_recording = args.source, ingest.is_recording(args.source)
    if is_recording:
        source = ingest.ingest(source, run, _device_config(args), args.asr_model, args.verify_asr_model, args.language,
                               config.speaker)
    # hours of segmenting and transcribing are not refused for one bad clip
    preparation.prepare(source, run, config, args.skip_bad or is_recording, args.eval_source)


def _add_tokenize(commands) -> None:
    parser = _command(commands, "tokenize", tokenize, "clips -> codes of the codec, encoded once")
    add_config_options(parser, BASE_FIELDS)


def tokenize(args: argparse.Namespace) -> None:
    from tts_kit.tokens import cache

    run = Run(args.run)
    cache.tokenize(load_config(run, **config_changes(args)), run, _device_config(args))


def _add_train(commands) -> None:
    parser = _command(commands, "train", train, "codes -> LoRA adapter")
    parser.add_argument("--dry-run", action="store_true", help="count what would be trained, without loading weights")
    parser.add_argument("--json", action="store_true", help="print the dry run as a JSON object")
    add_config_options(parser, tuple(name for name in ALL_FIELDS if name not in DATA_FIELDS))


def train(args: argparse.Namespace) -> None:
    from tts_kit.training import finetune

    run = Run(args.run)
    config = load_config(run, **config_changes(args))
    if not args.dry_run:
        finetune.finetune(config, run, _device_config(args))
        return
    summary = finetune.dry_run(config, run, _device_config(args))
    print(json.dumps(summary) if args.json else "\n".join(f"{name}: {value}" for name, value in summary.items()))


def _add_compare(commands) -> None:
    parser = _command(commands, "compare", compare, "held-out sentences in every arm -> a verdict and a page to listen to")
    add_comparison_options(parser, 10, [1, 2, 3])
    parser.add_argument("--arms", nargs="+", metavar="ARM", default=list(GENERATED_ARMS),
                        help=f"arms of the model: {', '.join(GENERATED_ARMS)}, with settings after a colon "
                        "(finetuned:strength=0.5, finetuned:checkpoint=40, clone:references=3); external systems: kokoro, "
                        f"pocket-tts, xtts-v2, f5-tts, orpheus-3b; clips of any other system: folder:NAME=PATH "
                        f"(default {' '.join(GENERATED_ARMS)})")
    parser.add_argument("--listening-test", nargs="*", choices=("ab", "smos", "cmos"), default=["ab", "smos"],
                        help="test types on the listeners' page (default ab smos; no value: no page)")
    parser.add_argument("--responses", nargs="+", type=Path, default=[], metavar="FILE",
                        help="responses of listeners, which join the verdict")
    group = parser.add_argument_group("sweep")
    group.add_argument("--sweep", type=_setting_values, action="append", default=[], metavar="NAME=VALUE,VALUE",
                       help="compare values of a setting (temperature, depth_temperature, strength, checkpoint, references, "
                       "reference_seconds) instead of arms, on sentences that are not held out; may be repeated")
    group.add_argument("--sweep-arm", choices=GENERATED_ARMS, default="finetuned",
                       help="arm whose settings are swept (default finetuned)")
    add_config_options(parser, BASE_FIELDS + SAMPLING_FIELDS)


def compare(args: argparse.Namespace) -> None:
    from tts_kit.comparison import compare as comparison
    from tts_kit.comparison import sweep

    run = Run(args.run)
    voice = _load_voice(args, run, run.adapter)
    if not args.sweep:
        comparison.compare(run, voice, args.sentences, args.seeds, args.arms, args.responses, args.listening_test)
        return
    settings: dict[str, list[float]] = {}
    for name, values in args.sweep:
        settings.setdefault(name, []).extend(values)
    sweep.run_sweep(run, voice, settings, args.sweep_arm, args.sentences, args.seeds)


def _add_demo(commands) -> None:
    parser = _command(commands, "demo", demo, "all stages on the bundled voice and model, without GPU or hub",
                      default_run="demo")
    parser.add_argument("--source", default="example:emma", help="other clips than the bundled voice (see prepare)")
    add_comparison_options(parser, 10, [1, 2])
    add_config_options(parser, ALL_FIELDS)


def demo(args: argparse.Namespace) -> None:
    from tts_kit import pipeline

    run, changes = Run(args.run), config_changes(args)
    if not run.data.exists():
        changes = pipeline.demo_settings(args.base) | changes
    pipeline.run_all(args.source, load_config(run, **changes), run, _device_config(args), args.sentences, args.seeds)


# --------------------------------------------------------------------------------------------------------------- data


def _add_review(commands) -> None:
    parser = _command(commands, "review", review, "correct the transcripts of recordings on a local page", computes=False)
    parser.add_argument("--port", type=int, default=0, help="port of the page (default: any free one)")


def review(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest

    run = Run(args.run)
    ingest.serve_review(run, load_config(run), args.port)


def _add_report(commands) -> None:
    _command(commands, "report", report, "the run's data as a page: how much, how clean, which clips to check first",
             computes=False)


def report(args: argparse.Namespace) -> None:
    from tts_kit.data import report

    report.display(Run(args.run))


def _add_export_dataset(commands) -> None:
    parser = _command(commands, "export-dataset", export_dataset, "the run's data as a folder for `datasets`, or on the hub",
                      computes=False)
    parser.add_argument("--out", type=Path, help="new folder (default: dataset, in the run's folder)")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", help="push to the hub; an exported folder is pushed as it is")
    parser.add_argument("--public", action="store_true", help="visible to everybody (default: private)")


def export_dataset(args: argparse.Namespace) -> None:
    from tts_kit.data import export

    run = Run(args.run)
    folder = args.out or run.folder / "dataset"
    if not (args.push_to_hub and folder.is_dir()):
        if args.push_to_hub:
            export.check_push(run, args.push_to_hub, args.public)
        export.export(run, folder)
    print(export.push(folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


# -------------------------------------------------------------------------------------------------------------- voice


def _add_speak(commands) -> None:
    parser = _command(commands, "speak", speak, "text -> speech")
    parser.add_argument("text", help="text of any length")
    parser.add_argument("--out", default="speech.wav", help="output file, .wav or .flac (default speech.wav)")
    group = parser.add_argument_group("voice")
    group.add_argument("--adapter", help="adapter folder or hub id (default: the run's)")
    group.add_argument("--no-adapter", action="store_true", help="use the base model alone")
    group.add_argument("--strength", type=float, default=1.0, help="scale of the adapter: 0 is the base, 1 as trained")
    group.add_argument("--reference", help="clip to clone")
    group.add_argument("--reference-text", help="transcript of that clip")
    parser.add_argument("--seed", type=non_negative_int, default=0, help="sampling seed (default 0)")
    parser.add_argument("--retries", type=non_negative_int, default=0, help="new attempts for a sentence without EOS")
    parser.add_argument("--stream", action="store_true", help="write while generating")
    parser.add_argument("--no-watermark", dest="watermark", action="store_false", help="leave out the watermark")
    add_config_options(parser, BASE_FIELDS + SAMPLING_FIELDS)


def speak(args: argparse.Namespace) -> None:
    from tts_kit.data import consent
    from tts_kit.speech import speak as speech
    from tts_kit.speech import stream
    from tts_kit.speech.voice import Reference, find_adapter

    if bool(args.reference) != bool(args.reference_text):
        raise KitError("a reference is a clip and its transcript: give --reference FILE and --reference-text TEXT, or "
                       "neither.")
    if args.stream and args.retries:
        raise KitError("--stream hands out audio at once, so nothing can be generated again: leave --retries out.")
    if args.no_adapter and args.strength != 1.0:
        raise KitError("--strength scales the adapter, and --no-adapter leaves it out: give one of the two.")
    speech.check_path(args.out, args.watermark)
    run = Run(args.run)
    voice = _load_voice(args, run, args.adapter or run.adapter, may_be_base=args.no_adapter)
    if args.strength != 1.0:
        voice.set_strength(args.strength)
    if not args.no_adapter:
        consent.warn_if_missing(run, adapter=(args.adapter and (find_adapter(args.adapter) or args.adapter)) or "")
    reference = Reference(args.reference, args.reference_text) if args.reference else None
    if args.stream:
        spoken = stream.stream(args.text, voice, reference, not args.no_adapter, args.seed)
        spoken.save(args.out, args.watermark)
        detail, remedy = f"first audio after {spoken.first_audio_seconds or 0:.2f} s", "another --seed"
    else:
        spoken = speech.speak(args.text, voice, reference, not args.no_adapter, args.seed, args.retries)
        spoken.save(args.out, args.watermark)
        detail, remedy = f"{spoken.attempts} attempt{'s' * (spoken.attempts != 1)}", "--retries 2 or another --seed"
    ending = "ended with EOS" if spoken.ended_with_eos else f"reached the length limit; try {remedy}"
    print(f"{args.out}: {spoken.seconds:.1f} s in {spoken.wall_seconds:.1f} s, {detail}, {ending}.")
    if not args.watermark:
        print("No watermark, as requested: nothing in this file tells that it is synthetic.")


def _add_serve(commands) -> None:
    parser = _command(commands, "serve", serve, "voices behind OpenAI's speech API, and a page to try them")
    parser.add_argument("--voice", action="append", default=[], metavar="NAME=PATH", help="another voice: an adapter "
                        "folder, a base or merged model, or a hub id; may be repeated (default: the run's alone)")
    parser.add_argument("--host", default="127.0.0.1", help="address to bind (default 127.0.0.1, this machine only)")
    parser.add_argument("--port", type=non_negative_int, default=8000, help="port (default 8000; 0: any free one)")
    parser.add_argument("--api-key", action="append", default=[], help="key that clients must send; may be repeated; "
                        "required for other hosts than this machine. The variable TTS_KIT_KEY is one too, and stays private")
    parser.add_argument("--queue-timeout", type=float, default=120.0, metavar="SECONDS",
                        help="how long a request may wait in the queue (default 120)")
    parser.add_argument("--no-watermark", dest="watermark", action="store_false", help="leave out the watermark")
    add_config_options(parser, BASE_FIELDS + SAMPLING_FIELDS)


def serve(args: argparse.Namespace) -> None:
    try:
        from tts_kit.server import app as server
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise KitError(f'the server needs {error.name}: pip install "tts-kit[serve]"') from error

    from tts_kit.speech.voice import load_voices

    run = Run(args.run)
    voices = server.parse_voices(args.voice)
    if run.adapter.exists() or not voices:
        voices = {run.name: run.adapter} | voices
    sampling = _sampling_config(args)

    def load() -> dict:
        loaded = load_voices(_device_config(args), voices, args.base or "", args.revision or "")
        for voice in loaded.values():
            voice.sampling = voice.sampling.override(sampling)
        return loaded

    server.run_server(load, args.host, args.port, server.read_api_keys(args.api_key), args.watermark, args.queue_timeout)


def _add_consent(commands) -> None:
    parser = _command(commands, "consent", consent, "record whose voice it is and who permitted a model of it",
                      computes=False)
    parser.add_argument("--who", default="", help="name of the speaker, or of the system that generated the speech")
    parser.add_argument("--kind", default="", metavar="KIND", help="own (my voice), written (written permission), licensed "
                        "(a corpus whose licence allows it, or public domain), synthetic (a TTS system)")
    parser.add_argument("--statement", default="", help="the statement, word for word")


def consent(args: argparse.Namespace) -> None:
    from tts_kit.data import consent

    print(consent.ask(Run(args.run), args.who, args.kind, args.statement))


def _add_export(commands) -> None:
    parser = _command(commands, "export", export, "the voice as a folder for others with its model card, or on the hub",
                      computes=False)
    parser.add_argument("--merged", action="store_true",
                        help="export merged weights for plain transformers (default: the adapter)")
    parser.add_argument("--strength", type=float, default=1.0, help="scale of the merged adapter (default 1)")
    parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
                        help="dtype of merged weights (auto: float32, which is exact)")
    parser.add_argument("--out", default="", help="folder (default: release/adapter or release/merged, in the run's folder)")
    parser.add_argument("--push-to-hub", metavar="OWNER/NAME", default="", help="push to the hub as this model")
    parser.add_argument("--public", action="store_true", help="visible to everybody, which requires a consent record "
                        "(default: private)")
    parser.add_argument("--no-watermark", dest="watermark", action="store_false",
                        help="leave the watermark out of the card's clips")
    add_config_options(parser, BASE_FIELDS)


def export(args: argparse.Namespace) -> None:
    from tts_kit.export import adapter

    run = Run(args.run)
    if args.push_to_hub:
        adapter.check_push(run, args.push_to_hub, args.public)
    folder = adapter.export(run, args.out, args.merged, args.base or "", args.revision or "", args.strength, args.dtype,
                           args.push_to_hub, args.watermark)
    print(adapter.push(run, folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


def _add_detect_watermark(commands) -> None:
    parser = _command(commands, "detect-watermark", detect_watermark, "whether audio files carry the watermark; exit status "
                      "0: all do, 1: one does not, 2: one cannot be read", has_run=False)
    parser.add_argument("files", nargs="+", metavar="FILE",
                        help="WAV, FLAC, MP3, OGG, Opus; M4A and others if PyAV is installed")


def detect_watermark(args: argparse.Namespace) -> int:
    from tts_kit import watermark

    return watermark.report_files(args.files)


# ------------------------------------------------------------------------------------------------------------- doctor


def _add_doctor(commands) -> None:
    parser = _command(commands, "doctor", doctor, "check this machine, its packages and the base model", has_run=False)
    parser.add_argument("--plan", action="store_true", help="plan a training on common GPUs: batch, memory, minutes and "
                        "dollars, for the clips and config of --run with the options given here")
    parser.add_argument("--run", help="run to plan for (default: an example of one hour)")
    add_config_options(parser, ("base", *PLAN_FIELDS))


def doctor(args: argparse.Namespace) -> int:
    given = [name for name in ("run", *PLAN_FIELDS) if vars(args)[name] is not None]
    if args.plan:
        from tts_kit.doctor import plan

        print(plan.format_plan(Run(args.run) if args.run else None, **config_changes(args)))
        return 0
    if given:
        raise KitError(f"--{given[0].replace('_', '-')} is an option of --plan: give --plan too, or leave it out.")
    from tts_kit.doctor import checks

    results = checks.run_checks(args.base or Config.base)
    print(checks.format_report(results))
    return int(any(check.status == "fail" for check in results))


# ------------------------------------------------------------------------------------------------------------ options


def add_config_options(parser: argparse.ArgumentParser, names: Sequence[str]) -> None:
    """Add options for fields of Config; one that is not given keeps the run's stored value, or the default."""
    group = parser.add_argument_group("config", "stored with the run; an option that is not given keeps its stored value")
    for field in dataclasses.fields(Config):
        if field.name not in names:
            continue
        options: dict = {"type": type(field.default), "choices": field.metadata["choices"]}
        if isinstance(field.default, bool):
            options = {"action": argparse.BooleanOptionalAction}
        elif isinstance(field.default, tuple):
            options = {"nargs": "+"}
        if field.default not in ("", CHECKPOINT_DEFAULT) and not isinstance(field.default, tuple):
            options["help"] = f"{field.metadata['help']} (default {field.default})"
        else:
            options["help"] = field.metadata["help"]
        if not isinstance(field.default, bool):
            options["metavar"] = None if options.get("choices") else "X"
        group.add_argument(f"--{field.name.replace('_', '-')}", dest=field.name, default=None,
                           **options | {"help": options["help"].replace("%", "%%")})


def config_changes(args: argparse.Namespace) -> dict:
    """The fields of Config that were given on the command line."""
    given = {name: getattr(args, name, None) for name in ALL_FIELDS}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}


def add_comparison_options(parser: argparse.ArgumentParser, sentences: int, seeds: list[int]) -> None:
    """Add the size of a comparison."""
    parser.add_argument("--sentences", type=non_negative_int, default=sentences,
                        help=f"number of held-out sentences (default {sentences})")
    parser.add_argument("--seeds", type=non_negative_int, nargs="+", default=seeds,
                        help=f"seeds; each sentence is generated once per seed (default {' '.join(map(str, seeds))})")


def non_negative_int(text: str) -> int:
    """An integer that is valid as a count and as a seed."""
    number = int(text)
    if not 0 <= number < 2**62:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 2**62")
    return number


def _setting_values(text: str) -> tuple[str, list[float]]:
    name, _, values = text.partition("=")
    try:
        return name, [float(value) for value in values.split(",")]
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text} is not NAME=VALUE,VALUE, as in strength=0.5,1,1.5") from error


def _command(commands, name: str, func: Callable, description: str, has_run: bool = True, computes: bool = True,
             default_run: str = "voice") -> argparse.ArgumentParser:
    """Add a subcommand; most work on a run, and compute something."""
    parser = commands.add_parser(name, help=description, description=description)
    parser.set_defaults(func=func)
    if has_run:
        parser.add_argument("--run", default=default_run,
                            help=f"name of the run; its folder is runs/NAME (default {default_run})")
    if has_run and computes:
        parser.add_argument("--device", default="auto", choices=("auto", "cuda", "mps", "cpu"), help="default auto")
        parser.add_argument("--dtype", default="auto", choices=("auto", "float32", "bfloat16"),
                            help="compute dtype (auto: 16 bits on NVIDIA GPUs, else float32)")
    return parser


# ------------------------------------------------------------------------------------------------------------ loading


def _device_config(args: argparse.Namespace):
    from tts_kit import device

    return device.choose(args.device, args.dtype)


def _load_voice(args: argparse.Namespace, run: Run, adapter: str | Path, may_be_base: bool = False):
    """Load the adapter's voice, or the base model alone, with the sampling options given."""
    from tts_kit.speech.voice import load_voice

    base, revision = args.base or "", args.revision or ""
    if may_be_base and not Path(adapter).exists():
        config = load_config(run, **config_changes(args))
        adapter, base, revision = None, config.base, config.revision
    voice = load_voice(_device_config(args), adapter, base, revision)
    voice.sampling = voice.sampling.override(_sampling_config(args))
    return voice


def _sampling_config(args: argparse.Namespace) -> Config:
    return Config().replace(**{name: value for name, value in config_changes(args).items() if name in SAMPLING_FIELDS})


def _version() -> str:
    try:
        return importlib.metadata.version("tts-kit")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed, running from a checkout)"


if __name__ == "__main__":
    sys.exit(main())
