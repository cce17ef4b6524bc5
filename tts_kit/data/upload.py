"""A page inside a notebook that takes files from this browser, dropped or chosen, and records from its microphone.

It is served like the review: on this machine only, for requests with the token in its URL. Files go to one folder, under
names of their own; none is replaced."""

import os
import re
import secrets
import tempfile
import time
from pathlib import Path, PureWindowsPath

from tts_kit import html
from tts_kit.data.sources import AUDIO_SUFFIXES, TABLE_SUFFIXES
from tts_kit.errors import KitError
from tts_kit.io import explain_os_errors

MAX_BYTES = 2 * 2 ** 30
SUFFIXES = (*AUDIO_SUFFIXES, *TABLE_SUFFIXES, ".lab")


class Upload:
    """A running upload server: display `show()`, then `wait()` until the person has pressed Done."""

    def __init__(self, folder: str | Path):
        from starlette.responses import JSONResponse
        from starlette.routing import Route

        from tts_kit import local_server

        async def receive(request):
            return JSONResponse({"name": await self.save(request.query_params.get("name", ""), request)})

        async def done(request):
            self.is_done = True
            return JSONResponse({})

        self.folder, self.is_done = Path(folder), False
        page = html.page(__file__, "Your files", ["upload.js"], csp=("connect-src 'self'",), accept=",".join(SUFFIXES))
        routes = [Route("/file", receive, methods=["POST"]), Route("/done", done, methods=["POST"])]
        self.server = local_server.PageServer(page, routes, secrets.token_urlsafe(24))

    def show(self, height: int = 260):
        """The page inside a notebook."""
        return self.server.show(height)

    def wait(self) -> Path:
        """Wait for Done and return the folder."""
        print(f"Waiting for your files, until Done is pressed. They go to {self.folder}.")
        try:
            while not self.is_done:
                time.sleep(0.2)
        finally:
            self.server.close()
        if not self.folder.is_dir() or not any(self.folder.iterdir()):
            raise KitError("no file was uploaded and nothing recorded. Run the cell again, or set SOURCE to a path.")
        return self.folder

    async def save(self, name: str, request) -> str:
        """Write the body of a request to the folder and return the file's name there."""
        target = free_path(self.folder, name)
        self.folder.mkdir(parents=True, exist_ok=True)
        with explain_os_errors(target):
            handle, staging = tempfile.mkstemp(dir=self.folder, prefix=".upload-")
            try:
                with os.fdopen(handle, "wb") as file:
                    async for chunk in request.stream():
                        file.write(chunk)
                        if file.tell() > MAX_BYTES:
                            raise KitError(f"{name[:80]} is larger than {MAX_BYTES / 2 ** 20:.0f} MB. Cut it, or copy it to "
                                           "this machine in another way and give its path.")
                target = free_path(self.folder, name)  # another upload may have taken the first
                target.open("xb").close()
                os.replace(staging, target)
            finally:
                Path(staging).unlink(missing_ok=True)
        return target.name


def free_path(folder: Path, name: str) -> Path:
    """Return a path in the folder itself for a file of this name, which may come from any system; none that exists."""
    last = PureWindowsPath(name)
    stem, suffix = re.sub(r"[^\w -]+", "_", last.stem).strip("_ ")[:80], last.suffix.lower()
    if suffix not in SUFFIXES:
        raise KitError(f"{name[:80]!r} is no audio and no table. Wanted one of {', '.join(SUFFIXES)}.")
    names = (f"{stem or 'file'}{f'-{number}' * (number > 1)}{suffix}" for number in range(1, 10_000))
    return next(path for name in names if not os.path.lexists(path := folder / name))
