"""A bounded queue of requests, and the one thread that owns the model: it generates in batches what shares a voice."""

import asyncio
import contextlib
import dataclasses
import itertools
import logging
import threading
from collections.abc import AsyncIterator, Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from tts_kit import audio, watermark
from tts_kit.errors import KitError
from tts_kit.generation.engine import Generation, ModelBusyError
from tts_kit.server import schemas
from tts_kit.speech import dialogue, speak
from tts_kit.speech.dialogue import Conversation
from tts_kit.speech.speak import BATCH_SIZE, Request
from tts_kit.speech.voice import Voice
from tts_kit.tokens.prompt import Turn

MAX_JOBS = 64  # requests that wait or are being generated
QUEUE_TIMEOUT = 120.0  # seconds until a request whose generation has not started is refused

log = logging.getLogger(__name__)


@dataclass(eq=False)
class Job:
    """One request: its turns, how far they are generated, and the audio on its way to the client."""
    turns: list[tuple[str, list[Request]]]  # voice and sentences; a text is one turn, a dialogue has several
    streaming: bool | None = False
    """Whether audio is sent while it is generated, which is done for one job at a time; None: the first sentence is, if no
    other job could share its batch."""
    speed: float = 1.0
    guidance: dict[str, float] = field(default_factory=dict)  # settings of the voice's sampling that the request replaces
    best_of: int = 1
    conversation: Conversation | None = None  # of a dialogue
    turn: int = 0
    sentences_done: int = 0  # of this turn
    generations: list[Generation] = field(default_factory=list)  # of all sentences so far
    input_tokens: int = 0
    prompt_voice: Voice | None = None  # the voice as the speaker that it is in the prompt
    context: list[Turn] = field(default_factory=list)  # what precedes the next sentence in the prompt
    leveler: audio.Leveler | None = None  # of the sentences that are sent while they are generated
    started: bool = False
    ended: bool = False  # whether it is finished, failed or cancelled

    def __post_init__(self):
        self._loop, self._output = asyncio.get_running_loop(), asyncio.Queue()

    @property
    def voice(self) -> str:
        return self.turns[self.turn][0]

    @property
    def sentences(self) -> list[Request]:
        return self.turns[self.turn][1]

    @property
    def ready(self) -> list[Request]:
        """Sentences that can be generated now: the first alone, then several at once."""
        return self.sentences[self.sentences_done:][:BATCH_SIZE if self.sentences_done else 1]

    @property
    def is_done(self) -> bool:
        return self.turn == len(self.turns)

    def send(self, item: np.ndarray | Exception | None) -> None:
        """Hand audio (samples,) to the client from any thread; an error or None ends it."""
        with contextlib.suppress(RuntimeError):  # the server has stopped, and its event loop with it
            self._loop.call_soon_threadsafe(self._output.put_nowait, item)

    async def audio(self) -> AsyncIterator[np.ndarray]:
        """Yield the audio as it is generated; raise APIError where that fails."""
        while (item := await self._output.get()) is not None:
            if isinstance(item, Exception):
                raise schemas.api_error(item)
            yield item


class JobQueue:
    """All unfinished jobs, the oldest first; filled by the event loop, emptied by the worker."""

    def __init__(self, max_jobs: int = MAX_JOBS, timeout: float = QUEUE_TIMEOUT):
        self.max_jobs, self.timeout, self.closed = max_jobs, timeout, False
        self.jobs: list[Job] = []
        self._running: list[Job] = []
        self._changed = threading.Condition()

    def __len__(self) -> int:
        return len(self.jobs)

    def put(self, job: Job) -> None:
        """Add a job, or raise APIError if the queue is full or closed."""
        with self._changed:
            if self.closed:
                raise schemas.busy("the server is being stopped.")
            if len(self.jobs) >= self.max_jobs:
                raise schemas.busy(f"{self.max_jobs} requests are waiting, which is the limit.")
            self.jobs.append(job)
            self._changed.notify()

    def next_batch(self) -> list[Job]:
        """Wait for the oldest job and return it with those that can be generated together with it; empty when closed."""
        with self._changed:
            # unfinished jobs go behind the newer ones, so that a long text delays others by a sentence only
            self.jobs.sort(key=self._running.__contains__)
            self._changed.wait_for(lambda: self.jobs or self.closed)
            if self.closed:
                return []
            first = self.jobs[0]
            alike = (job for job in self.jobs if (job.voice, job.guidance, job.best_of) == (first.voice, first.guidance, 1)
                     and job.streaming is not True)
            alone = first.streaming or first.best_of > 1
            self._running = [first] if alone else [*itertools.islice(alike, BATCH_SIZE)]
            for job in self._running:
                job.started = True
            return self._running

    def end(self, job: Job, error: Exception | None = None) -> None:
        """Remove a job, finished or not, and end its audio, with `error` if there is one."""
        with self._changed:
            if job in self.jobs:
                self.jobs.remove(job)
                job.ended = True
                job.send(error)

    def expire(self, job: Job) -> None:
        """Refuse a job that has waited too long."""
        with self._changed:
            if not job.started:
                self.end(job, schemas.busy(f"generation did not start within {self.timeout:g} s."))

    def close(self) -> None:
        """Accept no more jobs, and refuse those that are not finished."""
        with self._changed:
            self.closed = True
            self._changed.notify_all()
        for job in [*self.jobs]:
            self.end(job, schemas.busy("the server is being stopped."))


class Worker(threading.Thread):
    """Generates the jobs of a queue until that is closed."""

    def __init__(self, voices: Mapping[str, Voice], queue: JobQueue, watermarked: bool = True):
        super().__init__(name="tts-worker", daemon=True)
        self.voices, self.queue, self.watermarked = voices, queue, watermarked

    def run(self) -> None:
        for voice in self.voices.values():
            with contextlib.suppress(ModelBusyError), voice.acquire_engine() as engine:
                engine.warm_up(voice.sampling)
        while batch := self.queue.next_batch():
            name, first = batch[0].voice, batch[0]
            try:
                for job in batch:
                    self._begin_turn(job)
                if first.best_of > 1:
                    self._generate_best(first)
                elif first.streaming or (first.streaming is None and len(batch) == 1 and not first.sentences_done):
                    self._stream(first)
                else:
                    self._generate(batch)
            except Exception as error:  # whatever failed, the next job must be served
                if not isinstance(error, KitError):
                    log.exception("generation of %d requests in the voice %s failed", len(batch), name)
                for job in batch:
                    self.queue.end(job, error)
            for job in batch:
                if job.is_done:
                    self.queue.end(job)

    def _begin_turn(self, job: Job) -> None:
        """Prepare the context of a turn's first sentence; an error ends the job."""
        if job.sentences_done or job.ended:
            return
        try:
            if job.conversation:
                job.prompt_voice, job.context = job.conversation.context(job.voice, job.sentences)
            else:
                job.prompt_voice = self.voices[job.voice]
                job.context = speak.context_turns(job.prompt_voice, job.sentences[0].references)
            if job.guidance:
                sampling = dataclasses.replace(job.prompt_voice.sampling, **job.guidance)
                job.prompt_voice = dataclasses.replace(job.prompt_voice, sampling=sampling)
        except KitError as error:
            self.queue.end(job, error)

    def _generate(self, batch: list[Job]) -> None:
        """Generate sentences of several jobs at once: one of every job first, then further ones up to the batch size."""
        rows = []
        by_rank = [(job, sentence) for rank in range(BATCH_SIZE) for job in batch for sentence in job.ready[rank:rank + 1]]
        for job, sentence in by_rank[:BATCH_SIZE]:
            try:
                if not job.ended:
                    rows.append((job, sentence, *speak.build_prompt(job.prompt_voice, sentence, job.context)))
            except KitError as error:
                self.queue.end(job, error)
        rows = [row for row in rows if not row[0].ended]
        if not rows:
            return
        jobs, sentences, prompts, limits = zip(*rows)
        with jobs[0].prompt_voice.acquire_engine() as engine:
            generations = engine.generate(prompts, jobs[0].prompt_voice.sampling, [sentence.seed for sentence in sentences],
                                          _FrameLimits(jobs, limits))
        for job, generation in zip(jobs, generations):
            if not job.ended:
                self._send(job, [speak.decode(job.prompt_voice, generation)], [generation])

    def _generate_best(self, job: Job) -> None:
        """Generate the job's next sentence several times, and send the best take."""
        from tts_kit.speech.best_of import TakeChooser

        if not job.ended:
            chooser = TakeChooser(job.best_of)
            generation, = speak.generate_batch(job.prompt_voice, job.ready[:1], [job.context], 0, chooser)
            self._send(job, [speak.decode(job.prompt_voice, generation)], [generation])

    def _stream(self, job: Job) -> None:
        """Generate and send the job's next sentence chunk by chunk; the others when it is its turn again."""
        if job.ended:
            return
        generations: list[Generation] = []
        job.leveler = job.leveler or audio.Leveler(job.prompt_voice.base.spec.sample_rate)
        sentence = speak.stream_sentence(job.prompt_voice, job.ready[0], job.context, job.leveler, generations)
        with contextlib.closing(sentence):
            self._send(job, sentence, generations)

    def _send(self, job: Job, chunks: Iterable[np.ndarray], generations: list[Generation]) -> None:
        """Send a sentence at the speed that was asked for, with the watermark; its generation is there when it is sent."""
        rate = job.prompt_voice.base.spec.sample_rate
        pause = speak.PAUSE_SECONDS if job.sentences_done else dialogue.PAUSE_SECONDS if job.turn else 0
        if pause:
            job.send(np.zeros(round(pause / job.speed * rate), np.float32))
        chunks = audio.change_speed(chunks, rate, job.speed)
        for chunk in watermark.apply_stream(chunks, rate) if self.watermarked else chunks:
            if job.ended:
                return
            job.send(chunk)
        self._advance(job, generations[0])

    @staticmethod
    def _advance(job: Job, generation: Generation) -> None:
        """Count one more sentence; the first one becomes the reference of the rest, and a turn context of the next ones."""
        voice, sentences = job.prompt_voice, job.sentences
        if not job.sentences_done:
            job.context = speak.context_after_first(voice, sentences, job.context, generation)
        job.input_tokens += len(voice.base.prompt_builder.text_ids(sentences[job.sentences_done].text, voice.speaker))
        job.generations.append(generation)
        job.sentences_done += 1
        if job.sentences_done == len(sentences):
            if job.conversation:
                job.conversation.add(job.voice, sentences, job.generations[-len(sentences):])
            job.turn, job.sentences_done = job.turn + 1, 0


class _FrameLimits(list):
    """The most frames for each row of a batch, read with every frame: 0 as soon as the row's job has ended."""

    def __init__(self, jobs: tuple[Job, ...], limits: tuple[int, ...]):
        super().__init__(limits)
        self.jobs = jobs

    def __getitem__(self, row: int) -> int:
        return 0 if self.jobs[row].ended else super().__getitem__(row)
