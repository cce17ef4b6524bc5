"""Sound on its way to a client: a whole file of one of audio's kinds, or piece by piece while it is made."""

import asyncio
import base64
import json
import struct
from collections.abc import AsyncIterator

import numpy as np

from tts_kit import audio

PCM, PCM_RATE = "pcm", 24_000
"""Bare 16-bit samples, whose rate a client cannot ask for: it is OpenAI's."""
ENDLESS = 0xFFFF_FFFF


def kinds() -> dict[str, str]:
    """What can be asked for, with mime types."""
    return {**audio.available_formats(), PCM: f"audio/pcm;rate={PCM_RATE}"}


def whole(samples: np.ndarray, rate: int, kind: str) -> bytes:
    """(samples,) as the bytes of a file."""
    return pcm(audio.resample(samples, rate, PCM_RATE)) if kind == PCM else audio.encode(samples, rate, kind)


def pcm(samples: np.ndarray) -> bytes:
    """(samples,) as 16 bits each, the lower byte first."""
    return (samples.clip(-1, 1) * 32767).round().astype("<i2").tobytes()


def endless_wav(rate: int) -> bytes:
    """What a WAV of 16 bits begins with whose length nobody knows yet."""
    return (b"RIFF" + struct.pack("<I", ENDLESS) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, rate, 2 * rate, 2, 16)
            + b"data" + struct.pack("<I", ENDLESS))


async def file(chunks: list[np.ndarray], rate: int, kind: str) -> bytes:
    """Chunks (samples,) as the bytes of one file, while the server goes on."""
    return await asyncio.to_thread(whole, np.concatenate([np.zeros(0, np.float32), *chunks]), rate, kind)


async def pieces(chunks: AsyncIterator[np.ndarray], rate: int, kind: str) -> AsyncIterator[bytes]:
    """Chunks (samples,) as the bytes of a file that grows: WAV and bare samples as they come, others when all is there."""
    if kind == "wav":
        yield endless_wav(rate)
        async for chunk in chunks:
            yield pcm(chunk)
    elif kind == PCM:
        resample = audio.resampler(rate, PCM_RATE)
        async for chunk in chunks:
            yield pcm(resample(chunk, False))
        yield pcm(resample(np.zeros(0, np.float32), True))
    else:
        yield await file([chunk async for chunk in chunks], rate, kind)


async def events(parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same bytes as OpenAI's server-sent events."""
    async for part in parts:
        yield event({"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()})


def event(content: dict) -> bytes:
    return f"data: {json.dumps(content)}\n\n".encode()
