"""The cloud door: every stage on Modal's machines, on one volume, each going on where it stopped.

`modal run -m tts_kit.modal_app --run NAME --source example:emma --gpu L4` makes the voice and brings it here; the same
command goes on after an interruption. `modal deploy -m tts_kit.modal_app` serves every voice on the volume.
"""

import argparse
import dataclasses
import functools
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import modal

from tts_kit import options as told
from tts_kit import recipe as recipes
from tts_kit import volume as shelf
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run

HOUSE = Path(__file__).parent
ROOT = HOUSE.parent
HOME = "/root"
"""Of the containers: where they begin, and where Modal looks for Python's modules."""
PYTHON = "3.11"
CONSTRAINTS = "/constraints.txt"
REQUIREMENTS = {"requirements.txt": "", "requirements-recordings.txt": "", "requirements-judges.txt": "",
                "requirements-judges-alone.txt": "--no-deps ", "requirements-serve.txt": ""}
SECRETS = ("HF_TOKEN", "TTS_KIT_KEY")
"""Variables of this machine that the containers get too, where they are set: for gated models, and to be let in to serve."""
DAY = 24 * 3600
PART = 1800.0
"""Seconds of speech for which a container of its own is worth its start."""
PORT = 8000


def _image() -> modal.Image:
    """What README has people install, in the tested versions, and the kit as it lies here."""
    # layers of the CUDA kernels' compiler need a C compiler
    image = modal.Image.debian_slim(python_version=PYTHON).apt_install("g++")
    image = image.add_local_file(ROOT / "constraints.txt", CONSTRAINTS, copy=True)
    for file, how in REQUIREMENTS.items():
        image = image.pip_install_from_requirements(str(ROOT / file), extra_options=f"{how}-c {CONSTRAINTS}")
    # the model hub's files stay on the volume: a base is fetched once
    image = image.env({"HF_HOME": f"{HOME}/runs/.hub"}).workdir(HOME)
    image = image.add_local_dir(HOUSE, f"{HOME}/tts_kit", ignore=["**/__pycache__"])
    return image.add_local_dir(ROOT / "sample_data", f"{HOME}/sample_data")


volume = modal.Volume.from_name("tts-kit-runs", create_if_missing=True)
app = modal.App("tts-kit", image=_image(), include_source=False, volumes={f"{HOME}/runs": volume}, secrets=[
    modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if name in os.environ})])


def _stage(function: Callable) -> modal.Function:
    """A step on Modal: it sees what the others left, keeps what it made, and after a crash is tried again."""
    @functools.wraps(function)
    def step(*arguments):
        if not modal.is_local():
            volume.reload()
        try:
            return function(*arguments)
        except Problem as problem:
            return problem  # as an answer: what is raised would be tried again, and paid again
        finally:
            _keep()

    return app.function(timeout=DAY, retries=modal.Retries(max_retries=3, initial_delay=10.0), cpu=4.0,
                        memory=16 * 1024)(step)


@_stage
def cut(name: str, source: str) -> list[str]:
    """Cut the source's recordings into clips; their folders, none where it has transcripts."""
    from tts_kit.data import desk

    files = desk.find(source, Run(name))[1]
    return [str(folder) for folder in desk.cut(files, Run(name))] if files else []


@_stage
def hear(name: str, folders: list[str], transcribers: tuple[str, str, str]) -> None:
    """Write down some of the cut recordings."""
    from tts_kit import runtime
    from tts_kit.data import desk

    first, second = desk.transcribers(runtime.choose(), *transcribers)
    for folder in folders:
        desk.hear(Path(folder), first, second, transcribers[2])


@_stage
def data(name: str, given: dict, source: str, transcribers: tuple[str, str, str], skip_bad: bool) -> float:
    """Checked, levelled and split utterances; returns their seconds. Recordings that were heard are not heard again."""
    from tts_kit import data as room
    from tts_kit import runtime
    from tts_kit.data import desk

    run, recipe = _recall(name, given)
    taken = desk.take_in(source, run, runtime.choose(), *transcribers, recipe.speaker)
    return sum(each.seconds for each in room.prepare(taken, run, recipe, skip_bad or taken != source))


@_stage
def encode(name: str, given: dict, part: int, parts: int) -> dict:
    """Codes of some of the utterances."""
    from tts_kit import runtime, tokens

    run, recipe = _recall(name, given)
    return tokens.encode_part(recipe, run, runtime.choose(), part, parts)


@_stage
def tokenize(name: str, given: dict) -> dict:
    """Codes of all utterances, and their index; those that are there are not made again."""
    from tts_kit import runtime, tokens

    run, recipe = _recall(name, given)
    return tokens.encode(recipe, run, runtime.choose())


@_stage
def train(name: str, given: dict) -> str:
    """The adapter, from the last checkpoint on, with all the GPUs there are."""
    import torch

    from tts_kit import runtime
    from tts_kit.tuning import finetune

    run, recipe = _recall(name, given)
    if torch.cuda.device_count() > 1:
        return str(finetune.launch(recipe, run, torch.cuda.device_count()))
    return str(finetune.fit(recipe, run, runtime.choose(), [_keeper()]))


@_stage
def compare(name: str, sentences: int, seeds: list[int], arms: list[str]) -> str:
    """The page to listen to, and the verdict."""
    from tts_kit import runtime
    from tts_kit.comparison import contest
    from tts_kit.speech import speak

    voice = speak.load_voice(runtime.choose(), Run(name).adapter)
    return str(contest.compare(Run(name), voice, sentences, seeds, arms))


@app.function(gpu=os.environ.get("TTS_KIT_GPU", "L4"), timeout=DAY, scaledown_window=300)
@modal.concurrent(max_inputs=100)
@modal.web_server(PORT, startup_timeout=600)
def serve():
    """Every voice on the volume, as `python -m tts_kit serve` has it; TTS_KIT_KEY is the key to it."""
    from tts_kit import runtime
    from tts_kit.speech import serve as room
    from tts_kit.speech import voices

    found = {path.parent.name: path for path in sorted(Path("runs").glob("*/adapter"))}
    if not found:
        raise Problem("the volume holds no trained voice. Make one: modal run -m tts_kit.modal_app --run NAME --source ...")
    server = room.Server(voices.load(runtime.choose(), found), "0.0.0.0", PORT, room.keys([]))
    server.start()
    return server


@app.local_entrypoint()
def main(*arguments: str) -> None:
    try:
        _tell(parser().parse_args(arguments))
    except Problem as problem:
        sys.exit(str(problem))


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="modal run -m tts_kit.modal_app", description=__doc__)
    made.add_argument("--run", default="voice", help="name of the run; its folder is runs/NAME, there and here")
    made.add_argument("--source", default="example:emma", help="as of the verb data; what lies here is put on the volume")
    made.add_argument("--gpu", default="L4", help="a GPU by Modal's name, several of one kind as H100:2; none: a processor")
    made.add_argument("--containers", type=told.count, default=8, help="how many at most share transcribing and tokenizing")
    for name in ("--transcriber", "--second-transcriber", "--language"):
        made.add_argument(name, default="", help="as of the verb data")
    made.add_argument("--skip-bad", action="store_true", help="as of the verb data")
    made.add_argument("--arms", nargs="+", default=list(told.ARMS), help="as of the verb compare")
    made.add_argument("--smoke", action="store_true", help="two steps on the bundled base, to see that all of it runs")
    told.comparison(made, 10, [1, 2, 3])
    told.recipe(made, tuple(field.name for field in dataclasses.fields(Recipe)))
    return made


def _tell(options: argparse.Namespace) -> None:
    """The whole story from here: each stage is asked for in turn, and the results are brought."""
    run, given, gpu = Run(options.run), told.given(options), "" if options.gpu == "none" else options.gpu
    shelf.refuse_own(run)
    if options.smoke:
        given, options.sentences, options.seeds = _small(given), 1, [1]
    heard = (options.transcriber, options.second_transcriber, options.language)
    source = shelf.put(volume, options.source, run)
    folders = _ask(cut, "", [(run.name, source)])[0]
    _ask(hear, gpu, [(run.name, share, heard) for share in split(folders, options.containers)])
    seconds, = _ask(data, gpu, [(run.name, given, source, heard, options.skip_bad)])
    parts = max(1, min(options.containers, math.ceil(seconds / PART)))
    _ask(encode, gpu, [(run.name, given, part, parts) for part in range(parts)])
    _ask(tokenize, gpu, [(run.name, given)])
    _ask(train, gpu, [(run.name, given)])
    _ask(compare, gpu, [(run.name, options.sentences, options.seeds, options.arms)])
    print(f"Brought {shelf.bring(volume, run)} files. Hear it: {(run.comparison / 'index.html').resolve().as_uri()}")


def split(whole: Sequence, most: int) -> list[list]:
    """Shares of like size, none of them empty."""
    return [list(whole[part::most]) for part in range(min(most, len(whole)))]


def _ask(stage: modal.Function, gpu: str, rows: Sequence[tuple]) -> list:
    """The answers of a stage to each row of arguments, asked for in as many containers at once."""
    answers = list((stage.with_options(gpu=gpu) if gpu else stage).starmap(rows))
    for problem in (answer for answer in answers if isinstance(answer, Problem)):
        raise problem
    return answers


def _small(given: dict) -> dict:
    """A recipe for two steps, on the bundled base where no other is given."""
    from tts_kit import story

    return story.SMALL | {"base": story.BUNDLED.relative_to(ROOT).as_posix()} | given | dict(
        steps=2, warmup_steps=0, evaluate_every=2, save_every=1, sample_every=0, listen_every=0)


def _recall(name: str, given: dict) -> tuple[Run, Recipe]:
    return Run(name), recipes.recall(Run(name), **given)


def _keep() -> None:
    """Let the other containers see what was written, and let it stay; on this machine it lies on the disk already."""
    if not modal.is_local():
        volume.commit()


def _keeper():
    """Keeps every checkpoint, so that a container that is taken away loses no more than what came after it."""
    from transformers import TrainerCallback

    class Keeper(TrainerCallback):
        def on_save(self, args, state, control, **_):
            _keep()

    return Keeper()
