"""The simulated recordings of the segmentation benchmark have the content that they claim, and errors are counted."""

import dataclasses
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sample_data.build import segmentation_benchmark, simulated_recording
from sample_data.build.segmentation_benchmark import Measurement
from sample_data.build.simulated_recording import CONDITIONS, RATE, Recording
from tts_kit import audio
from tts_kit.data.segment import Segment

VOICE = Path(__file__).parents[2] / "sample_data" / "voice"


@pytest.fixture(scope="module")
def recording() -> Recording:
    """Five sentences of the bundled voice, two of which count as another speaker's."""
    clips = [(f"Sentence {index}.", audio.read(path, RATE)) for index, path in enumerate(sorted(VOICE.glob("*.flac"))[:5])]
    return simulated_recording.simulate(clips[:3], clips[3:], np.random.default_rng(4))


def segment(start: float, end: float) -> Segment:
    return Segment("clips/1.flac", start, end, 40, 30, 0, 0, "")


def test_utterances_are_at_their_times(recording):
    """Mistake: times that are off by the pauses."""
    utterances = recording.utterances
    assert len(utterances) == 5 and sum(utterance.is_main for utterance in utterances) == 3
    is_loud = np.abs(recording.samples) > 20 * simulated_recording.ROOM_NOISE
    for utterance in utterances:
        inside = is_loud[round(utterance.start * RATE):round(utterance.end * RATE)]
        assert inside.mean() > 0.2
        is_loud[round(utterance.start * RATE):round(utterance.end * RATE)] = False
    assert not is_loud.any()
    assert all(after.start - before.end >= simulated_recording.PAUSES[0] - 1e-6
               for before, after in itertools.pairwise(utterances))
    for utterance in utterances:
        main_speech = recording.main_speech[round(utterance.start * RATE):round(utterance.end * RATE)]
        assert main_speech.any() == utterance.is_main


def test_only_a_cut_inside_a_word_counts(recording):
    """Mistake: a measure that accepts each cut."""
    first = next(utterance for utterance in recording.utterances if utterance.is_main)
    main_speech = recording.main_speech[round(first.start * RATE):round(first.end * RATE)]
    before, loudest, after = first.start - 0.1, first.start + np.abs(main_speech).argmax() / RATE, first.end + 0.1
    assert segmentation_benchmark._cut_words(recording, segment(before, after)) == 0
    assert segmentation_benchmark._cut_words(recording, segment(before, loudest)) == 1
    assert recording.is_between_utterances(before, after) and not recording.is_between_utterances(before, loudest)
    assert recording.text(before, after) == first.text


def test_speech_outside_the_segments_is_lost(recording):
    """Mistake: missing speech is not counted, or speech of the other speaker counts as missing."""
    whole = [segment(0, len(recording.samples) / RATE)]
    total, lost = segmentation_benchmark._speech(recording, whole)
    main_seconds = sum(utterance.end - utterance.start for utterance in recording.utterances if utterance.is_main)
    assert 0.4 * main_seconds < total < main_seconds and lost == 0
    assert segmentation_benchmark._speech(recording, []) == (total, pytest.approx(total))
    damaged = dataclasses.replace(recording, utterances=tuple(
        dataclasses.replace(utterance, is_damaged=True) for utterance in recording.utterances))
    assert segmentation_benchmark._speech(damaged, []) == (0, 0)
    other_seconds = sum(utterance.end - utterance.start for utterance in recording.utterances if not utterance.is_main)
    assert segmentation_benchmark._other_speaker_seconds(recording, whole[0]) == pytest.approx(other_seconds)


@pytest.mark.parametrize("name", [name for name in CONDITIONS if name.startswith("noise") or name in ("hum", "music")])
def test_noise_has_the_snr_of_its_condition(recording, name):
    """Mistake: 20 dB that are 30."""
    noisy = CONDITIONS[name](recording, np.random.default_rng(2))
    speech = np.concatenate([recording.main_speech[round(utterance.start * RATE):round(utterance.end * RATE)]
                             for utterance in recording.utterances if utterance.is_main])
    snr_db = 10 * np.log10((speech ** 2).mean() / ((noisy.samples - recording.samples) ** 2).mean())
    assert snr_db == pytest.approx({"hum": 25, "music": 20}.get(name) or float(name.split()[-2]), abs=0.2)


def test_clipped_utterances_are_marked_and_clicks_are_short(recording):
    """Mistake: damaged utterances count as lost by the segmentation."""
    clipped = simulated_recording.clip_utterances(recording, np.random.default_rng(2))
    assert sum(utterance.is_damaged for utterance in clipped.utterances) == simulated_recording.CLIPPED_UTTERANCES
    for utterance in clipped.utterances:
        samples = clipped.samples[round(utterance.start * RATE):round(utterance.end * RATE)]
        assert ((np.abs(samples) >= 0.999).mean() > 0.001) == utterance.is_damaged
    clicked = simulated_recording.add_clicks(recording, np.random.default_rng(2))
    assert 0 < (np.abs(clicked.samples - recording.samples) > 0.05).mean() < 0.01


def test_figures_are_totals_over_all_recordings():
    """Mistake: a mean over recordings, in which a recording with one wrong clip weighs as much as one with ten."""
    one = Measurement(60, 20, 1, 40, 0, 100, 2, ((0.9, True), *[(0.0, False)] * 4), 1, 1, 4, 0, 1, 2, 3, 3, 0)
    other = Measurement(60, 20, 0, 40, 4, 300, 2, ((0.1, True), *[(0.2, False)] * 4), 0, 0, 5, 1, 1, 2, 3, 3, 2)
    summary = segmentation_benchmark.summarize([one, other])
    assert summary["cut words per 100 cuts"] == 2.5 and summary["speech lost, %"] == 5.0
    assert summary["WER before review, %"] == 1.0 and summary["wrong transcripts"] == 2
    assert summary["of them in the fifth flagged most, %"] == 50 and summary["of them flagged, %"] == 100
    assert summary["other clips flagged, %"] == 11.1 and summary["seconds an hour, segmentation"] == 60
    without_errors = dataclasses.replace(other, scores=((0.1, False),))
    assert segmentation_benchmark.summarize([without_errors])["wrong transcripts"] == 0


@pytest.mark.slow
def test_peak_memory_excludes_the_parent_process():
    """Mistake: a figure that includes the memory of the process that started this one."""
    allocated = np.ones(100_000_000)  # 800 MB
    script = "from sample_data.build import segmentation_benchmark; print(segmentation_benchmark._peak_memory())"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 50 < int(output) < 700 < allocated.nbytes / 1e6
