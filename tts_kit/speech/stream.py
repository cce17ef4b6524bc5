"""Streaming speech: the first audio after a few frames, the rest while that is playing."""

import contextlib
import functools
from collections.abc import Generator, Iterator, Sequence

import numpy as np
import torch

from tts_kit import audio
from tts_kit.generation import engine
from tts_kit.generation.engine import Generation
from tts_kit.speech import speak
from tts_kit.speech.speak import PAUSE_SECONDS, Request
from tts_kit.speech.voice import References, Voice
from tts_kit.tokens import streaming
from tts_kit.tokens.prompt import Turn

MIN_CHUNK_FRAMES, MAX_CHUNK_FRAMES = 2, 12


def stream_speech(text: str, voice: Voice, references: References = None, finetuned: bool = True,
                  seed: int = 0) -> Generator[np.ndarray, None, None]:
    """Return what `speak.speak` speaks, without retries, as chunks (samples,) float32; `close` it to stop early.

    Text and references are checked at once, audio is generated as it is asked for. A voice generates one thing at a time:
    exhaust or close the stream before asking the voice for something else."""
    requests, context = speak.split_requests(text, references, finetuned, seed), speak.context_turns(voice, references)
    return _stream_sentences(voice, requests, context)


def _stream_sentences(voice: Voice, requests: Sequence[Request], context: list[Turn]) -> Generator[np.ndarray, None, None]:
    rate = voice.base.spec.sample_rate
    leveler, generations = audio.Leveler(rate), []
    for number, request in enumerate(requests):
        if number:
            yield np.zeros(round(PAUSE_SECONDS * rate), dtype=np.float32)
        yield from leveled_sentence(voice, request, context, leveler, generations)
        if not number:
            context = speak.context_after_first(voice, requests, context, generations[0])


def leveled_sentence(voice: Voice, request: Request, context: list[Turn], leveler: audio.Leveler,
                     generations: list[Generation]) -> Iterator[np.ndarray]:
    """Yield one sentence in chunks at the voice's loudness, and append its generation to `generations` at the end."""
    def chunks() -> Iterator[np.ndarray]:
        generations.append((yield from stream_sentence(voice, request, context)))

    with contextlib.closing(chunks()) as samples:
        yield from leveler.level(samples) if voice.normalize_loudness else samples


def stream_sentence(voice: Voice, request: Request, context: list[Turn]) -> Generator[np.ndarray, None, Generation]:
    """Yield one sentence in chunks of audio, and return its generation."""
    prompt, max_frames = speak.build_prompt(voice, request, context)
    decoder, frames, decoded, ended_with_eos = streaming.StreamingDecoder(voice.base.codec), [], 0, False
    with voice.acquire_engine(request.finetuned) as model, contextlib.closing(
            model.stream([prompt], voice.sampling, [request.seed], max_frames)) as stream:
        for frame in stream:
            if ended_with_eos := bool(engine.is_eos_frame(frame)):
                break
            frames.append(frame.to(torch.int16))
            if len(frames) - decoded >= next_chunk_frames(decoded):
                with decoding_stream(voice.base.codec.device):
                    chunk = decoder.decode(torch.cat(frames[decoded:]))
                yield chunk
                decoded = len(frames)
    codes = torch.cat(frames) if frames else torch.zeros(0, voice.base.spec.num_codebooks, dtype=torch.int16)
    if decoded < len(frames):
        with decoding_stream(voice.base.codec.device):
            chunk = decoder.decode(codes[decoded:])
        yield chunk
    return Generation(codes, ended_with_eos)


def decoding_stream(device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context for decoding a chunk: on a GPU a CUDA stream of its own, which does not wait for later frames."""
    return torch.cuda.stream(_cuda_stream(device)) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _cuda_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # one for all, as each stream keeps memory of its own


def next_chunk_frames(decoded: int) -> int:
    """Return the size of the next chunk: half of the frames handed out, so that at 0.7 of real time playback never waits."""
    return min(MAX_CHUNK_FRAMES, max(MIN_CHUNK_FRAMES, decoded // 2))
