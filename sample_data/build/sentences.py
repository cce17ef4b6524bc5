"""What the synthetic speech says: sentences without end, drawn from a grammar, and the fifty it must never say."""

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
FEWEST_WORDS, MOST_WORDS = 3, 12
SLOT = re.compile(r"\{(\w+)\}|\(([^()]+)\)")
WORD = re.compile(r"[A-Za-z]+(?:'[a-z]+)?")
# by sound: an hour, a useful tool
BEFORE_VOWEL = re.compile(r"\ba (?=(?!use|uni|one\b)[aeiouAEIO]|hour|honest)")


@dataclass(frozen=True)
class Grammar:
    lists: dict[str, list[str]]
    """Name of a slot -> what can stand in it, slots included."""
    templates: list[str]
    """Sentences of the domain, mostly slots."""
    free: list[str]
    """Sentences about anything, with a choice of words here and there."""


@dataclass(frozen=True)
class EvaluationSet:
    sentences: tuple[str, ...]
    """New combinations of words that the vocabulary has; never synthesised for training."""
    bundled: tuple[str, ...]
    """What the bundled voice says; kept out of training as well."""
    voices: tuple[str, ...]
    """Kokoro voices that no training speaker is or is mixed from."""
    seeds: tuple[int, ...]
    """Takes of each sentence."""


@functools.cache
def grammar() -> Grammar:
    """The file beside this one, read; {word} are the words of sentences that no list has."""
    text = "\n".join(line for line in GRAMMAR.read_text(encoding="utf-8").split("\n") if not line.startswith("#"))
    parts = dict(zip(("lists", "templates", "free"), re.split(r"^\[\w+\]$", text, flags=re.MULTILINE)[1:]))
    named = (entry.split(":", 1) for entry in re.split(r"\n\s*\n", parts["lists"]) if entry.strip())
    slots = {name.strip(): [" ".join(option.split()) for option in options.split("|")] for name, options in named}
    listed = _words(*(entry for entries in slots.values() for entry in entries))
    rare = _words(parts["templates"], parts["free"]) - listed
    slots["word"] = sorted(word for word in rare if word.isalpha() and len(word) > 2)
    return Grammar(slots, parts["templates"].strip().split("\n"), parts["free"].strip().split("\n"))


@functools.cache
def evaluation_set() -> EvaluationSet:
    """Sentences, voices and seeds by which every model is judged, fixed before the first was trained."""
    return EvaluationSet(**{name: tuple(values) for name, values in json.loads(EVALUATION_SET.read_text(encoding="utf-8")).items()})


def vocabulary() -> set[str]:
    """Every word that `generate` can say, in small letters."""
    known = grammar()
    entries = (entry for name, entries in known.lists.items() if name != "word" for entry in entries)
    return {word.lower() for word in _words(*entries, *known.templates, *known.free)} | {"an"}


def words(sentence: str) -> list[str]:
    """The words of a sentence in small letters, by which two sentences are the same."""
    return [word.lower() for word in WORD.findall(sentence)]


def generate(seed: int) -> Iterator[str]:
    """Sentences without end, the same for the same seed."""
    known, cards = grammar(), Cards(seed)
    kept_out = {tuple(words(each)) for each in (*evaluation_set().sentences, *evaluation_set().bundled)}
    while True:
        kind = "free" if cards.chance.random() < FREE_SHARE else "templates"
        sentence = _finish(_fill(cards.draw(kind, getattr(known, kind)), cards, known.lists))
        said = tuple(words(sentence))
        if FEWEST_WORDS <= len(said) <= MOST_WORDS and said not in kept_out:
            yield sentence


def practice(seed: int) -> Iterator[str]:
    """The same, every second time words that were thrown together: whoever knows the grammar by heart has to read those."""
    cards, known = Cards(seed), sorted(vocabulary())
    for sentence in generate(seed):
        yield sentence
        count = cards.chance.randint(FEWEST_WORDS, MOST_WORDS)
        thrown = " ".join(cards.draw("words", known) for _ in range(count))
        yield thrown[0].upper() + thrown[1:] + "."


class Cards:
    """Each list is dealt out, shuffled, before any of its entries comes again: rare words are not left to luck."""

    def __init__(self, seed: int):
        self.chance = random.Random(seed)
        self.stacks: dict[str, list[str]] = {}

    def draw(self, name: str, entries: list[str]) -> str:
        """The next entry of the stack called `name`."""
        if not self.stacks.get(name):
            self.stacks[name] = self.chance.sample(entries, len(entries))
        return self.stacks[name].pop()


def _fill(pattern: str, cards: Cards, lists: dict[str, list[str]]) -> str:
    """`pattern` with its slots filled, no two slots of it alike."""
    taken = set()

    def fill(slot: re.Match) -> str:
        options = lists[slot[1]] if slot[1] else slot[2].split("|")
        while (filled := _fill(cards.draw(slot[0], options), cards, lists)) in taken:
            continue
        taken.add(filled)
        return filled

    return SLOT.sub(fill, pattern)


def _finish(sentence: str) -> str:
    sentence = BEFORE_VOWEL.sub("an ", sentence)
    return sentence[0].upper() + sentence[1:]


def _words(*texts: str) -> set[str]:
    """The words of pieces of the grammar, names of lists left out."""
    return {word for text in texts for word in WORD.findall(re.sub(r"\{\w+\}|^\w+:", " ", text, flags=re.MULTILINE))}
