"""Memorization check: a clip that says a training sentence instead of its text, or sounds like one training clip.

An overfitted model repeats its training sentences. Such a clip sounds exactly like the voice and scores well in SIM and MOS.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
from tqdm.auto import tqdm

from tts_kit.evaluation import metrics, wer
from tts_kit.evaluation.metrics import MetricModels

GROUND_TRUTH = "ground_truth"
MAX_EDIT_RATE, MIN_EDIT_RATE = 0.35, 0.5
"""Of the words of a clip: at most to the training sentence that it repeats, at least to the text it should say."""
MIN_WORDS = 3
"""Of a training sentence; shorter ones occur by chance."""


def check(rows: Sequence[dict], folder: Path, training: Mapping[str, Path], models: MetricModels) -> list[dict]:
    """Return the scored rows; generated ones with their nearest training clip, its similarity, and whether they repeat it.

    `training` are the training clips, text -> file; held-out recordings among the rows show how near an honest clip comes.
    """
    checked = [row for row in rows if row.get("transcript") and (row["seed"] is not None or row["arm"] == GROUND_TRUTH)]
    if not training or not checked:
        return list(rows)
    progress = tqdm(training.items(), desc="memorization", unit="clip", disable=len(training) < 20)
    clips = {text: models.embed(metrics.read(path), metrics.SAMPLE_RATE) for text, path in progress}
    clips = {text: embedding for text, embedding in clips.items() if embedding is not None}
    nearest = {}  # file of a row -> (cosine to the nearest training clip, its text)
    for row in checked:
        embedding = models.embed(metrics.read(folder / row["file"]), metrics.SAMPLE_RATE)
        if embedding is not None and clips:
            nearest[row["file"]] = max((float(embedding @ other), text) for text, other in clips.items())
    recordings = [nearest[row["file"]][0] for row in checked if row["arm"] == GROUND_TRUTH and row["file"] in nearest]
    # half way from the nearest held-out recording to identity
    threshold = (1 + max(recordings)) / 2 if recordings else np.inf
    words = {text: wer.normalize(text).split() for text in training}
    findings = {}
    for row in checked:
        if row["arm"] != GROUND_TRUTH:
            similarity, text = nearest.get(row["file"], (None, ""))
            repeated = matched_training_text(row["transcript"], row["text"], words)
            findings[row["file"]] = {
                "nearest_clip": training[repeated or text].name if repeated or text else "",
                "nearest_similarity": None if similarity is None else round(similarity, 4),
                "memorized": bool(repeated) or (similarity is not None and similarity > threshold)}
    return [row | findings.get(row["file"], {}) for row in rows]


def matched_training_text(transcript: str, text: str, training: Mapping[str, Sequence[str]]) -> str:
    """Return the training sentence that a clip says instead of `text`, empty where there is none.

    `training` are the words of each training sentence.
    """
    words = wer.normalize(transcript).split()
    # a misrecognized word can turn one sentence into another much like it; that is no repetition
    if Levenshtein.normalized_distance(wer.normalize(text).split(), words) < MIN_EDIT_RATE:
        return ""
    rates = {sentence: Levenshtein.normalized_distance(other, words) for sentence, other in training.items()
             if len(other) >= MIN_WORDS}
    best = min(rates, key=rates.get, default="")
    return best if best and rates[best] <= MAX_EDIT_RATE else ""
