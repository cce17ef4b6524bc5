"""The house's own rules, where a script can check them."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import tts_kit

HOUSE = Path(tts_kit.__file__).parent
ROOT = HOUSE.parent
MODULES = sorted(path for path in HOUSE.rglob("*.py"))
FLOORS = ["problem", "run", "spec", "recipe", "runtime", "hub", "checkpoint", "pages", "audio", "text", "data", "tokens",
          "watermark", "model", "judging", "tuning", "speech", "comparison", "release", "pretrain", "story", "doctor",
          "options", "verbs", "volume", "modal_app",
          "__main__"]
"""Rooms from the ground up: each imports only from those before it."""


def name(path: Path) -> str:
    return path.relative_to(HOUSE).as_posix()


def tracked() -> list[str]:
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                         check=False)
    return out.stdout.split("\n")[:-1] if out.returncode == 0 else [
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file() and ".venv" not in str(path)]


@pytest.mark.parametrize("where", ["README.md", "tts_kit/__init__.py"])
def test_the_map_is_the_house(where):
    """Mistake: a map that names a room which is gone, or leaves one out."""
    text = (ROOT / where).read_text(encoding="utf-8")
    rooms = {path.name if path.parent == HOUSE else f"{path.relative_to(HOUSE).parts[0]}/" for path in MODULES
             if path.name != "__init__.py"}
    named = set(re.findall(r"^ {0,4}([a-z_]+(?:\.py|/)) {2,}\S", text, re.MULTILINE))
    assert {room for room in named if (HOUSE / room).exists()} == rooms - {"__init__.py"}
    gone = [room for room in named if not (HOUSE / room).exists() and not (ROOT / room).exists()]
    assert not gone


def test_importing_the_kit_is_light():
    """Mistake: `import tts_kit` or `--help` waits seconds for torch."""
    script = ("import sys; sys.argv = ['tts_kit', '--help']\nimport tts_kit\nfrom tts_kit import __main__\n"
              "__main__.parser()\nassert not {'torch', 'transformers', 'datasets'} & set(sys.modules), 'heavy'")
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_files_and_functions_stay_small(path):
    """Mistake: the tail of long functions and files that strangers get lost in."""
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 250
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno - node.lineno + 1 <= 45, f"{name(path)}: {node.name}"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_public_functions_are_typed_and_explained(path):
    """Mistake: a public function whose arguments one has to guess."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module says what it is"
    overrides = {"compute_loss", "evaluate", "log", "save_model"} | {f"on_{event}" for event in (
        "train_begin", "log", "step_end", "train_end", "evaluate")}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and path.name != "__main__.py":
            for argument in (*node.args.args, *node.args.kwonlyargs):
                assert argument.annotation or argument.arg in {"model", "config", "tokenizer", "name", "path", "kind"} \
                    or node.name in overrides, f"{name(path)}: {node.name}({argument.arg})"


@pytest.mark.parametrize("path", MODULES, ids=name)
def test_imports_point_upward_only(path):
    """Mistake: a room that reaches down to one that is built on it."""
    own = name(path).split("/")[0].removesuffix(".py")
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tts_kit"):
            parts = node.module.split(".")
            rooms = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            for room in rooms:
                if own != "__init__" and room in FLOORS:
                    assert FLOORS.index(room) <= FLOORS.index(own), f"{name(path)} imports {room}"


def test_forbidden_habits():
    """Mistake: swallowed errors, pickles, names that shadow, codec reading by torchaudio, leftovers."""
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"except( Exception)?:\s*\n\s*pass", text), path
        assert not re.search(r"\bimport (pickle|torchaudio|torchcodec)|torch\.load\(", text), path
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|NotImplementedError", text), path
        assert path.name not in {"utils.py", "helpers.py", "tokenize.py", "modal.py"}
        if path.name != "runtime.py":
            assert "google.colab" not in text, path


def test_top_level_is_the_agreed_one():
    """Mistake: the top level fills up."""
    allowed = {"notebooks", "tts_kit", "tests", "sample_data", "README.md", "LICENSE", "Makefile", ".gitignore", ".ci",
               "constraints.txt", "pyproject.toml"}
    found = {path.split("/")[0] for path in tracked()}
    assert {entry for entry in found if not entry.startswith("requirements")} <= allowed


def test_every_requirement_has_its_reason():
    """Mistake: a dependency that nobody dares to remove."""
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith(("#", "-r")):
                assert re.fullmatch(r"[\w-]+[=<>.,\d]*\s+# .{8,}", line), f"{path.name}: {line}"


def test_continuous_integration_runs_the_readmes_command():
    """Mistake: CI tests something else than what the README tells people to run."""
    readme, script = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in readme and script.strip().splitlines()[-1] == "make test"
