"""Whether copies of training clips are found, and honest clips left in peace."""

import dataclasses

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.evaluation import memorization, metrics
from tts_kit.evaluation.metrics import MetricModels

pytestmark = pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
LEARNT = {"The train to Oslo is late again.": "a", "Nobody has seen the black cat today.": "b"}


@pytest.fixture
def learnt(tmp_path):
    """Training clips by their texts, and a way to make further clips: noise of a seed, which is its voice."""
    def make(name, seed):
        audio.write(tmp_path / f"{name}.flac", np.random.default_rng(seed).normal(0, 0.1, 16_000), 16_000)
        return f"{name}.flac"

    return {text: tmp_path / make(name, seed) for seed, (text, name) in enumerate(LEARNT.items())}, make


def metric_models():
    """Metric models to which the voice is how the first samples go."""
    return MetricModels({"sim": "ours"}, lambda wave: "", lambda wave: wave[4000:4040] + 0.05, lambda wave: 4.0)


def row(arm, name, text, heard, seed=1):
    return {"arm": arm, "file": name, "text": text, "transcript": heard, "seed": seed, "sentence": 1}


def test_a_training_sentence_in_place_of_the_one_asked_for_is_a_copy(learnt, tmp_path):
    """Mistake: a model that recites its training is praised as the best voice of all."""
    training, make = learnt
    rows = [row("ground_truth", make("r", 50), "A blue hat.", "A blue hat.", None),
            row("finetuned", make("x", 51), "Where is the small house?", "the train to oslo is very late again"),
            row("finetuned", make("y", 52), "Where is the small house?", "Where is the small mouse?"),
            row("finetuned", make("z", 53), "Where is the small house?", "a wind from elsewhere")]
    found = memorization.check(rows, tmp_path, training, metric_models())
    assert [each.get("memorized") for each in found] == [None, True, False, False]
    assert found[1]["nearest_clip"] == "a.flac" and found[0] == rows[0]


def test_one_word_misheard_is_no_copy():
    """Mistake: sentences of one pattern, where a slip makes another learnt one, and the honest model is accused."""
    words = {text: text.lower().rstrip(".").split() for text in LEARNT}
    assert memorization.matched_training_text("The train to Oslo is late again.", "The train to Rome is late again.",
                                              words) == ""
    assert memorization.matched_training_text("The train to Oslo is late again.", "Please bring two green chairs.",
                                              words) == next(iter(LEARNT))
    assert memorization.matched_training_text("Yes.", "No.", {"Yes.": ["yes"]}) == ""


def test_the_very_sound_of_a_training_clip_is_a_copy_and_another_take_is_not(learnt, tmp_path):
    """Mistake: the limit comes from the generated clips, or any likeness to the voice is called a copy of it."""
    training, make = learnt
    rows = [row("ground_truth", make("r", 50), "A blue hat.", "A blue hat.", None),
            row("finetuned", make("same", 0), "A blue hat.", "A blue hat."),
            row("finetuned", make("own", 60), "A blue hat.", "A blue hat.")]
    found = memorization.check(rows, tmp_path, training, metric_models())
    assert found[1]["memorized"] and found[1]["nearest_similarity"] > 0.99 and found[1]["nearest_clip"] == "a.flac"
    assert not found[2]["memorized"] and found[2]["nearest_similarity"] < 0.9
    without_real = memorization.check(rows[1:], tmp_path, training, metric_models())
    assert not without_real[0]["memorized"]


def test_clips_without_a_voice_and_judges_that_break_down_stop_nothing(learnt, tmp_path):
    """Mistake: a silent or missing clip, or one crash, ends the check of all others."""
    training, make = learnt

    def broken(wave):
        raise RuntimeError("no")

    rows = [row("finetuned", make("x", 51), "A blue hat.", "Nobody has seen the black cat today"),
            row("finetuned", "gone.flac", "A blue hat.", "") | {"failure": "missing"}]
    found = memorization.check(rows, tmp_path, training, dataclasses.replace(metric_models(), embed_speaker=broken))
    assert found[0]["memorized"] and found[0]["nearest_similarity"] is None and found[1] == rows[1]
    assert memorization.check(rows, tmp_path, {}, metric_models()) == rows
