"""tts_kit: fine-tune a token-based text-to-speech model on one voice with LoRA, and measure whether it helped.

The stages as functions: `from tts_kit import prepare, tokenize, finetune, load_voice, compare`."""

import importlib
import os
import sys
import warnings

_API = {"Config": "config", "Run": "run", "choose_device": "device:choose", "prepare": "data.prepare",
        "tokenize": "tokens.cache", "finetune": "training.finetune", "load_voice": "speech.voice",
        "load_voices": "speech.voice", "Reference": "speech.voice", "dialogue": "speech.dialogue",
        "compare": "comparison.compare", "recommend": "comparison.recommend", "TINY_CSM": "run"}
"""Public name -> module[:name in it]; imported at first use, so that `import tts_kit` stays light."""
__all__ = list(_API)


def __getattr__(name: str):
    if name not in _API:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module, _, attribute = _API[name].partition(":")
    return getattr(importlib.import_module(f"{__name__}.{module}"), attribute or name)


# OpenMP threads wait by spinning: on a busy machine a step then takes up to 60 times as long
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# tqdm warns in every notebook without ipywidgets; its text bar is fine
warnings.filterwarnings("ignore", message="IProgress not found")
if not sys.stderr.isatty():  # a log or notebook keeps every state of a progress bar: print fewer
    os.environ.setdefault("TQDM_MININTERVAL", "1" if "ipykernel" in sys.modules else "10")
