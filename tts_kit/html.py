"""What all pages of the kit have in common: paper and ink, and that nothing runs on them but their own script."""

import base64
import hashlib
import html
import json
import re
import string
from collections.abc import Sequence
from pathlib import Path

HERE = Path(__file__)


def page(module: str, title: str, scripts: Sequence[str] = (), data: dict | None = None, allowed: Sequence[str] = (),
         **parts: str) -> tuple[str, str]:
    """A page out of what lies beside a module: its HTML, filled with `parts`, which are HTML too, its style and its scripts,
    which find `data`. With it the policy under which a browser may show it: those, and else what is `allowed`."""
    own = Path(module)
    body = string.Template(_text(own.with_suffix(".html"))).substitute(parts, title=escape(title))
    style = _text(HERE.with_suffix(".css")) + _text(own.with_suffix(".css"))
    script = "".join(_text(own.with_name(name)) for name in scripts)
    runs = [f"script-src {_digest(script)}"] * bool(script)
    policy = "; ".join(["default-src 'none'", f"style-src {_digest(style)}", *runs, *allowed, "base-uri 'none'",
                        "form-action 'none'"])
    told = [] if data is None else [f'<script type="application/json" id="data">{_json(data)}</script>']
    return string.Template(_text(HERE.with_suffix(".html"))).substitute(
        policy=policy, title=escape(title), style=style, body=body,
        scripts="\n".join([*told, *[f"<script>{script}</script>"] * bool(script)])), policy


def data_uri(content: bytes, mime: str) -> str:
    """An address that holds its content."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def escape(text: object) -> str:
    """Words that somebody wrote, as nothing but words on a page."""
    return html.escape(str(text)).encode("ascii", "xmlcharrefreplace").decode("ascii")


def markdown(text: object) -> str:
    """The same on a page of Markdown, in one line."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _json(data: dict) -> str:
    """ASCII without "<", which can neither end its script element nor hold U+2028 or half a surrogate pair."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _digest(text: str) -> str:
    """What a policy calls the one script, or the one style, that it lets through."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
