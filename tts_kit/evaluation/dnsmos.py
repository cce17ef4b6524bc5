"""How free of noise a clip is: DNSMOS's opinion of the background (BAK), 1 to 5, by the weights in the wheel of speechmos.

Of its three opinions this one falls most with noise, and least with a voice that is clear but unnatural. None of them is a
judge of naturalness, as they take diphone synthesis for a person: all that is ever said by it is that a clip is noisier than
the voice's own recordings.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from tts_kit.errors import KitError

RATE = 16_000
WINDOW, HOP = 144_160, RATE
"""Samples the network hears at once; shorter clips are repeated until they fill it."""
OPINION = 1, (-0.13166888, 1.60915514, -0.39604546)
"""Place among the network's outputs, and the polynomial that fits it to people's opinions, as speechmos has them."""
HASH = "269fbebdb513aa23cddfbb593542ecc540284a91849ac50516870e1ac78f6edd"
MARGIN = 0.2
"""How far under the noisiest real clip a clip is called noisier: clips of one recording differ by so much."""


def load(threads: int) -> Callable[[np.ndarray], float]:
    """A judge of (samples,) at 16 kHz, on at most `threads` threads."""
    import onnxruntime

    # speechmos' own class takes all threads and computes a second network that is not asked here
    path = Path(importlib.util.find_spec("speechmos").origin).parent / "dnsmos_models" / "sig_bak_ovr.onnx"
    if hashlib.sha256(path.read_bytes()).hexdigest() != HASH:
        raise KitError(f"{path.name} of speechmos is not the tested one. Install the version that "
                      "requirements-judges-alone.txt pins.")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    network = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    place, curve = OPINION

    def listen(wave: np.ndarray) -> float:
        seen = [network.run(None, {"input_1": each[None]})[0][0][place] for each in windows(wave)]
        return float(np.mean(np.polyval(curve, seen)))

    return listen


def windows(wave: np.ndarray) -> list[np.ndarray]:
    """(samples,) in pieces of (WINDOW,), a second apart."""
    while len(wave) < WINDOW:
        wave = np.concatenate([wave, wave])
    last = len(wave) // RATE * RATE - WINDOW
    return [np.ascontiguousarray(wave[begin:begin + WINDOW], dtype=np.float32) for begin in range(0, max(last, 0) + 1, HOP)]


def is_noisier(seen: float | None, real: Sequence[float | None]) -> bool | None:
    """Whether a clip is noisier than the real ones; None where either is unknown."""
    known = [each for each in real if each is not None]
    return seen < min(known) - MARGIN if known and seen is not None else None
