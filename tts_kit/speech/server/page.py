"""The page to type and hear. It names no voice: those it asks for, with the key where one is wanted."""

import html
import string
from pathlib import Path

from tts_kit import pages
from tts_kit.speech.server import sound, wanted


def page() -> tuple[str, str]:
    """The page and the policy under which a browser may run it: its own script and nothing else."""
    page, script = (Path(__file__).with_suffix(kind).read_text(encoding="utf-8") for kind in (".html", ".js"))
    style = pages.style(Path(__file__).with_suffix(".css"))
    kinds = "".join(f"<option>{html.escape(kind)}</option>" for kind in sound.kinds() if kind != sound.PCM)
    filled = string.Template(page).substitute(longest=str(wanted.LONGEST), kinds=kinds, style=style, script=script)
    return filled, (f"default-src 'none'; script-src {pages.digest(script)}; style-src {pages.digest(style)}; "
                    "connect-src 'self'; media-src blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'")
