"""Voice activity detection: where somebody speaks in a recording, and which stretches of speech make good clips."""

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit.errors import KitError

SAMPLE_RATE = 16_000  # of the VAD, and of Whisper and the speaker encoder as well
FRAME = 0.01  # seconds of one frame of a `VadTrack`
WINDOW = 512  # samples per probability of the VAD
CONTEXT = 2 * SAMPLE_RATE // WINDOW * WINDOW
"""Samples before a block that the VAD reads again, because its state starts empty with every block."""
ONSET, OFFSET = 0.5, 0.35  # probabilities at which speech begins and below which it ends
MIN_SPEECH, MIN_PAUSE, MAX_PAUSE = 0.10, 0.25, 1.0
"""Seconds: shorter speech is ignored, shorter pauses are no place to cut, longer ones never stay inside a clip."""
EDGE_DB, MAX_EXTENSION = 3.0, 0.4
"""A quiet sound at the edge of speech belongs to it while it is so many dB over the noise, for at most so many seconds."""
FULL_SCALE, MAX_CLIPPED = 0.999, 0.001
"""Level that counts as full scale, and the share of samples there above which audio is clipped."""
MIN_SECONDS, GOOD_SECONDS, LONG_SECONDS, MAX_SECONDS = 1.0, 3.0, 12.0, 29.5
"""Speech per clip: the limits, and the range without a penalty."""


@dataclass(frozen=True)
class VadTrack:
    """Level, speech probability and clipping of a recording in frames of 10 ms."""
    level_db: np.ndarray  # (frames,) float32, dBFS
    speech_prob: np.ndarray  # (frames,) float32
    clipped: np.ndarray  # (frames,) float32, share of samples at full scale

    @property
    def seconds(self) -> float:
        return len(self.level_db) * FRAME

    @functools.cached_property
    def noise_floor_db(self) -> float:
        """Level of the background noise: the lower quartile of what is not speech."""
        silence = self.level_db[self.speech_prob < OFFSET]
        return float(np.percentile(silence, 25) if len(silence) >= 20 else np.percentile(self.level_db, 5))


def detect_speech(blocks: Iterable[np.ndarray]) -> VadTrack:
    """Run the VAD over blocks of (samples,) at 16 kHz, with one block in memory at a time."""
    model, hop = _load_vad(), round(FRAME * SAMPLE_RATE)
    level_db, clipped, window_probs = [], [], []
    context = np.zeros(0, np.float32)
    for block in _equal_blocks(blocks, hop * WINDOW):
        frames = np.pad(block, (0, -len(block) % hop)).reshape(-1, hop).astype(np.float64)
        level_db.append(10 * np.log10((frames ** 2).mean(axis=1) + 1e-10).astype(np.float32))
        clipped.append((np.abs(frames) >= FULL_SCALE).mean(axis=1, dtype=np.float32))
        samples = np.concatenate([context, block])
        probs = model(np.pad(samples, (0, -len(samples) % WINDOW)))[len(context) // WINDOW:]
        window_probs.append(np.asarray(probs, np.float32).reshape(-1))
        context = block[-CONTEXT:]
    level_db, clipped, window_probs = (np.concatenate(arrays) for arrays in (level_db, clipped, window_probs))
    window_of_frame = (np.arange(len(level_db)) * FRAME * SAMPLE_RATE / WINDOW).astype(int)
    return VadTrack(level_db, window_probs[np.minimum(window_of_frame, len(window_probs) - 1)], clipped)


def speech_segments(track: VadTrack) -> list[tuple[int, int]]:
    """(start, end) in frames of every stretch of speech; the pauses between them are long enough to cut in."""
    speaking, start, spans = False, 0, []
    for frame, probability in enumerate([*track.speech_prob, 0.0]):
        if not speaking and probability >= ONSET:
            speaking, start = True, frame
        elif speaking and probability < OFFSET:
            speaking = False
            spans.append((start, frame))
    # smoothed over 50 ms, so that noise does not reach the threshold by chance
    power = np.convolve(10 ** (track.level_db.astype(np.float64) / 10), np.ones(5) / 5, "same")
    audible = 10 * np.log10(power + 1e-12) >= track.noise_floor_db + EDGE_DB
    joined: list[tuple[int, int]] = []
    for start, end in (_extend(span, audible) for span in spans):
        if joined and start - joined[-1][1] < round(MIN_PAUSE / FRAME):
            joined[-1] = (joined[-1][0], max(end, joined[-1][1]))
        else:
            joined.append((start, end))
    return [(start, end) for start, end in joined if end - start >= round(MIN_SPEECH / FRAME)]


def merge_segments(track: VadTrack, speech: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Group stretches of speech into clips, by the division with the lowest total cost; (start, end) of each in frames.

    A clipped stretch never shares a clip with others, which would be rejected with it."""
    clipped = [track.clipped[start:end].mean() > MAX_CLIPPED for start, end in speech]
    best = [(0.0, 0)]  # best[n]: lowest cost of the first n stretches, and where the last clip of that division starts
    for last in range(len(speech)):
        options = []
        for first in range(last, -1, -1):
            if first < last and (_pause(speech, first) > MAX_PAUSE or clipped[first] != clipped[last]
                                 or (speech[last][1] - speech[first][0]) * FRAME > MAX_SECONDS):
                break
            options.append((best[first][0] + _clip_cost(speech, first, last), first))
        best.append(min(options))
    clips, end = [], len(speech)
    while end:
        first = best[end][1]
        clips.append((speech[first][0], speech[end - 1][1]))
        end = first
    return clips[::-1]


def lowest_energy_frame(track: VadTrack, start: int, end: int) -> int:
    """The frame of a pause where a cut is least audible: the middle of its quietest 50 ms."""
    return start + int(np.convolve(track.level_db[start:end], np.ones(5) / 5, "same").argmin())


def _clip_cost(speech: Sequence[tuple[int, int]], first: int, last: int) -> float:
    """Penalty of a clip for its length, the pauses inside it, and a short pause at its end."""
    seconds = (speech[last][1] - speech[first][0]) * FRAME
    length = 3 * max(0.0, GOOD_SECONDS - seconds) + max(0.0, seconds - LONG_SECONDS) + 100 * (seconds < MIN_SECONDS)
    inside = sum(_pause(speech, index) for index in range(first, last))
    after = _pause(speech, last) if last + 1 < len(speech) else MAX_PAUSE
    return length + inside + 0.5 / min(after, MAX_PAUSE)


def _pause(speech: Sequence[tuple[int, int]], index: int) -> float:
    """Seconds between a stretch of speech and the next."""
    return (speech[index + 1][0] - speech[index][1]) * FRAME


def _extend(span: tuple[int, int], audible: np.ndarray) -> tuple[int, int]:
    """Add the quiet sounds at the edges of speech, which the VAD leaves out."""
    (start, end), limit = span, round(MAX_EXTENSION / FRAME)
    first, last = max(0, start - limit), min(len(audible), end + limit)
    while start > first and audible[start - 1]:
        start -= 1
    while end < last and audible[end]:
        end += 1
    return start, end


def _equal_blocks(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in blocks of one size; the last one may be shorter."""
    rest = np.zeros(0, np.float32)
    for block in blocks:
        rest = np.concatenate([rest, block])
        while len(rest) >= size:
            yield rest[:size]
            rest = rest[size:]
    if len(rest):
        yield rest


@functools.cache
def _load_vad():
    """Silero VAD, whose weights come with faster-whisper: (samples,) -> a probability per WINDOW samples."""
    try:
        from faster_whisper.vad import get_vad_model
    except ImportError as error:
        raise KitError("segmenting a recording needs faster-whisper, which brings the voice activity detector: pip install "
                       '"tts-kit[audio]"') from error
    return get_vad_model()
