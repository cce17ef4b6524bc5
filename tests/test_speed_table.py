"""README's speed table holds what was measured and nothing else."""

import copy
import re

import pytest

from tests.benchmarks import measure, speed_table
from tts_kit.io import write_json

H200, T4 = "AMD EPYC, 16 cores, 128 GB, NVIDIA H200", "Intel Xeon, 2 cores, 13 GB, Tesla T4"


def made(what: str, shape: str, against: str, settings: dict, kit: dict, ratio: float, machine: str = H200) -> dict:
    return {"what": what, "shape": shape, "against": against, "settings": settings, "kit": {"speed": 10 * ratio, **kit},
            "other": {"speed": 10.0}, "ratio": ratio, "machine": machine, "versions": {"torch": "2", "transformers": "5"},
            "command": "python -m tests.benchmarks.x"}


def trained(ratio: str, seconds: float, faster: float, batch: int = 8, bytes: float = 7e9, **more) -> dict:
    settings = {"seconds": "10", "batch": batch, "depth_frame_fraction": ratio, "losses_apart": 4e-7}
    return made("train_step", "csm-1b", "stock", settings, {"seconds": seconds, "peak_bytes": bytes}, faster, **more)


def spoken(batch: int, rtf: float, first: float, **more) -> dict:
    return made(f"generate batch {batch}", "csm-1b", "transformers", {"batch": batch, "cache": "dynamic",
                                                                       "greedy_codes": "equal: all"},
                {"rtf": rtf, "audio_seconds_per_second": batch / rtf, "first_audio_seconds": first}, 5.0, **more)


def measured(folder) -> dict[tuple[str, str], str]:
    """What the table says of each goal."""
    lines = speed_table.block(speed_table.rows(folder)).partition("\n\n")[0].splitlines()[2:]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {(where, re.split("[,:]", what)[0]): said for where, what, _, said in cells}


def report(folder, rows: list[dict], device: str = "cuda") -> None:
    for number, row in enumerate(rows):
        write_json(folder / str(number) / f"{row['what']}-{row['shape']}-{row['against']}-{device}.json", row)


def test_readme_says_what_the_committed_results_say():
    """Mistake: a speed in README that no file holds, or a new result that README does not tell."""
    readme = speed_table.README.read_text(encoding="utf-8")
    written = speed_table.between(readme)
    assert written is not None, f"README.md lacks {speed_table.BEGIN} and {speed_table.END} around a line of their own"
    wanted = speed_table.block(speed_table.rows(), speed_table.growths())
    assert written == wanted, "run python -m tests.benchmarks.speed_table"


def test_without_results_nothing_is_measured(tmp_path):
    """Mistake: a goal without a file is shown as reached, or ends the script."""
    write_json(tmp_path / "judges.json", {"what": "the judges' own checks"})
    said = measured(tmp_path)
    assert len(said) == len(speed_table.GOALS) and set(said.values()) == {"not measured"}
    assert speed_table.block(speed_table.rows(tmp_path)).count("\n\n") == 0


def test_goals_are_reached_or_missed_by_their_figures(tmp_path):
    """Mistake: a goal missed by a little is called reached, or the figures of one goal stand under another."""
    rows = [trained("1", 0.12, 6.0), trained("1/16", 0.036, 15.0), trained("1/16", 0.01, 9.0, batch=2, bytes=4.9e9),
            spoken(1, 0.08, 0.151), spoken(32, 0.2, 0.3)]
    report(tmp_path, rows)
    said = measured(tmp_path)
    assert said["H200, CSM-1B's shape, 8 x 10 s", "seconds of a step"] == "0.120 s / 0.036 s, missed"
    assert said["H200, the same", "against stock"] == "6.0x / 15.0x, reached"
    assert said["H200, the same", "peak memory of 2 / 8 clips"] == "4.9 GB / 7.0 GB, reached"
    assert said["H200", "speaking"] == "0.080 / 160 s/s, reached"
    assert said["H200", "time to first audio"] == "151 ms, missed"
    assert said["any", "losses and greedy codes are those of transformers"] == "losses within 4e-07; codes equal, reached"
    assert said["CPU, tiny-csm", "speaking against transformers' `generate`"] == "not measured"


def test_half_of_a_goal_is_not_the_goal(tmp_path):
    """Mistake: of two ratios one was measured, and the goal for both is reached."""
    report(tmp_path, [trained("1", 0.05, 20.0)])
    assert measured(tmp_path)["H200, the same", "against stock"] == "20.0x, missed"


def test_another_card_is_no_h200(tmp_path):
    """Mistake: figures of whatever card was at hand stand in the rows of the H200."""
    report(tmp_path, [trained("1", 0.05, 20.0, machine=T4), spoken(1, 0.05, 0.1, machine=T4)])
    said = measured(tmp_path)
    assert {text for (where, _), text in said.items() if where.startswith("H200")} == {"not measured"}
    assert "csm-1b, Tesla T4" in speed_table.block(speed_table.rows(tmp_path))


def test_a_side_that_could_not_run_is_named(tmp_path):
    """Mistake: a row without a rival is left out, or shown with a ratio."""
    row = copy.deepcopy(spoken(1, 0.05, 0.1))
    row |= {"against": "transformers static", "ratio": None, "other": measure.not_measured("not run: RuntimeError: graph")}
    row["settings"]["cache"] = "static"
    report(tmp_path, [row])
    assert "| not run: RuntimeError: graph |  |" in speed_table.block(speed_table.rows(tmp_path))


@pytest.mark.parametrize("text", ["no marks", "<!-- speed -->\nno end"])
def test_a_readme_without_marks_is_left_alone(text, tmp_path, monkeypatch, capsys):
    """Mistake: README is emptied because its marks were moved."""
    readme = tmp_path / "README.md"
    readme.write_text(text, encoding="utf-8")
    monkeypatch.setattr(speed_table, "README", readme)
    monkeypatch.setattr(speed_table, "growths", list)
    speed_table.main([])
    assert readme.read_text(encoding="utf-8") == text and "README.md has no <!-- speed -->" in capsys.readouterr().out
