"""The page where a person listens to the clips of a run and puts their texts right, the most suspicious first.

In goes a draft; the page sends edits, one at a time, and each is on disk before the page says so. It listens on this
machine only, and to nobody who does not know the token in its address.
"""

import asyncio
import io
import json
import secrets
import socket
import threading
from collections.abc import Callable

import soundfile

from tts_kit import colab, html
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_edits import EditConflict, ReviewClip
from tts_kit.data.review_store import ReviewStore
from tts_kit.errors import KitError

MOST_BYTES = 100_000
"""Of a request."""
HOST = "127.0.0.1"
SOUND = {"Content-Type": "audio/wav", "Cache-Control": "no-store"}


def app(draft: ReviewStore, token: str, title: str):
    """The page and what it asks for, as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.responses import HTMLResponse, JSONResponse, Response
    from starlette.routing import Route

    async def front(request) -> Response:
        if not _same(request.query_params.get("token"), token):
            return HTMLResponse("Open the address that the review printed; it ends in a token.", 403)
        content, policy = page(title)
        return HTMLResponse(content, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
                                              "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})

    def guarded(answer) -> Callable:
        async def endpoint(request) -> Response:
            if not _same(request.headers.get("x-token"), token):
                return JSONResponse({"problem": "wrong token: open the address that the review printed."}, 403)
            try:
                said = await answer(draft, request)
            except EditConflict as stale:
                return JSONResponse({"problem": str(stale), "now": shown(stale.now) if stale.now else None}, 409)
            except KitError as problem:
                return JSONResponse({"problem": str(problem)}, 400)
            is_sound = isinstance(said, bytes)
            return Response(said, headers=SOUND) if is_sound else JSONResponse(said)
        return endpoint

    return Starlette(routes=[Route("/", front), Route("/clips", guarded(_clips)), Route("/sound", guarded(_sound)),
                             Route("/edit", guarded(_edit), methods=["POST"])])


async def _clips(draft: ReviewStore, request) -> list[dict]:
    return [shown(entry) for entry in await asyncio.to_thread(lambda: draft.entries)]


async def _sound(draft: ReviewStore, request) -> bytes:
    samples = await asyncio.to_thread(draft.wave, request.query_params.get("id", ""))
    buffer = io.BytesIO()
    soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


async def _edit(draft: ReviewStore, request) -> dict:
    changed = await asyncio.to_thread(draft.edit, await _body(request))
    return {"changed": [shown(entry) for entry in changed], "order": [entry.id for entry in draft.entries]}


def _same(said: str | None, token: str) -> bool:
    return secrets.compare_digest((said or "").encode(), token.encode())


def shown(entry: ReviewClip) -> dict:
    """An entry as the page gets it; no place on this machine is in it."""
    return {"id": entry.id, "recording": entry.recording, "seconds": round(entry.seconds, 2), "text": entry.text,
            "heard": entry.heard, "state": entry.state, "revision": entry.revision, "suspicion": round(entry.suspicion, 3),
            "doubts": [doubt.reason for doubt in entry.doubts]}


def page(title: str) -> tuple[str, str]:
    """The page and the policy under which a browser may run it: its own script and nothing else."""
    return html.page(__file__, title, ["review.js"], csp=("connect-src 'self'", "media-src blob:", "img-src data:"))


class Review:
    """A running review: `address` to open, `close` to end."""

    def __init__(self, draft: ReviewStore, title: str, port: int = 0):
        try:
            import uvicorn
        except ImportError as error:
            raise KitError("the review page needs uvicorn and starlette: pip install uvicorn starlette -c "
                          "constraints.txt") from error
        self.token = secrets.token_urlsafe(24)
        self._socket = _listening(port)
        self.port = self._socket.getsockname()[1]
        config = uvicorn.Config(app(draft, self.token, title), log_level="warning", timeout_graceful_shutdown=2)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    @property
    def address(self) -> str:
        return f"http://{HOST}:{self.port}/?token={self.token}"

    def wait(self) -> None:
        """Until the server ends."""
        while self._thread.is_alive():
            self._thread.join(1)

    def close(self) -> None:
        self._server.should_exit = True
        self._thread.join(5)
        self._socket.close()

    def show(self, height: int = 720):
        """The page inside a notebook."""
        return colab.embed_iframe(self.port, f"/?token={self.token}", height)


def _listening(port: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((HOST, port))
        made.listen(64)  # from now on nobody is refused, even before the server is ready
    except OSError as error:
        made.close()
        raise KitError(f"port {port} of this machine cannot be used ({error.strerror}). Leave --port out, or choose "
                      "another.") from error
    return made


async def _body(request) -> dict:
    """The JSON object of a request, refused while it grows too large."""
    content = b""
    async for piece in request.stream():
        content += piece
        if len(content) > MOST_BYTES:
            raise KitError(f"the request is larger than {MOST_BYTES} bytes.")
    try:
        asked = json.loads(content)
    except ValueError as error:
        raise KitError("the request is no JSON. Reload the page.") from error
    if not isinstance(asked, dict):
        raise KitError("the request is no edit. Reload the page.")
    return asked
