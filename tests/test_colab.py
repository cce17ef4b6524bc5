"""Colab: conventions of the notebooks, and behavior with a replacement of google.colab."""

import ast
import json
import os
import re
import subprocess
import sys
import textwrap
import tomllib
import zipfile
from pathlib import Path

import pytest
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell, new_notebook
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from peft import import_utils
from test_notebooks import FOLDER, NAMES, cells, python_source, source

from tts_kit import colab, device
from tts_kit.comparison import external
from tts_kit.doctor import checks
from tts_kit.errors import KitError
from tts_kit.model import load, lora

ROOT = FOLDER.parent
BADGE = re.compile(r"\[!\[[^\]]*\]\(https://colab\.research\.google\.com/assets/colab-badge\.svg\)\]"
                   r"\(https://colab\.research\.google\.com/github/([\w-]+/[\w-]+)/blob/([\w.]+)/([^)]+)\)")
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
        def serve_kernel_port_as_window(port, path="/", anchor_text=None):
            print("linked", port, path)
        """,
}
"""The part of google.colab that the kit uses, with the errors that it raises."""


@pytest.fixture
def colab_site(tmp_path, monkeypatch):
    """A folder that makes a process look like Colab: a google.colab to import, a uv that only records its arguments, and
    Colab's environment variable."""
    site = tmp_path / "site"
    package = site / "google" / "colab"
    package.mkdir(parents=True)
    for name, text in COLAB.items():
        (package / name).write_text(textwrap.dedent(text), encoding="utf-8")
    programs, log = tmp_path / "bin", tmp_path / "uv.txt"
    programs.mkdir()
    (programs / "uv").write_text(f"#!{sys.executable}\nimport json, sys\n"
                                 f"print(json.dumps(sys.argv[1:]), file=open({str(log)!r}, 'a'))\n", encoding="utf-8")
    (programs / "uv").chmod(0o755)
    monkeypatch.setenv("PATH", os.pathsep.join([str(programs), os.environ["PATH"]]))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), *filter(None, [os.environ.get("PYTHONPATH")])]))
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


PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
REPOSITORY, TAG = PROJECT["urls"]["Repository"], f"v{PROJECT['version']}"
TESTED = re.search(r"(?m)^transformers==\S+$", (ROOT / "constraints.txt").read_text())[0]
RAW = REPOSITORY.replace("github.com", "raw.githubusercontent.com")


@pytest.mark.parametrize("name", NAMES)
def test_a_badge_opens_its_own_notebook(name):
    """Mistake: a badge copied from another notebook, or one that opens another repository or another version."""
    badges = BADGE.findall(source(cells(name, "markdown")[0]))
    assert badges == [(REPOSITORY.removeprefix("https://github.com/"), TAG, f"notebooks/{name}.ipynb")]


def test_the_readme_links_to_the_notebooks():
    """Mistake: a badge in the README names a notebook or a repository that does not exist."""
    badges = BADGE.findall((ROOT / "README.md").read_text(encoding="utf-8"))
    assert badges == [(REPOSITORY.removeprefix("https://github.com/"), TAG, f"notebooks/{name}.ipynb") for name in NAMES]


@pytest.mark.parametrize("name", NAMES)
def test_install_comes_before_the_kit_and_names_no_torch(name):
    """Mistake: an import of the kit before its packages are installed, or a pip line that replaces Colab's torch."""
    code = [source(cell) for cell in cells(name)]
    imports = [index for index, text in enumerate(code) if re.search(r"(?m)^\s*(from|import) tts_kit", text)]
    assert [index for index, text in enumerate(code) if re.search(r"(?m)^ *[!%]", text)] == [0] and min(imports) > 1
    assert not re.search(r"--upgrade| -U|torch(?!ao)", code[0]) and "google.colab" not in "".join(code)
    guard = next(node for node in ast.parse(python_source(cells(name)[0])).body if isinstance(node, ast.If))
    assert "COLAB_RELEASE_TAG" in ast.unparse(guard.test)  # all ! and % lines are inside the guard
    assert all(line.startswith("    ") for line in code[0].splitlines() if line.lstrip().startswith(("!", "%")))


IMAGES = sorted(path.stem for path in (ROOT / "tests" / "colab").iterdir())
"""Recorded images of Colab, each with Python's version in the first line and pip's list of packages below."""
IN_USE = ("torch", "nvidia-", "triton", "numpy", "pandas", "pyarrow", "scipy", "protobuf", "ipykernel", "ipython", "jupyter",
          "tornado", "pyzmq", "jax", "tensorflow", "cuda-")
"""Begins of names of packages that the image's kernel has loaded, or that fit its torch and driver only."""
BUILT = ("--no-binary", "docopt")
"""One file of Python, which num2words needs and which has no wheel: it is built in a second."""


def read_image(name: str) -> tuple[str, dict[str, str]]:
    """Python's version in an image of Colab, and name -> version of its packages."""
    heading, *lines = (ROOT / "tests" / "colab" / f"{name}.txt").read_text().splitlines()
    return re.search(r"Python (\S+),", heading)[1], {
        canonicalize_name(package): version for package, _, version in (line.partition("==") for line in lines)}


def empty_wheel(folder: Path, name: str, version: str) -> None:
    """Write a wheel without content or dependencies."""
    record = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{record}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{record}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{record}/RECORD", "")


@pytest.mark.parametrize("image", IMAGES)
def test_an_image_of_colab_keeps_what_its_kernel_uses(image, tmp_path, capsys):
    """Mistake: a requirement that an image's torch or numpy does not satisfy, so that uv replaces it under a loaded kernel;
    one that has no wheel for the image's Python; or versions that `doctor` refuses."""
    uv = external.uv() or pytest.skip('uv is not installed: pip install "tts-kit[eval]"')
    python, installed = read_image(image)
    requirements = [TESTED, (ROOT / "requirements.txt").read_text(),
                    *(line for extra in ("audio", "eval", "serve") for line in PROJECT["optional-dependencies"][extra])]
    (tmp_path / "requirements.in").write_text("\n".join(requirements))
    resolved = tmp_path / "resolved.txt"  # uv prefers the versions that it finds here, as it prefers installed ones
    resolved.write_text("".join(f"{name}=={version}\n" for name, version in installed.items()))
    for name, version in installed.items():
        if "+" in version:  # a build for CUDA, from another index
            empty_wheel(tmp_path, name, version)
    process = subprocess.run([uv, "pip", "compile", "requirements.in", "-o", resolved.name, "--python-version", python,
                              "--python-platform", "x86_64-manylinux_2_35", "--only-binary", ":all:", *BUILT,
                              "--find-links", ".", "--no-header", "--no-annotate", "--quiet", "--no-progress"],
                             cwd=tmp_path, capture_output=True, text=True, timeout=1500, check=False,
                             env=os.environ | {"UV_HTTP_RETRIES": "1"})
    if process.returncode and re.search("(?i)failed to fetch|dns error|connect|timed out|offline", process.stderr):
        pytest.skip(f"no package index can be reached: {process.stderr.strip().splitlines()[-1][:200]}")
    assert not process.returncode, process.stderr
    chosen = dict(line.split("==") for line in resolved.read_text().splitlines())
    replaced = {name: f"{installed[name]} -> {version}" for name, version in chosen.items()
                if installed.get(name, version) != version}
    new = chosen.keys() - installed.keys()
    with capsys.disabled():
        print(f"\nColab {image}: {len(new)} packages are new, replaced are {replaced}")
    assert not [name for name in replaced.keys() | new if name.startswith(IN_USE)], replaced
    results = [checks.check_package(requirement, chosen.get(requirement.name)) for requirement in checks.requirements()]
    assert [check for check in results if check.status == "fail"] == []
    without_dependencies = {Requirement(line.partition("#")[0]).name
                            for line in (ROOT / "requirements-no-deps.txt").read_text().splitlines() if line[0] != "#"}
    assert not without_dependencies & installed.keys()


def test_the_torchao_of_colab_does_not_stop_training(config, tmp_path, monkeypatch):
    """Mistake: `get_peft_model` raises for every model, because Colab's images hold a torchao older than PEFT supports."""
    versions = {read_image(image)[1]["torchao"] for image in IMAGES}
    assert versions == {"0.10.0"} and checks.check_torchao("0.10.0").status == "warn"
    (tmp_path / "torchao").mkdir()
    (tmp_path / "torchao" / "__init__.py").touch()
    (tmp_path / "torchao-0.10.0.dist-info").mkdir()
    (tmp_path / "torchao-0.10.0.dist-info" / "METADATA").write_text("Name: torchao\nVersion: 0.10.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "torchao", raising=False)
    import_utils.is_torchao_available.cache_clear()
    try:
        with pytest.raises(ImportError, match="incompatible version of torchao"):
            import_utils.is_torchao_available()
        base = load.load_base(config.base, device.choose("cpu"))
        finetuned = lora.add_lora(base.model, 4, 8)
        lora.save(finetuned, tmp_path / "adapter", base, config.to_json(), {"speaker": "0"})
        del sys.modules["torchao"]
        lora.load(load.load_base(config.base, device.choose("cpu")), tmp_path / "adapter").merge_and_unload()
    finally:
        sys.modules.pop("torchao", None)
        import_utils.is_torchao_available.cache_clear()


@pytest.mark.parametrize("name", NAMES)
def test_notebooks_contain_no_outputs(name):
    """Mistake: outputs, execution counts, widgets or output ids of Colab or Jupyter are committed."""
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert set(notebook["metadata"]) == {"accelerator", "colab", "kernelspec", "language_info"}
    assert set(notebook["metadata"]["language_info"]) == {"name"}
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"} and not cell.get("outputs") and cell.get("execution_count") is None
    assert len({cell["id"] for cell in notebook["cells"]}) == len(notebook["cells"])


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_opens_with_a_gpu_and_titles(name):
    """Mistake: the badge opens a machine without a GPU, or the outline of Colab shows cells without a name."""
    metadata = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"]
    assert metadata["accelerator"] == "GPU" and metadata["colab"] == {"gpuType": "T4"}
    titles = [re.match(r"# @title (\S.{2,60})\n", source(cell)) for cell in cells(name)]
    assert all(titles) and len({title[1] for title in titles}) == len(titles)


@pytest.mark.parametrize("name", NAMES)
def test_results_go_to_drive_only_on_request(name):
    """Mistake: a notebook stores its run in another folder than the others, or mounts Drive unasked."""
    parameters, code = source(cells(name)[1]), "\n".join(source(cell) for cell in cells(name))
    assert 'DRIVE = False  # @param {type:"boolean"}' in parameters and 'RUN = "emma"' in parameters
    assert code.count("Run(RUN, colab.runs_dir(DRIVE))") == 1 and not re.search(r"\bRun\((?!RUN, )", code)
    assert code.index("colab.load_hf_token()") < code.index("choose_device()\n")
    assert not re.search(r"rmtree|unlink|\brm\b", code)  # existing results are resumed


@pytest.mark.parametrize("variable", ["COLAB_RELEASE_TAG", "KAGGLE_KERNEL_RUN_TYPE"])
def test_the_first_cell_installs(variable, colab_site, tmp_path, monkeypatch):
    """Mistake: the install cell fails in uv, takes another version than the notebook's, does not install the metric models,
    or leaves the old torchao."""
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    monkeypatch.setenv(variable, "set")
    execute_cells([source(cells(NAMES[0])[0])], tmp_path)
    calls = [json.loads(line) for line in (tmp_path / "uv.txt").read_text(encoding="utf-8").splitlines()]
    install = ["pip", "install", "--system", "-q"]
    assert calls == [[*install, f"tts-kit[all] @ git+{REPOSITORY}@{TAG}", TESTED],
                     [*install, "--no-deps", "-r", f"{RAW}/{TAG}/requirements-no-deps.txt"],
                     ["pip", "uninstall", "--system", "-q", "torchao"]]
    assert (ROOT / "requirements-no-deps.txt").is_file()


def test_the_first_cell_does_nothing_outside_colab(colab_site, tmp_path, monkeypatch):
    """Mistake: a notebook installs packages on the user's own machine unasked."""
    monkeypatch.delenv("COLAB_RELEASE_TAG")
    execute_cells([source(cells(NAMES[0])[0])], tmp_path)
    assert not (tmp_path / "uv.txt").exists()


def execute_cells(code: list[str], folder: Path) -> str:
    """Return what cells print in a kernel that is started in a folder with this process's environment."""
    notebook = new_notebook(cells=[new_code_cell(text) for text in code])
    executed = NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(folder)}}).execute()
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
    assert lines[:3] == ["runs False", f"{run_folder} 0", f"{run_folder} 7"], process.stderr
    assert len(lines) == 5 and all("(credential propagation)" in line and "DRIVE to False" in line for line in lines[3:])


def test_drive_outside_colab_is_refused():
    """Mistake: DRIVE set to True in Jupyter is ignored, and nothing is on Drive."""
    with pytest.raises(KitError, match="no Colab notebook. Set it to False"):
        colab.runs_dir(True)
    assert colab.runs_dir() == Path("runs") and colab.runs_dir(False) == Path("runs")


def test_files_are_found_where_colab_puts_them(colab_site, tmp_path):
    """Mistake: my.wav in Colab's file browser or on Drive is not found, or a path that is right is changed."""
    script = """
        for path in ("content/my.wav", "content/drive/MyDrive/talk.wav", "here.wav"):
            Path(path).parent.mkdir(parents=True, exist_ok=True)
            Path(path).touch()
        colab.DRIVE = Path("content/drive")
        print([colab.find(source) for source in ("my.wav", "talk.wav", "here.wav", "example:emma", "nowhere.wav", "")])
        """
    process = run_on_colab(script, tmp_path)
    assert process.stdout.splitlines()[-1] == str(
        ["content/my.wav", "content/drive/MyDrive/talk.wav", "here.wav", "example:emma", "nowhere.wav", ""]), process.stderr
    assert "my.wav was found as content/my.wav." in process.stdout
    assert colab.find("my.wav") == "my.wav", "outside Colab"


def test_a_served_page_is_embedded_once(colab_site, tmp_path):
    """Mistake: on Colab the review page has an address that cannot be opened, or None is printed below it."""
    process = run_on_colab("print(repr(colab.embed_iframe(8000, '/?token=x', 700).data))", tmp_path)
    assert process.stdout == "shown 8000 /?token=x 700\nlinked 8000 /?token=x\n''\n", process.stderr
