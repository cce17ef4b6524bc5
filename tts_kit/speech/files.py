"""Speech -> a file that may leave the house: with the mark of machine-made speech, unless told otherwise."""

import contextlib
from pathlib import Path

from tts_kit import audio, watermark
from tts_kit.speech.speak import Speech
from tts_kit.speech.stream import Flow


def check(path: str | Path, marked: bool = True) -> None:
    """Refuse before anything is said what could not be saved after."""
    audio.check_name(path)
    if marked:
        watermark.network()


def save(speech: Speech | Flow, path: str | Path, marked: bool = True) -> Path:
    """Speech, or what is still to come of it, into a 16-bit WAV or FLAC, chunk by chunk; whole or not at all."""
    with contextlib.ExitStack() as opened:
        if isinstance(speech, Flow):
            opened.enter_context(contextlib.closing(speech))
        write = opened.enter_context(audio.writing(path, speech.rate))
        chunks = speech if isinstance(speech, Flow) else [speech.samples]
        for chunk in watermark.stream(chunks, speech.rate) if marked else chunks:
            write(chunk)
    return Path(path)
