"""Colab: conventions of the notebooks, and behavior with a replacement of google.colab."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from test_notebooks import FOLDER, NAMES, cells, python_source, source

from tts_kit import colab
from tts_kit.errors import KitError

ROOT = FOLDER.parent
BADGE = re.compile(r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
                   r"\(https://colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/(\w+)/([^)]+)\)")
SECRET = "hf_nobodymayseethis"
COLAB = {
    "__init__.py": "",
    "errors.py": "class Error(Exception): pass",
    "userdata.py": """
        import os
        from google.colab.errors import Error
        class NotebookAccessError(Exception): pass
        class SecretNotFoundError(Error): pass
        class TimeoutException(Error): pass
        def get(name):
            if failure := os.environ.get("COLAB_SECRET_FAILS"):
                raise globals()[failure](name)
            return {"HF_TOKEN": "hf_nobodymayseethis\\n"}[name]
        """,
    "drive.py": """
        import os, pathlib
        from google.colab.errors import Error
        def mount(path):
            if os.environ.get("COLAB_DRIVE_FAILS"):
                raise {"refused": Error, "broken": ValueError}[os.environ["COLAB_DRIVE_FAILS"]]("credential propagation")
            (pathlib.Path(path) / "MyDrive").mkdir(parents=True, exist_ok=True)
        """,
    "output.py": """
        def serve_kernel_port_as_iframe(port, path="/", height=400):
            print("shown", port, path, height)
        """,
}
"""The part of google.colab that the kit uses, with the errors that it raises."""


@pytest.fixture
def colab_site(tmp_path, monkeypatch):
    """A folder that makes a process look like Colab: a google.colab to import, a pip that only records its arguments, and
    Colab's environment variable."""
    site = tmp_path / "site"
    package = site / "google" / "colab"
    package.mkdir(parents=True)
    for name, text in COLAB.items():
        (package / name).write_text(textwrap.dedent(text), encoding="utf-8")
    (site / "pip").mkdir()
    (site / "pip" / "__init__.py").touch()
    pip_log = tmp_path / "pip.txt"
    (site / "pip" / "__main__.py").write_text(
        f"import json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(pip_log)!r}, 'a'))", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # the real pip, if it is called after all, changes nothing
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return site


def run_on_colab(script: str, folder: Path) -> subprocess.CompletedProcess:
    """Run a script in a process with google.colab imported, like Colab's kernels."""
    script = textwrap.dedent("""
        import google.colab, os
        from pathlib import Path
        from tts_kit import colab, device
        colab.DRIVE = Path("drive")
        """) + textwrap.dedent(script)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, check=False)


REPOSITORY = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]["Repository"]


@pytest.mark.parametrize("name", NAMES)
def test_a_badge_opens_its_own_notebook(name):
    """Mistake: a badge copied from another notebook, or one that opens another repository."""
    badges = BADGE.findall(source(cells(name, "markdown")[0]))
    assert badges == [(REPOSITORY.removeprefix("https://github.com/"), "main", f"notebooks/{name}.ipynb")]


def test_the_readme_links_to_the_notebooks():
    """Mistake: a badge in the README names a notebook or a repository that does not exist."""
    badges = BADGE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert badges == [(REPOSITORY.removeprefix("https://github.com/"), "main", f"notebooks/{name}.ipynb") for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_install_comes_before_the_kit_and_names_no_torch(name):
    """Mistake: an import of the kit before its packages are installed, or a pip line that replaces Colab's torch."""
    code = [source(cell) for cell in cells(name)]
    imports = [index for index, text in enumerate(code) if re.search(r"(?m)^\s*(from|import) tts_kit", text)]
    assert [index for index, text in enumerate(code) if "%pip" in text] == [0] and min(imports) > 1
    assert not re.search(r"--upgrade| -U|torch", code[0]) and "google.colab" not in "".join(code)
    guard = next(node for node in ast.parse(python_source(cells(name)[0])).body if isinstance(node, ast.If))
    assert ast.unparse(guard.test) == "'COLAB_RELEASE_TAG' in os.environ"  # all ! and % lines are inside the guard
    assert all(line.startswith("    ") for line in code[0].splitlines() if line.lstrip().startswith(("!", "%")))


@pytest.mark.parametrize("preinstalled", ["torch==2.10.0", "torch==2.11.0", "numpy==2.0.2", "tqdm==4.67.1"])
def test_preinstalled_packages_of_colab_are_not_replaced(preinstalled):
    """Mistake: a requirement that Colab's torch or numpy does not satisfy, so that pip replaces it under a loaded kernel."""
    requirements = [Requirement(line.partition("#")[0].strip())
                    for line in (ROOT / "requirements.txt").read_text().splitlines()
                    if line and not line.startswith("#")]
    name, _, version = preinstalled.partition("==")
    assert all(version in requirement.specifier for requirement in requirements if requirement.name == name)


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_contain_no_outputs(name):
    """Mistake: outputs, execution counts, widgets or output ids of Colab or Jupyter are committed."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert set(notebook["metadata"]["language_info"]) == {"name"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"} and not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_results_go_to_drive_only_on_request(name):
    """Mistake: a notebook stores its run in another folder than the others, or mounts Drive unasked."""
    parameters, code = source(cells(name)[1]), "\n".join(source(cell) for cell in cells(name))
    assert 'DRIVE = False  # @param {type:"boolean"}' in parameters and 'RUN = "emma"' in parameters
    assert code.count("Run(RUN, colab.runs_dir(DRIVE))") == 1 and not re.search(r"\bRun\((?!RUN, )", code)
    assert code.index("colab.load_hf_token()") < code.index("choose_device()\n")
    assert not re.search(r"rmtree|unlink|\brm\b", code)  # existing results are resumed


def test_the_first_cell_installs_in_colab(colab_site, tmp_path):
    """Mistake: the install cell fails in pip, or does not install the metric models."""
    execute_cells([source(cells(NAMES[0])[0])], tmp_path)
    calls = [json.loads(line) for line in (tmp_path / "pip.txt").read_text(encoding="utf-8").splitlines()]
    assert calls[0] == ["install", "-q", f"tts-kit[all] @ git+{REPOSITORY}"]
    assert calls[1][:4] == ["install", "-q", "--no-deps", "-r"] and (ROOT / calls[1][4].rsplit("/", 1)[-1]).is_file()


def test_the_first_cell_does_nothing_outside_colab(colab_site, tmp_path, monkeypatch):
    """Mistake: a notebook installs packages on the user's own machine unasked."""
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    execute_cells([source(cells(NAMES[0])[0])], tmp_path)
    assert not (tmp_path / "pip.txt").exists()


def execute_cells(code: list[str], folder: Path) -> str:
    """Return what cells print in a kernel that is started in a folder with this process's environment."""
    notebook = new_notebook(cells=[new_code_cell(text) for text in code])
    executed = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output.get("text", "") for cell in executed.cells for output in cell.outputs)


def test_the_token_comes_from_the_secrets_and_is_never_printed(colab_site, tmp_path):
    """Mistake: a gated model is refused although the secret exists; a token is printed, keeps its line break, or is
    requested in each notebook; a notebook stops without an account, which the bundled and the open models do not need."""
    process = run_on_colab("""
        for failure in ("SecretNotFoundError", "NotebookAccessError", "TimeoutException"):
            os.environ["COLAB_SECRET_FAILS"] = failure
            print(colab.load_hf_token(), "HF_TOKEN" in os.environ)
        del os.environ["COLAB_SECRET_FAILS"]
        print(colab.load_hf_token(), len(os.environ["HF_TOKEN"]))
        os.environ |= {"HF_TOKEN": "mine", "COLAB_SECRET_FAILS": "never asked"}
        print(colab.load_hf_token(), os.environ["HF_TOKEN"])""", tmp_path)
    assert process.stdout.splitlines() == [*["False False"] * 3, f"True {len(SECRET)}", "True mine"], process.stderr
    assert SECRET not in process.stdout + process.stderr


def test_runs_on_drive_are_resumed(colab_site, tmp_path):
    """Mistake: a disconnect loses a run, or the next machine starts it again; Drive is mounted unasked; closing the
    permission dialog ends in a traceback of Colab's own."""
    process = run_on_colab("""
        from tts_kit.config import load_config, save_config
        from tts_kit.errors import KitError
        from tts_kit.run import Run
        print(colab.runs_dir(), colab.DRIVE.exists())
        for steps in (7, 8):
            run = Run("emma", colab.runs_dir(True))
            print(run.folder.as_posix(), load_config(run).steps)
            save_config(run, load_config(run, steps=steps))
        for os.environ["COLAB_DRIVE_FAILS"] in ("refused", "broken"):
            try:
                colab.runs_dir(True)
            except KitError as error:
                print(error)""", tmp_path)
    lines = process.stdout.splitlines()
    run_folder = "drive/MyDrive/tts_kit/runs/emma"
    assert lines[:3] == ["runs False", f"{run_folder} 200", f"{run_folder} 7"], process.stderr
    assert len(lines) == 5 and all("(credential propagation)" in line and "DRIVE to False" in line for line in lines[3:])


def test_drive_outside_colab_is_refused():
    """Mistake: DRIVE set to True in Jupyter is ignored, and nothing is on Drive."""
    with pytest.raises(KitError, match="no Colab notebook. Set it to False"):
        colab.runs_dir(True)
    assert colab.runs_dir() == Path("runs") and colab.runs_dir(False) == Path("runs")


def test_a_served_page_is_embedded_once(colab_site, tmp_path):
    """Mistake: on Colab the review page has an address that cannot be opened, or None is printed below it."""
    process = run_on_colab("print(repr(colab.embed_iframe(8000, '/?token=x', 700).data))", tmp_path)
    assert process.stdout == "shown 8000 /?token=x 700\n''\n", process.stderr
