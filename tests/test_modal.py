"""The cloud door, with every function called on this machine: no token, no network, and of Modal only its own library."""

import argparse
import importlib.util
import os
import pickle
import shutil
import socket
import subprocess
import sys
import tomllib
import urllib.request
from pathlib import Path
from types import SimpleNamespace

import pytest
from test_training_finetune import adapter, same

from tts_kit import cli, device
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import read_json, read_rows
from tts_kit.model import lora
from tts_kit.run import Run
from tts_kit.training import finetune, trainer

modal = pytest.importorskip("modal", reason='modal is not installed: pip install "tts-kit[modal]"')

from tts_kit import modal_app  # noqa: E402

ROOT = Path(__file__).parent.parent
CPU = device.choose("cpu")
pytestmark = pytest.mark.filterwarnings("ignore:The .* function is executing locally")
OFFLINE = """
import socket
def refuse(*arguments, **named):
    raise OSError("the network was asked for")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
"""
WITHOUT = """
import sys
sys.modules |= dict.fromkeys(("torch", "transformers", "peft", "numpy", "soundfile", "matplotlib"))
"""


class Shelf:
    """A volume as this machine sees Modal's: a list of files, and their bytes in pieces."""

    def __init__(self, root: Path):
        self.root = root

    def iterdir(self, path: str, recursive: bool = True):
        kinds = modal.volume.FileEntryType
        folder = self.root / path.lstrip("/")
        if not folder.exists():
            raise modal.exception.NotFoundError(path)
        for each in sorted(folder.rglob("*") if recursive else folder.iterdir()):
            yield SimpleNamespace(path=each.relative_to(self.root).as_posix(),
                                  type=kinds.DIRECTORY if each.is_dir() else kinds.FILE)

    def read_file(self, path: str):
        content = (self.root / path).read_bytes()
        yield from (content[:10], content[10:])

    def batch_upload(self):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def put_directory(self, path, to):
        shutil.copytree(path, self.root / to.lstrip("/"))

    def put_file(self, path, to):
        (self.root / to.lstrip("/")).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, self.root / to.lstrip("/"))


@pytest.fixture(scope="module")
def trained(toy, tmp_path_factory) -> Run:
    """A run that went through the stages one by one, in a folder that stands for a container's."""
    root = tmp_path_factory.mktemp("container")
    config = ["--run", "anna", "--base", toy, "--rank", "4", "--alpha", "8", "--steps", "2", "--warmup-steps", "0",
              "--tokens-per-batch", "700", "--sample-steps", "0", "--eval-steps", "2", "--save-steps", "1"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        source = few(root / "runs" / "anna" / "source")
        assert modal_app.run_command.local(command("prepare", str(source), "--run", "anna")) is None
        assert modal_app.run_command.local(command("tokenize", "--run", "anna", "--base", toy)) is None
        assert modal_app.train.local(command("train", *config)) is None
    return Run("anna", root / "runs")


def command(*words: str) -> argparse.Namespace:
    return cli.build_parser().parse_args(words)


def few(folder: Path) -> Path:
    """Ten of the bundled clips, with their texts."""
    table, *rows = (ROOT / "sample_data" / "voice" / "metadata.csv").read_text(encoding="utf-8").splitlines()[:11]
    folder.mkdir(parents=True)
    (folder / "metadata.csv").write_text("\n".join([table, *rows]) + "\n", encoding="utf-8")
    for row in rows:
        shutil.copy(ROOT / "sample_data" / "voice" / row.split(",")[0], folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("where", ["here", "in a container"])
def test_it_is_imported_without_token_network_or_requirements(where, tmp_path):
    """Mistake: an import asks for a token or for Modal's servers, wants torch on a machine that only calls, or in the
    container reads a file that only lies here."""
    if where == "in a container":
        shutil.copytree(ROOT / "tts_kit", tmp_path / "tts_kit", ignore=shutil.ignore_patterns("__pycache__"))
    script = OFFLINE + WITHOUT + "from tts_kit import modal_app\nmodal_app.check_arguments(['--smoke'])\n\n"
    script += "print(modal_app.PACKAGE)"
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("MODAL", "HF_TOKEN"))}
    out = subprocess.run([sys.executable, "-c", script], cwd=tmp_path if where != "here" else ROOT, capture_output=True,
                         text=True, check=False, env=bare | {"HOME": str(tmp_path / "nobody")})
    assert out.returncode == 0, out.stderr
    assert Path(out.stdout.strip()).parent == (tmp_path if where != "here" else ROOT)


@pytest.mark.parametrize(("told", "code", "answer"), [
    ("-m tts_kit.modal_app --stepps 3", 2, "unrecognized arguments: --stepps 3"),
    ("-m tts_kit.modal_app --run ../x", 1, "run name '../x'"), ("-m tts_kit.modal_app --rank 0", 1, "rank is 0; it must be"),
    ("-m tts_kit.modal_app --help", 0, "Modal's name of a GPU"),
    (f"{modal_app.__file__} --run x", 1, "Give its module instead: modal run -m tts_kit.modal_app")])
def test_a_misspelt_command_is_told_before_modal_is_asked(told, code, answer, tmp_path):
    """Mistake: an image is built for minutes, and then an option is unknown; or --help shows none of the kit's options."""
    out = subprocess.run([sys.executable, "-m", "modal", "run", *told.split()], cwd=tmp_path,
                         capture_output=True, text=True, check=False,
                         env=os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT)})
    assert out.returncode == code and answer in out.stdout + out.stderr, out.stdout + out.stderr
    assert "Token" not in out.stderr and "Traceback" not in out.stderr


class Recorder:
    """Stands for an image, and remembers how it was made."""

    def __init__(self, made=()):
        self.made = list(made)

    def __getattr__(self, name):
        return lambda *arguments, **named: Recorder([*self.made, (name, arguments, named)])


def test_the_image_has_the_tested_versions(monkeypatch):
    """Mistake: what a container installs drifts away from what is tested here, or leaves out pages and sounds of the kit."""
    monkeypatch.setattr(modal_app.modal, "Image", Recorder())
    made = modal_app._image().made
    names = [name for name, _, _ in made]
    assert names[0] == "debian_slim" and names.index("add_local_file") < names.index("uv_pip_install")
    installs = [(arguments, options) for name, arguments, options in made if name == "uv_pip_install"]
    (packages, tested), (_, without_dependencies) = installs
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(packages) == {*extras["audio"], *extras["eval"], *extras["serve"]}
    assert tested == {"requirements": [str(ROOT / "requirements.txt")], "extra_options": "-c /constraints.txt"}
    assert without_dependencies["extra_options"] == "--no-deps"
    assert [Path(path).name for path in without_dependencies["requirements"]] == ["requirements-no-deps.txt"]
    folders = {str(arguments[0]): (arguments[1], options) for name, arguments, options in made if name == "add_local_dir"}
    assert folders == {str(ROOT / "tts_kit"): ("/root/tts_kit", {"ignore": ["**/__pycache__"]}),
                       str(ROOT / "sample_data"): ("/root/sample_data", {})}


def test_a_call_has_a_container_of_its_own(monkeypatch):
    """Mistake: a container in its second call has not seen what others committed since, or a crash ends the run."""
    asked = {}
    monkeypatch.setattr(modal_app, "app", SimpleNamespace(function=lambda **told: asked.update(told) or (lambda step: step)))
    modal_app._stage(lambda: None)
    assert asked["single_use_containers"] and asked["retries"] == 3 and asked["timeout"] == modal_app.DAY


def test_a_training_that_was_taken_away_goes_on(trained, tmp_path, monkeypatch):
    """Mistake: a preempted container begins anew, or its checkpoints were never kept."""
    class Taken:
        def __init__(self):
            self.kept = []

        def commit(self):
            self.kept.append(trainer.last_complete_checkpoint(Run("anna").training))
            if len(self.kept) == 2:
                raise KeyboardInterrupt

    volume_there = Taken()
    monkeypatch.setattr(modal_app.modal, "is_local", lambda: False)
    monkeypatch.setattr(modal_app, "volume", volume_there)
    monkeypatch.chdir(tmp_path)
    for name in ("anna", "whole"):
        shutil.copytree(trained.codes, Run(name).codes)
    config = dict(base=read_json(trained.adapter / "config.json", "")["base"], rank=4, steps=4, warmup_steps=0,
                  tokens_per_batch=150, eval_steps=4, save_steps=1, sample_steps=0)
    words = [word for name, value in config.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    with pytest.raises(KeyboardInterrupt):
        modal_app.train.local(command("train", "--run", "anna", *words))
    assert volume_there.kept[1].name == "checkpoint-2" and not Run("anna").adapter.exists()
    assert modal_app.train.local(command("train", "--run", "anna", *words)) is None
    kept = [path.name for path in volume_there.kept[3:]]
    assert kept == ["checkpoint-3", "checkpoint-4", "checkpoint-4"], "after each checkpoint, and at the end"
    finetune.finetune(Config(**config), Run("whole"), CPU)
    same(adapter(Run("anna").adapter), adapter(Run("whole").adapter))


def test_several_gpus_are_all_used(trained, tmp_path, monkeypatch):
    """Mistake: two GPUs are paid, and one of them trains."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(trained.codes, Run("anna").codes)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    asked = []
    monkeypatch.setattr(finetune.subprocess, "run",
                        lambda command, **_: asked.append(command) or SimpleNamespace(returncode=1))
    base = read_json(trained.adapter / "config.json", "")["base"]
    problem = modal_app.train.local(command("train", "--run", "anna", "--base", base, "--rank", "5"))
    assert "training with 2 processes has stopped" in str(problem)
    assert " ".join(asked[0][1:]).endswith("--multi_gpu --num_processes 2 -m tts_kit train --run anna")
    assert read_json(Run("anna").folder / "config.json", "")["rank"] == 5


def test_what_is_brought_is_what_was_there(trained, tmp_path):
    """Mistake: a file is left out or cut short, and working material of gigabytes is brought."""
    shelf, run = Shelf(trained.folder.parent), Run("anna", tmp_path / "runs")
    count = modal_app.download(shelf, run)
    there, here = contents(trained.folder), contents(run.folder)
    assert here.pop(modal_app.DOWNLOADED) and len(here) == count
    assert here == {name: content for name, content in there.items() if not name.startswith("source/")
                    and "checkpoint-" not in name}
    assert {"adapter", "codes", "data", "training"} <= {name.split("/")[0] for name in here}
    assert modal_app.download(shelf, run) == count, "a second time"


@pytest.mark.parametrize("broken_in", ["config.json", "adapter/adapter_model.safetensors"])
def test_a_broken_connection_leaves_what_was_here(trained, tmp_path, monkeypatch, broken_in):
    """Mistake: half of an adapter takes the place of the whole one."""
    shelf, run = Shelf(trained.folder.parent), Run("anna", tmp_path / "runs")
    modal_app.download(shelf, run)
    before, whole = contents(run.folder), shelf.read_file

    def broken(path):
        yield b"half" if path == f"anna/{broken_in}" else b"".join(whole(path))
        if path == f"anna/{broken_in}":
            raise ConnectionError("gone")

    monkeypatch.setattr(shelf, "read_file", broken)
    with pytest.raises(ConnectionError):
        modal_app.download(shelf, run)
    assert contents(run.folder) == before and not [path for path in run.folder.iterdir() if path.name.startswith(".")]


def test_what_was_brought_in_part_is_brought_in_full_later(trained, tmp_path, monkeypatch):
    """Mistake: what came before the connection broke is taken for this machine's own work, and the run cannot be brought."""
    shelf, run = Shelf(tmp_path / "there"), Run("anna", tmp_path / "runs")
    shutil.copytree(trained.folder, shelf.root / "anna")
    (shelf.root / "anna" / "notes.txt").write_text("of the first time")
    whole, last = shelf.read_file, sorted(shelf.root.rglob("anna/training/*.jsonl"))[-1]

    def broken(path):
        if path == last.relative_to(shelf.root).as_posix():
            raise ConnectionError("gone")
        return whole(path)

    for content in ("of the first time", "of the second time"):
        (shelf.root / "anna" / "notes.txt").write_text(content)
        with monkeypatch.context() as patch, pytest.raises(ConnectionError):
            patch.setattr(shelf, "read_file", broken)
            modal_app.download(shelf, run)
        assert (run.folder / "notes.txt").read_text() == content and (run.adapter / lora.METADATA_FILE).is_file()
    assert modal_app.download(shelf, run) == len(contents(run.folder)) - 1


def test_a_run_made_here_is_never_replaced(trained, tmp_path):
    """Mistake: a voice that was trained here is overwritten by one of the same name."""
    run = Run("anna", tmp_path / "runs")
    run.adapter.mkdir(parents=True)
    (run.adapter / "mine.txt").write_text("mine")
    with pytest.raises(KitError, match="mine.txt was made or changed on this machine.*another --run"):
        modal_app.download(Shelf(trained.folder.parent), run)


@pytest.mark.parametrize("name", ["config.json", "adapter/adapter_config.json", "comparison/votes.json"])
def test_what_was_done_here_since_is_never_replaced(trained, tmp_path, name):
    """Mistake: a voice was brought once, somebody worked on it here, and the next time that work is gone."""
    shelf, run = Shelf(tmp_path / "there"), Run("anna", tmp_path / "runs")
    shutil.copytree(trained.folder, shelf.root / "anna")
    modal_app.download(shelf, run)
    for other in ("consent.json", "adapter/consent.json", "adapter/.DS_Store", "training/.ipynb_checkpoints/log.jsonl",
                  "release/card.md"):
        harmless = run.folder / other
        harmless.parent.mkdir(exist_ok=True)
        harmless.write_text("of this machine")
    modal_app.download(shelf, run)
    assert (run.folder / "release" / "card.md").is_file()
    (run.folder / name).parent.mkdir(exist_ok=True)
    (run.folder / name).write_text("work")
    (shelf.root / "anna" / "comparison").mkdir(exist_ok=True)
    (shelf.root / "anna" / "comparison" / "scores.jsonl").write_text("{}")
    before = contents(run.folder)
    with pytest.raises(KitError, match=f"{Path(name).name} was made or changed on this machine"):
        modal_app.download(shelf, run)
    assert contents(run.folder) == before


def test_the_source_on_the_volume_is_read_whatever_its_name_here(tmp_path, monkeypatch):
    """Mistake: `.` or a folder that was renamed is looked for on the volume under a name that is not there."""
    shelf, run = Shelf(tmp_path / "there"), Run("anna", tmp_path / "runs")
    few(tmp_path / "clips")
    monkeypatch.chdir(tmp_path / "clips")
    assert modal_app.upload(shelf, "example:emma", run) == "example:emma"
    assert modal_app.upload(shelf, ".", run) == "runs/anna/source/clips"
    assert len(contents(shelf.root / "anna" / "source" / "clips")) == 11
    shutil.copytree(tmp_path / "clips", tmp_path / "again")
    assert modal_app.upload(shelf, "../again", run) == "runs/anna/source/clips"


def test_a_mistake_of_a_person_is_not_tried_again(tmp_path, monkeypatch, capsys):
    """Mistake: Modal starts a GPU three more times for a misspelt name, or the message drowns in a traceback."""
    def refuse(gpu):
        raise modal.exception.InvalidError(f"GPU type '{gpu}' is not known.")

    monkeypatch.chdir(tmp_path)
    answer = modal_app.run_command.local(command("tokenize", "--run", "nobody"))
    assert isinstance(answer, KitError)
    with pytest.raises(KitError):
        modal_app._call(SimpleNamespace(remote=lambda args: answer), "", command("tokenize"))
    with pytest.raises(KitError, match="GPU type 'L44'"):
        modal_app._call(SimpleNamespace(with_options=refuse), "L44", command("tokenize"))
    with pytest.raises(KitError, match="there is no arm 'tuend'"):  # before anything is paid
        modal_app.check_arguments(["--arms", "base", "tuend"])
    with pytest.raises(SystemExit, match="1"):
        modal_app.main.info.raw_f("--run", "../x")
    assert "run name '../x'" in capsys.readouterr().err


def test_the_whole_story_from_here(toy, tmp_path, monkeypatch, capsys):
    """Mistake: a stage is asked for with other arguments than it takes, without the GPU, or smoke takes an hour."""
    class Here:
        """A stage on this machine, asked as one asks those on Modal's."""

        def __init__(self, name, function, gpu=""):
            self.name, self.function, self.gpu = name, function, gpu

        def with_options(self, gpu):
            return Here(self.name, self.function, gpu)

        def remote(self, args):
            args = pickle.loads(pickle.dumps(args))  # noqa: S301 (as on its way to a container)
            calls.append((self.name, args.func.__name__, self.gpu))
            monkeypatch.chdir(tmp_path / "cloud")
            answer = self.function.local(args)
            monkeypatch.chdir(tmp_path / "home")
            return answer

    calls = []
    monkeypatch.setattr("tts_kit.evaluation.metrics.load_available", lambda *_: False)
    (tmp_path / "cloud" / "runs").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setattr(modal_app, "volume", Shelf(tmp_path / "cloud" / "runs"))
    for name in ("run_command", "train"):
        monkeypatch.setattr(modal_app, name, Here(name, getattr(modal_app, name)))
    source = few(tmp_path / "home" / "clips")
    told = ["--run", "anna", "--source", str(source), "--gpu", "T4:2", "--smoke", "--base", toy, "--arms", "base",
            "finetuned"]
    modal_app.main.info.raw_f(*told)
    assert calls == [("run_command", "prepare", "T4"), ("run_command", "tokenize", "T4"), ("train", "train", "T4:2"),
                     ("run_command", "compare", "T4")], "the others have no use for a second GPU"
    there = Run("anna", tmp_path / "cloud" / "runs")
    assert [row["step"] for row in read_rows(Run("anna").training / "log.jsonl") if "backbone_loss" in row] == [1, 2]
    assert contents(there.comparison) == contents(Run("anna").comparison)
    assert contents(there.adapter) == contents(Run("anna").adapter)
    assert "Listen: file://" in capsys.readouterr().out
    modal_app.main.info.raw_f(*told)
    assert "is on the volume already and is used again" in capsys.readouterr().out


@pytest.mark.skipif(not importlib.util.find_spec("fastapi"), reason="no server is installed (the extra `serve`)")
def test_the_server_has_every_voice_of_the_volume(trained, tmp_path, monkeypatch):
    """Mistake: the cloud's server begins without voices, without a key, or in another way than the verb."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        monkeypatch.setattr(modal_app, "PORT", door.getsockname()[1])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="holds no trained voice"):
        modal_app.serve.local()
    monkeypatch.chdir(trained.folder.parent.parent)
    monkeypatch.delenv("TTS_KIT_KEY", raising=False)
    with pytest.raises(KitError, match="key"):
        modal_app.serve.local()
    monkeypatch.setenv("TTS_KIT_KEY", "a long enough secret of ours")
    server = modal_app.serve.local()
    try:
        asked = urllib.request.Request(f"http://127.0.0.1:{modal_app.PORT}/v1/voices",
                                       headers={"Authorization": "Bearer a long enough secret of ours"})
        assert "anna" in urllib.request.urlopen(asked, timeout=60).read().decode()
    finally:
        server.close()
