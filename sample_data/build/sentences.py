"""Generate sentences for synthetic speech from a grammar, without those that models are evaluated on."""

import functools
import json
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GRAMMAR = Path(__file__).with_name("sentences.txt")
EVALUATION_SET = Path(__file__).with_name("evaluation_set.json")
FREE_SHARE = 0.25
MIN_WORDS, MAX_WORDS = 3, 12
SLOT = re.compile(r"\{(\w+)\}|\(([^()]+)\)")
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
# by pronunciation: an hour, a useful tool
BEFORE_VOWEL = re.compile(r"\ba (?=(?!use|uni|one\b)[aeiouAEIO]|hour|honest)")


@dataclass(frozen=True)
class Grammar:
    lists: dict[str, list[str]]  # name of a slot -> its options, which may contain slots
    templates: list[str]  # sentences that consist mostly of slots
    free: list[str]  # sentences about anything, some with a choice of words


@dataclass(frozen=True)
class EvaluationSet:
    sentences: tuple[str, ...]  # new combinations of words of the vocabulary; never synthesized for training
    open_sentences: tuple[str, ...]  # plain sentences of common words, none from the grammar; never synthesized for training
    bundled: tuple[str, ...]  # sentences of the bundled voice; excluded from training as well
    voices: tuple[str, ...]  # Kokoro voices that are not used in training, neither alone nor in a mixture
    seeds: tuple[int, ...]  # seeds with which a model speaks each sentence


@functools.cache
def grammar() -> Grammar:
    """Read sentences.txt; the slot {word} gets the words of sentences that are in no list."""
    text = "\n".join(line for line in GRAMMAR.read_text(encoding="utf-8").split("\n") if not line.startswith("#"))
    parts = dict(zip(("lists", "templates", "free"), re.split(r"^\[\w+\]$", text, flags=re.MULTILINE)[1:]))
    items = (entry.split(":", 1) for entry in re.split(r"\n\s*\n", parts["lists"]) if entry.strip())
    slots = {name.strip(): [" ".join(option.split()) for option in options.split("|")] for name, options in items}
    list_words = _words(*(entry for entries in slots.values() for entry in entries))
    other_words = _words(parts["templates"], parts["free"]) - list_words
    slots["word"] = sorted(word for word in other_words if word.isalpha() and len(word) > 2)
    return Grammar(slots, parts["templates"].strip().split("\n"), parts["free"].strip().split("\n"))


@functools.cache
def evaluation_set() -> EvaluationSet:
    """Return the sentences, voices and seeds that each model is evaluated on, fixed before the first was trained."""
    values_by_name = json.loads(EVALUATION_SET.read_text(encoding="utf-8"))
    return EvaluationSet(**{name: tuple(values) for name, values in values_by_name.items()})


def vocabulary() -> set[str]:
    """Return all words that `generate` can use, in lower case."""
    rules = grammar()
    entries = (entry for name, entries in rules.lists.items() if name != "word" for entry in entries)
    return {word.lower() for word in _words(*entries, *rules.templates, *rules.free)} | {"an"}


def words(sentence: str) -> list[str]:
    """Return the words of a sentence in lower case; sentences with equal words are the same."""
    return [word.lower() for word in WORD.findall(sentence)]


def generate(seed: int) -> Iterator[str]:
    """Yield sentences endlessly, the same for the same seed."""
    rules, bags = grammar(), ShuffleBags(seed)
    excluded = {tuple(words(sentence)) for sentence in (*evaluation_set().sentences, *evaluation_set().bundled)}
    while True:
        kind = "free" if bags.rng.random() < FREE_SHARE else "templates"
        sentence = _correct_start_and_articles(_fill(bags.draw(kind, getattr(rules, kind)), bags, rules.lists))
        sentence_words = tuple(words(sentence))
        if MIN_WORDS <= len(sentence_words) <= MAX_WORDS and sentence_words not in excluded:
            yield sentence


def generate_with_random_words(seed: int) -> Iterator[str]:
    """Yield the sentences of `generate`, after each a sequence of random words, which the grammar cannot predict."""
    bags, all_words = ShuffleBags(seed), sorted(vocabulary())
    for sentence in generate(seed):
        yield sentence
        count = bags.rng.randint(MIN_WORDS, MAX_WORDS)
        random_words = " ".join(bags.draw("words", all_words) for _ in range(count))
        yield random_words[0].upper() + random_words[1:] + "."


class ShuffleBags:
    """Draws all entries of a list, shuffled, before any is drawn again: rare words appear as often as others."""

    def __init__(self, seed: int):
        self.rng = random.Random(seed)
        self.bags: dict[str, list[str]] = {}

    def draw(self, name: str, entries: list[str]) -> str:
        """Draw the next entry from the bag called `name`."""
        if not self.bags.get(name):
            self.bags[name] = self.rng.sample(entries, len(entries))
        return self.bags[name].pop()


def _fill(pattern: str, bags: ShuffleBags, lists: dict[str, list[str]]) -> str:
    """Fill the slots of `pattern`, each with other words."""
    used = set()

    def fill(slot: re.Match) -> str:
        options = lists[slot[1]] if slot[1] else slot[2].split("|")
        while (filled := _fill(bags.draw(slot[0], options), bags, lists)) in used:
            continue
        used.add(filled)
        return filled

    return SLOT.sub(fill, pattern)


def _correct_start_and_articles(sentence: str) -> str:
    """Begin the sentence with a capital letter, and write "an" before vowels."""
    sentence = BEFORE_VOWEL.sub("an ", sentence)
    return sentence[0].upper() + sentence[1:]


def _words(*texts: str) -> set[str]:
    """Return the words of parts of the grammar, without names of lists."""
    return {word for text in texts for word in WORD.findall(re.sub(r"\{\w+\}|^\w+:", " ", text, flags=re.MULTILINE))}
