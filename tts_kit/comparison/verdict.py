"""The sentence at the end: is the fine-tune better than the base, than cloning, than both together; or is it a tie."""

import collections
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.evaluation.stats import Estimate

WER_MARGIN = 0.03
"""An arm that gets this many more words wrong, of all, has paid for its voice with its words."""
SIM_MARGIN = 0.02
"""A gap in similarity that one would like to see."""
ALPHA_LEVEL = 0.05
"""Chance below which luck is ruled out."""
NOISE = 0.7
"""Share of wrong words above which there is no speech to judge."""
COPIES = 0.1
"""Share of copied clips from which on an arm may have learnt by heart what it is praised for."""
PRIMARY_COMPARISONS = (("finetuned", "base"), ("finetuned", "clone"), ("finetuned+clone", "clone"))
NAMES = {"finetuned": "the fine-tuned model", "base": "the model as it was", "clone": "cloning from one reference clip",
         "finetuned+clone": "fine-tuning and the reference clip together"}
WINS, WINS_WORDS, TIES, LOSES, LOSES_WORDS = "wins", "wins words", "ties", "loses", "loses words"
TRADES, TRADES_VOICE = "trades", "trades voice"
SAID = {WINS: "{0} sounds more like the voice than {1}",
        WINS_WORDS: "{0} gets fewer words wrong than {1}, in a voice as near",
        TIES: "it is a tie: no difference can be told between {0} and {1}",
        LOSES: "{0} sounds less like the voice than {1}",
        LOSES_WORDS: "{0} gets more words wrong than {1}, in a voice no nearer",
        TRADES: "{0} sounds more like the voice than {1}, but gets more words wrong",
        TRADES_VOICE: "{0} sounds less like the voice than {1}, but gets fewer words wrong"}
SHORT = {WINS: "beats {}", WINS_WORDS: "reads better than {}", TIES: "ties with {}", LOSES: "loses to {}",
         LOSES_WORDS: "costs words against {}", TRADES: "is nearer to the voice than {} at the cost of words",
         TRADES_VOICE: "reads better than {} at the cost of the voice"}
SHORT_NAMES = {"finetuned": "fine-tuning", "base": "the model as it was", "clone": "cloning", "finetuned+clone": "doing both"}
UNMEASURED = (f"Whether fine-tuning helped was not measured: no judges listened. Install them with `make judges` (or: "
              f"{metrics.INSTALL}), and run the same command again without TTS_KIT_JUDGES=none; the clips are kept.")
TESTED = ("sim", "wer")
Comparisons = Sequence[tuple[str, str]]


@dataclass(frozen=True)
class Comparison:
    """How one arm fares against another."""
    one: str
    other: str
    kind: str
    """One of the kinds above; empty where it was not measured."""
    mine: dict[str, Estimate]
    theirs: dict[str, Estimate]
    differences: dict[str, Estimate]


def find(rows: Sequence[dict], asked: Comparisons = PRIMARY_COMPARISONS) -> list[Comparison]:
    """The answers to those questions whose two arms are there.

    A question is sure as a whole, voice and words together. The three that everybody asks stand for themselves; whatever
    else is compared has to be sure together, because among many arms one is the best by luck.
    """
    arms = scoring.group_by_arm(rows)
    pairs = [(one, other) for one, other in asked if {one, other} <= set(arms)]
    differences = [scoring.differences(arms[one], arms[other]) if _judged([*arms[one], *arms[other]]) else {}
                   for one, other in pairs]
    sure = _sure(pairs, differences)
    return [Comparison(one, other, _kind(found, each) if found else "", scoring.aggregate(arms[one]),
                    scoring.aggregate(arms[other]), found)
            for (one, other), found, each in zip(pairs, differences, sure)]


def _sure(pairs: Comparisons, differences: Sequence[dict[str, Estimate]]) -> list[dict[str, bool]]:
    """Of every question and measure, whether luck is ruled out."""
    families = {}
    for place, pair in enumerate(pairs):
        families.setdefault(pair if pair in PRIMARY_COMPARISONS else "others", []).append(place)
    sure = [{} for _ in pairs]
    for family in families.values():
        tests = [(place, name) for place in family for name in TESTED if name in differences[place]]
        chances = stats.holm([_chance(name, differences[place][name]) for place, name in tests])
        for (place, name), chance in zip(tests, chances):
            sure[place][name] = chance < ALPHA_LEVEL
    return sure


def verdict(rows: Sequence[dict], asked: Comparisons = PRIMARY_COMPARISONS) -> str:
    """What the scores say about fine-tuning and cloning, in plain English, with the evidence."""
    found = find(rows, asked)
    if not found:
        return "There is nothing to compare: a verdict wants the arm finetuned, and base or clone."
    takes = collections.Counter((row["arm"], row["sentence"]) for row in rows if row["seed"] is not None).values()
    sentences = len({row["sentence"] for row in rows if row["seed"] is not None})
    fewest = f"{min(takes)} to " if min(takes) < max(takes) else ""
    basis = f"Judged on {_several(sentences, 'sentence')} with {fewest}{_several(max(takes), 'take')} each{_power(found)}."
    return "\n".join([*map(answer, found), basis, *_settling(found), *_caution(rows, sentences)])


def headline(rows: Sequence[dict], asked: Comparisons = PRIMARY_COMPARISONS) -> str:
    """The verdict in one sentence."""
    said = {}
    for each in find(rows, asked):
        if each.kind:
            said.setdefault(each.one, []).append(SHORT[each.kind].format(SHORT_NAMES.get(each.other, each.other)))
    parts = [f"{SHORT_NAMES.get(one, one)} {' and '.join(kinds)}" for one, kinds in said.items()]
    for arm, mine in scoring.group_by_arm(rows).items():
        share = sum(bool(row.get("memorized")) for row in mine) / len(mine)
        if arm in said and share >= COPIES:
            parts.append(f"but {share:.0%} of what {SHORT_NAMES.get(arm, arm)} gives are training clips said again")
    return f"In short: {'; '.join(parts)}." if parts else ""


def compare(one: Sequence[dict], other: Sequence[dict]) -> str:
    """How `one` fares against `other`, as one of the kinds above; whatever is not sure is a tie."""
    rows = [row | {"arm": arm} for arm, of_arm in (("one", one), ("other", other)) for row in of_arm]
    return find(rows, [("one", "other")])[0].kind


def answer(found: Comparison) -> str:
    """One sentence for one question."""
    if not found.kind:
        return f"{found.one} against {found.other} was not measured."
    said = SAID[found.kind].format(NAMES.get(found.one, found.one), NAMES.get(found.other, found.other))
    parts = []
    if alike := found.differences.get("sim"):
        parts.append(f"similarity {found.mine['sim'].value:.2f} against {found.theirs['sim'].value:.2f}, "
                     f"{_range(alike, 1, 2)}")
    if wrong := found.differences.get("wer"):
        parts.append(f"wrong words {found.mine['wer'].value:.0%} against {found.theirs['wer'].value:.0%}, "
                     f"{_range(wrong, 100, 0, ' points')}{_doubt(found.kind, wrong)}")
    return f"{said[0].upper()}{said[1:]} ({'; '.join(parts)})."


def _judged(rows: Sequence[dict]) -> bool:
    return all(scoring.METRICS in row for row in rows)


def _chance(measure: str, found: Estimate) -> float:
    """How often luck alone makes such a difference; 1 for one that would not matter."""
    if measure == "sim" or found.value < 0:
        return found.chance()
    return found.chance(WER_MARGIN) if found.value > WER_MARGIN else 1.0


def _kind(found: dict[str, Estimate], sure: dict[str, bool]) -> str:
    lost = sure.get("wer", False) and found["wer"].value > 0
    if sure.get("sim") and found["sim"].value < 0:
        # seen from the other arm, whose voice is nearer, the same gap is a trade
        won = sure.get("wer", False) and found["wer"].value < -WER_MARGIN
        return TRADES_VOICE if won else LOSES
    if sure.get("sim"):
        return TRADES if lost else WINS
    return LOSES_WORDS if lost else WINS_WORDS if sure.get("wer") else TIES


def _together(found: Sequence[Comparison], one: Comparison) -> int:
    """How many tests have to be sure together with this question's."""
    others = sum((each.one, each.other) not in PRIMARY_COMPARISONS for each in found)
    return len(TESTED) * (1 if (one.one, one.other) in PRIMARY_COMPARISONS else others)


def _power(found: Sequence[Comparison]) -> str:
    """What gap so many sentences can show at all: the widest over the questions."""
    widest = {name: max((each.differences[name].findable(_together(found, each)) for each in found
                         if name in each.differences), default=np.inf) for name in TESTED}
    shown = [f"{widest[name] * scale:.{digits}f} {unit}" for name, scale, digits, unit in
             (("sim", 1, 2, "in similarity"), ("wer", 100, 0, "points of wrong words"))
             if np.isfinite(widest[name])]
    return f": four times of five they can show a gap of {' and of '.join(shown)}" if shown else ""


def _settling(found: Sequence[Comparison]) -> list[str]:
    """What it would take to tell what could not be told."""
    ties = [each for each in found if each.kind == TIES]
    gaps = {"sim": SIM_MARGIN, "wer": WER_MARGIN}
    most = [max((each.differences[name].wanted(gap, _together(found, each)) or 0 for each in ties
                 if name in each.differences), default=0) for name, gap in gaps.items()]
    if not any(most):
        return []
    few = [max(each, stats.MIN_SENTENCES) for each in most]
    return [f"To settle {'the tie' if len(ties) == 1 else 'the ties'}: about {few[0]} sentences show a gap of {SIM_MARGIN} in "
            f"similarity, about {few[1]} one of {100 * WER_MARGIN:.0f} points of wrong words (--sentences); or let people "
            "listen to the blind test."]


def _range(found: Estimate, scale: float, digits: int, unit: str = "") -> str:
    # adding 0 turns a rounded -0 into 0
    value, low, high = (f"{round(each * scale, digits) + 0.0:+.{digits}f}" if np.isfinite(each) else ""
                        for each in (found.value, found.low, found.high))
    return f"difference {value}{unit}" + (f", between {low} and {high}" if low else "")


def _doubt(kind: str, wrong: Estimate) -> str:
    """Where more wrong words can neither be said nor be ruled out, that is said."""
    if kind in (LOSES_WORDS, TRADES) or wrong.high <= WER_MARGIN:
        return ""
    return f": whether more than {100 * WER_MARGIN:.0f} points are lost these sentences cannot tell for sure"


def _caution(rows: Sequence[dict], sentences: int) -> list[str]:
    said = []
    if sentences < stats.MIN_SENTENCES:
        said.append(f"Fewer than {stats.MIN_SENTENCES} sentences show nothing about others: compare more, with --sentences.")
    spoken = [row for row in rows if row["seed"] is not None and scoring.METRICS in row]
    wrong = scoring.aggregate(spoken).get("wer") if spoken else None
    if wrong is not None and wrong.value > NOISE:
        said.append("Most words could not be understood in any arm: of noise, no voice can be told.")
    memorized = [row["file"] for row in rows if row.get("memorized")]
    for found, what in ((scoring.failures(rows), "without anything to hear, counted as all wrong"),
                        (scoring.missing_scores(rows), "left out of a figure"),
                        (memorized, "nearly a training clip, and no new speech")):
        if found:
            said.append(f"{_several(len(found), 'clip')} {what}: {', '.join(found[:3])}{' and more' * (len(found) > 3)}.")
    return said


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
