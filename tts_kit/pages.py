"""What all pages of the kit have in common: paper and ink, and that nothing is fetched from elsewhere."""

import base64
import hashlib
import html
import re
from pathlib import Path


def style(own: Path) -> str:
    """A page's style sheet: the common one, then its own."""
    return Path(__file__).with_suffix(".css").read_text(encoding="utf-8") + own.read_text(encoding="utf-8")


def embedded(content: bytes, mime: str) -> str:
    """An address that holds its content."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def digest(text: str) -> str:
    """What a page's policy calls the one script, or the one style, that it lets through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def markdown(text: object) -> str:
    """Words that somebody wrote, as nothing but words on a page of Markdown."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
