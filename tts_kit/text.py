"""Text: one normalization for training and speaking, and the splitting of long text into sentences."""

import re
import unicodedata

from tts_kit.errors import KitError

PUNCTUATION = str.maketrans({
    **dict.fromkeys("‘’‚‛ʼ′", "'"), **dict.fromkeys("“”„‟«»″", '"'), **dict.fromkeys("‐‑‒–−", "-"),
    "—": " - ", "―": " - ", "…": "...",
})
# never the end of a sentence; a missed end only makes a chunk longer
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "mx", "dr", "prof", "st", "mt", "rev", "gen", "col", "capt", "lt", "sgt", "hon", "sr", "jr",
    "vs", "etc", "cf", "ca", "approx", "fig", "vol", "dept", "inc", "ltd", "co", "corp", "jan", "feb", "apr", "aug",
    "sept", "oct", "nov", "dec"})
SENTENCE_END = re.compile(r"""[.!?]+["')\]]*\s+|[。！？]+["'」』）)]*\s*""")
MAX_DIGITS = 100
LONG_NUMBER = re.compile(rf"\d(?:[.,]?\d){{{MAX_DIGITS}}}")
CLAUSE_ENDS = (re.compile(r"[;:]\s+"), re.compile(r",\s+"))


def normalize(text: str) -> str:
    """Return text with plain quotes, dashes and spaces, in one line, with a full stop after a final letter or digit."""
    for position, character in enumerate(text, 1):
        is_control = character not in "\t\n\v\f\r" and unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co")
        if is_control or character == "\N{REPLACEMENT CHARACTER}":
            raise KitError(f"the text holds U+{ord(character):04X} ({unicodedata.name(character, 'no name')}) at position "
                           f"{position}: control characters, invisible marks and broken encodings cannot be spoken. "
                           "Remove it.")
    plain = " ".join(unicodedata.normalize("NFC", text).translate(PUNCTUATION).split())
    if not plain:
        raise KitError("the text is empty; wanted at least one word. Write what is said, or leave it out.")
    if not _has_word(plain):
        raise KitError(f"the text {plain[:40]!r} holds no letter and no digit. Write what is said, or leave it out.")
    if number := LONG_NUMBER.search(plain):
        raise KitError(f"the text holds a number of more than {MAX_DIGITS} digits, {number[0][:12]}... Shorten it, or write "
                       "it in words.")
    return plain + "." if unicodedata.category(plain[-1])[0] in "LMN" else plain


def other_scripts(text: str) -> str:
    """Return which part of a text's letters is of other scripts than Latin, as a phrase; empty where none is."""
    letters = [character for character in unicodedata.normalize("NFC", text) if character.isalpha()]
    scripts = [unicodedata.name(character, "unnamed").split()[0] for character in letters]
    others = [script for script in scripts if script not in ("LATIN", "MICRO", "FEMININE", "MASCULINE", "MODIFIER")]
    return (f"{len(others)} of {len(letters)} letters are of another script ({', '.join(dict.fromkeys(others))})" if others
            else "")


def split_sentences(text: str, max_characters: int = 200) -> list[str]:
    """Split text into chunks of at most `max_characters`, of full sentences if they fit; only whitespace is lost."""
    chunks: list[str] = []
    may_append = False
    for sentence in _sentences(normalize(text)):
        parts = _split_long(sentence, max_characters)
        if may_append and len(chunks[-1]) + 1 + len(sentence) <= max_characters:
            chunks[-1] += " " + sentence
        else:
            chunks.extend(parts)
        may_append = len(parts) == 1
    joined: list[str] = []
    for chunk in chunks:  # chunks of dots and dashes alone cannot be spoken; they join a neighbour, even past the limit
        if joined and not (_has_word(joined[-1]) and _has_word(chunk)):
            joined[-1] += " " + chunk
        else:
            joined.append(chunk)
    return joined


def max_speech_seconds(text: str) -> float:
    """Return the longest plausible duration of `text`; generation beyond it has run away."""
    return 2.0 + len(text) / 7


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _sentences(text: str) -> list[str]:
    sentences, begin = [], 0
    for end in SENTENCE_END.finditer(text):
        if not _ends_with_abbreviation(text[begin:end.start() + 1]):
            sentences.append(text[begin:end.end()].strip())
            begin = end.end()
    return [sentence for sentence in (*sentences, text[begin:].strip()) if sentence]


def _ends_with_abbreviation(text: str) -> bool:
    """Return whether the full stop that ends `text` belongs to Mr., to an initial or to e.g."""
    word = text.split()[-1].lstrip("\"'([")
    if not word.endswith(".") or word == ".":
        return False
    stem = word[:-1]
    is_initial = len(stem) == 1 and stem.isupper() and stem != "I"
    is_dotted = "." in stem and all(len(part) == 1 and part.isalpha() for part in stem.split("."))
    return is_initial or is_dotted or stem.lower() in ABBREVIATIONS


def _split_long(sentence: str, limit: int) -> list[str]:
    """Halve until every part fits: after ; or :, else after a comma, else at a space, else anywhere near the middle."""
    if len(sentence) <= limit:
        return [sentence]
    middle = len(sentence) / 2
    cuts: list[int] = []
    for clause_end in CLAUSE_ENDS:
        ends = [match.end() for match in clause_end.finditer(sentence)]
        cuts = cuts or [end for end in ends if middle / 2 <= end <= 1.5 * middle]
    cuts = cuts or [index + 1 for index, character in enumerate(sentence) if character == " "] or [int(middle)]
    cut = min(cuts, key=lambda cut: abs(cut - middle))
    return _split_long(sentence[:cut].strip(), limit) + _split_long(sentence[cut:].strip(), limit)
