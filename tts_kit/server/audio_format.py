"""Encoding of speech for clients: a complete file, a growing one, or server-sent events."""

import asyncio
import json
import struct
from collections.abc import AsyncIterator

import numpy as np

from tts_kit import audio

PCM, PCM_RATE = "pcm", 24_000  # raw 16-bit samples; OpenAI's API fixes their rate
UNKNOWN_LENGTH = 0xFFFF_FFFF
MIME_TYPES = {**{name: mime for name, (_, _, mime, _) in audio.CONTENT_TYPES.items()}, PCM: f"audio/pcm;rate={PCM_RATE}"}


async def encode(chunks: list[np.ndarray], rate: int, file_format: str) -> bytes:
    """Return chunks (samples,) as a complete file; runs in a thread, so that the server goes on."""
    samples = np.concatenate([np.zeros(0, np.float32), *chunks])
    if file_format == PCM:
        return await asyncio.to_thread(lambda: _pcm(audio.resample(samples, rate, PCM_RATE)))
    return await asyncio.to_thread(audio.encode, samples, rate, file_format)


async def stream(chunks: AsyncIterator[np.ndarray], rate: int, file_format: str) -> AsyncIterator[bytes]:
    """Yield chunks (samples,) as a growing file: WAV and PCM chunk by chunk, other formats at once at the end."""
    if file_format == "wav":
        yield _wav_header(rate)
        async for chunk in chunks:
            yield _pcm(chunk)
    elif file_format == PCM:
        resample = audio.resampler(rate, PCM_RATE)
        async for chunk in chunks:
            yield _pcm(resample(chunk, False))
        yield _pcm(resample(np.zeros(0, np.float32), True))
    else:
        yield await encode([chunk async for chunk in chunks], rate, file_format)


def event(content: dict) -> bytes:
    """Return one server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


def _pcm(samples: np.ndarray) -> bytes:
    """(samples,) as 16-bit little-endian integers."""
    return (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def _wav_header(rate: int) -> bytes:
    """The header of a 16-bit mono WAV whose length is not known yet."""
    return (b"RIFF" + struct.pack("<I", UNKNOWN_LENGTH) + b"WAVEfmt "
            + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16) + b"data" + struct.pack("<I", UNKNOWN_LENGTH))
