"""What each verb does: a few lines over the function that a notebook cell calls too."""

import argparse
import json
from pathlib import Path

from tts_kit import options as told
from tts_kit import recipe as recipes
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run

SAMPLING = ("temperature", "depth_temperature", "top_k")


def doctor(options: argparse.Namespace) -> int:
    if told.plans(options):
        from tts_kit.doctor import plan

        print(plan.show(Run(options.run) if options.run else None, **told.given(options)))
        return 0
    from tts_kit import doctor as surgery

    checks = surgery.examine(options.base or Recipe.base)
    print(surgery.report(checks))
    return int(any(check.state == "fail" for check in checks))


def data(options: argparse.Namespace) -> None:
    if options.held_out_from and options.held_out is not None:
        raise Problem("--held-out is a share of the clips, --held-out-from names the clips: give one of the two.")
    run = Run(options.run)
    recipe = _recipe(options, run)
    from tts_kit import data as room
    from tts_kit.data import desk

    source = desk.take_in(options.source, run, _runtime(options), options.transcriber, options.second_transcriber,
                          options.language, recipe.speaker)
    # what was cut and written down for hours is not refused for one clip
    room.prepare(source, run, recipe, options.skip_bad or source != options.source, options.held_out_from)


def report(options: argparse.Namespace) -> None:
    from tts_kit.data import report as room

    room.show(Run(options.run))


def dataset(options: argparse.Namespace) -> None:
    from tts_kit.data import export as room

    run = Run(options.run)
    folder = options.out or run.folder / "dataset"
    if not (options.push and folder.is_dir()):
        if options.push:
            room.refuse_to_push(run, options.push, options.public)
        room.export(run, folder)
    print(room.push(folder, options.push, options.public) if options.push else folder)


def review(options: argparse.Namespace) -> None:
    from tts_kit.data import desk

    run = Run(options.run)
    desk.sit(run, recipes.recall(run), options.port)


def tokenize(options: argparse.Namespace) -> None:
    from tts_kit import tokens

    run = Run(options.run)
    tokens.encode(_recipe(options, run), run, _runtime(options))


def train(options: argparse.Namespace) -> None:
    run = Run(options.run)
    recipe = _recipe(options, run)
    from tts_kit.tuning import finetune

    if not options.dry_run:
        finetune.fit(recipe, run, _runtime(options))
        return
    plan = finetune.rehearse(recipe, run, _runtime(options))
    print(json.dumps(plan) if options.json else "\n".join(f"{name}: {value}" for name, value in plan.items()))


def speak(options: argparse.Namespace) -> None:
    from tts_kit.data import consent as allowed
    from tts_kit.speech import files, places
    from tts_kit.speech import speak as room
    from tts_kit.speech import stream as live

    if bool(options.reference) != bool(options.reference_text):
        raise Problem("a reference is a clip and what is said in it: give --reference FILE and --reference-text TEXT, or "
                      "neither.")
    if options.stream and options.retries:
        raise Problem("--stream hands out what it says at once, so that nothing can be said again: leave --retries out.")
    if options.untuned and options.strength != 1.0:
        raise Problem("--strength says how much of the adapter is heard, and --untuned leaves it out: give one of the two.")
    files.check(options.out, options.watermark)
    run = Run(options.run)
    voice = _voice(options, run, options.adapter or run.adapter, may_be_base=options.untuned)
    if options.strength != 1.0:
        voice.set_strength(options.strength)
    if not options.untuned:
        allowed.remind(run, adapter=(options.adapter and (places.adapter(options.adapter) or options.adapter)) or "")
    reference = room.Reference(options.reference, options.reference_text) if options.reference else None
    voice.int8 = options.int8
    if options.stream:
        speech = live.stream(options.text, voice, reference, not options.untuned, options.seed)
        files.save(speech, options.out, options.watermark)
        how, remedy = f"first sound after {speech.first_seconds or 0:.2f} s", "another --seed"
    else:
        speech = room.speak(options.text, voice, reference, not options.untuned, options.seed, options.retries)
        files.save(speech, options.out, options.watermark)
        how, remedy = f"{speech.takes} take{'s' * (speech.takes != 1)}", "--retries 2 or another --seed"
    ended = "ended by itself" if speech.stopped else f"ran to its limit; try {remedy}"
    print(f"{options.out}: {speech.seconds:.1f} s in {speech.wall_seconds:.1f} s, {how}, {ended}.")
    if not options.watermark:
        print("No watermark, as asked: nothing in this file will tell that a machine spoke.")


def consent(options: argparse.Namespace) -> None:
    from tts_kit.data import consent as room

    print(room.ask(Run(options.run), options.who, options.kind, options.statement))


def export(options: argparse.Namespace) -> None:
    from tts_kit.release import export as room

    run = Run(options.run)
    if options.push:
        room.refuse_to_push(run, options.push, options.public)
    folder = room.export(run, options.out, options.merged, options.base or "", options.revision or "", options.strength,
                         options.dtype, options.push, options.watermark)
    print(room.push(run, folder, options.push, options.public) if options.push else folder)


def detect(options: argparse.Namespace) -> int:
    from tts_kit import watermark

    return watermark.report(options.files)


def serve(options: argparse.Namespace) -> None:
    run = Run(options.run)
    try:
        from tts_kit.speech import serve as room
    except ModuleNotFoundError as error:
        if error.name not in ("fastapi", "uvicorn", "starlette", "pydantic"):
            raise
        raise Problem(f"the server needs {error.name}: pip install -r requirements-serve.txt -c constraints.txt") from error
    from tts_kit.speech import voices

    others = room.places(options.voice)
    wanted = ({run.name: run.adapter} if run.adapter.exists() or not others else {}) | others
    sampling = _sampling(options)

    def load() -> dict:
        cast = voices.load(_runtime(options), wanted, options.base or "", options.revision or "")
        for voice in cast.values():
            voice.sampling, voice.int8 = voice.sampling.asked(sampling), options.int8
        return cast

    room.sit(load, options.host, options.port, room.keys(options.key), options.watermark, options.patience)


def compare(options: argparse.Namespace) -> None:
    from tts_kit.comparison import contest, knobs

    run = Run(options.run)
    voice = _voice(options, run, run.adapter)
    if options.knob:
        wanted = {name: [] for name, _ in options.knob}
        for name, values in options.knob:
            wanted[name] += values
        knobs.turn(run, voice, wanted, options.knobs_of, options.sentences, options.seeds)
    else:
        contest.compare(run, voice, options.sentences, options.seeds, options.arms, options.votes, options.blind)


def demo(options: argparse.Namespace) -> None:
    from tts_kit import story

    run = Run(options.run)
    given = told.given(options)
    if not run.data.exists():
        given = ({} if options.base else story.SMALL) | {"base": story.choose_base(options.base or "")} | given
    story.tell(options.source or "example:emma", recipes.recall(run, **given), run, _runtime(options), options.sentences,
               options.seeds)


def _recipe(options, run: Run) -> Recipe:
    return recipes.recall(run, **told.given(options))


def _runtime(options):
    from tts_kit import runtime

    return runtime.choose(options.device, options.dtype)


def _voice(options, run: Run, adapter, may_be_base: bool = False):
    """The adapter's voice, sampled as it was told in training or as it is told now; or the base alone."""
    from tts_kit.speech import speak as room

    base, revision = options.base or "", options.revision or ""
    if may_be_base and not Path(adapter).exists():
        recipe = _recipe(options, run)
        adapter, base, revision = None, recipe.base, recipe.revision
    voice = room.load_voice(_runtime(options), adapter, base, revision)
    voice.sampling = voice.sampling.asked(_sampling(options))
    return voice


def _sampling(options) -> Recipe:
    """What was told of sampling, and nothing else."""
    return Recipe().but(**{name: value for name, value in told.given(options).items() if name in SAMPLING})
