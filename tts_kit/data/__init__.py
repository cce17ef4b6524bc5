"""A table or a hub dataset of recordings becomes utterances, checked, levelled and split, in `runs/NAME/data/`."""

from tts_kit.data.intake import prepare, summary
from tts_kit.data.utterance import RATE, Utterance, read, split, write

__all__ = ["RATE", "Utterance", "prepare", "read", "split", "summary", "write"]
