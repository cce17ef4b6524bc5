"""Who comes in: those with a key, or this machine's own programs; not too many at once, and no page from elsewhere."""

import hashlib
import hmac
import ipaddress
import logging
from collections.abc import Sequence
from urllib.parse import urlsplit

from tts_kit.errors import KitError
from tts_kit.server import api_errors
from tts_kit.server.api_errors import APIError, StreamAborted

log = logging.getLogger(__name__)

MAX_CONNECTIONS = 256
"""Requests that are answered at the same time, those that wait included."""
SHORTEST_KEY = 16
OPEN = ("/", "/health")
"""What is told without a key: nothing about the voices."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach an address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def check(host: str, keys: Sequence[str]) -> None:
    """Refuse to let others in without a key, or with one that can be guessed."""
    if any(len(key) < SHORTEST_KEY or not key.isascii() or not key.isprintable() for key in keys):
        raise KitError(f"a key of the server is shorter than {SHORTEST_KEY} characters, or not plain ASCII. Make one: python "
                      '-c "import secrets; print(secrets.token_urlsafe(32))"')
    if not keys and not is_loopback(host):
        raise KitError(f"on {host} others could speak in these voices, and no key was given. Give --api-key KEY (or the variable "
                      "TTS_KIT_KEY), or leave --host out to serve this machine only.")


class AuthMiddleware:
    """Around an ASGI application: every request passes here first."""

    def __init__(self, app, keys: Sequence[str] = (), most: int = MAX_CONNECTIONS):
        self.app, self.most, self.inside = app, most, 0
        self.keys = [hashlib.sha256(key.encode()).digest() for key in keys]

    async def __call__(self, scope: dict, receive, send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        self.inside += 1
        try:
            scope.setdefault("state", {})["client"] = self._admit(scope)
            await self.app(scope, receive, send)
        except APIError as refusal:
            await answer(refusal)(scope, receive, send)
        except StreamAborted as broken:
            log.warning("an answer was broken off: %s", broken)
        finally:
            self.inside -= 1

    def _admit(self, scope: dict) -> str:
        """Who it is, for the queue to be fair; or a refusal."""
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        address = (scope.get("client") or ("nobody",))[0]
        if self.inside > self.most:
            raise api_errors.busy(f"{self.most} requests are being answered.", 2)
        if not self.keys:
            self._refuse_pages_from_elsewhere(headers)
            return address
        if scope["path"] in OPEN:
            return address
        return f"{self._key(headers.get('authorization', ''))} {address}"

    def _refuse_pages_from_elsewhere(self, headers: dict[str, str]) -> None:
        """Without a key: a name that somebody else's DNS points here, and a foreign page in this machine's browser."""
        host = _name(f"//{headers.get('host', '')}")
        if not is_loopback(host):
            raise APIError(403, "this server answers to localhost only, not to the name in this request's Host header. Open "
                          "it by its address, or start it with --api-key.", "wrong_host")
        if "origin" in headers and headers["origin"].partition("://")[2] != headers["host"]:
            raise APIError(403, "a page from elsewhere may not speak here (Origin header).", "wrong_origin")

    def _key(self, said: str) -> int:
        """Which of the keys was given; all are compared, and each in the same time."""
        kind, _, key = said.partition(" ")
        digest = hashlib.sha256(key.strip().encode()).digest()
        fitting = [number for number, known in enumerate(self.keys) if hmac.compare_digest(known, digest)]
        if kind.lower() != "bearer" or not fitting:
            raise APIError(401, "wrong key, or none: send the header `Authorization: Bearer KEY` with a key that the server "
                          "was started with.", "invalid_api_key")
        return fitting[0]


def answer(refusal: APIError):
    """A refusal as an answer."""
    from starlette.responses import JSONResponse

    return JSONResponse(refusal.body, refusal.status, refusal.headers)


def _name(address: str) -> str:
    try:
        return urlsplit(address).hostname or ""
    except ValueError:
        return ""
