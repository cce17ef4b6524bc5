"""Whose voice is in a clip: heard by the real network in the bundled recording, whose truth is known."""

import csv
from pathlib import Path

import numpy as np
import pytest

from tts_kit.data import quality_flags, segment, speaker_embedding

pytestmark = pytest.mark.skipif(not speaker_embedding.is_installed(), reason="Resemblyzer is not installed: make judges")
SAMPLES = Path(__file__).parent.parent / "sample_data"


@pytest.fixture(scope="module")
def cuts(tmp_path_factory) -> Path:
    """The bundled recording, cut and listened to."""
    folder = tmp_path_factory.mktemp("cuts")
    segment.segment_recording(SAMPLES / "recording.flac", folder)
    speaker_embedding.embed_folder(folder / "recording")
    return folder / "recording"


def test_clips_with_a_stranger_are_the_strange_ones(cuts):
    """Mistake: a short interruption that drowns in its clip, or the pauses of a noisy room taken for another voice."""
    with (SAMPLES / "recording.csv").open(newline="") as file:
        strangers = [(float(row["start"]), float(row["end"])) for row in csv.DictReader(file) if row["speaker"] == "george"]
    pieces = [piece for piece in segment.read_segments(cuts) if not piece.reason]
    found = speaker_embedding.read_embeddings(cuts)
    unlike = speaker_embedding.speaker_outlier_score([found[piece.file] for piece in pieces])
    foreign = [any(begin < piece.end and piece.begin < end for begin, end in strangers) for piece in pieces]
    assert sum(foreign) >= 2
    assert [each > quality_flags.OUTLIER_THRESHOLD for each in unlike] == foreign


def test_voices_are_listened_to_once(cuts, monkeypatch):
    """Mistake: an hour of recordings goes through the network again at every rerun."""
    monkeypatch.setattr(speaker_embedding, "windows", lambda samples: pytest.fail("listened again"))
    assert speaker_embedding.embed_folder(cuts).keys() == {piece.file for piece in segment.read_segments(cuts) if not piece.reason}


def test_without_the_network_nobody_is_accused(tmp_path, cuts, monkeypatch, capsys):
    """Mistake: a missing package stops the cutting, or passes in silence."""
    monkeypatch.setattr(speaker_embedding, "is_installed", lambda: False)
    assert speaker_embedding.embed_folder(tmp_path) == {} == speaker_embedding.read_embeddings(tmp_path)
    assert "make judges" in capsys.readouterr().out
    assert speaker_embedding.speaker_outlier_score([None, None]) == [0.0, 0.0]


@pytest.mark.parametrize("samples", [np.zeros(8000, np.float32),
                                     np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)])
def test_a_clip_without_speech_has_a_window_as_well(samples):
    """Mistake: silence or noise ends the whole batch."""
    assert np.isfinite(speaker_embedding.windows(samples)).all()
    assert speaker_embedding.windows(samples).shape[1] == 256
