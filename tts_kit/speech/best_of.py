"""Best of several takes: each sentence is generated with several seeds, and models choose the take that is kept.

The Whisper that chooses is a smaller one than that of the metrics, so that no model grades its own choice. It transcribes
nothing: it says how probable the sentence is as the transcript of a take, which costs less."""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from tts_kit.config import MAX_TAKES
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.generation.engine import Generation

NAMES = {"wer": "Whisper tiny.en int8", "sim": "Resemblyzer"}
"""Metric -> model that chooses."""


@dataclasses.dataclass(frozen=True)
class ChoiceModels:
    """The models that choose."""
    text_probabilities: Callable[[Sequence[np.ndarray], str], Sequence[float]]
    """(takes (samples,) at 16 kHz, text) -> for each take the mean probability of the text's tokens."""
    embed: Callable[[np.ndarray, int], np.ndarray | None]
    """((samples,), rate) -> speaker embedding of length 1; None without sound."""


class TakeChooser:
    """Ranks the takes of a sentence: the most probable words, then speaker similarity, then whether it ended with EOS."""

    def __init__(self, takes: int, clips: Iterable[str | Path] = (), models: ChoiceModels | None = None):
        """`clips` are recordings of the voice; without any, similarity does not count."""
        if not 1 < takes <= MAX_TAKES:
            raise KitError(f"best of {takes} was asked for; wanted 2 to {MAX_TAKES}.")
        self.takes, self.models = takes, models or load_models()
        embeddings = [self.models.embed(metrics.read(path), metrics.SAMPLE_RATE) for path in clips]
        known = [embedding for embedding in embeddings if embedding is not None]
        self.target = np.mean(known, axis=0) / np.linalg.norm(np.mean(known, axis=0)) if known else None

    def choose(self, generations: Sequence[Generation], samples: Sequence[np.ndarray], rate: int, text: str) -> Generation:
        """Return the best of the takes with audio (samples,) at `rate`, and why it is."""
        usable = [number for number, take in enumerate(samples) if not metrics.unusable_reason(take, rate)]
        probabilities = np.zeros(len(samples))
        if usable:
            takes = [metrics.normalized(samples[number], rate) for number in usable]
            probabilities[usable] = self.models.text_probabilities(takes, text)
        percents = np.round(100 * probabilities)  # takes that differ by less are equal in words
        tied = np.flatnonzero(percents == max(percents))
        similarities = {number: self.similarity(samples[number], rate) for number in tied}
        best = max(similarities, key=lambda number: (similarities[number], generations[number].is_complete, -number))
        reason = f"take {best + 1} of {self.takes}: words {percents[best]:.0f} % probable"
        reason += f", SIM {similarities[best]:.2f}" if self.target is not None else ""
        return dataclasses.replace(generations[best], attempts=self.takes, choice=reason)

    def similarity(self, samples: np.ndarray, rate: int) -> float:
        """Return the cosine to the mean embedding of the voice; 0 where either is missing."""
        embedding = None if self.target is None else self.models.embed(samples, rate)
        return 0.0 if embedding is None else float(embedding @ self.target)


@functools.cache
def load_models() -> ChoiceModels:
    """Load the models that choose: Whisper tiny.en and Resemblyzer, from wheels, on the CPU."""
    if missing := backends.missing_packages():
        raise KitError(f"choosing among takes needs the metric models, and {', '.join(missing)} are not installed. Install "
                       f"them: {metrics.INSTALL}; or leave best-of out.")
    whisper = transcribe.load_whisper(transcribe.BUNDLED_TINY, cpu_threads=2)
    speaker = MetricModels(NAMES, None, backends.load_resemblyzer(), predict_mos=None)
    return ChoiceModels(functools.partial(transcribe.text_probabilities, whisper), speaker.embed)
