"""All stages on Modal's machines with one Volume; each stage continues where it stopped.

`modal run -m tts_kit.modal_app --run NAME --source example:emma --gpu L4` trains a voice and downloads the run; the same
command continues after an interruption. `TTS_KIT_KEY=... modal deploy -m tts_kit.modal_app` serves all voices on it.
"""

import argparse
import functools
import hashlib
import os
import sys
import tomllib
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import modal
from modal.volume import FileEntryType
from tqdm.auto import tqdm

from tts_kit import cli
from tts_kit.config import Config, load_config
from tts_kit.errors import KitError, report_errors
from tts_kit.io import atomic_file, atomic_folder, read_json, write_json
from tts_kit.run import CONSENT, Run

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
HOME = "/root"
"""Working directory of the containers, on their Python path."""
PYTHON = "3.11"
SECRETS = ("HF_TOKEN", "TTS_KIT_KEY")
"""Local environment variables passed to the containers if set: for gated models, and the server's API key."""
DAY = 24 * 3600
SECONDS_PER_CONTAINER = 1800.0
"""Seconds of speech that are worth another container for encoding."""
PORT = 8000
NOT_DOWNLOADED = ("source", "downloads", "segments")
"""Parts of a run that stay on the volume, as do checkpoints."""
DOWNLOADED = "modal.json"
"""In a local run folder: SHA-256 of every file downloaded from the volume, so that it may be replaced."""


def _image() -> modal.Image:
    """The tested versions of all dependencies, and the package as it is here."""
    image = modal.Image.debian_slim(python_version=PYTHON).apt_install("g++")  # torch.compile needs a compiler
    if (ROOT / "pyproject.toml").is_file():  # in the checkout that builds the image, and not in its containers
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        image = image.add_local_file(ROOT / "constraints.txt", "/constraints.txt", copy=True)
        image = image.uv_pip_install(*extras["audio"], *extras["eval"], *extras["serve"],
                                     requirements=[str(ROOT / "requirements.txt")], extra_options="-c /constraints.txt")
        image = image.uv_pip_install(requirements=[str(ROOT / "requirements-no-deps.txt")], extra_options="--no-deps")
    image = image.env({"HF_HOME": f"{HOME}/runs/.hub"}).workdir(HOME)  # hub files stay on the volume
    image = image.add_local_dir(PACKAGE, f"{HOME}/tts_kit", ignore=["**/__pycache__"])
    return image.add_local_dir(ROOT / "sample_data", f"{HOME}/sample_data")


volume = modal.Volume.from_name("tts-kit-runs", create_if_missing=True)
app = modal.App("tts-kit", image=_image(), include_source=False, volumes={f"{HOME}/runs": volume}, secrets=[
    modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if os.environ.get(name)})])


def _stage(function: Callable) -> modal.Function:
    """Make a function a step on Modal: it reads and commits the volume, and is retried after a crash."""
    @functools.wraps(function)
    def step(*arguments):
        try:
            return function(*arguments)
        except KitError as error:
            return error  # returned, because a raised error would be retried and paid again
        finally:
            _commit()

    # each call gets a fresh container: one that is reused would have to reload the volume with no file open
    return app.function(timeout=DAY, retries=3, cpu=4.0, memory=16 * 1024, single_use_containers=True)(step)


@_stage
def segment(name: str, source: str, arms: list[str]) -> list[str]:
    """Segment the source's recordings; return their folders, none if the source has transcripts."""
    from tts_kit.comparison import compare
    from tts_kit.data import ingest

    for arm in arms:
        compare.parse_arm(arm)  # refuse a misspelt arm now and not after a paid training
    files = ingest.find_recordings(source, Run(name))
    return [str(folder) for folder in ingest.segment_files(files, Run(name))] if files else []


@_stage
def transcribe(name: str, folders: list[str], asr: tuple[str, str, str]) -> None:
    """Transcribe some of the segmented recordings."""
    from tts_kit import device
    from tts_kit.data import ingest

    first, second = ingest.load_asr_models(device.choose(), *asr)
    for folder in folders:
        ingest.transcribe_segments(Path(folder), first, second, asr[2])


@_stage
def prepare(name: str, changes: dict, source: str, asr: tuple[str, str, str], skip_bad: bool) -> float:
    """Prepare the run's data; return its seconds. Transcribed recordings are not transcribed again."""
    from tts_kit import device
    from tts_kit.data import ingest
    from tts_kit.data import prepare as preparation

    run, config = _load(name, changes)
    is_recording = ingest.is_recording(source)
    if is_recording:
        source = ingest.ingest(source, run, device.choose(), *asr, config.speaker)
    utterances = preparation.prepare(source, run, config, skip_bad or is_recording)
    return sum(utterance.seconds for utterance in utterances)


@_stage
def encode(name: str, changes: dict, part: int, parts: int) -> dict:
    """Encode some of the clips."""
    from tts_kit import device
    from tts_kit.tokens import cache

    run, config = _load(name, changes)
    return cache.tokenize_part(config, run, device.choose(), part, parts)


@_stage
def tokenize(name: str, changes: dict) -> dict:
    """Encode what is missing, and write the index."""
    from tts_kit import device
    from tts_kit.tokens import cache

    run, config = _load(name, changes)
    return cache.tokenize(config, run, device.choose())


@_stage
def train(name: str, changes: dict) -> str:
    """Train the adapter on all GPUs of the container, from the last checkpoint on."""
    import torch

    from tts_kit import device
    from tts_kit.training import finetune, trainer

    run, config = _load(name, changes)
    if torch.cuda.device_count() > 1:
        # Modal commits what these processes write every few seconds
        return str(finetune.launch(config, run, torch.cuda.device_count()))
    return str(finetune.finetune(config, run, device.choose(), [trainer.OnSaveCallback(_commit)]))


@_stage
def compare(name: str, sentences: int, seeds: list[int], arms: list[str]) -> str:
    """Make the comparison's page and verdict."""
    from tts_kit import device
    from tts_kit.comparison import compare as comparison
    from tts_kit.speech.voice import load_voice

    voice = load_voice(device.choose(), Run(name).adapter)
    return str(comparison.compare(Run(name), voice, sentences, seeds, arms).page)


@app.function(gpu=os.environ.get("TTS_KIT_GPU", "L4").replace("none", "") or None, timeout=DAY, scaledown_window=300)
@modal.concurrent(max_inputs=100)
@modal.web_server(PORT, startup_timeout=600)
def serve():
    """Serve every voice on the volume, as `tts-kit serve` does; TTS_KIT_KEY is the API key."""
    from tts_kit import device
    from tts_kit.server import app as speech_server
    from tts_kit.speech.voice import load_voices

    voices = {path.parent.name: path for path in sorted(Path("runs").glob("*/adapter"))}
    if not voices:
        raise KitError("the volume holds no trained voice. Make one: modal run -m tts_kit.modal_app --run NAME --source ...")
    server = speech_server.Server(load_voices(device.choose(), voices), "0.0.0.0", PORT,
                                  speech_server.read_api_keys([]))
    server.start()
    return server


@app.local_entrypoint()
def main(*arguments: str) -> None:
    report_errors(run_stages)(arguments) and sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modal run -m tts_kit.modal_app", description=__doc__)
    parser.add_argument("--run", default="voice", help="name of the run; its folder is runs/NAME, on the volume and here")
    parser.add_argument("--source", default="example:emma", help="as for tts-kit prepare; local files are uploaded")
    parser.add_argument("--gpu", default="L4", help="Modal's name of a GPU (default L4); H100:2: train on two; none: no GPU")
    parser.add_argument("--containers", type=cli.non_negative_int, default=8,
                        help="at most as many transcribe and encode at once")
    for name in ("--asr-model", "--verify-asr-model", "--language"):
        parser.add_argument(name, default="", help="as for tts-kit prepare")
    parser.add_argument("--skip-bad", action="store_true", help="as for tts-kit prepare")
    parser.add_argument("--arms", nargs="+", default=list(cli.GENERATED_ARMS), help="as for tts-kit compare")
    parser.add_argument("--smoke", action="store_true", help="two steps on the bundled model, to see that everything runs")
    cli.add_comparison_options(parser, 10, [1, 2, 3])
    cli.add_config_options(parser, cli.ALL_FIELDS)
    return parser


def check_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line and refuse what can be known to be wrong without a container."""
    args = build_parser().parse_args(arguments)
    Config(**cli.config_changes(args))
    check_local_changes(Run(args.run))
    return args


def run_stages(arguments: Sequence[str]) -> None:
    """Call the stages one after the other, and download the run."""
    args = check_arguments(arguments)
    run, changes = Run(args.run), cli.config_changes(args)
    gpus = "" if args.gpu == "none" else args.gpu
    gpu = gpus.partition(":")[0]
    if args.smoke:
        changes = {"base": "sample_data/tiny-csm", "tokens_per_batch": 700} | changes | dict(
            steps=2, warmup_steps=0, eval_steps=2, save_steps=1, sample_steps=0, generation_eval_steps=0)
        args.sentences, args.seeds = 1, [1]
    asr = (args.asr_model, args.verify_asr_model, args.language)
    source = upload(volume, args.source, run)
    folders = _call(segment, "", [(run.name, source, args.arms)])[0]
    shares = [folders[index::args.containers] for index in range(min(args.containers, len(folders)))]
    _call(transcribe, gpu, [(run.name, share, asr) for share in shares])
    seconds, = _call(prepare, gpu, [(run.name, changes, source, asr, args.skip_bad)])
    parts = min(max(1, args.containers), 1 + int(seconds // SECONDS_PER_CONTAINER))
    _call(encode, gpu, [(run.name, changes, part, parts) for part in range(parts)])
    _call(tokenize, gpu, [(run.name, changes)])
    _call(train, gpus, [(run.name, changes)])
    _call(compare, gpu, [(run.name, args.sentences, args.seeds, args.arms)])
    print(f"Downloaded {download(volume, run)} files. Listen: {(run.comparison / 'index.html').resolve().as_uri()}")


def _call(stage: modal.Function, gpu: str, rows: Sequence[tuple]) -> list:
    """Call a stage with each row of arguments, in parallel containers; return the results."""
    try:
        results = list((stage.with_options(gpu=gpu) if gpu else stage).starmap(rows))
    except modal.exception.Error as error:
        raise KitError(f"Modal stopped: {error} Finished work is on the volume; the same command continues.") from error
    for result in results:
        if isinstance(result, KitError):
            raise result
    return results


def _load(name: str, changes: dict) -> tuple[Run, Config]:
    return Run(name), load_config(Run(name), **changes)


def _commit() -> None:
    """Make what was written visible to the other containers."""
    if not modal.is_local():
        volume.commit()


def upload(volume: modal.Volume, source: str, run: Run) -> str:
    """Upload a local file or folder once; return the path that a container reads, or another kind of source itself."""
    path, folder = Path(source).expanduser().resolve(), f"{run.name}/source"
    if not path.exists():
        return source
    try:
        uploaded = [entry.path.lstrip("/") for entry in volume.iterdir(f"/{folder}", recursive=False)]
    except (FileNotFoundError, modal.exception.NotFoundError):
        uploaded = []
    if uploaded:
        print(f"{uploaded[0]} is on the volume already and is used again; another source needs another --run.")
        return f"runs/{uploaded[0]}"
    with volume.batch_upload() as batch:
        (batch.put_directory if path.is_dir() else batch.put_file)(path, f"/{folder}/{path.name}")
    return f"runs/{folder}/{path.name}"


def download(volume: modal.Volume, run: Run) -> int:
    """Download a run's results, each folder completely or not at all; return the number of files."""
    files = [PurePosixPath(entry.path.lstrip("/")) for entry in volume.iterdir(f"/{run.name}", recursive=True)
             if entry.type == FileEntryType.FILE]
    by_folder = defaultdict(list)
    for file in files:
        if file.parts[1] not in NOT_DOWNLOADED and not any(part.startswith((".", "checkpoint-")) for part in file.parts[1:]):
            by_folder[file.parts[1]].append(file)
    check_local_changes(run, by_folder)
    count = sum(map(len, by_folder.values()))
    with tqdm(total=count, desc="download", unit="file") as bar:
        for folder, members in sorted(by_folder.items()):
            digests = _download_folder(volume, run, folder, members, bar)
            digests |= {name: digest for name, digest in _downloaded(run).items() if PurePosixPath(name).parts[0] != folder}
            write_json(run.folder / DOWNLOADED, dict(sorted(digests.items())))
    return count


def check_local_changes(run: Run, incoming: Iterable[str] = ()) -> None:
    """Refuse to replace what was made or changed here; `incoming` are folders and files of the run on the volume."""
    downloaded = _downloaded(run)
    replaced = {PurePosixPath(name).parts[0] for name in downloaded}.union(incoming)
    for path in sorted(run.folder.rglob("*")):
        inside = path.relative_to(run.folder)
        # the adapter's copy of a consent that was recorded here may be replaced; the run's own stays
        is_copy = inside == Path(run.adapter.name, CONSENT)
        if path.is_dir() or inside.name == DOWNLOADED or is_copy or any(part.startswith(".") for part in inside.parts):
            continue
        if (not downloaded or inside.parts[0] in replaced) and downloaded.get(inside.as_posix()) != _sha256(path):
            raise KitError(f"{path} was made or changed on this machine, and a download would replace it. "
                           f"Choose another --run, or move {run.folder} away.")


def _download_folder(volume: modal.Volume, run: Run, name: str, files: list[PurePosixPath],
                     bar: tqdm) -> dict[str, str]:
    """Download a folder of a run, or a single file, atomically; return the digests."""
    if files[0].parts[1:] == (name,):
        with atomic_file(run.folder / name) as target:
            return {name: _read(volume, files[0], target, bar)}
    digests = {}
    with atomic_folder(run.folder / name) as staging:
        for file in files:
            path = staging.joinpath(*file.parts[2:])
            path.parent.mkdir(parents=True, exist_ok=True)
            with open(path, "wb") as target:
                digests[PurePosixPath(*file.parts[1:]).as_posix()] = _read(volume, file, target, bar)
    return digests


def _read(volume: modal.Volume, file: PurePosixPath, target: BinaryIO, bar: tqdm) -> str:
    digest = hashlib.sha256()
    for chunk in volume.read_file(file.as_posix()):
        target.write(chunk)
        digest.update(chunk)
    bar.update()
    return digest.hexdigest()


def _downloaded(run: Run) -> dict[str, str]:
    path = run.folder / DOWNLOADED
    return read_json(path, f"Move {run.folder} away, and download it again.") if path.exists() else {}


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if not __package__:
    sys.exit("containers would not find this file by its path. Give its module instead: modal run -m tts_kit.modal_app ...")
if __name__ in sys.argv and "run" in sys.argv[:sys.argv.index(__name__)]:
    # `modal run -m` imports this module and parses the arguments only after the image is built: check them before that
    report_errors(check_arguments)(sys.argv[sys.argv.index(__name__) + 1:]) and sys.exit(1)
