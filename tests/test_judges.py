"""Judges: what they say of real speech, of the same speech damaged, and of none."""

import sys

import numpy as np
import pytest

from tts_kit import audio, story
from tts_kit.data import whisper
from tts_kit.judging import judges, noise, offline, scores, spelling
from tts_kit.problem import Problem

RATE = judges.RATE
CLIPS = [line.split(",", 1) for line in (story.VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:9]]
SAID = {name: row.rsplit(",", 2)[0].strip('"') for name, row in CLIPS}
installed = pytest.mark.skipif(bool(offline.missing()), reason=f"judges are not installed: {judges.INSTALL}")


@pytest.fixture(scope="module")
def listeners():
    if offline.missing():
        pytest.skip(f"judges are not installed: {judges.INSTALL}")
    return judges.load(1, wanted="offline")


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


def test_strangers_are_less_alike_than_the_voice_itself(listeners, clips, tmp_path):
    """Mistake: a clip of the voice itself among its strangers, one that is gone stops all, a scale that is upside down."""
    known = {text: listeners.know(wave, RATE, text) for text, wave in [*clips.items()][:4]}
    paths = sorted((story.VOICE.parent / "strangers").glob("*.flac"))
    others = scores.strangers([*paths, tmp_path / "gone.flac"], listeners)
    floor, ceiling = scores.scale(known, others)
    assert len(others) == len(paths) >= 3 and floor < 0.8 < 0.85 < ceiling


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
    assert found == ["silent", "broken", "missing"]


@installed
@pytest.mark.parametrize(("text", "heard"), [
    ("It's here (really).", "It’s here, really!"), ("I can't; it is okay.", "I cannot. It is OK."),
    ("My number is four one five zero.", "My number is 4-1-5-0."), ("It starts at 3:30.", "It starts at 330"),
    ("It costs eighty five dollars.", "It costs $85."), ("On the third of October.", "on the 3rd of October"),
    ("We meet at eleven o'clock.", "We meet at 11:00."), ("Room ninety one or one?", "Room 91 or 1?"),
    ("Well... it is three point five, is it?", "Well, it is 3.5… Is it?")])
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
    assert spelling.normalised("(all of) [this] <counts>") == "all of this counts"


@installed
def test_letters_are_counted_wherever_words_are_parted():
    """Mistake: "touchtone" for "touch tone" costs three letters; or one wrong letter counts as much as a wrong word."""
    assert spelling.count_wrong("touch tone phone", "touchtone phone") == (2, 0)
    assert spelling.count_wrong("a cold wind", "a gold wind") == (1, 1)
    assert spelling.size("It's (really) cold.") == (4, 14) and spelling.count_wrong("Hello there.", "") == (2, 10)


@installed
def test_a_text_without_words_is_no_mistake(listeners, clips):
    """Mistake: "..." or "!" divides by zero, or every sound heard in it counts as a wrong word."""
    wave = next(iter(clips.values()))
    found, silent = listeners.judge(wave, RATE, "... !"), listeners.judge(wave * 0, RATE, "... !")
    assert (found.words, found.wrong_words, found.letters, found.wrong_letters) == (0, None, 0, None)
    assert silent.failure == "silent" and silent.wrong_words is None and found.embedding is not None


@installed
def test_sound_without_words_is_a_named_failure(listeners):
    """Mistake: hum or hiss passes as speech in which some words are wrong."""
    hum = (0.2 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 50 / RATE)).astype(np.float32)
    found = listeners.judge(hum, RATE, "Four words are here.")
    assert found.wrong_words >= 4 and (found.failure == judges.NO_WORDS) == (not spelling.normalised(found.heard))


@installed
def test_pitch_pace_and_length_are_those_of_the_voice(listeners, clips, judged):
    """Mistake: silence around the voice counts as slow speech; a higher or faster voice is measured as the same."""
    text, wave = next(iter(clips.items()))
    real = judged[text]
    assert 140 < real.pitch < 260 and 1.5 < real.pace < 6 and real.seconds < len(wave) / RATE
    assert real.pace == pytest.approx(len(spelling.normalised(real.heard).split()) / real.seconds)
    faster = listeners.know(audio.resample(wave, RATE, round(0.8 * RATE)), RATE, text)
    assert faster.pitch == pytest.approx(real.pitch / 0.8, rel=0.04)
    assert faster.seconds == pytest.approx(0.8 * real.seconds, rel=0.04)
    late = listeners.know(np.concatenate([np.zeros(2 * RATE, np.float32), wave]), RATE, text)
    assert late.seconds == pytest.approx(real.seconds, abs=0.05)


@installed
def test_hiss_is_noisier_and_level_is_not(listeners, clips, judged):
    """Mistake: another output of the network, the wrong rate, or a clip that counts as noisy because it is quiet."""
    text, wave = next(iter(clips.items()))
    hiss = np.random.default_rng(0).normal(0, audio_rms(wave) / 10, len(wave)).astype(np.float32)
    real = [each.noise for each in judged.values()]
    assert noise.is_noisier(listeners.know(wave + hiss, RATE, text).noise, real)
    assert noise.is_noisier(listeners.know(wave * 0.05, RATE, text).noise, real) is False
    assert noise.is_noisier(None, real) is None and noise.is_noisier(3.0, [None]) is None


@installed
def test_noise_is_judged_as_its_authors_do(clips):
    """Mistake: pieces, places or polynomials other than speechmos', whose figures the literature knows."""
    speechmos = pytest.importorskip("speechmos.dnsmos", reason="speechmos' own class needs librosa and requests")
    clip = judges.prepared(next(iter(clips.values())), RATE)
    for wave in (clip, np.tile(clip, 1 + 12 * RATE // len(clip))):
        assert noise.judge(1)(wave) == pytest.approx(speechmos.run(wave, RATE)["bak_mos"], abs=1e-4)


@installed
def test_a_judge_that_breaks_down_on_one_clip_is_named(listeners, clips):
    """Mistake: an hour of judging is lost by one clip, or the clip counts as the worst, or vanishes without a word."""
    import dataclasses

    def broken(wave):
        raise RuntimeError("no kernel for this")

    text, wave = next(iter(clips.items()))
    deaf = dataclasses.replace(listeners, transcribe=broken, recognise=lambda wave: np.zeros(3), listen_for_noise=None)
    found = deaf.judge(wave, RATE, text)
    assert found.wrong_words is None and found.embedding is None and found.naturalness > 3 and not found.failure
    assert set(found.failed) == {"words", "voice"}
    assert "Whisper" in found.failed["words"] and "RuntimeError: no kernel for this" in found.failed["words"]
    assert "Resemblyzer" in found.failed["voice"] and "no number" in found.failed["voice"]


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
        judges.load(wanted="offline")
    assert judges.present(wanted="offline") == ""


@installed
def test_weights_that_are_not_the_tested_ones_are_refused(tmp_path, monkeypatch):
    """Mistake: another upload under the same name becomes the judge, or a half-written file is kept."""
    whole = whisper.folder(tmp_path / "whole")
    assert {path.name for path in whole.iterdir()} >= {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    monkeypatch.setattr(whisper, "HASH", "0" * 64)
    with pytest.raises(Problem, match="are not the tested ones"):
        whisper.folder(tmp_path / "other")
    assert not (tmp_path / "other").exists()
