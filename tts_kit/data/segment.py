"""Split long recordings into clips of a sentence or two, at silences only, all at one loudness.

Each recording gets a folder with `clips/`, `rejected/` and `segments.jsonl`, which lists every segment with its position,
its measurements and, if it was rejected, the reason."""

import dataclasses
import functools
import hashlib
import itertools
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tts_kit import audio, io
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.errors import KitError
from tts_kit.progress import tqdm
from tts_kit.run import changed_inputs, write_inputs

SEGMENTS = "segments.jsonl"
MODEL_SAMPLE_RATE = 16_000  # of the VAD, and of Whisper and the speaker encoder as well
FRAME = 0.01  # seconds of one frame of a `VadTrack`
WINDOW = 512  # samples per probability of the VAD
CONTEXT = 2 * MODEL_SAMPLE_RATE // WINDOW * WINDOW
"""Samples before a block that the VAD reads again, because its state starts empty with every block."""
ONSET, OFFSET = 0.5, 0.35  # probabilities at which speech begins and below which it ends
MIN_SPEECH, MIN_PAUSE, MAX_PAUSE = 0.10, 0.25, 1.0
"""Seconds: shorter speech is ignored, shorter pauses are no place to cut, longer ones never stay inside a clip."""
EDGE_DB, MAX_EXTENSION = 3.0, 0.4
"""A quiet sound at the edge of speech belongs to it while it is so many dB over the noise, for at most so many seconds."""
FULL_SCALE, MAX_CLIPPED = 0.999, 0.001
"""Level that counts as full scale, and the share of samples there above which audio is clipped."""
MIN_SPEECH_SECONDS, GOOD_SECONDS, LONG_SECONDS, MAX_SPEECH_SECONDS = 1.0, 3.0, 12.0, 29.5
"""Speech per clip: the limits, and the range without a penalty."""
LEAD, TAIL = 0.1, 0.25  # seconds of silence kept before and after the speech
MAX_SECONDS = MAX_SPEECH_SECONDS + LEAD + TAIL
MIN_SNR_DB = 8.0  # segments with a lower signal-to-noise ratio are rejected
CUT_WORD_DB, EDGE_NOISE_DB = 15.0, 6.0
"""An edge less than the first under the speech may have cut a word, unless it is within the second of the noise floor."""
MIN_LUFS = -100.0  # stands for the loudness of digital silence
LOUDNESS_SECONDS = 120  # seconds of speech from which the loudness of a recording is measured
PEAK_OUTLIER = 2.0  # peaks so many times the median do not limit the gain of the whole recording
FADE = 0.005  # seconds of fade at both ends of a clip


@dataclass(frozen=True)
class Segment:
    """A stretch of a recording that became a clip, or was rejected for `reason`."""
    file: str  # the clip, relative to the recording's folder
    start: float  # seconds into the recording; the clip is exactly what lies between, faded at its ends
    end: float
    snr_db: float  # level of the speech over the noise floor
    edge_db: float  # level of the speech over the louder of the two edges; small if a word may have been cut
    clipped: float = 0.0  # share of samples at full scale
    lufs: float = MIN_LUFS  # loudness in the recording
    reason: str = ""  # why it was rejected; empty for a clip

    @property
    def seconds(self) -> float:
        return self.end - self.start

    @property
    def may_cut_a_word(self) -> bool:
        return self.edge_db < CUT_WORD_DB and self.snr_db - self.edge_db > EDGE_NOISE_DB


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


def segment_recording(path: str | Path, folder: str | Path) -> list[Segment]:
    """Split one recording into a folder of its own under `folder`; an existing result is reused."""
    path = Path(path)
    own_folder, identity = segment_folder(path, folder), _identity(path)
    if own_folder.exists():
        return read_segments(own_folder)
    blocks = audio.read_blocks(path, MODEL_SAMPLE_RATE)
    track = detect_speech(tqdm(blocks, f"detecting speech in {path.name}", unit="s", unit_scale=audio.BLOCK_SECONDS))
    planned = plan(track)
    if not planned:
        raise KitError(f"{path} holds {track.seconds:.0f} s and nobody speaks in it. Give a recording of one voice.")
    with io.atomic_folder(own_folder) as staging:
        segments = list(_write_clips(path, planned, staging))
        io.write_rows(staging / SEGMENTS, map(dataclasses.asdict, segments))
        write_inputs(staging, **identity)
        if _identity(path) != identity:
            raise KitError(f"{path} has changed while it was read. Wait until it is finished, and run this again.")
    return segments


def segment_folder(path: Path, folder: str | Path) -> Path:
    """The folder of a recording under `folder`; the second recording of one name gets a number."""
    identity = _identity(path)
    for number in itertools.count(1):
        own_folder = Path(folder) / (folder_name(path) + f"-{number}" * (number > 1))
        changed = changed_inputs(own_folder, **identity)
        if not own_folder.exists() or set(changed) <= {"path"}:  # the same file, perhaps moved
            return own_folder
        if "path" not in changed:
            raise KitError(f"{own_folder} was cut from another version of {path.name}. Move it away, or rename {path.name}.")


def segment_folders(folder: Path) -> list[Path]:
    """The folders of all recordings that were split into `folder`."""
    return sorted(path.parent for path in Path(folder).glob(f"*/{SEGMENTS}"))


def read_segments(folder: Path) -> list[Segment]:
    """All segments of one recording's folder, clips and rejected ones."""
    return [Segment(**row) for row in io.read_rows(folder / SEGMENTS)]


def read_clips(folder: Path) -> list[Segment]:
    """The segments of one recording's folder that became clips."""
    return [segment for segment in read_segments(folder) if not segment.reason]


def plan(track: VadTrack) -> list[Segment]:
    """Where to cut a recording: segments that never overlap, with the measurements that need no samples."""
    speech = merge_segments(track, speech_segments(track))
    borders = [0, *(lowest_energy_frame(track, before[1], after[0]) for before, after in itertools.pairwise(speech)),
               len(track.level_db)]
    lead, tail = round(LEAD / FRAME), round(TAIL / FRAME)
    segments = []
    for (first, last), (border, next_border) in zip(speech, itertools.pairwise(borders)):
        start, end = max(border, first - lead), min(last + tail, next_border)
        speech_db = _mean_db(track.level_db[first:last])
        edge_db = max(_mean_db(track.level_db[start:start + 2]), _mean_db(track.level_db[max(start, end - 2):end]))
        segments.append(Segment("", round(start * FRAME, 2), round(end * FRAME, 2),
                                round(speech_db - track.noise_floor_db, 1), round(speech_db - edge_db, 1)))
    return segments


def folder_name(path: Path) -> str:
    """A folder name for a recording: its own, cleaned, with a short hash if cleaning changed it."""
    stem = re.sub(r"[^A-Za-z0-9]+", "-", path.stem).strip("-")[:60] or "recording"
    return stem if stem == path.stem else f"{stem}-{hashlib.sha256(path.name.encode()).hexdigest()[:4]}"


def summary(segments: Sequence[Segment]) -> str:
    """One line: clips and minutes, and how many segments were rejected for which reason."""
    counts = Counter(segment.reason.partition(":")[0] for segment in segments)
    clips = counts.pop("", 0)
    minutes = sum(segment.seconds for segment in segments if not segment.reason) / 60
    rejected = ", ".join(f"{count} {reason}" for reason, count in counts.items())
    return f"{clips} clips, {minutes:.1f} minutes" + (f"; rejected: {rejected}" if rejected else "")


def rejection_reason(segment: Segment) -> str:
    """Why a segment is no clip to train on; empty if it is one."""
    if segment.seconds - LEAD - TAIL < MIN_SPEECH_SECONDS - 0.25:
        return f"too short: {segment.seconds:.1f} s, wanted {MIN_SPEECH_SECONDS:g} s or more"
    if segment.seconds > MAX_SECONDS:
        return f"too long: {segment.seconds:.1f} s without a pause to cut in, wanted {MAX_SECONDS:g} s at most"
    if segment.clipped > MAX_CLIPPED:
        return f"clipped: {segment.clipped:.2%} of it at full scale, wanted {MAX_CLIPPED:.1%} at most"
    if segment.snr_db < MIN_SNR_DB:
        return f"noisy: speech {segment.snr_db:.0f} dB over the noise, wanted {MIN_SNR_DB:g} dB or more"
    return ""


def _identity(path: Path) -> dict:
    """The recording that a folder of segments is made from."""
    if not path.is_file():
        raise KitError(f"{path} is missing: no such file. Check the name.")
    return {"recording": path.name, "path": str(path.resolve()), "bytes": path.stat().st_size,
            "modified": path.stat().st_mtime_ns}


def _write_clips(path: Path, planned: Sequence[Segment], folder: Path) -> Iterator[Segment]:
    """Write every planned segment to `clips/` or `rejected/`; of one that is too long only the beginning."""
    spans = [(segment.start, min(segment.end, segment.start + MAX_SECONDS + 1)) for segment in planned]
    usable = [(start, end) for start, end in spans if end - start <= MAX_SECONDS] or spans
    gain = _common_gain(path, usable)
    progress = tqdm(zip(planned, _read_spans(path, spans)), desc="writing clips", unit="clip", total=len(planned))
    for number, (segment, samples) in enumerate(progress, 1):
        segment = dataclasses.replace(
            segment, clipped=round(float((np.abs(samples) >= FULL_SCALE).mean()) if len(samples) else 0.0, 5),
            lufs=round(max(MIN_LUFS, audio.loudness(samples, SAMPLE_RATE)), 1))
        reason = rejection_reason(segment)
        file = f"{'rejected' if reason else 'clips'}/{number:05d}.flac"
        audio.write(folder / file, _fade(audio.amplify(samples, gain)), SAMPLE_RATE)
        yield dataclasses.replace(segment, file=file, reason=reason)


def _common_gain(path: Path, spans: Sequence[tuple[float, float]]) -> float:
    """The gain that brings the speech of a recording to one loudness; outlier peaks are attenuated by themselves later."""
    mean_seconds = sum(end - start for start, end in spans) / len(spans)
    step = -(-len(spans) // max(1, round(LOUDNESS_SECONDS / mean_seconds)))
    peaks, sample = [], []
    for index, samples in enumerate(_read_spans(path, spans)):
        peaks.append(audio.true_peak(samples))
        if index % step == 0:
            sample.append(samples)
    peaks = np.array(peaks)
    peak = float(peaks[peaks <= PEAK_OUTLIER * np.median(peaks)].max()) or 1.0
    return min(audio.gain(audio.loudness(np.concatenate(sample), SAMPLE_RATE)), audio.MAX_TRUE_PEAK / peak)


def _read_spans(path: Path, spans: Sequence[tuple[float, float]]) -> Iterator[np.ndarray]:
    """(samples,) at 24 kHz of each span of seconds, in their order; a few blocks are in memory at a time."""
    blocks, buffer, buffer_start = audio.read_blocks(path, SAMPLE_RATE), np.zeros(0, np.float32), 0
    for start, end in spans:
        first, last = round(start * SAMPLE_RATE), round(end * SAMPLE_RATE)
        while buffer_start + len(buffer) < last and (block := next(blocks, None)) is not None:
            drop = min(max(0, first - buffer_start), len(buffer))
            buffer, buffer_start = np.concatenate([buffer[drop:], block]), buffer_start + drop
        yield buffer[first - buffer_start:last - buffer_start].copy()


def _mean_db(level_db: np.ndarray) -> float:
    """The mean power of several frames, in dB."""
    return float(10 * np.log10(np.mean(10 ** (level_db.astype(np.float64) / 10)))) if len(level_db) else -100.0


def _fade(samples: np.ndarray) -> np.ndarray:
    ramp = np.linspace(0, 1, max(1, min(round(FADE * SAMPLE_RATE), len(samples) // 2)), dtype=np.float32)
    faded = samples.copy()
    faded[:len(ramp)] *= ramp
    faded[len(faded) - len(ramp):] *= ramp[::-1]
    return faded


def detect_speech(blocks: Iterable[np.ndarray]) -> VadTrack:
    """Run Silero VAD, which comes with faster-whisper, over blocks of (samples,) at 16 kHz, one in memory at a time."""
    from faster_whisper.vad import get_vad_model

    model, hop = get_vad_model(), round(FRAME * MODEL_SAMPLE_RATE)
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
    window_of_frame = (np.arange(len(level_db)) * FRAME * MODEL_SAMPLE_RATE / WINDOW).astype(int)
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
                                 or (speech[last][1] - speech[first][0]) * FRAME > MAX_SPEECH_SECONDS):
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
    length = 3 * max(0.0, GOOD_SECONDS - seconds) + max(0.0, seconds - LONG_SECONDS) + 100 * (seconds < MIN_SPEECH_SECONDS)
    inside = sum(_pause(speech, index) for index in range(first, last))
    after = _pause(speech, last) if last + 1 < len(speech) else MAX_PAUSE
    return length + inside + 0.5 / min(after, MAX_PAUSE)


def _pause(speech: Sequence[tuple[int, int]], index: int) -> float:
    """Seconds between a stretch of speech and the next."""
    return (speech[index + 1][0] - speech[index][1]) * FRAME


def _extend(span: tuple[int, int], audible: np.ndarray) -> tuple[int, int]:
    """Add the quiet sounds at the edges of speech, which the VAD leaves out."""
    (start, end), limit = span, round(MAX_EXTENSION / FRAME)
    before, after = audible[max(0, start - limit):start][::-1], audible[end:end + limit]
    # argmin finds the first frame that is not audible, if there is one
    return start - int(np.append(before, False).argmin()), end + int(np.append(after, False).argmin())


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
