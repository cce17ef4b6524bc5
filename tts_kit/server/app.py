"""The speech server: OpenAI's interface over FastAPI, access control, and a page to try the voices."""

import asyncio
import base64
import contextlib
import hmac
import ipaddress
import os
import re
import signal
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence

import numpy as np
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response, StreamingResponse
from starlette.background import BackgroundTask
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware.trustedhost import TrustedHostMiddleware

from tts_kit import audio, device, html, local_server, watermark
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.local_server import LOCALHOST, LocalServer
from tts_kit.run import NAME
from tts_kit.server import audio_format, schemas
from tts_kit.server.audio_format import MIME_TYPES, PCM
from tts_kit.server.queue import MAX_JOBS, QUEUE_TIMEOUT, Job, JobQueue, Worker
from tts_kit.server.schemas import APIError, Clip, DialogueRequest, Options, SpeechRequest
from tts_kit.speech import dialogue, speak
from tts_kit.speech.voice import Reference, Voice

PORT = 8000
KEY_VARIABLE = "TTS_KIT_KEY"
"""Environment variable with an API key, which unlike --api-key does not show in the list of processes."""
MIN_KEY_LENGTH = 16
OPEN_PATHS = ("/", "/health")  # served without a key; they tell nothing about the voices
MAX_CONNECTIONS = 512  # above it uvicorn answers 503
MODEL_ALIASES = ("tts-1", "tts-1-hd", "gpt-4o-mini-tts")  # other names of every model, for programs that know only OpenAI's
VOICE_ALIASES = ("alloy", "ash", "ballad", "cedar", "coral", "echo", "fable", "marin", "nova", "onyx", "sage", "shimmer",
                 "verse")
"""OpenAI's voices: other names of the first voice, where no voice has that name."""
MAX_IGNORED_FIELDS = 10  # that an answer names


class AuthMiddleware:
    """Lets in requests with an API key; on a server without keys, all but those of web pages from other sites."""

    def __init__(self, app, api_keys: Sequence[str] = ()):
        self.app, self.api_keys = app, [key.encode() for key in api_keys]

    async def __call__(self, scope: dict, receive, send) -> None:
        refusal = self._refusal(Headers(scope=scope), scope["path"]) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, send)

    def _refusal(self, headers: Headers, path: str) -> Response | None:
        if not self.api_keys:
            if "origin" in headers and headers["origin"].partition("://")[2] != headers.get("host"):
                return APIError(403, "pages of other sites may not use this server.", "wrong_origin").response()
            return None
        scheme, _, key = headers.get("authorization", "").partition(" ")
        # compared in constant time
        is_valid = any(hmac.compare_digest(key.strip().encode(), api_key) for api_key in self.api_keys)
        if path in OPEN_PATHS or (scheme.lower() == "bearer" and is_valid):
            return None
        return APIError(401, "wrong API key, or none: send the header `Authorization: Bearer KEY` with a key that the "
                        "server was started with.", "invalid_api_key").response()


class Server(LocalServer):
    """Voices served over HTTP: `serve_forever`, or `start` and `close`."""

    def __init__(self, voices: Mapping[str, Voice], host: str = LOCALHOST, port: int = PORT, api_keys: Sequence[str] = (),
                 watermarked: bool = True, max_jobs: int = MAX_JOBS, queue_timeout: float = QUEUE_TIMEOUT,
                 max_connections: int = MAX_CONNECTIONS, bound_socket: socket.socket | None = None):
        check_access(host, api_keys)
        self.voices, self.host, self.queue = voices, host, JobQueue(max_jobs, queue_timeout)
        self.worker = Worker(voices, self.queue, watermarked)
        if watermarked:
            watermark.network()  # an error now, and not in the first answer
        self.models = [*dict.fromkeys(model_name(voice.base.name) for voice in voices.values()), *MODEL_ALIASES]
        self.aliases = {alias: next(iter(voices)) for alias in VOICE_ALIASES if alias not in voices}
        self._transcribing = asyncio.Lock()
        super().__init__(create_app(self, api_keys), bound_socket or local_server.listen(host, port), http="h11",
                         limit_concurrency=max_connections, timeout_keep_alive=10, timeout_graceful_shutdown=3)

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    def serve_forever(self) -> None:
        self.worker.start()
        try:
            super().serve_forever()
        finally:
            self.queue.close()
            self.worker.join(30)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self.queue.close()  # waiting clients get an answer before their connections are closed
        await super().shutdown(sockets)

    def resolve_voice(self, requested: str, model: str) -> str:
        """Return the name of the voice that a request means, or raise APIError."""
        name = self.aliases.get(requested, requested)
        if name not in self.voices:
            raise APIError(400, f"there is no voice {name[:60]!r}; there are {', '.join(self.voices)}.", "voice_not_found",
                           "voice")
        models = [model_name(self.voices[name].base.name), *MODEL_ALIASES]
        if model not in models:
            raise APIError(404, f"the model {model[:60]!r} is not served here, or not in the voice {name}; "
                           f"{', '.join(models)} are.", "model_not_found", "model")
        return name

    async def speech_job(self, request: SpeechRequest) -> Job:
        """Return the job of a text."""
        voice, references = self.resolve_voice(request.voice, request.model), None
        if request.reference_audio:
            references = Reference(await asyncio.to_thread(request.reference_bytes), request.reference_text)
        return Job([(voice, speak.split_requests(request.input, references, seed=request.seed))])

    def dialogue_job(self, request: DialogueRequest) -> Job:
        """Return the job of a dialogue."""
        names = [self.resolve_voice(turn.voice, request.model) for turn in request.turns]
        lines = [dialogue.Line(name, turn.input, f"turn {number}")
                 for number, (name, turn) in enumerate(zip(names, request.turns), 1)]
        return Job([*zip(names, dialogue.split_turns(lines, request.seed))],
                   conversation=dialogue.Conversation({name: self.voices[name] for name in names}))

    async def transcribe(self, clip: Clip) -> str:
        """Return the words of a clip, or raise APIError; one clip at a time."""
        if self._transcribing.locked():
            raise schemas.busy("another clip is being transcribed.")
        async with self._transcribing:
            return await asyncio.to_thread(recognize, await asyncio.to_thread(clip.reference_bytes))

    async def answer(self, options: Options, job: Job, request: Request) -> Response:
        """Queue a job and return its speech, as a whole file or as a stream; raises APIError."""
        job.streaming, job.speed, file_format = options.streaming, options.speed, options.response_format
        job.guidance, job.best_of = options.guidance_scales, options.best_of
        self.queue.put(job)
        asyncio.get_running_loop().call_later(self.queue.timeout, self.queue.expire, job)
        rate, mime_type = self.voices[job.voice].base.spec.sample_rate, MIME_TYPES[file_format]
        ignored = [name for name in options.model_extra or () if re.fullmatch(r"[\w-]{1,40}", name, re.ASCII)]
        headers = {"X-Ignored-Fields": ", ".join(ignored[:MAX_IGNORED_FIELDS])} if ignored else {}
        disconnect = asyncio.create_task(self._end_on_disconnect(request, job))
        try:
            chunks_of_job = job.audio()
            chunks = [chunk async for chunk in chunks_of_job] if job.streaming is False else [
                await anext(chunks_of_job, np.zeros(0, np.float32))]  # errors up to the first audio still change the status
        except BaseException:
            self.queue.end(job)
            raise
        finally:
            disconnect.cancel()
        if job.streaming is False:
            content = await audio_format.encode(chunks, rate, file_format)
            ended_with_eos = all(generation.is_complete for generation in job.generations)
            return Response(content, headers=headers | {"Content-Type": mime_type,
                                                        "X-Ended-With-EOS": str(ended_with_eos).lower()})
        is_sse = options.stream_format == "sse"
        headers |= {"Content-Type": "text/event-stream" if is_sse else mime_type, "Cache-Control": "no-store"}
        # ended a second time in the background: a generator that was never begun runs no `finally`
        return StreamingResponse(self._stream(job, chunks[0], chunks_of_job, rate, file_format, is_sse),
                                 headers=headers, background=BackgroundTask(self.queue.end, job))

    async def _stream(self, job: Job, first: np.ndarray, rest: AsyncIterator[np.ndarray], rate: int, file_format: str,
                      is_sse: bool) -> AsyncIterator[bytes]:
        async def chunks() -> AsyncIterator[np.ndarray]:
            yield first
            async for chunk in rest:
                yield chunk

        try:
            async for part in audio_format.stream(chunks(), rate, file_format):
                encoded = {"type": "speech.audio.delta", "audio": base64.b64encode(part).decode()}
                yield audio_format.event(encoded) if is_sse else part
            if is_sse:
                frames = sum(len(generation.codes) for generation in job.generations)
                yield audio_format.event({"type": "speech.audio.done", "usage": {
                    "input_tokens": job.input_tokens, "output_tokens": frames, "total_tokens": job.input_tokens + frames}})
        finally:  # an error closes the connection, by which the client notices that the audio is incomplete
            self.queue.end(job)

    async def _end_on_disconnect(self, request: Request, job: Job) -> None:
        while (await request.receive())["type"] != "http.disconnect":
            pass
        self.queue.end(job)


def recognize(content: bytes) -> str:
    """Return the words of a clip by Whisper, the bundled one if it is installed; raises APIError if there is none."""
    try:
        whisper = transcribe.load(transcribe.BUNDLED if transcribe.is_installed() else "base", device.choose("cpu"))
        samples = audio.read(content, transcribe.SAMPLE_RATE)
        return whisper.transcribe(samples, whisper.language or whisper.detect_language(samples))[0]
    except KitError as error:
        raise APIError(501, f"the words were not recognized: {error} Or type them.", "no_transcriber") from error


def create_app(server: Server, api_keys: Sequence[str]) -> FastAPI:
    """Return the application with its routes and middleware."""
    # FastAPI's pages about the interface load scripts from other sites
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, exception_handlers={
        KitError: _error_response, HTTPException: _error_response, Exception: _error_response})
    app.add_middleware(AuthMiddleware, api_keys=api_keys)
    if not api_keys:  # a name that someone's DNS points at this machine must not reach the server through a browser
        app.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", LOCALHOST, "[::1]", server.host],
                           www_redirect=False)

    @app.post("/v1/audio/speech")
    async def speech(request: Request) -> Response:
        options = await schemas.read_request(request, SpeechRequest, schemas.MAX_REFERENCE_BYTES)
        return await server.answer(options, await server.speech_job(options), request)

    @app.post("/v1/audio/dialogue")
    async def speak_dialogue(request: Request) -> Response:
        options = await schemas.read_request(request, DialogueRequest)
        return await server.answer(options, server.dialogue_job(options), request)

    @app.post("/v1/audio/reference_text")
    async def reference_text(request: Request) -> dict:
        """The words of a clip, to be corrected by who sends it."""
        clip = await schemas.read_request(request, Clip, schemas.MAX_REFERENCE_BYTES)
        return {"text": await server.transcribe(clip)}

    @app.get("/v1/voices")
    @app.get("/v1/audio/voices")
    async def voices() -> dict:
        entries = [{"id": name, "object": "voice", "name": name, "model": model_name(voice.base.name)}
                   for name, voice in server.voices.items()]
        entries += [{"id": alias, "object": "voice", "name": alias, "alias_of": name}
                    for alias, name in server.aliases.items()]
        return {"object": "list", "data": entries, "voices": entries}  # Open WebUI reads the second

    @app.get("/v1/models")
    @app.get("/v1/audio/models")
    async def models() -> dict:
        entries = [{"id": name, "object": "model", "created": 0, "owned_by": "tts_kit"} for name in server.models]
        return {"object": "list", "data": entries, "models": entries}

    @app.get("/health")
    async def health() -> Response:
        is_alive = server.worker.is_alive()
        return JSONResponse({"status": "ok" if is_alive else "the worker thread has ended", "waiting": len(server.queue)},
                            200 if is_alive else 503)

    @app.get("/")
    async def page() -> Response:
        """The page to try the voices; it names no voice, but fetches their list."""
        formats = [name for name in MIME_TYPES if name not in (PCM, "aac")]  # which not every browser plays
        content, policy = html.page(
            __file__, "Text to speech", ["app.js"], csp=("connect-src 'self'", "media-src blob:"),
            max_characters=str(schemas.MAX_CHARACTERS), max_seconds=str(schemas.MAX_REFERENCE_SECONDS),
            min_speed=str(schemas.MIN_SPEED), max_speed=str(schemas.MAX_SPEED),
            formats="".join(f"<option>{name}</option>" for name in formats))
        return local_server.page_response(content, f"{policy}; frame-ancestors 'none'")
    return app


async def _error_response(request: Request, error: Exception) -> Response:
    if isinstance(error, HTTPException):
        error = APIError(error.status_code, f"{error.detail}: {request.method} {request.url.path[:60]}")
    return schemas.api_error(error).response()


def model_name(base: str) -> str:
    """Return what clients call a base model: its hub id, or the last part of its folder."""
    is_hub_id = re.fullmatch(rf"{NAME}/{NAME}", base) and not os.path.exists(base)
    return base if is_hub_id else os.path.basename(os.path.abspath(base))


def run_server(load_voices: Callable[[], Mapping[str, Voice]], host: str = LOCALHOST, port: int = PORT,
               api_keys: Sequence[str] = (), watermarked: bool = True, queue_timeout: float = QUEUE_TIMEOUT) -> None:
    """Serve until Ctrl-C or SIGTERM; options and port are checked before the voices are loaded."""
    check_access(host, api_keys)
    if not queue_timeout > 0:  # NaN is refused too
        raise KitError(f"--queue-timeout is {queue_timeout:g}; it must be a number of seconds above 0.")
    with local_server.listen(host, port) as bound_socket:
        server = Server(load_voices(), host, port, api_keys, watermarked, queue_timeout=queue_timeout,
                        bound_socket=bound_socket)
        print(f"Voices: {', '.join(server.worker.voices)}. Model: {server.models[0]}. Open {server.address} to try them; "
              f"OpenAI's clients use {server.address}/v1 with{'' if api_keys else 'out'} a key. Ctrl-C stops the server.",
              flush=True)
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # service managers stop with it: as Ctrl-C
        with contextlib.suppress(KeyboardInterrupt):
            server.serve_forever()
    print("Stopped.")


def check_access(host: str, api_keys: Sequence[str]) -> None:
    """Refuse keys that can be guessed, and an address that others can reach without any key."""
    if any(len(key) < MIN_KEY_LENGTH or not key.isascii() or not key.isprintable() for key in api_keys):
        raise KitError(f"an API key is shorter than {MIN_KEY_LENGTH} characters, or not plain ASCII. Make one: python -c "
                       '"import secrets; print(secrets.token_urlsafe(32))"')
    try:
        is_loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_loopback = False
    if not api_keys and not is_loopback:
        raise KitError(f"host {host} can be reached by other machines, and no API key was given. Give --api-key KEY (or set "
                       f"{KEY_VARIABLE}), or leave --host out to serve this machine only.")


def read_api_keys(keys: Sequence[str]) -> list[str]:
    """Return the keys of the command line and of the environment."""
    return [*keys, *filter(None, [os.environ.get(KEY_VARIABLE)])]
