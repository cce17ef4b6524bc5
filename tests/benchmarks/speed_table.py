"""Write the speed tables of the README in this folder from the result files: python -m tests.benchmarks.speed_table"""

import argparse
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import measure
from tts_kit.io import read_json, write_text

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
MISSING = "not measured"
MAX_LOSS_DIFFERENCE = 1e-5
RATIOS = ("1", "1/16")


@dataclass(frozen=True)
class Row:
    """A comparison and the device that it was measured on."""
    result: dict
    device: str

    def matches(self, **values) -> bool:
        """Return whether the row or its settings have these values."""
        return all(self.value(name) == value for name, value in values.items())

    def value(self, name: str):
        return self.result["settings"].get(name, self.result.get(name))


@dataclass(frozen=True)
class Goal:
    machine: str
    quantity: str
    goal: str
    measured: Callable[[Sequence[Row]], tuple[str, bool] | None]
    """Return the figures in the rows and whether they reach the goal, None where there are no figures."""


def read_rows(folder: Path = measure.RESULTS) -> list[Row]:
    """Return all comparisons below a folder of results in which the kit was measured."""
    rows = [Row(result, path.stem.rpartition("-")[2]) for path in sorted(Path(folder).rglob("*.json"))
            for result in measure.rows_of(read_json(path, "Measure it again."))]
    return [row for row in rows if "speed" in row.result["kit"]]


def growth_plots() -> list[Path]:
    """Return the plots that growth.py drew."""
    return sorted(measure.RESULTS.rglob("growth_*.png"))


def first_result(rows: Sequence[Row], **values) -> dict | None:
    """Return the result of the first row with these values."""
    return next((row.result for row in rows if row.matches(**values)), None)


def on_h200(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.device == "cuda" and "H200" in row.result["machine"]]


def on_cpu(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if row.device == "cpu"]


def training_goal(select: Callable[[Sequence[Row]], list[Row]], settings: Sequence[dict], limits: Sequence[float],
                  compare: Callable[[float, float], bool], figure: Callable[[dict], float | None], unit: str) -> Callable:
    """Return the `measured` of a goal with one figure of train_step, each compared with its limit, for several settings."""
    def measured(rows: Sequence[Row]) -> tuple[str, bool] | None:
        results = [first_result(select(rows), what="train_step", against="stock", **values) for values in settings]
        figures = [result and figure(result) for result in results]
        if all(value is None for value in figures):
            return None
        return (" / ".join(unit.format(value) for value in figures if value is not None),
                all(value is not None and compare(value, limit) for value, limit in zip(figures, limits)))

    return measured


def ratio(result: dict) -> float | None:
    return result["ratio"]


def kit_seconds(result: dict) -> float:
    return result["kit"]["seconds"]


def kit_gigabytes(result: dict) -> float | None:
    peak_bytes = result["kit"].get("peak_bytes")
    return None if peak_bytes is None else peak_bytes / 1e9


# clips of 10 s, where padding to 10 s costs the notebook's way least
SMALL = [{"shape": "small", "seconds": "10", "depth_frame_fraction": fraction} for fraction in RATIOS]
CSM = [{"shape": "csm-1b", "seconds": "10", "batch": 8, "depth_frame_fraction": fraction} for fraction in RATIOS]
CSM_BATCHES = [{**CSM[1], "batch": batch} for batch in (2, 8)]


def generation_result(rows: Sequence[Row], shape: str, batch: int) -> dict | None:
    return first_result(rows, what=f"generate batch {batch}", shape=shape, against="transformers")


def tiny_generation(rows: Sequence[Row]) -> tuple[str, bool] | None:
    result = generation_result(on_cpu(rows), "tiny", 1)
    if not result or result["ratio"] is None:
        return None
    rtf = result["kit"]["rtf"]
    return f"{result['ratio']:.1f}x, {rtf:.2f}", result["ratio"] >= 6 and rtf <= 0.3


def generation_on_h200(rows: Sequence[Row]) -> tuple[str, bool] | None:
    single, batched = (generation_result(on_h200(rows), "csm-1b", batch) for batch in (1, 32))
    if not single and not batched:
        return None
    words = [f"{single['kit']['rtf']:.3f}" if single else MISSING,
             f"{batched['kit']['audio_seconds_per_second']:.0f} s/s" if batched else MISSING]
    return " / ".join(words), bool(single and batched and single["kit"]["rtf"] <= 0.08
                                   and batched["kit"]["audio_seconds_per_second"] >= 150)


def first_audio_on_h200(rows: Sequence[Row]) -> tuple[str, bool] | None:
    result = generation_result(on_h200(rows), "csm-1b", 1)
    seconds = result and result["kit"]["first_audio_seconds"]
    return result and (f"{seconds * 1000:.0f} ms", seconds <= 0.15)


def equality(rows: Sequence[Row]) -> tuple[str, bool] | None:
    """Return what the benchmarks checked before timing; the gradients are checked by tests/test_model_loss.py."""
    differences = [row.value("losses_apart") for row in rows if row.value("losses_apart") is not None]
    codes = [row.value("greedy_codes") for row in rows if row.value("greedy_codes")]
    if not differences or not codes:
        return None
    equal = all(text.startswith("equal") for text in codes)
    return (f"losses within {max(differences):.0e}; codes {'equal' if equal else 'differ'}",
            equal and max(differences) <= MAX_LOSS_DIFFERENCE)


GOALS = (
    Goal("CPU, 2 cores, shape small", "training clips/s against stock, ratio 1 / 1/16", "4x / 12x",
         training_goal(on_cpu, SMALL, (4, 12), operator.ge, ratio, "{:.1f}x")),
    Goal("CPU, tiny-csm", "speaking against transformers' `generate`, real-time factor", "6x, 0.3", tiny_generation),
    Goal("H200, CSM-1B's shape, 8 x 10 s", "seconds of a step, ratio 1 / 1/16, LoRA r=32", "0.12 / 0.035",
         training_goal(on_h200, CSM, (0.12, 0.035), operator.le, kit_seconds, "{:.3f} s")),
    Goal("H200, the same", "against stock", "6x / 15x", training_goal(on_h200, CSM, (6, 15), operator.ge, ratio, "{:.1f}x")),
    Goal("H200, the same", "peak memory of 2 / 8 clips, ratio 1/16", "5 / 8 GB",
         training_goal(on_h200, CSM_BATCHES, (5, 8), operator.le, kit_gigabytes, "{:.1f} GB")),
    Goal("H200", "speaking, 1 clip / 32 at once: real-time factor / audio per second", "0.08 / 150 s/s", generation_on_h200),
    Goal("H200", "time to first audio", "150 ms", first_audio_on_h200),
    Goal("any", "losses and greedy codes are those of transformers", "1e-05, equal", equality),
)


def block(rows: Sequence[Row], plots: Sequence[Path] = ()) -> str:
    """Return the table of goals, a table of each kind of comparison, the machines and the plots."""
    goals, tables = table(("where", "what", "goal", "measured"), [goal_cells(goal, rows) for goal in GOALS]), []
    for title, benchmark in (("training, clips/s", "train_step"), ("speaking, frames/s", "generate"),
                             ("encoding, seconds of audio a second", "encode"),
                             ("serving, seconds of audio a second", "serve")):
        # rows of one machine and network together, small batches first
        comparisons = sorted((row for row in rows if row.result["what"].startswith(benchmark)), key=lambda row: (
            row.device, row.result["shape"], str(row.value("against")), row.value("batch") or 0))
        if comparisons:
            cells = [comparison_cells(row) for row in comparisons]
            tables.append(table((title, "settings", "kit", "other", "ratio"), cells))
    if tables:
        tables = ["<details><summary>Every comparison</summary>", *tables, "</details>"]
    machines = sorted({machine(row.result) for row in rows})
    pictures = [f"![How cost grows: {plot.stem.removeprefix('growth_').replace('_', ' on ')}]"
                f"({plot.relative_to(README.parent).as_posix()})" for plot in plots]
    return "\n\n".join([goals, *tables, *(f"Measured on {text}." for text in machines), *pictures])


def machine(result: dict) -> str:
    """Return the machine and the versions that influence speed most."""
    return f"{result['machine']}; torch {result['versions']['torch']}, transformers {result['versions']['transformers']}"


def goal_cells(goal: Goal, rows: Sequence[Row]) -> tuple[str, ...]:
    measured = goal.measured(rows)
    return (goal.machine, goal.quantity, goal.goal,
            f"{measured[0]}, {'reached' if measured[1] else 'missed'}" if measured else MISSING)


def comparison_cells(row: Row) -> tuple[str, ...]:
    result, hardware = row.result, row.result["machine"].split(", ")[-1] if row.device == "cuda" else "CPU"
    other = result["other"]
    return (f"{result['shape']}, {hardware}", settings_text(row), three_digits(result["kit"]["speed"]),
            three_digits(other["speed"]) if "speed" in other else other["not_measured"].replace("|", "/"),
            f"{result['ratio']:.1f}x" if result["ratio"] else "")


def three_digits(number: float) -> str:
    """Format three significant digits without an exponent."""
    return f"{float(f'{number:.3g}'):,g}"


def settings_text(row: Row) -> str:
    """Return the settings in which the rows of a table differ."""
    values = {name: row.value(name) for name in ("batch", "seconds", "depth_frame_fraction", "cache", "by")}
    values["dtype"] = row.result["what"].partition("train_step ")[2] or None
    words = {"batch": "batch {}", "seconds": "clips of {} s", "depth_frame_fraction": "ratio {}",
             "cache": "against the {} cache", "by": "against {}", "dtype": "both in {}"}
    if row.result["what"] == "encode":
        values["seconds"] = "-".join(f"{bound:g}" for bound in row.value("between_seconds"))
    return ", ".join(words[name].format(value) for name, value in values.items() if value not in (None, False))


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells))


def marked_block(text: str) -> str | None:
    """Return the text between the two marks, None where they are missing."""
    match = re.search(re.escape(BEGIN) + r"\n(.*?)\n" + re.escape(END), text, re.DOTALL)
    return match and match.group(1)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--show", type=Path, metavar="FOLDER", help="print the block of results in FOLDER, change nothing")
    options = parser.parse_args(arguments)
    if options.show:
        print(block(read_rows(options.show)))
        return
    text = README.read_text(encoding="utf-8")
    old, new = marked_block(text), block(read_rows(), growth_plots())
    if old is None:
        print(f"README.md has no {BEGIN} and {END} with a line between them; this is the block for it:\n\n{new}")
        return
    write_text(README, text.replace(f"{BEGIN}\n{old}\n{END}", f"{BEGIN}\n{new}\n{END}"))
    print("README.md: the speed table is up to date.")


if __name__ == "__main__":
    main()
