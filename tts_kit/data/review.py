"""The review page: a person listens to the clips of a run and corrects their texts, the most doubtful first.

The page sends one edit at a time, which is on disk before it is confirmed. The server listens on this machine only and
answers only requests with the token in its URL.
"""

import asyncio
import io
import json
import secrets
import socket
import threading
from collections.abc import Awaitable, Callable

import soundfile

from tts_kit import colab, html
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_store import EditConflict, ReviewClip, ReviewStore
from tts_kit.errors import KitError

MAX_BODY_BYTES = 100_000
HOST = "127.0.0.1"


class Review:
    """A running review server: open `url`, end it with `close`."""

    def __init__(self, store: ReviewStore, title: str, port: int = 0):
        try:
            import uvicorn
        except ImportError as error:
            raise KitError('the review page needs uvicorn and starlette: pip install "tts-kit[audio]"') from error
        try:
            # listens at once, so that a browser that is faster than the server waits instead of failing
            self._socket = socket.create_server((HOST, port), backlog=64)
        except OSError as error:
            raise KitError(f"port {port} of this machine cannot be used ({error.strerror}). Leave --port out, or choose "
                           "another.") from error
        self.port = self._socket.getsockname()[1]
        self.token = secrets.token_urlsafe(24)
        config = uvicorn.Config(app(store, self.token, title), log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def wait(self) -> None:
        """Block until the server ends."""
        while self._thread.is_alive():
            self._thread.join(1)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()

    def show(self, height: int = 720):
        """The page inside a notebook."""
        return colab.embed_iframe(self.port, f"/?token={self.token}", height)


def app(store: ReviewStore, token: str, title: str):
    """The page and its API as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    async def index(request) -> Response:
        if not _same_token(request.query_params.get("token"), token):
            return HTMLResponse("Open the address that the review printed; it ends in a token.", 403)
        content, policy = page(title)
        return HTMLResponse(content, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
                                              "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    def guarded(handler: Callable[..., Awaitable[object]]) -> Callable:
        async def endpoint(request) -> Response:
            if not _same_token(request.headers.get("x-token"), token):
                return JSONResponse({"error": "wrong token: open the address that the review printed."}, 403)
            try:
                result = await handler(store, request)
            except EditConflict as conflict:
                current = conflict.current and clip_json(conflict.current)
                return JSONResponse({"error": str(conflict), "current": current}, 409)
            except KitError as error:
                return JSONResponse({"error": str(error)}, 400)
            if isinstance(result, bytes):
                return Response(result, media_type="audio/wav", headers={"Cache-Control": "no-store"})
            return JSONResponse(result)
        return endpoint

    return Starlette(routes=[Route("/", index), Route("/clips", guarded(_list_clips)), Route("/audio", guarded(_clip_audio)),
                             Route("/edit", guarded(_edit), methods=["POST"])])


def page(title: str) -> tuple[str, str]:
    """The page and its Content-Security-Policy, which allows its own script and nothing else."""
    return html.page(__file__, title, ["review.js"], csp=("connect-src 'self'", "media-src blob:", "img-src data:"))


def clip_json(clip: ReviewClip) -> dict:
    """A clip as the page gets it, without any path of this machine."""
    return {"id": clip.id, "recording": clip.recording, "seconds": round(clip.seconds, 2), "text": clip.text,
            "transcript": clip.transcript, "state": clip.state, "revision": clip.revision, "score": round(clip.score, 3),
            "flags": [flag.reason for flag in clip.flags]}


async def _list_clips(store: ReviewStore, request) -> list[dict]:
    return [clip_json(clip) for clip in await asyncio.to_thread(lambda: store.clips)]


async def _clip_audio(store: ReviewStore, request) -> bytes:
    samples = await asyncio.to_thread(store.read_audio, request.query_params.get("id", ""))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


async def _edit(store: ReviewStore, request) -> dict:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise KitError(f"the request is larger than {MAX_BODY_BYTES} bytes.")
    try:
        edit = json.loads(body)
    except ValueError as error:
        raise KitError("the request is no JSON. Reload the page.") from error
    if not isinstance(edit, dict):
        raise KitError("the request is no edit. Reload the page.")
    changed = await asyncio.to_thread(store.edit, edit)
    return {"changed": [clip_json(clip) for clip in changed], "order": [clip.id for clip in store.clips]}


def _same_token(given: str | None, token: str) -> bool:
    return secrets.compare_digest((given or "").encode(), token.encode())
