"""Memorization check: a clip that says a training sentence instead of its own text.

An overfitted model repeats its training sentences. Such a clip sounds exactly like the voice and scores well in SIM and MOS.
"""

from collections.abc import Iterable, Mapping, Sequence

from rapidfuzz.distance import Levenshtein

from tts_kit.evaluation import wer

MAX_EDIT_RATE, MIN_EDIT_RATE = 0.35, 0.5
"""Of the words of a clip: at most to the training sentence that it repeats, at least to the text it should say."""
MIN_WORDS = 3  # of a training sentence; shorter ones occur by chance


def check(rows: Sequence[dict], training_texts: Iterable[str]) -> list[dict]:
    """Return the scored rows; generated ones with words in them say whether they repeat a training sentence, and which."""
    words = {text: wer.normalize(text).split() for text in training_texts}
    checked = []
    for row in rows:
        if row["seed"] is not None and row.get("transcript"):
            repeated = matched_training_text(row["transcript"], row["text"], words)
            row = row | {"memorized": bool(repeated), "training_text": repeated}
        checked.append(row)
    return checked


def matched_training_text(transcript: str, text: str, training: Mapping[str, Sequence[str]]) -> str:
    """Return the training sentence (of sentence -> its words) that a clip says instead of `text`, empty for none."""
    words = wer.normalize(transcript).split()
    # a misrecognized word can turn one sentence into another much like it; that is no repetition
    if Levenshtein.normalized_distance(wer.normalize(text).split(), words) < MIN_EDIT_RATE:
        return ""
    rates = {sentence: Levenshtein.normalized_distance(other, words) for sentence, other in training.items()
             if len(other) >= MIN_WORDS}
    best = min(rates, key=rates.get, default="")
    return best if best and rates[best] <= MAX_EDIT_RATE else ""
