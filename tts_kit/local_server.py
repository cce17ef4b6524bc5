"""Servers on this machine: socket, thread, request limits, page headers; pages for whoever has the token in their URL."""

import secrets
import socket
import threading
from collections.abc import Sequence

import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse
from starlette.routing import Route

from tts_kit import colab
from tts_kit.errors import KitError

LOCALHOST = "127.0.0.1"
MAX_DRAINED_BYTES = 16_000_000
"""How much of a too large request is read and dropped, so that its sender gets an answer instead of a reset connection."""


class LocalServer(uvicorn.Server):
    """A uvicorn server on a bound socket: `serve_forever` in this thread, or `start` and `close` for a thread of its own."""

    def __init__(self, app, bound_socket: socket.socket, **options):
        super().__init__(uvicorn.Config(app, ws="none", log_level="warning", server_header=False, **options))
        self.socket = bound_socket
        self.port = bound_socket.getsockname()[1]
        self.thread = threading.Thread(target=self.serve_forever, name="server", daemon=True)

    def serve_forever(self) -> None:
        """Serve until `close` or a signal."""
        with self.socket:
            self.run(sockets=[self.socket])

    def start(self) -> None:
        """Serve in a thread, for example while a notebook goes on."""
        self.thread.start()

    def close(self) -> None:
        """Stop the thread that `start` began."""
        self.should_exit = True
        self.thread.join(40)


class PageServer(LocalServer):
    """A page and its API in a thread, on this machine only, for requests with its token: in the URL of the page, else in
    X-Token."""

    def __init__(self, page: tuple[str, str], routes: Sequence[Route], token: str, port: int = 0):
        async def check_token(request: Request, call_next):
            given = request.query_params.get("token") if request.url.path == "/" else request.headers.get("x-token")
            if not secrets.compare_digest((given or "").encode(), token.encode()):
                return JSONResponse({"error": "wrong token: use the page in the notebook, or the address that was printed."},
                                    403)
            return await call_next(request)

        app = Starlette(routes=[Route("/", lambda request: page_response(*page)), *routes],
                        middleware=[Middleware(BaseHTTPMiddleware, dispatch=check_token)],
                        exception_handlers={KitError: lambda _, error: JSONResponse({"error": str(error)}, 400)})
        super().__init__(app, listen(LOCALHOST, port), timeout_graceful_shutdown=2)
        self.token = token
        self.start()

    @property
    def url(self) -> str:
        return f"http://{LOCALHOST}:{self.port}/?token={self.token}"

    def show(self, height: int = 720):
        """The page inside a notebook."""
        return colab.embed_iframe(self.port, f"/?token={self.token}", height)


def listen(host: str, port: int) -> socket.socket:
    """Return a listening socket; connections wait in its backlog until the server accepts them."""
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET, backlog=1024)
    except (OSError, OverflowError) as error:
        raise KitError(f"port {port} of {host} cannot be used: {error}. Stop the program that uses it, give --port another "
                       "number (0: any that is free), or correct --host.") from error


async def read_body(request: Request, max_bytes: int) -> bytes:
    """Return the body of a request; refuse one above `max_bytes` without keeping it in memory."""
    body, size = bytearray(), 0
    async for chunk in request.stream():
        size += len(chunk)
        if size <= max_bytes:
            body += chunk
        elif size > MAX_DRAINED_BYTES:
            break
    if size > max_bytes:
        raise KitError(f"the request is larger than {max_bytes} bytes. Send less at once.")
    return bytes(body)


def page_response(content: str, policy: str) -> HTMLResponse:
    """Return a page under a content security policy, which no cache keeps and no referrer names."""
    return HTMLResponse(content, headers={"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer",
                                          "Cache-Control": "no-store", "X-Content-Type-Options": "nosniff"})
