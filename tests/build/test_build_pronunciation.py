"""The pronouncing dictionary in the tokenizer: known words become phonemes, in training and in plain transformers alike."""

import itertools
import random
import re

import pytest

from sample_data.build import model_shapes, open_text, pronunciation, sentences
from tts_kit.spoken_text import to_spoken


def corpus_sentences(count: int) -> list[str]:
    source = open_text if (open_text.WORDNET / "data.noun").exists() else sentences  # WordNet is a package of Debian's
    return [*itertools.islice(source.generate(5), count), *sentences.evaluation_set().sentences,
            *sentences.evaluation_set().open_sentences]


def test_training_and_tokenizer_agree():
    """Mistake: training writes other symbols than the tokenizer, so that the model reads what it never learned."""
    normalizer = pronunciation.normalizer()
    texts = corpus_sentences(300)
    assert [pronunciation.to_symbols(text) for text in texts] == [normalizer.normalize_str(text) for text in texts]
    plain, with_dictionary = (model_shapes.tokenizer("tiny-merged-phonemes", known) for known in (False, True))
    for text in texts[-5:]:
        assert plain.encode(pronunciation.to_symbols(text)) == with_dictionary.encode(text) != plain.encode(text)


def test_a_share_of_the_words_stays_letters():
    """Mistake: all known words are phonemes in training, and the letters of unknown words are never learned."""
    text = " ".join(["garden"] * 400)
    letters = pronunciation.to_symbols(text, random.Random(0), 0.1).split().count("garden")
    assert 20 < letters < 60
    assert "garden" not in pronunciation.to_symbols(text)


def test_phonemes_are_never_taken_for_letters():
    """Mistake: a symbol of a phoneme that is also a letter of a lower-case text, or two phonemes with one symbol."""
    assert len(set(pronunciation.SYMBOLS.values())) == len(pronunciation.SYMBOLS)
    assert not re.search("[a-z ']", "".join(pronunciation.table().values()))
    spoken = to_spoken("Call 5 people at 50 % for $3 & more.")
    assert not set("0123456789%$^&") & set(spoken)


def test_longer_words_are_found_first():
    """Mistake: the beginning of a word is replaced, and the rest stays letters."""
    table = pronunciation.table()
    assert table["don't"] in pronunciation.normalizer().normalize_str("Don't go!")
    assert pronunciation.to_symbols("Sevenths, seven.").endswith(f"{table['seven']}.")


def test_common_words_are_known():
    """Mistake: the words of the evaluation sentences, or names, are missing in the dictionary."""
    known = set(pronunciation.table())
    assert set(itertools.chain(*open_text.names())) <= {name.capitalize() for name in known}
    words = [word for text in corpus_sentences(0) for word in sentences.words(text)]
    assert sum(word in known for word in words) > 0.97 * len(words)


def test_plain_transformers_reads_the_dictionary(tmp_path):
    """Mistake: the dictionary is only in the kit, and not in tokenizer.json."""
    tokenizer = model_shapes.tokenizer("tiny-merged-phonemes")
    tokenizer.save_pretrained(tmp_path)
    loaded = type(tokenizer).from_pretrained(tmp_path)
    text = "Two brown birds and a zyxgarden."
    assert loaded.encode(text) == tokenizer.encode(text)
    assert "zyxgarden" in loaded.decode(loaded.encode(text))
    assert (tmp_path / "tokenizer.json").stat().st_size < 2e6


@pytest.mark.skipif(not (open_text.WORDNET / "data.noun").exists(), reason="Debian's wordnet-base is not installed")
def test_the_corpus_has_no_evaluated_sentence_and_both_kinds():
    """Mistake: an evaluated sentence is trained on, or all speakers of even number speak the grammar alone."""
    made = [*itertools.islice(open_text.generate(1), 3000)]
    evaluated = {tuple(sentences.words(text)) for text in (*sentences.evaluation_set().sentences,
                                                           *sentences.evaluation_set().open_sentences)}
    assert not evaluated & {tuple(sentences.words(text)) for text in made}
    vocabulary = sentences.vocabulary()
    is_open = [not set(sentences.words(text)) <= vocabulary for text in made]
    assert 0.3 < sum(is_open[::2]) / len(is_open[::2]) < 0.6 and 0.3 < sum(is_open[1::2]) / len(is_open[1::2]) < 0.6
    assert all(3 <= len(text.split()) <= 20 and text[0].isupper() and text[-1] in ".?" for text in made)
    assert not [text for text in made if open_text.EXCLUDED.search(text.lower())]
    assert made[:50] == [*itertools.islice(open_text.generate(1), 50)] != [*itertools.islice(open_text.generate(2), 50)]
