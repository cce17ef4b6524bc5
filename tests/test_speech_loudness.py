"""Loudness of speech: sentences at -18 LUFS with limited true peaks, whole or streamed; references that end in a word."""

import dataclasses

import numpy as np
import pytest
from test_tokens_cache import tone

from tts_kit import audio
from tts_kit.errors import KitError
from tts_kit.run import SAMPLE_DATA
from tts_kit.speech import speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, Voice, encode_references

RATE = 24_000
CLIPS = sorted(SAMPLE_DATA.glob("voice/*.flac"))


@pytest.fixture(scope="module")
def clip() -> np.ndarray:
    return audio.read(CLIPS[0], RATE)


def peaky(clip: np.ndarray) -> np.ndarray:
    """The clip with a click every half second, 20 dB above it."""
    samples = clip.copy()
    samples[RATE // 4::RATE // 2] = 0.99
    return samples


def leveled(leveler: audio.Leveler, samples: np.ndarray, size: int = 3840) -> np.ndarray:
    return np.concatenate([leveler.level(samples[start:start + size], start == 0) for start in range(0, len(samples), size)])


@pytest.mark.parametrize("gain", [0.1, 0.3, 1.0, 3.0])
def test_a_sentence_has_the_target_loudness(clip, gain):
    """Mistake: one peak keeps a sentence quiet, a short or loud one is left as it is, or peaks pass the limit."""
    for samples in (clip, peaky(clip), clip[RATE // 2:RATE // 2 + RATE // 4]):  # the last shorter than a block of 0.4 s
        result = audio.level_speech((gain * samples).astype(np.float32), RATE)
        assert audio.loudness(result, RATE) == pytest.approx(-18, abs=1.0)
        assert audio.true_peak(result) <= audio.MAX_TRUE_PEAK + 1e-3
        assert result.dtype == np.float32 and len(result) == len(samples)


def test_silence_stays_silence(clip):
    """Mistake: a sentence that failed becomes loud noise, or NaN; an empty one is an error."""
    for samples in (np.zeros(RATE, np.float32), np.zeros(0, np.float32), np.zeros(10, np.float32)):
        assert np.array_equal(audio.level_speech(samples, RATE), samples)
        assert np.array_equal(audio.Leveler(RATE).level(samples, True), samples)
    noise = tone(1.0) * np.float32(0.01)
    assert audio.loudness(audio.level_speech(noise, RATE), RATE) < audio.loudness(noise, RATE) + audio.MAX_LEVELING + 0.1


def test_the_limiter_changes_peaks_alone(clip):
    """Mistake: all of a clip is turned down for one peak, or clipped, which distorts."""
    samples = clip * np.float32(0.5 / np.abs(clip).max())
    assert audio.limit(samples, RATE) is samples
    samples = samples.copy()
    samples[RATE] = 2.0
    limited = audio.limit(samples, RATE)
    far = np.abs(np.arange(len(samples)) - RATE) > 0.02 * RATE
    assert np.abs(limited - samples)[far].max() < 0.01 and audio.true_peak(limited) <= audio.MAX_TRUE_PEAK + 1e-3


def test_streamed_sentences_come_to_one_loudness(clip):
    """Mistake: a quiet sentence stays quiet in a stream, or only the first one is leveled."""
    leveler = audio.Leveler(RATE)
    for gain in (1.0, 0.3, 2.0, 1.0):
        result = leveled(leveler, np.concatenate([clip, clip]) * np.float32(gain))
        assert audio.loudness(result[len(clip):], RATE) == pytest.approx(-18, abs=1.5)
        assert audio.true_peak(result) <= audio.MAX_TRUE_PEAK + 0.02


def test_the_streamed_level_knows_nothing_of_what_follows(clip):
    """Mistake: a chunk waits for later ones, or depends on them."""
    other = np.concatenate([clip[:RATE], tone(1.0, seed=5) * 5])
    one, two = leveled(audio.Leveler(RATE), clip), leveled(audio.Leveler(RATE), other)
    kept = RATE // 3840 * 3840
    assert np.array_equal(one[:kept], two[:kept]) and not np.array_equal(one[kept:2 * RATE], two[kept:2 * RATE])


def test_the_streamed_gain_does_not_jump(clip):
    """Mistake: a step of the gain at a seam clicks."""
    constant = np.full(4 * RATE, 0.01, np.float32) * np.sign(np.sin(2 * np.pi * 300 * np.arange(4 * RATE) / RATE) + 1e-9)
    envelope = np.abs(leveled(audio.Leveler(RATE), constant.astype(np.float32)))
    assert np.abs(np.diff(envelope)).max() < 1e-4 and envelope[-1] > 5 * envelope[0]


@pytest.mark.parametrize("normalize_loudness", [True, False])
def test_speak_and_stream_level_and_arms_do_not(spread_base, normalize_loudness):
    """Mistake: the option has no effect, or the arms of a comparison are changed by it."""
    voice = Voice(spread_base, spread_base.model, normalize_loudness=normalize_loudness)
    raw = dict(speak.speak_requests([Request("Hello.", 3)], voice))[0].samples
    spoken = speak.speak("Hello.", voice, seed=3).samples
    streamed = np.concatenate([*speak.stream_speech("Hello.", voice, seed=3)])
    generations = speak.speak("Hello.", dataclasses.replace(voice, normalize_loudness=False), seed=3).generations
    assert np.allclose(raw, voice.base.codec.decode([generations[0].codes])[0], atol=1e-4)
    assert np.allclose(spoken, raw, atol=1e-3) == np.allclose(streamed, raw, atol=1e-3) == (not normalize_loudness)
    assert not normalize_loudness or audio.true_peak(spoken) <= audio.MAX_TRUE_PEAK + 1e-3


def test_a_reference_that_ends_in_a_word_is_closed(base, clip, tmp_path):
    """Mistake: speech goes on with the rest of the reference's last word; or clips that end in silence get other codes."""
    for path in CLIPS:
        samples = audio.read(path, RATE)
        assert audio.close_ending(samples, RATE) is samples, path
    middle = int(np.argmax(np.convolve(np.abs(clip), np.ones(1200), "same")))
    closed = audio.close_ending(clip[:middle], RATE)
    assert len(closed) == middle + round(0.3 * RATE) and not closed[middle:].any()
    voice = Voice(base, base.model)
    audio.write(tmp_path / "cut.wav", clip[:middle], RATE)
    [turn] = encode_references(voice, Reference(tmp_path / "cut.wav", "Cut of"))
    [plain] = base.codec.encode([audio.read(tmp_path / "cut.wav", RATE)])
    assert len(turn.codes) - len(plain) in (3, 4)
    audio.write(tmp_path / "silence.wav", np.zeros(RATE), RATE)
    with pytest.raises(KitError, match="is silent"):
        encode_references(voice, Reference(tmp_path / "silence.wav", "Nothing."))
