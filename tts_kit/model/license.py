"""What binds whoever uses a voice: the licence of its base, and what the base's makers forbid."""

import re
from pathlib import Path

from huggingface_hub import ModelCard

CSM = ("sesame/csm-1b", "unsloth/csm-1b")
LICENCES = dict.fromkeys(CSM, "apache-2.0")
CSM_PROHIBITED_USES = """CSM's makers give it for research and educational purposes, and forbid to use it for:

- impersonation or fraud: speech that mimics a person without their explicit consent;
- misinformation or deception: speech that misleads, such as fake news or fraudulent calls;
- anything illegal, harmful or malicious.

A voice that was made of it is bound by the same. Its codec is Mimi by Kyutai (CC-BY-4.0): who passes the codec's weights
on, as merged weights do, names Kyutai."""
USE_POLICY = "Use this voice only as the person whose it is has allowed. Say that it is a machine's where people could be misled."


def license_of(base: str, place: str) -> str:
    """The licence of a base by its name, or as the card in its folder has it; empty where nobody says."""
    card = Path(place) / "README.md"
    if base in LICENCES or not card.is_file():
        return LICENCES.get(base, "")
    return ModelCard(_front(card.read_text(encoding="utf-8")), ignore_metadata_errors=True).data.license or ""


def prohibited_uses(base: str, licence: str) -> list[str]:
    """Paragraphs for a card or a terminal."""
    told = [f"The base, {base}, is under the licence {licence}, which holds for what is made of it."] * bool(licence)
    return [*told, *[CSM_PROHIBITED_USES] * (base in CSM), USE_POLICY]


def license_notice(base: str) -> str:
    """One line for who is about to make a voice of a base, by its name or from its folder."""
    if not (known := license_of(base, base)):
        return f"{base} says of no licence: look where it comes from before you pass on a voice that is made of it."
    forbidden = ", and its makers forbid impersonation, deception and harm" * (base in CSM)
    return f"{base} is under the licence {known}{forbidden}: a voice that is made of it is bound by the same."


def _front(card: str) -> str:
    """The YAML at the head of a card alone."""
    found = re.match(r"---\n.*?\n---\n", card, re.DOTALL)
    return found.group() if found else ""
