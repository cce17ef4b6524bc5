"""Colab: what the notebooks promise it, held statically, and played with a Colab that is only files on the path."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from test_notebooks import FOLDER, NAMES, cells, plain, source

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
        def mount(place):
            if os.environ.get("COLAB_DRIVE_FAILS"):
                raise {"refused": Error, "broken": ValueError}[os.environ["COLAB_DRIVE_FAILS"]]("credential propagation")
            (pathlib.Path(place) / "MyDrive").mkdir(parents=True, exist_ok=True)
        """,
    "output.py": """
        def serve_kernel_port_as_iframe(port, path="/", height=400):
            print("shown", port, path, height)
        """,
}
"""The part of google.colab that the kit touches, with the errors that its source raises."""


@pytest.fixture
def colab(tmp_path, monkeypatch):
    """A folder that makes a process one of Colab's: a google.colab to import, a pip that only writes down what it is told,
    torch and numpy of versions that no index has, and a mark in the environment."""
    site = tmp_path / "site"
    package = site / "google" / "colab"
    package.mkdir(parents=True)
    for name, text in COLAB.items():
        (package / name).write_text(textwrap.dedent(text), encoding="utf-8")
    (site / "pip").mkdir()
    (site / "pip" / "__init__.py").touch()
    told = tmp_path / "pip.txt"
    (site / "pip" / "__main__.py").write_text(
        f"import json, sys\nprint(json.dumps(sys.argv[1:]), file=open({str(told)!r}, 'a'))", encoding="utf-8")
    for name, version in {"torch": "2.11.0+cu128", "numpy": "2.0.2"}.items():
        record = site / f"{name}-{version}.dist-info"
        record.mkdir()
        (record / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # should another pip be found than ours, it changes nothing
    monkeypatch.setenv("PIP_DRY_RUN", "1")
    monkeypatch.setenv("COLAB_RELEASE_TAG", "release-colab_0")
    monkeypatch.delenv("HF_TOKEN", raising=False)
    return site


def on_colab(script: str, folder: Path) -> subprocess.CompletedProcess:
    """A script in a process that Colab started, as its kernels are: with google.colab imported."""
    script = textwrap.dedent("""
        import google.colab, os
        from pathlib import Path
        from tts_kit import runtime
        runtime.DRIVE = Path("drive")
        """) + textwrap.dedent(script)
    path = os.pathsep.join([os.environ["PYTHONPATH"], str(ROOT)])
    return subprocess.run([sys.executable, "-c", script], cwd=folder, env=os.environ | {"PYTHONPATH": path},
                          capture_output=True, text=True, check=False)


@pytest.mark.parametrize("name", NAMES)
def test_a_badge_opens_its_own_notebook(name):
    """Mistake: a badge copied from another notebook, or one that opens another repository than the one that is cloned."""
    kit = re.search(r"git clone -q https://github\.com/(\S+) ", source(cells(name)[0]))[1]
    found = BADGE.findall(source(cells(name, "markdown")[0]))
    assert found == [(kit, "main", f"notebooks/{name}.ipynb")]


def test_the_readme_opens_the_same_notebooks():
    """Mistake: a badge in README that names a notebook or a repository which is not there."""
    kit = re.search(r"git clone -q https://github\.com/(\S+) ", source(cells(NAMES[0])[0]))[1]
    found = BADGE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert found == [(kit, "main", f"notebooks/{name}.ipynb") for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_install_comes_before_the_kit_and_names_no_torch(name):
    """Mistake: an import of the kit before its packages are there, or a pip line that replaces Colab's torch."""
    code = [source(cell) for cell in cells(name)]
    imports = [number for number, text in enumerate(code) if re.search(r"(?m)^\s*(from|import) tts_kit", text)]
    installs = [number for number, text in enumerate(code) if "%pip" in text]
    assert installs == [0] and min(imports) > 1
    assert not re.search(r"(?m)^\s*[!%](?!pip|test|sed)", code[0]) and "--upgrade" not in code[0] and " -U" not in code[0]
    assert "google.colab" not in "".join(code)
    kept = ast.parse(plain(cells(name)[0])).body
    inside = next(node for node in kept if isinstance(node, ast.If))
    assert ast.unparse(inside.test) == "'COLAB_RELEASE_TAG' in os.environ"  # every ! and % line stands inside
    assert all(line.startswith("    ") for line in code[0].splitlines() if line.lstrip().startswith(("!", "%")))


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_a_visit_is_left(name):
    """Mistake: what Colab or Jupyter writes into a notebook, kept in git: outputs, counts, widgets, ids of outputs."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"kernelspec", "language_info"}
    assert set(notebook["metadata"]["language_info"]) == {"name"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"} and not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_results_go_to_drive_only_when_asked(name):
    """Mistake: one notebook that keeps its run elsewhere than the others, or that opens all of Drive without being asked."""
    parameters, code = source(cells(name)[1]), "\n".join(source(cell) for cell in cells(name))
    assert 'DRIVE = False  # @param {type:"boolean"}' in parameters and 'RUN = "emma"' in parameters
    assert code.count("Run(RUN, runtime.home(DRIVE))") == 1 and not re.search(r"\bRun\((?!RUN, )", code)
    assert code.index("runtime.take_token()") < code.index("runtime.choose()")
    assert not re.search(r"rmtree|unlink|\brm\b", code)  # what is there is gone on with


def test_the_first_cell_keeps_the_torch_that_is_there(colab, tmp_path):
    """Mistake: pip replaces Colab's torch or numpy under a kernel that has loaded it, or takes versions nobody has tried."""
    (tmp_path / "tts_kit").symlink_to(ROOT)  # cloned before; there is no network here
    ask = "import os; print('here', os.getcwd()); print(open('/tmp/pin').read())"
    said = run_cells([source(cells(NAMES[0])[0]), ask], tmp_path)
    assert Path(re.search("here (.*)", said)[1]).resolve() == ROOT.resolve()
    told = [json.loads(line) for line in (tmp_path / "pip.txt").read_text(encoding="utf-8").splitlines()]
    assert [each[:2] for each in told] == [["install", "-qr"], ["install", "-q"]]
    assert told[0][-2:] == ["-c", "/tmp/pin"] and "--no-deps" in told[1]
    files = [Path(word) for each in told for word in each if word.endswith("requirements.txt") or "requirements-" in word]
    assert len(files) == 4 and all(file.is_absolute() or (tmp_path / file).is_file() for file in files)
    pins = dict(re.findall(r"(?m)^([\w-]+)==(\S+)$", said))
    tested = dict(re.findall(r"(?m)^([\w-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8")))
    assert pins == tested | {"torch": "2.11.0+cu128", "numpy": "2.0.2"}


def test_the_first_cell_does_nothing_elsewhere(colab, tmp_path, monkeypatch):
    """Mistake: a notebook that installs into, or clones onto, a machine whose owner never asked for it."""
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    (tmp_path / "notebooks").mkdir()
    (tmp_path / "tts_kit").symlink_to(ROOT / "tts_kit")
    said = run_cells([source(cells(NAMES[0])[0]), "print('here', os.getcwd())"], tmp_path / "notebooks")
    assert f"here {tmp_path.resolve()}" in said and not (tmp_path / "pip.txt").exists()


def run_cells(code: list[str], folder: Path) -> str:
    """What cells print in a kernel started in a folder, with this process's environment."""
    notebook = new_notebook(cells=[new_code_cell(each) for each in code])
    made = NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}}).execute()
    return "".join(output.get("text", "") for cell in made.cells for output in cell.outputs)


def test_the_token_comes_from_the_secrets_and_is_never_told(colab, tmp_path):
    """Mistake: a gated model refused though the secret is there; a token printed, kept with its line break, or asked for in
    every notebook; a notebook that stops without an account, which the bundled model and the open ones do not need."""
    done = on_colab("""
        for failure in ("SecretNotFoundError", "NotebookAccessError", "TimeoutException"):
            os.environ["COLAB_SECRET_FAILS"] = failure
            print(runtime.take_token(), "HF_TOKEN" in os.environ)
        del os.environ["COLAB_SECRET_FAILS"]
        print(runtime.take_token(), len(os.environ["HF_TOKEN"]))
        os.environ |= {"HF_TOKEN": "mine", "COLAB_SECRET_FAILS": "never asked"}
        print(runtime.take_token(), os.environ["HF_TOKEN"])""", tmp_path)
    assert done.stdout.splitlines() == [*["False False"] * 3, f"True {len(SECRET)}", "True mine"], done.stderr
    assert SECRET not in done.stdout + done.stderr


def test_runs_go_to_drive_when_asked_and_are_found_again(colab, tmp_path):
    """Mistake: a run that a disconnect takes away, or that the next machine begins anew; Drive opened unasked; a dialogue
    clicked away that ends in a traceback of Colab's own."""
    done = on_colab("""
        from tts_kit import recipe
        from tts_kit.errors import Problem
        from tts_kit.run import Run
        print(runtime.home(), runtime.DRIVE.exists())
        for steps in (7, 8):
            run = Run("emma", runtime.home(True))
            print(run.folder.as_posix(), recipe.recall(run).steps)
            recipe.remember(run, recipe.recall(run, steps=steps))
        for os.environ["COLAB_DRIVE_FAILS"] in ("refused", "broken"):
            try:
                runtime.home(True)
            except Problem as problem:
                print(problem)""", tmp_path)
    said = done.stdout.splitlines()
    place = "drive/MyDrive/tts_kit/runs/emma"
    assert said[:3] == ["runs False", f"{place} 200", f"{place} 7"], done.stderr
    assert len(said) == 5 and all("(credential propagation)" in line and "DRIVE to False" in line for line in said[3:])


def test_drive_elsewhere_is_refused():
    """Mistake: DRIVE set in Jupyter looks as if it worked, and nothing is on Drive."""
    with pytest.raises(KitError, match="no Colab notebook. Set it to False"):
        colab.runs_dir(True)
    assert colab.runs_dir() == Path("runs") and colab.runs_dir(False) == Path("runs")


def test_a_served_page_is_shown_once(colab, tmp_path):
    """Mistake: the review page that is an address nobody can open on Colab, or None printed below it."""
    done = on_colab("print(repr(runtime.frame(8000, '/?token=x', 700).data))", tmp_path)
    assert done.stdout == "shown 8000 /?token=x 700\n''\n", done.stderr
