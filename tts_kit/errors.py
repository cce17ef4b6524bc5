"""The one error this kit raises on purpose: it says what was seen, what was wanted and what to do."""

import functools
import sys
from collections.abc import Callable, Sequence


class KitError(Exception):
    """A message for a person; the command line prints it without a traceback."""


def reason(error: Exception) -> str:
    """The first line of another's error, without its full stop; its kind where it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def report_errors(main: Callable[[Sequence[str] | None], int | None]) -> Callable[..., int]:
    """A command line that ends with 1 and a Problem's message, or with 130 when it is interrupted, and else with 0."""
    @functools.wraps(main)
    def run(arguments: Sequence[str] | None = None) -> int:
        try:
            return main(arguments) or 0
        except KitError as problem:
            print(problem, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            print("Stopped. The same command goes on from here.", file=sys.stderr)
            return 130
    return run
