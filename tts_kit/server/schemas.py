"""Requests for speech and error answers, both in the shape of OpenAI's API."""

import asyncio
import base64
from typing import Annotated, Literal

import pydantic
from starlette.requests import Request
from starlette.responses import JSONResponse

from tts_kit import audio, local_server
from tts_kit.config import MAX_GUIDANCE, MAX_TAKES
from tts_kit.errors import KitError
from tts_kit.generation.engine import ModelBusyError

MAX_CHARACTERS = 4096  # of the input text, as in OpenAI's API
MAX_BYTES = 65_536  # of a request
MAX_REFERENCE_BYTES, MAX_REFERENCE_SECONDS = 4_000_000, 20  # of a request with a reference clip, in base64; of the clip
MAX_TURNS = 100
MIN_SPEED, MAX_SPEED = 0.5, 2.0
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


VoiceName = Annotated[str, pydantic.BeforeValidator(lambda voice: voice.get("id") if isinstance(voice, dict) else voice)]
"""The name of a voice, or an object with it as `id`, which OpenAI's API accepts too."""


class Options(pydantic.BaseModel, extra="allow"):
    """The fields of OpenAI's speech request beside text and voice; `stream` and those below it are extensions.

    Fields that are not known are ignored, and named in the answer's header."""
    model: str
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float = pydantic.Field(1.0, ge=MIN_SPEED, le=MAX_SPEED)
    stream_format: Literal["audio", "sse"] | None = None
    stream: bool = True  # false: a complete file, with its length in the header
    seed: int = pydantic.Field(0, ge=0, lt=2**62)
    guidance: float | None = pydantic.Field(None, ge=0, le=MAX_GUIDANCE)  # classifier-free by the text; None: the voice's
    reference_guidance: float | None = pydantic.Field(None, ge=0, le=MAX_GUIDANCE)  # the same by the reference clip
    best_of: int = pydantic.Field(1, ge=1, le=MAX_TAKES)  # takes of a sentence, the best of which is sent, not streamed

    @property
    def guidance_scales(self) -> dict[str, float]:
        """The settings of guidance that were given, to one decimal: on a GPU each value has CUDA graphs of its own."""
        given = {"guidance": self.guidance, "reference_guidance": self.reference_guidance}
        return {name: round(scale, 1) for name, scale in given.items() if scale is not None}

    @property
    def streaming(self) -> bool | None:
        if self.best_of > 1:
            return False
        return True if self.stream_format else None if self.stream else False


class Clip(pydantic.BaseModel):
    """A reference clip in base64, or as a data: URI, which is a WAV, FLAC, MP3 or OGG file."""
    reference_audio: str | None = None

    def reference_bytes(self) -> bytes:
        """Return the clip's file, decoded once to see that it is audio of a fitting length."""
        try:
            encoded = self.reference_audio or ""
            content = base64.b64decode(encoded.partition("base64,")[2] or encoded, validate=True)
            rate, channels, _ = audio.probe(content, "reference_audio")
            if rate > 192_000 or channels > 2:  # blocks of such a file could fill the memory
                raise KitError(f"reference_audio has {channels} channels of {rate} Hz; send at most 2 of 192000 Hz.")
            audio.read(content, audio.MIN_SAMPLE_RATE, MAX_REFERENCE_SECONDS, "reference_audio")
        except ValueError as error:
            raise APIError(400, "reference_audio is not base64.", "invalid_reference", "reference_audio") from error
        except KitError as error:
            raise APIError(400, str(error), "invalid_reference", "reference_audio") from error
        return content


class SpeechRequest(Options, Clip):
    """OpenAI's speech request; as an extension with a reference clip and its exact words, which the voice then imitates."""
    input: str = pydantic.Field(max_length=MAX_CHARACTERS)
    voice: VoiceName
    reference_text: str = pydantic.Field("", max_length=MAX_CHARACTERS)

    @pydantic.model_validator(mode="after")
    def _check_reference(self):
        if bool(self.reference_audio) != bool(self.reference_text):
            raise ValueError("reference_audio and reference_text belong together: a clip and its exact words")
        return self


class DialogueTurn(pydantic.BaseModel, extra="forbid"):
    """What one voice says in a dialogue."""
    voice: VoiceName
    input: str = pydantic.Field(max_length=MAX_CHARACTERS)


class DialogueRequest(Options):
    """A dialogue: turns of several voices, each spoken with those before it as context."""
    turns: list[DialogueTurn] = pydantic.Field(min_length=1, max_length=MAX_TURNS)

    @pydantic.field_validator("turns")
    @classmethod
    def _limit_characters(cls, turns: list[DialogueTurn]) -> list[DialogueTurn]:
        if sum(len(turn.input) for turn in turns) > MAX_CHARACTERS:
            raise ValueError(f"they have more than {MAX_CHARACTERS} characters together")
        return turns


async def read_request(request: Request, kind: type[pydantic.BaseModel], max_bytes: int = MAX_BYTES):
    """Return a checked request of this kind."""
    try:
        body = await asyncio.wait_for(local_server.read_body(request, max_bytes), BODY_TIMEOUT)
        return kind.model_validate_json(body)
    except TimeoutError as error:
        raise APIError(408, f"the request did not arrive within {BODY_TIMEOUT:g} s.", "timeout") from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        param = str(first["loc"][0])[:60] if first["loc"] else None
        raise APIError(400, f"{param or 'the request'}: {first['msg']}.", first["type"], param) from error
    except KitError as error:
        raise APIError(413, str(error), "request_too_large", "input") from error
