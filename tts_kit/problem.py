"""The one error this kit raises on purpose: it says what was seen, what was wanted and what to do."""


class Problem(Exception):
    """A message for a person; the command line prints it without a traceback."""
