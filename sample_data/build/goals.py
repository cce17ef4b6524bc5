"""Check the goals of a small model: summarize each arm, and say which goals are reached and by what margin."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.evaluation import scoring
from tts_kit.evaluation.scoring import References
from tts_kit.evaluation.stats import Estimate


@dataclass(frozen=True)
class ClipGroup:
    """The scored clips of several arms, and the recordings that define the scale of SIM."""
    rows: list[dict]
    references: Mapping[str, References]  # voice -> metrics of its ground truth clips
    other_speakers: Mapping[str, Sequence[np.ndarray]]  # voice -> speaker embeddings of other speakers' clips

    def sim_range(self) -> tuple[float, float]:
        """Return the mean SIM of other speakers and of the voice itself, over the voices."""
        ranges = [scoring.similarity_range(self.references[name], self.other_speakers[name]) for name in self.references]
        return float(np.mean([lower for lower, _ in ranges])), float(np.mean([upper for _, upper in ranges]))


@dataclass(frozen=True)
class Goal:
    description: str
    arm: str
    metric: str
    limit: float
    is_maximum: bool = False  # whether the limit is an upper limit
    other_arm: str = ""  # arm to which the difference is limited, instead of the value itself
    whole_interval: bool = False  # whether the whole confidence interval must be inside the limit
    is_strict: bool = False  # whether a value equal to the limit misses the goal


UNSEEN = (
    Goal("ground truth: WER below 5 %", "ground_truth", "wer", 0.05, True, is_strict=True),
    Goal("codec: WER at most 8 %", "codec", "wer", 0.08, True),
    Goal("codec: SIM at least 0.84", "codec", "sim", 0.84),
    Goal("codec: MOS at least 2.0", "codec", "mos", 2.0),
    Goal("first codebook alone: WER at most 50 %", "first codebook", "wer", 0.50, True),
    Goal("clone: WER at most 15 %", "clone", "wer", 0.15, True),
    Goal("clone: SIM at least 0.80", "clone", "sim", 0.80),
    Goal("clone: EOS at least 97 %", "clone", "ended_with_eos", 0.97),
    Goal("clone: SIM significantly above base", "clone", "sim", 0.0, other_arm="base", whole_interval=True),
    Goal("generation: RTF at most 0.3", "clone", "rtf", 0.3, True),
)
OPEN = (Goal("open vocabulary, clone: WER at most 25 %", "clone", "wer", 0.25, True),)
FINETUNED = (
    Goal("finetuned: SIM significantly above base", "finetuned", "sim", 0.0, other_arm="base", whole_interval=True),
    Goal("finetuned: SIM significantly above clone", "finetuned", "sim", 0.0, other_arm="clone", whole_interval=True),
    Goal("finetuned: WER at most 3 points above clone", "finetuned", "wer", 0.03, True, other_arm="clone"),
    Goal("finetuned+clone: SIM at least that of clone", "finetuned+clone", "sim", 0.0, other_arm="clone"),
)


def summarize(group: ClipGroup) -> dict:
    """Return the metrics of each arm, with the range of SIM."""
    lower, upper = group.sim_range()
    summary = {"sim of other speakers": round(lower, 4), "sim of the voice itself": round(upper, 4),
               "sentences": len({row["sentence"] for row in group.rows if row["seed"] is not None}), "arms": {}}
    for arm, rows in scoring.group_by_arm(group.rows).items():
        values = {name: estimate_values(estimate) for name, estimate in scoring.aggregate(rows).items()}
        if "sim" in values:
            values["sim_norm"] = {
                name: round(scoring.normalized_similarity(value, lower, upper), 4) for name, value in values["sim"].items()
                if value is not None}
        if all("wall_seconds" in row for row in rows):
            rtf = sum(row["wall_seconds"] for row in rows) / max(sum(row["seconds"] for row in rows), 1e-9)
            values["rtf"] = {"value": round(rtf, 3)}
        summary["arms"][arm] = values | {"clips": len(rows), "failures": scoring.failures(rows)}
    return summary


def check(goals: Sequence[Goal], group: ClipGroup, summary: dict) -> list[dict]:
    """Return each goal with the measured value, whether it is reached, and the margin; goals without clips are left out."""
    rows, checked = scoring.group_by_arm(group.rows), []
    for goal in goals:
        if goal.arm not in rows or (goal.other_arm and goal.other_arm not in rows):
            continue
        if goal.other_arm:
            measured = estimate_values(scoring.differences(rows[goal.arm], rows[goal.other_arm])[goal.metric])
        else:
            measured = summary["arms"][goal.arm].get(goal.metric)
        if measured is not None:
            checked.append(_check_value(goal, measured))
    return checked


def estimate_values(estimate: Estimate) -> dict:
    """Return an estimate as a dictionary, without an interval if there are too few sentences for one."""
    bounds = {"low": estimate.low, "high": estimate.high} if np.isfinite(estimate.low) else {}
    return {name: round(value, 4) for name, value in {"value": estimate.value, **bounds}.items()}


def goal_table(checked: Sequence[dict]) -> list[list[str]]:
    """Return the goals as a table of text, headings first."""
    return [["goal", "measured", "", "margin"]] + [
        [goal["goal"], _format(goal["measured"], 3), "reached" if goal["reached"] else "missed", f"{goal['margin']:+.3f}"]
        for goal in checked]


def arm_table(summary: dict) -> list[list[str]]:
    """Return the metrics of the arms as a table of text, headings first."""
    headings = {name: scoring.COLUMNS[name].heading for name in ("wer", "sim", "sim_norm", "mos", "ended_with_eos")}
    headings["rtf"] = "RTF"
    table = [["arm", "clips", *headings.values()]]
    for arm, values in summary["arms"].items():
        table.append([arm, str(values["clips"]),
                      *(_format(values[name], 2) if name in values else "-" for name in headings)])
    return table


def _format(values: dict, interval_digits: int) -> str:
    """Return a value with its interval, if it has one, as text."""
    interval = (f" [{values['low']:.{interval_digits}f}, {values['high']:.{interval_digits}f}]" if "low" in values else "")
    return f"{values['value']:.3f}{interval}"


def _check_value(goal: Goal, measured: dict) -> dict:
    """Check one goal; the margin is negative if the value is outside the limit."""
    sign = -1 if goal.is_maximum else 1
    value = measured["value"]
    if goal.whole_interval:
        value = measured.get("high" if goal.is_maximum else "low", -sign * np.inf)
    distance = sign * (value - goal.limit)
    reached = distance > 0 if goal.whole_interval or goal.is_strict else distance >= 0
    return {"goal": goal.description, "measured": measured, "reached": bool(reached),
            "margin": round(sign * (measured["value"] - goal.limit), 4)}
