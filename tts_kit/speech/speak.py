"""Text -> speech: base, clone, fine-tune and both are one function with different arguments."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, text
from tts_kit import recipe as recipes
from tts_kit.model import generate, load, lora
from tts_kit.model.generate import Take
from tts_kit.model.sampling import Sampling
from tts_kit.problem import Problem
from tts_kit.runtime import Runtime
from tts_kit.speech import places
from tts_kit.tokens.prompt import Example, Turn

PAUSE_SECONDS = 0.15
BATCH = 8
FEWEST_FRAMES = 2
"""A take that ends before has said nothing, and counts as failed."""
RETRY_STEP = 7919
"""Added to the seed of a failed take, for the next try."""


@dataclass
class Voice:
    """A loaded base, with an adapter or without, ready to speak."""
    base: load.Base
    model: object
    """The base's network, wrapped by PEFT if there is an adapter."""
    speaker: str = "0"
    sampling: Sampling = field(default_factory=Sampling)
    int8: bool = False
    """Whether weights are rounded to 8 bits for speaking: fewer bytes to read, and not quite the same."""
    adapter: str = lora.FIRST
    """Which of the model's adapters speaks; empty for the base alone, though others may share its network."""

    @property
    def is_tuned(self) -> bool:
        return bool(self.adapter) and self.model is not self.base.model

    def set_strength(self, strength: float) -> None:
        """How much of the adapter is heard from now on: 0 is the base, 1 the adapter as trained."""
        if not self.is_tuned:
            raise Problem(f"strength {strength:g} of what? This is {self.base.name} without an adapter. Load one.")
        lora.set_strength(self.model, strength, self.adapter)

    @contextlib.contextmanager
    def speaking(self, tuned: bool = True) -> Iterator[None]:
        """Lets the model speak as this voice, or not tuned as the base, as long as the block lasts."""
        with self.base.taken(), lora.speaking(self.model, tuned and self.is_tuned, self.adapter):
            yield


@dataclass(frozen=True)
class Reference:
    """A clip of the voice to be cloned and its exact transcript."""
    path: Path
    text: str


Given = Reference | tuple[Reference, ...] | None
"""What is to be cloned: one clip, several, or nothing."""


@dataclass(frozen=True)
class Line:
    """One sentence to be said, by one arm, with one seed."""
    text: str
    seed: int = 0
    reference: Given = None
    tuned: bool = True


@dataclass
class Speech:
    samples: np.ndarray
    """(samples,) float32"""
    rate: int
    stopped: bool
    """Whether every sentence was said and ended by itself."""
    takes: int
    """Generations spent, retries included."""
    wall_seconds: float

    @property
    def seconds(self) -> float:
        return len(self.samples) / self.rate

    def save(self, path: str | Path) -> Path:
        audio.write(Path(path), self.samples, self.rate)
        return Path(path)


def load_voice(runtime: Runtime, place: str | Path | None = None, base: str = "", revision: str = "") -> Voice:
    """The voice of an adapter, of merged weights or of a base, each a folder or a hub id; without a place that of `base`,
    which with an adapter overrides the base that the adapter names."""
    adapter = places.adapter(place) if place else None
    if adapter is None:
        loaded = load.base(places.whole(place, base), runtime, revision)
        return Voice(loaded, loaded.model, **places.manner(loaded.name, revision, loaded.sampling))
    belongs = lora.read_voice(adapter)
    recipe = recipes.read(adapter / recipes.FILE)
    if base in ("", belongs["base"]):
        base, revision = belongs["base"], revision or belongs["revision"]
    try:
        loaded = load.base(base, runtime, revision)
    except Problem as problem:
        raise Problem(f"{place} needs the base it was trained for, {base}. {problem} If it lies elsewhere now, give "
                      "--base PLACE.") from problem
    return Voice(loaded, lora.load(loaded, adapter), belongs["speaker"], loaded.sampling.asked(recipe))


def speak(words: str, voice: Voice, reference: Given = None, tuned: bool = True, seed: int = 0,
          retries: int = 0, file: str | Path | None = None) -> Speech:
    """Say a text of any length in sentences; without a reference the first becomes that of the rest, if it can."""
    if file is not None:
        audio.check_name(file)
    lines, context = cut(words, reference, tuned, seed), turns(voice, reference)
    said = _say(voice, lines[:1], [context], retries)
    context = turns_of_rest(voice, lines, context, said[0])
    rest = lines[1:]
    for start in tqdm(range(0, len(rest), BATCH), desc="speaking", unit="batch", disable=len(rest) < 2):
        batch = rest[start:start + BATCH]
        said += _say(voice, batch, [context] * len(batch), retries)
    speech = _join(voice, said)
    if file is not None:
        speech.save(file)
    return speech


def say(lines: Sequence[Line], voice: Voice, retries: int = 0, name: str = "") -> Iterator[tuple[int, Speech]]:
    """Say many independent sentences in batches, each as one piece; gives (place in lines, speech) as they are done."""
    lines = [replace(line, text=text.normalise(line.text)) for line in lines]
    contexts = {given: turns(voice, given) for given in {line.reference for line in lines}}
    with tqdm(total=len(lines), desc=name or "speaking", unit="clip", disable=len(lines) < 4) as bar:
        for tuned in (False, True):
            # sentences of like length share a batch, which lasts as long as its longest
            order = sorted((index for index, line in enumerate(lines) if line.tuned is tuned),
                           key=lambda index: len(lines[index].text))
            for start in range(0, len(order), BATCH):
                batch = order[start:start + BATCH]
                said = _say(voice, [lines[index] for index in batch],
                            [contexts[lines[index].reference] for index in batch], retries)
                yield from ((index, _join(voice, [one])) for index, one in zip(batch, said))
                bar.update(len(batch))


def cut(words: str, reference: Given = None, tuned: bool = True, seed: int = 0) -> list[Line]:
    """A text of any length in sentences, each with a seed of its own."""
    chunks = text.sentences(text.normalise(words))
    return [Line(chunk, seed + number, reference, tuned) for number, chunk in enumerate(chunks)]


def turns(voice: Voice, given: Given) -> list[Turn]:
    """The turns that come before what is said."""
    return [_heard(voice, each) for each in ([given] if isinstance(given, Reference) else given or ())]


def turns_of_rest(voice: Voice, lines: Sequence[Line], context: list[Turn], first: "Take | _Said") -> list[Turn]:
    """The turns before the second sentence and all after it, when the `first` was said with `context` before it."""
    return context or _own_context(voice, lines, first)


def prompt(voice: Voice, line: Line, context: list[Turn]) -> tuple[Example, int]:
    """What the model is given for a line, and the most frames it may answer with."""
    written = voice.base.writer.write(line.text[:40], [*context, Turn(line.text, voice.speaker)])
    return written, _limit(voice, line, len(written))


def well_ended(take: Take) -> bool:
    """Whether something was said, and ended by itself."""
    return take.stopped and len(take.codes) >= FEWEST_FRAMES


@dataclass
class _Said:
    codes: object
    stopped: bool
    takes: int
    wall_seconds: float


def _say(voice: Voice, lines: Sequence[Line], contexts: Sequence[list[Turn]], retries: int) -> list[_Said]:
    """Generate one batch; a line that failed is tried again with another seed as often as allowed."""
    if not lines:
        return []
    said = _generate(voice, lines, contexts)
    again = [number for number, one in enumerate(said) if not one.stopped]
    if again and retries > 0:
        other = [replace(lines[number], seed=lines[number].seed + RETRY_STEP) for number in again]
        for number, one in zip(again, _say(voice, other, [contexts[number] for number in again], retries - 1)):
            before = said[number]
            said[number] = replace(one, takes=one.takes + before.takes,
                                   wall_seconds=one.wall_seconds + before.wall_seconds)
    return said


def _generate(voice: Voice, lines: Sequence[Line], contexts: Sequence[list[Turn]]) -> list[_Said]:
    base, start = voice.base, time.monotonic()
    prompts, limits = zip(*(prompt(voice, line, context) for line, context in zip(lines, contexts)))
    with voice.speaking(lines[0].tuned):
        takes = generate.takes(base.model, base.physics, prompts, voice.sampling, [line.seed for line in lines], limits,
                               voice.int8)
    share = (time.monotonic() - start) / len(lines)
    return [_Said(take.codes, well_ended(take), 1, share) for take in takes]


def _limit(voice: Voice, line: Line, used: int) -> int:
    """Most frames for a line: a slow reading of its text, within what the model holds."""
    physics = voice.base.physics
    room = physics.longest - used
    if room < physics.frame_rate:
        raise Problem(f"{line.text[:60]!r} and its reference take {used} of the model's {physics.longest} positions; less "
                      "than a second is left for speech. Use a shorter reference.")
    return min(round(text.budget_seconds(line.text) * physics.frame_rate), room)


def _heard(voice: Voice, reference: Reference) -> Turn:
    if not Path(reference.path).is_file():
        raise Problem(f"the reference {reference.path} is no file. Give a clip of the voice, 3 to 10 seconds long, and its "
                      "exact words.")
    wave = audio.read(reference.path, voice.base.physics.sample_rate)
    return Turn(text.normalise(reference.text), voice.speaker, voice.base.codec.encode([wave])[0], scored=False)


def _own_context(voice: Voice, lines: Sequence[Line], said: "Take | _Said") -> list[Turn]:
    """The first sentence as reference of the others, unless it failed or leaves them no room."""
    context = Turn(lines[0].text, voice.speaker, said.codes, scored=False)
    writer, physics = voice.base.writer, voice.base.physics
    longest = max((len(writer.text_ids(line.text, voice.speaker)) + text.budget_seconds(line.text) * physics.frame_rate
                   for line in lines[1:]), default=0)
    used = len(writer.text_ids(context.text, context.speaker)) + len(said.codes) + 1
    return [context] if said.stopped and used + longest <= physics.longest else []


def _join(voice: Voice, said: Sequence[_Said]) -> Speech:
    """Sentences one after the other with a short pause."""
    rate = voice.base.physics.sample_rate
    pause = np.zeros(round(PAUSE_SECONDS * rate), dtype=np.float32)
    pieces = [pause]
    for one in said:
        pieces += [voice.base.codec.decode([one.codes])[0], pause]
    return Speech(np.concatenate(pieces[1:-1]), rate, all(one.stopped for one in said), sum(one.takes for one in said),
                  sum(one.wall_seconds for one in said))
