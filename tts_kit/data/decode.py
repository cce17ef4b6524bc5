"""Any sound file as mono blocks at one rate, so that three hours need no more memory than a minute."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tts_kit.audio import MIN_SAMPLE_RATE, UNREADABLE
from tts_kit.errors import KitError

BLOCK_SECONDS = 30
READABLE = "Wanted anything that libsndfile or FFmpeg reads: WAV, FLAC, MP3, M4A, MP4, WEBM ..."


def read_blocks(path: str | Path, rate: int) -> Iterator[np.ndarray]:
    """(samples,) float32 at `rate`, about 30 s at a time; whoever stops listening closes the file."""
    path = Path(path)
    if not path.is_file():
        raise KitError(f"{path} is missing: no such file. Check the name.")
    if path.stat().st_size == 0:
        raise KitError(f"{path} is empty (0 bytes). Copy it again from the original.")
    try:
        file = soundfile.SoundFile(str(path))
    except UNREADABLE as error:
        yield from _decoded(path, rate, error)
        return
    with file:
        yield from _resampled(_read(file, path), file.samplerate, rate, path)


def _read(file: soundfile.SoundFile, path: Path) -> Iterator[np.ndarray]:
    try:
        while len(block := file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)):
            yield block.mean(axis=1)
    except UNREADABLE as error:
        raise KitError(f"{path} breaks off ({str(error).rstrip('.')}). Copy it again from the original.") from error


def _decoded(path: Path, rate: int, reason: Exception) -> Iterator[np.ndarray]:
    """What libsndfile cannot read, through FFmpeg's libraries where PyAV brings them."""
    try:
        import av
    except ImportError:
        raise KitError(f"{path} cannot be read by libsndfile ({str(reason).rstrip('.')}). For more formats: pip install av, "
                      "or convert it to WAV or FLAC.") from reason
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                seen = ", ".join(each.type for each in container.streams) or "nothing"
                raise KitError(f"{path} holds no sound, only {seen}. Give the file that has the voice in it.")
            sound = container.streams.audio[0]
            mono = av.AudioResampler("fltp", "mono", sound.rate)
            yield from _resampled(_frames(container.decode(sound), mono), sound.rate, rate, path)
    except av.FFmpegError as error:
        raise KitError(f"{path} cannot be read as audio ({error.strerror or error}). {READABLE}") from error


def _frames(decoded, mono) -> Iterator[np.ndarray]:
    for frame in decoded:
        for each in mono.resample(frame):
            yield each.to_ndarray()[0]
    for each in mono.resample(None):
        yield each.to_ndarray()[0]


def _resampled(pieces: Iterator[np.ndarray], own_rate: int, rate: int, path: Path) -> Iterator[np.ndarray]:
    """The pieces at another rate, gathered to blocks; telephone sound and samples that are no numbers are refused."""
    if own_rate < MIN_SAMPLE_RATE:
        raise KitError(f"{path} is sampled at {own_rate / 1000:g} kHz; wanted {MIN_SAMPLE_RATE // 1000} kHz or more. The voice "
                      "would learn to sound like a telephone. Use the original recording.")
    resampler = soxr.ResampleStream(own_rate, rate, 1, dtype="float32", quality="HQ")
    gathered, count, total = [], 0, 0
    for piece in pieces:
        if not np.isfinite(piece).all():
            raise KitError(f"{path} holds samples that are not numbers (NaN or infinity). Export it again from the original.")
        gathered.append(resampler.resample_chunk(np.ascontiguousarray(piece, np.float32)))
        count += len(gathered[-1])
        total += len(piece)
        if count >= BLOCK_SECONDS * rate:
            yield np.concatenate(gathered)
            gathered, count = [], 0
    gathered.append(resampler.resample_chunk(np.zeros(0, np.float32), last=True))
    if total == 0:
        raise KitError(f"{path} has zero length: a header and no samples. Record it again.")
    yield np.concatenate(gathered)
