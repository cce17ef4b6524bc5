"""Text normalization, the same for training and speaking, and splitting into chunks without losses."""

import random
import unicodedata

import pytest

from tts_kit import text
from tts_kit.errors import KitError

ALPHABET = [*"abcXYZ019 .!?,;:-'\"()\n\t", "’", "“", "—", "–", "…", "\u00a0", "\u2009", "\u2028", "é", "e\u0301",
            "\u0301", "ß", "。", "漢", "字", "Mr.", "J.", "e.g.", "3.5", "हि", "\u1fef", "\u037e"]


def random_texts(count: int = 400):
    draw = random.Random(7)
    for _ in range(count):
        yield "".join(draw.choices(ALPHABET, k=draw.randint(1, 300))) + draw.choice(["", "a"])


def speakable(texts):
    return [sample for sample in texts if any(character.isalnum() for character in sample)]


@pytest.mark.parametrize(("raw_text", "expected"), [
    ("Hello", "Hello."), ("Room 12", "Room 12."), ("Really?", "Really?"), ('He said "no"', 'He said "no"'),
    ("  two\tlines\r\nof\u00a0text\u2028here ", "two lines of text here."),
    ("“Don’t” — she said… 10–20", '"Don\'t" - she said... 10-20.'), ("cafe\u0301", "café."), ("हिन्दी", "हिन्दी."),
    ("It costs 3 €.", "It costs 3 €."),
])
def test_text_is_normalized(raw_text, expected):
    """Mistake: one sentence is written in two ways, so that training and speaking see different tokens."""
    assert text.normalize(raw_text) == expected


def test_normalization_is_idempotent():
    """Mistake: text changes when it is normalized again, once in the data and once when spoken."""
    for raw_text in speakable(random_texts()):
        once = text.normalize(raw_text)
        assert text.normalize(once) == once == unicodedata.normalize("NFC", once)
        assert "  " not in once and once == once.strip()


@pytest.mark.parametrize(("raw_text", "messages"), [
    ("", ["empty", "at least one word"]), (" \n\u00a0", ["empty"]), ("...?!", ["no letter and no digit"]),
    ("ab\x00c", ["U+0000", "position 3"]), ("a\x1b[0m", ["U+001B", "position 2"]), ("a\x1cb", ["U+001C"]),
    ("zero\u200bwidth", ["U+200B", "ZERO WIDTH SPACE", "position 5"]), ("\ufeffabc", ["U+FEFF", "position 1"]),
    ("\u202eabc", ["U+202E", "RIGHT-TO-LEFT OVERRIDE"]), ("caf\ufffd", ["U+FFFD", "REPLACEMENT"]),
    ("lone \ud800", ["U+D800"]), ("\ue000abc", ["U+E000"]),
])
def test_unspeakable_characters_are_refused(raw_text, messages):
    """Mistake: invisible characters become tokens, or the error does not say which and where."""
    with pytest.raises(KitError) as caught:
        text.normalize(raw_text)
    for message in messages:
        assert message in str(caught.value)


@pytest.mark.parametrize("limit", [1, 30, 200])
def test_chunks_lose_nothing_and_fit_the_limit(limit):
    """Mistake: a lost or doubled word at a cut, or a chunk over the limit."""
    for raw_text in speakable(random_texts(150)):
        chunks = text.split_sentences(raw_text, limit)
        assert "".join("".join(chunks).split()) == "".join(text.normalize(raw_text).split())
        for chunk in chunks:
            assert any(character.isalnum() for character in chunk)
            assert len(chunk) <= limit or limit < 200  # dots and dashes may pass a small limit, words may not


def test_chunks_of_words_fit_any_limit():
    """Mistake: a chunk longer than the model's budget."""
    draw = random.Random(3)
    for limit in (10, 37, 200):
        words = ["".join(draw.choices("abcdef", k=draw.randint(1, 30))) + draw.choice(["", "", ",", ".", "; "])
                 for _ in range(200)]
        assert max(map(len, text.split_sentences(" ".join(words), limit))) <= limit


@pytest.mark.parametrize("raw_text", [
    "Mr. Smith met Dr. Jones in St. Albans.", "J. R. R. Tolkien wrote it.", "It cost 3.5 pounds, e.g. less than that.",
    "At 5 p.m. they left.", "Apples, pears etc. were sold.",
])
def test_a_full_stop_inside_a_sentence_is_no_end(raw_text):
    """Mistake: a pause and a falling pitch after Mr. or in the middle of a number."""
    assert text._sentences(raw_text) == [raw_text]


def test_chunks_are_whole_sentences():
    """Mistake: a cut inside a sentence that fits, or one chunk for every short answer."""
    story = 'No. I will not! "Why?" she asked. So do I. Then we went home.'
    assert text._sentences(story) == [
        "No.", "I will not!", '"Why?"', "she asked.", "So do I.", "Then we went home."]
    assert text.split_sentences(story, 200) == [story]
    assert text.split_sentences(story, 35) == ['No. I will not! "Why?" she asked.', "So do I. Then we went home."]


def test_a_long_sentence_is_cut_at_its_punctuation():
    """Mistake: a cut in a phrase where a semicolon or comma is near, or a tiny last chunk."""
    assert text.split_sentences("the first half of it stands here, with a comma; the second half stands over there", 50) == [
        "the first half of it stands here, with a comma;", "the second half stands over there."]
    assert text.split_sentences("one two three, four five six seven eight", 30) == [
        "one two three,", "four five six seven eight."]
    for opening in ("", "Well, "):
        chunks = text.split_sentences(opening + "word " * 41, 200)
        assert len(chunks) == 2 and min(map(len, chunks)) > 90
    assert text.split_sentences("漢" * 25 + "。" + "字" * 10, 30) == ["漢" * 25 + "。", "字" * 10 + "."]


def test_the_duration_limit_grows_with_the_text():
    """Mistake: a slow voice is stopped early, or a voice without EOS speaks for minutes."""
    assert text.max_speech_seconds("Hi.") == pytest.approx(2.4, abs=0.1)
    assert 20 < text.max_speech_seconds("x" * 150) < 30


@pytest.mark.parametrize(("raw_text", "phrase"), [
    ("Où est la Straße, Łukasz? 3 µm!", ""), ("123", ""), ("你好, Anna.", "2 of 6 letters are of another script (CJK)"),
    ("Привет", "6 of 6 letters are of another script (CYRILLIC)"),
    ("かな カナ", "4 of 4 letters are of another script (HIRAGANA, KATAKANA)")])
def test_letters_of_other_scripts(raw_text, phrase):
    """Mistake: Chinese for a model of English is spoken as gibberish without a word, or an accent counts as foreign."""
    assert text.other_scripts(raw_text) == phrase
