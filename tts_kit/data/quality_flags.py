"""Which transcripts to look at first: every reason to doubt one, and how strong they are together."""

import re
import statistics
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.data import speaker_embedding

PLAIN = set(" ,.?!;:'\"-")
FEWEST = 6
"""Clips under which nothing is said about what is usual."""
SURE = 0.92
"""No transcriber is doubted above that."""
OTHER_SPEAKER = "sounds like somebody else"
OUTLIER_THRESHOLD = 0.11
"""How much less like the usual voice a moment is from which on it may be somebody else's; of a speaker's own clips two or
three in a hundred hold such a moment."""


@dataclass(frozen=True)
class ClipFeatures:
    """What is known of a clip and its transcript."""
    text: str
    seconds: float
    confidence: float
    """Of the transcriber, 0 to 1."""
    edge: float | None
    """Decibels of the speech over an edge that may have cut a word, None where neither edge can have."""
    second_text: str | None = None
    """What was heard the second time, None where nobody listened twice."""
    voice: np.ndarray | None = None
    """(windows, width) of the voice as directions of length 1, None where nobody measured it."""


@dataclass(frozen=True)
class Flag:
    reason: str
    """For a person: short, with the figure."""
    weight: float
    """0 to 1."""


def flag_clips(clips: Sequence[ClipFeatures]) -> list[list[Flag]]:
    """For each clip its doubts, the strongest first; what is usual is learnt from all of them."""
    spoken = [clip for clip in clips if clip.text]
    pace = statistics.median(_pace(clip) for clip in spoken) if len(spoken) >= FEWEST else 0.0
    usual = min(SURE, statistics.median(clip.confidence for clip in spoken)) if len(spoken) >= FEWEST else SURE
    times = Counter(words(clip.text) for clip in spoken)
    strange = speaker_embedding.speaker_outlier_score([clip.voice for clip in clips])
    found = []
    for clip, unlike in zip(clips, strange):
        some = [_empty(clip)] if not clip.text else [
            _unsure(clip, usual), _disagreement(clip), _hurried(clip, pace), _odd(clip), _twice(times[words(clip.text)])]
        some += [_cut(clip), _stranger(unlike)]
        found.append(sorted((doubt for doubt in some if doubt.weight > 0.02), key=lambda doubt: -doubt.weight))
    return found


def combined_score(some: Sequence[Flag]) -> float:
    """How suspicious several doubts make a clip, 0 to 1: each takes its share of what the others left."""
    return 1.0 - float(np.prod([1.0 - doubt.weight for doubt in some]))


def word_edit_distance(one: str, other: str) -> float:
    """Words that have to be changed, added or left out to make one text the other, as a share of the longer; 0 to 1."""
    first, second = words(one), words(other)
    row = list(range(len(second) + 1))
    for place, word in enumerate(first, 1):
        before, row = row, [place]
        for number, again in enumerate(second, 1):
            row.append(min(before[number] + 1, row[-1] + 1, before[number - 1] + (word != again)))
    return row[-1] / max(len(first), len(second), 1)


def _empty(clip: ClipFeatures) -> Flag:
    return Flag("nothing was understood", 0.95)


def _unsure(clip: ClipFeatures, usual: float) -> Flag:
    return Flag(f"the transcriber is {clip.confidence:.0%} sure", float(np.clip((usual - clip.confidence) / 0.4, 0, 0.9)))


def _disagreement(clip: ClipFeatures) -> Flag:
    """One word heard otherwise is a doubt already, however long the sentence."""
    apart = 0.0 if clip.second_text is None else word_edit_distance(clip.text, clip.second_text)
    return Flag(f"heard again as: {clip.second_text}", min(0.9, 0.3 + 1.5 * apart) if apart else 0.0)


def _hurried(clip: ClipFeatures, usual: float) -> Flag:
    """Far more or fewer letters a second than usual: words are missing, or were made up."""
    if not usual:
        return Flag("", 0.0)
    ratio = _pace(clip) / usual
    kind = "many" if ratio > 1 else "few"
    return Flag(f"{kind} letters for {clip.seconds:.1f} s", float(np.clip(abs(np.log(ratio)) - 0.35, 0, 0.9)))


def _odd(clip: ClipFeatures) -> Flag:
    """Signs are read aloud in more than one way; so are figures, but in those a transcriber seldom errs."""
    odd = sorted({character for character in clip.text if not character.isalpha() and character not in PLAIN})
    signs = [character for character in odd if not character.isdigit()]
    joined = re.search(r"\d\W+\d", clip.text)  # 20-10: ten past twenty, or twenty to ten
    return Flag(f"written, not spoken: {' '.join(odd)}", min(0.4, 0.1 * bool(odd) + 0.2 * len(signs) + 0.2 * bool(joined)))


def _twice(times: int) -> Flag:
    return Flag(f"the same words {times} times", 0.3 * (times > 1))


def _cut(clip: ClipFeatures) -> Flag:
    if clip.edge is None:
        return Flag("", 0.0)
    return Flag(f"an edge only {clip.edge:.0f} dB under the speech: is a word cut?", 0.6)


def _stranger(unlike: float) -> Flag:
    return Flag(OTHER_SPEAKER, min(0.9, 0.4 + 4 * (unlike - OUTLIER_THRESHOLD)) if unlike > OUTLIER_THRESHOLD else 0.0)


def _pace(clip: ClipFeatures) -> float:
    return max(1, sum(character.isalnum() for character in clip.text)) / clip.seconds


def words(text: str) -> tuple[str, ...]:
    """A text as its bare words, to be compared."""
    return tuple("".join(letter for letter in word if letter.isalnum()) for word in text.casefold().split())
