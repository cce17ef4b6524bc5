"""A system in an environment of its own: uv makes it, a process of it speaks, and the kit looks after both."""

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

from tts_kit.comparison.external_systems import System
from tts_kit.errors import KitError

PYTHON = ">=3.11,<3.13"
RUNNER = Path(__file__).with_name("runner.py")
LIMITS = 3600.0, 600.0
"""Most seconds for installing, downloading and loading, and for one line."""
LONGEST_REASON = 300
PASSED = frozenset({
    "PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "XDG_CACHE_HOME", "SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy", "UV_CACHE_DIR",
    "UV_DEFAULT_INDEX", "UV_INDEX_URL", "UV_EXTRA_INDEX_URL", "UV_FIND_LINKS", "UV_OFFLINE", "UV_PYTHON_INSTALL_DIR",
    "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT", "HF_HUB_OFFLINE", "CUDA_VISIBLE_DEVICES", "LD_LIBRARY_PATH",
    "OMP_NUM_THREADS", "OMP_WAIT_POLICY"})
"""All that a system learns of the user's environment: where to fetch and store, and what to calculate on."""


def uv() -> str:
    """Where uv is, which makes the environments; nothing where it is not installed."""
    beside = Path(sys.executable).with_name("uv")  # in a virtual environment that is not activated
    return shutil.which("uv") or (str(beside) if beside.is_file() else "")


def command(system: System) -> list[str]:
    """What runs the runner in the system's environment, which uv keeps in its cache."""
    wanted = [word for package in system.packages for word in ("--with", package)]
    return [uv(), "run", "--quiet", "--isolated", "--no-project", "--python", PYTHON, *wanted, "python", "-I", str(RUNNER)]


def environment(system: System) -> dict[str, str]:
    """The process's variables: no key of the user's but the one without which the weights are not given."""
    passed = PASSED | {system.agreement} - {""} | ({"HF_TOKEN"} if system.needs_token else set())
    # or the hub's client sends the token that it finds on disk
    kept_back = {} if system.needs_token else {"HF_HUB_DISABLE_IMPLICIT_TOKEN": "1"}
    return {name: value for name, value in os.environ.items() if name in passed} | kept_back


def answers(started: Sequence[str], variables: dict[str, str], folder: Path, job: dict,
            limits: tuple[float, float] = LIMITS) -> Iterator[dict]:
    """What the runner answers to `job`, whose wavs `folder` gets; a Problem says why it ended before all was said."""
    path = folder / "job.json"
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8") as file:
        json.dump(job, file)
    speaking = False
    with tempfile.TemporaryFile(dir=folder) as errors, _running([*started, str(path)], variables, folder, errors) as heard:
        while True:
            limit = limits[speaking]
            try:
                line = heard.get(timeout=limit)
            except queue.Empty:
                what = "for a line" if speaking else "to install and load it"
                raise KitError(f"it took more than {limit:g} seconds {what} and was stopped") from None
            if line is None:
                raise KitError(_last_words(errors))
            answer = _read(line)
            if "failed" in answer:
                raise KitError(answer["failed"][:LONGEST_REASON])
            speaking = speaking or answer.get("step") == "speaking"
            yield answer
            if answer.get("line") == len(job["lines"]) - 1:
                return


@contextlib.contextmanager
def _running(started: Sequence[str], variables: dict[str, str], folder: Path, errors) -> Iterator[queue.Queue]:
    """The process's lines, None after the last; with the block it ends, and with it all that it has started."""
    heard: queue.Queue = queue.Queue()
    # a session of its own, so that Ctrl-C reaches the kit alone, which ends the others in order
    process = subprocess.Popen(started, env=variables, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                               stderr=errors, start_new_session=True)

    def listen() -> None:
        for line in process.stdout:
            heard.put(line)
        heard.put(None)

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield heard
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdin.close()


def _read(line: bytes) -> dict:
    """An answer, or an empty one: a package may print something before the runner begins."""
    try:
        answer = json.loads(line)
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _last_words(errors) -> str:
    """What a process that broke off has written at last: uv's whole message, or a program's last line."""
    errors.seek(max(0, errors.seek(0, os.SEEK_END) - 10_000))
    lines = [" ".join(line.strip(" ×╰─▶│").split()) for line in errors.read().decode("utf-8", "replace").splitlines()]
    lines = [line for line in lines if line]
    begin = next((place for place, line in enumerate(lines) if line.startswith(("error:", "No solution"))), len(lines) - 1)
    return " ".join(lines[max(0, begin):])[:LONGEST_REASON] or "it ended without a word"
