"""How well models read is measured on sentences and voices that nothing else uses."""

import itertools

import numpy as np
import pytest

from sample_data.build import corpus, csm_training, open_text, reading, sentences, voices

needs_wordnet = pytest.mark.skipif(not (open_text.WORDNET / "data.noun").exists(),
                                   reason="Debian's wordnet-base is not installed")


@needs_wordnet
def test_new_words_are_in_no_training_clip():
    """Mistake: a sentence counts as one with a new word although the model heard the word, or the other way round."""
    training = {word for text in itertools.islice(open_text.generate(1), 500) for word in sentences.words(text)}
    groups = reading.development_sentences(training, 12)
    assert {len(texts) for texts in groups.values()} == {12}
    assert all(set(sentences.words(text)) <= training for text in groups[reading.KNOWN])
    assert all(set(sentences.words(text)) - training for text in groups[reading.NEW])
    evaluated = {*sentences.evaluation_set().sentences, *sentences.evaluation_set().open_sentences}
    assert not evaluated & {text for texts in groups.values() for text in texts}


def test_references_are_of_speakers_that_are_held_out(tmp_path):
    """Mistake: the model is measured on voices that it was trained on, or on clips of no use as a reference."""
    def synthesize(text, speaker, speed):
        return np.full(round((1.0 if speed < 0.95 else 3.0) * corpus.RATE), 0.1, np.float32)

    speakers = [voices.Speaker(f"speaker-{number:02d}", "af_bella") for number in range(50)]
    corpus.make_shards(tmp_path / "corpus", 1, synthesize, speakers=speakers)
    clips = reading.references(tmp_path / "corpus", tmp_path, 2)
    held_out = csm_training.held_out_speakers({speaker.name for speaker in speakers})
    assert len(held_out) == 3 and 1 <= len(clips) <= 2
    assert {clip.path.stem for clip in clips} <= held_out
    texts = {(speaker, text) for speaker, text, _ in corpus.read(tmp_path / "corpus")}
    assert all((clip.path.stem, clip.text) in texts for clip in clips)
