"""The speed tables of README.md here, written from the result files: python -m tests.benchmarks.speed_table"""

import argparse
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks import measure
from tts_kit.io import read_json, write_text

README = Path(__file__).parent / "README.md"
BEGIN, END = "<!-- speed -->", "<!-- /speed -->"
MISSING = "not measured"
EXACT = 1e-5
"""How far losses may be apart."""


@dataclass(frozen=True)
class Row:
    """A comparison and where it was made."""
    found: dict
    device: str

    def fits(self, **wanted) -> bool:
        """Whether the row has these values, its own or its settings'."""
        return all(self.value(name) == value for name, value in wanted.items())

    def value(self, name: str):
        return self.found["settings"].get(name, self.found.get(name))


@dataclass(frozen=True)
class Goal:
    where: str
    what: str
    wanted: str
    measured: Callable[[Sequence[Row]], tuple[str, bool] | None]
    """What the rows say and whether that is enough, None where they say nothing."""


def rows(folder: Path = measure.RESULTS) -> list[Row]:
    """All comparisons below a folder of results that were really made."""
    files = sorted(Path(folder).rglob("*.json"))
    found = [Row(row, path.stem.rpartition("-")[2]) for path in files
             for row in measure.rows_of(read_json(path, "Measure it again."))]
    return [row for row in found if "speed" in row.found["kit"]]


def growths(folder: Path = measure.RESULTS) -> list[Path]:
    """Pictures of how cost grows."""
    return sorted(Path(folder).rglob("growth_*.png"))


def one(found: Sequence[Row], **wanted) -> dict | None:
    """The first row that fits."""
    return next((row.found for row in found if row.fits(**wanted)), None)


def on_h200(found: Sequence[Row]) -> list[Row]:
    return [row for row in found if row.device == "cuda" and "H200" in row.found["machine"]]


def on_cpu(found: Sequence[Row]) -> list[Row]:
    return [row for row in found if row.device == "cpu"]


def trained(found: Sequence[Row], value: Callable[[dict], float | None], wanted: Sequence[tuple[str, dict]],
            enough: Callable[[int, float], bool], told: str) -> tuple[str, bool] | None:
    """One figure for each of several training rows, with the name that says which is which."""
    figures = [(name, value(row)) for name, settings in wanted
               if (row := one(found, what="train_step", against="stock", **settings)) and value(row) is not None]
    if not figures:
        return None
    words = " / ".join(told.format(figure) + (f" ({name})" if name else "") for name, figure in figures)
    reached = len(figures) == len(wanted) and all(enough(place, figure) for place, (_, figure) in enumerate(figures))
    return words, reached


def training_on_cpu(found: Sequence[Row]) -> tuple[str, bool] | None:
    """Clips of 10 s, where the notebook's padding to 10 s costs it least."""
    wanted = [("", {"shape": "small", "seconds": "10", "depth_frame_fraction": ratio}) for ratio in ("1", "1/16")]
    return trained(on_cpu(found), lambda row: row["ratio"], wanted, lambda place, x: x >= (4, 12)[place], "{:.1f}x")


def steps_on_h200(found: Sequence[Row]) -> tuple[str, bool] | None:
    wanted = [("", big_batch(ratio)) for ratio in ("1", "1/16")]
    return trained(on_h200(found), lambda row: row["kit"]["seconds"], wanted, lambda place, x: x <= (0.12, 0.035)[place],
                   "{:.3f} s")


def ratios_on_h200(found: Sequence[Row]) -> tuple[str, bool] | None:
    wanted = [("", big_batch(ratio)) for ratio in ("1", "1/16")]
    return trained(on_h200(found), lambda row: row["ratio"], wanted, lambda place, x: x >= (6, 15)[place], "{:.1f}x")


def memory_on_h200(found: Sequence[Row]) -> tuple[str, bool] | None:
    wanted = [("", big_batch("1/16", batch)) for batch in (2, 8)]
    return trained(on_h200(found), lambda row: gigabytes(row["kit"]), wanted, lambda place, x: x <= (5, 8)[place],
                   "{:.1f} GB")


def big_batch(ratio: str, batch: int = 8) -> dict:
    return {"shape": "csm-1b", "seconds": "10", "batch": batch, "depth_frame_fraction": ratio}


def gigabytes(side: dict) -> float | None:
    return None if side.get("peak_bytes") is None else side["peak_bytes"] / 1e9


def spoken(found: Sequence[Row], shape: str, batch: int) -> dict | None:
    return one(found, what=f"generate batch {batch}", shape=shape, against="transformers")


def tiny_speech(found: Sequence[Row]) -> tuple[str, bool] | None:
    row = spoken(on_cpu(found), "tiny", 1)
    if not row or row["ratio"] is None:
        return None
    return f"{row['ratio']:.1f}x, {row['kit']['rtf']:.2f}", row["ratio"] >= 6 and row["kit"]["rtf"] <= 0.3


def speech_on_h200(found: Sequence[Row]) -> tuple[str, bool] | None:
    alone, many = (spoken(on_h200(found), "csm-1b", batch) for batch in (1, 32))
    if not alone and not many:
        return None
    words = [f"{alone['kit']['rtf']:.3f}" if alone else MISSING,
             f"{many['kit']['audio_seconds_per_second']:.0f} s/s" if many else MISSING]
    return " / ".join(words), bool(alone and many and alone["kit"]["rtf"] <= 0.08
                                   and many["kit"]["audio_seconds_per_second"] >= 150)


def first_audio_on_h200(found: Sequence[Row]) -> tuple[str, bool] | None:
    row = spoken(on_h200(found), "csm-1b", 1)
    return row and (f"{row['kit']['first_audio_seconds'] * 1000:.0f} ms", row["kit"]["first_audio_seconds"] <= 0.15)


def sameness(found: Sequence[Row]) -> tuple[str, bool] | None:
    """What the benchmarks looked at before they timed anything; the gradients are held by tests/test_model_loss.py."""
    apart = [row.value("losses_apart") for row in found if row.value("losses_apart") is not None]
    codes = [row.value("greedy_codes") for row in found if row.value("greedy_codes")]
    if not apart or not codes:
        return None
    same = all(each.startswith("equal") for each in codes)
    return f"losses within {max(apart):.0e}; codes {'equal' if same else 'differ'}", same and max(apart) <= EXACT


GOALS = (
    Goal("CPU, 2 cores, shape small", "training clips/s against stock, ratio 1 / 1/16", "4x / 12x", training_on_cpu),
    Goal("CPU, tiny-csm", "speaking against transformers' `generate`, real-time factor", "6x, 0.3", tiny_speech),
    Goal("H200, CSM-1B's shape, 8 x 10 s", "seconds of a step, ratio 1 / 1/16, LoRA r=32", "0.12 / 0.035", steps_on_h200),
    Goal("H200, the same", "against stock", "6x / 15x", ratios_on_h200),
    Goal("H200, the same", "peak memory of 2 / 8 clips, ratio 1/16", "5 / 8 GB", memory_on_h200),
    Goal("H200", "speaking, 1 clip / 32 at once: real-time factor / audio per second", "0.08 / 150 s/s", speech_on_h200),
    Goal("H200", "time to first audio", "150 ms", first_audio_on_h200),
    Goal("any", "losses and greedy codes are those of transformers", "1e-05, equal", sameness),
)


def block(found: Sequence[Row], pictures: Sequence[Path] = ()) -> str:
    """The table of goals, a table of each kind of comparison there is, the machines and the pictures."""
    goals, parts = table(("where", "what", "goal", "measured"), [goal_cells(goal, found) for goal in GOALS]), []
    for title, kinds in (("training, clips/s", "train_step"), ("speaking, frames/s", "generate"),
                         ("encoding, seconds of audio a second", "encode")):
        of_kind = sorted((row for row in found if row.found["what"].startswith(kinds)), key=place)
        if of_kind:
            parts.append(table((title, "settings", "kit", "other", "ratio"), [ratio_cells(row) for row in of_kind]))
    if parts:
        parts = ["<details><summary>Every comparison</summary>", *parts, "</details>"]
    parts += [f"Measured on {line}." for line in sorted({machine(row.found) for row in found})]
    parts += [f"![How cost grows: {picture.stem.removeprefix('growth_').replace('_', ' on ')}]"
              f"({picture.relative_to(README.parent).as_posix()})" for picture in pictures]
    return "\n\n".join([goals, *parts])


def place(row: Row) -> tuple:
    """Rows of a machine and network together, small batches first."""
    return row.device, row.found["shape"], str(row.value("against")), row.value("batch") or 0


def machine(row: dict) -> str:
    """The machine and what can change a speed most."""
    return f"{row['machine']}; torch {row['versions']['torch']}, transformers {row['versions']['transformers']}"


def goal_cells(goal: Goal, found: Sequence[Row]) -> tuple[str, ...]:
    said = goal.measured(found)
    return goal.where, goal.what, goal.wanted, f"{said[0]}, {'reached' if said[1] else 'missed'}" if said else MISSING


def ratio_cells(row: Row) -> tuple[str, ...]:
    found, card = row.found, row.found["machine"].split(", ")[-1] if row.device == "cuda" else "CPU"
    other = found["other"]
    return (f"{found['shape']}, {card}", settings_of(row), short(found["kit"]["speed"]),
            short(other["speed"]) if "speed" in other else other["not_measured"].replace("|", "/"),
            f"{found['ratio']:.1f}x" if found["ratio"] else "")


def short(number: float) -> str:
    """Three digits that count, and no powers of ten."""
    return f"{float(f'{number:.3g}'):,g}"


def settings_of(row: Row) -> str:
    """What tells a row from its neighbours."""
    told = {name: row.value(name) for name in ("batch", "seconds", "depth_frame_fraction", "cache", "by")}
    told["dtype"] = row.found["what"].partition("train_step ")[2] or None
    words = {"batch": "batch {}", "seconds": "clips of {} s", "depth_frame_fraction": "ratio {}",
             "cache": "against the {} cache",
             "by": "against {}", "dtype": "both in {}"}
    if row.found["what"] == "encode":
        told["seconds"] = "-".join(f"{each:g}" for each in row.value("between_seconds"))
    return ", ".join(words[name].format(value) for name, value in told.items() if value not in (None, False))


def table(head: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *cells))


def between(text: str) -> str | None:
    """What stands between the marks, None where there are none."""
    inside = re.search(re.escape(BEGIN) + r"\n(.*?)\n" + re.escape(END), text, re.DOTALL)
    return inside and inside.group(1)


def main(told: Sequence[str] | None = None) -> None:
    made = argparse.ArgumentParser(description=__doc__)
    made.add_argument("--show", type=Path, metavar="FOLDER", help="print the block for results elsewhere, change nothing")
    options = made.parse_args(told)
    if options.show:
        print(block(rows(options.show)))
        return
    text = README.read_text(encoding="utf-8")
    old, new = between(text), block(rows(), growths())
    if old is None:
        print(f"README.md has no {BEGIN} and {END} with a line between them; this would stand there:\n\n{new}")
        return
    write_text(README, text.replace(f"{BEGIN}\n{old}\n{END}", f"{BEGIN}\n{new}\n{END}"))
    print("README.md: the speed table is as measured.")


if __name__ == "__main__":
    main()
