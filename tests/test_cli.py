"""The command line as a newcomer meets it: missing packages, another Python, a full disk, mistyped names, next commands."""

import contextlib
import functools
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import process
import pytest
from conftest import make_segments
from test_house import ROOT

from tts_kit import audio, cli, errors, io, watermark
from tts_kit.data import ingest
from tts_kit.doctor import checks
from tts_kit.run import TINY_CSM, Run, bundled_base
from tts_kit.tokens import cache

REQUIREMENTS = re.findall(r"^([\w-]+)[>=<]", (ROOT / "requirements.txt").read_text(), re.MULTILINE)
MODULES = {"pillow": "PIL", "resemble-perth": "perth"}  # imported names of packages that have another
COMMANDS = [["--help"], ["doctor", "--base", str(TINY_CSM)], ["doctor", "--plan", "--base", "nowhere"], ["status"],
            ["prepare", "nowhere"], ["review"], ["report"], ["tokenize"], ["train"], ["train", "--dry-run"],
            ["speak", "Hi.", "--no-adapter", "--base", "nowhere"],
            ["compare"], ["serve"], ["detect-watermark", "nowhere.wav"], ["consent"], ["export"], ["export-dataset"]]
"""With arguments that end a command before it does work that takes time."""
USED_LATE = {"pyloudnorm": ["prepare", "example:emma", "--run", "new"], "soxr": ["prepare", "example:emma", "--run", "new"]}
"""Packages that are imported where they are used: package -> a command that uses it."""
CENTRAL = {"torch", "transformers", "peft", "safetensors", "soundfile", "psutil", "resemble-perth", *USED_LATE}
"""Packages that the fast tests hide; the others are imported by these, or in the same way."""
HIDE = """
import contextlib, importlib.metadata, io, json, os, sys
package, module, commands = json.loads(sys.argv[1])
class Hidden:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == module:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
def version(name, version=importlib.metadata.version):
    if name == package:
        raise importlib.metadata.PackageNotFoundError(name)
    return version(name)
importlib.metadata.version = version
sys.meta_path.insert(0, Hidden())
for name in [*sys.modules]:
    if name.partition(".")[0] in (module, "tts_kit"):
        del sys.modules[name]
from tts_kit import cli
for command in commands:
    output, problem, status = io.StringIO(), io.StringIO(), None
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(problem):
        try:
            status = cli.main(command)
        except SystemExit as end:
            status = end.code
        except BaseException as error:
            problem.write(f"Traceback: {error!r}")
    print(json.dumps([command, status, output.getvalue(), problem.getvalue()]))
"""


def run_kit(*arguments: str, cwd: Path, python: str = sys.executable, **environment: str) -> subprocess.CompletedProcess:
    """Run the command line in a process of its own."""
    return subprocess.run([python, "-m", "tts_kit", *arguments], cwd=cwd, capture_output=True, text=True, check=False,
                          env=os.environ | {"PYTHONPATH": str(ROOT)} | environment, timeout=1500)


@functools.cache
def answers_without(package: str) -> list:
    """Return what every command says where a package of requirements.txt is missing: [command, status, out, err]."""
    commands = [*COMMANDS, *filter(None, [USED_LATE.get(package)])]
    arguments = json.dumps([package, MODULES.get(package, package.replace("-", "_")), commands])
    with tempfile.TemporaryDirectory() as folder:
        result = process.run(["-c", HIDE, arguments], cwd=folder)
    answers = [json.loads(line) for line in result.stdout.splitlines() if line.startswith("[[")]
    assert len(answers) == len(commands), result.stderr
    return answers


@pytest.mark.parametrize("package", [
    pytest.param(package, marks=[] if package in CENTRAL else pytest.mark.slow) for package in REQUIREMENTS])
def test_a_missing_package_is_named_in_one_sentence(package):
    """Mistake: a package of requirements.txt that is not installed ends a command, --help or doctor in a traceback."""
    module = MODULES.get(package, package.replace("-", "_"))
    for command, status, output, problem in answers_without(package):
        assert "Traceback" not in problem, (command, problem)
        if "is not installed in" in problem:
            assert status == 1 and f"{module} is not installed in {sys.executable}" in problem, (command, problem)
            assert "-m pip install" in problem
        if command == ["--help"]:
            assert status == 0 and "prepare" in output
        if command == COMMANDS[1]:
            line = next(line for line in output.splitlines() if line.split()[1] == package)
            assert line.startswith("fail") and "not installed" in line and "pip install" in output


def test_every_command_is_driven_without_packages():
    """Mistake: a new command is not among those that are tried."""
    assert {command[0] for command in COMMANDS} == {"--help", *cli.COMMANDS} - {"demo"}  # demo is the stages


def test_core_packages_are_named_by_the_commands_that_need_them():
    """Mistake: packages are hidden in name only, and every command finds them."""
    named = {package: {command[0] for command, _, _, problem in answers_without(package) if "is not installed in" in problem}
             for package in CENTRAL}
    assert {"speak", "train", "compare", "serve"} <= named["peft"] and {"train", "tokenize", "speak"} <= named["torch"]
    assert all("prepare" in named[package] for package in ("soundfile", *USED_LATE)) and "report" in named["soundfile"]


def test_doctor_knows_every_requirement():
    """Mistake: a package is added to requirements.txt, and doctor does not miss it."""
    assert {requirement.name for requirement in checks.requirements()} == {*REQUIREMENTS}


@pytest.mark.parametrize("version", ["3.9", "3.10"])
def test_an_old_python_is_refused(tmp_path, version):
    """Mistake: a Python that is too old ends in a SyntaxError or a TypeError of some module."""
    binary = next(Path.home().glob(f".pyenv/versions/{version}.*/bin/python"), None) or shutil.which(f"python{version}")
    if not binary:
        pytest.skip(f"no Python {version} on this machine")
    result = run_kit("speak", "Hi.", cwd=tmp_path, python=str(binary))
    assert result.returncode == 1 and result.stderr.count("\n") == 1
    assert f"needs Python 3.11 or newer; {binary} is {version}." in result.stderr


def test_the_environment_of_the_folder_is_named(tmp_path, monkeypatch):
    """Mistake: whoever forgot to activate the .venv that `make` has made is told to install everything once more."""
    monkeypatch.chdir(tmp_path)
    error = ModuleNotFoundError("No module named 'peft.tuners'", name="peft.tuners")
    assert "peft is not installed" in errors.import_problem(error) and "pip install" in errors.import_problem(error)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "tts-kit").write_text("")
    monkeypatch.setattr(sys, "argv", ["tts-kit", "speak", "Hello there."])
    assert errors.import_problem(error).endswith(".venv/bin/python -m tts_kit speak 'Hello there.'")
    assert checks.check_python().status == "warn" and ".venv/bin/python" in checks.check_python().fix
    assert errors.import_problem(ImportError("cannot import name 'x' from 'tts_kit.run'", name="tts_kit.run")) == ""


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_a_full_disk_while_speaking(tmp_path, suffix):
    """Mistake: soundfile's AssertionError, or half a file under the name that was asked for."""
    script = ("import resource, sys, numpy\nfrom tts_kit import audio, errors\n"
              "resource.setrlimit(resource.RLIMIT_FSIZE, (9000, 9000))\n"
              "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
              "main = errors.report_errors(lambda _: audio.write(sys.argv[1], numpy.random.rand(24000) - 0.5, 24000))\n"
              "sys.exit(main())")
    result = process.run(["-c", script, tmp_path / f"speech{suffix}"])
    assert result.returncode == 1 and "the disk is full" in result.stderr and result.stderr.count("\n") == 1
    assert not [*tmp_path.iterdir()]


@pytest.mark.parametrize(("arguments", "words"), [
    (["tran"], "there is no command 'tran'. Did you mean train?"),
    (["detect"], "Did you mean detect-watermark?"),
    (["train", "--lr", "3"], "tts-kit train: error: unrecognized arguments: --lr 3. Did you mean --learning-rate?"),
    (["train", "--step", "3", "--leanring-rate", "1"], "Did you mean --learning-rate?"),
    (["speak", "Hi.", "--sed", "3"], "Did you mean --seed?")])
def test_a_mistyped_name_gets_a_suggestion(arguments, words, capsys):
    """Mistake: argparse lists every command, or says only that an option is unknown."""
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    assert end.value.code == 2 and words in capsys.readouterr().err


def test_a_mistyped_run_lists_similar_ones(tmp_path, monkeypatch, capsys):
    """Mistake: a mistyped run name looks like a run that has to be made."""
    monkeypatch.chdir(tmp_path)
    for name in ("sue", "anna", ".hidden", "no name of a run"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    assert cli.main(["tokenize", "--run", "sua"]) == 1
    assert capsys.readouterr().err.strip().endswith("There is no run sua. Did you mean sue?")
    assert cli.main(["report", "--run", "elsewhere"]) == 1
    assert capsys.readouterr().err.strip().endswith("Runs: anna, sue.")
    assert cli.main(["tokenize", "--run", "sue"]) == 1 and "There is no run" not in capsys.readouterr().err
    assert cli.main(["speak", "Hi.", "--reference", "a.wav", "--run", "sua"]) == 1, "an error about something else"
    assert "There is no run" not in capsys.readouterr().err


def interrupt(*_):
    raise KeyboardInterrupt  # what Python makes of Ctrl-C


def test_status_names_the_next_command(tmp_path, toy, monkeypatch, capsys):
    """Mistake: nobody knows which runs there are, how far they are, and what comes next."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["status"]) == 0 and "tts-kit prepare SOURCE --run NAME" in capsys.readouterr().out
    for number in range(8):
        audio.write(tmp_path / "clips" / f"{number}.wav", np.sin(np.arange(24000) * (0.1 + 0.01 * number)) / 3, 24000)
    rows = [f"{number}.wav|It is {number} o'clock." for number in range(8)]
    (tmp_path / "clips" / "metadata.csv").write_text("\n".join(["file_name|text", *rows]) + "\n")
    assert cli.main(["prepare", "clips", "--run", "emma"]) == 0
    *_, advice, following = capsys.readouterr().out.splitlines()
    assert following == "Next: tts-kit tokenize --run emma"
    assert re.match(r"0\.\d minutes in 8 clips: little\. .*The room .* tts-kit report --run emma", advice), advice
    with monkeypatch.context() as patches:
        patches.setattr(cache, "encode_missing", interrupt)
        assert cli.main(["tokenize", "--run", "emma", "--base", toy]) == 130
    assert capsys.readouterr().err == "Interrupted. The same command continues from here.\n"
    assert cli.main(["tokenize", "--run", "emma"]) == 0, "with the base that was given before"
    assert capsys.readouterr().out.splitlines()[-1] == "Next: tts-kit train --run emma"
    (tmp_path / "runs" / "begun").mkdir()
    io.write_rows(tmp_path / "runs" / "damaged" / "data" / "manifest.jsonl", ["no utterance"])
    assert cli.main(["status"]) == 0
    begun, damaged, emma = capsys.readouterr().out.splitlines()
    assert damaged.startswith("damaged: cannot be read (")
    assert begun == "begun: empty. Next: tts-kit prepare SOURCE --run begun"
    assert re.fullmatch(r"emma: data \d+ clips, [\d.]+ minutes; codes \d+ clips\. Next: tts-kit train --run emma", emma)
    (tmp_path / "runs" / "emma" / "data" / "manifest.jsonl").write_text(
        "\n".join((tmp_path / "runs" / "emma" / "data" / "manifest.jsonl").read_text().split("\n")[1:]))
    assert cli.main(["status"]) == 0
    assert "codes of other data. Next: tts-kit tokenize --run emma" in capsys.readouterr().out


def test_text_that_the_base_cannot_speak_is_said(toy, tmp_path, capsys):
    """Mistake: Chinese for a model of English ends in gibberish, exit status 0 and no word."""
    assert cli.main(["speak", "你好。", "--no-adapter", "--base", toy, "--out", str(tmp_path / "hi.wav")]) == 0
    assert "2 of 2 letters are of another script (CJK): toy was trained on Latin script" in capsys.readouterr().out


def test_the_bundled_model_has_a_name(tmp_path, monkeypatch):
    """Mistake: a card names its base tiny-csm, and nobody else has a folder of that name."""
    monkeypatch.chdir(tmp_path)
    assert bundled_base("tiny-csm") == str(TINY_CSM) and bundled_base("unsloth/csm-1b") == "unsloth/csm-1b"
    (tmp_path / "tiny-csm").mkdir()
    assert bundled_base("tiny-csm") == "tiny-csm"


def test_a_closed_pipe_is_no_traceback(tmp_path):
    """Mistake: `tts-kit status | head -0` ends in a BrokenPipeError."""
    result = subprocess.run(f"{sys.executable} -u -m tts_kit train --help | head -0", shell=True, cwd=tmp_path, check=False,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert result.stderr == ""


def test_the_version_and_the_watermark_for_programs(tmp_path, capsys):
    """Mistake: a program has to read prose."""
    with pytest.raises(SystemExit):
        cli.main(["--version"])
    assert re.match(r"tts-kit \S", capsys.readouterr().out)
    audio.write(tmp_path / "person.wav", audio.read(ROOT / "sample_data" / "recording.flac", 24000)[:96000], 24000)
    audio.write(tmp_path / "made.wav", watermark.apply(audio.read(tmp_path / "person.wav", 24000), 24000), 24000)
    files = [str(tmp_path / name) for name in ("made.wav", "person.wav", "none.wav")]
    assert cli.main(["detect-watermark", "--json", *files]) == 2
    made, person, missing = map(json.loads, capsys.readouterr().out.splitlines())
    assert made["watermarked"] and made["score"] > 0.5 and not person["watermarked"] and "error" in missing


IMPORTS = """
import contextlib, io, json, sys
from tts_kit import cli
toy, out = sys.argv[1:]
heavy = {"torch", "transformers", "numpy", "peft", "datasets", "safetensors"}
with contextlib.redirect_stdout(io.StringIO()):
    with contextlib.suppress(SystemExit):
        cli.main(["--help"])
    cli.main(["status"])
    light = sorted(heavy & set(sys.modules))
    status = cli.main(["speak", "Hi.", "--no-adapter", "--base", toy, "--out", out])
unused = {"sklearn", "pandas", "datasets", "pyarrow", "matplotlib", "torchvision", "fastapi", "IPython"}
print(json.dumps([light, status, sorted(unused & set(sys.modules))]))
import scipy, sklearn  # later imports are the real ones
"""


def test_commands_import_what_they_use(toy, tmp_path):
    """Mistake: --help imports torch, or speak the libraries of metrics, data sets and plots, and starts more slowly."""
    result = subprocess.run([sys.executable, "-c", IMPORTS, toy, str(tmp_path / "hi.wav")], cwd=tmp_path, text=True,
                            env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, check=False)
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout.splitlines()[-1]) == [[], 0, []]


def test_ctrl_c_ends_the_review_and_makes_the_data(tmp_path):
    """Mistake: the documented end of an hour of review is a traceback of the web server."""
    run = Run("take", tmp_path / "runs")
    make_segments(run.segments)
    io.write_json(run.segments / ingest.ASR_MODELS, {"asr_model": "base", "verify_asr_model": ""})
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    reviewing = process.Process(["-m", "tts_kit", "review", "--run", "take", "--port", port], cwd=tmp_path)
    connection = None
    while connection is None:
        assert reviewing.poll() is None, reviewing.wait(0)
        time.sleep(0.1)
        with contextlib.suppress(ConnectionError):
            connection = socket.create_connection(("127.0.0.1", port), timeout=300)
    connection.sendall(b"GET / HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
    assert connection.recv(100).startswith(b"HTTP/1.1")
    os.kill(reviewing.process.pid, signal.SIGINT)
    result = reviewing.wait(process.TIMEOUT)
    connection.close()
    assert result.returncode == 0 and "Traceback" not in result.stderr and "Error" not in result.stderr, result.stderr
    assert (run.data / "manifest.jsonl").is_file() and "clips" in result.stdout
