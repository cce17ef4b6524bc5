"""Requests for speech and error answers, both in the shape of OpenAI's API."""

import asyncio
from typing import Literal

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse

from tts_kit import local_server
from tts_kit.errors import KitError
from tts_kit.generation.engine import ModelBusyError

MAX_CHARACTERS = 4096  # of the input text, as in OpenAI's API
MAX_BYTES = 65_536  # of a request
BODY_TIMEOUT = 20.0  # seconds for a request to arrive completely
RETRY_AFTER = "5"  # seconds after which a client that was refused with 503 should try again


class APIError(KitError):
    """A refused request: status, message, a code for programs and the parameter it is about."""

    def __init__(self, status: int, message: str, code: str | None = None, param: str | None = None):
        super().__init__(message)
        self.status, self.code, self.param = status, code, param

    def response(self) -> JSONResponse:
        """Return the error as OpenAI's clients parse it."""
        headers = {401: {"WWW-Authenticate": "Bearer"}, 503: {"Retry-After": RETRY_AFTER}}.get(self.status)
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return JSONResponse({"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}},
                            self.status, headers)


def busy(message: str) -> APIError:
    """Return the error for a request that can be served later."""
    return APIError(503, f"{message} Try again in {RETRY_AFTER} s.", "overloaded")


def api_error(error: Exception) -> APIError:
    """Return any error as an answer; details of unexpected ones stay in the server's log."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, ModelBusyError):
        return busy("the voice is being used outside the server.")
    if isinstance(error, KitError):
        return APIError(400, str(error), "invalid_input", "input")
    return APIError(500, "the speech could not be generated; the server's log has the reason. Other requests are served.",
                    "internal_error")


class NamedVoice(pydantic.BaseModel, extra="forbid"):
    """A voice as an object, which OpenAI's API accepts too."""
    id: str


class SpeechRequest(pydantic.BaseModel, extra="forbid"):
    """The fields of OpenAI's speech request, and a seed."""
    model: str
    input: str = pydantic.Field(max_length=MAX_CHARACTERS)
    voice: str | NamedVoice
    response_format: Literal["mp3", "opus", "flac", "wav", "pcm"] = "mp3"
    speed: float = 1.0
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] | None = None
    seed: int = pydantic.Field(0, ge=0, lt=2**62)

    @property
    def voice_id(self) -> str:
        return self.voice.id if isinstance(self.voice, NamedVoice) else self.voice

    @pydantic.field_validator("speed", "instructions")
    @classmethod
    def _require_default(cls, value: float | str | None) -> float | str | None:
        if value not in (1, None, ""):
            raise ValueError("this model has one speed and follows no instructions, leave it out")
        return value


async def read_request(request: Request) -> SpeechRequest:
    """Return a checked request; what this server cannot do is refused and not ignored."""
    try:
        body = await asyncio.wait_for(local_server.read_body(request, MAX_BYTES), BODY_TIMEOUT)
        return SpeechRequest.model_validate_json(body)
    except TimeoutError as error:
        raise APIError(408, f"the request did not arrive within {BODY_TIMEOUT:g} s.", "timeout") from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = str(first["loc"][0])[:60] if first["loc"] else None
        raise APIError(400, f"{param or 'the request'}: {first['msg']}.", first["type"], param) from error
    except KitError as error:
        raise APIError(413, str(error), "request_too_large", "input") from error
