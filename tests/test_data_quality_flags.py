"""Flags: which transcripts a person should check first."""

import dataclasses
import random

import numpy as np
import pytest

from tts_kit.data import quality_flags
from tts_kit.data.segment import Segment
from tts_kit.data.transcribe import Transcript


def make_clips(count: int = 20) -> list[dict]:
    """Ordinary clips of one speaker, each with a text of its own; the arguments of `flag_clips` for each."""
    rng = np.random.default_rng(3)
    embeddings = rng.normal([10, 0, 0, 0], 0.5, (count, 3, 4))
    texts = [f"These are ordinary words of clip {letter}." for letter in "abcdefghijklmnopqrstuvwxyz"[:count]]
    return [{"segment": Segment("", 0.0, 2.4, 40, 40), "transcript": Transcript("", text, text, 0.95),
             "second_text": text.lower().rstrip("."), "embedding": windows / np.linalg.norm(windows, axis=-1, keepdims=True)}
            for text, windows in zip(texts, embeddings)]


def change(clip: dict, **changes) -> None:
    """Change a clip's fields, those of its segment and its transcript too."""
    for name, value in changes.items():
        if name in clip:
            clip[name] = value
        else:
            part = "transcript" if hasattr(clip["transcript"], name) else "segment"
            clip[part] = dataclasses.replace(clip[part], **{name: value})


def flags_of(clips: list[dict]) -> list[list[quality_flags.Flag]]:
    return quality_flags.flag_clips([tuple(clip.values()) for clip in clips])


@pytest.mark.parametrize("changes, reason", [
    ({"confidence": 0.5}, "ASR confidence 50%"), ({"second_text": "Those were ordinary birds of clip f"}, "second pass: "),
    ({"text": "Yes.", "second_text": None}, "few characters"), ({"end": 0.9}, "many characters"),
    ({"edge_db": 6.0}, "a word may be cut"),
    ({"text": "These are ordinary words & 12 % of clip.", "second_text": None},
     "symbols % &; in English it is read as: These are ordinary words and twelve percent of clip."),
    ({"text": "", "second_text": ""}, "no speech recognised"), ({"embedding": np.eye(4)[[0, 0, 1]]}, "another speaker"),
    ({"text": "These are ordinary words of clip a.", "second_text": None}, "same text in 2 clips")])
def test_every_flag_sorts_its_clip_to_the_top(changes, reason):
    """Mistake: a flag that is computed and ignored, or that ordinary clips get as well."""
    clips = make_clips()
    change(clips[5], **changes)
    flags = flags_of(clips)
    assert any(reason in flag.reason for flag in flags[5]), flags[5]
    order = sorted(range(20), key=lambda index: -quality_flags.combined_score(flags[index]))
    assert 5 in order[:2]
    assert quality_flags.combined_score(flags[8]) < 0.1


def test_flags_add_up_and_stay_below_certainty():
    """Mistake: ten weak flags sort above one that is nearly certain, or a sum above one."""
    flags = [quality_flags.Flag("", weight) for weight in (0.2, 0.5)]
    assert quality_flags.combined_score(flags) == pytest.approx(0.6) and quality_flags.combined_score([]) == 0


def test_the_distance_counts_words():
    """Mistake: case and commas count as another word."""
    assert quality_flags.word_edit_distance("He lost, two chairs.", "he lost two chairs") == 0
    assert quality_flags.word_edit_distance("one two three four", "one three four") == 0.25
    assert quality_flags.word_edit_distance("", "one") == 1 and quality_flags.word_edit_distance("", "") == 0
    rng = random.Random(1)
    for _ in range(50):
        first, second = (" ".join(rng.choices("abc", k=rng.randrange(6))) for _ in range(2))
        reverse = quality_flags.word_edit_distance(second, first)
        assert quality_flags.word_edit_distance(first, second) == pytest.approx(reverse)


def test_few_clips_give_no_outliers():
    """Mistake: with three clips one of them is always the outlier."""
    clips = make_clips(4)
    change(clips[0], end=0.8)
    assert quality_flags.combined_score(flags_of(clips)[0]) < 0.1
