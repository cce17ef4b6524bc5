"""The four notebooks: their conventions, and their execution in order by changing values only."""

import ast
import json
import re
import shutil
from pathlib import Path

import matplotlib.font_manager  # noqa: F401  its list of fonts is made here, not in a kernel that warns of it
import nbformat
import pytest
from nbclient import NotebookClient

from tts_kit.data import transcribe
from tts_kit.evaluation import metrics
from tts_kit.run import SAMPLE_DATA

FOLDER = SAMPLE_DATA.parent / "notebooks"
NAMES = ["01_data", "02_tokenize", "03_finetune", "04_clone_vs_finetune"]


def cells(name: str, kind: str = "code") -> list:
    return [cell for cell in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]
            if cell["cell_type"] == kind]


def source(cell) -> str:
    return "".join(cell["source"])


def python_source(cell) -> str:
    """Return the Python code of a cell, without magics and shell commands."""
    return re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", source(cell))


def test_there_are_exactly_these_notebooks():
    """Mistake: another file next to the four notebooks."""
    assert sorted(path.stem for path in FOLDER.iterdir() if path.is_file() and not path.name.startswith(".")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_conventions(name):
    """Mistake: committed outputs, logic in cells, different install cells, or a parameter that is not a literal."""
    code = cells(name)
    assert len(code) <= 12
    for cell in code:
        assert not cell["outputs"] and cell["execution_count"] is None
        assert len(source(cell).splitlines()) <= 13, source(cell)  # one is the title
        kinds = {type(node) for node in ast.walk(ast.parse(python_source(cell)))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Try}
    assert source(code[0]) == source(cells(NAMES[0])[0])
    assert code[1]["metadata"]["tags"] == ["parameters"]
    for line, node in zip(source(code[1]).splitlines()[1:], ast.parse(source(code[1])).body, strict=True):
        ast.literal_eval(node.value)
        assert "# @param" in line
    assert "widgets" not in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"]
    assert all(cell["cell_type"] == "markdown" for cell in json.loads(
        (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"][:1])


@pytest.mark.parametrize("name", NAMES[:-1])
def test_each_notebook_links_to_the_next(name):
    """Mistake: a link to a notebook that was renamed."""
    links = re.findall(r"\((\d\d_\w+\.ipynb)\)", source(cells(name, "markdown")[-1]))
    assert links == [f"{NAMES[NAMES.index(name) + 1]}.ipynb"]


def execute(name: str, folder: Path, **values) -> nbformat.NotebookNode:
    """Execute a notebook in its own kernel, with other values in its parameters cell."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for variable, value in values.items():
        parameters.source, count = re.subn(rf"(?m)^{variable} = .*$", f"{variable} = {value!r}".replace("\\", "/"),
                                           parameters.source)
        assert count == 1, variable
    return NotebookClient(notebook, timeout=1500, resources={"metadata": {"path": str(folder)}}).execute()


def output_text(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") + str(output.get("data", {}).get("text/html", "")) for output in outputs)


def error_boxes(notebook) -> list[str]:
    """Return what a notebook shows in red boxes."""
    return [output["text"] for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs
            if output.get("name") == "stderr"]


def test_progress_bars_are_quiet_in_a_notebook(tmp_path, monkeypatch):
    """Mistake: 65 lines of tqdm in a red box, a line for each nested bar, or no bar at all after an interrupted one."""
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    broken = "from tts_kit.progress import tqdm\nfor _ in tqdm(range(3), 'broken'):\n    raise KeyboardInterrupt"
    loops = ("import time\nfor _ in tqdm(range(3), 'outer', mininterval=0):\n"
             "    for _ in tqdm(range(3), 'inner', mininterval=0):\n        time.sleep(0.01)")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (broken, loops)])
    NotebookClient(notebook, timeout=600, allow_errors=True, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert error_boxes(notebook) == []
    text = "".join(output.get("text", "") for output in notebook.cells[1].outputs)
    assert "outer" in text and "inner" not in text and "\n" not in text.strip("\n")


def count_images(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a copy of the notebooks, whose kernels import this checkout."""
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return tmp_path / "notebooks"


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(not transcribe.is_installed(), reason="no bundled Whisper is installed (extra `eval`)")
def test_the_first_notebook_prepares_a_recording(folder):
    """Mistake: the notebook cannot use a recording without transcripts, or its review page is missing."""
    notebook = execute("01_data", folder, RUN="take", SOURCE="example:recording", ASR_MODEL="bundled")
    output = output_text(notebook)
    assert "<iframe" in output and "/?token=" in output
    assert output.count("<audio") == 3 and error_boxes(notebook) == []
    assert (folder / "runs" / "take" / "data" / "report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_notebooks_run_in_order(toy, folder):
    """Mistake: a notebook needs the variables of another one; a cell fails, shows nothing or repeats an earlier output; or
    an adapter has no consent record."""
    run = folder / "runs" / "emma"
    first = execute("01_data", folder, WHO="Emma", KIND="synthetic", STATEMENT="No person spoke these clips.")
    assert "Emma" in output_text(first) and "82 clips" in output_text(first)
    assert output_text(first).count("<audio") == 3 and count_images(first) == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(metrics.SETTING, "none")  # Whisper needs 15 s for a clip of an untrained codec; see test_lessons.py
        second = execute("02_tokenize", folder, BASE=toy)
    assert "Not measured" in output_text(second)
    assert "82 encoded" in output_text(second) and output_text(second).count("<audio") == 6 and count_images(second) == 3
    third = execute("03_finetune", folder, STEPS=4, EVAL_STEPS=2, GENERATION_EVAL_STEPS=0)
    assert output_text(third).count("<audio") == 3 and count_images(third) == 2
    assert '"who": "Emma"' in (run / "adapter" / "consent.json").read_text()
    fourth = execute("04_clone_vs_finetune", folder, SENTENCES=1, SEEDS=[1])
    assert "ground_truth" in output_text(fourth) and output_text(fourth).count("<audio") == 4 + 6 + 1
    assert count_images(fourth) == 2 * bool(metrics.load_available())
    assert (run / "comparison" / "index.html").is_file()
    assert [error_boxes(notebook) for notebook in (first, second, third, fourth)] == [[]] * 4
