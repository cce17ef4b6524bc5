"""The speed table of the benchmarks' README contains the measured figures and nothing else."""

import copy
import re

import pytest

from tests.benchmarks import measure, speed_table
from tts_kit.io import write_json

H200, T4 = "AMD EPYC, 16 cores, 128 GB, NVIDIA H200", "Intel Xeon, 2 cores, 13 GB, Tesla T4"


def result(benchmark: str, shape: str, against: str, settings: dict, kit: dict, ratio: float, machine: str = H200) -> dict:
    return {"what": benchmark, "shape": shape, "against": against, "settings": settings, "kit": {"speed": 10 * ratio, **kit},
            "other": {"speed": 10.0}, "ratio": ratio, "machine": machine, "versions": {"torch": "2", "transformers": "5"},
            "command": "python -m tests.benchmarks.x"}


def train_step_result(ratio: str, seconds: float, speedup: float, batch: int = 8, bytes: float = 7e9, **overrides) -> dict:
    settings = {"seconds": "10", "batch": batch, "depth_frame_fraction": ratio, "losses_apart": 4e-7}
    return result("train_step", "csm-1b", "stock", settings, {"seconds": seconds, "peak_bytes": bytes}, speedup, **overrides)


def generation_result(batch: int, rtf: float, first_audio: float, **overrides) -> dict:
    return result(f"generate batch {batch}", "csm-1b", "transformers", {"batch": batch, "cache": "dynamic",
                                                                       "greedy_codes": "equal: all"},
                {"rtf": rtf, "audio_seconds_per_second": batch / rtf, "first_audio_seconds": first_audio}, 5.0, **overrides)


def goal_texts(folder) -> dict[tuple[str, str], str]:
    """Return the text that the table has for each goal."""
    lines = speed_table.block(speed_table.read_rows(folder)).partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(machine, re.split("[,:]", quantity)[0]): text for machine, quantity, _, text in cells}


def write_results(folder, rows: list[dict], device: str = "cuda") -> None:
    for index, row in enumerate(rows):
        write_json(folder / str(index) / f"{row['what']}-{row['shape']}-{row['against']}-{device}.json", row)


def test_the_readme_matches_the_committed_results():
    """Mistake: a speed in the README that no result file has, or a new result that is missing in the README."""
    readme = speed_table.README.read_text(encoding="utf-8")
    block = speed_table.marked_block(readme)
    assert block is not None, f"README.md lacks {speed_table.BEGIN} and {speed_table.END} around a line of their own"
    expected = speed_table.block(speed_table.read_rows(), speed_table.growth_plots())
    assert block == expected, "run python -m tests.benchmarks.speed_table"


def test_without_results_nothing_is_measured(tmp_path):
    """Mistake: a goal without a result file is shown as reached, or ends the script."""
    write_json(tmp_path / "metrics.json", {"what": "checks of the metric models"})
    texts = goal_texts(tmp_path)
    assert len(texts) == len(speed_table.GOALS) and set(texts.values()) == {"not measured"}
    assert speed_table.block(speed_table.read_rows(tmp_path)).count("\n\n") == 0


def test_goals_are_reached_or_missed_according_to_their_figures(tmp_path):
    """Mistake: a goal that is missed by a little counts as reached, or a goal shows the figures of another."""
    rows = [train_step_result("1", 0.12, 6.0), train_step_result("1/16", 0.036, 15.0),
            train_step_result("1/16", 0.01, 9.0, batch=2, bytes=4.9e9),
            generation_result(1, 0.08, 0.151), generation_result(32, 0.2, 0.3)]
    write_results(tmp_path, rows)
    texts = goal_texts(tmp_path)
    assert texts["H200, CSM-1B's shape, 8 x 10 s", "seconds of a step"] == "0.120 s / 0.036 s, missed"
    assert texts["H200, the same", "against stock"] == "6.0x / 15.0x, reached"
    assert texts["H200, the same", "peak memory of 2 / 8 clips"] == "4.9 GB / 7.0 GB, reached"
    assert texts["H200", "speaking"] == "0.080 / 160 s/s, reached"
    assert texts["H200", "time to first audio"] == "151 ms, missed"
    assert texts["any", "losses and greedy codes are those of transformers"] == "losses within 4e-07; codes equal, reached"
    assert texts["CPU, tiny-csm", "speaking against transformers' `generate`"] == "not measured"


def test_a_partly_measured_goal_is_missed(tmp_path):
    """Mistake: only one of two ratios was measured, and the goal for both counts as reached."""
    write_results(tmp_path, [train_step_result("1", 0.05, 20.0)])
    assert goal_texts(tmp_path)["H200, the same", "against stock"] == "20.0x, missed"


def test_results_of_another_gpu_are_not_those_of_the_h200(tmp_path):
    """Mistake: figures of another GPU are shown in the rows of the H200."""
    write_results(tmp_path, [train_step_result("1", 0.05, 20.0, machine=T4), generation_result(1, 0.05, 0.1, machine=T4)])
    texts = goal_texts(tmp_path)
    assert {text for (goal_machine, _), text in texts.items() if goal_machine.startswith("H200")} == {"not measured"}
    assert "csm-1b, Tesla T4" in speed_table.block(speed_table.read_rows(tmp_path))


def test_a_side_that_could_not_run_is_listed(tmp_path):
    """Mistake: a row without a measured other side is left out, or shown with a ratio."""
    row = copy.deepcopy(generation_result(1, 0.05, 0.1))
    row |= {"against": "transformers static", "ratio": None, "other": measure.not_measured("not run: RuntimeError: graph")}
    row["settings"]["cache"] = "static"
    write_results(tmp_path, [row])
    assert "| not run: RuntimeError: graph |  |" in speed_table.block(speed_table.read_rows(tmp_path))


@pytest.mark.parametrize("text", ["no marks", "<!-- speed -->\nno end"])
def test_a_readme_without_marks_is_not_changed(text, tmp_path, monkeypatch, capsys):
    """Mistake: the README is emptied because its marks are missing."""
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    monkeypatch.setattr(speed_table, "README", readme)
    monkeypatch.setattr(speed_table, "growth_plots", list)
    speed_table.main([])
    assert readme.read_text(encoding="utf-8") == text and "README.md has no <!-- speed -->" in capsys.readouterr().out
