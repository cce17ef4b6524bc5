"""One text normalisation for training and for speaking, and the cutting of long text into sentences."""

import re
import unicodedata

from tts_kit.errors import KitError

PLAIN = str.maketrans({
    **dict.fromkeys("‘’‚‛ʼ′", "'"), **dict.fromkeys("“”„‟«»″", '"'), **dict.fromkeys("‐‑‒–−", "-"),
    "—": " - ", "―": " - ", "…": "...",
})
WHITESPACE = "\t\n\v\f\r"
# never the end of a sentence; a missed end only makes a chunk longer
ABBREVIATIONS = frozenset({
    "mr", "mrs", "ms", "mx", "dr", "prof", "st", "mt", "rev", "gen", "col", "capt", "lt", "sgt", "hon", "sr", "jr",
    "vs", "etc", "cf", "ca", "approx", "fig", "vol", "dept", "inc", "ltd", "co", "corp", "jan", "feb", "apr", "aug",
    "sept", "oct", "nov", "dec"})
SENTENCE_END = re.compile(r"""[.!?]+["')\]]*\s+|[。！？]+["'」』）)]*\s*""")
CLAUSE_ENDS = (re.compile(r"[;:]\s+"), re.compile(r",\s+"))


def normalize(text: str) -> str:
    """Plain quotes, dashes and spaces, one line, a full stop after a final letter or digit; numbers stay."""
    for position, character in enumerate(text, 1):
        if _unspeakable(character):
            name = unicodedata.name(character, "no name")
            raise KitError(f"the text holds U+{ord(character):04X} ({name}) at position {position}, which nobody can "
                          "speak: control characters, invisible marks and broken encodings are refused. Remove it.")
    plain = " ".join(unicodedata.normalize("NFC", text).translate(PLAIN).split())
    if not plain:
        raise KitError("the text is empty; wanted at least one word. Write what is said, or leave it out.")
    if not _has_word(plain):
        raise KitError(f"the text {plain[:40]!r} holds no letter and no digit. Write what is said, or leave it out.")
    return plain + "." if unicodedata.category(plain[-1])[0] in "LMN" else plain


def split_sentences(text: str, max_characters: int = 200) -> list[str]:
    """Chunks of at most `max_characters`: whole sentences where they fit; nothing is lost but whitespace."""
    chunks: list[str] = []
    open_chunk = False
    for sentence in _split_sentences(normalize(text)):
        pieces = _halve(sentence, max_characters)
        if open_chunk and len(chunks[-1]) + 1 + len(sentence) <= max_characters:
            chunks[-1] += " " + sentence
        else:
            chunks.extend(pieces)
        open_chunk = len(pieces) == 1
    return _without_wordless(chunks)


def max_speech_seconds(text: str) -> float:
    """The longest a sane reading of `text` takes; a voice still speaking then has run away."""
    return 2.0 + len(text) / 7


def _unspeakable(character: str) -> bool:
    if character in WHITESPACE:
        return False
    return character == "\N{REPLACEMENT CHARACTER}" or unicodedata.category(character) in ("Cc", "Cf", "Cs", "Co")


def _has_word(text: str) -> bool:
    return any(character.isalnum() for character in text)


def _split_sentences(text: str) -> list[str]:
    found, begin = [], 0
    for end in SENTENCE_END.finditer(text):
        if not _abbreviated(text[begin:end.start() + 1]):
            found.append(text[begin:end.end()].strip())
            begin = end.end()
    return [sentence for sentence in (*found, text[begin:].strip()) if sentence]


def _abbreviated(text: str) -> bool:
    """Whether the full stop that ends `text` belongs to Mr., to an initial or to e.g."""
    word = text.split()[-1].lstrip("\"'([")
    if not word.endswith(".") or word == ".":
        return False
    stem = word[:-1]
    initial = len(stem) == 1 and stem.isupper() and stem != "I"
    dotted = all(len(part) == 1 and part.isalpha() for part in stem.split(".")) and "." in stem
    return initial or dotted or stem.lower() in ABBREVIATIONS


def _halve(sentence: str, limit: int) -> list[str]:
    """Cut near the middle until every piece fits: after ; or :, else after a comma, else at a space, else anywhere."""
    if len(sentence) <= limit:
        return [sentence]
    middle = len(sentence) / 2
    spots: list[int] = []
    for clause_end in CLAUSE_ENDS:
        ends = [match.end() for match in clause_end.finditer(sentence)]
        spots = spots or [end for end in ends if middle / 2 <= end <= 1.5 * middle]
    spots = spots or [place + 1 for place, character in enumerate(sentence) if character == " "] or [int(middle)]
    cut = min(spots, key=lambda spot: abs(spot - middle))
    return _halve(sentence[:cut].strip(), limit) + _halve(sentence[cut:].strip(), limit)


def _without_wordless(chunks: list[str]) -> list[str]:
    """Chunks of dots and dashes alone cannot be spoken; they join a neighbour, even past the limit."""
    joined: list[str] = []
    for chunk in chunks:
        if joined and not (_has_word(joined[-1]) and _has_word(chunk)):
            joined[-1] += " " + chunk
        else:
            joined.append(chunk)
    return joined
