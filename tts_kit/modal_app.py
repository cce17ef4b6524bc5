"""The cloud door: every stage on Modal's machines, on one volume, each going on where it stopped.

`modal run -m tts_kit.modal_app --run NAME --source example:emma --gpu L4` makes the voice and brings it here; the same
command goes on after an interruption. `TTS_KIT_KEY=... modal deploy -m tts_kit.modal_app` serves every voice on the volume.
"""

import argparse
import dataclasses
import functools
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import modal

from tts_kit import modal_volume
from tts_kit import options as told
from tts_kit.config import Config, load_config
from tts_kit.errors import KitError, report_errors
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
    image = modal.Image.debian_slim(python_version=PYTHON).apt_install("g++")  # with which torch compiles layers
    image = image.add_local_file(ROOT / "constraints.txt", CONSTRAINTS, copy=True)
    for file, how in REQUIREMENTS.items():
        image = image.pip_install_from_requirements(str(ROOT / file), extra_options=f"{how}-c {CONSTRAINTS}")
    # the model hub's files stay on the volume: a base is fetched once
    image = image.env({"HF_HOME": f"{HOME}/runs/.hub"}).workdir(HOME)
    image = image.add_local_dir(HOUSE, f"{HOME}/tts_kit", ignore=["**/__pycache__"])
    return image.add_local_dir(ROOT / "sample_data", f"{HOME}/sample_data")


volume = modal.Volume.from_name("tts-kit-runs", create_if_missing=True)
app = modal.App("tts-kit", image=_image(), include_source=False, volumes={f"{HOME}/runs": volume}, secrets=[
    modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if os.environ.get(name)})])


def _stage(function: Callable) -> modal.Function:
    """A step on Modal: it sees what the others left, keeps what it made, and after a crash is tried again."""
    @functools.wraps(function)
    def step(*arguments):
        try:
            return function(*arguments)
        except KitError as problem:
            return problem  # as an answer: what is raised would be tried again, and paid again
        finally:
            _keep()

    # each call mounts what was committed before it; a container in its second would have to reload, with no file open
    return app.function(timeout=DAY, retries=3, cpu=4.0, memory=16 * 1024, single_use_containers=True)(step)


@_stage
def cut(name: str, source: str, arms: list[str]) -> list[str]:
    """Cut the source's recordings into clips; their folders, none where it has transcripts."""
    from tts_kit.comparison import compare as contest
    from tts_kit.data import ingest

    list(map(contest.parse_arms, arms))  # a misspelt one is told now, and not when a training was paid
    files = ingest.find_recordings(source, Run(name))[1]
    return [str(folder) for folder in ingest.segment_files(files, Run(name))] if files else []


@_stage
def hear(name: str, folders: list[str], transcribers: tuple[str, str, str]) -> None:
    """Write down some of the cut recordings."""
    from tts_kit import device
    from tts_kit.data import ingest

    first, second = ingest.load_asr_models(device.choose(), *transcribers)
    for folder in folders:
        ingest.transcribe_segments(Path(folder), first, second, transcribers[2])


@_stage
def data(name: str, given: dict, source: str, transcribers: tuple[str, str, str], skip_bad: bool) -> float:
    """Checked, levelled and split utterances; returns their seconds. Recordings that were heard are not heard again."""
    from tts_kit import device
    from tts_kit.data import ingest, prepare

    run, config = _recall(name, given)
    taken = ingest.ingest(source, run, device.choose(), *transcribers, config.speaker)
    return sum(each.seconds for each in prepare.prepare(taken, run, config, skip_bad or taken != source))


@_stage
def encode(name: str, given: dict, part: int, parts: int) -> dict:
    """Codes of some of the utterances."""
    from tts_kit import device, tokens

    run, config = _recall(name, given)
    return tokens.encode_part(config, run, device.choose(), part, parts)


@_stage
def tokenize(name: str, given: dict) -> dict:
    """Codes of all utterances, and their index; those that are there are not made again."""
    from tts_kit import device, tokens

    run, config = _recall(name, given)
    return tokens.encode(config, run, device.choose())


@_stage
def train(name: str, given: dict) -> str:
    """The adapter, from the last checkpoint on, with all the GPUs there are."""
    import torch

    from tts_kit import device
    from tts_kit.training import finetune, trainer

    run, config = _recall(name, given)
    if torch.cuda.device_count() > 1:
        # what these processes write is kept by Modal itself, which commits every few seconds
        return str(finetune.launch(config, run, torch.cuda.device_count()))
    return str(finetune.finetune(config, run, device.choose(), [trainer.OnSaveCallback(_keep)]))


@_stage
def compare(name: str, sentences: int, seeds: list[int], arms: list[str]) -> str:
    """The page to listen to, and the verdict."""
    from tts_kit import device
    from tts_kit.comparison import compare as contest
    from tts_kit.speech import speak

    voice = speak.load_voice(device.choose(), Run(name).adapter)
    return str(contest.compare(Run(name), voice, sentences, seeds, arms))


@app.function(gpu=os.environ.get("TTS_KIT_GPU", "L4").replace("none", "") or None, timeout=DAY, scaledown_window=300)
@modal.concurrent(max_inputs=100)
@modal.web_server(PORT, startup_timeout=600)
def serve():
    """Every voice on the volume, as `python -m tts_kit serve` has it; TTS_KIT_KEY is the key to it."""
    from tts_kit import device
    from tts_kit.server import serve
    from tts_kit.speech import adapters

    found = {path.parent.name: path for path in sorted(Path("runs").glob("*/adapter"))}
    if not found:
        raise KitError("the volume holds no trained voice. Make one: modal run -m tts_kit.modal_app --run NAME --source ...")
    server = serve.Server(adapters.load_voices(device.choose(), found), "0.0.0.0", PORT, serve.read_api_keys([]))
    server.start()
    return server


@app.local_entrypoint()
def main(*arguments: str) -> None:
    report_errors(_tell)(arguments) and sys.exit(1)


def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(prog="modal run -m tts_kit.modal_app", description=__doc__)
    made.add_argument("--run", default="voice", help="name of the run; its folder is runs/NAME, there and here")
    made.add_argument("--source", default="example:emma", help="as of the verb data; what lies here is put on the volume")
    made.add_argument("--gpu", default="L4", help="Modal's name of a GPU (default L4); H100:2: train with two; none: no GPU")
    made.add_argument("--containers", type=told.count, default=8, help="how many at most share transcribing and tokenizing")
    for name in ("--transcriber", "--second-transcriber", "--language"):
        made.add_argument(name, default="", help="as of the verb data")
    made.add_argument("--skip-bad", action="store_true", help="as of the verb data")
    made.add_argument("--arms", nargs="+", default=list(told.ARMS), help="as of the verb compare")
    made.add_argument("--smoke", action="store_true", help="two steps on the bundled base, to see that all of it runs")
    told.comparison(made, 10, [1, 2, 3])
    told.config(made, tuple(field.name for field in dataclasses.fields(Config)))
    return made


def _check(arguments: Sequence[str]) -> None:
    """What a person can mistake, as far as this machine knows it."""
    options = parser().parse_args(arguments)
    Config(**told.given(options))
    modal_volume.check_local_changes(Run(options.run))


def _tell(arguments: Sequence[str]) -> None:
    """The whole story from here: each stage is asked for in turn, and the results are brought."""
    _check(arguments)
    options = parser().parse_args(arguments)
    run, given, gpus = Run(options.run), told.given(options), "" if options.gpu == "none" else options.gpu
    gpu = gpus.partition(":")[0]
    if options.smoke:
        given, options.sentences, options.seeds = _small(given), 1, [1]
    heard = (options.transcriber, options.second_transcriber, options.language)
    source = modal_volume.upload(volume, options.source, run)
    folders = _ask(cut, "", [(run.name, source, options.arms)])[0]
    _ask(hear, gpu, [(run.name, share, heard) for share in split(folders, options.containers)])
    seconds, = _ask(data, gpu, [(run.name, given, source, heard, options.skip_bad)])
    parts = min(max(1, options.containers), 1 + int(seconds // PART))
    _ask(encode, gpu, [(run.name, given, part, parts) for part in range(parts)])
    _ask(tokenize, gpu, [(run.name, given)])
    _ask(train, gpus, [(run.name, given)])
    _ask(compare, gpu, [(run.name, options.sentences, options.seeds, options.arms)])
    print(f"Brought {modal_volume.download(volume, run)} files. Hear it: {(run.comparison / 'index.html').resolve().as_uri()}")


def split(whole: Sequence, most: int) -> list[list]:
    """Shares of like size, none of them empty."""
    return [list(whole[part::most]) for part in range(min(most, len(whole)))]


def _ask(stage: modal.Function, gpu: str, rows: Sequence[tuple]) -> list:
    """The answers of a stage to each row of arguments, asked for in as many containers at once."""
    try:
        answers = list((stage.with_options(gpu=gpu) if gpu else stage).starmap(rows))
    except modal.exception.Error as error:
        raise KitError(f"Modal stopped: {error} What was made is on the volume; the same command goes on.") from error
    for problem in (answer for answer in answers if isinstance(answer, KitError)):
        raise problem
    return answers


def _small(given: dict) -> dict:
    """A recipe for two steps, on the bundled base where no other is given."""
    return {"base": "sample_data/tiny-csm", "tokens_per_batch": 700} | given | dict(
        steps=2, warmup_steps=0, eval_steps=2, save_steps=1, sample_steps=0, generation_eval_steps=0)


def _recall(name: str, given: dict) -> tuple[Run, Config]:
    return Run(name), load_config(Run(name), **given)


def _keep() -> None:
    """Let the other containers see what was written, and let it stay; on this machine it lies on the disk already."""
    if not modal.is_local():
        volume.commit()


if not __package__:
    sys.exit("containers would not find this file by its path. Give its module instead: modal run -m tts_kit.modal_app ...")
if __name__ in sys.argv and "run" in sys.argv[:sys.argv.index(__name__)]:
    # `modal run -m` imports this, and reads what stands behind only when an image is built; mistakes are told before
    report_errors(_check)(sys.argv[sys.argv.index(__name__) + 1:]) and sys.exit(1)
