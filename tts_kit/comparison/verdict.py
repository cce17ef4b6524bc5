"""The verdict: is the fine-tuned model better than the base model, than cloning, than both together, or is it a tie."""

import collections
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.comparison.arms import ARMS, Pairs
from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.evaluation.stats import Estimate

WER_MARGIN = 0.03  # a rise in WER above which an arm has paid for its voice with its words
ALPHA = 0.05  # significance level, after Holm's correction
UNINTELLIGIBLE_WER = 0.7  # WER of all arms above which there is no speech to judge
MEMORIZED_SHARE = 0.1  # share of memorized clips from which on the headline mentions them
PRIMARY_COMPARISONS = (("finetuned", "base"), ("finetuned", "clone"), ("finetuned+clone", "clone"))
MARGINS = {"sim": 0.02, "wer": WER_MARGIN}  # differences of the tested figures that are worth detecting
FORMS = {"sim": ("SIM", "{:.2f}", 1, 2, ""), "wer": ("WER", "{:.0%}", 100, 0, " points")}
"""Heading and form of a figure; scale, decimals and unit of a difference."""
HIGHER_SIM, LOWER_WER, TIE, LOWER_SIM, HIGHER_WER = "higher SIM", "lower WER", "tie", "lower SIM", "higher WER"
HIGHER_SIM_AND_WER, LOWER_SIM_AND_WER = "higher SIM and WER", "lower SIM and WER"
OUTCOMES = {  # outcome of one arm against another -> its sentence among the details, and its part of the headline
    HIGHER_SIM: ("{0} sounds more like the voice than {1}", "beats {}"),
    LOWER_WER: ("{0} makes fewer word errors than {1}, with no lower speaker similarity", "is more intelligible than {}"),
    TIE: ("tie: no significant difference between {0} and {1}", "ties with {}"),
    LOWER_SIM: ("{0} sounds less like the voice than {1}", "loses to {}"),
    HIGHER_WER: ("{0} makes more word errors than {1}, with no higher speaker similarity", "is less intelligible than {}"),
    HIGHER_SIM_AND_WER: ("{0} sounds more like the voice than {1}, but makes more word errors",
                         "is nearer to the voice than {} but less intelligible"),
    LOWER_SIM_AND_WER: ("{0} sounds less like the voice than {1}, but makes fewer word errors",
                        "is more intelligible than {} but further from the voice")}
UNMEASURED = ("Whether fine-tuning helped was not measured: the metric models are not installed. Install them "
              f"({metrics.INSTALL}), and run the same command again without TTS_KIT_METRICS=none; the clips are kept.")


@dataclass(frozen=True)
class Comparison:
    """The result of one arm against another."""
    arm: str
    other: str
    outcome: str  # one of the seven outcomes above
    differences: dict[str, Estimate]  # figure -> figure of `arm` minus that of `other`
    p_values: dict[str, float]  # of the tested figures, after Holm's correction
    tests: int  # in the family of tests that are corrected together


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
             f"{_detectable(comparisons)}. 95 % CI by paired bootstrap over sentences; p after Holm's correction.")
    details = [*(_sentence(comparison, figures) for comparison in comparisons), basis, *_to_resolve(comparisons),
               *_cautions(rows, generated)]
    return Verdict(_headline(comparisons, by_arm), details, comparisons, figures)


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
        tests = [(pair, figure) for pair in family for figure in MARGINS if figure in differences[pair]]
        corrected = stats.holm([_p_value(figure, differences[pair][figure]) for pair, figure in tests])
        for pair in family:
            p_values = {figure: p_value for (tested, figure), p_value in zip(tests, corrected) if tested == pair}
            comparisons[pair] = Comparison(*pair, _outcome(differences[pair], p_values), differences[pair], p_values,
                                           len(tests))
    return [comparisons[pair] for pair in pairs]


def _p_value(figure: str, difference: Estimate) -> float:
    """Two-sided; for a rise in WER against the margin, and 1 for one within it, which does not matter."""
    if figure == "sim" or difference.value < 0:
        return difference.p_value()
    return difference.p_value(WER_MARGIN) if difference.value > WER_MARGIN else 1.0


def _outcome(differences: dict[str, Estimate], p_values: dict[str, float]) -> str:
    significant = {figure: p_value < ALPHA for figure, p_value in p_values.items()}
    higher_wer = significant.get("wer", False) and differences["wer"].value > 0
    if significant.get("sim") and differences["sim"].value < 0:
        # from the other arm, which is nearer to the voice, the same difference in WER has to exceed the margin
        fewer = significant.get("wer", False) and differences["wer"].value < -WER_MARGIN
        return LOWER_SIM_AND_WER if fewer else LOWER_SIM
    if significant.get("sim"):
        return HIGHER_SIM_AND_WER if higher_wer else HIGHER_SIM
    return HIGHER_WER if higher_wer else LOWER_WER if significant.get("wer") else TIE


def _headline(comparisons: Sequence[Comparison], by_arm: dict[str, list[dict]]) -> str:
    outcomes = collections.defaultdict(list)
    for comparison in comparisons:
        _, text = OUTCOMES[comparison.outcome]
        outcomes[comparison.arm].append(text.format(arm_name(comparison.other, short=True)))
    parts = [f"{arm_name(arm, short=True)} {' and '.join(texts)}" for arm, texts in outcomes.items()]
    for arm, rows in by_arm.items():
        share = sum(bool(row.get("memorized")) for row in rows) / len(rows)
        if arm in outcomes and share >= MEMORIZED_SHARE:
            parts.append(f"but {share:.0%} of the clips of {arm_name(arm, short=True)} repeat training clips")
    return f"In short: {'; '.join(parts)}."


def _sentence(comparison: Comparison, figures: dict[str, dict[str, Estimate]]) -> str:
    """Return the outcome of one comparison with its statistics."""
    text = OUTCOMES[comparison.outcome][0].format(arm_name(comparison.arm), arm_name(comparison.other))
    parts = []
    for name, (heading, form, scale, digits, unit) in FORMS.items():
        if difference := comparison.differences.get(name):
            values = " vs ".join(form.format(figures[arm][name].value) for arm in (comparison.arm, comparison.other))
            # adding 0 turns a rounded -0 into 0
            value, low, high = (f"{round(bound * scale, digits) + 0.0:+.{digits}f}" if np.isfinite(bound) else ""
                                for bound in (difference.value, difference.low, difference.high))
            parts.append(f"{heading} {values}, difference {value}{unit}{f', 95 % CI {low} to {high}' if low else ''}, "
                         f"{format_p(comparison.p_values[name])}")
    wer = comparison.differences.get("wer")
    if wer and comparison.outcome not in (HIGHER_WER, HIGHER_SIM_AND_WER) and wer.high > WER_MARGIN:
        parts[-1] += f": a rise of more than {100 * WER_MARGIN:.0f} points is not ruled out"
    return f"{text[0].upper()}{text[1:]} ({'; '.join(parts)})."


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
    """Say how many sentences the ties would need."""
    ties = [one for one in comparisons if one.outcome == TIE]
    needed = {name: max((one.differences[name].required_sentences(margin, one.tests) or 0 for one in ties
                         if name in one.differences), default=0) for name, margin in MARGINS.items()}
    if any(needed.values()):
        sim, wer = (max(count, stats.MIN_SENTENCES) for count in needed.values())
        yield (f"To resolve the {'tie' if len(ties) == 1 else 'ties'}: about {sim} sentences detect a difference of "
               f"{MARGINS['sim']} SIM, about {wer} one of {100 * WER_MARGIN:.0f} points WER (--sentences); or run the "
               "listening test.")


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
