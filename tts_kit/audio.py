"""Waveforms, mono float32 arrays (samples,): reading, writing, resampling, loudness, trimming, F0, notebook players."""

import contextlib
import itertools
import os
from collections.abc import Iterable, Iterator
from fractions import Fraction
from io import BytesIO
from pathlib import Path

import numpy as np
import soundfile
import soxr

from tts_kit import html, io
from tts_kit.errors import KitError

MIN_SAMPLE_RATE = 16_000
BLOCK_SECONDS = 30  # length of the blocks in which long files are read
SILENCE_PEAK = 10 ** (-60 / 20)
TARGET_LUFS = -20.0  # of training clips, and of what is measured
SPEECH_LUFS = -18.0  # of what is spoken
MAX_LEVELING = 24.0  # most dB by which speech is made louder
MAX_TRUE_PEAK = 10 ** (-1 / 20)
MP3_RATES = (8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000)
SUBTYPES = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III"}
"""Format that `encode` writes -> libsndfile's name of its encoding."""
MIN_F0, MAX_F0 = 60.0, 450.0
VOICED_AUTOCORRELATION = 0.5  # normalized autocorrelation at the period from which a frame is voiced
# soundfile raises TypeError for a headerless .raw file, whose rate it would have to be given
UNREADABLE = (soundfile.SoundFileError, TypeError, OSError)


def read(path: str | Path | bytes, rate: int, max_seconds: float = np.inf, name: str = "") -> np.ndarray:
    """Read a file, or a file's bytes, as (samples,) at `rate`; `name` is used in error messages."""
    name = name or ("audio bytes" if isinstance(path, bytes) else str(path))
    with _open(path, name) as file:
        announced = file.frames / file.samplerate if file.frames < 2 ** 62 else 0.0  # a streamed FLAC announces nothing
        blocks, seconds = [], 0.0
        # in blocks, because the header may announce a wrong length; the empty one checks what it announces before decoding
        for block in itertools.chain([np.zeros(0, np.float32)],
                                     _resampled(_blocks(file, name), file.samplerate, rate, name)):
            seconds += len(block) / rate
            if max(announced, seconds) > max_seconds:
                raise KitError(f"{name} lasts {max(announced, seconds):.1f} s; the limit is {max_seconds:g} s. Split it or "
                               "raise max_seconds.")
            blocks.append(block)
    if seconds < 0.95 * announced:
        raise KitError(f"{name} ends after {seconds:.1f} s of the {announced:.1f} s it announces. Copy it again from the "
                       "original, or leave it out.")
    samples = np.concatenate(blocks)
    if np.abs(samples).max() < SILENCE_PEAK:
        raise KitError(f"{name} is silent: its peak is below -60 dBFS. Record it again, or leave it out.")
    return samples


def read_blocks(path: str | Path, rate: int, min_rate: int = MIN_SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Read a file of any length in blocks (samples,) of about 30 s at `rate`; PyAV decodes what libsndfile cannot read."""
    try:
        file = soundfile.SoundFile(_source(path, str(path)))
    except UNREADABLE as error:
        yield from _read_container(Path(path), rate, min_rate, error)
    else:
        with file:
            yield from _resampled(_blocks(file, str(path)), file.samplerate, rate, str(path), min_rate)


def probe(path: str | Path | bytes, name: str = "") -> tuple[int, int, float]:
    """Return (rate, channels, seconds) from the file's header, without decoding."""
    with _open(path, name or ("audio bytes" if isinstance(path, bytes) else str(path))) as file:
        return file.samplerate, file.channels, file.frames / file.samplerate


def resample(samples: np.ndarray, rate: int, target_rate: int) -> np.ndarray:
    """Resample (samples,)."""
    samples = np.ascontiguousarray(samples, dtype=np.float32)
    return samples if rate == target_rate else soxr.resample(samples, rate, target_rate, quality="HQ")


def change_speed(chunks: Iterable[np.ndarray], rate: int, speed: float) -> Iterator[np.ndarray]:
    """Yield chunks (samples,) `speed` times as fast at the same pitch, cut elsewhere; by FFmpeg's filter `atempo`."""
    import av

    if speed == 1:
        yield from chunks
        return
    graph = av.filter.Graph()
    source = graph.add_abuffer(format="flt", sample_rate=rate, layout="mono", time_base=Fraction(1, rate))
    sink = graph.add("abuffersink")
    graph.link_nodes(source, graph.add("atempo", str(speed)), graph.add("aformat", "sample_fmts=flt"), sink).configure()
    position = 0
    for chunk in itertools.chain((chunk for chunk in chunks if len(chunk)), [None]):  # None flushes the filter
        frame = None
        if chunk is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(chunk[None]), "flt", "mono")
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), position
            position += len(chunk)
        source.push(frame)
        with contextlib.suppress(BlockingIOError, EOFError):  # it has given all that it can so far
            while True:
                yield sink.pull().to_ndarray()[0]


def check_name(path: str | Path) -> str:
    """Return the format that the suffix of `path` means."""
    suffix = Path(path).suffix.lower()
    if suffix not in (".wav", ".flac"):
        raise KitError(f"{path} ends in {suffix!r}; audio is written as .wav or .flac. Choose one of these.")
    return suffix[1:]


def write(path: str | Path, samples: np.ndarray, rate: int) -> None:
    """Write (samples,) as a 16-bit WAV or FLAC, by the suffix of `path`, atomically."""
    # from memory, as soundfile hides the reason why a file cannot be written
    io.write_bytes(path, encode(samples, rate, check_name(path), name=str(path)))


def encode(samples: np.ndarray, rate: int, format: str, compression_level: float | None = None,
           name: str = "audio") -> bytes:
    """Encode (samples,) as the bytes of a file of one of the SUBTYPES; `name` is used in error messages."""
    if not np.isfinite(samples).all():
        raise KitError(f"{name}: the samples hold NaN or infinity and would be noise; nothing was written.")
    file_rate = next((allowed for allowed in MP3_RATES if allowed >= rate), MP3_RATES[-1]) if format == "mp3" else rate
    buffer = BytesIO()
    soundfile.write(buffer, np.clip(resample(samples, rate, file_rate), -1, 1), file_rate, format=format,
                    subtype=SUBTYPES[format], compression_level=compression_level)
    return buffer.getvalue()


def encode_lossy(samples: np.ndarray, rate: int, compression_level: float = 0.0) -> tuple[bytes, str]:
    """Return (samples,) as MP3, which every browser plays, and its MIME type; level 0.4 is two thirds of the size of 0."""
    return encode(samples, rate, "mp3", compression_level), "audio/mpeg"


def loudness(samples: np.ndarray, rate: int) -> float:
    """Return the integrated loudness of (samples,) in LUFS, -inf for silence."""
    import pyloudnorm

    if len(samples) == 0:
        return -np.inf
    meter = pyloudnorm.Meter(rate)
    min_samples = int(meter.block_size * rate) + 1
    if len(samples) < min_samples:
        samples = np.tile(samples, -(-min_samples // len(samples)))
    with np.errstate(divide="ignore"):
        return float(meter.integrated_loudness(samples.astype(np.float64)))


def gain(lufs: float, target: float = TARGET_LUFS, most: float = np.inf) -> float:
    """Return the factor that brings a loudness to `target` LUFS, or louder by `most` dB; 1 for silence."""
    return float(10 ** (min(target - lufs, most) / 20)) if np.isfinite(lufs) else 1.0


def true_peak(samples: np.ndarray) -> float:
    """Return the peak of (samples,) with 4x oversampling, which also sees peaks between samples."""
    return float(np.abs(resample(samples, 1, 4)).max(initial=np.abs(samples).max(initial=0.0)))


def amplify(samples: np.ndarray, factor: float) -> np.ndarray:
    """Multiply (samples,) by `factor`, or by less if the true peak would pass -1 dBFS."""
    peak = true_peak(samples) * factor
    return (samples * (factor * min(1.0, MAX_TRUE_PEAK / peak) if peak > 0 else factor)).astype(np.float32)


def normalize_loudness(samples: np.ndarray, rate: int, target: float = TARGET_LUFS) -> np.ndarray:
    """Bring (samples,) to `target` LUFS, with the true peak below -1 dBFS."""
    return amplify(samples, gain(loudness(samples, rate), target))


def limit(samples: np.ndarray, rate: int) -> np.ndarray:
    """Turn (samples,) down around peaks, over 5 ms on both sides, so that the true peak stays below -1 dBFS."""
    if true_peak(samples) <= MAX_TRUE_PEAK:
        return samples
    oversampled = np.abs(resample(samples, 1, 4))
    peaks = np.maximum(np.abs(samples), np.resize(oversampled, 4 * len(samples)).reshape(-1, 4).max(axis=1))
    factors = np.minimum(1.0, MAX_TRUE_PEAK / np.maximum(peaks, 1e-9))
    size = 2 * round(0.005 * rate) + 1
    for reduce in (np.min, np.mean):  # the mean of minima that all hold a peak is low enough for it
        padded = np.pad(factors, size // 2, mode="edge")
        factors = reduce(np.lib.stride_tricks.sliding_window_view(padded, size), axis=1)
    return amplify((samples * factors).astype(np.float32), 1.0)


def level_speech(samples: np.ndarray, rate: int) -> np.ndarray:
    """Bring one sentence (samples,) to SPEECH_LUFS with limited peaks; silence stays as it is."""
    return limit(samples * np.float32(gain(loudness(samples, rate), SPEECH_LUFS, MAX_LEVELING)), rate)


class Leveler:
    """Levels speech chunk by chunk, each by nothing later than itself.

    A sentence begins with the gain of the one before; the first with that for clips at TARGET_LUFS, as training clips are.
    Once it has lasted 0.4 s, its gain moves within each chunk to what its loudness so far asks for, by at most 6 dB."""

    def __init__(self, rate: int):
        self.rate, self.gain, self.sentence = rate, gain(TARGET_LUFS, SPEECH_LUFS), np.zeros(0, np.float32)

    def level(self, chunk: np.ndarray, is_first: bool) -> np.ndarray:
        """Return the next chunk (samples,) of a sentence, or the first one, with its level evened."""
        sentence = chunk if is_first else np.concatenate([self.sentence, chunk])
        self.sentence, begin = sentence[-10 * self.rate:], self.gain
        if len(self.sentence) >= 0.4 * self.rate and np.isfinite(lufs := loudness(self.sentence, self.rate)):
            self.gain = float(np.clip(gain(lufs, SPEECH_LUFS, MAX_LEVELING), begin / 2, begin * 2))
        return limit((chunk * np.linspace(begin, self.gain, len(chunk))).astype(np.float32), self.rate)


def close_ending(samples: np.ndarray, rate: int) -> np.ndarray:
    """Return (samples,) with 0.3 s of silence behind a clip that ends within a word: less than 30 dB below its speech."""
    power = (frame(samples, round(0.05 * rate)) ** 2).mean(axis=1)
    end = float((samples[-round(0.05 * rate):].astype(np.float64) ** 2).mean())
    is_open = end > 1e-3 * np.percentile(power[power > 1e-4 * power.max()], 90)
    return np.pad(samples, (0, round(0.3 * rate))) if is_open else samples


def trim(samples: np.ndarray, rate: int, tail: float = 0.25, lead: float = 0.1) -> np.ndarray:
    """Trim silence around the speech of (samples,): at most `lead` seconds stay before it, exactly `tail` after it."""
    if len(samples) == 0:
        return samples
    window = max(1, round(0.02 * rate))
    windows = np.pad(samples, (0, -len(samples) % window)).reshape(-1, window).astype(np.float64)
    level_db = 20 * np.log10(np.sqrt((windows ** 2).mean(axis=1)) + 1e-9)
    speech_db = np.percentile(level_db[level_db > level_db.max() - 40], 90)
    noise_db = np.percentile(level_db, 10)
    # a noisy room is never 40 dB below its speaker, so the threshold follows the noise up to 30 dB below
    active = np.flatnonzero(level_db > np.clip(noise_db + 6, speech_db - 40, speech_db - 30))
    begin = max(0, int(active[0]) * window - round(lead * rate))
    speech_end = min(len(samples), int(active[-1] + 1) * window)
    end = speech_end + round(tail * rate)
    return np.pad(samples[begin:end], (0, max(0, end - len(samples))))


def frame(samples: np.ndarray, size: int) -> np.ndarray:
    """Cut (samples,) into full frames (frames, size) of float64; a shorter clip is padded to one frame."""
    padded = np.pad(samples, (0, max(0, size - len(samples))))
    return padded[:len(padded) // size * size].reshape(-1, size).astype(np.float64)


def median_f0(samples: np.ndarray, rate: int) -> float:
    """Return the median F0 of the voiced frames of (samples,) in Hz, by autocorrelation; 0 if there are none."""
    frames = frame(resample(samples, rate, 16_000), 800)  # 50 ms hold three periods of the lowest F0
    frames = frames[(frames ** 2).mean(axis=1) > 0.1 * (frames ** 2).mean()]
    spectra = np.fft.rfft(frames - frames.mean(axis=1, keepdims=True), 2048, axis=1)
    correlation = np.fft.irfft(np.abs(spectra) ** 2, axis=1)[:, :800]
    correlation = correlation / (correlation[:, :1] + 1e-12) / (1 - np.arange(800) / 800)  # longer lags overlap less
    first, last = round(16_000 / MAX_F0), round(16_000 / MIN_F0)
    peaks = correlation[:, first:last].max(axis=1, initial=0.0)
    # the earliest peak that is nearly as high: the highest may be at twice the period
    early = (correlation[:, first:last] > 0.9 * peaks[:, None]).argmax(axis=1)
    periods = np.array([first + begin + correlation[row, first + begin:first + begin + 16].argmax()
                        for row, begin in enumerate(early)])
    voiced = peaks > VOICED_AUTOCORRELATION
    return float(np.median(16_000 / periods[voiced])) if voiced.any() else 0.0


def player(samples: np.ndarray, rate: int, label: str = ""):
    """Return a notebook player with its audio inside, so that it still plays when the notebook is moved."""
    from IPython.display import HTML

    content, mime = encode_lossy(samples, rate)
    caption = f"<figcaption>{html.escape(label)}</figcaption>" if label else ""
    source = html.data_uri(content, mime)
    return HTML(f'<figure style="margin:0.5em 0">{caption}<audio controls src="{source}"></audio></figure>')


def spectrogram_png(samples: np.ndarray, rate: int, width: int = 400, height: int = 96) -> bytes:
    """Return the mel spectrogram of (samples,) as a grey PNG: 80 dB from black to white."""
    from PIL import Image
    from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

    samples = np.pad(samples, (0, max(0, width - len(samples))))
    filters = mel_filter_bank(2049, height, 0, rate / 2, rate, norm="slaney")  # bins so narrow that every band has one
    level_db = spectrogram(samples, window_function(1024, "hann"), 1024, len(samples) // width, fft_length=4096, power=2.0,
                           pad_mode="constant", mel_filters=filters, log_mel="dB")[::-1, :width]
    grey = np.clip((level_db - max(level_db.max(), -20.0) + 80) / 80 * 255, 0, 255).astype(np.uint8)
    buffer = BytesIO()
    Image.fromarray(grey).save(buffer, "png", optimize=True)
    return buffer.getvalue()


def _source(path: str | Path | bytes, name: str) -> str | BytesIO:
    """Return what soundfile opens; a missing or empty file is refused."""
    if not isinstance(path, bytes) and not os.path.isfile(path):  # Path.is_file fails on names too long for the disk
        raise KitError(f"{name} is missing: no such file. Put it there, or leave it out.")
    if (len(path) if isinstance(path, bytes) else os.path.getsize(path)) == 0:
        raise KitError(f"{name} is empty (0 bytes). Copy it again from the original, or leave it out.")
    return BytesIO(path) if isinstance(path, bytes) else str(path)


def _open(path: str | Path | bytes, name: str) -> soundfile.SoundFile:
    try:
        return soundfile.SoundFile(_source(path, name))
    except UNREADABLE as error:
        raise _unreadable(name, error) from error


def _blocks(file: soundfile.SoundFile, name: str) -> Iterator[np.ndarray]:
    """Yield blocks (samples,) of an open file, mixed to mono."""
    try:
        while len(block := file.read(BLOCK_SECONDS * file.samplerate, dtype="float32", always_2d=True)):
            yield block.mean(axis=1)
    except UNREADABLE as error:
        raise _unreadable(name, error) from error


def _read_container(path: Path, rate: int, min_rate: int, soundfile_error: Exception) -> Iterator[np.ndarray]:
    """Read blocks of a file in a container that only FFmpeg's libraries read: M4A, MP4, WEBM ..."""
    try:
        import av
    except ImportError:
        raise KitError(f"{path} cannot be read by libsndfile ({str(soundfile_error).rstrip('.')}). For more formats: pip "
                       "install av, or convert it to WAV or FLAC.") from soundfile_error
    try:
        with av.open(str(path)) as container:
            if not container.streams.audio:
                types = ", ".join(stream.type for stream in container.streams) or "nothing"
                raise KitError(f"{path} holds no audio, only {types}. Give the file that has the voice in it.")
            stream = container.streams.audio[0]
            to_mono = av.AudioResampler("fltp", "mono", stream.rate)
            frames = itertools.chain(container.decode(stream), [None])  # None flushes the resampler
            blocks = (mono.to_ndarray()[0] for frame in frames for mono in to_mono.resample(frame))
            yield from _resampled(blocks, stream.rate, rate, str(path), min_rate)
    except av.FFmpegError as error:
        raise KitError(f"{path} cannot be read as audio ({error.strerror or error}). Wanted anything that libsndfile or "
                       "FFmpeg reads: WAV, FLAC, MP3, M4A, MP4, WEBM ...") from error


def _resampled(blocks: Iterator[np.ndarray], own_rate: int, rate: int, name: str,
               min_rate: int = MIN_SAMPLE_RATE) -> Iterator[np.ndarray]:
    """Yield blocks of about BLOCK_SECONDS at `rate`; refuse telephone audio, NaN and infinity, and no samples."""
    if own_rate < min_rate:
        raise KitError(f"{name} is sampled at {own_rate / 1000:g} kHz; wanted {min_rate // 1000} kHz or more. "
                       f"{own_rate / 1000:g} kHz telephone audio has nothing above {own_rate / 2000:g} kHz, and the voice "
                       "would learn that. Use the original recording, or leave this one out.")
    resample_chunk = soxr.ResampleStream(own_rate, rate, 1, dtype="float32").resample_chunk
    gathered, seconds = [], 0.0
    for block in blocks:
        if not np.isfinite(block).all():
            raise KitError(f"{name} holds samples that are not numbers (NaN or infinity); wanted finite samples only. "
                           "Export it again from the original, or leave it out.")
        gathered.append(resample_chunk(np.ascontiguousarray(block, np.float32)))
        seconds += len(block) / own_rate
        if sum(map(len, gathered)) >= BLOCK_SECONDS * rate:
            yield np.concatenate(gathered)
            gathered = []
    if not seconds:
        raise KitError(f"{name} has zero length: a header and no samples. Record it again, or leave it out.")
    yield np.concatenate([*gathered, resample_chunk(np.zeros(0, np.float32), last=True)])


def _unreadable(name: str, error: Exception) -> KitError:
    return KitError(f"{name} cannot be read as audio ({str(error).rstrip('.')}). Wanted WAV, FLAC, MP3 or OGG: export "
                    "it again, or leave it out.")
