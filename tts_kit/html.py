"""Self-contained HTML pages: one layout, embedded style, scripts and data, and a content security policy."""

import base64
import hashlib
import html
import json
import re
import string
from collections.abc import Sequence
from pathlib import Path

LAYOUT = Path(__file__)


def page(module: str, title: str, scripts: Sequence[str] = (), data: dict | None = None, csp: Sequence[str] = (),
         **parts: str) -> tuple[str, str]:
    """Build a page from the .html, .css and `scripts` beside a module; return it and its content security policy. `parts`
    (HTML) fill the template, `data` is embedded as JSON, `csp` are more directives of the policy."""
    source = Path(module)
    body = string.Template(_text(source.with_suffix(".html"))).substitute(parts, title=escape(title))
    style = _text(LAYOUT.with_suffix(".css")) + _text(source.with_suffix(".css"))
    paths = [source.with_name(name) for name in scripts]
    # a script that pages share, such as player.js, lies beside this module
    script = "".join(_text(path if path.is_file() else LAYOUT.with_name(path.name)) for path in paths)
    script_src = [f"script-src {_csp_hash(script)}"] if script else []
    policy = "; ".join(["default-src 'none'", f"style-src {_csp_hash(style)}", *script_src, *csp, "base-uri 'none'",
                        "form-action 'none'"])
    scripts_html = [] if data is None else [f'<script type="application/json" id="data">{_json(data)}</script>']
    if script:
        scripts_html.append(f"<script>{script}</script>")
    return string.Template(_text(LAYOUT.with_suffix(".html"))).substitute(
        policy=policy, title=escape(title), style=style, body=body, scripts="\n".join(scripts_html)), policy


def data_uri(content: bytes, mime: str) -> str:
    """A data: URI with this content."""
    return f"data:{mime};base64,{base64.b64encode(content).decode()}"


def escape(text: object) -> str:
    """Escape text for HTML, in ASCII."""
    return html.escape(str(text)).encode("ascii", "xmlcharrefreplace").decode("ascii")


def markdown(text: object) -> str:
    """Escape text for Markdown, in one line."""
    return re.sub(r"([\\`*_\[\]|~#])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))


def _json(data: dict) -> str:
    """JSON that is safe inside a script element: ASCII, without "<"."""
    return json.dumps(data, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _csp_hash(text: str) -> str:
    """The CSP source expression that allows exactly this inline script or style."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode('utf-8')).digest()).decode()}'"


def _text(path: Path) -> str:
    return path.read_text(encoding="utf-8")
