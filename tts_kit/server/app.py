"""OpenAI's interface for speech, and a page to type and hear: what comes in is checked and ordered from the worker."""

import asyncio
import contextlib
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.exceptions import HTTPException

from tts_kit.errors import KitError
from tts_kit.server import api_errors, audio_format, auth, page, schemas
from tts_kit.server.api_errors import APIError
from tts_kit.server.queue import Job, JobQueue
from tts_kit.server.schemas import SpeechRequest
from tts_kit.server.worker import Worker
from tts_kit.speech import speak

ALIAS = "tts-1"
"""Another name of every model, for programs that know only OpenAI's."""
NAME = r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"


@dataclass
class Service:
    """What requests are answered with."""
    worker: Worker
    waiting: JobQueue

    @property
    def models(self) -> list[str]:
        return [*dict.fromkeys(model_name(voice.base.name) for voice in self.worker.cast.values()), ALIAS]

    @property
    def voices(self) -> list[dict]:
        return [{"id": name, "object": "voice", "name": name, "model": model_name(voice.base.name)}
                for name, voice in self.worker.cast.items()]

    def order(self, wanted: SpeechRequest, client: str) -> "JobStream":
        """Put a request into the queue, or refuse it."""
        voice = wanted.voice_name
        if voice not in self.worker.cast:
            raise APIError(400, f"there is no voice {voice[:60]!r}; there are {', '.join(self.worker.cast)}.",
                          "voice_not_found", "voice")
        models = [model_name(self.worker.cast[voice].base.name), ALIAS]
        if wanted.model not in models:
            raise APIError(404, f"the model {wanted.model[:60]!r} is not served here, or not in the voice {voice}; "
                          f"{' and '.join(models)} are.", "model_not_found", "model")
        schemas.check(wanted)
        try:
            lines = speak.split_requests(wanted.input, seed=wanted.seed)
        except KitError as problem:
            raise APIError(400, str(problem), "unspeakable", "input") from problem
        listener = JobStream(self.waiting, self.worker.cast[voice].base.spec.sample_rate)
        listener.place(Job(client, voice, lines, wanted.stream_format is not None, listener.send))
        return listener


class JobStream:
    """One who waits for an order, in the loop of the server; the worker's sound arrives from another thread."""
    order: Job

    def __init__(self, waiting: JobQueue, rate: int):
        self.waiting, self.rate = waiting, rate
        self._arrived: asyncio.Queue = asyncio.Queue()
        self._loop = asyncio.get_running_loop()

    def place(self, order: Job) -> None:
        """Put the order into the queue, for as long as patience lasts."""
        self.order = order
        self.waiting.put(order)
        self._patience = self._loop.call_later(self.waiting.queue_timeout, self.waiting.give_up, order)

    def send(self, item: np.ndarray | Exception | None) -> None:
        """Called by the worker."""
        with contextlib.suppress(RuntimeError):  # the server has ended, and its loop with it
            self._loop.call_soon_threadsafe(self._arrived.put_nowait, item)

    async def first(self) -> list[np.ndarray]:
        """The first sound, while the status can still tell of a failure; nothing, if nothing could be heard."""
        item = await self._arrived.get()
        if isinstance(item, Exception):
            raise api_errors.from_kit_error(item)
        return [] if item is None else [item]

    async def chunks(self, first: list[np.ndarray]) -> AsyncIterator[np.ndarray]:
        """All sound; breaks off with the reason, if there is one."""
        for chunk in first:
            yield chunk
        while first and (item := await self._arrived.get()) is not None:
            if isinstance(item, Exception):
                raise api_errors.from_kit_error(item)
            yield item

    def leave(self) -> None:
        """Nobody listens any more: what was not said is not said."""
        self._patience.cancel()
        self.waiting.leave(self.order)


def app(service: Service) -> FastAPI:
    """The addresses."""
    # no pages about the interface: FastAPI's fetch their scripts from elsewhere
    made = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, exception_handlers={
        APIError: _refused, HTTPException: _nothing_there, Exception: _refused})

    @made.post("/v1/audio/speech")
    async def speech(request: Request) -> Response:
        return await _answer(service, await schemas.read(request), request)

    @made.get("/v1/voices")
    @made.get("/v1/audio/voices")
    async def voices() -> dict:
        return {"object": "list", "data": service.voices}

    @made.get("/v1/models")
    async def models() -> dict:
        return {"object": "list", "data": [_model(name) for name in service.models]}

    @made.get("/v1/models/{name:path}")
    async def model(name: str) -> dict:
        if name not in service.models:
            raise APIError(404, f"the model {name[:60]!r} is not served here.", "model_not_found", "model")
        return _model(name)

    @made.get("/health")
    async def health() -> Response:
        well = service.worker.is_alive
        return JSONResponse({"status": "ok" if well else "the speaking thread has ended", "waiting": len(service.waiting)},
                            200 if well else 503)

    @made.get("/")
    async def front() -> Response:
        content, policy = page.page()
        return HTMLResponse(content, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
                                              "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
    return made


async def _refused(request: Request, error: Exception) -> Response:
    return auth.answer(api_errors.from_kit_error(error))


async def _nothing_there(request: Request, error: HTTPException) -> Response:
    return auth.answer(APIError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:60]}"))


async def _answer(service: Service, wanted: SpeechRequest, request: Request) -> Response:
    listener = service.order(wanted, request.scope["state"]["client"])
    kind = wanted.response_format
    try:
        first = await _unless_gone(listener.first(), request)
        if wanted.stream_format is None:
            chunks = await _unless_gone(_all(listener.chunks(first)), request)
            content = await audio_format.file(chunks, listener.rate, kind)
            ended = {"X-Ended-By-Itself": str(listener.order.ended_with_eos).lower()}
            return Response(content, headers={"Content-Type": audio_format.kinds()[kind]} | ended)
    except BaseException:
        listener.leave()
        raise
    is_sse = wanted.stream_format == "sse"
    mime = "text/event-stream" if is_sse else audio_format.kinds()[kind]
    # left twice: a generator that was never begun is not ended either
    return StreamingResponse(_streamed(listener, first, kind, is_sse), headers={
        "Content-Type": mime, "Cache-Control": "no-store"}, background=BackgroundTask(listener.leave))


async def _streamed(listener: JobStream, first: list[np.ndarray], kind: str, is_sse: bool) -> AsyncIterator[bytes]:
    try:
        parts = audio_format.pieces(listener.chunks(first), listener.rate, kind)
        async for part in audio_format.events(parts) if is_sse else parts:
            yield part
        if is_sse:
            read, said = listener.order.read, listener.order.frames
            yield audio_format.event({"type": "speech.audio.done", "usage": {
                "input_tokens": read, "output_tokens": said, "total_tokens": read + said}})
    except APIError as refusal:
        raise api_errors.StreamAborted(str(refusal)) from refusal
    finally:
        listener.leave()


async def _all(chunks: AsyncIterator[np.ndarray]) -> list[np.ndarray]:
    return [chunk async for chunk in chunks]


async def _unless_gone(work, request: Request):
    """What `work` gives; a refusal that nobody hears, if the client hangs up before."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise APIError(499, "the client hung up.")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _model(name: str) -> dict:
    return {"id": name, "object": "model", "created": 0, "owned_by": "tts_kit"}


def model_name(base: str) -> str:
    """What clients call a base: its id on the hub, or the last part of its folder."""
    return base if re.fullmatch(rf"{NAME}/{NAME}", base) and not os.path.exists(base) else os.path.basename(
        os.path.abspath(base))
