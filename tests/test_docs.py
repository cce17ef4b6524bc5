"""Every command that the documents name is executed here, or read by the parser that would read it, with the reason why."""

import ast
import importlib
import importlib.util
import itertools
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from test_house import ROOT, tracked

from tts_kit import audio, cli, device
from tts_kit.config import Config
from tts_kit.data import manifest, prepare
from tts_kit.run import SAMPLE_VOICE, Run
from tts_kit.server import app
from tts_kit.speech.voice import load_voices
from tts_kit.tokens import cache
from tts_kit.training import finetune

PROGRAMS = ("tts-kit", "python", "make", "pip", "bash", "modal", "accelerate", "curl")
"""What a command begins with."""
NOT_COMMANDS = ("  ", "my_clips/", "file_name,", "tts_kit/")
"""How a block begins that holds output or files."""

RUN = {  # command: options added here, so that it is quick
    "tts-kit doctor --base unsloth/csm-1b": "",
    "tts-kit doctor": "",
    "tts-kit doctor --plan --run anna": "",
    "tts-kit prepare example:emma": "--run emma",
    "tts-kit prepare my_clips --run anna": "",
    "tts-kit prepare my_clips --eval-source other_clips": "",
    "tts-kit report --run anna": "",
    "tts-kit export-dataset --run anna": "",
    "tts-kit tokenize --run anna --base unsloth/csm-1b": "",
    "tts-kit train --run anna --dry-run --json": "",
    "tts-kit train --run anna": "--steps 2 --eval-steps 2",
    'tts-kit speak "Hello there." --run anna --out hello.wav': "",
    'tts-kit speak "Hello." --run anna --retries 2': "",
    'tts-kit speak "Hello." --run anna --dtype float32': "",
    'tts-kit speak "Hello." --run anna --strength 1.5': "",
    "tts-kit compare --run anna": "--sentences 1 --seeds 1",
    "tts-kit compare --run anna --arms base finetuned finetuned:strength=1.5": "--sentences 1 --seeds 1",
    "tts-kit compare --run anna --arms base clone finetuned finetuned:strength=0.5 finetuned:checkpoint=40 "
    "clone:references=3":
        "--sentences 1 --seeds 1",
    'tts-kit consent --run anna --kind own --who "Anna" --statement "This is my voice, and I want it cloned."': "",
    "tts-kit export --run anna": "",
    "tts-kit export --run anna --merged": "",
}
METRICS, INDEX = "metric models take minutes", "it needs a package index"
PARSED = {  # command: why it is only parsed here
    "make demo": "test_compare runs the pipeline", "make test": "it is running", "make test-slow": "continuous integration "
                                                                                                   "runs it",
    "make test-full": "20 GB of memory and minutes", "make test-latest": INDEX, "make test-load": "it is heavy on purpose",
    "make lint": "continuous integration runs it",
    'pip install "tts-kit[all] @ git+https://github.com/tts-kit/tts_kit"': INDEX,
    "pip install --no-deps -r https://raw.githubusercontent.com/tts-kit/tts_kit/main/requirements-no-deps.txt": INDEX,
    "pip install -e .[build] -c constraints.txt": INDEX,
    "tts-kit demo": "test_compare runs the pipeline",
          "tts-kit demo --base unsloth/csm-1b --run real": "it needs the hub and a GPU",
    "tts-kit prepare interview.m4a --run anna": "two Whispers transcribe for a minute; test_notebooks runs them",
    "tts-kit review --run anna": "it serves a page until somebody stops it; test_review drives it",
    "tts-kit compare --run anna --arms clone finetuned kokoro folder:rival=their_wavs": INDEX,
    "tts-kit compare --run anna --responses responses/*.json": "test_comparison_listening_test_analysis counts responses",
    "tts-kit compare --run anna --sweep strength=0.5,1,1.5 --sweep temperature=0.3,0.6,0.9": METRICS,
    "tts-kit train --run anna --generation-eval-steps 50": METRICS,
    "modal run -m tts_kit.modal_app --run anna": "it needs an account; test_modal calls what it calls",
    "python -m sample_data.build": "it takes a day",
    "python -m sample_data.build.bundle --out sample_data": "Kokoro speaks for minutes",
    "python -m sample_data.build.trial": "it takes hours",
    "python -m tests.benchmarks.speed_table": "test_speed_table runs it",
    "python tests/golden.py check": "it takes a minute and is run by hand", "python tests/house.py": "test_house runs it",
    "tts-kit serve --run anna": "it serves until somebody stops it; test_server drives it",
    "tts-kit detect-watermark speech.wav": "noise of an untrained model has no certain watermark; test_watermark runs it",
    "accelerate launch --num_processes 2 -m tts_kit train --run anna": "it needs two GPUs; test_distributed starts two "
                                                                       "processes",
    "bash tests/benchmarks/gpu.sh": "it needs a GPU; test_speaking_benchmarks runs it without",
}


def documents() -> list[Path]:
    return [ROOT / path for path in tracked() if path.endswith(".md")]


def commands(text: str) -> list[tuple[str, str]]:
    """The commands of a document with their comments: lines of its blocks, and what begins as one in a sentence."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    lines = [line for kind, block in blocks if kind in ("", "sh", "bash") and not block.startswith(NOT_COMMANDS)
             for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    prose = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))
    lines += [span for span in prose if span.split()[0] in PROGRAMS]
    found = [re.split(r"\s+# ", f"{line} # ")[:2] for line in lines]
    return [(command.strip(), comment) for command, comment in found if command.strip()]


WRITTEN = [each for path in documents() for each in commands(path.read_text(encoding="utf-8"))]
NAMED = sorted({command for command, _ in WRITTEN})
ASKED = [command for command in NAMED if command.startswith("curl ")]
MADE = {command: made[0] for command, comment in WRITTEN if (made := re.match(r"runs/[\w/.]+", comment))}
"""What a command leaves, as the comment behind it says."""


def test_every_command_is_known_once():
    """Mistake: a command in a document that nobody runs, or a line kept here for a command that no document has."""
    assert not RUN.keys() & PARSED.keys()
    unknown = sorted(set(NAMED) - RUN.keys() - PARSED.keys() - {*ASKED})
    assert not unknown, f"put these into RUN, or into PARSED with the reason: {unknown}"
    assert not sorted((RUN.keys() | PARSED.keys()) - set(NAMED)), "these stand in no document any more"


@pytest.fixture(scope="module")
def prepared(loud, tmp_path_factory):
    """A folder as the documents assume it: clips, other clips, and a run called anna, trained for forty steps by a toy."""
    place = tmp_path_factory.mktemp("docs")
    rows = (SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    for folder, some in (("my_clips", [*rows[1:5], *rows[8:12], *rows[15:17]]), ("other_clips", rows[22:24])):
        (place / folder).mkdir()
        for row in some:
            shutil.copy(SAMPLE_VOICE / row.split(",")[0], place / folder)
        (place / folder / "metadata.csv").write_text("\n".join([rows[0], *some]) + "\n", encoding="utf-8")
    run, cpu = Run("anna", place / "runs"), device.choose("cpu")
    settings = Config(base=loud, rank=4, alpha=8, steps=40, warmup_steps=0, learning_rate=0.01, tokens_per_batch=300,
                      eval_steps=40, save_steps=40, sample_steps=0)
    prepare.prepare(place / "my_clips", run, settings)
    cache.tokenize(settings, run, cpu)
    finetune.finetune(settings, run, cpu)
    return place


@pytest.fixture
def here(prepared, tmp_path, monkeypatch):
    """A copy of that folder to work in."""
    shutil.copytree(prepared, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTS_KIT_METRICS", "none")
    return tmp_path


@pytest.mark.parametrize("command", [command for command in NAMED if command in RUN])
def test_it_runs(command, here, loud, capsys):
    """Mistake: a command that a document promises and that fails."""
    _begin_anew(command, here)
    words = shlex.split(f"{command} {RUN[command]}".replace("unsloth/csm-1b", loud))  # the toy stands for what the hub has
    assert words[0] == "tts-kit"
    assert cli.main(words[1:]) == 0 or "doctor" in words, capsys.readouterr().err  # which may find fault with a machine
    assert (here / MADE.get(command, "runs/anna")).exists()


def test_what_is_asked_of_the_server_is_answered(here):
    """Mistake: a request to copy from a document that the server refuses: an unknown model, a field that is gone."""
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    cast = load_voices(device.choose("cpu"), {"anna": here / "runs/anna/adapter"})
    server = app.Server(cast, port=0)
    server.start()
    try:
        for command in ASKED:
            words = shlex.split(command.replace("http://127.0.0.1:8000", server.address))[1:]
            subprocess.run([curl, "-sS", "--fail-with-body", *words], check=True)
            assert audio.read(here / words[words.index("-o") + 1], manifest.SAMPLE_RATE).size
    finally:
        server.close()
    assert ASKED and app.PORT == 8000


def _begin_anew(command: str, place: Path) -> None:
    """What a stage made before is taken away, so that it does its work."""
    made = {"prepare": ("data", "codes", "training", "adapter"), "tokenize": ("codes", "training", "adapter"),
            "train": ("training", "adapter")}
    for folder in made.get(command.split()[1], ()) if "--dry-run" not in command else ():
        shutil.rmtree(place / "runs" / "anna" / folder)


@pytest.mark.parametrize("command", [command for command in NAMED if command in PARSED])
def test_it_is_read(command):
    """Mistake: an option, a file or a target that was renamed and lives on in a document."""
    program, *words = shlex.split(command)
    {"tts-kit": _tts_kit, "python": _python, "make": _make, "pip": _pip, "bash": _bash, "modal": _modal,
     "accelerate": _accelerate}[program](words)


def _accelerate(words: list[str]) -> None:
    """The launcher's own options, then a command."""
    assert words[:2] == ["launch", "--num_processes"] and int(words[2]) > 1
    assert words[3:5] == ["-m", "tts_kit"]
    _tts_kit(words[5:])


def _tts_kit(words: list[str]) -> None:
    assert cli.build_parser().parse_args(words).func


def _python(words: list[str]) -> None:
    """Of a module the help is asked for, after its options."""
    if words[0] != "-m":
        assert (ROOT / words[0]).is_file()
        return
    name = f"{words[1]}.__main__" if (ROOT / words[1].replace(".", "/")).is_dir() else words[1]
    with pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(name).main([*words[2:], "--help"])


def _make(words: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, is_variable, _ = word.partition("=")
        assert re.search(rf"(?m)^{name} \?=" if is_variable else rf"(?m)^{name}:", text), word


def _pip(words: list[str]) -> None:
    assert words[0] in ("install", "uninstall")
    for option, value in itertools.pairwise(words):
        assert option not in ("-r", "-c") or (ROOT / value.rsplit("/", 1)[-1]).is_file(), value


def _bash(words: list[str]) -> None:
    assert (ROOT / words[0]).is_file()


def _modal(words: list[str]) -> None:
    """`modal run -m MODULE`: the module's parser reads what follows."""
    assert words[:2] == ["run", "-m"]
    importlib.import_module(words[2]).build_parser().parse_args(words[3:])


def test_code_in_documents_is_python():
    """Mistake: a piece of Python in a document that cannot be pasted, or that imports what the kit no longer has."""
    for path in documents():
        for piece in re.findall(r"(?ms)^```python\n(.*?)^```$", path.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(piece)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("tts_kit"):
                    assert all(hasattr(importlib.import_module(node.module), name.name)
                               or importlib.util.find_spec(f"{node.module}.{name.name}") for name in node.names), path
