"""The bundled voice: how it is made, and the files that travel with the kit."""

import csv
import itertools
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sample_data.build import bundle, sentences

SAMPLES = Path(__file__).parent.parent / "sample_data"
RATE = 24_000


def hum(text: str, voice: str, speed: float) -> np.ndarray:
    """A tone between two silences, another one for every sentence and voice."""
    number = sum(f"{text}{voice}".encode())
    tone = 0.2 * np.sin(np.arange(round((12_000 + number % 7_000) / speed)) * (0.05 + number % 97 / 500))
    return np.pad(tone, (number % 3_000, 4_000)).astype(np.float32)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    """The three parts, hummed instead of spoken."""
    folder = tmp_path_factory.mktemp("samples")
    bundle.make(folder, hum)
    return folder


def table(path: Path) -> list[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def contents(folder: Path) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_bundled_sentence_has_one_place(made):
    """Mistake: a sentence that is learned and judged by, or one that no part says."""
    said = [row["text"] for part in ("voice", "held_out") for row in table(made / part / "metadata.csv")]
    said += [row["text"] for row in table(made / "recording.csv") if row["kind"] in ("sentence", "interruption")]
    assert Counter(said) == Counter(sentences.judging().bundled)


def test_recordings_are_told_apart(made):
    """Mistake: one recording's clips at another's pace, or two parts that name a recording alike."""
    rows = table(made / "voice" / "metadata.csv")
    assert Counter(row["recording"] for row in rows) == {f"session{number:02d}": 7 for number in range(1, 11)}
    assert [row["file_name"] for row in rows[6:8]] == ["session01_07.flac", "session02_01.flac"]
    held_out = table(made / "held_out" / "metadata.csv")
    assert Counter(row["recording"] for row in held_out) == {"later01": 6, "later02": 6}
    assert {row["source"] for row in rows + held_out} == {"emma"}
    assert len(bundle.SPEEDS) == len(bundle.LOUDNESS) == 10


def test_making_it_again_gives_the_same_bytes(made, tmp_path):
    """Mistake: noise or pauses without a seed, so that nobody can check where the files came from."""
    bundle.make(tmp_path, hum)
    assert contents(tmp_path) == contents(made)


def outside(samples: np.ndarray, rows: list[dict]) -> np.ndarray:
    """What of the take is between the pieces."""
    quiet = np.ones(len(samples), bool)
    for row in rows:
        quiet[round(float(row["start"]) * RATE) - 24:round(float(row["end"]) * RATE) + 24] = False
    return samples[quiet]


@pytest.mark.parametrize("where", ["made", "bundled"])
def test_the_truth_fits_the_take(where, made):
    """Mistake: times that slid against the sound, a piece that is missing, or one that is silent."""
    folder = made if where == "made" else SAMPLES
    rows = table(folder / "recording.csv")
    samples, rate = soundfile.read(folder / "recording.flac", dtype="float32")
    assert rate == RATE and samples.ndim == 1
    kinds = Counter(row["kind"] for row in rows)
    assert kinds == {"sentence": 15, "interruption": 3, "repeat": 2, "false start": 2, "cough": 2, "click": 1}
    for row in rows:
        piece = samples[round(float(row["start"]) * RATE):round(float(row["end"]) * RATE)]
        assert np.abs(piece).max() > 0.08
        assert row["speaker"] == {"interruption": "george", "cough": "", "click": ""}.get(row["kind"], "emma")
    room = outside(samples, rows)
    assert np.abs(room).max() < 0.012
    assert 20 * np.log10(np.sqrt((room ** 2).mean())) == pytest.approx(-55, abs=0.5)


@pytest.mark.parametrize("where", ["made", "bundled"])
def test_pauses_are_as_told(where, made):
    """Mistake: a long pause inside a sentence that was begun, or pauses that are all alike."""
    rows = table((made if where == "made" else SAMPLES) / "recording.csv")
    pauses = [float(after["start"]) - float(before["end"]) for before, after in itertools.pairwise(rows)]
    usual = [pause for pause in pauses if pause < 5]
    assert len(usual) == len(pauses) - 1 and max(pauses) == pytest.approx(8, abs=0.01)
    assert 0.29 < min(usual) < 0.5 and 2.2 < max(usual) < 2.51
    assert rows[pauses.index(max(pauses))]["kind"] == "sentence"
    for number, row in enumerate(rows):
        if row["kind"] in ("repeat", "false start"):
            assert rows[number + 1]["text"].startswith(row["text"]) and rows[number + 1]["kind"] == "sentence"


@pytest.mark.parametrize(("part", "least", "most"), [("voice", 185, 360), ("held_out", 25, 60)])
def test_the_files_that_travel_with_the_kit(part, least, most):
    """Mistake: a clip that the table does not name, of another rate, or with words at its very edge."""
    rows = table(SAMPLES / part / "metadata.csv")
    assert {row["file_name"] for row in rows} == {path.name for path in (SAMPLES / part).glob("*.flac")}
    seconds = 0.0
    for row in rows:
        info = soundfile.info(SAMPLES / part / row["file_name"])
        assert (info.samplerate, info.channels, info.subtype) == (RATE, 1, "PCM_16")
        samples, _ = soundfile.read(SAMPLES / part / row["file_name"], dtype="float32")
        loud = np.flatnonzero(np.abs(samples) > 0.1 * np.abs(samples).max())
        assert loud[0] > 0.05 * RATE and len(samples) - loud[-1] > 0.2 * RATE
        assert re.fullmatch(rf"{row['recording']}_\d\d\.flac", row["file_name"])
        seconds += info.duration
    assert least < seconds < most


def test_the_parts_travel_light_and_share_nothing():
    """Mistake: held-out sentences that are learned after all, or megabytes that stay in the history."""
    names = ("voice/metadata.csv", "held_out/metadata.csv", "recording.csv")
    said = [{row["text"] for row in table(SAMPLES / name)} - {""} for name in names]
    assert not said[0] & said[1] and not (said[0] | said[1]) & said[2]
    assert len(said[0]) == len(table(SAMPLES / names[0])) and len(said[1]) >= 12
    assert 90 <= soundfile.info(SAMPLES / "recording.flac").duration <= 150
    assert sum(map(len, (*contents(SAMPLES / "voice").values(), *contents(SAMPLES / "held_out").values()))) < 8e6
    told = (SAMPLES / "README.md").read_text(encoding="utf-8")
    seconds = sum(soundfile.info(path).duration for path in (SAMPLES / "voice").glob("*.flac"))
    assert f"{len(said[0])} clips, {seconds / 60:.1f} minutes" in told


def test_the_strangers_are_strangers(made):
    """Mistake: the voice itself, or one clip twice, among those whose similarity is called the floor."""
    there = {path.stem for path in (made / "strangers").iterdir()}
    assert there == {path.stem for path in (SAMPLES / "strangers").iterdir()} == {
        voice.split("_")[1] for voice in bundle.STRANGERS}
    assert not there & set(bundle.NAMES.values()) and len(set(contents(SAMPLES / "strangers").values())) == len(there) == 6


def test_the_voices_are_kept_out_of_training():
    """Mistake: the voice to learn is one that the small model already knows."""
    assert {bundle.VOICE, bundle.OTHER} <= set(json.loads(sentences.JUDGING.read_text(encoding="utf-8"))["voices"])
