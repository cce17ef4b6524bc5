"""Text -> speech: base, clone, fine-tune and both are one function with different arguments."""

import contextlib
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit import audio, text
from tts_kit.config import CONFIG_FILE, read_config
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.generation import generate
from tts_kit.generation.generate import Generation
from tts_kit.generation.sampling import Sampling
from tts_kit.model import load, lora
from tts_kit.speech import resolve
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
    adapter: str = lora.DEFAULT_ADAPTER
    """Which of the model's adapters speaks; empty for the base alone, though others may share its network."""

    @property
    def is_finetuned(self) -> bool:
        return bool(self.adapter) and self.model is not self.base.model

    def set_strength(self, strength: float) -> None:
        """How much of the adapter is heard from now on: 0 is the base, 1 the adapter as trained."""
        if not self.is_finetuned:
            raise KitError(f"strength {strength:g} of what? This is {self.base.name} without an adapter. Load one.")
        lora.set_strength(self.model, strength, self.adapter)

    @contextlib.contextmanager
    def speaking(self, finetuned: bool = True) -> Iterator[None]:
        """Lets the model speak as this voice, or not tuned as the base, as long as the block lasts."""
        with self.base.taken(), lora.adapter_enabled(self.model, finetuned and self.is_finetuned, self.adapter):
            yield


@dataclass(frozen=True)
class Reference:
    """A clip of the voice to be cloned and its exact transcript."""
    path: Path
    text: str


References = Reference | tuple[Reference, ...] | None
"""What is to be cloned: one clip, several, or nothing."""


@dataclass(frozen=True)
class Request:
    """One sentence to be said, by one arm, with one seed."""
    text: str
    seed: int = 0
    reference: References = None
    finetuned: bool = True


@dataclass
class Speech:
    samples: np.ndarray
    """(samples,) float32"""
    rate: int
    ended_with_eos: bool
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


def load_voice(device_config: DeviceConfig, place: str | Path | None = None, base: str = "", revision: str = "") -> Voice:
    """The voice of an adapter, of merged weights or of a base, each a folder or a hub id; without a place that of `base`,
    which with an adapter overrides the base that the adapter names."""
    adapter = resolve.find_adapter(place) if place else None
    if adapter is None:
        loaded = load.load_base(resolve.require_no_base(place, base), device_config, revision)
        return Voice(loaded, loaded.model, **resolve.speaker_and_sampling(loaded.name, revision, loaded.sampling))
    belongs = lora.read_metadata(adapter)
    config = read_config(adapter / CONFIG_FILE)
    if base in ("", belongs["base"]):
        base, revision = belongs["base"], revision or belongs["revision"]
    try:
        loaded = load.load_base(base, device_config, revision)
    except KitError as problem:
        raise KitError(f"{place} needs the base it was trained for, {base}. {problem} If it lies elsewhere now, give "
                      "--base PLACE.") from problem
    return Voice(loaded, lora.load(loaded, adapter), belongs["speaker"], loaded.sampling.asked(config))


def speak(words: str, voice: Voice, reference: References = None, finetuned: bool = True, seed: int = 0,
          retries: int = 0, file: str | Path | None = None) -> Speech:
    """Say a text of any length in sentences; without a reference the first becomes that of the rest, if it can."""
    if file is not None:
        audio.check_name(file)
    lines, context = split_requests(words, reference, finetuned, seed), turns(voice, reference)
    said = _say(voice, lines[:1], [context], retries)
    context = context_after_first(voice, lines, context, said[0])
    rest = lines[1:]
    for start in tqdm(range(0, len(rest), BATCH), desc="speaking", unit="batch", disable=len(rest) < 2):
        batch = rest[start:start + BATCH]
        said += _say(voice, batch, [context] * len(batch), retries)
    speech = _join(voice, said)
    if file is not None:
        speech.save(file)
    return speech


def generate_speech(lines: Sequence[Request], voice: Voice, retries: int = 0, name: str = "") -> Iterator[tuple[int, Speech]]:
    """Say many independent sentences in batches, each as one piece; gives (place in lines, speech) as they are done."""
    lines = [replace(line, text=text.normalize(line.text)) for line in lines]
    contexts = {given: turns(voice, given) for given in {line.reference for line in lines}}
    with tqdm(total=len(lines), desc=name or "speaking", unit="clip", disable=len(lines) < 4) as bar:
        for finetuned in (False, True):
            # sentences of like length share a batch, which lasts as long as its longest
            order = sorted((index for index, line in enumerate(lines) if line.finetuned is finetuned),
                           key=lambda index: len(lines[index].text))
            for start in range(0, len(order), BATCH):
                batch = order[start:start + BATCH]
                said = _say(voice, [lines[index] for index in batch],
                            [contexts[lines[index].reference] for index in batch], retries)
                yield from ((index, _join(voice, [one])) for index, one in zip(batch, said))
                bar.update(len(batch))


def split_requests(words: str, reference: References = None, finetuned: bool = True, seed: int = 0) -> list[Request]:
    """A text of any length in sentences, each with a seed of its own."""
    chunks = text.split_sentences(text.normalize(words))
    return [Request(chunk, seed + number, reference, finetuned) for number, chunk in enumerate(chunks)]


def turns(voice: Voice, given: References) -> list[Turn]:
    """The turns that come before what is said."""
    return [_heard(voice, each) for each in ([given] if isinstance(given, Reference) else given or ())]


def context_after_first(voice: Voice, lines: Sequence[Request], context: list[Turn], first: "Generation | _Said") -> list[Turn]:
    """The turns before the second sentence and all after it, when the `first` was said with `context` before it."""
    return context or _own_context(voice, lines, first)


def prompt(voice: Voice, line: Request, context: list[Turn]) -> tuple[Example, int]:
    """What the model is given for a line, and the most frames it may answer with."""
    written = voice.base.prompt_builder.build(line.text[:40], [*context, Turn(line.text, voice.speaker)])
    return written, _limit(voice, line, len(written))


def is_complete(take: Generation) -> bool:
    """Whether something was said, and ended by itself."""
    return take.ended_with_eos and len(take.codes) >= FEWEST_FRAMES


@dataclass
class _Said:
    codes: object
    ended_with_eos: bool
    takes: int
    wall_seconds: float


def _say(voice: Voice, lines: Sequence[Request], contexts: Sequence[list[Turn]], retries: int) -> list[_Said]:
    """Generate one batch; a line that failed is tried again with another seed as often as allowed."""
    if not lines:
        return []
    said = _generate(voice, lines, contexts)
    again = [number for number, one in enumerate(said) if not one.ended_with_eos]
    if again and retries > 0:
        other = [replace(lines[number], seed=lines[number].seed + RETRY_STEP) for number in again]
        for number, one in zip(again, _say(voice, other, [contexts[number] for number in again], retries - 1)):
            before = said[number]
            said[number] = replace(one, takes=one.takes + before.takes,
                                   wall_seconds=one.wall_seconds + before.wall_seconds)
    return said


def _generate(voice: Voice, lines: Sequence[Request], contexts: Sequence[list[Turn]]) -> list[_Said]:
    base, start = voice.base, time.monotonic()
    prompts, limits = zip(*(prompt(voice, line, context) for line, context in zip(lines, contexts)))
    with voice.speaking(lines[0].finetuned):
        takes = generate.generate(base.model, base.spec, prompts, voice.sampling, [line.seed for line in lines], limits,
                               voice.int8)
    share = (time.monotonic() - start) / len(lines)
    return [_Said(take.codes, is_complete(take), 1, share) for take in takes]


def _limit(voice: Voice, line: Request, used: int) -> int:
    """Most frames for a line: a slow reading of its text, within what the model holds."""
    spec = voice.base.spec
    room = spec.max_positions - used
    if room < spec.frame_rate:
        raise KitError(f"{line.text[:60]!r} and its reference take {used} of the model's {spec.max_positions} positions; less "
                      "than a second is left for speech. Use a shorter reference.")
    return min(round(text.max_speech_seconds(line.text) * spec.frame_rate), room)


def _heard(voice: Voice, reference: Reference) -> Turn:
    if not Path(reference.path).is_file():
        raise KitError(f"the reference {reference.path} is no file. Give a clip of the voice, 3 to 10 seconds long, and its "
                      "exact words.")
    wave = audio.read(reference.path, voice.base.spec.sample_rate)
    return Turn(text.normalize(reference.text), voice.speaker, voice.base.codec.encode([wave])[0], in_loss=False)


def _own_context(voice: Voice, lines: Sequence[Request], said: "Generation | _Said") -> list[Turn]:
    """The first sentence as reference of the others, unless it failed or leaves them no room."""
    context = Turn(lines[0].text, voice.speaker, said.codes, in_loss=False)
    prompt_builder, spec = voice.base.prompt_builder, voice.base.spec
    longest = max((len(prompt_builder.text_ids(line.text, voice.speaker)) + text.max_speech_seconds(line.text) * spec.frame_rate
                   for line in lines[1:]), default=0)
    used = len(prompt_builder.text_ids(context.text, context.speaker)) + len(said.codes) + 1
    return [context] if said.ended_with_eos and used + longest <= spec.max_positions else []


def _join(voice: Voice, said: Sequence[_Said]) -> Speech:
    """Sentences one after the other with a short pause."""
    rate = voice.base.spec.sample_rate
    pause = np.zeros(round(PAUSE_SECONDS * rate), dtype=np.float32)
    pieces = [pause]
    for one in said:
        pieces += [voice.base.codec.decode([one.codes])[0], pause]
    return Speech(np.concatenate(pieces[1:-1]), rate, all(one.ended_with_eos for one in said), sum(one.takes for one in said),
                  sum(one.wall_seconds for one in said))
