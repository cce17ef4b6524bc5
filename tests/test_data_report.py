"""The data report: measured on sounds with known pitch, bandwidth and noise, and written as a page that runs nothing."""

import csv
import dataclasses
import re
from pathlib import Path

import numpy as np
import pytest

from tts_kit import audio, io
from tts_kit.config import Config
from tts_kit.data import manifest, prepare, quality_flags, report, segment
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.run import Run

SECONDS = 3
MOMENTS = np.arange(SECONDS * SAMPLE_RATE) / SAMPLE_RATE


def buzz(pitch: float, highest: float = 11_000) -> np.ndarray:
    """All overtones of a pitch up to a frequency, as in a voice, in bursts with silence between."""
    tone = sum(np.sin(2 * np.pi * pitch * harmonic * MOMENTS) / harmonic for harmonic in range(1, int(highest / pitch)))
    bursts = np.clip(5 * np.sin(2 * np.pi * 1.5 * MOMENTS) + 2.5, 0, 1)
    return (0.1 * tone * np.sin(np.pi / 2 * bursts) ** 2).astype(np.float32)


@pytest.mark.parametrize("pitch", [85, 110, 180, 260, 390])
def test_the_median_pitch_is_right(pitch):
    """Mistake: the octave below or above, which makes two speakers of one."""
    assert audio.median_f0(buzz(pitch), SAMPLE_RATE) == pytest.approx(pitch, rel=0.03)
    noise = np.random.default_rng(2).normal(0, 0.1, SECONDS * SAMPLE_RATE).astype(np.float32)
    assert audio.median_f0(noise, SAMPLE_RATE) == 0.0 == audio.median_f0(np.zeros(100, np.float32), SAMPLE_RATE)


@pytest.mark.parametrize("highest", [3_400, 7_500, 11_500])
def test_the_bandwidth_is_right(highest):
    """Mistake: a telephone recording passes for a studio recording because its file has a high sample rate."""
    assert report.bandwidth_hz(buzz(100, highest)) == pytest.approx(highest, abs=250)


@pytest.mark.parametrize("ratio", [15, 30, 45])
def test_noise_is_measured_in_the_pauses(ratio):
    """Mistake: a noisy recording is not reported, or a quiet one is called noisy because of its digital silence."""
    voice = buzz(120)
    noise = np.random.default_rng(1).normal(0, 1, len(voice)) * voice[voice != 0].std() * 10 ** (-ratio / 20)
    assert report.snr_db((voice + noise).astype(np.float32)) == pytest.approx(ratio, abs=2.5)
    assert report.snr_db(np.zeros(SAMPLE_RATE, np.float32)) == 0.0


@pytest.fixture
def run(tmp_path) -> Run:
    """A run of twelve clips, one of which cannot be used, with hostile texts in its table."""
    folder, rows = tmp_path / "clips", []
    for number in range(12):
        audio.write(folder / f"a{number:02d}.flac", buzz(100 + 3 * number), SAMPLE_RATE)
        rows.append((f"a{number:02d}.flac", f"Sentence {'abcdefghijkl'[number]} says one thing and no other {number}."))
    rows[3] = (rows[3][0], "Someone wrote <script>alert(1)</script> & 'quotes' here.")
    rows[7] = (rows[7][0], "Someone wrote <script>alert(1)</script> & 'quotes' here!")
    rows.append(("missing.flac", "This one is not there."))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    anna = Run("anna", tmp_path / "runs")
    prepare.prepare(folder, anna, Config(held_out=0.2), skip_bad=True)
    return anna


def test_every_clip_is_counted(run):
    """Mistake: clips that are in no row of the table, or minutes that do not add up to the data."""
    segments = [segment.Segment(f"rejected/{number}.flac", number, number + 6, 3, 30, 0, 0, "noisy: 3 dB")
                for number in range(2)]
    segments.append(segment.Segment("clips/1.flac", 20, 22, 40, 30, 0, -4.5))
    for number in range(2):
        audio.write(run.segments / "monday" / f"rejected/{number}.flac", number * buzz(100), SAMPLE_RATE)  # one is silent
    io.write_rows(run.segments / "monday" / segment.SEGMENTS, [dataclasses.asdict(row) for row in segments])
    analysis = report.analyse(run)
    assert analysis.rejected == {"noisy": (2, pytest.approx(0.2)), "could not be used": (1, None)}
    assert analysis.minutes == pytest.approx(sum(utterance.seconds for utterance in manifest.read(run.data)) / 60)
    assert len(analysis.rejected_segments) == 2
    page = report.write(run, analysis).read_text(encoding="utf-8")
    counts = re.findall(r"<th>(?!left)[^<]+</th><td>(\d+)</td>", page)
    assert sum(map(int, counts)) == 12
    assert page.count(">noisy: 3 dB<") == 2  # with their players
    assert len(io.read_rows(run.data / prepare.REJECTED)) == 1


def test_repeated_sentences_are_listed(run):
    """Mistake: a sentence that occurs twice is memorized, unnoticed; or all short sentences count as equal."""
    assert [clip.file for clip in report.duplicates(manifest.read(run.data))] == ["a07.flac"]
    few = [dataclasses.replace(clip, text=text) for clip, text in zip(manifest.read(run.data), ("Yes.", "No.", "Yes!"))]
    assert [clip.text for clip in report.duplicates(few)] == ["Yes!"]


def test_the_advice_follows_the_figures(run):
    """Mistake: a minute of noise is praised."""
    analysis = report.analyse(run)
    assert "little" in report.advice(analysis)
    same_speaker = [dataclasses.replace(clip, speaker_distance=0.0) for clip in analysis.clips]
    large = dataclasses.replace(analysis, clips=same_speaker * 50)
    assert "enough." in report.advice(large) and "kHz" not in report.advice(large)
    noisy = dataclasses.replace(large, clips=[dataclasses.replace(clip, snr_db=9.0) for clip in large.clips])
    assert "loud" in report.advice(noisy)
    dull = dataclasses.replace(large, clips=[dataclasses.replace(clip, bandwidth_hz=3_400.0) for clip in large.clips])
    assert "nothing above 3.4 kHz" in report.advice(dull)
    clips = [dataclasses.replace(large.clips[0], speaker_distance=quality_flags.OUTLIER_THRESHOLD + 0.1), *large.clips[1:]]
    compared = dataclasses.replace(large, clips=clips, voices_compared=True)
    assert "1 of them sounds like another speaker" in report.advice(compared)


def test_the_page_is_drawn_and_nothing_in_it_runs(run, chromium):
    """Mistake: a transcript becomes a script, or the policy blocks the page's own style."""
    page = report.write(run, report.analyse(run))
    chromium.open(Path(page).resolve().as_uri())
    assert chromium.run("document.querySelectorAll('script').length") == 0
    assert "<script>alert(1)</script>" in chromium.run("document.querySelector('main').innerText")
    assert chromium.run("getComputedStyle(document.querySelector('h1')).fontWeight") == "400"
    assert chromium.run("document.querySelector('.plots img').naturalWidth") > 1000
    assert chromium.run("document.querySelectorAll('audio').length") >= 12
    assert not [event for event in chromium.events if event["method"] == "Log.entryAdded"]
