"""Speech by flite, the fast synthesizer."""

import itertools
import shutil

import numpy as np
import pytest

from sample_data.build import corpus, flite, sentences
from tts_kit import audio
from tts_kit.errors import KitError

needs_flite = pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed (apt-get install flite)")


def test_the_speakers_are_many_and_always_the_same():
    """Mistake: speakers that differ between processes, so that a resumed corpus has other voices; or only one voice."""
    speakers = flite.speakers()
    assert speakers[0] == flite.Speaker("flite-awb-134-110", "awb", 134, 1.1)
    assert len({speaker.name for speaker in speakers}) == flite.SPEAKER_COUNT
    assert {speaker.voice for speaker in speakers} == set(flite.PITCHES)


@needs_flite
def test_formants_and_pitch_change_without_the_tempo():
    """Mistake: higher formants make the speech faster, or all speakers of a voice sound the same."""
    text = "The train to London leaves in three minutes."
    plain, small, high = (flite.synthesize(text, flite.Speaker("", "slt", pitch, formant_scale))
                          for pitch, formant_scale in ((170, 1.0), (170, 1.18), (220, 1.0)))
    assert len(small) == pytest.approx(len(plain), rel=0.08) and len(high) == pytest.approx(len(plain), rel=0.08)
    assert spectral_centroid(small) > 1.05 * spectral_centroid(plain)
    assert median_pitch(high) > 1.15 * median_pitch(plain)
    assert median_pitch(small) == pytest.approx(median_pitch(plain), rel=0.1)
    assert audio.loudness(plain, flite.RATE) == pytest.approx(-20, abs=0.5)


@needs_flite
def test_the_corpus_is_made_once(tmp_path, monkeypatch):
    """Mistake: shards that the CSM training cannot read, or that are made again."""
    monkeypatch.setattr(corpus, "SENTENCES_PER_SHARD", 5)
    folder = flite.make(tmp_path / "flite", 0.01, seed=2)
    utterances = list(corpus.read(folder))
    assert len(utterances) == 5 and {name for name, *_ in utterances} <= {speaker.name for speaker in flite.speakers()}
    assert [text for _, text, _ in utterances] == list(itertools.islice(sentences.generate_with_random_words(2), 5))
    assert all(len(samples) > flite.RATE / 2 for *_, samples in utterances)
    before = (folder / "shard_0000.flac").stat().st_mtime_ns
    flite.make(tmp_path / "flite", 0.01, seed=2)
    assert (folder / "shard_0000.flac").stat().st_mtime_ns == before


def test_without_flite_the_error_says_how_to_install_it(tmp_path, monkeypatch):
    """Mistake: a traceback about a missing file, an hour after the start."""
    monkeypatch.setattr(flite.shutil, "which", lambda name: None)
    with pytest.raises(KitError, match="apt-get install flite"):
        flite.make(tmp_path, 1)


def spectral_centroid(samples: np.ndarray) -> float:
    """Return the mean frequency of the power, in Hz."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / flite.RATE)).sum() / power.sum())


def median_pitch(samples: np.ndarray) -> float:
    """Return the median pitch of the loud frames by autocorrelation, in Hz."""
    pitches, size = [], 800
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start:start + size]
        if np.abs(frame).mean() < 0.5 * np.abs(samples).mean():
            continue
        autocorrelation = np.correlate(frame, frame, "full")[size - 1:]
        shortest, longest = flite.RATE // 400, flite.RATE // 60
        pitches.append(flite.RATE / (shortest + int(autocorrelation[shortest:longest].argmax())))
    return float(np.median(pitches))
