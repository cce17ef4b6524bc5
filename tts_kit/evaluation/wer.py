"""One spelling for what should be said and what was heard, and how many words and letters of it are wrong."""

import functools
import re
from collections.abc import Callable

# the normaliser deletes whatever stands in brackets, and a curly apostrophe would cut a word in two
OPENED = str.maketrans({**dict.fromkeys("()[]<>", " "), "\N{RIGHT SINGLE QUOTATION MARK}": "'"})
SPOKEN = re.compile(r"\s*\bo'clock\b|:00\b")
SAME = ((re.compile(r"\bcan not\b"), "cannot"), (re.compile(r"\bokay\b"), "ok"),
        (re.compile(r"\bone\b"), "1"),  # a lone 1 is written as a word, within a number it is not
        (re.compile(r"(?<=\d)(?=\d)"), " "),  # 3:30, 330 and 3 30; 4-1-5-0 and 4150
        # of three dots the normaliser leaves one, and of a lone sign all of it: words that nobody can say
        (re.compile(r"(?<!\d)\.+|\.+(?!\d)|(?<!\S)[$%£€¢](?!\S)"), " "))


def normalize(text: str) -> str:
    """Words as both sides of a comparison are written: one spelling, numbers in single digits, no punctuation."""
    written = _normaliser()(SPOKEN.sub("", text.translate(OPENED)))
    for seen, wanted in SAME:
        written = seen.sub(wanted, written)
    return " ".join(written.split())


def length(text: str) -> tuple[int, int]:
    """(words, letters) of a text, normalised."""
    written = normalize(text)
    return len(written.split()), len(_letters(written))


def edit_counts(text: str, heard: str) -> tuple[int | None, int | None]:
    """(words, letters) that `heard` has wrong, added ones too; letters wherever words are parted. None where `text` has no
    words."""
    import jiwer

    wanted, said = normalize(text), normalize(heard)
    if not wanted:
        return None, None
    if not said:
        return len(wanted.split()), len(_letters(wanted))
    words, letters = jiwer.process_words(wanted, said), jiwer.process_characters(_letters(wanted), _letters(said))
    return tuple(each.substitutions + each.deletions + each.insertions for each in (words, letters))


def _letters(written: str) -> str:
    return written.replace(" ", "")


@functools.cache
def _normaliser() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
