"""Where somebody speaks, where a recording can be cut without hurting a word, and which cuts make good clips."""

import functools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.errors import KitError

RATE = 16_000
"""Of the voice activity detector."""
STEP = 0.01
"""Seconds between two levels."""
WINDOW = 512
"""Samples of one verdict of the detector."""
SPEECH, STILL_SPEECH = 0.5, 0.35
"""Probability with which speech begins, and under which it ends."""
SHORTEST_SPEECH, SHORTEST_PAUSE = 0.10, 0.25
OVER_THE_ROOM, WIDEST = 3.0, 0.4
"""Decibels over the room, and seconds, in which a quiet sound still belongs to the speech beside it."""
LONGEST_PAUSE = 1.0
"""Seconds of silence that are never kept inside a clip."""
FULL_SCALE, MOST_CLIPPED = 0.999, 0.001
"""What counts as full scale, and the share of samples there above which a sound is clipped."""
SHORTEST, GOOD, LONG, LONGEST = 1.0, 3.0, 12.0, 29.5
"""Seconds of speech: in the shortest clip, in the wanted ones, and in the longest, which with room around it has 30."""
WARM_UP = 2 * RATE // WINDOW * WINDOW
"""Samples that the detector hears again before a block, because it knows nothing at first."""


@dataclass(frozen=True)
class VadTrack:
    """A recording as its cuts are decided: one level and one verdict every 10 ms."""
    levels: np.ndarray
    """(steps,) float32, dB of full scale."""
    speech: np.ndarray
    """(steps,) float32, probability that somebody speaks."""
    full: np.ndarray
    """(steps,) float32, share of samples at full scale."""

    @property
    def seconds(self) -> float:
        return len(self.levels) * STEP

    @functools.cached_property
    def floor(self) -> float:
        """Level of the room, in dB: of the quieter half of what is not speech."""
        still = self.levels[self.speech < STILL_SPEECH]
        return float(np.percentile(still if len(still) >= 20 else self.levels, 25 if len(still) >= 20 else 5))


def detect_speech(blocks: Iterable[np.ndarray]) -> VadTrack:
    """Blocks of (samples,) at 16 kHz -> levels and verdicts; one block is in memory at a time."""
    detect, hop = _detector(), round(STEP * RATE)
    levels, verdicts, full = [], [], []
    before, left = np.zeros(0, np.float32), np.zeros(0, np.float32)
    for block in _even(blocks, RATE // 100 * WINDOW):
        whole = np.pad(block, (0, -len(block) % hop)).reshape(-1, hop).astype(np.float64)
        levels.append(10 * np.log10((whole ** 2).mean(axis=1) + 1e-10).astype(np.float32))
        full.append((np.abs(whole) >= FULL_SCALE).mean(axis=1, dtype=np.float32))
        heard = np.concatenate([before, block])
        found = detect(np.pad(heard, (0, -len(heard) % WINDOW)))[len(before) // WINDOW:]
        verdicts.append(np.asarray(found, np.float32).reshape(-1))
        before = block[-WARM_UP:] if len(block) >= WARM_UP else left
    levels, verdicts, full = (np.concatenate(each) for each in (levels, verdicts, full))
    places = np.minimum((np.arange(len(levels)) * STEP * RATE / WINDOW).astype(int), len(verdicts) - 1)
    return VadTrack(levels, verdicts[places], full)


def speech_segments(heard: VadTrack) -> list[tuple[int, int]]:
    """(begin, end) in steps of every stretch of speech; between two lies a pause that is long enough to cut in."""
    speaking, found, begin = False, [], 0
    for step, probability in enumerate(heard.speech):
        if speaking != (probability >= (STILL_SPEECH if speaking else SPEECH)):
            speaking = not speaking
            if speaking:
                begin = step
            else:
                found.append((begin, step))
    if speaking:
        found.append((begin, len(heard.speech)))
    levels = _smooth(heard.levels)
    found = [_widened(run, levels, heard.floor) for run in found]
    joined = []
    for begin, end in found:
        if joined and begin - joined[-1][1] < round(SHORTEST_PAUSE / STEP):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((begin, end))
    return [(begin, end) for begin, end in joined if end - begin >= round(SHORTEST_SPEECH / STEP)]


def merge_segments(stretches: Sequence[tuple[int, int]], clipped: Sequence[bool]) -> list[tuple[int, int]]:
    """Stretches of speech -> clips, (first, last) stretch of each: the division with the least that one would mind.

    A clipped stretch never shares a clip with a sound one, which would be left out with it."""
    best: list[tuple[float, int]] = [(0.0, 0)]
    for last in range(len(stretches)):
        options = []
        for first in range(last, -1, -1):
            if first < last and (_pause(stretches, first) > LONGEST_PAUSE or clipped[first] != clipped[last]):
                break
            seconds = (stretches[last][1] - stretches[first][0]) * STEP
            if first < last and seconds > LONGEST:
                break
            options.append((best[first][0] + _burden(stretches, first, last, seconds), first))
        best.append(min(options))
    clips, last = [], len(stretches)
    while last:
        first = best[last][1]
        clips.append((first, last - 1))
        last = first
    return clips[::-1]


def lowest_energy_frame(heard: VadTrack, begin: int, end: int) -> int:
    """The step between two stretches of speech at which a cut is heard least: the middle of the quietest 50 ms."""
    levels = np.convolve(heard.levels[begin:end], np.ones(5) / 5, "same")
    return begin + int(levels.argmin())


def _burden(stretches: Sequence[tuple[int, int]], first: int, last: int, seconds: float) -> float:
    """What is wrong with a clip: its length, the pauses inside it, and how short the pause is that it ends in."""
    length = 3 * max(0.0, GOOD - seconds) + max(0.0, seconds - LONG) + 100 * (seconds < SHORTEST)
    inside = sum(_pause(stretches, place) for place in range(first, last))
    after = _pause(stretches, last) if last + 1 < len(stretches) else LONGEST_PAUSE
    return length + inside + 0.5 / min(after, LONGEST_PAUSE)


def _pause(stretches: Sequence[tuple[int, int]], place: int) -> float:
    """Seconds between a stretch and the next."""
    return (stretches[place + 1][0] - stretches[place][1]) * STEP


def _widened(run: tuple[int, int], levels: np.ndarray, floor: float) -> tuple[int, int]:
    """A stretch of speech with the quiet sounds at its edges, which the detector leaves out."""
    loud, most = floor + OVER_THE_ROOM, round(WIDEST / STEP)
    begin, end = run
    for _ in range(most):
        if begin == 0 or levels[begin - 1] < loud:
            break
        begin -= 1
    for _ in range(most):
        if end == len(levels) or levels[end] < loud:
            break
        end += 1
    return begin, end


def _smooth(levels: np.ndarray) -> np.ndarray:
    """Levels over 50 ms, in which a room's noise hardly wavers."""
    power = np.convolve(10 ** (levels.astype(np.float64) / 10), np.ones(5) / 5, "same")
    return 10 * np.log10(power + 1e-12)


def _even(blocks: Iterable[np.ndarray], size: int) -> Iterable[np.ndarray]:
    """The same samples in blocks of one size, the last one shorter."""
    left = np.zeros(0, np.float32)
    for block in blocks:
        left = np.concatenate([left, block])
        while len(left) >= size:
            yield left[:size]
            left = left[size:]
    if len(left):
        yield left


@functools.cache
def _detector():
    """silero's network, whose weights lie in faster-whisper's wheel: (samples,) -> a probability per 512 of them."""
    try:
        from faster_whisper.vad import get_vad_model
    except ImportError as error:
        raise KitError("cutting a recording needs faster-whisper, which brings the voice activity detector and the "
                      "transcriber: pip install faster-whisper -c constraints.txt") from error
    return get_vad_model()
