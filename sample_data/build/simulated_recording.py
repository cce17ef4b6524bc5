"""Simulate long recordings with known content: utterances with pauses between them, and typical defects of recordings."""

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tts_kit import audio

RATE = 16_000
PAUSES, LONG_PAUSE = (0.25, 1.5), 4.0
ROOM_NOISE = 10 ** (-65 / 20)  # RMS of the noise that each recording has
CLIPPED_UTTERANCES = 3  # utterances that are too loud in a clipped recording
Wave = np.ndarray


@dataclass(frozen=True)
class Utterance:
    start: float
    end: float
    text: str
    is_main: bool  # whether the main speaker speaks
    is_damaged: bool = False


@dataclass(frozen=True)
class Recording:
    """A recording, (samples,) at 16 kHz, and its known content."""
    samples: Wave
    main_speech: Wave  # only the main speaker
    speech: Wave  # all speakers, without noise
    utterances: tuple[Utterance, ...]

    def is_between_utterances(self, start: float, end: float) -> bool:
        """Return whether neither time is inside an utterance, so that the text between them is known."""
        return not any(utterance.start < time < utterance.end for utterance in self.utterances for time in (start, end))

    def text(self, start: float, end: float) -> str:
        """Return the text of all speakers between two times."""
        return " ".join(utterance.text for utterance in self.utterances
                        if start < (utterance.start + utterance.end) / 2 < end)


def simulate(main: Sequence[tuple[str, Wave]], other_speakers: Sequence[tuple[str, Wave]],
             rng: np.random.Generator) -> Recording:
    """Concatenate (text, wave) of the main speaker with pauses; those of `other_speakers` are inserted at random."""
    order: list[tuple[str, Wave, bool]] = [(*utterance, True) for utterance in main]
    for utterance in other_speakers:
        order.insert(int(rng.integers(1, len(order))), (*utterance, False))
    time, long_pause_after, utterances, parts = 1.0, len(order) // 2, [], []
    for index, (text, wave, is_main) in enumerate(order):
        spoken = audio.trim(audio.normalize_loudness(wave, RATE), RATE, tail=0.0, lead=0.0)
        utterances.append(Utterance(time, time + len(spoken) / RATE, text, is_main))
        parts.append((round(time * RATE), spoken, is_main))
        time = utterances[-1].end + (LONG_PAUSE if index == long_pause_after else float(rng.uniform(*PAUSES)))
    speech, main_speech = np.zeros((2, round((time + 1) * RATE)), np.float32)
    for start, spoken, is_main in parts:
        speech[start:start + len(spoken)] += spoken
        if is_main:
            main_speech[start:start + len(spoken)] += spoken
    noise = ROOM_NOISE * rng.standard_normal(len(speech)).astype(np.float32)
    return Recording(speech + noise, main_speech, speech, tuple(utterances))


def pink_noise(snr_db: float) -> Callable[[Recording, np.random.Generator], Recording]:
    """Return a function that adds pink noise at this SNR."""
    def add_noise(recording: Recording, rng: np.random.Generator) -> Recording:
        spectrum = np.fft.rfft(rng.standard_normal(len(recording.samples)))
        noise = np.fft.irfft(spectrum / np.sqrt(np.arange(1, len(spectrum) + 1)), len(recording.samples))
        return _add_at_snr(recording, noise, snr_db)
    return add_noise


def add_hum(recording: Recording, rng: np.random.Generator) -> Recording:
    """Add mains hum with overtones, at an SNR of 25 dB."""
    time = np.arange(len(recording.samples)) / RATE
    return _add_at_snr(recording, sum(np.sin(2 * np.pi * 50 * factor * time) / factor for factor in (1, 2, 3, 5)), 25)


def add_clicks(recording: Recording, rng: np.random.Generator) -> Recording:
    """Add a click of a few milliseconds every two seconds on average."""
    samples = recording.samples.copy()
    for start in rng.integers(0, len(samples) - 100, len(samples) // (2 * RATE)):
        samples[start:start + 48] += 0.4 * np.exp(-np.arange(48) / 8) * rng.choice([-1, 1])
    return dataclasses.replace(recording, samples=samples.astype(np.float32))


def add_music(recording: Recording, rng: np.random.Generator) -> Recording:
    """Add chords that change every two seconds, at an SNR of 20 dB."""
    time = np.arange(len(recording.samples)) / RATE
    roots = rng.choice([220.0, 246.9, 261.6, 293.7, 329.6], int(time[-1] // 2) + 1)[(time // 2).astype(int)]
    return _add_at_snr(recording, sum(np.sin(2 * np.pi * np.cumsum(roots * factor) / RATE) for factor in (1, 1.25, 1.5)), 20)


def clip_utterances(recording: Recording, rng: np.random.Generator) -> Recording:
    """Amplify a few utterances to 12 dB above full scale and clip them."""
    samples = recording.samples.copy()
    indices = set(rng.choice(len(recording.utterances), CLIPPED_UTTERANCES, replace=False).tolist())
    for index in indices:
        span = slice(round(recording.utterances[index].start * RATE), round(recording.utterances[index].end * RATE))
        samples[span] *= 4 / np.abs(samples[span]).max()
    utterances = tuple(dataclasses.replace(utterance, is_damaged=index in indices)
                       for index, utterance in enumerate(recording.utterances))
    return dataclasses.replace(recording, samples=np.clip(samples, -1, 1), utterances=utterances)


def unchanged(recording: Recording, rng: np.random.Generator) -> Recording:
    return recording


SECOND_SPEAKER = "second speaker"
CONDITIONS = {"quiet room": unchanged, "noise at 30 dB": pink_noise(30), "noise at 20 dB": pink_noise(20),
              "noise at 10 dB": pink_noise(10), "hum": add_hum, "clicks": add_clicks, "music": add_music,
              SECOND_SPEAKER: unchanged, "clipped": clip_utterances}
"""Name of a condition -> the function that adds its defect; only SECOND_SPEAKER has other speakers."""


def _add_at_snr(recording: Recording, noise: Wave, snr_db: float) -> Recording:
    """Add noise at an SNR in dB, relative to the utterances of the main speaker."""
    speech = np.sqrt(np.mean(np.concatenate([
        recording.main_speech[round(utterance.start * RATE):round(utterance.end * RATE)]
        for utterance in recording.utterances if utterance.is_main]) ** 2))
    scaled = noise / np.sqrt(np.mean(noise ** 2)) * speech * 10 ** (-snr_db / 20)
    return dataclasses.replace(recording, samples=(recording.samples + scaled).astype(np.float32))
