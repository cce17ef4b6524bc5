"""The review page: a person listens to the clips of a run and corrects their texts, the most doubtful first.

The page sends one edit at a time, which is on disk before it is confirmed. The server listens on this machine only and
answers only requests with the token in its URL.
"""

import io
import json
import secrets

import soundfile

from tts_kit import colab, html
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_store import EditConflict, ReviewClip, ReviewStore
from tts_kit.errors import KitError

MAX_BODY_BYTES = 100_000


class Review:
    """A running review server: open `url`, end it with `close`."""

    def __init__(self, store: ReviewStore, name: str, port: int = 0):
        try:
            from tts_kit import local_server
        except ImportError as error:
            raise KitError('the review page needs uvicorn and starlette: pip install "tts-kit[audio]"') from error
        self.token = secrets.token_urlsafe(24)
        bound_socket = local_server.listen(local_server.LOCALHOST, port)
        self.server = local_server.LocalServer(app(store, self.token, f"Review: {name}"), bound_socket,
                                               timeout_graceful_shutdown=2)
        self.server.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/?token={self.token}"

    def wait(self) -> None:
        """Block until the server ends."""
        while self.server.thread.is_alive():
            self.server.thread.join(1)

    def close(self) -> None:
        self.server.close()

    def show(self, height: int = 720):
        """The page inside a notebook."""
        return colab.embed_iframe(self.server.port, f"/?token={self.token}", height)


def app(store: ReviewStore, token: str, title: str):
    """The page and its API as an ASGI application."""
    from starlette.applications import Starlette
    from starlette.concurrency import run_in_threadpool
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    from tts_kit import local_server

    def check_token(given: str | None) -> None:
        if not secrets.compare_digest((given or "").encode(), token.encode()):
            raise _WrongToken("Wrong token: open the address that the review printed.")

    def index(request) -> Response:
        check_token(request.query_params.get("token"))
        return local_server.page_response(*page(title))

    def clips(request) -> Response:
        check_token(request.headers.get("x-token"))
        return JSONResponse([clip_json(clip) for clip in store.clips])

    def clip_audio(request) -> Response:
        check_token(request.headers.get("x-token"))
        buffer = io.BytesIO()
        samples = store.read_audio(request.query_params.get("id", ""))
        soundfile.write(buffer, samples, SAMPLE_RATE, format="WAV", subtype="PCM_16")
        return Response(buffer.getvalue(), media_type="audio/wav", headers={"Cache-Control": "no-store"})

    async def edit(request) -> Response:
        check_token(request.headers.get("x-token"))
        changed = await run_in_threadpool(store.edit, _parse(await local_server.read_body(request, MAX_BODY_BYTES)))
        return JSONResponse({"changed": [clip_json(clip) for clip in changed], "order": [clip.id for clip in store.clips]})

    def explain(_request, error: KitError) -> Response:
        if isinstance(error, EditConflict):
            return JSONResponse({"error": str(error), "current": error.current and clip_json(error.current)}, 409)
        return JSONResponse({"error": str(error)}, 403 if isinstance(error, _WrongToken) else 400)

    return Starlette(routes=[Route("/", index), Route("/clips", clips), Route("/audio", clip_audio),
                             Route("/edit", edit, methods=["POST"])], exception_handlers={KitError: explain})


def page(title: str) -> tuple[str, str]:
    """The page and its Content-Security-Policy, which allows its own script and nothing else."""
    return html.page(__file__, title, ["review.js"], csp=("connect-src 'self'", "media-src blob:", "img-src data:"))


def clip_json(clip: ReviewClip) -> dict:
    """A clip as the page gets it, without any path of this machine."""
    return {"id": clip.id, "recording": clip.recording, "seconds": round(clip.seconds, 2), "text": clip.text,
            "transcript": clip.transcript, "state": clip.state, "revision": clip.revision, "score": round(clip.score, 3),
            "flags": [flag.reason for flag in clip.flags]}


class _WrongToken(KitError):
    pass


def _parse(body: bytes) -> dict:
    try:
        edit = json.loads(body)
    except ValueError as error:
        raise KitError("the request is no JSON. Reload the page.") from error
    if not isinstance(edit, dict):
        raise KitError("the request is no edit. Reload the page.")
    return edit
