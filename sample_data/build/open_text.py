"""Sentences about anything for the synthetic speech: the usage examples of WordNet, with names in place of pronouns.

WordNet comes with Debian's package wordnet-base (WordNet License, which allows any use). Half of the corpus is from here and
half from the grammar, whose sentences have the numbers, times and questions that the examples lack."""

import functools
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from sample_data.build import sentences
from tts_kit.errors import KitError

WORDNET = Path("/usr/share/wordnet")
NAMES_FILE = Path(__file__).with_name("names.txt")
MIN_COUNT = 3  # examples that a word occurs in, so that a model can learn to read it
MIN_WORDS, MAX_WORDS = 3, 20
NAME_SHARE = 0.4  # share of the sentences beginning with He or She that get a name instead
EXCLUDED = re.compile(r"\b(sex\w*|fuck\w*|shit\w*|whore\w*|rap(e|es|ed|ist)|nigger\w*|negro\w*|jew\w*|bitch\w*|bastard\w*|"
                      r"kill\w*|murder\w*|suicid\w*|slut\w*|penis\w*|vagina\w*|breast\w*|naked|nude|prostitut\w*|slaughter\w*|"
                      r"tortur\w*|nazi\w*|holocaust|rapist\w*|terroris\w*|cancer\w*|blood\w*|corpse\w*|drunk\w*|urin\w*|"
                      r"anal|anus|ass|crap|damn\w*|hell|piss\w*|cock|dick|screw\w*|lynch\w*|slave\w*|rectal|lewd\w*)\b")
PLAIN = re.compile(r"[A-Za-z][A-Za-z', ]+")


@functools.cache
def examples(folder: Path = WORDNET) -> tuple[str, ...]:
    """Return WordNet's examples that are plain sentences or phrases of words that occur in several of them."""
    files = [folder / f"data.{part}" for part in ("adj", "adv", "noun", "verb")]
    if missing := [str(path) for path in files if not path.exists()]:
        raise KitError(f"WordNet's examples are missing: {', '.join(missing)}. Install them: apt-get install wordnet-base.")
    lines = (line for path in files for line in path.read_text(encoding="utf-8").split("\n") if not line.startswith("  "))
    texts = {_clean(text) for line in lines for text in re.findall(r'"([^"]+)"', line.partition("|")[2])}
    plain = sorted(text for text in texts if PLAIN.fullmatch(text) and not EXCLUDED.search(text.lower())
                   and MIN_WORDS <= len(text.split()) <= MAX_WORDS)
    counts = Counter(word for text in plain for word in set(sentences.words(text)))
    return tuple(text for text in plain if all(counts[word] >= MIN_COUNT for word in sentences.words(text)))


@functools.cache
def names() -> tuple[list[str], list[str]]:
    """Return common first names of women and of men."""
    women, men = (line.split(":")[1].split() for line in NAMES_FILE.read_text(encoding="utf-8").strip().split("\n"))
    return women, men


def generate(seed: int) -> Iterator[str]:
    """Yield sentences endlessly, the same for the same seed; each is of the grammar or of WordNet with equal probability.

    They are drawn and do not take turns, because the speakers of a corpus do."""
    bags, from_grammar = sentences.ShuffleBags(seed), sentences.generate(seed)
    excluded = {tuple(sentences.words(text)) for text in sentences.evaluation_set().open_sentences}
    while True:
        if bags.rng.random() < 0.5:
            yield next(from_grammar)
            continue
        sentence = _with_name(bags.draw("examples", examples()), bags)
        if tuple(sentences.words(sentence)) not in excluded:
            yield sentence[0].upper() + sentence[1:] + "."


def _clean(text: str) -> str:
    return " ".join(text.strip(" .!?;-").split())


def _with_name(text: str, bags: sentences.ShuffleBags) -> str:
    """Replace a pronoun at the beginning by a name, in a share of the sentences."""
    pronoun, _, rest = text.partition(" ")
    if pronoun.lower() not in ("he", "she") or bags.rng.random() >= NAME_SHARE:
        return text
    women, men = names()
    name = bags.draw("women", women) if pronoun.lower() == "she" else bags.draw("men", men)
    return f"{name} {rest}"
