"""What training reads: one utterance as codes."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class EncodedClip:
    """An utterance whose sound has become codes."""
    id: str
    text: str
    source: str
    """The speaker id that CSM reads."""
    speaker: str
    """The speaker's name; a clip is only ever context for one of the same name."""
    recording: str
    split: str
    codes: torch.Tensor
    """(frames, codebooks) int16"""
