"""Clips that repeat a training sentence are detected, and other clips are not."""

import pytest

from tts_kit.evaluation import memorization, metrics

pytestmark = pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
TRAINING = ("The train to Oslo is late again.", "Nobody has seen the black cat today.")


def row(arm, text, transcript, seed=1):
    return {"arm": arm, "file": "clip.flac", "text": text, "transcript": transcript, "seed": seed, "sentence": 1}


def test_a_training_sentence_instead_of_the_text_is_memorized():
    """Mistake: a model that repeats its training sentences is scored as the best voice of all; a recording, or a clip
    without words, counts as memorized."""
    rows = [row("ground_truth", "A blue hat.", "The train to Oslo is late again.", seed=None),
            row("finetuned", "Where is the small house?", "the train to oslo is very late again"),
            row("finetuned", "Where is the small house?", "Where is the small mouse?"),
            row("finetuned", "Where is the small house?", "a wind from elsewhere"),
            row("finetuned", "Where is the small house?", "")]
    checked = memorization.check(rows, TRAINING)
    assert [checked_row.get("memorized") for checked_row in checked] == [None, True, False, False, None]
    assert checked[1]["training_text"] == TRAINING[0] and checked[0] == rows[0]
    assert not any(checked_row.get("memorized") for checked_row in memorization.check(rows, []))


def test_one_misrecognized_word_is_no_memorization():
    """Mistake: sentences of one pattern, where one wrong word gives another training sentence, count as memorized."""
    words = {text: text.lower().rstrip(".").split() for text in TRAINING}
    assert memorization.matched_training_text("The train to Oslo is late again.", "The train to Rome is late again.",
                                              words) == ""
    assert memorization.matched_training_text("The train to Oslo is late again.", "Please bring two green chairs.",
                                              words) == TRAINING[0]
    assert memorization.matched_training_text("Yes.", "No.", {"Yes.": ["yes"]}) == ""
