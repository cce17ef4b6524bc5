"""Blind listening test: a page for listeners, its trials, the responses they send back, and their analysis."""

from tts_kit.comparison.listening_test.analysis import analyze, describe
from tts_kit.comparison.listening_test.page import KEY, PAGE, PAIRS, write

__all__ = ["KEY", "PAGE", "PAIRS", "analyze", "describe", "write"]
