"""Takes of which everything is known: sentences laid out with pauses, and what spoils recordings added to them."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit import audio

RATE = 16_000
PAUSES, LONG_PAUSE = (0.25, 1.5), 4.0
ROOM = 10 ** (-65 / 20)
"""No room is quieter than that."""
CLIPPED = 3
"""Sentences of a take that are too loud, where some are."""
Wave = np.ndarray


@dataclass(frozen=True)
class Said:
    begin: float
    end: float
    text: str
    is_main: bool
    is_spoilt: bool = False


@dataclass(frozen=True)
class Take:
    """A recording, (samples,) at 16 kHz, and the truth about it."""
    samples: Wave
    voice: Wave
    """Only the main speaker."""
    speech: Wave
    """All who speak, and nothing else."""
    said: tuple[Said, ...]

    def is_whole(self, begin: float, end: float) -> bool:
        """Whether every sentence lies inside or outside of these moments, so that what is said between them is known."""
        return not any(each.begin < moment < each.end for each in self.said for moment in (begin, end))

    def text(self, begin: float, end: float) -> str:
        """What is said between two moments, by whoever."""
        return " ".join(each.text for each in self.said if begin < (each.begin + each.end) / 2 < end)


def lay_out(own: Sequence[tuple[str, Wave]], others: Sequence[tuple[str, Wave]], chance: np.random.Generator) -> Take:
    """Sentences of one speaker with pauses between them; those of others come in between."""
    order: list[tuple[str, Wave, bool]] = [(*each, True) for each in own]
    for each in others:
        order.insert(int(chance.integers(1, len(order))), (*each, False))
    moment, long_after, said, parts = 1.0, len(order) // 2, [], []
    for place, (text, wave, is_main) in enumerate(order):
        spoken = audio.trim(audio.normalize_loudness(wave, RATE), RATE, tail=0.0, lead=0.0)
        said.append(Said(moment, moment + len(spoken) / RATE, text, is_main))
        parts.append((round(moment * RATE), spoken, is_main))
        moment = said[-1].end + (LONG_PAUSE if place == long_after else float(chance.uniform(*PAUSES)))
    speech, voice = np.zeros((2, round((moment + 1) * RATE)), np.float32)
    for begin, spoken, is_main in parts:
        speech[begin:begin + len(spoken)] += spoken
        if is_main:
            voice[begin:begin + len(spoken)] += spoken
    room = ROOM * chance.standard_normal(len(speech)).astype(np.float32)
    return Take(speech + room, voice, speech, tuple(said))


def noisy(ratio: float) -> Callable[[Take, np.random.Generator], Take]:
    """Pink noise so many decibels under the speech."""
    def spoil(take: Take, chance: np.random.Generator) -> Take:
        spectrum = np.fft.rfft(chance.standard_normal(len(take.samples)))
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(take.samples))
        return _with(take, noise, ratio)
    return spoil


def humming(take: Take, chance: np.random.Generator) -> Take:
    """The mains and its overtones, 25 dB under the speech."""
    moments = np.arange(len(take.samples)) / RATE
    return _with(take, sum(np.sin(2 * np.pi * 50 * times * moments) / times for times in (1, 2, 3, 5)), 25)


def clicking(take: Take, chance: np.random.Generator) -> Take:
    """A click of a few milliseconds every two seconds."""
    samples = take.samples.copy()
    for begin in chance.integers(0, len(samples) - 100, len(samples) // (2 * RATE)):
        samples[begin:begin + 48] += 0.4 * np.exp(-np.arange(48) / 8) * chance.choice([-1, 1])
    return dataclasses.replace(take, samples=samples.astype(np.float32))


def with_music(take: Take, chance: np.random.Generator) -> Take:
    """Chords that change every two seconds, 20 dB under the speech."""
    moments = np.arange(len(take.samples)) / RATE
    roots = chance.choice([220.0, 246.9, 261.6, 293.7, 329.6], int(moments[-1] // 2) + 1)[(moments // 2).astype(int)]
    return _with(take, sum(np.sin(2 * np.pi * np.cumsum(roots * step) / RATE) for step in (1, 1.25, 1.5)), 20)


def clipped(take: Take, chance: np.random.Generator) -> Take:
    """A few sentences twelve decibels too loud for the converter."""
    samples, chosen = take.samples.copy(), set(chance.choice(len(take.said), CLIPPED, replace=False).tolist())
    for number in chosen:
        span = slice(round(take.said[number].begin * RATE), round(take.said[number].end * RATE))
        samples[span] *= 4 / np.abs(samples[span]).max()
    said = tuple(dataclasses.replace(each, is_spoilt=number in chosen) for number, each in enumerate(take.said))
    return dataclasses.replace(take, samples=np.clip(samples, -1, 1), said=said)


def untouched(take: Take, chance: np.random.Generator) -> Take:
    return take


WITH_STRANGERS = "second speaker"
SPOILT = {"quiet room": untouched, "noise at 30 dB": noisy(30), "noise at 20 dB": noisy(20), "noise at 10 dB": noisy(10),
          "hum": humming, "clicks": clicking, "music": with_music, WITH_STRANGERS: untouched, "clipped": clipped}
"""Conditions; only in one of them do others speak."""


def _with(take: Take, noise: Wave, ratio: float) -> Take:
    speech = np.sqrt(np.mean(np.concatenate([take.voice[round(each.begin * RATE):round(each.end * RATE)]
                                             for each in take.said if each.is_main]) ** 2))
    scaled = noise / np.sqrt(np.mean(noise ** 2)) * speech * 10 ** (-ratio / 20)
    return dataclasses.replace(take, samples=(take.samples + scaled).astype(np.float32))
