"""What each verb does: a few lines over the function that a notebook cell calls too."""

import argparse
import json
from pathlib import Path

from tts_kit import options as told
from tts_kit.config import Config, load_config
from tts_kit.errors import KitError
from tts_kit.run import Run

SAMPLING = ("temperature", "depth_temperature", "top_k")


def doctor(options: argparse.Namespace) -> int:
    if told.plans(options):
        from tts_kit.doctor import plan

        print(plan.format_plan(Run(options.run) if options.run else None, **told.given(options)))
        return 0
    from tts_kit import doctor as surgery

    checks = surgery.run_checks(options.base or Config.base)
    print(surgery.report(checks))
    return int(any(check.state == "fail" for check in checks))


def prepare(options: argparse.Namespace) -> None:
    if options.held_out_from and options.held_out is not None:
        raise KitError("--held-out is a share of the clips, --held-out-from names the clips: give one of the two.")
    run = Run(options.run)
    config = _recipe(options, run)
    from tts_kit.data import ingest
    from tts_kit.data import prepare as preparation

    source = ingest.ingest(options.source, run, _runtime(options), options.transcriber, options.second_transcriber,
                          options.language, config.speaker)
    # what was cut and written down for hours is not refused for one clip
    preparation.prepare(source, run, config, options.skip_bad or source != options.source, options.held_out_from)


def report(options: argparse.Namespace) -> None:
    from tts_kit.data import report as room

    room.show(Run(options.run))


def export_dataset(options: argparse.Namespace) -> None:
    from tts_kit.data import export as room

    run = Run(options.run)
    folder = options.out or run.folder / "dataset"
    if not (options.push and folder.is_dir()):
        if options.push:
            room.refuse_to_push(run, options.push, options.public)
        room.export(run, folder)
    print(room.push(folder, options.push, options.public) if options.push else folder)


def review(options: argparse.Namespace) -> None:
    from tts_kit.data import ingest

    run = Run(options.run)
    ingest.serve_review(run, load_config(run), options.port)


def tokenize(options: argparse.Namespace) -> None:
    from tts_kit import tokens

    run = Run(options.run)
    tokens.encode(_recipe(options, run), run, _runtime(options))


def train(options: argparse.Namespace) -> None:
    run = Run(options.run)
    config = _recipe(options, run)
    from tts_kit.training import finetune

    if not options.dry_run:
        finetune.finetune(config, run, _runtime(options))
        return
    plan = finetune.dry_run(config, run, _runtime(options))
    print(json.dumps(plan) if options.json else "\n".join(f"{name}: {value}" for name, value in plan.items()))


def speak(options: argparse.Namespace) -> None:
    from tts_kit.data import consent as allowed
    from tts_kit.speech import output, resolve, stream
    from tts_kit.speech import speak as room

    if bool(options.reference) != bool(options.reference_text):
        raise KitError("a reference is a clip and what is said in it: give --reference FILE and --reference-text TEXT, or "
                      "neither.")
    if options.stream and options.retries:
        raise KitError("--stream hands out what it says at once, so that nothing can be said again: leave --retries out.")
    if options.no_adapter and options.strength != 1.0:
        raise KitError("--strength says how much of the adapter is heard, and --no-adapter leaves it out: give one of the two.")
    output.check_path(options.out, options.watermark)
    run = Run(options.run)
    voice = _voice(options, run, options.adapter or run.adapter, may_be_base=options.no_adapter)
    if options.strength != 1.0:
        voice.set_strength(options.strength)
    if not options.no_adapter:
        allowed.warn_if_missing(run, adapter=(options.adapter and (resolve.find_adapter(options.adapter) or options.adapter)) or "")
    reference = room.Reference(options.reference, options.reference_text) if options.reference else None
    voice.int8 = options.int8
    if options.stream:
        speech = stream.stream(options.text, voice, reference, not options.no_adapter, options.seed)
        output.save_speech(speech, options.out, options.watermark)
        how, remedy = f"first sound after {speech.first_seconds or 0:.2f} s", "another --seed"
    else:
        speech = room.speak(options.text, voice, reference, not options.no_adapter, options.seed, options.retries)
        output.save_speech(speech, options.out, options.watermark)
        how, remedy = f"{speech.takes} take{'s' * (speech.takes != 1)}", "--retries 2 or another --seed"
    ended = "ended by itself" if speech.ended_with_eos else f"ran to its limit; try {remedy}"
    print(f"{options.out}: {speech.seconds:.1f} s in {speech.wall_seconds:.1f} s, {how}, {ended}.")
    if not options.watermark:
        print("No watermark, as asked: nothing in this file will tell that a machine spoke.")


def consent(options: argparse.Namespace) -> None:
    from tts_kit.data import consent as room

    print(room.ask(Run(options.run), options.who, options.kind, options.statement))


def export(options: argparse.Namespace) -> None:
    from tts_kit.export import export as room

    run = Run(options.run)
    if options.push:
        room.refuse_to_push(run, options.push, options.public)
    folder = room.export(run, options.out, options.merged, options.base or "", options.revision or "", options.strength,
                         options.dtype, options.push, options.watermark)
    print(room.push(run, folder, options.push, options.public) if options.push else folder)


def detect_watermark(options: argparse.Namespace) -> int:
    from tts_kit import watermark

    return watermark.report_files(options.files)


def serve(options: argparse.Namespace) -> None:
    run = Run(options.run)
    try:
        from tts_kit.server import serve as room
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise KitError(f"the server needs {error.name}: pip install -r requirements-serve.txt -c constraints.txt") from error
    from tts_kit.speech import adapters

    others = room.parse_voices(options.voice)
    wanted = ({run.name: run.adapter} if run.adapter.exists() or not others else {}) | others
    sampling = _sampling(options)

    def load() -> dict:
        cast = adapters.load_voices(_runtime(options), wanted, options.base or "", options.revision or "")
        for voice in cast.values():
            voice.sampling, voice.int8 = voice.sampling.asked(sampling), options.int8
        return cast

    room.run_server(load, options.host, options.port, room.read_api_keys(options.key), options.watermark, options.queue_timeout)


def compare(options: argparse.Namespace) -> None:
    from tts_kit.comparison import compare as contest
    from tts_kit.comparison import sweep

    run = Run(options.run)
    voice = _voice(options, run, run.adapter)
    if options.knob:
        wanted = {name: [] for name, _ in options.knob}
        for name, values in options.knob:
            wanted[name] += values
        sweep.run_sweep(run, voice, wanted, options.knobs_of, options.sentences, options.seeds)
    else:
        contest.compare(run, voice, options.sentences, options.seeds, options.arms, options.votes, options.blind)


def demo(options: argparse.Namespace) -> None:
    from tts_kit import pipeline

    run = Run(options.run)
    given = told.given(options)
    if not run.data.exists():
        given = ({} if options.base else pipeline.TINY_PRESET) | {"base": pipeline.choose_base(options.base or "")} | given
    pipeline.run_all(options.source or "example:emma", load_config(run, **given), run, _runtime(options), options.sentences,
               options.seeds)


def _recipe(options, run: Run) -> Config:
    return load_config(run, **told.given(options))


def _runtime(options):
    from tts_kit import device

    return device.choose(options.device, options.dtype)


def _voice(options, run: Run, adapter, may_be_base: bool = False):
    """The adapter's voice, sampled as it was told in training or as it is told now; or the base alone."""
    from tts_kit.speech import speak as room

    base, revision = options.base or "", options.revision or ""
    if may_be_base and not Path(adapter).exists():
        config = _recipe(options, run)
        adapter, base, revision = None, config.base, config.revision
    voice = room.load_voice(_runtime(options), adapter, base, revision)
    voice.sampling = voice.sampling.asked(_sampling(options))
    return voice


def _sampling(options) -> Config:
    """What was told of sampling, and nothing else."""
    return Config().but(**{name: value for name, value in told.given(options).items() if name in SAMPLING})
