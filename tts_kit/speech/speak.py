"""Speaking a text, whole or as a stream: base, clone, fine-tuned and both are one function with different arguments."""

import contextlib
import functools
import time
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from tts_kit import audio, watermark
from tts_kit.errors import KitError
from tts_kit.generation import engine
from tts_kit.generation.engine import Generation
from tts_kit.generation.sampling import guided_prompt
from tts_kit.progress import tqdm
from tts_kit.speech.voice import References, Voice, encode_references
from tts_kit.text import max_speech_seconds, normalize, split_sentences
from tts_kit.tokens import streaming
from tts_kit.tokens.prompt import Example, Turn

if TYPE_CHECKING:  # its models are imported when somebody wants them
    from tts_kit.speech.best_of import TakeChooser

PAUSE_SECONDS = 0.15
BATCH_SIZE = 8
MIN_CHUNK_FRAMES, MAX_CHUNK_FRAMES = 2, 12  # of a stream
RETRY_SEED_STEP = 7919  # added to the seed for another attempt
TAKE_SEED_STEP = 104_729  # added to the seed for the next of several takes


@dataclass(frozen=True)
class Request:
    """One sentence to generate, with its seed, and the arm: which references, and whether with the adapter."""
    text: str
    seed: int = 0
    references: References = None
    finetuned: bool = True


@dataclass
class Speech:
    """The audio of a text, and the generation of each of its sentences."""
    samples: np.ndarray  # (samples,) float32
    sample_rate: int
    generations: list[Generation]

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.sample_rate

    @property
    def ended_with_eos(self) -> bool:
        """Whether every sentence says something and ended with EOS."""
        return all(generation.is_complete for generation in self.generations)

    @property
    def attempts(self) -> int:
        return sum(generation.attempts for generation in self.generations)

    @property
    def wall_seconds(self) -> float:
        return sum(generation.wall_seconds for generation in self.generations)

    def save(self, path: str | Path, watermarked: bool = True) -> Path:
        """Write a 16-bit WAV or FLAC file, watermarked unless told otherwise."""
        samples = watermark.apply(self.samples, self.sample_rate) if watermarked else self.samples
        audio.write(path, samples, self.sample_rate)
        return Path(path)


def check_path(path: str | Path, watermarked: bool = True) -> None:
    """Refuse a file that could not be written, or not be watermarked, before anything is generated."""
    audio.check_name(path)
    if watermarked:
        watermark.network()


def speak(text: str, voice: Voice, references: References = None, finetuned: bool = True, seed: int = 0,
          retries: int = 0, chooser: "TakeChooser | None" = None) -> Speech:
    """Speak a text of any length, sentence by sentence; with a chooser, each is the best of several takes.

    Without a reference, the first sentence becomes the context of the others, so that the voice stays the same."""
    requests = split_requests(text, references, finetuned, seed)
    return to_speech(voice, generate_turn(voice, requests, context_turns(voice, references, finetuned), retries, chooser))


def generate_turn(voice: Voice, requests: Sequence[Request], context: list[Turn], retries: int = 0,
                  chooser: "TakeChooser | None" = None) -> list[Generation]:
    """Generate the sentences of one text: the first, then the others in batches."""
    generations = generate_batch(voice, requests[:1], [context], retries, chooser)
    context = context_after_first(voice, requests, context, generations[0])
    rest = requests[1:]
    for start in tqdm(range(0, len(rest), BATCH_SIZE), desc="speaking", unit="batch", disable=len(rest) < 2):
        batch = rest[start:start + BATCH_SIZE]
        generations += generate_batch(voice, batch, [context] * len(batch), retries, chooser)
    return generations


def speak_requests(requests: Sequence[Request], voice: Voice, label: str = "speaking",
                   chooser: "TakeChooser | None" = None) -> Iterator[tuple[int, Speech]]:
    """Speak many independent sentences in batches; yields (index of the request, speech) as they are done, at the level that
    the model gave them."""
    voice = replace(voice, normalize_loudness=False)
    requests = [replace(request, text=normalize(request.text)) for request in requests]
    contexts = {key: context_turns(voice, *key)
                for key in {(request.references, request.finetuned) for request in requests}}
    with tqdm(total=len(requests), desc=label, unit="clip", disable=len(requests) < 4) as bar:
        for finetuned in (False, True):
            # sentences of similar length share a batch, which takes as long as its longest
            order = sorted((index for index, request in enumerate(requests) if request.finetuned is finetuned),
                           key=lambda index: len(requests[index].text))
            for start in range(0, len(order), BATCH_SIZE):
                indices = order[start:start + BATCH_SIZE]
                batch = [requests[index] for index in indices]
                batch_contexts = [contexts[request.references, request.finetuned] for request in batch]
                generations = generate_batch(voice, batch, batch_contexts, 0, chooser)
                yield from ((index, to_speech(voice, [generation])) for index, generation in zip(indices, generations))
                bar.update(len(batch))


def split_requests(text: str, references: References = None, finetuned: bool = True, seed: int = 0) -> list[Request]:
    """Split a text into sentences with a seed of their own."""
    return [Request(sentence, seed + number, references, finetuned)
            for number, sentence in enumerate(split_sentences(normalize(text)))]


def context_turns(voice: Voice, references: References, finetuned: bool = True) -> list[Turn]:
    """Return the turns before the sentence: the references, or else the voice's own, which the base does not have."""
    return encode_references(voice, references) if references else voice.context if finetuned else []


def context_after_first(voice: Voice, requests: Sequence[Request], context: list[Turn], first: Generation) -> list[Turn]:
    """Return the turns before every sentence but the first, which was generated after `context`.

    Without a reference that is the first sentence, unless it failed or leaves the others too few positions."""
    if context or not first.is_complete:
        return context
    turn = Turn(requests[0].text, voice.speaker, first.codes, in_loss=False)
    return [turn] if positions(voice, turn) + max_positions(voice, requests[1:]) <= voice.base.spec.max_positions else []


def positions(voice: Voice, turn: Turn) -> int:
    """Return how many positions a turn takes in a prompt: its text, its frames and their EOS."""
    return len(voice.base.prompt_builder.text_ids(turn.text, turn.speaker)) + len(turn.codes) + 1


def max_positions(voice: Voice, requests: Sequence[Request]) -> float:
    """Return how many positions the longest sentence may take, text and speech."""
    return max((len(voice.base.prompt_builder.text_ids(request.text, voice.speaker))
                + max_seconds(voice, request) * voice.base.spec.frame_rate for request in requests), default=0)


def max_seconds(voice: Voice, request: Request) -> float:
    """Return the longest plausible duration of a sentence as it is spoken."""
    return max_speech_seconds(voice.base.prompt_builder.spoken(request.text))


def build_prompt(voice: Voice, request: Request, context: list[Turn]) -> tuple[Example, int]:
    """Return the prompt of a request, and its frame limit: a slow reading of the text, or what the model has left."""
    spec = voice.base.spec
    prompt = guided_prompt(voice.base.prompt_builder, request.text[:40], context, Turn(request.text, voice.speaker),
                           voice.sampling)
    positions_left = spec.max_positions - len(prompt)
    if positions_left < spec.frame_rate:
        raise KitError(f"{request.text[:60]!r} and its reference take {len(prompt)} of the model's {spec.max_positions} "
                       "positions; less than a second is left for speech. Use a shorter reference.")
    return prompt, min(round(max_seconds(voice, request) * spec.frame_rate), positions_left)


def generate_batch(voice: Voice, requests: Sequence[Request], contexts: Sequence[list[Turn]],
                   retries: int, chooser: "TakeChooser | None" = None) -> list[Generation]:
    """Generate requests of one arm in one batch; those that fail are tried again with other seeds.

    With a chooser each request is generated several times, and the best take is kept."""
    if chooser:
        takes = [replace(request, seed=request.seed + TAKE_SEED_STEP * take) for request in requests
                 for take in range(chooser.takes)]
        generations = generate_batch(voice, takes, [context for context in contexts for _ in range(chooser.takes)], retries)
        return [_choose(voice, request, generations[number * chooser.takes:(number + 1) * chooser.takes], chooser)
                for number, request in enumerate(requests)]
    start = time.monotonic()
    prompts, max_frames = zip(*(build_prompt(voice, request, context) for request, context in zip(requests, contexts)))
    with voice.acquire_engine(requests[0].finetuned) as inference:
        generations = inference.generate(prompts, voice.sampling, [request.seed for request in requests], max_frames)
    seconds = (time.monotonic() - start) / len(requests)
    generations = [replace(generation, wall_seconds=seconds) for generation in generations]
    failed = [index for index, generation in enumerate(generations) if not generation.is_complete]
    if failed and retries > 0:
        retry_requests = [replace(requests[index], seed=requests[index].seed + RETRY_SEED_STEP) for index in failed]
        retried = generate_batch(voice, retry_requests, [contexts[index] for index in failed], retries - 1)
        for index, generation in zip(failed, retried):
            generations[index] = replace(generation, attempts=generation.attempts + generations[index].attempts,
                                         wall_seconds=generation.wall_seconds + generations[index].wall_seconds)
    return generations


def _choose(voice: Voice, request: Request, takes: list[Generation], chooser: "TakeChooser") -> Generation:
    start, spec = time.monotonic(), voice.base.spec
    samples = [voice.base.codec.decode([take.codes])[0] for take in takes]
    chosen = chooser.choose(takes, samples, spec.sample_rate, request.text)
    return replace(chosen, wall_seconds=sum(take.wall_seconds for take in takes) + time.monotonic() - start)


def decode(voice: Voice, generation: Generation) -> np.ndarray:
    """Return a sentence as (samples,), at one loudness if the voice does that."""
    samples = voice.base.codec.decode([generation.codes])[0]
    return audio.level_speech(samples, voice.base.spec.sample_rate) if voice.normalize_loudness else samples


def to_speech(voice: Voice, generations: list[Generation]) -> Speech:
    """Decode sentences, and join them with a short pause."""
    rate = voice.base.spec.sample_rate
    pause = np.zeros(round(PAUSE_SECONDS * rate), dtype=np.float32)
    pieces = [piece for generation in generations for piece in (decode(voice, generation), pause)]
    return Speech(np.concatenate(pieces[:-1]), rate, generations)


def stream_speech(text: str, voice: Voice, references: References = None, finetuned: bool = True,
                  seed: int = 0) -> Generator[np.ndarray, None, None]:
    """Yield what `speak` speaks, without retries, in chunks (samples,) float32; `close` it to stop early.

    A voice generates one thing at a time: exhaust or close the stream before asking the voice for something else."""
    requests = split_requests(text, references, finetuned, seed)
    context = context_turns(voice, references, finetuned)
    rate = voice.base.spec.sample_rate
    leveler, generations = audio.Leveler(rate), []
    for number, request in enumerate(requests):
        if number:
            yield np.zeros(round(PAUSE_SECONDS * rate), dtype=np.float32)
        yield from stream_sentence(voice, request, context, leveler, generations)
        if not number:
            context = context_after_first(voice, requests, context, generations[0])


def stream_sentence(voice: Voice, request: Request, context: list[Turn], leveler: audio.Leveler,
                    generations: list[Generation]) -> Generator[np.ndarray, None, None]:
    """Yield one sentence in chunks, at the voice's loudness; at the end append its generation to `generations`."""
    prompt, max_frames = build_prompt(voice, request, context)
    decoder, frames, decoded, ended_with_eos = streaming.StreamingDecoder(voice.base.codec), [], 0, False

    def decode_chunk(frames: list[torch.Tensor]) -> np.ndarray:
        with decoding_stream(voice.base.codec.device):
            samples = decoder.decode(torch.cat(frames))
        return leveler.level(samples, not decoded) if voice.normalize_loudness else samples

    with voice.acquire_engine(request.finetuned) as inference, contextlib.closing(
            inference.stream([prompt], voice.sampling, [request.seed], max_frames)) as stream:
        for frame in stream:
            if ended_with_eos := bool(engine.is_eos_frame(frame)):
                break
            frames.append(frame.to(torch.int16))
            if len(frames) - decoded >= next_chunk_frames(decoded):
                yield decode_chunk(frames[decoded:])
                decoded = len(frames)
    if decoded < len(frames):
        yield decode_chunk(frames[decoded:])
    codes = torch.cat(frames) if frames else torch.zeros(0, voice.base.spec.num_codebooks, dtype=torch.int16)
    generations.append(Generation(codes, ended_with_eos))


def decoding_stream(device: torch.device) -> contextlib.AbstractContextManager:
    """Return the context for decoding a chunk: on a GPU a CUDA stream of its own, which does not wait for later frames."""
    return torch.cuda.stream(_cuda_stream(device)) if device.type == "cuda" else contextlib.nullcontext()


@functools.cache
def _cuda_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device, priority=-1)  # one for all, as each stream keeps memory of its own


def next_chunk_frames(decoded: int) -> int:
    """Return the size of the next chunk: half of the frames handed out, so that at 0.7 of real time playback never waits."""
    return min(MAX_CHUNK_FRAMES, max(MIN_CHUNK_FRAMES, decoded // 2))
