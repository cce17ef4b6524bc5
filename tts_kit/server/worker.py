"""The one thread that owns the model: it says what waits, in batches, or streams one order for a sentence at a time."""

import contextlib
import logging
import threading
import time
from collections.abc import Generator, Iterator, Mapping, Sequence

import numpy as np

from tts_kit import watermark
from tts_kit.errors import KitError
from tts_kit.generation import generate
from tts_kit.generation.generate import Generation
from tts_kit.server import queue
from tts_kit.server.queue import Job, JobQueue
from tts_kit.speech import speak, stream
from tts_kit.speech.speak import Request, Voice

log = logging.getLogger(__name__)


class Worker:
    """Says every order that comes to `waiting`, until that is closed; no order holds up others longer than a sentence."""

    def __init__(self, cast: Mapping[str, Voice], waiting: JobQueue, marks: bool = True):
        self.cast, self.waiting, self.marks = cast, waiting, marks
        self.batches: list[int] = []
        """Of the last generations, how many sentences each said."""
        self._thread = threading.Thread(target=self._work, name="speaking", daemon=True)

    def start(self) -> None:
        if self.marks:
            watermark.network()  # a Problem now, rather than in the first answer
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def join(self, seconds: float) -> None:
        """Until what is being said is said, at most so long."""
        self._thread.join(seconds)

    def _work(self) -> None:
        while company := self.waiting.take():
            begun = time.monotonic()
            try:
                self._say(company)
            except Exception as error:  # whatever it was, the next order must be said
                log.exception("could not say %d orders in the voice %s", len(company), company[0].voice)
                for order in company:
                    self._end(order, error)
            self.waiting.pace += 0.2 * ((time.monotonic() - begun) / len(company) - self.waiting.pace)

    def _say(self, company: list[Job]) -> None:
        voice = self.cast[company[0].voice]
        said = self._stream(voice, company[0]) if company[0].is_streamed else self._batch(voice, queue.next_batch(company))
        self.batches = [*self.batches[-999:], said]
        for order in company:
            if order.is_gone or order.said == len(order.lines):
                self._end(order, None)

    def _batch(self, voice: Voice, lines: list[tuple[Job, Request]]) -> int:
        """Lines of one voice at once, whoever asked for them."""
        base, prompts = voice.base, []
        for order, line in lines:
            try:
                prompts.append((order, line, *speak.prompt(voice, line, order.context)))
            except KitError as problem:
                self._end(order, problem)
        prompts = [each for each in prompts if not each[0].is_gone]
        if not prompts:
            return 0
        who, said, written, limits = zip(*prompts)
        with voice.speaking():
            takes = generate.generate(base.model, base.spec, written, voice.sampling, [line.seed for line in said],
                                   _WhileHeard(who, limits), voice.int8)
        for order, take in zip(who, takes):
            if order.is_gone:
                continue
            sound = base.codec.decode([take.codes])[0]
            self._pause(voice, order)
            order.send(watermark.apply(sound, base.spec.sample_rate) if self.marks else sound)
            self._count(voice, order, take)
        return len(takes)

    def _stream(self, voice: Voice, order: Job) -> int:
        """The order's next line, chunk by chunk; the rest when it is its turn again."""
        kept: list[Generation] = []
        try:
            self._pause(voice, order)
            with contextlib.closing(_keeping(stream.stream_sentence(voice, order.ready[0], order.context), kept)) as chunks:
                for chunk in watermark.apply_stream(chunks, voice.base.spec.sample_rate) if self.marks else chunks:
                    if order.is_gone:
                        return 1
                    order.send(chunk)
        except KitError as problem:
            self._end(order, problem)
            return 0
        self._count(voice, order, kept[0])
        return 1

    @staticmethod
    def _pause(voice: Voice, order: Job) -> None:
        if order.said:
            order.send(np.zeros(round(speak.PAUSE_SECONDS * voice.base.spec.sample_rate), np.float32))

    @staticmethod
    def _count(voice: Voice, order: Job, take: Generation) -> None:
        first = Generation(take.codes, speak.is_complete(take))
        if not order.said:
            order.context = speak.context_after_first(voice, order.lines, order.context, first)
        order.read += len(voice.base.prompt_builder.text_ids(order.lines[order.said].text, voice.speaker))
        order.count(take, first.ended_with_eos)

    def _end(self, order: Job, how: Exception | None) -> None:
        if not order.is_gone:
            self.waiting.leave(order)
            order.send(how)


class _WhileHeard(Sequence):
    """The most frames for each order's line, looked at with every frame: none any more when nobody listens."""

    def __init__(self, who: Sequence[Job], limits: Sequence[int]):
        self.who, self.limits = who, limits

    def __len__(self) -> int:
        return len(self.limits)

    def __getitem__(self, number: int) -> int:
        return 0 if self.who[number].is_gone else self.limits[number]


def _keeping(sentence: Generator[np.ndarray, None, Generation], kept: list[Generation]) -> Iterator[np.ndarray]:
    """The chunks of a sentence; its codes go to `kept` when it is over."""
    kept.append((yield from sentence))
