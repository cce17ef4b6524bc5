"""Plots of the comparison: every arm by SIM and WER, and the differences between arms."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from tts_kit.comparison.verdict import Verdict

INK, ACCENT = "#3d3a35", "#b3402a"
STYLE = {"figure.constrained_layout.use": True, "figure.facecolor": "white",
         "axes.spines.top": False, "axes.spines.right": False, "font.size": 9, "axes.titlesize": 9, "xtick.labelsize": 8,
         "ytick.labelsize": 8, **dict.fromkeys(["axes.edgecolor", "axes.labelcolor", "text.color", "xtick.color",
                                                "ytick.color"], INK)}
PANELS = (("sim", 1, "difference in SIM: right is nearer to the voice"),
          ("wer", 100, "difference in WER, points: left is fewer"))
Plot = tuple[bytes, str]  # a PNG and its description for who cannot see it


def plot(verdict: Verdict) -> list[Plot]:
    """Return both plots, as far as something was measured."""
    plots = ((plot_arms(verdict), "SIM against WER of every arm, with 95 % confidence intervals."),
             (plot_differences(verdict), "Differences between arms, with the confidence intervals that decide them."))
    return [(png(figure, 144), description) for figure, description in plots if figure]


def png(figure: Figure, dpi: int) -> bytes:
    """Return a figure as a PNG."""
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=dpi)
    return buffer.getvalue()


@matplotlib.rc_context(STYLE)
def plot_arms(verdict: Verdict):
    """Plot every arm as a point: SIM upwards, WER to the right; None if none was scored."""
    points = {arm: figures for arm, figures in verdict.figures.items() if {"sim", "wer"} <= set(figures)}
    if not points:
        return None
    figure = Figure(figsize=(4.6, 3.7))
    axis = figure.subplots()
    for arm, figures in points.items():
        wer, sim = figures["wer"], figures["sim"]
        color = ACCENT if arm.startswith("finetuned") else INK
        wer_error = np.minimum(_error_bars(wer.value, wer.low, wer.high), [[wer.value], [np.inf]])  # no WER is below 0
        axis.errorbar(100 * wer.value, sim.value, _error_bars(sim.value, sim.low, sim.high), 100 * wer_error, fmt="o",
                      color=color, markersize=5, elinewidth=1, alpha=0.9)
        axis.annotate(arm, (100 * wer.value, sim.value), textcoords="offset points", xytext=(7, 6), color=color, fontsize=9)
    axis.set(xlabel="WER, %", ylabel="SIM", title="Up and to the left is better")
    return figure


@matplotlib.rc_context(STYLE)
def plot_differences(verdict: Verdict):
    """Plot the difference in each comparison with the interval that decides it; None if nothing was scored."""
    comparisons = [one for one in verdict.comparisons if {"sim", "wer"} <= set(one.differences)]
    if not comparisons:
        return None
    figure = Figure(figsize=(4.6, 1.9 + 0.5 * len(comparisons)))
    lines = -np.arange(len(comparisons))
    for axis, (name, scale, title) in zip(figure.subplots(2, 1), PANELS):
        for line, one in zip(lines, comparisons):
            value = one.differences[name].value
            axis.errorbar(scale * value, line, xerr=scale * _error_bars(value, *one.intervals[name]), fmt="o", color=ACCENT,
                          markersize=5)
        axis.axvline(0, color=INK, linewidth=0.8, linestyle=":")
        axis.set_title(title, pad=10)
        axis.set(ylim=(0.6 - len(comparisons), 0.6))
        axis.set_yticks(lines, [f"{one.arm} - {one.other}" for one in comparisons])
    return figure


def _error_bars(value: float, low: float, high: float) -> np.ndarray:
    """Return how far the interval extends below and above (2, 1); 0 where it is infinite."""
    lengths = np.array([[value - low], [high - value]])
    return np.where(np.isfinite(lengths), np.maximum(lengths, 0), 0)
