"""What is told of a dataset: measured on sounds whose pitch, band and noise are known, and shown on a page that is safe."""

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
    """All overtones of a pitch up to a frequency, as a voice has them, in bursts with silence between."""
    tone = sum(np.sin(2 * np.pi * pitch * times * MOMENTS) / times for times in range(1, int(highest / pitch)))
    bursts = np.clip(5 * np.sin(2 * np.pi * 1.5 * MOMENTS) + 2.5, 0, 1)
    return (0.1 * tone * np.sin(np.pi / 2 * bursts) ** 2).astype(np.float32)


@pytest.mark.parametrize("pitch", [85, 110, 180, 260, 390])
def test_the_pitch_is_the_voices(pitch):
    """Mistake: the octave below or above, which makes two speakers of one."""
    assert audio.median_f0(buzz(pitch), SAMPLE_RATE) == pytest.approx(pitch, rel=0.03)
    noise = np.random.default_rng(2).normal(0, 0.1, SECONDS * SAMPLE_RATE).astype(np.float32)
    assert audio.median_f0(noise, SAMPLE_RATE) == 0.0 == audio.median_f0(np.zeros(100, np.float32), SAMPLE_RATE)


@pytest.mark.parametrize("highest", [3_400, 7_500, 11_500])
def test_the_band_ends_where_the_sound_does(highest):
    """Mistake: a telephone's recording passes for a studio's because its file has a high rate."""
    assert report.bandwidth_hz(buzz(100, highest)) == pytest.approx(highest, abs=250)


@pytest.mark.parametrize("ratio", [15, 30, 45])
def test_noise_is_measured_in_the_pauses(ratio):
    """Mistake: a loud room that nobody is told of, or a quiet one that is called noisy for its digital silence."""
    voice = buzz(120)
    noise = np.random.default_rng(1).normal(0, 1, len(voice)) * voice[voice != 0].std() * 10 ** (-ratio / 20)
    assert report.snr_db((voice + noise).astype(np.float32)) == pytest.approx(ratio, abs=2.5)
    assert report.snr_db(np.zeros(SAMPLE_RATE, np.float32)) == 0.0


@pytest.fixture
def place(tmp_path) -> Run:
    """A run of twelve clips, one of which cannot be used, with what a hostile table would say."""
    folder, rows = tmp_path / "clips", []
    for number in range(12):
        audio.write(folder / f"a{number:02d}.flac", buzz(100 + 3 * number), SAMPLE_RATE)
        rows.append((f"a{number:02d}.flac", f"Sentence {'abcdefghijkl'[number]} says one thing and no other {number}."))
    rows[3] = (rows[3][0], "Someone wrote <script>alert(1)</script> & 'quotes' here.")
    rows[7] = (rows[7][0], "Someone wrote <script>alert(1)</script> & 'quotes' here!")
    rows.append(("missing.flac", "This one is not there."))
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    made = Run("anna", tmp_path / "runs")
    prepare.prepare(folder, made, Config(held_out=0.2), skip_bad=True)
    return made


def test_everything_is_accounted_for(place):
    """Mistake: clips that are in no row of the table, or minutes that do not add up to the data."""
    pieces = [segment.Segment(f"rejected/{number}.flac", number, number + 6, 3, 30, 0, 0, "noisy: 3 dB")
              for number in range(2)]
    pieces.append(segment.Segment("clips/1.flac", 20, 22, 40, 30, 0, -4.5))
    for number in range(2):
        audio.write(place.segments / "monday" / f"rejected/{number}.flac", number * buzz(100), SAMPLE_RATE)  # one is silent
    io.write_rows(place.segments / "monday" / segment.SEGMENTS, [dataclasses.asdict(piece) for piece in pieces])
    found = report.analyse(place)
    assert found.rejected == {"noisy": (2, pytest.approx(0.2)), "could not be used": (1, None)}
    assert found.minutes == pytest.approx(sum(each.seconds for each in manifest.read(place.data)) / 60)
    assert len(found.rejected_segments) == 2
    page = report.write(place, found).read_text(encoding="utf-8")
    counts = re.findall(r"<th>(?!left)[^<]+</th><td>(\d+)</td>", page)
    assert sum(map(int, counts)) == 12
    assert page.count("noisy: 3 dB") == 2  # with their players
    assert len(io.read_rows(place.data / prepare.REJECTED)) == 1


def test_repeated_sentences_are_listed(place):
    """Mistake: the same sentence twice teaches it by heart, unseen; or all short sentences are called alike."""
    assert [clip.file for clip in report.duplicates(manifest.read(place.data))] == ["a07.flac"]
    few = [dataclasses.replace(clip, text=text) for clip, text in zip(manifest.read(place.data), ("Yes.", "No.", "Yes!"))]
    assert [clip.text for clip in report.duplicates(few)] == ["Yes!"]


def test_the_advice_follows_the_figures(place):
    """Mistake: praise for a minute of noise."""
    found = report.analyse(place)
    assert "little" in report.advice(found)
    many = dataclasses.replace(found, clips=[dataclasses.replace(each, speaker_distance=0.0) for each in found.clips] * 50)
    assert "enough." in report.advice(many) and "kHz" not in report.advice(many)
    loud = dataclasses.replace(many, clips=[dataclasses.replace(each, snr_db=9.0) for each in many.clips])
    assert "loud" in report.advice(loud)
    dull = dataclasses.replace(many, clips=[dataclasses.replace(each, bandwidth_hz=3_400.0) for each in many.clips])
    assert "nothing above 3.4 kHz" in report.advice(dull)
    strange = [dataclasses.replace(many.clips[0], speaker_distance=quality_flags.OUTLIER_THRESHOLD + 0.1), *many.clips[1:]]
    compared = dataclasses.replace(many, clips=strange, voices_compared=True)
    assert "1 of them sounds like another speaker" in report.advice(compared)


def test_the_page_is_drawn_and_nothing_in_it_runs(place, chromium):
    """Mistake: a transcript that becomes a script, or a policy that forbids the page its own style."""
    page = report.write(place, report.analyse(place))
    chromium.open(Path(page).resolve().as_uri())
    assert chromium.run("document.querySelectorAll('script').length") == 0
    assert "<script>alert(1)</script>" in chromium.run("document.querySelector('main').innerText")
    assert chromium.run("getComputedStyle(document.querySelector('h1')).fontWeight") == "400"
    assert chromium.run("document.querySelector('.plots').naturalWidth") > 1000
    assert chromium.run("document.querySelectorAll('audio').length") >= 12
    assert not [event for event in chromium.events if event["method"] == "Log.entryAdded"]
