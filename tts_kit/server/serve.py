"""A server for several voices on one base: OpenAI's interface for speech, streaming, a queue, and a page to try it."""

import contextlib
import errno
import os
import re
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping, Sequence

import uvicorn

from tts_kit.errors import KitError
from tts_kit.server import app, auth
from tts_kit.server.queue import MAX_JOBS, QUEUE_TIMEOUT, JobQueue
from tts_kit.server.worker import Worker
from tts_kit.speech.speak import Voice

HOST, PORT = "127.0.0.1", 8000
KEY = "TTS_KIT_KEY"
"""Variable with a key, which unlike --api-key nobody sees who lists this machine's processes."""
FILES = 8192
"""That a process may have open: each connection is one."""
SILENT = 60.0
"""Seconds in which a client has to finish asking, or to take something of its answer."""


class Server:
    """Voices being served at `address`: `run` until the end, or `start` and `close`."""

    def __init__(self, cast: Mapping[str, Voice], host: str = HOST, port: int = PORT, keys: Sequence[str] = (),
                 marked: bool = True, most: int = MAX_JOBS, queue_timeout: float = QUEUE_TIMEOUT, most_requests: int = auth.MAX_CONNECTIONS,
                 listening: socket.socket | None = None):
        auth.check(host, keys)
        self.host, self.waiting = host, JobQueue(most, queue_timeout)
        self.worker = Worker(cast, self.waiting, marked)
        service = app.Service(self.worker, self.waiting)
        self.models = service.models
        self._socket = listening or listen(host, port)
        self.port = self._socket.getsockname()[1]
        self._server = _Door(uvicorn.Config(
            auth.AuthMiddleware(app.app(service), keys, most_requests), http="h11", ws="none", log_level="warning",
            server_header=False, backlog=2048, timeout_keep_alive=10, timeout_graceful_shutdown=3), self.waiting)

    @property
    def address(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    def run(self) -> None:
        """Serve until Ctrl-C."""
        self.worker.start()
        self._serve()

    def _serve(self) -> None:
        try:
            self._server.run(sockets=[self._socket])
        finally:
            self._socket.close()
            self.waiting.close()
            self.worker.join(30)

    def start(self) -> None:
        """Serve beside whatever else this process does, a notebook for instance."""
        self.worker.start()
        self._thread = threading.Thread(target=self._serve, name="serving", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End what `start` began."""
        self._server.should_exit = True
        self._thread.join(40)


class _Door(uvicorn.Server):
    """Uvicorn, which hangs up on those who keep it waiting, and when it is told to stop first tells those who wait."""

    def __init__(self, config: uvicorn.Config, waiting: JobQueue):
        super().__init__(config)
        self._waiting = waiting
        self._still: dict = {}
        """Connections on which nothing happens: how they stand, and since when."""

    async def on_tick(self, counter: int) -> bool:
        if counter % 10 == 0:
            self._hang_up(time.monotonic())
        return await super().on_tick(counter)

    def _hang_up(self, now: float) -> None:
        before, self._still = self._still, {}
        for connection in list(self.server_state.connections):
            unread, cycle = connection.transport.get_write_buffer_size(), connection.cycle
            if not unread and cycle and not cycle.response_complete:
                continue  # the client waits for us
            stands, since = before.get(connection, ((unread, cycle), now))
            self._still[connection] = (unread, cycle), since if stands == (unread, cycle) else now
            if now - self._still[connection][1] > SILENT:
                connection.transport.abort()  # closing it would wait until the client has read

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._waiting.close()
        await super().shutdown(sockets)


def run_server(load: Callable[[], Mapping[str, Voice]], host: str = HOST, port: int = PORT, keys: Sequence[str] = (),
        marked: bool = True, queue_timeout: float = QUEUE_TIMEOUT) -> None:
    """Serve until Ctrl-C the voices that `load` gives; who may come in, and where, is settled before."""
    auth.check(host, keys)
    if not queue_timeout > 0:  # neither is NaN
        raise KitError(f"--queue-timeout {queue_timeout:g} is no time to wait: give seconds, more than 0.")
    more_files()
    with contextlib.closing(listen(host, port)) as listening:
        cast = load()
        server = Server(cast, host, port, keys, marked, queue_timeout=queue_timeout, listening=listening)
        _announce(server, cast, bool(keys))
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # how services are stopped: as with Ctrl-C
        with contextlib.suppress(KeyboardInterrupt):
            server.run()
    print("Stopped.")


def _announce(server: Server, cast: Mapping[str, Voice], locked: bool) -> None:
    print(f"Voices: {', '.join(cast)}. Model: {server.models[0]}. Open {server.address} to try them; programs speak to "
          f"{server.address}/v1 as they do to OpenAI, with{'' if locked else 'out'} a key. Ctrl-C ends it.", flush=True)


def read_api_keys(given: Sequence[str]) -> list[str]:
    """The keys on the command line and in the environment."""
    return [*given, *filter(None, [os.environ.get(KEY)])]


def parse_voices(pairs: Sequence[str]) -> dict[str, str]:
    """NAME=PLACE pairs as voices by name."""
    found: dict[str, str] = {}
    for pair in pairs:
        name, sign, place = pair.partition("=")
        if not sign or not place or not re.fullmatch(app.NAME, name) or name in found:
            raise KitError(f"--voice {pair}: wanted NAME=PLACE, each name once, of letters, digits, '.', '_' or '-', as in "
                          "--voice anna=runs/anna/adapter.")
        found[name] = place
    return found


def listen(host: str, port: int) -> socket.socket:
    """A socket on which connections are taken from now on, even before the server is ready."""
    try:
        if not 0 <= port < 65_536:
            raise OverflowError("ports are 0 to 65535")
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        made = socket.socket(family, kind)
    except (OSError, OverflowError) as error:
        raise KitError(f"{host}, port {port}, is no address of this machine ({error}). Leave --host and --port out, or "
                      "correct them.") from error
    try:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind(address)
        made.listen(2048)
    except OSError as error:
        made.close()
        why = "is in use: something else serves there" if error.errno == errno.EADDRINUSE else "cannot be used"
        raise KitError(f"port {port} of {host} {why} ({error.strerror}). Stop that, or give --port another number; --port 0 "
                      "takes any that is free.") from error
    return made


def more_files() -> None:
    """Let this process have as many files open as it may, where it begins with fewer than it needs."""
    with contextlib.suppress(ImportError):  # Windows has no such limit
        import resource

        soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
        if soft != resource.RLIM_INFINITY and soft < wanted:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
