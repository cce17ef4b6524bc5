"""A table or a hub dataset of recordings becomes utterances, checked, levelled and split, in `runs/NAME/data/`."""

from tts_kit.data.intake import prepare, summary
from tts_kit.data.utterance import Utterance, read, split, write

__all__ = ["Utterance", "prepare", "read", "split", "summary", "write"]
