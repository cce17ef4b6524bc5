"""The four notebooks: their conventions, and their execution in order by changing values only."""

import ast
import json
import re
import shutil
from pathlib import Path

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


def plain(cell) -> str:
    """Python without the notebook's own magics."""
    return re.sub(r"(?m)^(\s*)[!%].*$", r"\1pass", source(cell))


def test_there_are_exactly_these_notebooks():
    """Mistake: a copy or a stray left beside the four."""
    assert sorted(path.stem for path in FOLDER.iterdir() if not path.name.startswith(".")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_conventions(name):
    """Mistake: outputs in git, logic in cells, a bootstrap that differs, or a parameter that is no literal."""
    code = cells(name)
    assert len(code) <= 12
    for cell in code:
        assert not cell["outputs"] and cell["execution_count"] is None
        assert len(source(cell).splitlines()) <= 12, source(cell)
        kinds = {type(node) for node in ast.walk(ast.parse(plain(cell)))}
        assert not kinds & {ast.FunctionDef, ast.ClassDef, ast.Lambda, ast.Try}
    assert source(code[0]) == source(cells(NAMES[0])[0])
    assert code[1]["metadata"]["tags"] == ["parameters"]
    for line, node in zip(source(code[1]).splitlines(), ast.parse(source(code[1])).body, strict=True):
        ast.literal_eval(node.value)
        assert "# @param" in line
    assert "widgets" not in json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["metadata"]
    assert all(cell["cell_type"] == "markdown" for cell in json.loads(
        (FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"][:1])


@pytest.mark.parametrize("name", NAMES[:-1])
def test_each_leads_to_the_next(name):
    """Mistake: a link to a notebook that was renamed."""
    links = re.findall(r"\((\d\d_\w+\.ipynb)\)", source(cells(name, "markdown")[-1]))
    assert links == [f"{NAMES[NAMES.index(name) + 1]}.ipynb"]


def executed(name: str, folder: Path, **values) -> nbformat.NotebookNode:
    """Run a notebook with other values in its parameters cell, in a kernel of its own."""
    notebook = nbformat.read(FOLDER / f"{name}.ipynb", as_version=4)
    parameters = next(cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", []))
    for variable, value in values.items():
        parameters.source, count = re.subn(rf"(?m)^{variable} = .*$", f"{variable} = {value!r}".replace("\\", "/"),
                                           parameters.source)
        assert count == 1, variable
    return NotebookClient(notebook, timeout=240, resources={"metadata": {"path": str(folder)}}).execute()


def texts(notebook) -> str:
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    return "\n".join(output.get("text", "") + str(output.get("data", {}).get("text/html", "")) for output in outputs)


def pictures(notebook) -> int:
    return sum("image/png" in output.get("data", {}) for cell in notebook.cells if cell.cell_type == "code"
               for output in cell.outputs)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with a copy of the notebooks, whose kernels import this checkout."""
    shutil.copytree(FOLDER, tmp_path / "notebooks")
    monkeypatch.setenv("PYTHONPATH", str(FOLDER.parent))
    return tmp_path / "notebooks"


@pytest.mark.skipif(not transcribe.is_installed(), reason="no bundled Whisper is installed (extra `eval`)")
def test_the_first_prepares_a_recording(folder):
    """Mistake: a notebook that only knows clips with transcripts, or whose review is open and leads nowhere."""
    output = texts(executed("01_data", folder, RUN="take", SOURCE="example:recording", ASR_MODEL="bundled"))
    assert "<iframe" in output and "/?token=" in output
    assert output.count("<audio") == 3
    assert (folder / "runs" / "take" / "data" / "report.html").is_file()


def test_the_four_run_in_order_each_alone(toy, folder):
    """Mistake: a notebook that needs another one's variables; a cell that fails, shows nothing or repeats what another
    printed; or an adapter without its consent record."""
    run = folder / "runs" / "emma"
    first = executed("01_data", folder, WHO="Emma", KIND="synthetic", STATEMENT="No person spoke these clips.")
    assert "Emma" in texts(first) and "82 clips" in texts(first)
    assert texts(first).count("<audio") == 3 and pictures(first) == 1
    second = executed("02_tokenize", folder, BASE=toy)
    assert "82 encoded" in texts(second) and texts(second).count("<audio") == 4 and pictures(second) == 1
    third = executed("03_finetune", folder, STEPS=4, EVAL_STEPS=2, GENERATION_EVAL_STEPS=0)
    assert texts(third).count("<audio") == 3 and pictures(third) == 1
    assert '"who": "Emma"' in (run / "adapter" / "consent.json").read_text()
    fourth = executed("04_clone_vs_finetune", folder, SENTENCES=1, SEEDS=[1])
    assert "ground_truth" in texts(fourth) and texts(fourth).count("<audio") == 4 + 6
    assert pictures(fourth) == 2 * bool(metrics.load_available())
    assert (run / "comparison" / "index.html").is_file()
