"""Memorization check: a clip that says a training sentence instead of its text, or sounds like one training clip.

An overfitted model repeats its training sentences. Such a clip sounds exactly like the voice and scores well in SIM and MOS.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from tts_kit import io
from tts_kit.evaluation import metrics, wer
from tts_kit.evaluation.metrics import MetricModels

CACHE = "embeddings.safetensors"
GROUND_TRUTH = "ground_truth"
MAX_EDIT_RATE, MIN_EDIT_RATE = 0.35, 0.5
"""Of the words of a clip: at most to the training sentence that it repeats, at least to the text it should say."""
MIN_WORDS = 3
"""Of a training sentence; shorter ones occur by chance."""


def check(rows: Sequence[dict], folder: Path, training: Mapping[str, Path], models: MetricModels) -> list[dict]:
    """Return the scored rows; generated ones with their nearest training clip, its similarity, and whether they repeat it.

    `training` are the training clips, text -> file; held-out recordings among the rows show how near an honest clip comes.
    """
    words = {text: wer.normalize(text).split() for text in training}
    checked = [row for row in rows if row.get("transcript") and (row["seed"] is not None or row["arm"] == GROUND_TRUTH)]
    if not training or not checked:
        return list(rows)
    paths = [*training.values(), *(folder / row["file"] for row in checked)]
    embeddings = _embeddings(paths, folder / CACHE, models)
    candidates = {text: embeddings[path] for text, path in training.items() if embeddings[path] is not None}
    neighbors = {row["file"]: nearest(embeddings[folder / row["file"]], candidates) for row in checked}
    recordings = [neighbors[row["file"]] for row in checked if row["arm"] == GROUND_TRUTH]
    threshold = memorized_threshold([neighbor[1] for neighbor in recordings if neighbor])
    return [row | _verdict(row, neighbors[row["file"]] or ("", None), words, training, threshold)
            if row["file"] in neighbors and row["arm"] != GROUND_TRUTH else row for row in rows]


def _verdict(row: dict, neighbor: tuple[str, float | None], words: Mapping[str, Sequence[str]],
             training: Mapping[str, Path], threshold: float) -> dict:
    text, similarity = neighbor
    repeated = matched_training_text(row["transcript"], row["text"], words)
    shown = repeated or text
    return {"nearest_clip": training[shown].name if shown else "",
            "nearest_similarity": None if similarity is None else round(similarity, 4),
            "memorized": bool(repeated) or (similarity is not None and similarity > threshold)}


def matched_training_text(transcript: str, text: str, training: Mapping[str, Sequence[str]]) -> str:
    """Return the training sentence that a clip says instead of `text`, empty where there is none.

    `training` are the words of each training sentence.
    """
    words = wer.normalize(transcript).split()
    # a misrecognized word can turn one sentence into another much like it; that is no repetition
    if word_edit_rate(wer.normalize(text).split(), words) < MIN_EDIT_RATE:
        return ""
    rates = {sentence: word_edit_rate(other, words) for sentence, other in training.items() if len(other) >= MIN_WORDS}
    best = min(rates, key=rates.get, default="")
    return best if best and rates[best] <= MAX_EDIT_RATE else ""


def word_edit_rate(one: Sequence[str], other: Sequence[str]) -> float:
    """Return the word edit distance over the length of the longer side."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(list(one), list(other))


def nearest(embedding: np.ndarray | None, candidates: Mapping[str, np.ndarray]) -> tuple[str, float] | None:
    """Return (text, cosine) of the most similar training clip; None where there is no embedding."""
    if embedding is None or not candidates:
        return None
    return max(((text, float(embedding @ other)) for text, other in candidates.items()), key=lambda pair: pair[1])


def memorized_threshold(recordings: Sequence[float]) -> float:
    """Return the similarity to a training clip above which a clip is that clip: half way from the nearest held-out
    recording to identity."""
    return (1 + max(recordings)) / 2 if recordings else np.inf


def _embeddings(paths: Sequence[Path], cache: Path, models: MetricModels) -> dict[Path, np.ndarray | None]:
    """Return the speaker embedding of each clip, None without sound; cached by the content of the file."""
    cached = load_file(cache) if cache.is_file() else {}
    model = models.names.get("sim", "").encode()
    keys = {path: hashlib.sha256((path.read_bytes() if path.is_file() else b"") + model).hexdigest()[:24] for path in paths}
    missing = [path for path in keys if keys[path] not in cached]
    for path in tqdm(missing, desc="memorization", unit="clip", disable=len(missing) < 20):
        embedding = models.embed(metrics.read(path), metrics.SAMPLE_RATE)
        cached[keys[path]] = (np.zeros(0) if embedding is None else embedding).astype(np.float32)
    if missing:
        io.write_bytes(cache, save({key: cached[key] for key in dict.fromkeys(keys.values())}))
    return {path: cached[key] if len(cached[key]) else None for path, key in keys.items()}
