"""Flags on transcripts that a person should check first: each with a reason and a weight, combined to one score per clip."""

import re
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from rapidfuzz.distance import Levenshtein

from tts_kit.data import speaker_embedding
from tts_kit.data.segment import Segment
from tts_kit.data.transcribe import Transcript
from tts_kit.spoken_text import to_spoken

PLAIN_CHARACTERS = set(" ,.?!;:'\"-")
MIN_CLIPS = 6  # with fewer clips their medians say nothing about what is usual
CONFIDENT = 0.92  # a transcript of this confidence is never flagged for it
MIN_WEIGHT = 0.02
OTHER_SPEAKER = "sounds like another speaker"
OUTLIER_THRESHOLD = 0.11
"""Speaker outlier score above which a clip may hold another speaker; 2 to 3 % of a speaker's own clips are above it."""


@dataclass(frozen=True)
class Flag:
    reason: str  # for a person: short, with the figure
    weight: float  # 0 to 1


def flag_clips(clips: Sequence[tuple[Segment, Transcript, str | None, np.ndarray | None]]) -> list[list[Flag]]:
    """The flags of each clip, the strongest first. A clip comes with its transcript, the text of the second pass and its
    speaker embeddings, where there are any."""
    rates = [max(1, sum(map(str.isalnum, transcript.text))) / segment.seconds for segment, transcript, *_ in clips]
    outlier_scores = speaker_embedding.speaker_outlier_score([embeddings for *_, embeddings in clips])
    usual_rate, usual_confidence = 0.0, CONFIDENT
    spoken = [(rate, transcript) for rate, (_, transcript, *_) in zip(rates, clips) if transcript.text]
    if len(spoken) >= MIN_CLIPS:
        usual_rate = statistics.median(rate for rate, _ in spoken)
        usual_confidence = min(CONFIDENT, statistics.median(transcript.confidence for _, transcript in spoken))
    repeats = Counter(words(transcript.text) for _, transcript in spoken)
    flags = []
    for (segment, transcript, second_text, _), rate, outlier_score in zip(clips, rates, outlier_scores):
        if transcript.text:
            clip_flags = [Flag(f"ASR confidence {transcript.confidence:.0%}",
                               float(np.clip((usual_confidence - transcript.confidence) / 0.4, 0, 0.9))),
                          *_text_flags(transcript.text, second_text, repeats[words(transcript.text)])]
        else:
            clip_flags = [Flag("no speech recognised", 0.95)]
        if transcript.text and usual_rate:
            amount = "many" if rate > usual_rate else "few"
            clip_flags.append(Flag(f"{amount} characters for {segment.seconds:.1f} s",
                                   float(np.clip(abs(np.log(rate / usual_rate)) - 0.35, 0, 0.9))))
        if segment.may_cut_a_word:
            clip_flags.append(Flag(f"edge only {segment.edge_db:.0f} dB under the speech: a word may be cut", 0.6))
        if outlier_score > OUTLIER_THRESHOLD:
            clip_flags.append(Flag(OTHER_SPEAKER, min(0.9, 0.4 + 4 * (outlier_score - OUTLIER_THRESHOLD))))
        flags.append(sorted((flag for flag in clip_flags if flag.weight > MIN_WEIGHT), key=lambda flag: -flag.weight))
    return flags


def combined_score(flags: Sequence[Flag]) -> float:
    """How doubtful all flags together make a clip, 0 to 1: each takes its share of what the others left."""
    return 1.0 - float(np.prod([1.0 - flag.weight for flag in flags]))


def words(text: str) -> tuple[str, ...]:
    """The words of a text without case and punctuation, for comparing texts."""
    return tuple("".join(filter(str.isalnum, word)) for word in text.casefold().split())


def word_edit_distance(first: str, second: str) -> float:
    """Word insertions, deletions and substitutions between two texts, as a share of the longer one."""
    return Levenshtein.normalized_distance(words(first), words(second))


def _text_flags(text: str, second_text: str | None, count: int) -> Iterator[Flag]:
    if second_text is not None and (distance := word_edit_distance(text, second_text)):
        # one differing word is a reason to look, however long the sentence
        yield Flag(f"second pass: {second_text}", min(0.9, 0.3 + 1.5 * distance))
    # symbols are read aloud in more than one way; digits are too, but ASR seldom gets them wrong
    unusual = sorted({character for character in text if not character.isalpha() and character not in PLAIN_CHARACTERS})
    symbols = [character for character in unusual if not character.isdigit()]
    joined_digits = re.search(r"\d\W+\d", text)  # 20-10: ten past twenty, or twenty to ten
    numbers = re.findall(r"\d+(?:[.,:]\d+)*", text)
    written = [f"numbers {', '.join(numbers)}"] * bool(numbers) + [f"symbols {' '.join(symbols)}"] * bool(symbols)
    yield Flag(f"write as it is spoken: {'; '.join(written)}; in English it is read as: {to_spoken(text)}",
               min(0.4, 0.1 * bool(unusual) + 0.2 * len(symbols) + 0.2 * bool(joined_digits)))
    yield Flag(f"same text in {count} clips", 0.3 * (count > 1))
