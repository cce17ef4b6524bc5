"""Speaker embeddings: the real encoder on the bundled recording, whose speakers are known."""

import csv
from pathlib import Path

import numpy as np
import pytest
import torch

from tts_kit.data import quality_flags, segment, speaker_embedding

pytestmark = pytest.mark.skipif(not speaker_embedding.is_installed(),
                                reason="Resemblyzer is not installed (requirements-no-deps.txt)")
SAMPLES = Path(__file__).parent.parent / "sample_data"


@pytest.fixture(scope="module")
def folder(segmented_recording) -> Path:
    """The bundled recording, segmented and embedded."""
    speaker_embedding.embed_folder(segmented_recording)
    return segmented_recording


def test_clips_with_another_speaker_are_the_outliers(folder):
    """Mistake: a short interruption is averaged away, or the noise in pauses counts as another speaker."""
    with (SAMPLES / "recording.csv").open(newline="") as file:
        interruptions = [(float(row["start"]), float(row["end"])) for row in csv.DictReader(file)
                         if row["speaker"] == "george"]
    clips, embeddings = segment.read_clips(folder), speaker_embedding.read_embeddings(folder)
    scores = speaker_embedding.speaker_outlier_score([embeddings[clip.file] for clip in clips])
    interrupted = [any(start < clip.end and clip.start < end for start, end in interruptions) for clip in clips]
    assert sum(interrupted) >= 2
    assert [score > quality_flags.OUTLIER_THRESHOLD for score in scores] == interrupted


def test_clips_are_embedded_once(folder, monkeypatch):
    """Mistake: an hour of recordings goes through the encoder again in every run."""
    monkeypatch.setattr(speaker_embedding, "embed_windows", lambda samples: pytest.fail("embedded again"))
    assert speaker_embedding.embed_folder(folder).keys() == {clip.file for clip in segment.read_clips(folder)}


def test_without_the_encoder_nothing_is_flagged(tmp_path, folder, monkeypatch, capsys):
    """Mistake: a missing package stops segmenting, or is not mentioned."""
    monkeypatch.setattr(speaker_embedding, "is_installed", lambda: False)
    assert speaker_embedding.embed_folder(tmp_path) == {} == speaker_embedding.read_embeddings(tmp_path)
    assert "requirements-no-deps.txt" in capsys.readouterr().out
    assert speaker_embedding.speaker_outlier_score([None, None]) == [0.0, 0.0]


@pytest.mark.parametrize("samples", [np.zeros(8000, np.float32),
                                     np.random.default_rng(1).normal(0, 0.1, 4000).astype(np.float32)])
def test_a_clip_without_speech_has_an_embedding_as_well(samples):
    """Mistake: silence or noise ends the whole batch."""
    assert np.isfinite(speaker_embedding.embed_windows(samples)).all()
    assert speaker_embedding.embed_windows(samples).shape[1] == 256


def test_embeddings_are_computed_by_one_thread(monkeypatch):
    """Mistake: on a busy machine two threads wait for each other at every step of the LSTM, 70 times longer; or torch keeps
    one thread for everything after it."""
    threads = []

    def encode(mel):
        threads.append(torch.get_num_threads())
        return torch.zeros(len(mel), 256)

    monkeypatch.setattr(speaker_embedding, "load_encoder", lambda: encode)
    torch.set_num_threads(2)
    try:
        speaker_embedding.embed_windows(np.random.default_rng(0).normal(0, 0.1, 16_000).astype(np.float32))
        assert threads == [1] and torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
