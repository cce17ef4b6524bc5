"""The truth by which the desk is measured: it has to be true, and harm has to count."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sample_data.build import segmentation_benchmark, simulated_recording
from sample_data.build.simulated_recording import RATE
from tts_kit import audio
from tts_kit.data.segment import Segment

VOICE = Path(__file__).parents[2] / "sample_data" / "voice"


@pytest.fixture(scope="module")
def take() -> simulated_recording.Take:
    """Five sentences of the bundled voice, two of which stand for somebody else's."""
    clips = [(f"Sentence {number}.", audio.read(path, RATE)) for number, path in enumerate(sorted(VOICE.glob("*.flac"))[:5])]
    return simulated_recording.lay_out(clips[:3], clips[3:], np.random.default_rng(4))


def piece(begin: float, end: float, reason: str = "") -> Segment:
    return Segment("clips/1.flac", begin, end, 40, 30, 0, 0, reason)


def test_sentences_lie_where_they_are_said_to(take):
    """Mistake: a truth that is off by its own pauses."""
    assert len(take.said) == 5 and sum(part.is_main for part in take.said) == 3
    loud = np.abs(take.samples) > 20 * simulated_recording.ROOM
    for part in take.said:
        inside = loud[round(part.begin * RATE):round(part.end * RATE)]
        assert inside.mean() > 0.2
        loud[round(part.begin * RATE):round(part.end * RATE)] = False
    assert not loud.any()
    assert all(after.begin - before.end >= simulated_recording.PAUSES[0] - 1e-6 for before, after in zip(take.said, take.said[1:]))
    for part in take.said:
        spoken = take.voice[round(part.begin * RATE):round(part.end * RATE)]
        assert spoken.any() == part.is_main


def test_a_cut_in_a_word_counts_and_one_in_a_pause_does_not(take):
    """Mistake: a measure that praises every cut."""
    first = next(part for part in take.said if part.is_main)
    loudest = first.begin + np.abs(take.voice[round(first.begin * RATE):round(first.end * RATE)]).argmax() / RATE
    assert segmentation_benchmark._cuts(take, piece(first.begin - 0.1, first.end + 0.1)) == 0
    assert segmentation_benchmark._cuts(take, piece(first.begin - 0.1, loudest)) == 1
    assert take.is_whole(first.begin - 0.1, first.end + 0.1) and not take.is_whole(first.begin - 0.1, loudest)
    assert take.text(first.begin - 0.1, first.end + 0.1) == first.text


def test_speech_in_no_clip_is_lost_and_strangers_are_not_missed(take):
    """Mistake: what was left out is forgotten, or the speaker is charged for what somebody else said."""
    everything = [piece(0, len(take.samples) / RATE)]
    total, lost = segmentation_benchmark._speech(take, everything)
    own_seconds = sum(part.end - part.begin for part in take.said if part.is_main)
    assert 0.4 * own_seconds < total < own_seconds and lost == 0
    assert segmentation_benchmark._speech(take, []) == (total, pytest.approx(total))
    spoilt = dataclasses.replace(take, said=tuple(dataclasses.replace(part, is_spoilt=True) for part in take.said))
    assert segmentation_benchmark._speech(spoilt, []) == (0, 0)
    other_seconds = sum(part.end - part.begin for part in take.said if not part.is_main)
    assert segmentation_benchmark._foreign(take, everything[0]) == pytest.approx(other_seconds)


@pytest.mark.parametrize("name", [name for name in simulated_recording.SPOILT if name.startswith("noise") or name in ("hum", "music")])
def test_the_noise_is_as_loud_as_its_name_says(take, name):
    """Mistake: 20 dB that are 30."""
    spoilt = simulated_recording.SPOILT[name](take, np.random.default_rng(2))
    speech = np.concatenate([take.voice[round(part.begin * RATE):round(part.end * RATE)]
                             for part in take.said if part.is_main])
    ratio = 10 * np.log10((speech ** 2).mean() / ((spoilt.samples - take.samples) ** 2).mean())
    assert ratio == pytest.approx({"hum": 25, "music": 20}.get(name) or float(name.split()[-2]), abs=0.2)


def test_clipping_is_marked_and_clicks_are_short(take):
    """Mistake: sentences that were spoilt count as lost by the cutter."""
    clipped = simulated_recording.clipped(take, np.random.default_rng(2))
    assert sum(part.is_spoilt for part in clipped.said) == simulated_recording.CLIPPED
    for part in clipped.said:
        samples = clipped.samples[round(part.begin * RATE):round(part.end * RATE)]
        assert ((np.abs(samples) >= 0.999).mean() > 0.001) == part.is_spoilt
    clicked = simulated_recording.clicking(take, np.random.default_rng(2))
    assert 0 < (np.abs(clicked.samples - take.samples) > 0.05).mean() < 0.01


def test_figures_are_over_all_takes():
    """Mistake: the mean of takes' shares, in which a take with one wrong clip weighs as much as one with ten."""
    one = segmentation_benchmark.Tally(60, 20, 1, 40, 0, 100, 2, ((0.9, True), *[(0.0, False)] * 4), 1, 1, 4, 0, 1, 2, 3, 3, 0)
    other = segmentation_benchmark.Tally(60, 20, 0, 40, 4, 300, 2, ((0.1, True), *[(0.2, False)] * 4), 0, 0, 5, 1, 1, 2, 3, 3, 2)
    summary = segmentation_benchmark.summed([one, other])
    assert summary["cut words per 100 cuts"] == 2.5 and summary["speech lost, %"] == 5.0
    assert summary["WER before review, %"] == 1.0 and summary["wrong transcripts"] == 2
    assert summary["of them in the most suspicious fifth, %"] == 50 and summary["of them suspected, %"] == 100
    assert summary["clips without, suspected, %"] == 11.1 and summary["seconds an hour, cutting"] == 60
    assert segmentation_benchmark.summed([dataclasses.replace(other, scores=((0.1, False),))])["wrong transcripts"] == 0


@pytest.mark.slow
def test_memory_is_the_process_own():
    """Mistake: a figure that counts what the process that started this one holds."""
    held = np.ones(100_000_000)  # 800 MB
    script = "from sample_data.build import segmentation_benchmark; print(segmentation_benchmark._most_memory())"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert 50 < int(output) < 700 < held.nbytes / 1e6
