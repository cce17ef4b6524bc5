"""The only room that knows waveforms: mono float32 arrays of shape (samples,), in, out, levelled, trimmed and shown."""

import contextlib
import html
import itertools
import os
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tts_kit import html as pages
from tts_kit import io
from tts_kit.errors import KitError

MIN_SAMPLE_RATE = 16_000
BLOCK_SECONDS = 30
"""Length of the blocks in which long files are read."""
SILENCE_LUFS = 10 ** (-60 / 20)
TARGET_LUFS = -20.0
MAX_TRUE_PEAK = 10 ** (-1 / 20)
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
FORMATS = {".wav": "WAV", ".flac": "FLAC"}
CONTENT_TYPES = {"mp3": ("MP3", "MPEG_LAYER_III", "audio/mpeg", MP3_RATES), "wav": ("WAV", "PCM_16", "audio/wav", ()),
         "flac": ("FLAC", "PCM_16", "audio/flac", ()),
         "opus": ("OGG", "OPUS", "audio/ogg", (8_000, 12_000, 16_000, 24_000, 48_000))}
"""Of files that are sent: container, coding, mime type, and the rates it knows if not all."""
# soundfile raises TypeError for a headerless .raw file, whose rate it wants to be told
UNREADABLE = (soundfile.SoundFileError, TypeError, OSError)


def read(path: str | Path | bytes, rate: int, max_seconds: float | None = None, name: str = "") -> np.ndarray:
    """A file, or a file's bytes, as (samples,) at `rate`; `name` is what errors call it."""
    name = name or ("audio bytes" if isinstance(path, bytes) else str(path))
    with _opened(path, name) as file:
        own_rate = file.samplerate
        if own_rate < MIN_SAMPLE_RATE:
            seen = f"{own_rate / 1000:g} kHz" + " telephone" * (own_rate <= 8_000)
            raise KitError(f"{name} is sampled at {own_rate / 1000:g} kHz; wanted {MIN_SAMPLE_RATE // 1000} kHz or more. "
                          f"{seen} audio has nothing above {own_rate / 2000:g} kHz, and the voice would learn that. "
                          "Use the original recording, or leave this clip out.")
        samples = _decode(file, name, max_seconds)
    if not np.isfinite(samples).all():
        raise KitError(f"{name} holds samples that are not numbers (NaN or infinity); wanted finite samples only. "
                      "Export it again from the original, or leave it out.")
    if np.abs(samples).max() < SILENCE_LUFS:
        raise KitError(f"{name} is silent: its peak is below -60 dBFS. Record it again, or leave it out.")
    return resample(samples, own_rate, rate)


def read_blocks(path: str | Path, rate: int) -> Iterator[np.ndarray]:
    """Blocks of (samples,) at `rate`, about 30 s each, of a file of any length; PyAV decodes what libsndfile cannot read."""
    path = Path(path)
    if not path.is_file():
        raise KitError(f"{path} is missing: no such file. Check the name.")
    if path.stat().st_size == 0:
        raise KitError(f"{path} is empty (0 bytes). Copy it again from the original.")
    try:
        file = soundfile.SoundFile(str(path))
    except UNREADABLE as error:
        yield from _read_container(path, rate, error)
        return
    with file:
        yield from _resample_blocks(_file_blocks(file, path), file.samplerate, rate, path)


def probe(path: str | Path | bytes, name: str = "") -> tuple[int, int, float]:
    """(rate, channels, seconds) as the file's header gives them, without decoding."""
    name = name or ("audio bytes" if isinstance(path, bytes) else str(path))
    with _opened(path, name) as file:
        return file.samplerate, file.channels, file.frames / file.samplerate


def resample(samples: np.ndarray, rate: int, wanted: int) -> np.ndarray:
    """(samples,) at `rate` to (samples,) at `wanted`."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return samples if rate == wanted else soxr.resample(samples, rate, wanted, quality="HQ")


def resampler(rate: int, wanted: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """What brings sound from `rate` to `wanted` chunk by chunk: (samples,) and whether they are the last."""
    return soxr.ResampleStream(rate, wanted, 1, dtype="float32").resample_chunk


def check_name(path: str | Path) -> str:
    """The format that the suffix of `path` asks for."""
    suffix = Path(path).suffix.lower()
    if suffix not in FORMATS:
        raise KitError(f"{path} ends in {suffix!r}; audio is written as {' or '.join(FORMATS)}. Choose one of these.")
    return FORMATS[suffix]


def write(path: str | Path, samples: np.ndarray, rate: int) -> None:
    """(samples,) to a 16-bit WAV or FLAC, by the suffix of `path`; whole or not at all."""
    kind = check_name(path)
    buffer = BytesIO()
    soundfile.write(buffer, _clipped(samples, path), rate, format=kind, subtype="PCM_16")
    io.write_bytes(path, buffer.getvalue())


@contextlib.contextmanager
def open_writer(path: str | Path, rate: int) -> Iterator[Callable[[np.ndarray], None]]:
    """Inside, a function that appends (samples,) to what becomes a 16-bit WAV or FLAC at `path` when all went well."""
    kind = check_name(path)
    with io.atomic_file(path) as raw, soundfile.SoundFile(raw, "w", rate, 1, "PCM_16", format=kind) as file:
        yield lambda samples: file.write(_clipped(samples, path))


def encode_lossy(samples: np.ndarray, rate: int, saving: float = 0.0) -> tuple[bytes, str]:
    """(samples,) as MP3 bytes and their mime type, small enough to embed and played by every browser; of best quality with
    `saving` 0, two thirds of its size with 0.4."""
    allowed = next((each for each in MP3_RATES if each >= rate), MP3_RATES[-1])
    buffer = BytesIO()
    soundfile.write(buffer, _clipped(resample(samples, rate, allowed), "audio"), allowed,
                    format="MP3", subtype="MPEG_LAYER_III", compression_level=saving)
    return buffer.getvalue(), "audio/mpeg"


def available_formats() -> dict[str, str]:
    """The kinds of files that this machine's libsndfile can write, with their mime types."""
    return {kind: mime for kind, (container, coding, mime, _) in CONTENT_TYPES.items() if soundfile.check_format(container, coding)}


def encode(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """(samples,) as the bytes of a file of one of the `kinds`."""
    container, coding, _, rates = CONTENT_TYPES[kind]
    allowed = next((each for each in rates if each >= rate), rates[-1] if rates else rate)
    buffer = BytesIO()
    soundfile.write(buffer, _clipped(resample(samples, rate, allowed), "speech"), allowed, format=container, subtype=coding)
    return buffer.getvalue()


def loudness(samples: np.ndarray, rate: int) -> float:
    """Integrated loudness of (samples,) in LUFS, -inf for silence."""
    import pyloudnorm

    if len(samples) == 0:
        return -np.inf
    meter = pyloudnorm.Meter(rate)
    shortest = int(meter.block_size * rate) + 1
    if len(samples) < shortest:
        samples = np.tile(samples, -(-shortest // len(samples)))
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(samples.astype(np.float64)))


def gain(seen: float, target: float = TARGET_LUFS) -> float:
    """The factor that brings a loudness of `seen` LUFS to `target`; 1 where there is nothing to measure."""
    return float(10 ** ((target - seen) / 20)) if np.isfinite(seen) else 1.0


def true_peak(samples: np.ndarray) -> float:
    """The highest level that (samples,) reach between the samples too, as a player's converter will make it."""
    return float(np.abs(resample(samples, 1, 4)).max(initial=np.abs(samples).max(initial=0.0)))


def amplify(samples: np.ndarray, factor: float) -> np.ndarray:
    """(samples,) times `factor`, or times less where the true peak would pass -1 dBFS."""
    peak = true_peak(samples) * factor
    return (samples * (factor * min(1.0, MAX_TRUE_PEAK / peak) if peak > 0 else factor)).astype(np.float32)


def normalize_loudness(samples: np.ndarray, rate: int, target: float = TARGET_LUFS) -> np.ndarray:
    """(samples,) brought to `target` LUFS, with the true peak kept under -1 dBFS."""
    return amplify(samples, gain(loudness(samples, rate), target))


def trim(samples: np.ndarray, rate: int, tail: float = 0.25, lead: float = 0.1) -> np.ndarray:
    """(samples,) without silence around the voice: at most `lead` seconds before it, exactly `tail` after it."""
    if len(samples) == 0:
        return samples
    window = max(1, round(0.02 * rate))
    windows = np.pad(samples, (0, -len(samples) % window)).reshape(-1, window).astype(np.float64)
    decibels = 20 * np.log10(np.sqrt((windows ** 2).mean(axis=1)) + 1e-9)
    loudest = np.percentile(decibels[decibels > decibels.max() - 40], 90)
    quietest = np.percentile(decibels, 10)
    # a noisy room is never 40 dB below its speaker, so the threshold follows the noise up to 30 dB below
    active = np.flatnonzero(decibels > np.clip(quietest + 6, loudest - 40, loudest - 30))
    begin = max(0, int(active[0]) * window - round(lead * rate))
    voice_end = min(len(samples), int(active[-1] + 1) * window)
    kept = samples[begin:voice_end + round(tail * rate)]
    return np.pad(kept, (0, voice_end - begin + round(tail * rate) - len(kept)))


def player(samples: np.ndarray, rate: int, label: str = ""):
    """A player for a notebook that carries its sound inside, so it still plays when the notebook is moved."""
    from IPython.display import HTML

    content, mime = encode_lossy(samples, rate)
    caption = f"<figcaption>{html.escape(label)}</figcaption>" if label else ""
    source = pages.data_uri(content, mime)
    return HTML(f'<figure style="margin:0.5em 0">{caption}<audio controls src="{source}"></audio></figure>')


def spectrogram_png(samples: np.ndarray, rate: int, width: int = 400, height: int = 96) -> bytes:
    """(samples,) as a grey PNG of width x height: time to the right, mel frequency upwards, 80 dB from black to white."""
    from PIL import Image

    window = 1024
    padded = np.pad(samples.astype(np.float64), (window // 2, window))
    starts = np.linspace(0, max(0, len(samples) - 1), width).astype(int)
    frames = padded[starts[:, None] + np.arange(window)] * np.hanning(window)
    power = _mel_filters(height, window, rate) @ (np.abs(np.fft.rfft(frames, axis=1)) ** 2).T
    decibels = 10 * np.log10(power + 1e-10)
    top = max(decibels.max(), -20.0)
    grey = np.clip((decibels - top + 80) / 80 * 255, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(grey[::-1]).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _opened(path: str | Path | bytes, name: str) -> soundfile.SoundFile:
    if isinstance(path, bytes):
        size, source = len(path), BytesIO(path)
    else:
        if not os.path.isfile(path):  # unlike Path.is_file, it takes names too long for the disk as absent
            raise KitError(f"{name} is missing: no such file. Put it there, or take its row out of the table.")
        size, source = Path(path).stat().st_size, str(path)
    if size == 0:
        raise KitError(f"{name} is empty (0 bytes). Copy it again from the original, or leave it out.")
    try:
        return soundfile.SoundFile(source)
    except UNREADABLE as error:
        raise _unreadable(name, error) from error


def _decode(file: soundfile.SoundFile, name: str, max_seconds: float | None) -> np.ndarray:
    """(samples,) mono at the file's own rate, in blocks, because a header may announce less or more than there is."""
    rate, limit = file.samplerate, np.inf if max_seconds is None else max_seconds * file.samplerate
    announced = file.frames if file.frames < 2 ** 62 else 0  # a streamed FLAC announces nothing
    blocks, count = [], 0
    try:
        while max(announced, count) <= limit and len(block := file.read(1 << 20, dtype="float32", always_2d=True)):
            blocks.append(block.mean(axis=1))
            count += len(block)
    except UNREADABLE as error:
        raise _unreadable(name, error) from error
    if max(announced, count) > limit:
        raise KitError(f"{name} lasts {max(announced, count) / rate:.1f} s; the limit is {max_seconds:g} s. "
                      "Split it or raise max_seconds.")
    if count == 0:
        raise KitError(f"{name} has zero length: a header and no samples. Record it again, or leave it out.")
    if count < 0.95 * announced:
        raise KitError(f"{name} ends after {count / rate:.1f} s of the {announced / rate:.1f} s it announces. "
                      "Copy it again from the original, or leave it out.")
    return np.concatenate(blocks)


def _file_blocks(file: soundfile.SoundFile, path: Path) -> Iterator[np.ndarray]:
    try:
        while len(block := file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)):
            yield block.mean(axis=1)
    except UNREADABLE as error:
        raise KitError(f"{path} breaks off ({str(error).rstrip('.')}). Copy it again from the original.") from error


def _read_container(path: Path, rate: int, soundfile_error: Exception) -> Iterator[np.ndarray]:
    """Blocks of a file in a container that only FFmpeg's libraries read: M4A, MP4, WEBM ..."""
    try:
        import av
    except ImportError:
        raise KitError(f"{path} cannot be read by libsndfile ({str(soundfile_error).rstrip('.')}). For more formats: pip "
                       "install av, or convert it to WAV or FLAC.") from soundfile_error
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                types = ", ".join(stream.type for stream in container.streams) or "nothing"
                raise KitError(f"{path} holds no sound, only {types}. Give the file that has the voice in it.")
            stream = container.streams.audio[0]
            to_mono = av.AudioResampler("fltp", "mono", stream.rate)
            frames = itertools.chain(container.decode(stream), [None])  # None flushes the resampler
            blocks = (mono.to_ndarray()[0] for frame in frames for mono in to_mono.resample(frame))
            yield from _resample_blocks(blocks, stream.rate, rate, path)
    except av.FFmpegError as error:
        raise KitError(f"{path} cannot be read as audio ({error.strerror or error}). Wanted anything that libsndfile or "
                       "FFmpeg reads: WAV, FLAC, MP3, M4A, MP4, WEBM ...") from error


def _resample_blocks(blocks: Iterator[np.ndarray], own_rate: int, rate: int, path: Path) -> Iterator[np.ndarray]:
    """The blocks at `rate`, gathered to BLOCK_SECONDS; telephone audio and NaN samples are refused."""
    if own_rate < MIN_SAMPLE_RATE:
        raise KitError(f"{path} is sampled at {own_rate / 1000:g} kHz; wanted {MIN_SAMPLE_RATE // 1000} kHz or more. The "
                       "voice would learn to sound like a telephone. Use the original recording.")
    resample_chunk = soxr.ResampleStream(own_rate, rate, 1, dtype="float32", quality="HQ").resample_chunk
    gathered, count, total = [], 0, 0
    for block in blocks:
        if not np.isfinite(block).all():
            raise KitError(f"{path} holds samples that are not numbers (NaN or infinity). Export it again from the "
                           "original.")
        gathered.append(resample_chunk(np.ascontiguousarray(block, np.float32)))
        count += len(gathered[-1])
        total += len(block)
        if count >= BLOCK_SECONDS * rate:
            yield np.concatenate(gathered)
            gathered, count = [], 0
    if total == 0:
        raise KitError(f"{path} has zero length: a header and no samples. Record it again.")
    yield np.concatenate([*gathered, resample_chunk(np.zeros(0, np.float32), last=True)])


def _unreadable(name: str, error: Exception) -> KitError:
    return KitError(f"{name} cannot be read as audio ({str(error).rstrip('.')}). Wanted WAV, FLAC, MP3 or OGG: export "
                   "it again, or leave it out.")


def _clipped(samples: np.ndarray, name) -> np.ndarray:
    if not np.isfinite(samples).all():
        raise KitError(f"{name}: the samples hold NaN or infinity and would be noise; nothing was written.")
    return np.clip(samples, -1.0, 1.0).astype(np.float32)


def _mel_filters(bands: int, window: int, rate: int) -> np.ndarray:
    """Triangles (bands, window // 2 + 1), never narrower than one frequency bin."""
    frequencies = np.fft.rfftfreq(window, 1 / rate)
    edges = 700 * (10 ** (np.linspace(0, np.log10(1 + rate / 2 / 700), bands + 2)) - 1)
    half_width = np.maximum(edges[2:] - edges[:-2], 2 * frequencies[1]) / 2
    triangles = np.maximum(0, 1 - np.abs(frequencies - edges[1:-1, None]) / half_width[:, None])
    return triangles / triangles.sum(axis=1, keepdims=True)
