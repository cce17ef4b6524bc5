"""The Modal app, with each function called on this machine: no token, no network, only Modal's library."""

import argparse
import importlib.util
import os
import pickle
import shutil
import socket
import subprocess
import sys
import textwrap
import tomllib
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_training_finetune import adapter, same

from tts_kit import cli, device
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import read_json, read_rows
from tts_kit.run import Run
from tts_kit.training import finetune, trainer

modal = pytest.importorskip("modal", reason='modal is not installed: pip install "tts-kit[modal]"')

from tts_kit import modal_app  # noqa: E402

ROOT = Path(__file__).parent.parent
CPU = device.choose("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:The .* function is executing locally")
NO_NETWORK = """
import socket
def refuse(*args, **kwargs):
    raise OSError("a test has used the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
NO_PACKAGES = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "peft", "numpy", "soundfile", "matplotlib"))
"""


class FolderVolume:
    """A Modal volume as seen by a client, stored in a local folder; files are read in chunks."""

    def __init__(self, root: Path):
        self.root = root

    def iterdir(self, relative_path: str, recursive: bool = True):
        file_types = modal.volume.FileEntryType
        folder = self.root / relative_path.lstrip("/")
        if not folder.exists():
            raise modal.exception.NotFoundError(relative_path)
        for path in sorted(folder.rglob("*") if recursive else folder.iterdir()):
            yield SimpleNamespace(path=path.relative_to(self.root).as_posix(),
                                  type=file_types.DIRECTORY if path.is_dir() else file_types.FILE)

    def read_file(self, path: str):
        content = (self.root / path).read_bytes()
        yield from (content[:10], content[10:])

    def batch_upload(self, force: bool):
        assert force, "an upload that was interrupted is refused"
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def put_directory(self, path, to):
        shutil.copytree(path, self.root / to.lstrip("/"), dirs_exist_ok=True)

    def put_file(self, path, to):
        (self.root / to.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, self.root / to.lstrip("/"))


@pytest.fixture(scope="module")
def trained_run(toy, tmp_path_factory) -> Run:
    """A run that went through all stages, in a folder that replaces the container's."""
    root = tmp_path_factory.mktemp("container")
    config = ["--run", "anna", "--base", toy, "--rank", "4", "--alpha", "8", "--steps", "2", "--warmup-steps", "0",
              "--tokens-per-batch", "700", "--sample-steps", "0", "--eval-steps", "2", "--save-steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        source = copy_ten_clips(root / "runs" / "anna" / "source")
        assert modal_app.run_command.local(command("prepare", str(source), "--run", "anna")) is None
        assert modal_app.run_command.local(command("tokenize", "--run", "anna", "--base", toy)) is None
        assert modal_app.train.local(command("train", *config)) is None
    return Run("anna", root / "runs")


def command(*words: str) -> argparse.Namespace:
    args = cli.build_parser().parse_args(words)
    args.run = args.run.name  # as `run_stages` sends it
    return args


def copy_ten_clips(folder: Path) -> Path:
    """Copy ten of the bundled clips with their transcripts."""
    header, *rows = (ROOT / "sample_data" / "voice" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:11]
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    for row in rows:
        shutil.copy(ROOT / "sample_data" / "voice" / row.split(",")[0], folder)
    return folder


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("location", ["client", "container"])
def test_the_app_is_imported_without_token_network_or_packages(location, tmp_path):
    """Mistake: the import needs a token, Modal's servers, torch on the client, or in the container a file that exists only
    on the client."""
    if location == "container":
        shutil.copytree(ROOT / "tts_kit", tmp_path / "tts_kit", ignore=shutil.ignore_patterns("__pycache__"))
    script = NO_NETWORK + NO_PACKAGES + "from tts_kit import modal_app\nmodal_app.check_arguments(['--smoke'])\n\n"
    script += "print(modal_app.PACKAGE)"
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL", "HF_TOKEN"))}
    folder = tmp_path if location == "container" else ROOT
    process = subprocess.run([sys.executable, "-c", script], cwd=folder, capture_output=True, text=True, check=False,
                             env=environment | {"HOME": str(tmp_path / "nobody")})
    assert process.returncode == 0, process.stderr
    assert Path(process.stdout.strip()).parent == folder


@pytest.mark.parametrize(("arguments", "code", "message"), [
    ("-m tts_kit.modal_app --stepps 3", 2, "unrecognized arguments: --stepps 3"),
    ("-m tts_kit.modal_app --run ../x", 1, "run name '../x'"), ("-m tts_kit.modal_app --rank 0", 1, "rank is 0; it must be"),
    ("-m tts_kit.modal_app --help", 0, "Modal's name of a GPU"),
    ("-m tts_kit.modal_app --gp L4", 2, "unrecognized arguments: --gp L4"),
    (f"{modal_app.__file__} --run x", 1, "Give its module instead: modal run -m tts_kit.modal_app")])
def test_a_wrong_command_fails_before_modal_is_called(arguments, code, message, tmp_path):
    """Mistake: a wrong option is reported only after the image was built, or --help does not show the kit's options."""
    process = subprocess.run([sys.executable, "-m", "modal", "run", *arguments.split()], cwd=tmp_path,
                             capture_output=True, text=True, check=False,
                             env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert process.returncode == code and message in process.stdout + process.stderr, process.stdout + process.stderr
    assert "Token" not in process.stderr and "Traceback" not in process.stderr


class Recorder:
    """Replaces modal.Image and records the calls that build the image."""

    def __init__(self, calls=()):
        self.calls = list(calls)

    def __getattr__(self, name):
        return lambda *args, **kwargs: Recorder([*self.calls, (name, args, kwargs)])


def test_the_image_has_the_tested_versions(monkeypatch):
    """Mistake: a container installs other versions than the tested ones, or lacks files of the package or its samples."""
    monkeypatch.setattr(modal_app.modal, "Image", Recorder())
    calls = modal_app._image().calls
    names = [name for name, _, _ in calls]
    assert names[0] == "debian_slim" and names.index("add_local_file") < names.index("uv_pip_install")
    installs = [(arguments, options) for name, arguments, options in calls if name == "uv_pip_install"]
    (packages, tested), (_, without_dependencies) = installs
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(packages) == {*extras["audio"], *extras["eval"], *extras["serve"]}
    assert tested == {"requirements": [str(ROOT / "requirements.txt")], "extra_options": "-c /constraints.txt"}
    assert without_dependencies["extra_options"] == "--no-deps"
    assert [Path(path).name for path in without_dependencies["requirements"]] == ["requirements-no-deps.txt"]
    folders = {str(arguments[0]): (arguments[1], options) for name, arguments, options in calls if name == "add_local_dir"}
    assert folders == {str(ROOT / "tts_kit"): ("/root/tts_kit", {"ignore": ["**/__pycache__"]}),
                       str(ROOT / "sample_data"): ("/root/sample_data", {})}


def test_each_call_has_its_own_container(monkeypatch):
    """Mistake: a reused container does not see newer commits to the volume, or a crash ends the run."""
    options = {}
    app = SimpleNamespace(function=lambda **values: options.update(values) or (lambda step: step))
    monkeypatch.setattr(modal_app, "app", app)
    modal_app._stage([])(lambda: None)
    assert options["single_use_containers"] and options["retries"] == 3 and options["timeout"] == modal_app.DAY


def test_a_preempted_training_is_resumed(trained_run, tmp_path, monkeypatch):
    """Mistake: training starts again after preemption, or its checkpoints are not committed."""
    class PreemptedVolume:
        def __init__(self):
            self.checkpoints = []

        def commit(self):
            self.checkpoints.append(trainer.last_complete_checkpoint(Run("anna").training))
            if len(self.checkpoints) == 2:
                raise KeyboardInterrupt

    preempted_volume = PreemptedVolume()
    monkeypatch.setattr(modal_app, "GPUS", [])
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    monkeypatch.setattr(modal_app, "volume", preempted_volume)
    monkeypatch.chdir(tmp_path)
    for name in ("anna", "whole"):
        shutil.copytree(trained_run.codes, Run(name).codes)
    config = dict(base=read_json(trained_run.adapter / "config.json", "")["base"], rank=4, steps=4, warmup_steps=0,
                  tokens_per_batch=150, eval_steps=4, save_steps=1, sample_steps=0)
    arguments = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(command("train", "--run", "anna", *arguments))
    assert preempted_volume.checkpoints[1].name == "checkpoint-2" and not Run("anna").adapter.exists()
    assert modal_app.train.local(command("train", "--run", "anna", *arguments)) is None
    checkpoints = [path.name for path in preempted_volume.checkpoints[3:]]
    assert checkpoints == ["checkpoint-3", "checkpoint-4", "checkpoint-4"], "after each checkpoint, and at the end"
    finetune.finetune(Config(**config), Run("whole"), CPU)
    same(adapter(Run("anna").adapter), adapter(Run("whole").adapter))


def test_all_gpus_are_used(trained_run, tmp_path, monkeypatch):
    """Mistake: two GPUs are paid for, and only one trains."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained_run.codes, Run("anna").codes)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    commands = []
    monkeypatch.setattr(finetune.subprocess, "run",
                        lambda command, **_: commands.append(command) or SimpleNamespace(returncode=1))
    base = read_json(trained_run.adapter / "config.json", "")["base"]
    error = modal_app.train.local(command("train", "--run", "anna", "--base", base, "--rank", "5"))
    assert "training with 2 processes has stopped" in str(error)
    assert " ".join(commands[0][1:]).endswith("--multi_gpu --num_processes 2 -m tts_kit train --run anna")
    assert read_json(Run("anna").folder / "config.json", "")["rank"] == 5


def test_a_download_copies_the_run(trained_run, tmp_path):
    """Mistake: a file is missing or truncated, or gigabytes of checkpoints are downloaded."""
    remote, run = FolderVolume(trained_run.folder.parent), Run("anna", tmp_path / "runs")
    count = modal_app.download(remote, run)
    remote_files, local_files = read_files(trained_run.folder), read_files(run.folder)
    assert len(local_files) == count
    assert local_files == {name: content for name, content in remote_files.items() if not name.startswith("source/")
                    and "checkpoint-" not in name}
    assert {"adapter", "codes", "data", "training"} <= {name.split("/")[0] for name in local_files}


@pytest.mark.parametrize("failing_file", ["config.json", "adapter/adapter_model.safetensors"])
def test_a_failed_download_changes_nothing(trained_run, tmp_path, monkeypatch, failing_file):
    """Mistake: an incomplete adapter replaces a complete one."""
    remote, run = FolderVolume(trained_run.folder.parent), Run("anna", tmp_path / "runs")
    modal_app.download(remote, run)
    files_before, read_file = read_files(run.folder), remote.read_file

    def read_half(path):
        yield b"half" if path == f"anna/{failing_file}" else b"".join(read_file(path))
        if path == f"anna/{failing_file}":
            raise ConnectionError("gone")

    monkeypatch.setattr(remote, "read_file", read_half)
    with pytest.raises(ConnectionError):
        modal_app.download(remote, run)
    assert read_files(run.folder) == files_before
    assert not [path for path in run.folder.iterdir() if path.name.startswith(".")]


def test_local_files_are_never_replaced(trained_run, tmp_path, capsys):
    """Mistake: a voice that was trained on this machine, or local changes of a downloaded one, are overwritten."""
    remote, run = FolderVolume(trained_run.folder.parent), Run("anna", tmp_path / "runs")
    run.adapter.mkdir(parents=True)
    (run.adapter / "mine.txt").write_text("mine")
    count = modal_app.download(remote, run)
    assert len(read_files(run.folder)) == count and not (run.adapter / "mine.txt").exists()
    (run.folder / "consent.json").write_text("work")
    assert modal_app.download(remote, run) == count
    assert (tmp_path / "runs" / "anna.1" / "adapter" / "mine.txt").read_text() == "mine"
    assert (tmp_path / "runs" / "anna.2" / "consent.json").read_text() == "work"
    assert "anna was there already; it is" in capsys.readouterr().out


def test_a_source_is_uploaded_under_its_own_name(tmp_path, monkeypatch):
    """Mistake: `.` is searched on the volume under a name that does not exist, or clips added later are not uploaded."""
    remote, run = FolderVolume(tmp_path / "there"), Run("anna", tmp_path / "runs")
    copy_ten_clips(tmp_path / "clips")
    monkeypatch.chdir(tmp_path / "clips")
    assert modal_app.upload(remote, "example:emma", run) == "example:emma"
    assert modal_app.upload(remote, ".", run) == "runs/anna/source/clips"
    assert len(read_files(remote.root / "anna" / "source" / "clips")) == 11
    (tmp_path / "clips" / "new.txt").write_text("added later")
    assert modal_app.upload(remote, "../clips", run) == "runs/anna/source/clips"
    assert len(read_files(remote.root / "anna" / "source" / "clips")) == 12


def test_an_error_of_the_user_is_not_retried(tmp_path, monkeypatch, capsys):
    """Mistake: Modal starts a GPU three more times for a misspelled name, or the message is hidden in a traceback."""
    def refuse(args):
        raise modal.exception.InvalidError("GPU type 'L44' is not known.")

    monkeypatch.chdir(tmp_path)
    error = modal_app.run_command.local(command("tokenize", "--run", "nobody"))
    assert isinstance(error, KitError)
    with pytest.raises(KitError):
        modal_app._call(SimpleNamespace(remote=lambda args: error), command("tokenize"))
    with pytest.raises(KitError, match="GPU type 'L44'"):
        modal_app._call(SimpleNamespace(remote=refuse), command("tokenize"))
    with pytest.raises(KitError, match="there is no arm 'tuend'"):  # before anything has to be paid
        modal_app.check_arguments(["--arms", "base", "tuend"])
    with pytest.raises(SystemExit, match="1"):
        modal_app.main.info.raw_f("--run", "../x")
    assert "run name '../x'" in capsys.readouterr().err


@pytest.mark.parametrize(("error", "message"), [
    (RuntimeError("Library libcublas.so.12 is not found"), "prepare has failed: RuntimeError: Library libcublas.so.12"),
    (ValueError(), "prepare has failed: ValueError: ValueError"), (KeyboardInterrupt(), "")])
def test_only_a_preemption_is_retried(monkeypatch, capsys, error, message):
    """Mistake: an error that comes again is raised, so that Modal starts and bills three more GPUs for it; or a container
    that is taken away counts as finished."""
    monkeypatch.setattr(modal_app, "app", SimpleNamespace(function=lambda **_: lambda step: step))

    def prepare(args):
        raise error

    step = modal_app._stage([])(prepare)
    if message:
        result = step(command("prepare", "clips"))
        assert type(result) is KitError and message in str(result)
        assert pickle.loads(pickle.dumps(result)).args == result.args  # noqa: S301 (as Modal sends it back)
        assert "in prepare" in capsys.readouterr().err
    else:
        with pytest.raises(type(error)):
            step(command("prepare", "clips"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the GPU whose absence is tested")
def test_a_requested_gpu_is_used(monkeypatch):
    """Mistake: torch sees no GPU in the container, and CSM-1B is trained on its CPU at the price of the GPU."""
    monkeypatch.setattr(modal_app, "app", SimpleNamespace(function=lambda **_: lambda step: step))
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    monkeypatch.setattr(modal_app, "volume", SimpleNamespace(commit=lambda: None))
    monkeypatch.setattr(modal_app, "GPUS", ["L4"])
    stages = []
    step = modal_app._stage(["L4"])(stages.append)
    assert "'cuda' was requested" in str(step(command("tokenize"))) and not stages
    monkeypatch.setattr(modal_app, "GPUS", [])
    assert step(command("tokenize")) is None and len(stages) == 1


@pytest.mark.parametrize(("arguments", "environment", "train", "others"), [
    (["--gpu", "H100:2,A100-80GB:2"], {}, ["H100:2", "A100-80GB:2"], ["H100", "A100-80GB"]),
    (["--run", "a", "--gpu=T4"], {"TTS_KIT_GPU": "L4"}, ["T4"], ["T4"]), ([], {}, ["L4"], ["L4"]),
    ([], {"TTS_KIT_GPU": "L40S,A10G"}, ["L40S", "A10G"], ["L40S", "A10G"]), (["--gpu", "none"], {}, [], []),
    ([], {"TTS_KIT_GPU": "none"}, [], [])])
def test_the_functions_are_declared_with_the_gpus(arguments, environment, train, others):
    """Mistake: a command without mistakes ends at the check of its options, with exit status 1; a list of GPUs is no
    fallback, since options at a call take a single one; a stage takes a GPU that was not requested, or two where it
    uses one; or a container does not know what was requested."""
    script = f"""
        import sys
        sys.argv = ["modal", "run", "-m", "tts_kit.modal_app", *{arguments}]
        from tts_kit import modal_app
        modal_app.check_arguments({arguments})
        for function in (modal_app.train, modal_app.run_command, modal_app.serve):
            print(function._spec_.gpus)
        print(modal_app.GPUS)"""
    process = subprocess.run([sys.executable, "-c", NO_PACKAGES + textwrap.dedent(script)], cwd=ROOT, capture_output=True,
                             text=True, check=False, env=os.environ | {"HOME": "/nowhere"} | environment)
    assert process.stdout.splitlines() == [str(gpus or None) for gpus in (train, others, train)] + [str(train)], (
        process.stderr)


def test_a_memory_snapshot_holds_nothing_of_a_gpu():
    """Mistake: `serve` starts from a snapshot whose imports have looked for a GPU, which is not there when it is taken."""
    script = """
        import torch
        def refuse(*args, **kwargs):
            raise RuntimeError("CUDA is used during import")
        torch.cuda._lazy_init = torch.cuda.device_count = torch.cuda.is_available = refuse
        from tts_kit import modal_app
        assert "tts_kit.server.app" not in sys.modules
        modal_app.modal.is_local = lambda: False
        import importlib
        importlib.reload(modal_app)
        print("tts_kit.server.app" in sys.modules, "transformers" in sys.modules)"""
    process = subprocess.run([sys.executable, "-c", "import sys\n" + textwrap.dedent(script)], cwd=ROOT, capture_output=True,
                             text=True, check=False)
    assert process.stdout == "True True\n", process.stderr


def test_the_pipeline_runs_from_this_machine(toy, tmp_path, monkeypatch, capsys):
    """Mistake: a stage is called with arguments that it does not take, or --smoke takes an hour."""
    class LocalFunction:
        """A stage on this machine with the interface of a Modal function."""

        def __init__(self, name, function):
            self.name, self.function = name, function

        def remote(self, args):
            args = pickle.loads(pickle.dumps(args))  # noqa: S301 (as Modal sends it to a container)
            calls.append((self.name, args.func.__name__))
            monkeypatch.chdir(tmp_path / "cloud")
            result = self.function.local(args)
            monkeypatch.chdir(tmp_path / "home")
            return result

    calls = []
    monkeypatch.setattr("tts_kit.evaluation.metrics.load_available", lambda *_: False)
    (tmp_path / "cloud" / "runs").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(modal_app, "volume", FolderVolume(tmp_path / "cloud" / "runs"))
    for name in ("run_command", "train"):
        monkeypatch.setattr(modal_app, name, LocalFunction(name, getattr(modal_app, name)))
    source = copy_ten_clips(tmp_path / "home" / "clips")
    arguments = ["--run", "anna", "--source", str(source), "--smoke", "--base", toy, "--arms", "base", "finetuned"]
    modal_app.main.info.raw_f(*arguments)
    assert calls == [("run_command", "prepare"), ("run_command", "tokenize"), ("train", "train"),
                     ("run_command", "compare")], "only training uses a second GPU"
    remote_run = Run("anna", tmp_path / "cloud" / "runs")
    assert [row["step"] for row in read_rows(Run("anna").training / "log.jsonl") if "backbone_loss" in row] == [1, 2]
    assert read_files(remote_run.comparison) == read_files(Run("anna").comparison)
    assert read_files(remote_run.adapter) == read_files(Run("anna").adapter)
    assert "Listen: file://" in capsys.readouterr().out
    modal_app.main.info.raw_f(*arguments)
    assert "anna was there already; it is" in capsys.readouterr().out


@pytest.mark.skipif(not importlib.util.find_spec("fastapi"), reason="no server is installed (the extra `serve`)")
def test_the_server_has_all_voices_of_the_volume(trained_run, tmp_path, monkeypatch):
    """Mistake: the server on Modal starts without voices or without a key, or differs from `tts-kit serve`."""
    with socket.socket() as free_socket:
        free_socket.bind(("127.0.0.1", 0))
        monkeypatch.setattr(modal_app, "PORT", free_socket.getsockname()[1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="holds no trained voice"):
        modal_app.serve.local()
    monkeypatch.chdir(trained_run.folder.parent.parent)
    monkeypatch.delenv("TTS_KIT_KEY", raising=False)
    with pytest.raises(KitError, match="key"):
        modal_app.serve.local()
    monkeypatch.setenv("TTS_KIT_KEY", "a long enough secret of ours")
    server = modal_app.serve.local()
    try:
        request = urllib.request.Request(f"http://127.0.0.1:{modal_app.PORT}/v1/voices",
                                       headers={"Authorization": "Bearer a long enough secret of ours"})
        assert "anna" in urllib.request.urlopen(request, timeout=600).read().decode()
    finally:
        server.close()
