"""Python processes that start fast: forked from a server that has imported torch and the package once.

A command is what follows `python`: -c SCRIPT, -m MODULE or a file, and its arguments. Tests of what an import does, or of a
variable that is read by one, start a real interpreter instead.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

TIMEOUT = 1500  # seconds; only what hangs takes them, even on a machine with much other work
FORKSERVER = multiprocessing.get_context("forkserver")
FORKSERVER.set_forkserver_preload(["torch", "transformers.models.csm.modeling_csm", "transformers.models.mimi.modeling_mimi",
                                   "tts_kit.cli", "tts_kit.comparison.compare", "tts_kit.training.finetune"])


class Process:
    """A Python command in a process of its own."""

    def __init__(self, command: Sequence[str | Path], cwd: str | Path | None = None, env: Mapping[str, str] | None = None):
        self.outputs, self.readers, writers = ["", ""], [], []
        for number in range(2):
            reader, writer = FORKSERVER.Pipe(duplex=False)
            self.readers.append(threading.Thread(target=self._read, args=(number, reader), daemon=True))
            writers.append(writer)
        command = [str(part) for part in command]
        self.process = FORKSERVER.Process(target=_execute, args=(command, str(cwd or "."), dict(env or os.environ), writers))
        self.process.start()
        for writer, reader in zip(writers, self.readers):
            writer.close()
            reader.start()

    def _read(self, number: int, reader) -> None:
        with os.fdopen(os.dup(reader.fileno()), encoding="utf-8", errors="replace") as file:
            self.outputs[number] = file.read()

    def poll(self) -> int | None:
        """Its exit status, minus the signal that ended it, or None while it runs."""
        return self.process.exitcode

    def kill(self) -> None:
        os.kill(self.process.pid, signal.SIGKILL)

    def wait(self, timeout: float | None = None) -> subprocess.CompletedProcess:
        """Wait for its end; what still runs after `timeout` seconds is killed."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            self.process.join()
        for reader in self.readers:
            reader.join(20)  # a grandchild may hold the pipe open
        return subprocess.CompletedProcess(self.process.name, self.process.exitcode, *self.outputs)


def run(command: Sequence[str | Path], cwd: str | Path | None = None,
        env: Mapping[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a Python command to its end."""
    return Process(command, cwd, env).wait(TIMEOUT)


def _execute(command: list[str], cwd: str, env: dict[str, str], outputs: list) -> None:
    for descriptor, output in enumerate(outputs, 1):
        os.dup2(output.fileno(), descriptor)
        output.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores Ctrl-C, and so would this
    torch.set_num_threads(1)
    sys.path.insert(0, "")
    option, *rest = command
    sys.argv = [option, *rest[1:]] if option in ("-c", "-m") else command
    if option == "-c":
        exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
    elif option == "-m":
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(option, run_name="__main__")
