"""The licence of a base model, and what its makers forbid."""

import re
from pathlib import Path

from huggingface_hub import ModelCard

CSM, CSM_LICENSE = ("sesame/csm-1b", "unsloth/csm-1b"), "apache-2.0"
CSM_PROHIBITED_USES = """CSM's makers provide it for research and educational purposes, and forbid its use for:

- impersonation or fraud: speech that mimics a person without their explicit consent;
- misinformation or deception: speech that misleads, such as fake news or fraudulent calls;
- anything illegal, harmful or malicious.

A voice made from it is bound by the same terms. Its codec is Mimi by Kyutai (CC-BY-4.0): whoever distributes the codec's
weights, as part of merged weights for instance, has to credit Kyutai."""
USE_POLICY = ("Use this voice only as the person it belongs to has allowed. Where people could be misled, say that it is "
              "synthetic.")


def license_of(base: str, folder: str) -> str:
    """Return the licence of a base by its name, or from the card in its folder; empty where neither says."""
    card = Path(folder) / "README.md"
    if base in CSM or not card.is_file():
        return CSM_LICENSE if base in CSM else ""
    # the YAML header alone: the rest of a card may be anything
    header = re.match(r"---\n.*?\n---\n", card.read_text(encoding="utf-8"), re.DOTALL)
    return ModelCard(header.group() if header else "", ignore_metadata_errors=True).data.license or ""


def prohibited_uses(base: str, license_id: str) -> list[str]:
    """Return the terms as paragraphs, for a card or a terminal."""
    terms = [f"The base model, {base}, is licensed under {license_id}; so is what is made from it."] if license_id else []
    return [*terms, *([CSM_PROHIBITED_USES] if base in CSM else []), USE_POLICY]


def license_notice(base: str) -> str:
    """Return one line for whoever is about to fine-tune a base, given by its name or folder."""
    license_id = license_of(base, base)
    if not license_id:
        return f"{base} states no licence: find out which terms apply before you pass on a voice made from it."
    forbidden = ", and its makers forbid impersonation, deception and harm" if base in CSM else ""
    return f"{base} is licensed under {license_id}{forbidden}: a voice made from it is bound by the same terms."
