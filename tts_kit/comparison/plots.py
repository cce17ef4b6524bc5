"""The comparison as pictures: every arm by voice and words, and every sentence by what an arm gains on it."""

import io
from collections.abc import Sequence

import numpy as np

from tts_kit.comparison.verdict import Comparisons
from tts_kit.evaluation import scoring
from tts_kit.evaluation.stats import Estimate

INK, ACCENT = "#7a756c", "#b3402a"
"""Seen on white paper and on black."""
PANELS = (("sim", 1, "similarity: right is nearer"), ("wer", 100, "wrong words, points: left is fewer"))
Picture = tuple[bytes, str]
"""A PNG and what it shows in words, for who cannot see it."""


def pictures(rows: Sequence[dict], asked: Comparisons) -> list[Picture]:
    """Both pictures, as far as something was measured."""
    made = [(voices_and_words(rows), "Similarity against wrong words of every arm, with 95 % intervals."),
            (sentence_by_sentence(rows, asked), "Differences of two arms, sentence by sentence.")]
    return [(_png(figure), text) for figure, text in made if figure is not None]


def voices_and_words(rows: Sequence[dict]):
    """Every arm as a point: nearer to the voice upwards, fewer wrong words to the left; None where none was judged."""
    points = {arm: found for arm, mine in scoring.group_by_arm(rows).items()
              if {"sim", "wer"} <= set(found := scoring.aggregate(mine))}
    if not points:
        return None
    figure, axis = _figure(5.2, 4.2)
    for arm, found in points.items():
        words, alike = found["wer"], found["sim"]
        colour = ACCENT if arm.startswith("finetuned") else INK
        reach = np.minimum(_bars(words), [[words.value], [np.inf]])  # no interval is wrong in less than no words
        axis.errorbar(100 * words.value, alike.value, _bars(alike), 100 * reach, fmt="o", color=colour, markersize=5,
                      elinewidth=1, alpha=0.9)
        axis.annotate(arm, (100 * words.value, alike.value), textcoords="offset points", xytext=(7, 6), color=colour,
                      fontsize=9)
    axis.set(xlabel="wrong words, %", ylabel="similarity to the voice", title="Up and to the left is better")
    return figure


def sentence_by_sentence(rows: Sequence[dict], asked: Comparisons):
    """What the first arm of each question gains on every sentence, and all in all; None where nothing was judged."""
    arms = scoring.group_by_arm(rows)
    pairs = [(one, other) for one, other in asked if {one, other} <= set(arms)
             and all(len(gains(arms[one], arms[other], name)) for name, _, _ in PANELS)]
    if not pairs:
        return None
    figure = _empty(9, 1.2 + 0.75 * len(pairs))
    for axis, (name, scale, title) in zip(figure.subplots(1, 2, sharey=True), PANELS):
        for line, (one, other) in enumerate(pairs):
            values, found = gains(arms[one], arms[other], name), scoring.differences(arms[one], arms[other])[name]
            axis.plot(scale * values, np.full(len(values), -line), "|", color=INK, markersize=12, alpha=0.8)
            axis.errorbar(scale * found.value, -line, xerr=scale * _bars(found), fmt="o", color=ACCENT, markersize=5)
        axis.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axis.set(title=title, ylim=(0.6 - len(pairs), 0.6))
        axis.set_yticks(-np.arange(len(pairs)), [f"{one} less {other}" for one, other in pairs])
        _bare(axis)
    return figure


def gains(one: Sequence[dict], other: Sequence[dict], name: str) -> np.ndarray:
    """By how much the figure of `one` is above that of `other`, for each sentence that both said (sentences,)."""
    mine, theirs = dict(scoring.per_metric_sums(one)).get(name, {}), dict(scoring.per_metric_sums(other)).get(name, {})
    both = [each for each in sorted(set(mine) & set(theirs)) if mine[each][1] and theirs[each][1]]
    return np.array([mine[each][0] / mine[each][1] - theirs[each][0] / theirs[each][1] for each in both])


def _bars(found: Estimate) -> np.ndarray:
    """(2, 1): how far the interval reaches below and above; nothing where it is endless."""
    reach = np.array([[found.value - found.low], [found.high - found.value]])
    return np.where(np.isfinite(reach), np.maximum(reach, 0), 0)


def _empty(width: float, height: float):
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="none")


def _figure(width: float, height: float):
    figure = _empty(width, height)
    axis = figure.subplots()
    _bare(axis)
    return figure, axis


def _bare(axis) -> None:
    """Quiet axes that are seen on any paper."""
    axis.set_facecolor("none")
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color(INK)
    axis.tick_params(colors=INK, labelsize=8)
    for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
        text.set(color=INK, fontsize=9)


def _png(figure) -> bytes:
    content = io.BytesIO()
    figure.savefig(content, dpi=144, format="png")
    return content.getvalue()
