"""Word and character errors: both texts normalized to one spelling, then aligned."""

import functools
import re
from collections.abc import Callable

from tts_kit.spoken_text import to_spoken

# the Whisper normalizer deletes bracketed text, a curly apostrophe would cut a word in two, and an ellipsis hides the end
# of a number
PLAIN = str.maketrans({**dict.fromkeys("()[]<>", " "), "\N{RIGHT SINGLE QUOTATION MARK}": "'",
                       "\N{HORIZONTAL ELLIPSIS}": "..."})
CLOCK = re.compile(r"\s*\bo'clock\b|:00\b")
SPELLINGS = (
    (re.compile(r"\bcan not\b"), "cannot"), (re.compile(r"\bokay\b"), "ok"),
    (re.compile(r"\bone\b"), "1"),  # the normalizer leaves a lone "one" as a word, but not within a number
    (re.compile(r"(?<=\d)(?=\d)"), " "),  # 3:30, 330 and 3 30; 4-1-5-0 and 4150
    # what the normalizer leaves of three dots, and lone currency signs, are no words
    (re.compile(r"(?<!\d)\.+|\.+(?!\d)|(?<!\S)[$%£€¢](?!\S)"), " "))


def normalize(text: str) -> str:
    """Return the words in one spelling: lower case, no punctuation, numbers as single digits."""
    # written out first: the normalizer takes numbers back to digits, but knows few units, symbols and dates
    text = _whisper_normalizer()(CLOCK.sub("", to_spoken(" ".join(text.translate(PLAIN).split()))))
    for pattern, replacement in SPELLINGS:
        text = pattern.sub(replacement, text)
    return " ".join(text.split())


def length(text: str) -> tuple[int, int]:
    """Return the numbers of (words, characters) of a text, normalized."""
    words = normalize(text).split()
    return len(words), len("".join(words))


def edit_counts(reference: str, transcript: str) -> tuple[int | None, int | None]:
    """Return (word errors, character errors) of a transcript, None where the reference has no words. Insertions count, so
    there can be more errors than reference words; character errors ignore word boundaries."""
    import jiwer

    reference, transcript = normalize(reference), normalize(transcript)
    if not reference:
        return None, None
    words = jiwer.process_words(reference, transcript)
    characters = jiwer.process_characters(reference.replace(" ", ""), transcript.replace(" ", ""))
    return tuple(output.substitutions + output.deletions + output.insertions for output in (words, characters))


@functools.cache
def _whisper_normalizer() -> Callable[[str], str]:
    from whisper_normalizer.english import EnglishTextNormalizer

    return EnglishTextNormalizer()
