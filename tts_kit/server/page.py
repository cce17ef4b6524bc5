"""The page to type and hear. It names no voice: those it asks for, with the key where one is wanted."""

import html

from tts_kit import html as pages
from tts_kit.server import audio_format, schemas


def page() -> tuple[str, str]:
    """The page and the policy under which a browser may run it: its own script and nothing else."""
    kinds = "".join(f"<option>{html.escape(kind)}</option>" for kind in audio_format.kinds() if kind != audio_format.PCM)
    filled, policy = pages.page(__file__, "Type and hear", ["page.js"], csp=("connect-src 'self'", "media-src blob:"),
                                longest=str(schemas.LONGEST), kinds=kinds)
    return filled, f"{policy}; frame-ancestors 'none'"
