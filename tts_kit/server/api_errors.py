"""No, said so that a client of OpenAI's interface understands it: a status, a sentence, and what it is about."""

import math

from tts_kit.errors import KitError
from tts_kit.model.load import ModelBusyError

BUSY = 503


class APIError(KitError):
    """A request that is not done, and why."""

    def __init__(self, status: int, message: str, code: str | None = None, about: str | None = None,
                 again_after: float | None = None):
        super().__init__(message)
        self.status, self.code, self.about, self.again_after = status, code, about, again_after

    @property
    def body(self) -> dict:
        """As OpenAI's clients read it."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return {"error": {"message": str(self), "type": kind, "param": self.about, "code": self.code}}

    @property
    def headers(self) -> dict[str, str]:
        """When to come again, and with which key."""
        later = {} if self.again_after is None else {"Retry-After": str(max(1, math.ceil(self.again_after)))}
        return later | ({"WWW-Authenticate": "Bearer"} if self.status == 401 else {})


class StreamAborted(Exception):
    """What was begun to be sent cannot be ended; the connection is closed, which is how a client learns of it."""


def busy(message: str, seconds: float) -> APIError:
    """Come again after so many seconds."""
    return APIError(BUSY, f"{message} Try again in {max(1, math.ceil(seconds))} s.", "overloaded", again_after=seconds)


def from_kit_error(problem: Exception) -> APIError:
    """Any error as a refusal; what is nobody's business stays in the server's log."""
    if isinstance(problem, APIError):
        return problem
    if isinstance(problem, ModelBusyError):
        return busy("the voice is saying something else.", 2)
    if isinstance(problem, KitError):
        return APIError(400, str(problem), "unspeakable", "input")
    return APIError(500, "the server failed to say this; its log has the reason. Other requests are served.", "failed")
