"""Which step of a training is kept, by what judges heard of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from tts_kit.evaluation import stats
from tts_kit.evaluation.stats import SentenceSums

BASE_MODEL = 0
"""The step before any training: what the others are compared with, and never chosen itself."""
BY_GENERATION_EVAL, LAST_STEP = "ears", "last step"
"""What a step can be chosen by."""
WER_TOLERANCE = 0.03
"""Share of wrong words by which a step may read worse than the best reader."""


@dataclass(frozen=True)
class SelectedCheckpoint:
    step: int
    by: str
    """EARS, or LAST where nobody could listen."""
    why: str
    """For a person."""


@dataclass(frozen=True)
class StepMetrics:
    """One step: sentence -> wrong words and words, and sentence -> similarity to the voice."""
    words: SentenceSums
    voice: SentenceSums

    @property
    def wrong(self) -> float:
        return stats.bootstrap_ratio(self.words).value

    @property
    def alike(self) -> float:
        return stats.bootstrap_ratio(self.voice).value

    def __str__(self) -> str:
        return f"similarity {self.alike:.2f}, {self.wrong:.0%} wrong words"


def by_step(rows: Sequence[dict]) -> dict[int, list[dict]]:
    """Step -> its rows, steps in their order."""
    return {step: [row for row in rows if row["step"] == step] for step in sorted({row["step"] for row in rows})}


def select(rows: Sequence[dict], steps: int) -> SelectedCheckpoint:
    """The step to keep of a training of `steps`, out of one row for each step and sentence.

    Steps that read badly are left out first: those whose wrong words are surely more than those of the step that reads
    best, by more than three in a hundred. Of the others the one most like the voice is the best. Kept is the earliest of
    them that is as good: neither less like the voice than the best nor a worse reader by more than one standard error of
    the difference over the same sentences, because a dozen sentences would call almost every step as good for sure. The
    base is never kept, and where no clip holds any sound, or nothing was heard, it is the last step.
    """
    heard = _heard(rows)
    trained = [step for step in heard if step != BASE_MODEL]
    if not trained or all(row["failure"] for row in rows if row["step"] != BASE_MODEL):
        last = max(trained, default=steps)
        return SelectedCheckpoint(last, LAST_STEP, f"Step {last} of {steps} is kept, the last: nothing could be heard at any step.")
    readers, best = _best(heard)
    kept = next(step for step in readers if _is_as_good(heard[step], heard[best]))
    return SelectedCheckpoint(kept, BY_GENERATION_EVAL, " ".join([_reason(heard, kept, best, steps), *_doubts(heard, readers, kept, best)]))


def should_stop_early(rows: Sequence[dict], early_stopping_patience: int) -> bool:
    """Whether the last `patience` listens have brought no step better than the best before them."""
    trained = sorted({row["step"] for row in rows} - {BASE_MODEL})
    return 0 < early_stopping_patience < len(trained) and _best(_heard(rows))[1] not in trained[-early_stopping_patience:]


def _heard(rows: Sequence[dict]) -> dict[int, StepMetrics]:
    return {step: StepMetrics(stats.sums_by_sentence(some, "word_errors", "ref_words"), stats.sums_by_sentence(some, "sim"))
            for step, some in by_step(rows).items()}


def _best(heard: dict[int, StepMetrics]) -> tuple[list[int], int]:
    """The trained steps that read well, and which of them is most like the voice; the earliest where they are alike."""
    trained = [step for step in heard if step != BASE_MODEL]
    clearest = min(trained, key=lambda step: (heard[step].wrong, step))
    readers = [step for step in trained if not _reads_worse(heard[step], heard[clearest])]
    return readers, max(readers, key=lambda step: (heard[step].alike, -step))


def _is_as_good(one: StepMetrics, best: StepMetrics) -> bool:
    voice, words = stats.paired_bootstrap_diff(one.voice, best.voice), stats.paired_bootstrap_diff(one.words, best.words)
    return voice.value >= -voice.standard_error and words.value <= words.standard_error


def _reads_worse(one: StepMetrics, other: StepMetrics) -> bool:
    found = stats.paired_bootstrap_diff(one.words, other.words)
    return found.is_above_zero and found.value > WER_TOLERANCE


def _reason(heard: dict[int, StepMetrics], kept: int, best: int, steps: int) -> str:
    if kept == best:
        return f"Step {kept} of {steps} is kept, the most like the voice: {heard[kept]}."
    one, other = heard[kept], heard[best]
    return (f"Step {kept} of {steps} is kept: similarity {one.alike:.2f} against {other.alike:.2f} at step {best}, which "
            f"may be luck; {one.wrong:.0%} wrong words against {other.wrong:.0%}.")


def _doubts(heard: dict[int, StepMetrics], readers: list[int], kept: int, best: int) -> list[str]:
    """What a person should know of the steps that were not kept."""
    said = []
    nearer = [step for step in heard if step not in (BASE_MODEL, *readers) and heard[step].alike > heard[best].alike]
    if nearer:
        step = max(nearer, key=lambda step: heard[step].alike)
        said.append(f"Step {step} is more like it, but surely reads worse ({heard[step]}).")
    if BASE_MODEL in heard:
        base = heard[BASE_MODEL]
        surely = stats.paired_bootstrap_diff(heard[kept].voice, base.voice).is_above_zero
        worse = ", and surely reads better" if _reads_worse(heard[kept], base) else ""
        said.append(f"The base has {base}{worse}." if surely else f"It is not surely more like the voice than the base "
                    f"({base}){worse and ', which' + worse.removeprefix(', and')}.")
    return said
