"""Speaker embeddings of clips in short windows, to find clips in which another speaker is heard.

The embeddings of a segmented recording are stored beside its clips, one row per window of speech."""

import contextlib
import functools
import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save

from tts_kit import audio, io
from tts_kit.data import segment
from tts_kit.data.segment import MODEL_SAMPLE_RATE as SAMPLE_RATE
from tts_kit.progress import tqdm

FILE = "speaker_embeddings.safetensors"
FRAME_SIZE = round(segment.FRAME * SAMPLE_RATE)
WINDOW, HOP = 160, 40  # mel frames of 10 ms per window, as the network was trained on, and from one window to the next
MAIN_SPEAKER_SHARE = 0.65  # share of all windows that surely belong to the main speaker
MIN_WINDOWS = 12  # with fewer windows no clip is called an outlier


def is_installed() -> bool:
    """Whether Resemblyzer and what it needs are installed."""
    return all(importlib.util.find_spec(package) for package in ("resemblyzer", "webrtcvad", "librosa"))


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread: on a busy machine two take 70 times longer, as they meet at every step of the LSTM."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


@functools.cache
def load_encoder():
    """Load Resemblyzer's speaker encoder, whose weights come in its wheel."""
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False).eval()


def embed_folder(folder: Path) -> dict[str, np.ndarray]:
    """File -> (windows, 256) embeddings of every clip of a recording, made once; empty without Resemblyzer."""
    if (folder / FILE).is_file():
        return read_embeddings(folder)
    if not is_installed():
        print("Clips with another speaker are not looked for: that needs Resemblyzer. Install it: pip install "
              '"tts-kit[eval]", then pip install --no-deps -r requirements-no-deps.txt.')
        return {}
    embeddings = {clip.file: embed_windows(audio.read(folder / clip.file, SAMPLE_RATE)).astype(np.float16)
                  for clip in tqdm(segment.read_clips(folder), desc="speaker embeddings", unit="clip")}
    io.write_bytes(folder / FILE, save(embeddings))
    return embeddings


def read_embeddings(folder: Path) -> dict[str, np.ndarray]:
    """The stored embeddings of a recording; empty if there are none."""
    return load_file(folder / FILE) if (folder / FILE).is_file() else {}


@one_thread()
def embed_windows(samples: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (windows, 256) embeddings of length 1; silence is left out, as it has no speaker."""
    from resemblyzer.audio import wav_to_mel_spectrogram

    frames = np.pad(samples, (0, -len(samples) % FRAME_SIZE)).reshape(-1, FRAME_SIZE)
    speech = frames[segment.detect_speech([samples]).speech_prob >= segment.OFFSET]
    mel = wav_to_mel_spectrogram((speech if len(speech) else frames).reshape(-1))
    mel = np.pad(mel, ((0, max(0, WINDOW - len(mel))), (0, 0)))
    last = len(mel) - WINDOW
    windows = np.stack([mel[start:start + WINDOW] for start in [*range(0, last, HOP), last]])
    with torch.inference_mode():
        return load_encoder()(torch.from_numpy(windows)).numpy()


def speaker_outlier_score(clips: Sequence[np.ndarray | None]) -> list[float]:
    """For each clip's (windows, 256) how much lower the cosine of its least similar window to the main speaker is than the
    median of all windows; 0 without embeddings."""
    embedded = [clip.astype(np.float32) for clip in clips if clip is not None]
    if sum(map(len, embedded)) < MIN_WINDOWS:
        return [0.0] * len(clips)
    windows = np.concatenate(embedded)
    center = windows.mean(0)
    for _ in range(5):  # a trimmed mean, which leaves out the least similar windows
        similarity = windows @ center
        center = windows[similarity >= np.quantile(similarity, 1 - MAIN_SPEAKER_SHARE)].mean(0)
    main_speaker = center / np.linalg.norm(center)
    median = np.median(windows @ main_speaker)
    return [0.0 if clip is None else float(median - (clip @ main_speaker).min()) for clip in clips]
