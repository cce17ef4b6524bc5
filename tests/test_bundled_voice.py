"""The bundled voice: how it is created, and the bundled files."""

import csv
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sample_data.build import bundled_voice, sentences

SAMPLES = Path(__file__).parent.parent / "sample_data"
RATE = 24_000


def synthesize_tone(text: str, voice: str, speed: float) -> np.ndarray:
    """Return a tone between two silences, different for each sentence and voice."""
    seed = sum(f"{text}{voice}".encode())
    tone = 0.2 * np.sin(np.arange(round((12_000 + seed % 7_000) / speed)) * (0.05 + seed % 97 / 500))
    return np.pad(tone, (seed % 3_000, 4_000)).astype(np.float32)


@pytest.fixture(scope="module")
def created_samples(tmp_path_factory) -> Path:
    """The three parts, with tones in place of speech."""
    folder = tmp_path_factory.mktemp("samples")
    bundled_voice.make(folder, synthesize_tone)
    return folder


def read_table(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def read_files(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_each_bundled_sentence_is_in_one_part(created_samples):
    """Mistake: a sentence is used for training and for evaluation, or is in no part."""
    texts = [row["text"] for part in ("voice", "held_out") for row in read_table(created_samples / part / "metadata.csv")]
    texts += [row["text"] for row in read_table(created_samples / "recording.csv")
              if row["kind"] in ("sentence", "interruption")]
    assert Counter(texts) == Counter(sentences.evaluation_set().bundled)


def test_recordings_have_distinct_names_and_sizes(created_samples):
    """Mistake: clips are assigned to the wrong recording, or two parts use the same name for a recording."""
    rows = read_table(created_samples / "voice" / "metadata.csv")
    assert Counter(row["recording"] for row in rows) == {f"session{number:02d}": 7 for number in range(1, 11)}
    assert [row["file_name"] for row in rows[6:8]] == ["session01_07.flac", "session02_01.flac"]
    held_out = read_table(created_samples / "held_out" / "metadata.csv")
    assert Counter(row["recording"] for row in held_out) == {"later01": 6, "later02": 6}
    assert {row["source"] for row in rows + held_out} == {"emma"}
    assert len(bundled_voice.SPEEDS) == len(bundled_voice.LOUDNESS) == 10


def test_the_files_are_reproducible(created_samples, tmp_path):
    """Mistake: noise or pauses without a seed, so that the files cannot be reproduced."""
    bundled_voice.make(tmp_path, synthesize_tone)
    assert read_files(tmp_path) == read_files(created_samples)


def audio_between(samples: np.ndarray, rows: list[dict]) -> np.ndarray:
    """Return the samples between the segments of a recording."""
    is_between = np.ones(len(samples), bool)
    for row in rows:
        is_between[round(float(row["start"]) * RATE) - 24:round(float(row["end"]) * RATE) + 24] = False
    return samples[is_between]


@pytest.mark.parametrize("source", ["created", "bundled"])
def test_the_table_matches_the_recording(source, created_samples):
    """Mistake: segment times that do not match the audio, or a segment that is missing or silent."""
    folder = created_samples if source == "created" else SAMPLES
    rows = read_table(folder / "recording.csv")
    samples, rate = soundfile.read(folder / "recording.flac", dtype="float32")
    assert rate == RATE and samples.ndim == 1
    kinds = Counter(row["kind"] for row in rows)
    assert kinds == {"sentence": 15, "interruption": 3, "repeat": 2, "false start": 2, "cough": 2, "click": 1}
    for row in rows:
        segment = samples[round(float(row["start"]) * RATE):round(float(row["end"]) * RATE)]
        assert np.abs(segment).max() > 0.08
        assert row["speaker"] == {"interruption": "george", "cough": "", "click": ""}.get(row["kind"], "emma")
    noise = audio_between(samples, rows)
    assert np.abs(noise).max() < 0.012
    assert 20 * np.log10(np.sqrt((noise ** 2).mean())) == pytest.approx(-55, abs=0.5)


@pytest.mark.parametrize("source", ["created", "bundled"])
def test_pauses_have_the_intended_lengths(source, created_samples):
    """Mistake: the long pause is inside a sentence, or all pauses are equally long."""
    rows = read_table((created_samples if source == "created" else SAMPLES) / "recording.csv")
    pauses = [float(after["start"]) - float(before["end"]) for before, after in itertools.pairwise(rows)]
    short_pauses = [pause for pause in pauses if pause < 5]
    assert len(short_pauses) == len(pauses) - 1 and max(pauses) == pytest.approx(8, abs=0.01)
    assert 0.29 < min(short_pauses) < 0.5 and 2.2 < max(short_pauses) < 2.51
    assert rows[pauses.index(max(pauses))]["kind"] == "sentence"
    for index, row in enumerate(rows):
        if row["kind"] in ("repeat", "false start"):
            assert rows[index + 1]["text"].startswith(row["text"]) and rows[index + 1]["kind"] == "sentence"


@pytest.mark.parametrize(("part", "min_seconds", "max_seconds"), [("voice", 185, 360), ("held_out", 25, 60)])
def test_the_bundled_clips_match_their_table(part, min_seconds, max_seconds):
    """Mistake: a clip that is not in the table, has another sample rate, or has speech at its very edge."""
    rows = read_table(SAMPLES / part / "metadata.csv")
    assert {row["file_name"] for row in rows} == {path.name for path in (SAMPLES / part).glob("*.flac")}
    seconds = 0.0
    for row in rows:
        info = soundfile.info(SAMPLES / part / row["file_name"])
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
        samples, _ = soundfile.read(SAMPLES / part / row["file_name"], dtype="float32")
        loud_samples = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max())
        assert loud_samples[0] > 0.05 * RATE and len(samples) - loud_samples[-1] > 0.2 * RATE
        assert re.fullmatch(rf"{row['recording']}_\d\d\.flac", row["file_name"])
        seconds += info.duration
    assert min_seconds < seconds < max_seconds


def test_the_parts_are_small_and_share_no_sentence():
    """Mistake: held-out sentences that are also trained on, or large files that stay in the git history."""
    names = ("voice/metadata.csv", "held_out/metadata.csv", "recording.csv")
    texts = [{row["text"] for row in read_table(SAMPLES / name)} - {""} for name in names]
    assert not texts[0] & texts[1] and not (texts[0] | texts[1]) & texts[2]
    assert len(texts[0]) == len(read_table(SAMPLES / names[0])) and len(texts[1]) >= 12
    assert 90 <= soundfile.info(SAMPLES / "recording.flac").duration <= 150
    assert sum(map(len, (*read_files(SAMPLES / "voice").values(), *read_files(SAMPLES / "held_out").values()))) < 8e6
    readme = (SAMPLES / "README.md").read_text(encoding="utf-8")
    seconds = sum(soundfile.info(path).duration for path in (SAMPLES / "voice").glob("*.flac"))
    assert f"{len(texts[0])} clips, {seconds / 60:.1f} minutes" in readme


def test_the_other_speakers_are_distinct(created_samples):
    """Mistake: the voice itself, or the same clip twice, among the other speakers that define the lower bound of SIM."""
    names = {path.stem for path in (created_samples / "other_speakers").iterdir()}
    assert names == {path.stem for path in (SAMPLES / "other_speakers").iterdir()} == {
        voice.split("_")[1] for voice in bundled_voice.OTHER_VOICES}
    assert not names & set(bundled_voice.NAMES.values())
    assert len(set(read_files(SAMPLES / "other_speakers").values())) == len(names) == 6


def test_the_bundled_voices_are_not_in_the_training_set():
    """Mistake: the small model was pretrained on the voice that is to be fine-tuned."""
    excluded_voices = json.loads(sentences.EVALUATION_SET.read_text(encoding="utf-8"))["voices"]
    assert {bundled_voice.VOICE, bundled_voice.INTERRUPTING_VOICE} <= set(excluded_voices)
