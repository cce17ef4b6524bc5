"""All stages on Modal's machines with one Volume; each stage continues where it stopped.

`modal run -m tts_kit.modal_app --run NAME --source example:emma --gpu L4` trains a voice and downloads the run; the same
command continues after an interruption. `TTS_KIT_KEY=... TTS_KIT_GPU=L4 modal deploy -m tts_kit.modal_app` serves all voices
on it. GPUs may be a list (L4,A10G): Modal takes the first that is free."""

import argparse
import functools
import importlib
import itertools
import os
import sys
import tomllib
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath

import modal
from modal.volume import FileEntryType

from tts_kit import cli
from tts_kit.comparison import arms
from tts_kit.config import Config, load_config
from tts_kit.errors import KitError, reason, report_errors
from tts_kit.io import atomic_folder, write_bytes
from tts_kit.progress import tqdm
from tts_kit.run import Run

PACKAGE = Path(__file__).parent
ROOT = PACKAGE.parent
HOME = "/root"  # working directory of the containers, on their Python path
PYTHON = "3.11"
SECRETS = ("HF_TOKEN", "TTS_KIT_KEY")
"""Local environment variables passed to the containers if set: for gated models, and the server's API key."""
DAY = 24 * 3600
PORT = 8000
NOT_DOWNLOADED = ("source", "downloads", "segments")  # parts of a run that stay on the volume, as do checkpoints


def requested_gpus(arguments: Sequence[str]) -> list[str]:
    """Return Modal's names of the GPUs in --gpu, or else in TTS_KIT_GPU, best first; none for no GPU.

    They are needed when the functions are declared, before Modal passes on the arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--gpu", default=os.environ.get("TTS_KIT_GPU", "L4"))
    return [gpu for gpu in parser.parse_known_args(arguments)[0].gpu.split(",") if gpu not in ("", "none")]


GPUS = requested_gpus(sys.argv[1:])


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
    modal.Secret.from_dict({name: os.environ[name] for name in SECRETS if os.environ.get(name)} |
                           {"TTS_KIT_GPU": ",".join(GPUS) or "none"})])  # so that a container knows what was requested

if not modal.is_local():
    # a memory snapshot of `serve` holds what is imported here: packages, which need no GPU yet, and no voice
    importlib.import_module("tts_kit.server.app")


def _stage(gpus: list[str]) -> Callable[[Callable[[argparse.Namespace], None]], modal.Function]:
    """Make a function a step on Modal: it reads and commits the volume, and is run again after a crash or a preemption.

    An exception is returned and not raised: Modal would run the step again, at the user's cost and with the same end."""
    def declare(function: Callable[[argparse.Namespace], None]) -> modal.Function:
        @functools.wraps(function)
        def step(args: argparse.Namespace) -> KitError | None:
            try:
                _choose_device()
                return function(args)
            except KitError as error:
                return error
            except Exception as error:
                traceback.print_exc()
                return KitError(f"{function.__name__} has failed: {type(error).__name__}: {reason(error)}. The traceback is "
                                "above; finished work is on the volume, and the same command continues.")
            finally:
                _commit()

        # each call gets a fresh container: one that is reused would have to reload the volume with no file open
        return app.function(gpu=gpus or None, timeout=DAY, retries=3, cpu=4.0, memory=16 * 1024,
                            single_use_containers=True)(step)
    return declare


def _choose_device():
    """Return the device of a container; a GPU that was requested, and is paid, has to be usable."""
    from tts_kit import device

    return device.choose("cuda" if GPUS and not modal.is_local() else "auto")


@_stage([gpu.partition(":")[0] for gpu in GPUS])  # only training has a use for a second GPU
def run_command(args: argparse.Namespace) -> None:
    """Run a command of `tts-kit`."""
    args.run = Run(args.run)  # not on the client, whose paths may be those of Windows
    args.func(args)


@_stage(GPUS)
def train(args: argparse.Namespace) -> None:
    """Train the adapter on all GPUs of the container, from the last checkpoint on."""
    import torch

    from tts_kit.training import finetune, trainer

    run = Run(args.run)
    config = load_config(run, **cli.config_changes(args))
    if torch.cuda.device_count() > 1:
        # Modal commits what these processes write every few seconds
        finetune.launch(config, run, torch.cuda.device_count())
    else:
        finetune.finetune(config, run, _choose_device(), [trainer.OnSaveCallback(_commit)])


@app.function(gpu=GPUS or None, timeout=DAY, scaledown_window=300, enable_memory_snapshot=True)
@modal.concurrent(max_inputs=100)
@modal.web_server(PORT, startup_timeout=600)
def serve():
    """Serve every voice on the volume, as `tts-kit serve` does; TTS_KIT_KEY is the API key."""
    from tts_kit.server import app as speech_server
    from tts_kit.speech.voice import BASE, load_voices

    voices = {path.parent.name: path for path in sorted(Path("runs").glob("*/adapter"))}
    if not voices:
        raise KitError("the volume holds no trained voice. Make one: modal run -m tts_kit.modal_app --run NAME --source ...")
    voices.setdefault(BASE, BASE)
    server = speech_server.Server(load_voices(_choose_device(), voices), "0.0.0.0", PORT,
                                  speech_server.read_api_keys([]))
    server.start()
    return server


@app.local_entrypoint()
def main(*arguments: str) -> None:
    report_errors(run_stages)(arguments) and sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="modal run -m tts_kit.modal_app", usage="%(prog)s [options]", description=__doc__,
                                     allow_abbrev=False)
    option, as_prepare = cli.option, "as for tts-kit prepare"
    cli.add_options(parser, [
        option("--run", default="voice", help="name of the run; its folder is runs/NAME, on the volume and here"),
        option("--source", default="example:emma", help=f"{as_prepare}; local files are uploaded"),
        option("--gpu", default="L4", help="Modal's name of a GPU; H100:2: train on two; L4,A10G: the first free one; none"),
        *(option(name, default="", help=as_prepare) for name in ("--asr-model", "--verify-asr-model", "--language")),
        option("--skip-bad", action="store_true", help=as_prepare),
        option("--arms", nargs="+", default=list(arms.GENERATED_ARMS), help="arms of the model, as for tts-kit compare"),
        option("--smoke", action="store_true", help="two steps on the bundled model, to see that everything runs"),
        *cli.comparison_options(10, [1, 2, 3]), *cli.config_options(cli.ALL_GROUPS)])
    return parser


def check_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse the command line and refuse what can be known to be wrong without a container."""
    args = build_parser().parse_args(arguments)
    if args.smoke:
        args.base, args.tokens_per_batch = args.base or "sample_data/tiny-csm", args.tokens_per_batch or 700
        vars(args).update(steps=2, warmup_steps=0, eval_steps=2, save_steps=1, sample_steps=0, generation_eval_steps=0,
                          sentences=1, seeds=[1])
    Config(**cli.config_changes(args))
    for arm in args.arms:
        if arms.kind_of(arm) not in arms.GENERATED_ARMS:
            raise KitError(f"there is no arm {arm[:40]!r} here. Choose among {', '.join(arms.GENERATED_ARMS)}.")
        arms.parse(arm)
    Run(args.run)  # refuses a name that is none
    return args


def run_stages(arguments: Sequence[str]) -> None:
    """Call the stages one after the other, and download the run."""
    args = check_arguments(arguments)
    run = Run(args.run)
    args.source = upload(volume, args.source, run)
    for name in ("prepare", "tokenize", "train", "compare"):
        command = cli.build_parser().parse_args([name, args.source] if name == "prepare" else [name])
        vars(command).update({key: value for key, value in vars(args).items() if key in vars(command)})
        _call(train if name == "train" else run_command, command)
    print(f"Downloaded {download(volume, run)} files. Listen: {(run.comparison / 'index.html').resolve().as_uri()}")


def _call(stage: modal.Function, command: argparse.Namespace) -> None:
    """Run a stage in a container."""
    try:
        problem = stage.remote(command)
    except modal.exception.Error as error:
        raise KitError(f"Modal stopped: {error} Finished work is on the volume; the same command continues.") from error
    if problem:
        raise problem


def _commit() -> None:
    """Make what was written visible to the other containers."""
    if not modal.is_local():
        volume.commit()


def upload(volume: modal.Volume, source: str, run: Run) -> str:
    """Upload a local file or folder; return the path that a container reads, or another kind of source itself."""
    path = Path(source).expanduser().resolve()
    if not path.exists():
        return source
    target = f"{run.name}/source/{path.name}"
    with volume.batch_upload(force=True) as batch:  # what is there already is not sent again
        (batch.put_directory if path.is_dir() else batch.put_file)(path, f"/{target}")
    return f"runs/{target}"


def download(volume: modal.Volume, run: Run) -> int:
    """Download a run's results, completely or not at all; return the number of files.

    What its folder here held is moved aside, never replaced."""
    paths = []
    for entry in volume.iterdir(f"/{run.name}", recursive=True):
        path = PurePosixPath(entry.path.lstrip("/")).relative_to(run.name)
        is_temporary = any(part.startswith((".", "checkpoint-")) for part in path.parts)
        if entry.type == FileEntryType.FILE and path.parts[0] not in NOT_DOWNLOADED and not is_temporary:
            paths.append(path)
    with atomic_folder(run.folder) as staging:
        for path in tqdm(paths, "download", unit="file"):
            write_bytes(staging / path, b"".join(volume.read_file(f"{run.name}/{path}")))
        if run.folder.exists():
            number = next(number for number in itertools.count(1) if not Path(f"{run.folder}.{number}").exists())
            print(f"{run.folder} was there already; it is {run.folder.rename(f'{run.folder}.{number}')} now.")
    return len(paths)


if not __package__:
    sys.exit("containers would not find this file by its path. Give its module instead: modal run -m tts_kit.modal_app ...")
if __name__ in sys.argv and "run" in sys.argv[:sys.argv.index(__name__)]:
    # `modal run -m` imports this module and parses the arguments only after the image is built: check them before that
    is_wrong = report_errors(lambda arguments: check_arguments(arguments) and 0)
    is_wrong(sys.argv[sys.argv.index(__name__) + 1:]) and sys.exit(1)
