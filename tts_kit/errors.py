"""The error type that users see, and the command line's handling of it."""

import errno
import functools
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class KitError(Exception):
    """An error for the user: what was seen, what is wanted, what to do. The command line prints it without a traceback."""


def reason(error: Exception) -> str:
    """The first line of another library's error without its full stop, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def install_command() -> str:
    """Return the command that installs the kit with all packages for this Python."""
    checkout = Path(__file__).parents[1]
    source = ["-e", f"{checkout}[all]"] if (checkout / "requirements.txt").is_file() else ["--upgrade", "tts-kit[all]"]
    return shlex.join([sys.executable, "-m", "pip", "install", *source])


def other_environment() -> str:
    """Return the Python of the .venv in the working folder, if the kit is installed there and this is another one."""
    scripts = [path for path in (Path(".venv/bin/tts-kit"), Path(".venv/Scripts/tts-kit.exe")) if path.is_file()]
    is_other = scripts and Path(".venv").resolve() != Path(sys.prefix).resolve()
    return str(scripts[0].with_name(scripts[0].name.replace("tts-kit", "python"))) if is_other else ""


def import_problem(error: ImportError) -> str:
    """Return which package is missing or broken, and what to do; empty where the kit itself is at fault."""
    cause = error
    while cause and not getattr(cause, "name", None):  # transformers hides the name in the cause
        cause = cause.__cause__ or cause.__context__
    package = cause.name.partition(".")[0] if cause else "a package"
    if package == "tts_kit":
        return ""
    fault = "is not installed" if isinstance(cause, ModuleNotFoundError) else f"cannot be imported ({reason(error)})"
    problem = f"{package} {fault} in {sys.executable}."
    if python := other_environment():
        return f"{problem} This folder has an environment: {shlex.join([python, '-m', 'tts_kit', *sys.argv[1:]])}"
    return f"{problem} Install: {install_command()}"


def report_errors(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Wrap a command line: exit status 1 with one sentence for what a user can mend, 130 if interrupted, else 0."""
    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except KitError as error:
            print(error, file=sys.stderr)
            return 1
        except ImportError as error:
            if not (problem := import_problem(error)):
                raise
            print(problem, file=sys.stderr)
            return 1
        except BrokenPipeError:  # `tts-kit status | head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 1
        except OSError as error:
            if error.errno not in DISK_FULL:
                raise
            print("The disk is full. Free some space and run the same command again.", file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted. The same command continues from here.", file=sys.stderr)
            return 130
    return run
