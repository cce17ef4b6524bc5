"""The error type that users see, and the command line's handling of it."""

import functools
import sys
from collections.abc import Callable, Sequence


class KitError(Exception):
    """An error for the user: what was seen, what is wanted, what to do. The command line prints it without a traceback."""


def reason(error: Exception) -> str:
    """The first line of another library's error without its full stop, or its type if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def report_errors(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """Wrap a command line: exit status 1 with the message of a KitError, 130 if interrupted, else 0."""
    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except KitError as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Interrupted. The same command continues from here.", file=sys.stderr)
            return 130
    return run
