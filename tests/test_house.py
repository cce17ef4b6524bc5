"""Rules of the repository: layering, light imports, documented functions, top-level files, packaging."""

import ast
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "tts_kit"
MODULES = sorted(PACKAGE.rglob("*.py"))
LAYERS = ["errors", "progress", "io", "run", "config", "device", "colab", "hub", "local_server", "layouts", "pretrained",
          "html", "audio", "spoken_text", "text", "watermark", "data", "status", "tokens", "model", "generation",
          "evaluation", "training", "speech", "comparison", "lessons", "export", "server", "pipeline", "doctor",
          "commands", "cli", "modal_app", "__main__"]
"""Modules and packages from the bottom up: each imports only from those before it."""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def module_id(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def layer(path: Path) -> str:
    return module_id(path).split("/")[0].removesuffix(".py")


def tracked() -> list[str]:
    out = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, capture_output=True, text=True,
                         check=False)
    return out.stdout.split("\n")[:-1] if out.returncode == 0 else [
        path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file() and ".venv" not in str(path)]


def test_every_module_has_a_layer():
    """Mistake: a new module escapes the layering test."""
    assert {layer(path) for path in MODULES} - {"__init__"} == set(LAYERS)


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_modules_import_only_lower_layers(path):
    """Mistake: a low layer imports a higher one."""
    own = layer(path)
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tts_kit":
            parts = node.module.split(".")
            for imported in [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]:
                is_below = own == "__init__" or LAYERS.index(imported) <= LAYERS.index(own)
                assert is_below, f"{module_id(path)} imports {imported}"


def test_importing_the_package_is_light():
    """Mistake: `import tts_kit` or `--help` takes seconds because of torch."""
    script = ("import sys; import tts_kit\nfrom tts_kit import cli\ncli.build_parser()\n"
              "assert not {'torch', 'transformers', 'datasets', 'numpy'} & set(sys.modules), 'heavy'")
    out = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr


def test_the_public_api_resolves():
    """Mistake: a public name points to a module or function that was renamed."""
    import tts_kit

    for name in tts_kit.__all__:
        assert getattr(tts_kit, name), name


@pytest.mark.parametrize("path", MODULES, ids=module_id)
def test_public_functions_are_typed_and_explained(path):
    """Mistake: a public function whose argument types are not documented."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "a module needs a docstring"
    untyped = {"model", "config", "tokenizer", "name", "path", "kind", "args", "commands", "parser", "figure", "whisper",
               "ids"}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            for argument in (*node.args.args, *node.args.kwonlyargs):
                assert argument.annotation or argument.arg in untyped, f"{module_id(path)}: {node.name}({argument.arg})"


def test_forbidden_code():
    """Mistake: swallowed errors, pickle, modules that shadow a library, decoding by torchaudio, unfinished code."""
    for path in MODULES:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"except( Exception)?:\s*\n\s*pass", text), path
        assert not re.search(r"\bimport (pickle|torchaudio|torchcodec)|torch\.load\(", text), path
        assert not re.search(r"\b(TODO|FIXME|XXX)\b|NotImplementedError", text), path
        assert path.name not in {"utils.py", "helpers.py", "tokenize.py", "modal.py"}
        assert path.name == "colab.py" or "google.colab" not in text, path


def test_the_top_level_has_no_other_files():
    """Mistake: files accumulate at the top level."""
    allowed = {"notebooks", "tts_kit", "tests", "sample_data", "README.md", "LICENSE", "Makefile", ".gitignore", ".ci",
               "constraints.txt", "pyproject.toml", "requirements.txt", "requirements-no-deps.txt"}
    assert {path.split("/")[0] for path in tracked()} <= allowed


def test_every_requirement_has_a_reason():
    """Mistake: a dependency without a reason, which cannot be removed safely."""
    for path in ROOT.glob("requirements*.txt"):
        for line in path.read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                assert re.fullmatch(r"[\w-]+[=<>.,\d]*\s+# .{5,}", line), f"{path.name}: {line}"
    extras = (ROOT / "pyproject.toml").read_text().partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for line in re.findall(r'^    ".*$', extras, re.MULTILINE):
        assert re.fullmatch(r' +"[^"]+",  # .{6,}', line) or "tts-kit[" in line, line


def test_every_package_is_in_the_wheel():
    """Mistake: a new sub-package, or a template beside a module, is missing from the wheel: a broken kit."""
    packages = {"tts_kit" + "".join(f".{part}" for part in path.parent.relative_to(PACKAGE).parts)
                for path in MODULES if path.name == "__init__.py"}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == packages | {"tts_kit.sample_data"}
    assert all((path.parent / "__init__.py").is_file() for path in MODULES)
    suffixes = {Path(path).suffix for path in tracked() if path.startswith("tts_kit/")} - {".py", ".md"}
    assert {f"*{suffix}" for suffix in suffixes} == set(PROJECT["tool"]["setuptools"]["package-data"]["*"])


def test_the_repository_address_is_the_same_everywhere():
    """Mistake: after the repository has moved, links in README and notebooks are broken."""
    address = PROJECT["project"]["urls"]["Repository"]
    owner_and_name = address.removeprefix("https://github.com/")
    for path in [ROOT / "README.md", *(ROOT / "notebooks").glob("*.ipynb"), *MODULES]:
        for link in re.findall(r"github(?:\.com|usercontent\.com)/([\w-]+/tts_kit)", path.read_text(encoding="utf-8")):
            assert link == owner_and_name, f"{path.name}: {link}"


def test_continuous_integration_runs_the_readmes_command():
    """Mistake: CI runs other tests than the README describes."""
    readme, script = (ROOT / "README.md").read_text(encoding="utf-8"), (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    assert "make test" in readme and script.strip().splitlines()[-1] == "make test test-slow"
