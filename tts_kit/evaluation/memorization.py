"""Whether a clip is a copy of a training clip: learnt words instead of those asked for, or a sound too near to one take.

A model that has learnt too long says its training sentences instead of what it is asked for. Such a clip sounds exactly like
the voice, and all other judges praise it.
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

CACHE = "voices.safetensors"
GROUND_TRUTH = "ground_truth"
ALIKE, UNLIKE = 0.35, 0.5
"""Shares of words that are wrong: at most of the training sentence that a clip says, at least of the one asked."""
FEWEST_WORDS = 3
"""Of a training sentence; shorter ones are said by chance."""


def check(rows: Sequence[dict], folder: Path, training: Mapping[str, Path], metric_models: MetricModels) -> list[dict]:
    """The judged rows, spoken ones with the training clip they are nearest to, how near, and whether they are copies.

    `training` are the learnt clips by their texts; real held-out clips among the rows say how near an honest clip comes.
    """
    learnt = {text: wer.normalize(text).split() for text in training}
    wanted = [row for row in rows if row.get("transcript") and (row["seed"] is not None or row["arm"] == GROUND_TRUTH)]
    if not training or not wanted:
        return list(rows)
    heard = _voices([*training.values(), *(folder / row["file"] for row in wanted)], folder / CACHE, metric_models)
    takes = {text: heard[path] for text, path in training.items() if heard[path] is not None}
    near = {row["file"]: nearest(heard[folder / row["file"]], takes) for row in wanted}
    limit = memorized_threshold([near[row["file"]][1] for row in wanted if row["arm"] == GROUND_TRUTH and near[row["file"]]])
    checked = []
    for row in rows:
        if row["file"] not in near or row["arm"] == GROUND_TRUTH:
            checked.append(row)
            continue
        said = matched_training_text(row["transcript"], row["text"], learnt)
        text, alike = near[row["file"]] or ("", None)
        is_near = alike is not None and alike > limit
        chosen = said or text
        checked.append(row | {"nearest_clip": training[chosen].name if chosen else "",
                              "nearest_similarity": None if alike is None else round(alike, 4),
                              "memorized": bool(said) or is_near})
    return checked


def matched_training_text(heard: str, asked: str, learnt: Mapping[str, Sequence[str]]) -> str:
    """The training sentence that is heard instead of the one asked for, empty where none is; `learnt` are its words."""
    said = wer.normalize(heard).split()
    # a word misheard can make one sentence of another that is much like it; that is no copy
    if word_edit_rate(wer.normalize(asked).split(), said) < UNLIKE:
        return ""
    shares = {text: word_edit_rate(words, said) for text, words in learnt.items() if len(words) >= FEWEST_WORDS}
    nearest = min(shares, key=shares.get, default="")
    return nearest if nearest and shares[nearest] <= ALIKE else ""


def word_edit_rate(wanted: Sequence[str], said: Sequence[str]) -> float:
    """How many words of the longer side differ, of all of them."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_distance(list(wanted), list(said))


def nearest(voice: np.ndarray | None, takes: Mapping[str, np.ndarray]) -> tuple[str, float] | None:
    """(text of the training clip whose sound is most alike, its cosine); None where nothing is to be heard."""
    if voice is None or not takes:
        return None
    return max(((text, float(voice @ each)) for text, each in takes.items()), key=lambda found: found[1])


def memorized_threshold(real: Sequence[float]) -> float:
    """The likeness to one training clip above which a clip is that clip: half way from the nearest real one to the same."""
    return (1 + max(real)) / 2 if real else np.inf


def _voices(paths: Sequence[Path], cache: Path, metric_models: MetricModels) -> dict[Path, np.ndarray | None]:
    """The voice of each clip, None where nothing is to be heard; listened to once, kept by what the file holds."""
    known = load_file(cache) if cache.is_file() else {}
    names = {path: _name(path, metric_models) for path in paths}
    missing = [path for path in names if names[path] not in known]
    for path in tqdm(missing, desc="memorized", unit="clip", disable=len(missing) < 20):
        voice = metric_models.voice(metrics.read(path), metrics.SAMPLE_RATE)
        known[names[path]] = (np.zeros(0) if voice is None else voice).astype(np.float32)
    if missing:
        io.write_bytes(cache, save({name: known[name] for name in dict.fromkeys(names.values())}))
    return {path: known[name] if len(known[name]) else None for path, name in names.items()}


def _name(path: Path, metric_models: MetricModels) -> str:
    content = path.read_bytes() if path.is_file() else b""
    return hashlib.sha256(content + metric_models.names.get("sim", "").encode()).hexdigest()[:24]
