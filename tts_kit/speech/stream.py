"""Text -> speech while it is made: the first sound after a few frames, the rest while that one is heard."""

import contextlib
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch

from tts_kit import audio
from tts_kit.generation import generate
from tts_kit.generation.generate import Generation
from tts_kit.speech import speak
from tts_kit.speech.speak import PAUSE_SECONDS, References, Request, Voice
from tts_kit.tokens import streaming
from tts_kit.tokens.prompt import Turn

SHORTEST, LONGEST = 2, 12
"""Frames in the first chunk of a sentence, and in the longest."""


class SpeechStream(Iterator[np.ndarray]):
    """Speech while it is made: iterate for chunks (samples,) float32, and `close` to stop early.

    A voice says one thing at a time: let this end, or close it, before the same voice is asked for something else.
    """

    def __init__(self, voice: Voice, lines: Sequence[Request], context: list[Turn], asked: float):
        self.rate = voice.base.spec.sample_rate
        self.ended_with_eos = True
        """Whether every sentence until now was said and ended by itself."""
        self.seconds = 0.0
        """Of sound until now."""
        self.first_seconds: float | None = None
        """From the asking to the first sound."""
        self.wall_seconds = 0.0
        """From the asking to the last chunk."""
        self._asked = asked
        self._chunks = self._speak(voice, lines, context)

    def __next__(self) -> np.ndarray:
        chunk = next(self._chunks)
        self.wall_seconds = time.monotonic() - self._asked
        self.first_seconds = self.wall_seconds if self.first_seconds is None else self.first_seconds
        self.seconds += len(chunk) / self.rate
        return chunk

    def close(self) -> None:
        """Stop here, and free what was held."""
        self._chunks.close()

    def save(self, path: str | Path) -> Path:
        """All that is still to come into a 16-bit WAV or FLAC, chunk by chunk; whole or not at all."""
        with contextlib.closing(self), audio.open_writer(Path(path), self.rate) as write:
            for chunk in self:
                write(chunk)
        return Path(path)

    def _speak(self, voice: Voice, lines: Sequence[Request], context: list[Turn]) -> Iterator[np.ndarray]:
        for number, line in enumerate(lines):
            if number:
                yield np.zeros(round(PAUSE_SECONDS * self.rate), dtype=np.float32)
            take = yield from stream_sentence(voice, line, context)
            self.ended_with_eos = self.ended_with_eos and take.ended_with_eos
            if not number:
                context = speak.context_after_first(voice, lines, context, take)


def stream(words: str, voice: Voice, reference: References = None, finetuned: bool = True, seed: int = 0) -> SpeechStream:
    """Say what `speak.speak` says, but hand it out as it is made; what was handed out cannot be tried again.

    Text and reference are checked at once; speech is made when it is asked for, chunk by chunk.
    """
    asked = time.monotonic()
    return SpeechStream(voice, speak.split_requests(words, reference, finetuned, seed), speak.turns(voice, reference), asked)


def stream_sentence(voice: Voice, line: Request, context: list[Turn]) -> Generator[np.ndarray, None, Generation]:
    """One sentence in chunks of sound; at last its codes, and whether it said something and ended by itself."""
    prompt, limit = speak.prompt(voice, line, context)
    base, decoder = voice.base, streaming.StreamingDecoder(voice.base.codec)
    said, done, ended = [], 0, False
    with voice.speaking(line.finetuned), contextlib.closing(generate.stream(
            base.model, base.spec, [prompt], voice.sampling, [line.seed], limit, voice.int8)) as frames:
        for frame in frames:
            if ended := bool(generate.is_eos_frame(frame)):
                break
            said.append(frame.to(torch.int16))
            if len(said) - done >= _worth_a_chunk(done):
                yield decoder.decode(torch.cat(said[done:]))
                done = len(said)
    codes = torch.cat(said) if said else torch.zeros(0, base.spec.num_codebooks, dtype=torch.int16)
    if done < len(said):
        yield decoder.decode(codes[done:])
    return Generation(codes, speak.is_complete(Generation(codes, ended)))


def _worth_a_chunk(done: int) -> int:
    """Frames to wait for when so many are handed out: half of these, so that at 0.7 of real time none is waited for."""
    return min(LONGEST, max(SHORTEST, done // 2))
