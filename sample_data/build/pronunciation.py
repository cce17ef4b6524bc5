"""A pronouncing dictionary inside the tokenizer: words that it knows become phonemes, other words stay letters.

    python -m sample_data.build.pronunciation

writes pronunciations.txt anew: all words of the grammar, the names, and the words of several of WordNet's examples, as
espeak pronounces them. English spelling is irregular, and a small model that hears a few hours of speech does not learn it;
with phonemes it can speak words that it never heard."""

import argparse
import functools
import random
import re
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, normalizers

from sample_data.build import kokoro, open_text, sentences
from tts_kit.comparison.external_runner import kokoro_phonemes
from tts_kit.errors import report_errors
from tts_kit.io import write_text

FILE = Path(__file__).with_name("pronunciations.txt")
SYMBOLS = dict(zip("pbtdkɡfvszmnlɹwjhŋθðʃʒɾɪəɛiæɚʊeaɑɔʌouɜˈ", "PBTDKGFVSZMNLRWYHQX6CJ7I9E123U4AO085%$^"))
"""IPA -> a character that no spoken text contains, so that a phoneme is never taken for a letter."""
MERGED = {"ᵻ": "ɪ", "ɐ": "ə", "ː": "", "ˌ": "", "̩": ""}  # distinctions that are left out
WEAK_FORMS = {"a": "ə"}  # espeak pronounces a word alone as if it were stressed
MIN_COUNT = 3  # of WordNet's examples that a word occurs in


@functools.cache
def table() -> dict[str, str]:
    """Return word -> its phonemes as symbols; longer words first, so that `don't` is found before `don`."""
    rows = [line.split(" ") for line in FILE.read_text(encoding="utf-8").splitlines()]
    return dict(sorted(rows, key=lambda row: (-len(row[0]), row[0])))


def normalizer() -> normalizers.Normalizer:
    """Return the dictionary as a normalizer of a tokenizer."""
    return normalizers.Sequence([normalizers.Lowercase(), *(
        normalizers.Replace(Regex(rf"\b{re.escape(word)}\b"), symbols) for word, symbols in table().items())])


def to_symbols(text: str, rng: random.Random | None = None, letters: float = 0.0) -> str:
    """Return a text as the normalizer does; with `letters`, that share of the known words stays letters, as if unknown."""
    return _known_words().sub(lambda match: match[0] if letters and rng.random() < letters else table()[match[0]],
                              text.lower())


def words() -> list[str]:
    """Return the words of the dictionary."""
    counts = Counter(word for text in open_text.examples() for word in set(sentences.words(text)))
    names = {name.lower() for group in open_text.names() for name in group}
    return sorted({word for word, count in counts.items() if count >= MIN_COUNT} | sentences.vocabulary() | names)


def pronounce(new_words: Iterable[str]) -> dict[str, str]:
    """Return word -> symbols of espeak's pronunciation."""
    kokoro.import_packages()
    pronounced = {}
    for word in new_words:
        phonemes = WEAK_FORMS.get(word) or kokoro_phonemes(word)
        for old, new in MERGED.items():
            phonemes = phonemes.replace(old, new)
        pronounced[word] = "".join(SYMBOLS[phoneme] for phoneme in phonemes)
    return pronounced


@functools.cache
def _known_words() -> re.Pattern:
    return re.compile(rf"\b(?:{'|'.join(map(re.escape, table()))})\b")


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    argparse.ArgumentParser(prog="python -m sample_data.build.pronunciation",
                            description=__doc__.split("\n")[0]).parse_args(arguments)
    pronounced = pronounce(words())
    write_text(FILE, "".join(f"{word} {symbols}\n" for word, symbols in pronounced.items()))
    print(f"{len(pronounced)} words: {FILE}")


if __name__ == "__main__":
    sys.exit(main())
