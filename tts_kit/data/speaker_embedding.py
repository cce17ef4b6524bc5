"""Clips -> whose voice is in them, moment by moment, so that a clip in which somebody else speaks can be told.

In goes the folder of a cut recording; out comes one file beside its clips, with a direction for every window of speech.
"""

import functools
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import load_file, save
from tqdm.auto import tqdm

from tts_kit import audio, io
from tts_kit.data import segment, vad

RATE = 16_000
FILE = "voices.safetensors"
WINDOW, HOP = 160, 40
"""Spectra of 10 ms in a window, which is as long as the network was taught on, and from one window to the next."""
USUAL_SHARE = 0.65
"""Of all windows, the part that is sure to be the main voice."""
FEWEST = 12
"""Windows under which nothing is said about what is usual."""


def is_installed() -> bool:
    return all(importlib.util.find_spec(package) for package in ("resemblyzer", "webrtcvad", "librosa"))


@functools.cache
def load_encoder():
    """Resemblyzer's network, whose weights lie in its wheel."""
    from resemblyzer import VoiceEncoder

    return VoiceEncoder("cpu", verbose=False).eval()


def embed_folder(folder: Path) -> dict[str, np.ndarray]:
    """File -> (windows, 256) directions of every clip that was kept; made once, empty where nobody can listen."""
    if (folder / FILE).is_file():
        return read_embeddings(folder)
    if not is_installed():
        print("Clips in which somebody else speaks are not looked for: that needs Resemblyzer. Install it by `make judges` "
              "(or: pip install -r requirements-judges.txt, then --no-deps -r requirements-judges-alone.txt).")
        return {}
    kept = [piece.file for piece in segment.read_segments(folder) if not piece.reason]
    found = {file: windows(audio.read(folder / file, RATE)).astype(np.float16)
             for file in tqdm(kept, desc="comparing voices", unit="clip")}
    io.write_bytes(folder / FILE, save(found))
    return found


def read_embeddings(folder: Path) -> dict[str, np.ndarray]:
    """What `listen` found in a folder, empty where it was never asked."""
    return load_file(folder / FILE) if (folder / FILE).is_file() else {}


def windows(samples: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz -> (windows, 256), every direction of length 1; silence is left out, as it is nobody's."""
    from resemblyzer.audio import wav_to_mel_spectrogram

    spectra = wav_to_mel_spectrogram(_speech(samples))
    spectra = np.pad(spectra, ((0, max(0, WINDOW - len(spectra))), (0, 0)))
    last = len(spectra) - WINDOW
    begins = [*range(0, last, HOP), last]
    with torch.inference_mode():
        return load_encoder()(torch.from_numpy(np.stack([spectra[begin:begin + WINDOW] for begin in begins]))).numpy()


def speaker_outlier_score(clips: Sequence[np.ndarray | None]) -> list[float]:
    """For the windows of each clip, how much less the strangest is like the main voice of all than is usual, as a cosine;
    0 where nothing is known."""
    known = [clip.astype(np.float32) for clip in clips if clip is not None]
    if sum(map(len, known)) < FEWEST:
        return [0.0] * len(clips)
    every = np.concatenate(known)
    middle = _main_voice(every)
    usual = np.median(every @ middle)
    return [0.0 if clip is None else float(usual - (clip @ middle).min()) for clip in clips]


def _main_voice(every: np.ndarray) -> np.ndarray:
    """The direction in the middle of most windows; the others are left out of it, time and again."""
    middle = every.mean(0)
    for _ in range(5):
        likeness = every @ middle
        middle = every[likeness >= np.quantile(likeness, 1 - USUAL_SHARE)].mean(0)
    return middle / np.linalg.norm(middle)


def _speech(samples: np.ndarray) -> np.ndarray:
    """(samples,) at 16 kHz without the moments in which nobody speaks; all of them where that leaves nothing."""
    heard, hop = vad.detect_speech([samples]), round(vad.STEP * RATE)
    moments = np.pad(samples, (0, -len(samples) % hop)).reshape(-1, hop)
    spoken = moments[heard.speech >= vad.STILL_SPEECH]
    return (spoken if len(spoken) else moments).reshape(-1)
