"""Encoding of speech for clients: a complete file, a growing one, or server-sent events."""

import asyncio
import json
from collections.abc import AsyncIterator

import av
import numpy as np

from tts_kit import audio

PCM, PCM_RATE = "pcm", 24_000  # raw 16-bit samples; OpenAI's API fixes their rate
MIME_TYPES = {"mp3": "audio/mpeg", "wav": "audio/wav", "flac": "audio/flac", "opus": "audio/ogg", "aac": "audio/aac",
              PCM: f"audio/pcm;rate={PCM_RATE}"}
ENCODERS = {  # FFmpeg's container, codec and options: nothing at the beginning of a file that is only known at its end
    "wav": ("wav", "pcm_s16le", {"fflags": "+bitexact"}), PCM: ("s16le", "pcm_s16le", {}), "aac": ("adts", "aac", {}),
    "mp3": ("mp3", "libmp3lame", {"write_xing": "0", "id3v2_version": "0"}),
    "opus": ("ogg", "libopus", {"page_duration": "100000"})}


async def encode(chunks: list[np.ndarray], rate: int, file_format: str) -> bytes:
    """Return chunks (samples,) as a complete file; runs in a thread, so that the server goes on."""
    samples = np.concatenate([np.zeros(0, np.float32), *chunks])
    if file_format in audio.SUBTYPES:
        return await asyncio.to_thread(audio.encode, samples, rate, file_format)
    encoder = Encoder(rate, file_format)
    return await asyncio.to_thread(lambda: encoder.encode(samples) + encoder.close())


async def stream(chunks: AsyncIterator[np.ndarray], rate: int, file_format: str) -> AsyncIterator[bytes]:
    """Yield chunks (samples,) as a growing file, chunk by chunk; FLAC, which libsndfile reads only with its length in the
    header, at once at the end."""
    if file_format not in ENCODERS:
        yield await encode([chunk async for chunk in chunks], rate, file_format)
        return
    encoder = Encoder(rate, file_format)
    async for chunk in chunks:
        if part := encoder.encode(chunk):  # an encoder gathers a frame before it gives one
            yield part
    yield encoder.close()


def event(content: dict) -> bytes:
    """Return one server-sent event."""
    return f"data: {json.dumps(content)}\n\n".encode()


class Encoder:
    """An encoder that gives the bytes of a file as they are made."""

    def __init__(self, rate: int, file_format: str):
        container, codec, options = ENCODERS[file_format]
        rates = [PCM_RATE] if file_format == PCM else sorted(av.codec.Codec(codec, "w").audio_rates or [rate])
        self.rate, self.parts = rate, []
        self.container = av.open(self, "w", format=container, options={"flush_packets": "1"} | options)
        self.stream = self.container.add_stream(codec, layout="mono", rate=next(
            (supported for supported in rates if supported >= rate), rates[-1]))
        self.container.start_encoding()  # the header, even of a file without samples

    def write(self, content: bytes) -> int:
        """Receive bytes from the container, which takes this object for its file."""
        self.parts.append(bytes(content))
        return len(content)

    def encode(self, samples: np.ndarray) -> bytes:
        """Return what can be sent after these (samples,)."""
        if len(samples):
            frame = av.AudioFrame.from_ndarray(samples.clip(-1, 1)[None], "flt", "mono")
            frame.sample_rate = self.rate
            self.container.mux(self.stream.encode(frame))
        return self._take()

    def close(self) -> bytes:
        """Return the end of the file."""
        self.container.mux(self.stream.encode(None))
        self.container.close()
        return self._take()

    def _take(self) -> bytes:
        content, self.parts = b"".join(self.parts), []
        return content
