"""Speech -> a file that may leave the house: with the mark of machine-made speech, unless told otherwise."""

import contextlib
from pathlib import Path

from tts_kit import audio, watermark
from tts_kit.speech.speak import Speech
from tts_kit.speech.stream import SpeechStream


def check_path(path: str | Path, marked: bool = True) -> None:
    """Refuse before anything is said what could not be saved after."""
    audio.check_name(path)
    if marked:
        watermark.network()


def save_speech(speech: Speech | SpeechStream, path: str | Path, marked: bool = True) -> Path:
    """Speech, or what is still to come of it, into a 16-bit WAV or FLAC, chunk by chunk; whole or not at all."""
    with contextlib.ExitStack() as opened:
        if isinstance(speech, SpeechStream):
            opened.enter_context(contextlib.closing(speech))
        write = opened.enter_context(audio.open_writer(path, speech.rate))
        chunks = speech if isinstance(speech, SpeechStream) else [speech.samples]
        for chunk in watermark.apply_stream(chunks, speech.rate) if marked else chunks:
            write(chunk)
    return Path(path)
