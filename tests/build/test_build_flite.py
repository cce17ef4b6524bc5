"""The fast synthesiser for reading practice."""

import itertools
import shutil

import numpy as np
import pytest

from sample_data.build import corpus, flite, sentences
from tts_kit import audio
from tts_kit.errors import KitError

INSTALLED = pytest.mark.skipif(not shutil.which("flite"), reason="flite is not installed (apt-get install flite)")


def test_the_readers_are_many_and_always_the_same():
    """Mistake: readers that change from process to process, so that a resumed corpus has other voices, or one voice only."""
    readers = flite.readers()
    assert readers[0] == flite.Reader("flite-awb-134-110", "awb", 134, 1.1)
    assert len({reader.name for reader in readers}) == flite.READERS
    assert {reader.voice for reader in readers} == set(flite.PITCHES)


@INSTALLED
def test_size_and_pitch_change_the_voice_and_not_the_tempo():
    """Mistake: a smaller head speaks faster, or all readers of a voice sound the same."""
    text = "The train to London leaves in three minutes."
    usual, small, high = (flite.utter(text, flite.Reader("", "slt", pitch, size))
                          for pitch, size in ((170, 1.0), (170, 1.18), (220, 1.0)))
    assert len(small) == pytest.approx(len(usual), rel=0.08) and len(high) == pytest.approx(len(usual), rel=0.08)
    assert centre(small) > 1.05 * centre(usual)
    assert pitch(high) > 1.15 * pitch(usual) and pitch(small) == pytest.approx(pitch(usual), rel=0.1)
    assert audio.loudness(usual, flite.RATE) == pytest.approx(-20, abs=0.5)


@INSTALLED
def test_it_makes_a_corpus_that_is_kept(tmp_path, monkeypatch):
    """Mistake: shards that the language model cannot read, or that are made again."""
    monkeypatch.setattr(corpus, "SHARD", 5)
    folder = flite.make(tmp_path / "practice", 0.01, seed=2)
    spoken = list(corpus.read(folder))
    assert len(spoken) == 5 and {name for name, *_ in spoken} <= {reader.name for reader in flite.readers()}
    assert [text for _, text, _ in spoken] == list(itertools.islice(sentences.practice(2), 5))
    assert all(len(samples) > flite.RATE / 2 for *_, samples in spoken)
    before = (folder / "shard_0000.flac").stat().st_mtime_ns
    flite.make(tmp_path / "practice", 0.01, seed=2)
    assert (folder / "shard_0000.flac").stat().st_mtime_ns == before


def test_without_it_a_person_is_told_what_to_do(tmp_path, monkeypatch):
    """Mistake: a traceback about a missing file, an hour into a training."""
    monkeypatch.setattr(flite.shutil, "which", lambda name: None)
    with pytest.raises(KitError, match="apt-get install flite"):
        flite.make(tmp_path, 1)


def centre(samples: np.ndarray) -> float:
    """Mean frequency of the power, in Hz."""
    power = np.abs(np.fft.rfft(samples)) ** 2
    return float((power * np.fft.rfftfreq(len(samples), 1 / flite.RATE)).sum() / power.sum())


def pitch(samples: np.ndarray) -> float:
    """Median of the strongest period's frequency over the loud frames, in Hz."""
    pitches, size = [], 800
    for start in range(0, len(samples) - size, size // 2):
        frame = samples[start:start + size]
        if np.abs(frame).mean() < 0.5 * np.abs(samples).mean():
            continue
        likeness = np.correlate(frame, frame, "full")[size - 1:]
        shortest, longest = flite.RATE // 400, flite.RATE // 60
        pitches.append(flite.RATE / (shortest + int(likeness[shortest:longest].argmax())))
    return float(np.median(pitches))
