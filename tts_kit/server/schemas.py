"""A request for speech: read with limits, and refused where it asks for what this server does not do."""

import asyncio
from typing import Literal

import pydantic
from starlette.requests import Request

from tts_kit.server import audio_format
from tts_kit.server.api_errors import APIError

LONGEST = 4096
"""Characters of a text, as OpenAI has it."""
MOST_BYTES, DRAINED = 65_536, 16_000_000
"""Of a request; and how much of a larger one is thrown away unread, so that its sender hears the refusal."""
BODY_SECONDS = 20.0
"""For a request to arrive."""


class NamedVoice(pydantic.BaseModel, extra="forbid"):
    """A voice, as OpenAI lets one be called too."""
    id: str


class SpeechRequest(pydantic.BaseModel, extra="forbid"):
    """A request, as OpenAI's clients send it, and a seed."""
    model: str
    input: str
    voice: str | NamedVoice
    response_format: str = "mp3"
    speed: float = 1.0
    instructions: str | None = None
    stream_format: Literal["audio", "sse"] | None = None
    seed: int = pydantic.Field(0, ge=0, lt=2**62)

    @property
    def voice_name(self) -> str:
        return self.voice.id if isinstance(self.voice, NamedVoice) else self.voice


async def read(request: Request) -> SpeechRequest:
    """A request's JSON, refused while it grows too large or comes too slowly."""
    try:
        content = await asyncio.wait_for(_body(request), BODY_SECONDS)
        return SpeechRequest.model_validate_json(content)
    except TimeoutError as error:
        raise APIError(408, f"the request did not arrive within {BODY_SECONDS:g} s.", "too_slow") from error
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        about = str(first["loc"][0])[:60] if first["loc"] else ""
        raise APIError(400, f"{about or 'the request'}: {first['msg']}.", first["type"], about or None) from error


def check(wanted: SpeechRequest) -> None:
    """Refuse what this server does not do, rather than do something else."""
    kinds = audio_format.kinds()
    if wanted.response_format not in kinds:
        raise APIError(400, f"response_format {wanted.response_format[:20]!r} cannot be written here; {', '.join(kinds)} "
                      "can.", "unsupported_format", "response_format")
    if wanted.speed != 1:
        raise APIError(400, "this model has one pace: leave speed out, or send 1.", "unsupported_value", "speed")
    if wanted.instructions:
        raise APIError(400, "this model follows no instructions: leave them out. Another take is another seed.",
                      "unsupported_value", "instructions")
    if len(wanted.input) > LONGEST:
        raise APIError(400, f"the input has {len(wanted.input)} characters; at most {LONGEST} can be sent at once. Split it.",
                      "string_above_max_length", "input")


async def _body(request: Request) -> bytes:
    content, size = bytearray(), 0
    async for piece in request.stream():
        size += len(piece)
        if size <= MOST_BYTES:
            content += piece
        elif size > DRAINED:
            break
    if size > MOST_BYTES:
        raise APIError(413, f"the request is larger than {MOST_BYTES} bytes; a text of {LONGEST} characters is not. Split "
                      "it.", "request_too_large", "input")
    return bytes(content)
