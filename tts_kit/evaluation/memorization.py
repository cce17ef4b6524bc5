"""Memorization check: a clip that says a training sentence instead of its text, or sounds like one training clip.

An overfitted model repeats its training sentences. Such a clip sounds exactly like the voice and scores well in SIM and MOS.
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from rapidfuzz.distance import Levenshtein
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
    checked = [row for row in rows if row.get("transcript") and (row["seed"] is not None or row["arm"] == GROUND_TRUTH)]
    if not training or not checked:
        return list(rows)
    embeddings = _embeddings([*training.values(), *(folder / row["file"] for row in checked)], folder / CACHE, models)
    words = {text: wer.normalize(text).split() for text in training}
    similarities = {}  # file of a row -> text -> cosine to that training clip
    for row in checked:
        embedding = embeddings[folder / row["file"]]
        similarities[row["file"]] = {} if embedding is None else {
            text: float(embedding @ embeddings[path]) for text, path in training.items() if embeddings[path] is not None}
    recordings = [max(similarities[row["file"]].values()) for row in checked
                  if row["arm"] == GROUND_TRUTH and similarities[row["file"]]]
    # half way from the nearest held-out recording to identity
    threshold = (1 + max(recordings)) / 2 if recordings else np.inf
    findings = {}
    for row in checked:
        if row["arm"] != GROUND_TRUTH:
            to_clips = similarities[row["file"]]
            nearest = max(to_clips, key=to_clips.get, default="")
            similarity = to_clips.get(nearest)
            repeated = matched_training_text(row["transcript"], row["text"], words)
            findings[row["file"]] = {
                "nearest_clip": training[repeated or nearest].name if repeated or nearest else "",
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
