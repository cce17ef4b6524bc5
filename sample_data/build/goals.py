"""What a small model shall reach, and what it did: figures of each arm, goals reached and missed, and by how much."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.evaluation import scoring
from tts_kit.evaluation.scoring import References
from tts_kit.evaluation.stats import Estimate


@dataclass(frozen=True)
class Group:
    """One question's clips: rows of several arms, and what similarity means for them."""
    rows: list[dict]
    real: Mapping[str, References]
    """Voice -> its real clips."""
    strangers: Mapping[str, Sequence[np.ndarray]]
    """Voice -> real clips of others."""

    @property
    def floor(self) -> float:
        return float(np.mean([scoring.similarity_range(self.real[name], self.strangers[name])[0] for name in self.real]))

    @property
    def ceiling(self) -> float:
        return float(np.mean([scoring.similarity_range(self.real[name], self.strangers[name])[1] for name in self.real]))


@dataclass(frozen=True)
class Goal:
    what: str
    arm: str
    measure: str
    limit: float
    is_most: bool = False
    """Whether the limit is the most allowed, rather than the least."""
    other: str = ""
    """The arm that the figure is a difference to."""
    is_sure: bool = False
    """Whether the whole interval has to be within the limit."""
    is_strict: bool = False
    """Whether the limit itself misses."""


UNSEEN = (
    Goal("ground truth: WER below 5 %", "ground_truth", "wer", 0.05, True, is_strict=True),
    Goal("codec: WER at most 10 %", "codec", "wer", 0.10, True),
    Goal("codec: SIM norm. at least 0.7", "codec", "sim_norm", 0.7),
    Goal("clone: WER at most 20 %", "clone", "wer", 0.20, True),
    Goal("clone: EOS at least 97 %", "clone", "ended_with_eos", 0.97),
    Goal("clone: SIM significantly above base", "clone", "sim", 0.0, other="base", is_sure=True),
    Goal("generation: faster than real time", "clone", "seconds a second", 1.0, True, is_strict=True),
)
TUNED = (
    Goal("finetuned: SIM significantly above base", "finetuned", "sim", 0.0, other="base", is_sure=True),
    Goal("finetuned: WER at most 3 points above base", "finetuned", "wer", 0.03, True, other="base"),
    Goal("finetuned+clone: SIM at least that of clone", "finetuned+clone", "sim", 0.0, other="clone"),
)


def results(group: Group) -> dict:
    """Arm -> its figures, with floor and ceiling of similarity and the differences that goals ask for."""
    floor, ceiling = group.floor, group.ceiling
    found = {"sim of other speakers": round(floor, 4), "sim of the voice itself": round(ceiling, 4),
             "sentences": len({row["sentence"] for row in group.rows if row["seed"] is not None}), "arms": {}}
    for arm, rows in scoring.group_by_arm(group.rows).items():
        known = {name: written(each) for name, each in scoring.aggregate(rows).items()}
        if "sim" in known:
            known["sim_norm"] = {
                name: round(scoring.normalized_similarity(value, floor, ceiling), 4) for name, value in known["sim"].items()
                if value is not None}
        if all("wall_seconds" in row for row in rows):
            spent = sum(row["wall_seconds"] for row in rows) / max(sum(row["seconds"] for row in rows), 1e-9)
            known["seconds a second"] = {"value": round(spent, 3)}
        found["arms"][arm] = known | {"clips": len(rows), "failures": scoring.failures(rows)}
    return found


def judge(goals: Sequence[Goal], group: Group, found: dict) -> list[dict]:
    """Each goal with what was seen; reached or missed, and by how much. Goals whose arms were not made are left out."""
    rows, judged = scoring.group_by_arm(group.rows), []
    for goal in goals:
        if goal.arm not in rows or (goal.other and goal.other not in rows):
            continue
        if goal.other:
            seen = written(scoring.differences(rows[goal.arm], rows[goal.other])[goal.measure])
        else:
            seen = found["arms"][goal.arm].get(goal.measure)
        if seen is not None:
            judged.append(_judged(goal, seen))
    return judged


def written(estimate: Estimate) -> dict:
    """An estimate as results keep it; no interval where too few sentences were compared."""
    bounds = {"low": estimate.low, "high": estimate.high} if np.isfinite(estimate.low) else {}
    return {name: round(value, 4) for name, value in {"value": estimate.value, **bounds}.items()}


def lines(judged: Sequence[dict]) -> list[list[str]]:
    """The goals as a table of text."""
    return [["goal", "seen", "", "by"]] + [
        [each["goal"], f"{each['seen']['value']:.3f}" + (f" [{each['seen']['low']:.3f}, {each['seen']['high']:.3f}]"
                                                         if "low" in each["seen"] else ""),
         "reached" if each["reached"] else "missed", f"{each['by']:+.3f}"] for each in judged]


def arm_lines(found: dict) -> list[list[str]]:
    """The figures of the arms as a table of text, with intervals."""
    names = ("wer", "sim", "sim_norm", "mos", "ended_with_eos", "seconds a second")
    listed = [["arm", "clips", *(scoring.COLUMNS[name].heading if name in scoring.COLUMNS else name for name in names)]]
    for arm, known in found["arms"].items():
        listed.append([arm, str(known["clips"]), *(_cell(known.get(name)) for name in names)])
    return listed


def _cell(seen: dict | None) -> str:
    if seen is None:
        return "-"
    return f"{seen['value']:.3f}" + (f" [{seen['low']:.2f}, {seen['high']:.2f}]" if "low" in seen else "")


def _judged(goal: Goal, seen: dict) -> dict:
    """`by` is how far inside the limit the figure lies, negative outside."""
    sign = -1 if goal.is_most else 1
    value = seen.get("high" if goal.is_most else "low", -sign * np.inf) if goal.is_sure else seen["value"]
    by = sign * (value - goal.limit)
    reached = by > 0 if goal.is_sure or goal.is_strict else by >= 0
    return {"goal": goal.what, "seen": seen, "reached": bool(reached), "by": round(sign * (seen["value"] - goal.limit), 4)}
