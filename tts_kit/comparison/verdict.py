"""The sentence at the end: is the fine-tune better than the base, than cloning, than both together; or is it a tie."""

from collections.abc import Sequence

import numpy as np

from tts_kit.judging import intervals, judges, scores
from tts_kit.judging.intervals import Estimate

WORSE_WORDS = 0.03
"""An arm that gets this many more words wrong, of all, has paid for its voice with its words."""
NOISE = 0.7
"""Share of wrong words above which there is no speech to judge."""
QUESTIONS = (("tuned", "base"), ("tuned", "clone"), ("tuned+clone", "clone"))
NAMES = {"tuned": "the fine-tuned model", "base": "the model as it was", "clone": "cloning from one reference clip",
         "tuned+clone": "fine-tuning and the reference clip together"}
WINS, WINS_WORDS, TIES, LOSES, LOSES_WORDS, TRADES = "wins", "wins words", "ties", "loses", "loses words", "trades"
SAID = {WINS: "{0} sounds more like the voice than {1}",
        WINS_WORDS: "{0} gets fewer words wrong than {1}, in a voice as near",
        TIES: "it is a tie: no difference can be told between {0} and {1}",
        LOSES: "{0} sounds less like the voice than {1}",
        LOSES_WORDS: "{0} gets more words wrong than {1}, in a voice no nearer",
        TRADES: "{0} sounds more like the voice than {1}, but gets more words wrong"}
SHORT = {WINS: "beats {}", WINS_WORDS: "reads better than {}", TIES: "ties with {}", LOSES: "loses to {}",
         LOSES_WORDS: "costs words against {}", TRADES: "is nearer to the voice than {} at the cost of words"}
SHORT_NAMES = {"tuned": "fine-tuning", "base": "the model as it was", "clone": "cloning", "tuned+clone": "doing both"}
UNMEASURED = (f"Whether fine-tuning helped was not measured: the judges are not installed. Install them with `make judges` "
              f"(or: {judges.INSTALL}) and run the same command again; the clips are kept.")


def verdict(rows: Sequence[dict]) -> str:
    """What the scores say about fine-tuning and cloning, in plain English, with the evidence."""
    arms = scores.by_arm(rows)
    said = [answer(one, other, arms[one], arms[other]) for one, other in QUESTIONS if {one, other} <= set(arms)]
    if not said:
        return "There is nothing to compare: a verdict wants the arm tuned, and base or clone."
    takes = len({row["seed"] for row in rows if row["seed"] is not None})
    sentences = len({row["sentence"] for row in rows if row["seed"] is not None})
    basis = f"Judged on {_several(sentences, 'sentence')} with {_several(takes, 'take')} each."
    return "\n".join([*said, basis, *_caution(rows, sentences)])


def headline(rows: Sequence[dict]) -> str:
    """The verdict in one sentence."""
    arms, said = scores.by_arm(rows), {}
    for one, other in QUESTIONS:
        if {one, other} <= set(arms):
            said.setdefault(one, []).append(SHORT[compare(arms[one], arms[other])].format(SHORT_NAMES[other]))
    parts = [f"{SHORT_NAMES[one]} {' and '.join(kinds)}" for one, kinds in said.items()]
    return f"In short: {'; '.join(parts)}." if parts else ""


def compare(one: Sequence[dict], other: Sequence[dict]) -> str:
    """How `one` fares against `other`, as one of the kinds above; whatever is not sure is a tie."""
    found = scores.differences(one, other)
    alike, wrong = found.get("similarity"), found["wrong words"]
    lost = wrong.low > WORSE_WORDS
    if alike is not None and alike.above:
        return TRADES if lost else WINS
    if alike is not None and alike.below:
        return LOSES
    return LOSES_WORDS if lost else WINS_WORDS if wrong.below else TIES


def answer(first: str, second: str, one: Sequence[dict], other: Sequence[dict]) -> str:
    """One sentence for one question."""
    if not all(scores.JUDGED in row for row in (*one, *other)):
        return f"{first} against {second} was not measured."
    said = SAID[compare(one, other)].format(NAMES[first], NAMES[second])
    found, mine, theirs = scores.differences(one, other), scores.figures(one), scores.figures(other)
    parts = []
    if "similarity" in found:
        parts.append(f"similarity {mine['similarity'].value:.2f} against {theirs['similarity'].value:.2f}, "
                     f"{_range(found['similarity'], 1, 2)}")
    parts.append(f"wrong words {mine['wrong words'].value:.0%} against {theirs['wrong words'].value:.0%}, "
                 f"{_range(found['wrong words'], 100, 0, ' points')}{_doubt(found['wrong words'])}")
    return f"{said[0].upper()}{said[1:]} ({'; '.join(parts)})."


def _range(found: Estimate, scale: float, digits: int, unit: str = "") -> str:
    # adding 0 turns a rounded -0 into 0
    value, low, high = (f"{round(each * scale, digits) + 0.0:+.{digits}f}" if np.isfinite(each) else ""
                        for each in (found.value, found.low, found.high))
    return f"difference {value}{unit}" + (f", between {low} and {high}" if low else "")


def _doubt(wrong: Estimate) -> str:
    """Where more wrong words can neither be said nor be ruled out, that is said."""
    return "" if wrong.high <= WORSE_WORDS or wrong.low > WORSE_WORDS else \
        f": whether more than {100 * WORSE_WORDS:.0f} points are lost these sentences cannot tell"


def _caution(rows: Sequence[dict], sentences: int) -> list[str]:
    said = []
    if sentences < intervals.FEWEST:
        said.append(f"Fewer than {intervals.FEWEST} sentences show nothing about others: compare more, with --sentences.")
    spoken = [row for row in rows if row["seed"] is not None and scores.JUDGED in row]
    if spoken and scores.figures(spoken)["wrong words"].value > NOISE:
        said.append("Most words could not be understood in any arm: of noise, no voice can be told.")
    if lost := scores.failures(rows):
        said.append(f"{_several(len(lost), 'clip')} without anything to hear, counted as all wrong: {', '.join(lost[:3])}"
                    f"{' and more' * (len(lost) > 3)}.")
    return said


def _several(count: int, noun: str) -> str:
    return f"{count} {noun}{'s' * (count != 1)}"
