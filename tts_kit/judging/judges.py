"""What is measured on a clip: which words are heard in it, whose voice it is, how natural it sounds; one protocol."""

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from tts_kit import audio
from tts_kit.problem import Problem

RATE = 16_000
"""Every judge hears this rate, whatever the model speaks at."""
PAD = 0.1
SHORTEST = 0.1
INSTALL = ("pip install -r requirements-judges.txt -c constraints.txt && pip install --no-deps -r "
           "requirements-judges-alone.txt")
WORST_NATURALNESS = 1.0
# the normaliser deletes whatever stands in brackets, and a curly apostrophe would cut a word in two
OPENED = str.maketrans({**dict.fromkeys("()[]<>", " "), "\N{RIGHT SINGLE QUOTATION MARK}": "'"})
SPOKEN = re.compile(r"\s*\bo'clock\b|:00\b")
SAME = ((re.compile(r"\bcan not\b"), "cannot"), (re.compile(r"\bokay\b"), "ok"),
        (re.compile(r"\bone\b"), "1"),  # a lone 1 is written as a word, within a number it is not
        (re.compile(r"(?<=\d)(?=\d)"), " "))  # 3:30, 330 and 3 30; 4-1-5-0 and 4150


@dataclass(frozen=True)
class Judgement:
    """What the judges say of one clip."""
    words: int
    """Words of the text, normalised."""
    wrong_words: int
    """Words left out, added or replaced; all of them in a clip without sound."""
    heard: str
    """What was written down."""
    naturalness: float
    """Predicted opinion, 1 to 5."""
    embedding: np.ndarray | None
    """The voice as a direction, of length 1; None in a clip without sound."""
    failure: str
    """Why nothing could be heard: missing, empty, silent or broken; empty where something could."""


@dataclass(frozen=True)
class Judges:
    """A set of judges, whichever is installed; each takes (samples,) at 16 kHz."""
    names: dict[str, str]
    """Measure -> judge and version, as results name it."""
    transcribe: Callable[[np.ndarray], str]
    recognise: Callable[[np.ndarray], np.ndarray]
    """The voice as numbers; of two clips, the more alike the smaller the angle between them."""
    rate: Callable[[np.ndarray], float]
    threads: int = 2

    @property
    def name(self) -> str:
        return name(self.names)

    def judge(self, samples: np.ndarray | None, rate: int, text: str) -> Judgement:
        """All measures of (samples,) that should say `text`; None where there is no clip."""
        failure = fault(samples, rate)
        heard = "" if failure else self._alone(self.transcribe, levelled(samples, rate))
        words, wrong = count_wrong_words(text, heard)
        if failure:
            return Judgement(words, wrong, heard, WORST_NATURALNESS, None, failure)
        wave = prepared(samples, rate)
        return Judgement(words, wrong, heard, float(self._alone(self.rate, wave)), self.embed(samples, rate), "")

    def embed(self, samples: np.ndarray, rate: int) -> np.ndarray:
        """The voice of (samples,) as a direction of length 1."""
        if failure := fault(samples, rate):
            raise Problem(f"a clip to compare voices with is {failure}. Leave it out, or record it again.")
        voice = np.asarray(self._alone(self.recognise, prepared(samples, rate)), dtype=np.float64)
        return voice / np.linalg.norm(voice)

    def _alone(self, judge: Callable, wave: np.ndarray):
        with _few_threads(self.threads):
            return judge(wave)


def load(threads: int = 2) -> Judges:
    """The judges that are installed, on at most `threads` threads; without any, what to install."""
    from tts_kit.judging import offline

    return offline.load(threads)


def present() -> str:
    """The name of the set that `load` would give, empty where none is installed; nothing heavy is imported for it."""
    from tts_kit.judging import offline

    return "" if offline.missing() else name(offline.names())


def name(names: dict[str, str]) -> str:
    """A set of judges in one line; scores of two sets are not compared."""
    return ", ".join(f"{measure} by {judge}" for measure, judge in names.items())


def fault(samples: np.ndarray | None, rate: int) -> str:
    """What keeps (samples,) from being heard, empty where nothing does."""
    if samples is None:
        return "missing"
    if len(samples) < SHORTEST * rate:
        return "empty"
    if not np.isfinite(samples).all():
        return "broken"
    return "silent" if np.abs(samples).max() < audio.SILENCE else ""


def read(path: str | Path, rate: int = RATE) -> np.ndarray | None:
    """A clip as (samples,), silence included; None where there is no readable file."""
    try:
        return audio.read(path, rate)
    except Problem as problem:
        # a silent or unreadable clip is a result and not a mishap
        silent = str(problem).startswith(f"{path} is silent")
        return np.zeros(rate if silent else 0, np.float32) if Path(path).is_file() else None


def levelled(samples: np.ndarray, rate: int) -> np.ndarray:
    """(samples,) at 16 kHz and at one loudness: judges hear louder speech as another voice."""
    return audio.level(audio.resample(samples, rate, RATE), RATE)


def prepared(samples: np.ndarray, rate: int) -> np.ndarray:
    """`levelled`, and without the silence around the voice."""
    return audio.level(audio.trim(audio.resample(samples, rate, RATE), RATE, PAD, PAD), RATE)


def count_wrong_words(text: str, heard: str) -> tuple[int, int]:
    """(words of `text`, words that `heard` has wrong): added words count too, so that it can be more than all."""
    import jiwer

    wanted, said = normalised(text), normalised(heard)
    if not wanted or not said:
        return len(wanted.split()), len(wanted.split()) or len(said.split())
    found = jiwer.process_words(wanted, said)
    return len(wanted.split()), found.substitutions + found.deletions + found.insertions


def normalised(text: str) -> str:
    """Words as both sides of a comparison are written: one spelling, numbers in single digits, no punctuation."""
    written = _normaliser()(SPOKEN.sub("", text.translate(OPENED)))
    for seen, wanted in SAME:
        written = seen.sub(wanted, written)
    return " ".join(written.split())


@functools.cache
def _normaliser() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()


@contextlib.contextmanager
def _few_threads(most: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(min(before, most))
    try:
        yield
    finally:
        torch.set_num_threads(before)
