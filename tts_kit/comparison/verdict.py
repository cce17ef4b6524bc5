"""The verdict: is the fine-tuned model better than the base model, than cloning, than both together, or is it a tie.

It speaks of voice (SIM) and words (WER) separately, and decides each by the confidence interval that it prints."""

import collections
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.comparison.arms import ARMS, Pairs
from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.evaluation.stats import Estimate

WER_MARGIN = scoring.MARGINS["wer"]  # a rise in WER up to which an arm is not called worse
ALPHA = 0.05  # significance level, after Holm's correction
UNINTELLIGIBLE_WER = 0.7  # WER of all arms above which there is no speech to judge
MEMORIZED_SHARE = 0.1  # share of memorized clips from which on the headline mentions them
PRIMARY_COMPARISONS = (("finetuned", "base"), ("finetuned", "clone"), ("finetuned+clone", "clone"))
FORMS = {"sim": ("SIM", "{:.2f}", 1, 2, ""), "wer": ("WER", "{:.0%}", 100, 0, " points")}
"""Heading and form of a figure; scale, decimals and unit of a difference."""
HIGHER_SIM, TIE, LOWER_SIM = "higher SIM", "tie", "lower SIM"
LOWER_WER, NO_HIGHER_WER, UNDECIDED, HIGHER_WER = "lower WER", "no higher WER", "undecided", "higher WER"
OUTCOMES = {  # outcome of one arm against another -> its word among the details, and its part of the headline
    HIGHER_SIM: ("nearer", "beats {}"), TIE: ("a tie", "ties with {}"), LOWER_SIM: ("further away", "loses to {}"),
    LOWER_WER: ("fewer errors", "has fewer errors than {}"), HIGHER_WER: ("more errors", "has more errors than {}"),
    NO_HIGHER_WER: ("no more errors", "is no worse than {}"), UNDECIDED: ("undecided", "cannot be told from {} yet ({})")}
REASON = (f"{metrics.SETTING} is none. Unset it" if os.environ.get(metrics.SETTING) == "none" else
          f"the metric models are not installed. Install them ({metrics.INSTALL})")
UNMEASURED = f"Whether fine-tuning helped was not measured: {REASON}, and run the same command again; the clips are kept."


@dataclass(frozen=True)
class Comparison:
    """The result of one arm against another."""
    arm: str
    other: str
    differences: dict[str, Estimate]  # figure -> figure of `arm` minus that of `other`
    p_values: dict[str, float]  # of the tested figures, after Holm's correction
    intervals: dict[str, tuple[float, float]]  # of the same, as strict as the corrected p-values
    tests: int  # in the family of tests that are corrected together

    @property
    def voice(self) -> str:
        """How near `arm` is to the voice: whether the interval of the difference in SIM excludes 0."""
        low, high = self.intervals.get("sim", (-np.inf, np.inf))
        return HIGHER_SIM if low > 0 else LOWER_SIM if high < 0 else TIE

    @property
    def words(self) -> str:
        """How intelligible it is: whether the interval of the difference in WER excludes the margin, or 0 from below."""
        low, high = self.intervals.get("wer", (-np.inf, np.inf))
        if low > WER_MARGIN:
            return HIGHER_WER
        return LOWER_WER if high < 0 else NO_HIGHER_WER if high <= WER_MARGIN else UNDECIDED


@dataclass(frozen=True)
class Verdict:
    headline: str  # the result in one sentence
    details: list[str]  # one sentence for each comparison with its statistics, then power and cautions
    comparisons: list[Comparison]
    figures: dict[str, dict[str, Estimate]]  # arm -> figure -> estimate


def decide(rows: Sequence[dict], pairs: Pairs | None = None) -> Verdict:
    """Return the verdict on scored rows: on `pairs` of arms, or on all that the arms suggest."""
    by_arm = scoring.group_by_arm(rows)
    figures = {arm: scoring.aggregate(of_arm) for arm, of_arm in by_arm.items()}
    if not all(scoring.METRICS in row for row in rows):
        return Verdict(UNMEASURED, [], [], figures)
    comparisons = compare_arms(rows, pairs_of(rows) if pairs is None else pairs)
    if not comparisons:
        nothing = "There is nothing to compare: a verdict needs the arm finetuned, and base or clone."
        return Verdict("", [nothing], [], figures)
    generated = [row for row in rows if row["seed"] is not None]
    samples = collections.Counter((row["arm"], row["sentence"]) for row in generated).values()
    sentences = len({row["sentence"] for row in generated})
    fewest = f"{min(samples)} to " if min(samples) < max(samples) else ""
    basis = (f"Based on {plural(sentences, 'sentence')} with {fewest}{plural(max(samples), 'sample')} each"
             f"{_detectable(comparisons)}. Paired bootstrap over sentences; p after Holm's correction; each CI of a "
             "difference has 95 % or more, as p requires, and decides alone.")
    details = [*(_sentence(comparison, figures) for comparison in comparisons), basis, *_to_resolve(comparisons),
               *_cautions(rows, generated)]
    return Verdict(_headline(comparisons, by_arm, figures), details, comparisons, figures)


def pairs_of(rows: Sequence[dict]) -> list[tuple[str, str]]:
    """Return the three primary comparisons, and each further arm against the arm that it is a variant or a rival of."""
    arms = list(scoring.group_by_arm(rows))
    own = next((arm for arm in ("finetuned", "finetuned+clone", "clone", "base") if arm in arms), "finetuned")
    further = [arm for arm in arms if arm not in ARMS]
    return [*PRIMARY_COMPARISONS,
            *((arm, kind) if (kind := arm.partition(":")[0]) in ARMS else (own, arm) for arm in further)]


def compare_arms(rows: Sequence[dict], pairs: Pairs) -> list[Comparison]:
    """Compare those pairs of arms that are both present.

    SIM and WER of a comparison are tested together (Holm). Each primary comparison is a family of its own; all others form
    one family, because the best of many arms is often best by chance."""
    by_arm = scoring.group_by_arm(rows)
    pairs = [(arm, other) for arm, other in pairs if arm in by_arm and other in by_arm]
    differences = {pair: scoring.differences(by_arm[pair[0]], by_arm[pair[1]]) for pair in pairs}
    families = collections.defaultdict(list)
    for pair in pairs:
        families[pair if pair in PRIMARY_COMPARISONS else "others"].append(pair)
    comparisons = {}
    for family in families.values():
        tests = [(pair, figure) for pair in family for figure in scoring.MARGINS if figure in differences[pair]]
        uncorrected = [_p_value(figure, differences[pair][figure]) for pair, figure in tests]
        p_values, intervals = collections.defaultdict(dict), collections.defaultdict(dict)
        for (pair, figure), p_value, corrected in zip(tests, uncorrected, stats.holm(uncorrected)):
            # the level at which p_value is significant exactly if the corrected one is at ALPHA
            level = ALPHA * (p_value / corrected if corrected else 1 / len(tests))
            p_values[pair][figure], intervals[pair][figure] = corrected, differences[pair][figure].interval(level)
        for pair in family:
            comparisons[pair] = Comparison(*pair, differences[pair], p_values[pair], intervals[pair], len(tests))
    return [comparisons[pair] for pair in pairs]


def _p_value(figure: str, difference: Estimate) -> float:
    """Two-sided; for a rise in WER against the margin, and 1 for one within it, which does not matter."""
    if figure == "sim" or difference.value < 0:
        return difference.p_value()
    return difference.p_value(WER_MARGIN) if difference.value > WER_MARGIN else 1.0


def _headline(comparisons: Sequence[Comparison], by_arm: dict[str, list[dict]],
              figures: dict[str, dict[str, Estimate]]) -> str:
    sentences = []
    for subject in ("voice", "words"):
        outcomes = collections.defaultdict(list)
        for comparison in comparisons:
            _, text = OUTCOMES[getattr(comparison, subject)]
            outcomes[comparison.arm].append(text.format(arm_name(comparison.other, short=True),
                                                        _values(comparison, "wer", figures)))
        parts = [f"{arm_name(arm, short=True)} {' and '.join(texts)}" for arm, texts in outcomes.items()]
        sentences.append(f"{subject.capitalize()}: {'; '.join(parts)}.")
    for arm, rows in by_arm.items():
        share = sum(bool(row.get("memorized")) for row in rows) / len(rows)
        if arm in outcomes and share >= MEMORIZED_SHARE:
            sentences.append(f"But {share:.0%} of the clips of {arm_name(arm, short=True)} repeat training clips.")
    return " ".join(sentences)


def _values(comparison: Comparison, name: str, figures: dict[str, dict[str, Estimate]]) -> str:
    """Return a figure of both arms."""
    return " vs ".join(FORMS[name][1].format(figures[arm][name].value) if name in figures[arm] else "-"
                       for arm in (comparison.arm, comparison.other))


def _sentence(comparison: Comparison, figures: dict[str, dict[str, Estimate]]) -> str:
    """Return the outcome of one comparison with its statistics."""
    parts = [f"{arm_name(comparison.arm)} against {arm_name(comparison.other)}"]
    for name, subject, outcome in (("sim", "voice", comparison.voice), ("wer", "words", comparison.words)):
        heading, _, scale, digits, unit = FORMS[name]
        if difference := comparison.differences.get(name):
            # adding 0 turns a rounded -0 into 0
            value, low, high = (f"{round(bound * scale, digits) + 0.0:+.{digits}f}" if np.isfinite(bound) else ""
                                for bound in (difference.value, *comparison.intervals[name]))
            margin = f" of a rise above {100 * WER_MARGIN:.0f} points" * (name == "wer" and difference.value > 0)
            parts.append(f"{subject}: {OUTCOMES[outcome][0]} ({heading} {_values(comparison, name, figures)}, difference "
                         f"{value}{unit}{f', CI {low} to {high}' if low else ''}, "
                         f"{format_p(comparison.p_values[name])}{margin})")
    text = "; ".join(parts)
    return f"{text[0].upper()}{text[1:]}."


def format_p(p_value: float) -> str:
    """Return a p-value as text."""
    return "p < 0.001" if p_value < 0.001 else f"p = {p_value:.3f}"


def _detectable(comparisons: Sequence[Comparison]) -> str:
    """Return the minimum detectable differences of so many sentences: the largest over the comparisons."""
    texts = []
    for name, (heading, _, scale, digits, unit) in FORMS.items():
        largest = max((one.differences[name].minimum_detectable_difference(one.tests) for one in comparisons
                       if name in one.differences), default=np.inf)
        if np.isfinite(largest):
            texts.append(f"{largest * scale:.{digits}f}{unit} {heading}")
    return f": minimum detectable difference (80 % power) {' and '.join(texts)}" if texts else ""


def _to_resolve(comparisons: Sequence[Comparison]) -> Iterator[str]:
    """Say how many sentences ties and what is undecided would need."""
    open_tests = {"sim": [one for one in comparisons if one.voice == TIE],
                  "wer": [one for one in comparisons if one.words == UNDECIDED]}
    needed = {name: max((one.differences[name].required_sentences(margin, one.tests) or 0 for one in open_tests[name]
                         if name in one.differences), default=0) for name, margin in scoring.MARGINS.items()}
    amounts = f"{scoring.MARGINS['sim']} SIM", f"{100 * WER_MARGIN:.0f} points WER"
    parts = [f"about {max(count, stats.MIN_SENTENCES)} sentences detect a difference of {amount}"
             for count, amount in zip(needed.values(), amounts) if count]
    if parts:
        yield f"To resolve what is open: {', '.join(parts)} (--sentences); or run the listening test."


def _cautions(rows: Sequence[dict], generated: Sequence[dict]) -> Iterator[str]:
    if len({row["sentence"] for row in generated}) < stats.MIN_SENTENCES:
        yield f"Fewer than {stats.MIN_SENTENCES} sentences say nothing about others: compare more, with --sentences."
    wer = scoring.aggregate(generated).get("wer")
    if wer is not None and wer.value > UNINTELLIGIBLE_WER:
        yield "Most words of all arms could not be understood: without speech, SIM and MOS mean nothing."
    memorized = [row["file"] for row in rows if row.get("memorized")]
    for files, problem in ((scoring.failures(rows), "without speech, counted as all words wrong"),
                           (scoring.missing_scores(rows), "left out of a figure"),
                           (memorized, "memorized: nearly a training clip, and no new speech")):
        if files:
            yield f"{plural(len(files), 'clip')} {problem}: {', '.join(files[:3])}{' and more' * (len(files) > 3)}."


def arm_name(arm: str, short: bool = False) -> str:
    """Return what a sentence calls an arm."""
    info = ARMS.get(arm)
    return arm if info is None else info.short_name if short else info.name


def plural(count: int, noun: str) -> str:
    """Return a number of things as text."""
    return f"{count} {noun}{'s' * (count != 1)}"
