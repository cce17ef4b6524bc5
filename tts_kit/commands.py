"""The commands of tts-kit: each calls the function of its stage with the options that were given."""

import argparse
import dataclasses
import importlib
import json
import sys
from pathlib import Path

import tts_kit  # whose functions are imported at first use
from tts_kit import text
from tts_kit.config import Config, load_config
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.run import TINY_CSM, share
from tts_kit.status import describe_runs, next_command

# what imports torch or transformers is imported inside the commands, so that --help is fast


def config_changes(args: argparse.Namespace) -> dict:
    """The fields of Config that were given on the command line."""
    given = {field.name: getattr(args, field.name, None) for field in dataclasses.fields(Config)}
    return {name: tuple(value) if isinstance(value, list) else value for name, value in given.items() if value is not None}


def demo(args: argparse.Namespace) -> None:
    from tts_kit import pipeline

    changes = config_changes(args)
    if not args.run.codes.exists() and not args.base:
        changes = {"base": str(TINY_CSM), **pipeline.TINY_PRESET} | changes
    config = load_config(args.run, **changes)
    pipeline.run_all(args.source, config, args.run, _device_config(args), args.sentences, args.seeds)


def prepare(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest, report

    if args.eval_source and args.held_out is not None:
        raise KitError("--held-out is a share of the clips, --eval-source names the clips: give one of the two.")
    config = _config(args)
    source, is_recording = args.source, ingest.is_recording(args.source)
    if is_recording:
        source = ingest.ingest(source, args.run, _device_config(args), args.asr_model, args.verify_asr_model, args.language,
                               config.speaker)
        if args.spoken_text is None and (foreign := sorted({*ingest.languages(args.run)} - {"en"})):
            print(f"Numbers are not written out for the model: the language is {', '.join(foreign)} (--spoken-text does).")
            config = config.replace(spoken_text=False)
    # hours of segmenting and transcribing are not refused for one bad clip
    tts_kit.prepare(source, args.run, config, args.skip_bad or is_recording, args.eval_source)
    print(report.brief_advice(args.run))
    print(f"Next: {next_command(args.run)}")


def review(args: argparse.Namespace) -> None:
    from tts_kit.data import ingest

    ingest.serve_review(args.run, load_config(args.run), args.port)


def report(args: argparse.Namespace) -> None:
    from tts_kit.data import report

    report.display(args.run)


def tokenize(args: argparse.Namespace) -> None:
    tts_kit.tokenize(_config(args), args.run, _device_config(args))
    print(f"Next: {next_command(args.run)}")


def train(args: argparse.Namespace) -> None:
    from tts_kit.training import finetune

    if args.source:
        share(args.source, args.run)
    config = _config(args)
    if not args.dry_run:
        finetune.finetune(config, args.run, _device_config(args))
        print(f"Next: {next_command(args.run)}")
        return
    summary = finetune.dry_run(config, args.run, _device_config(args))
    print(json.dumps(summary) if args.json else "\n".join(f"{name}: {value}" for name, value in summary.items()))


def speak(args: argparse.Namespace) -> None:
    _import_csm()
    from tts_kit.data import consent
    from tts_kit.speech import speak as speech
    from tts_kit.speech.voice import find_adapter

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
    if args.no_adapter and args.strength is not None:
        raise KitError("--strength scales the adapter, and --no-adapter leaves it out: give one of the two.")
    speech.check_path(args.out, args.watermark)
    chooser = _take_chooser(args)
    voice = _load_voice(args, args.adapter or args.run.adapter, may_be_base=args.no_adapter)
    if foreign := text.other_scripts(args.text):
        print(f"{foreign}: {Path(voice.base.name).name} was trained on Latin script, and speaks nothing of the kind unless "
              "the adapter was trained on it.")
    if args.strength is not None:
        voice.set_strength(args.strength)
    if not args.no_adapter:
        consent.warn_if_missing(args.run, adapter=(args.adapter and (find_adapter(args.adapter) or args.adapter)) or "")
    reference = tts_kit.Reference(args.reference, args.reference_text) if args.reference else None
    spoken = speech.speak(args.text, voice, reference, not args.no_adapter, args.seed, args.retries, chooser)
    for generation in spoken.generations if chooser else ():
        print(generation.choice)
    spoken.save(args.out, args.watermark)
    attempts = f"{spoken.attempts} attempt{'s' * (spoken.attempts != 1)}"
    ending = "ended with EOS" if spoken.ended_with_eos else "reached the length limit; try --retries 2 or another --seed"
    print(f"{args.out}: {spoken.seconds:.1f} s in {spoken.wall_seconds:.1f} s, {attempts}, {ending}.")
    if not args.watermark:
        print("No watermark, as requested: nothing in this file tells that it is synthetic.")


def _take_chooser(args: argparse.Namespace) -> object | None:
    if args.best_of == 1:
        return None
    from tts_kit.speech.best_of import TakeChooser

    recorded = manifest.read(args.run.data) if args.run.data.exists() and not args.adapter else []
    clips = [clip.audio for clip in recorded if clip.split == manifest.TRAIN][:10]
    return TakeChooser(args.best_of, [args.reference] if args.reference else clips)


def _speak_script(args: argparse.Namespace) -> None:
    from tts_kit.data import consent
    from tts_kit.speech import dialogue
    from tts_kit.speech import speak as speech
    from tts_kit.speech.voice import BASE, find_adapter, find_reference, parse_voices

    given = [name for name in ("adapter", "no_adapter", "reference", "reference_text") if getattr(args, name)]
    given += ["strength"] * (args.strength is not None)
    if given:
        raise KitError(f"--{given[0].replace('_', '-')} is not for a dialogue, whose voices are given by "
                       "--voice NAME=PATH.")
    speech.check_path(args.out, args.watermark)
    if args.turns and (Path(args.turns).is_file() or any(Path(args.turns).glob("*"))):
        raise KitError(f"{args.turns} exists and is not an empty folder. Give --turns another one.")
    lines, sources = dialogue.read_script(args.script), parse_voices(args.voice)
    if args.run.adapter.exists():
        sources = {args.run.name: args.run.adapter} | sources
    dialogue.check_speakers(lines, sources)
    sources = {line.speaker: sources[line.speaker] for line in lines}
    for source in sources.values():
        if str(source) != BASE and not find_reference(source) and (folder := find_adapter(source)):
            consent.warn_if_missing(args.run, adapter=folder)
    spoken = dialogue.dialogue(lines, _load_voices(args, sources), args.seed, args.retries, args.pause)
    spoken.save(args.out, args.watermark)
    if args.turns:
        spoken.save_turns(args.turns, args.watermark)
    failed = [line.label for line, turn in zip(spoken.lines, spoken.turns) if not turn.ended_with_eos]
    print(f"{args.out}: {len(lines)} turns, {spoken.seconds:.1f} s in {spoken.wall_seconds:.1f} s, " + (
        f"{', '.join(failed)} reached the length limit; try --retries 2 or another --seed." if failed else
        "all ended with EOS."))


def compare(args: argparse.Namespace) -> None:
    from tts_kit.comparison import compare as comparison

    if args.responses:
        if args.sweep or args.recommend or not (args.sentences is args.seeds is args.arms is None):
            raise KitError("--responses counts answers to the comparison as it is: leave --sentences, --seeds, --arms, "
                           "--sweep and --recommend out.")
        comparison.count_responses(args.run, args.responses)
        return
    settings = [field.name for field in dataclasses.fields(Config) if field.metadata["group"] == "sampling"]
    given = [name for name in (*settings, "sweep", "arms") if getattr(args, name) not in (None, [])]
    if args.recommend and given:
        raise KitError("--recommend measures the fine-tuned voice against its own settings: leave "
                       f"--{given[0].replace('_', '-')} out.")
    voice = _load_voice(args, args.run.adapter)
    if args.recommend:
        size = {name: getattr(args, name) for name in ("sentences", "seeds") if getattr(args, name) is not None}
        tts_kit.recommend(args.run, voice, **size)
    elif args.sweep:
        swept: dict[str, list[float]] = {}
        for name, values in args.sweep:
            swept.setdefault(name, []).extend(values)
        comparison.run_sweep(args.run, voice, swept, args.sweep_arm, args.sentences or 10, args.seeds or [1, 2, 3])
    else:
        comparison.compare(args.run, voice, args.sentences, args.seeds, args.arms, test_types=args.listening_test)
        print(f"Next: {next_command(args.run)}")


def serve(args: argparse.Namespace) -> None:
    _import_csm()
    from tts_kit.server import app as server
    from tts_kit.speech.voice import BASE, parse_voices

    voices = parse_voices(args.voice)
    if args.run.adapter.exists() or not voices:
        voices = {args.run.name: args.run.adapter} | voices
        voices.setdefault(BASE, BASE)
    server.run_server(lambda: _load_voices(args, voices), args.host, args.port, server.read_api_keys(args.api_key),
                      args.watermark, args.queue_timeout)


def detect_watermark(args: argparse.Namespace) -> int:
    from tts_kit import watermark

    return watermark.report_files(args.files, args.json)


def status(args: argparse.Namespace) -> None:
    print(describe_runs())


def consent(args: argparse.Namespace) -> None:
    from tts_kit.data import consent

    print(consent.ensure(args.run, args.who, args.kind, args.statement))


def export(args: argparse.Namespace) -> None:
    from tts_kit.export import release

    if args.push_to_hub:
        release.check_push(args.run, args.push_to_hub, args.public)
    folder = release.export(args.run, args.out, args.merged, args.base or "", args.revision or "", args.strength, args.dtype,
                            args.push_to_hub, args.watermark, args.language, args.layout)
    print(release.push(args.run, folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


def export_dataset(args: argparse.Namespace) -> None:
    from tts_kit.data import export

    folder = args.out or args.run.folder / "dataset"
    if not (args.push_to_hub and folder.is_dir()):
        if args.push_to_hub:
            export.check_push(args.run, args.push_to_hub, args.public)
        export.export(args.run, folder)
    print(export.push(folder, args.push_to_hub, args.public) if args.push_to_hub else folder)


def doctor(args: argparse.Namespace) -> int:
    if args.plan:
        from tts_kit.doctor import plan

        print(plan.format_plan(args.run, **config_changes(args)))
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


def _config(args: argparse.Namespace) -> Config:
    return load_config(args.run, **config_changes(args))


def _device_config(args: argparse.Namespace):
    return tts_kit.choose_device(args.device, args.dtype)


def _load_voice(args: argparse.Namespace, adapter: str | Path, may_be_base: bool = False):
    """Load the adapter's voice, or the base model alone, with the sampling options given."""
    if may_be_base and not Path(adapter).exists():
        config = _config(args)
        voice = tts_kit.load_voice(_device_config(args), None, config.base, config.revision)
        voice.override(**dataclasses.asdict(config))
    else:
        voice = tts_kit.load_voice(_device_config(args), adapter, args.base or "", args.revision or "")
    _adjust(voice, args)
    return voice


def _load_voices(args: argparse.Namespace, sources: dict[str, str | Path]) -> dict:
    """Load voices by name, with the sampling options given."""
    voices = tts_kit.load_voices(_device_config(args), sources, args.base or "", args.revision or "")
    for voice in voices.values():
        _adjust(voice, args)
    return voices


def _adjust(voice, args: argparse.Namespace) -> None:
    voice.override(**config_changes(args))
    voice.normalize_loudness = getattr(args, "normalize_loudness", True)
