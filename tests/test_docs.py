"""Each command in the documents is run by these tests, or only parsed for a given reason."""

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
import sample_clips
from test_house import ROOT, tracked

from tts_kit import audio, cli, device
from tts_kit.config import Config
from tts_kit.data import manifest, prepare
from tts_kit.run import Run
from tts_kit.server import app
from tts_kit.speech.voice import load_voices
from tts_kit.tokens import cache
from tts_kit.training import finetune

PROGRAMS = ("tts-kit", "python", "make", "pip", "bash", "modal", "accelerate", "curl")
"""First words of commands."""
NOT_COMMANDS = ("  ", "my_clips/", "file_name,", "tts_kit/")
"""Begins of code blocks that contain output or file names."""

RUN = {  # command: options added to make it fast
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
    "tts-kit status": "",
    'tts-kit speak "Hello there." --run anna --out hello.wav': "",
    'tts-kit speak "Hello." --run anna --retries 2': "",
    'tts-kit speak "Hello." --run anna --dtype float32': "",
    'tts-kit speak "Hello." --run anna --strength 1.5': "",
    "tts-kit speak --script dialogue.txt --voice anna=runs/anna --voice ben=ben.wav --out dialogue.wav": "",
    "tts-kit compare --run anna": "--sentences 1 --seeds 1",
    "tts-kit compare --run anna --arms base finetuned finetuned:strength=1.5": "--sentences 1 --seeds 1",
    "tts-kit compare --run anna --arms base clone finetuned finetuned:strength=0.5 finetuned:checkpoint=40 "
    "clone:references=3":
        "--sentences 1 --seeds 1",
    'tts-kit consent --run anna --kind own --who "Anna" --statement "This is my voice, and I want it cloned."': "",
    "tts-kit export --run anna": "",
    "tts-kit export --run anna --merged": "",
    "tts-kit export --run anna --merged --layout original": "",
}
METRICS, INDEX = "metric models take minutes", "it needs a package index"
PARSED = {  # command: the reason why it is only parsed
    "make demo": "test_comparison_compare runs the pipeline", "make test": "it is running",
    "make test-slow": "continuous integration runs it",
    "make test-full": "20 GB of memory and minutes", "make test-latest": INDEX, "make test-load": "it is heavy on purpose",
    "make lint": "continuous integration runs it",
    'pip install "tts-kit[all] @ git+https://github.com/tts-kit/tts_kit"': INDEX,
    "pip install --no-deps -r https://raw.githubusercontent.com/tts-kit/tts_kit/main/requirements-no-deps.txt": INDEX,
    "pip install -e .[build] -c constraints.txt": INDEX,
    "tts-kit demo": "test_comparison_compare runs the pipeline",
    "tts-kit demo --source my_recording.m4a --run mine": "test_data_ingest prepares a recording, and the rest is the same",
    "tts-kit demo --base unsloth/csm-1b --run real": "it needs the hub and a GPU",
    "tts-kit prepare interview.m4a --run anna": "two Whispers transcribe for a minute; test_notebooks runs them",
    "tts-kit review --run anna": "it serves a page until somebody stops it; test_data_review drives it",
    "tts-kit compare --run anna --arms clone finetuned kokoro folder:rival=their_wavs": INDEX,
    "tts-kit compare --run anna --responses responses/*.json": "test_comparison_listening_test_analysis counts responses",
    "tts-kit compare --run anna --sweep strength=0.5,1,1.5 --sweep temperature=0.3,0.6,0.9": METRICS,
    "tts-kit compare --run anna --recommend": METRICS,
    'tts-kit speak "Meet me at 5:30." --run anna --guidance 2 --best-of 4': METRICS,
    'tts-kit speak "Hello." --run anna --guidance 2 --best-of 4': METRICS,
    "tts-kit train --run anna --generation-eval-steps 50": METRICS,
    "tts-kit train --run anna --report-to trackio": "test_training_trackers runs it with stand-ins",
    "tts-kit train --run anna --steps 400": "test_training_extend extends a training",
    "tts-kit train --run anna2 --from anna --rank 8": "test_training_extend shares a run's data and codes",
    "make check": "it is part of what is running",
    "pip install trackio": INDEX,
    "modal run -m tts_kit.modal_app --run anna": "it needs an account; test_modal calls what it calls",
    "python -m sample_data.build": "it takes a day",
    "python -m sample_data.build.bundled_voice --out sample_data": "Kokoro speaks for minutes",
    "python -m sample_data.build.segmentation_benchmark": "it takes hours",
    "python -m tests.benchmarks.speed_table": "test_speed_table runs it",
    "python tests/golden.py check": "it takes a minute and is run by hand", "python tests/house.py": "test_house runs it",
    "tts-kit serve --run anna": "it serves until somebody stops it; test_server drives it",
    "tts-kit detect-watermark speech.wav": "noise of an untrained model has no certain watermark; test_watermark runs it",
    "accelerate launch --num_processes 2 -m tts_kit train --run anna": "it needs two GPUs; "
        "test_training_distributed starts two processes",
    "bash tests/benchmarks/gpu.sh": "it needs a GPU; test_speaking_benchmarks runs it without",
}


def documents() -> list[Path]:
    return [ROOT / path for path in tracked() if path.endswith(".md")]


def commands(text: str) -> list[tuple[str, str]]:
    """Return the commands of a document with their comments, from code blocks and inline code."""
    blocks = re.findall(r"(?ms)^```(\w*)\n(.*?)^```$", text)
    lines = [line for language, block in blocks if language in ("", "sh", "bash") and not block.startswith(NOT_COMMANDS)
             for line in re.sub(r"\\\n\s*", "", block).splitlines()]
    prose = re.findall(r"`([^`\n]+)`", re.sub(r"(?ms)^```.*?^```$", "", text))
    lines += [span for span in prose if span.split()[0] in PROGRAMS]
    pairs = [re.split(r"\s+# ", f"{line} # ")[:2] for line in lines]
    return [(command.strip(), comment) for command, comment in pairs if command.strip()]


DOCUMENTED = [pair for path in documents() for pair in commands(path.read_text(encoding="utf-8"))]
COMMANDS = sorted({command for command, _ in DOCUMENTED})
CURL_COMMANDS = [command for command in COMMANDS if command.startswith("curl ")]
OUTPUTS = {command: match[0] for command, comment in DOCUMENTED if (match := re.match(r"runs/[\w/.]+", comment))}
"""The output of a command, from the comment after it."""


def test_every_documented_command_is_run_or_parsed():
    """Mistake: a documented command that no test runs, or an entry for a command that is no longer documented."""
    assert not RUN.keys() & PARSED.keys()
    unknown = sorted(set(COMMANDS) - RUN.keys() - PARSED.keys() - {*CURL_COMMANDS})
    assert not unknown, f"put these into RUN, or into PARSED with the reason: {unknown}"
    assert not sorted((RUN.keys() | PARSED.keys()) - set(COMMANDS)), "no document contains these any more"


@pytest.fixture(scope="module")
def documents_folder(spread_toy, tmp_path_factory):
    """The folder that the documents assume: clips, other clips, and a run named anna, the toy model trained for 40 steps."""
    root = tmp_path_factory.mktemp("docs")
    sample_clips.copy(root / "my_clips", [*range(1, 5), *range(8, 12), *range(15, 17)])
    other, _ = sample_clips.copy(root / "other_clips", [22, 23])
    audio.write(root / "ben.wav", audio.read(root / "other_clips" / other, 24_000), 24_000)
    (root / "ben.txt").write_text("These are its words.", encoding="utf-8")
    (root / "dialogue.txt").write_text("[anna] Hello, Ben.\n[ben] Hi.\n", encoding="utf-8")
    run, cpu = Run("anna", root / "runs"), device.choose("cpu")
    settings = Config(base=spread_toy, rank=4, alpha=8, steps=40, warmup_steps=0, learning_rate=0.01, tokens_per_batch=300,
                      eval_steps=40, save_steps=40, sample_steps=0)
    prepare.prepare(root / "my_clips", run, settings)
    cache.tokenize(settings, run, cpu)
    finetune.finetune(settings, run, cpu)
    return root


@pytest.fixture
def working_folder(documents_folder, tmp_path, monkeypatch):
    """A copy of that folder as the working directory."""
    shutil.copytree(documents_folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TTS_KIT_METRICS", "none")
    return tmp_path


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in RUN])
def test_a_command_runs(command, working_folder, spread_toy, capsys):
    """Mistake: a documented command fails."""
    remove_outputs(command, working_folder)
    # the toy model replaces the hub's
    arguments = shlex.split(f"{command} {RUN[command]}".replace("unsloth/csm-1b", spread_toy))
    assert arguments[0] == "tts-kit"
    assert cli.main(arguments[1:]) == 0 or "doctor" in arguments, capsys.readouterr().err  # doctor may report problems
    assert (working_folder / OUTPUTS.get(command, "runs/anna")).exists()


def test_the_server_answers_the_documented_requests(working_folder):
    """Mistake: the server refuses a documented request: an unknown model, a removed field."""
    curl = shutil.which("curl") or pytest.skip("curl is not installed")
    voices = load_voices(device.choose("cpu"), {"anna": working_folder / "runs/anna/adapter", "base": "base"})
    server = app.Server(voices, port=0)
    server.start()
    try:
        for command in CURL_COMMANDS:
            arguments = shlex.split(command.replace("http://127.0.0.1:8000", server.address))[1:]
            subprocess.run([curl, "-sS", "--fail-with-body", *arguments], check=True)
            assert audio.read(working_folder / arguments[arguments.index("-o") + 1], manifest.SAMPLE_RATE).size
    finally:
        server.close()
    assert CURL_COMMANDS and app.PORT == 8000


def remove_outputs(command: str, root: Path) -> None:
    """Delete the earlier output of a stage, so that it runs."""
    outputs = {"prepare": ("data", "codes", "training", "adapter"), "tokenize": ("codes", "training", "adapter"),
               "train": ("training", "adapter")}
    for stage in outputs.get(command.split()[1], ()) if "--dry-run" not in command else ():
        shutil.rmtree(root / "runs" / "anna" / stage)


@pytest.mark.parametrize("command", [command for command in COMMANDS if command in PARSED])
def test_a_command_is_parsed(command):
    """Mistake: an option, a file or a make target that was renamed, but not in a document."""
    program, *arguments = shlex.split(command)
    {"tts-kit": parse_tts_kit, "python": parse_python, "make": parse_make, "pip": parse_pip, "bash": parse_bash,
     "modal": parse_modal, "accelerate": parse_accelerate}[program](arguments)


def parse_accelerate(arguments: list[str]) -> None:
    """Check the launcher's options and parse the command after them."""
    assert arguments[:2] == ["launch", "--num_processes"] and int(arguments[2]) > 1
    assert arguments[3:5] == ["-m", "tts_kit"]
    parse_tts_kit(arguments[5:])


def parse_tts_kit(arguments: list[str]) -> None:
    assert cli.build_parser().parse_args(arguments).func


def parse_python(arguments: list[str]) -> None:
    """Check that a script exists, or parse a module's options and show its help."""
    if arguments[0] != "-m":
        assert (ROOT / arguments[0]).is_file()
        return
    name = f"{arguments[1]}.__main__" if (ROOT / arguments[1].replace(".", "/")).is_dir() else arguments[1]
    with pytest.raises(SystemExit, match="^0$"):
        importlib.import_module(name).main([*arguments[2:], "--help"])


def parse_make(arguments: list[str]) -> None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    for argument in arguments:
        name, is_variable, _ = argument.partition("=")
        assert re.search(rf"(?m)^{name} \?=" if is_variable else rf"(?m)^{name}:", text), argument


def parse_pip(arguments: list[str]) -> None:
    assert arguments[0] in ("install", "uninstall")
    for option, value in itertools.pairwise(arguments):
        assert option not in ("-r", "-c") or (ROOT / value.rsplit("/", 1)[-1]).is_file(), value


def parse_bash(arguments: list[str]) -> None:
    assert (ROOT / arguments[0]).is_file()


def parse_modal(arguments: list[str]) -> None:
    """Parse `modal run -m MODULE ...` with the module's parser."""
    assert arguments[:2] == ["run", "-m"]
    importlib.import_module(arguments[2]).build_parser().parse_args(arguments[3:])


def test_python_code_in_documents_is_valid():
    """Mistake: Python code in a document with a syntax error, or with an import that the kit no longer has."""
    for path in documents():
        for code in re.findall(r"(?ms)^```python\n(.*?)^```$", path.read_text(encoding="utf-8")):
            for node in ast.walk(ast.parse(code)):
                if isinstance(node, ast.ImportFrom) and node.module.startswith("tts_kit"):
                    assert all(hasattr(importlib.import_module(node.module), alias.name)
                               or importlib.util.find_spec(f"{node.module}.{alias.name}") for alias in node.names), path
