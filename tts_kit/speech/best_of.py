"""Best of several takes: each sentence is generated with several seeds, and models choose the take that is kept.

The Whisper that chooses is a smaller one than that of the metrics, so that no model grades its own choice."""

import dataclasses
import functools
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from tts_kit.config import MAX_TAKES
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels
from tts_kit.generation.engine import Generation

NAMES = {"wer": "Whisper tiny.en int8", "sim": "Resemblyzer"}
"""Metric -> model that chooses."""


class TakeChooser:
    """Ranks the takes of a sentence: fewest word errors, then speaker similarity, then whether it ended with EOS."""

    def __init__(self, takes: int, clips: Iterable[str | Path] = (), models: MetricModels | None = None):
        """`clips` are recordings of the voice; without any, similarity does not count."""
        if not 1 < takes <= MAX_TAKES:
            raise KitError(f"best of {takes} was asked for; wanted 2 to {MAX_TAKES}.")
        self.takes, self.models = takes, models or load_models()
        embeddings = [self.models.embed(metrics.read(path), metrics.SAMPLE_RATE) for path in clips]
        known = [embedding for embedding in embeddings if embedding is not None]
        self.target = np.mean(known, axis=0) / np.linalg.norm(np.mean(known, axis=0)) if known else None

    def choose(self, generations: Sequence[Generation], samples: Sequence[np.ndarray], rate: int, text: str) -> Generation:
        """Return the best of the takes with audio (samples,) at `rate`, and why it is."""
        measured = [self.models.measure(take, rate, text) for take in samples]
        ranks = [(clip.word_errors or 0, -self.similarity(clip), not generation.is_complete, number)
                 for number, (generation, clip) in enumerate(zip(generations, measured))]
        errors, similarity, _, best = min(ranks)
        reason = f"take {best + 1} of {self.takes}: {errors} of {measured[best].ref_words} words wrong"
        reason += f", SIM {-similarity:.2f}" if self.target is not None else ""
        return dataclasses.replace(generations[best], attempts=self.takes, choice=reason)

    def similarity(self, clip: ClipMetrics) -> float:
        """Return the cosine to the mean embedding of the voice; 0 where either is missing."""
        return 0.0 if self.target is None or clip.embedding is None else float(clip.embedding @ self.target)


@functools.cache
def load_models(threads: int = 2) -> MetricModels:
    """Load the models that choose: Whisper tiny.en and Resemblyzer, from wheels, on the CPU."""
    if missing := backends.missing_packages():
        raise KitError(f"choosing among takes needs the metric models, and {', '.join(missing)} are not installed. Install "
                       f"them: {metrics.INSTALL}; or leave best-of out.")
    whisper = transcribe.load_whisper(transcribe.BUNDLED_TINY, cpu_threads=threads)
    return MetricModels(NAMES, backends.transcriber(whisper), backends.load_resemblyzer(), predict_mos=None)
