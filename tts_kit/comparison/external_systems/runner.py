"""Runs in another system's environment, so without this kit: reads a job, says its lines, answers a line of JSON each.

`python -I runner.py job.json`; it ends when its standard input does, which is when the kit has gone.
"""

import array
import importlib.util
import json
import math
import os
import random
import sys
import threading
import traceback
import wave
from pathlib import Path

LOUDEST = 4.0
"""What is a little too loud is clipped; beyond this it is no speech."""


def main(path: str) -> int:
    """Say every line of the job beside which the wavs are written; 1 where the system cannot even be loaded."""
    asked, answered = _channels()
    threading.Thread(target=_leave_with, args=(asked,), daemon=True).start()

    def answer(**said) -> None:
        os.write(answered, json.dumps(said).encode() + b"\n")

    job = json.loads(Path(path).read_text(encoding="utf-8"))
    answer(step="loading")
    try:
        say = _snippet(job["snippet"]).load(job["reference"], job["words"])
    except (Exception, SystemExit) as error:
        answer(failed=_in_short(error))
        return 1
    answer(step="speaking")
    for number, (text, seed) in enumerate(job["lines"]):
        try:
            _seed(seed)
            _write(Path(path).with_name(f"{number}.wav"), *say(text, seed))
        except (Exception, SystemExit) as error:
            answer(line=number, problem=_in_short(error))
        else:
            answer(line=number, problem="")
    return 0


def _channels() -> tuple[int, int]:
    """The kit's two pipes under other numbers: what a library prints or asks for must not come between."""
    asked, answered = os.dup(0), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    return asked, answered


def _leave_with(asked: int) -> None:
    os.read(asked, 1)
    os._exit(1)


def _snippet(path: str):
    spec = importlib.util.spec_from_file_location("snippet", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _seed(seed: int) -> None:
    """Every source of chance that the system has brought along."""
    random.seed(seed)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(seed % 2**32)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)


def _write(path: Path, samples, rate: int) -> None:
    """Samples between -1 and 1, an array or tensor of one channel, as 16-bit WAV."""
    values = samples.tolist() if hasattr(samples, "tolist") else list(samples)
    while len(values) == 1 and isinstance(values[0], list):
        values = values[0]
    if not all(map(math.isfinite, values)):
        raise ValueError("it made samples that are not numbers")
    if (loudest := max(map(abs, values), default=0)) > LOUDEST:
        raise ValueError(f"it made samples as large as {loudest:.3g}; wanted -1 to 1")
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(int(rate))
        file.writeframes(array.array("h", (round(32767 * max(-1.0, min(1.0, value))) for value in values)).tobytes())


def _in_short(error: BaseException) -> str:
    """The error in one line; all of it goes where the kit looks for the rest."""
    traceback.print_exception(error)
    return " ".join(f"{type(error).__name__}: {error}".split())


if __name__ == "__main__":
    status = main(sys.argv[1])
    sys.stderr.flush()
    os._exit(status)  # a library's own threads may never end
