"""The verbs: python -m tts_kit doctor | data | review | report | dataset | tokenize | train | speak | compare | demo."""

import argparse
import dataclasses
import json
import sys
from pathlib import Path

from tts_kit import options as told
from tts_kit import recipe as recipes
from tts_kit.problem import Problem, command
from tts_kit.recipe import Recipe
from tts_kit.run import Run

DATA = ("speaker", "split_seed", "max_seconds", "max_characters", "held_out")
BASE = ("base", "revision")
SAMPLING = ("temperature", "depth_temperature", "top_k")


@command
def main(arguments: list[str] | None = None) -> int:
    """Run one verb."""
    top = parser()
    options = top.parse_args(arguments)
    if options.verb is None:
        top.print_help()
        return 2
    return options.verb(options) or 0


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tts_kit", description=__doc__)
    top.set_defaults(verb=None)
    verbs = top.add_subparsers(metavar="verb")
    everything = tuple(field.name for field in dataclasses.fields(Recipe))

    verb = told.verb(verbs, "doctor", doctor, "is this machine ready? what to do where it is not", run=False)
    told.planner(verb)

    _data_verbs(verbs)
    told.recipe(told.verb(verbs, "tokenize", tokenize, "utterances -> codes, made once"), BASE)

    verb = told.verb(verbs, "train", train, "codes -> adapter")
    verb.add_argument("--dry-run", action="store_true", help="count what would be trained, and load no weights")
    verb.add_argument("--json", action="store_true", help="print the dry run as one JSON object")
    told.recipe(verb, tuple(name for name in everything if name not in DATA))

    verb = told.verb(verbs, "speak", speak, "text -> speech")
    verb.add_argument("text", help="what to say, of any length")
    verb.add_argument("--adapter", help="adapter folder; default: the run's")
    verb.add_argument("--untuned", action="store_true", help="speak with the base alone")
    verb.add_argument("--reference", help="a clip to clone")
    verb.add_argument("--reference-text", help="what is said in that clip")
    verb.add_argument("--retries", type=told.count, default=0, help="tries again for a sentence that does not end by itself")
    verb.add_argument("--int8", action="store_true", help="8-bit weights: faster where memory is slow, a little less exact")
    verb.add_argument("--stream", action="store_true", help="write while speaking, and never try again")
    verb.add_argument("--out", default="speech.wav", help="file to write, .wav or .flac")
    verb.add_argument("--seed", type=told.count, default=0, help="another seed is another take (default 0)")
    told.recipe(verb, BASE + SAMPLING)

    verb = told.verb(verbs, "compare", compare, "held-out sentences in every arm -> a page to listen to, and a verdict")
    told.comparison(verb, 10, [1, 2, 3])
    told.contest(verb)
    told.recipe(verb, BASE + SAMPLING)

    verb = told.verb(verbs, "demo", demo, "the whole story on the bundled voice", default="demo")
    verb.add_argument("--source", help="other clips than the bundled voice (see the verb data)")
    told.comparison(verb, 10, [1, 2])
    told.recipe(verb, everything)
    return top


def _data_verbs(verbs) -> None:
    verb = told.verb(verbs, "data", data, "a recording, or clips with transcripts -> checked, levelled, split utterances")
    verb.add_argument("source", help="a recording, a folder of them or an address, which are cut and written down; a "
                      "folder with metadata.csv, a .jsonl file, a hub dataset (owner/name), or an example: example:emma is "
                      "the bundled voice, example:allison a person's, which is fetched")
    verb.add_argument("--transcriber", default="", help="of recordings: a Whisper by name or folder, or `bundled` where "
                      "there is no hub (default large-v3-turbo on a GPU, else small)")
    verb.add_argument("--second-transcriber", default="", help="another one, to doubt the first where they differ "
                      "(default: a smaller one; none: nothing is heard twice)")
    verb.add_argument("--language", default="", help="of recordings, as two letters (default: told by their beginning)")
    verb.add_argument("--held-out-from", metavar="SOURCE", default="",
                      help="another source, whose clips are held out instead of a share of the first one's")
    verb.add_argument("--skip-bad", action="store_true", help="leave bad clips out, with a list, instead of stopping")
    told.recipe(verb, DATA)

    told.verb(verbs, "report", report, "the run's data as a page: how much, how clean, what to listen to first",
              computes=False)

    verb = told.verb(verbs, "dataset", dataset, "the run's data as a folder that `datasets` loads, or on the hub",
                     computes=False)
    verb.add_argument("--out", type=Path, help="a new folder (default: dataset, in the run's folder)")
    verb.add_argument("--push", metavar="OWNER/NAME", help="put it on the hub too, as this dataset; what was exported "
                      "before is pushed as it is")
    verb.add_argument("--public", action="store_true", help="for everybody on the hub to see; else it is private")

    verb = told.verb(verbs, "review", review, "a page to put right what was written down of recordings",
                     computes=False)
    verb.add_argument("--port", type=int, default=0, help="of the page (default: any that is free)")


def doctor(options) -> int:
    if told.plans(options):
        from tts_kit.doctor import plan

        print(plan.show(Run(options.run) if options.run else None, **told.given(options)))
        return 0
    from tts_kit import doctor as surgery

    checks = surgery.examine(options.base or Recipe.base)
    print(surgery.report(checks))
    return int(any(check.state == "fail" for check in checks))


def data(options) -> None:
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


def report(options) -> None:
    from tts_kit.data import report as room

    room.show(Run(options.run))


def dataset(options) -> None:
    from tts_kit.data import export as room

    run = Run(options.run)
    folder = options.out or run.folder / "dataset"
    if not (options.push and folder.is_dir()):
        room.export(run, folder)
    print(room.push(folder, options.push, options.public) if options.push else folder)


def review(options) -> None:
    from tts_kit.data import desk

    run = Run(options.run)
    desk.sit(run, recipes.recall(run), options.port)


def tokenize(options) -> None:
    from tts_kit import tokens

    run = Run(options.run)
    tokens.encode(_recipe(options, run), run, _runtime(options))


def train(options) -> None:
    run = Run(options.run)
    recipe = _recipe(options, run)
    from tts_kit.tuning import finetune

    if not options.dry_run:
        finetune.fit(recipe, run, _runtime(options))
        return
    plan = finetune.rehearse(recipe, run, _runtime(options))
    print(json.dumps(plan) if options.json else "\n".join(f"{name}: {value}" for name, value in plan.items()))


def speak(options) -> None:
    from tts_kit.speech import speak as room
    from tts_kit.speech import stream as live

    if bool(options.reference) != bool(options.reference_text):
        raise Problem("a reference is a clip and what is said in it: give --reference FILE and --reference-text TEXT, or "
                      "neither.")
    if options.stream and options.retries:
        raise Problem("--stream hands out what it says at once, so that nothing can be said again: leave --retries out.")
    run = Run(options.run)
    voice = _voice(options, run, options.adapter or run.adapter, may_be_base=options.untuned)
    reference = room.Reference(options.reference, options.reference_text) if options.reference else None
    voice.int8 = options.int8
    if options.stream:
        speech = live.stream(options.text, voice, reference, not options.untuned, options.seed)
        speech.save(options.out)
        how, remedy = f"first sound after {speech.first_seconds or 0:.2f} s", "another --seed"
    else:
        speech = room.speak(options.text, voice, reference, not options.untuned, options.seed, options.retries, options.out)
        how, remedy = f"{speech.takes} take{'s' * (speech.takes != 1)}", "--retries 2 or another --seed"
    ended = "ended by itself" if speech.stopped else f"ran to its limit; try {remedy}"
    print(f"{options.out}: {speech.seconds:.1f} s in {speech.wall_seconds:.1f} s, {how}, {ended}.")


def compare(options) -> None:
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


def demo(options) -> None:
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
    sampling = {name: value for name, value in told.given(options).items() if name in SAMPLING}
    voice.sampling = voice.sampling.asked(Recipe().but(**sampling))
    return voice


if __name__ == "__main__":
    sys.exit(main())
