"""Metric models: their scores for real speech, for damaged speech and for clips without speech."""

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
TEXTS = {name: row.rsplit(",", 2)[0].strip('"') for name, row in CLIPS}
NOT_INSTALLED = f"metric models are not installed: {metrics.INSTALL}"
installed = pytest.mark.skipif(bool(backends.missing_packages()), reason=NOT_INSTALLED)


@pytest.fixture(scope="module")
def metric_models():
    if backends.missing_packages():
        pytest.skip(NOT_INSTALLED)
    return backends.load_bundled(1)


@pytest.fixture(scope="module")
def clips():
    """Real clips of the bundled voice by their text."""
    return {text: audio.read(SAMPLE_VOICE / name, RATE) for name, text in TEXTS.items()}


@pytest.fixture(scope="module")
def measured(metric_models, clips):
    return {text: metric_models.measure(wave, RATE, text) for text, wave in clips.items()}


@pytest.fixture(scope="module")
def voices(measured):
    return {text: clip.embedding for text, clip in measured.items()}


def test_real_speech_has_a_low_wer(measured):
    """Mistake: the wrong sample rate, language or text normalization: a metric model that gives real speech a WER of 20
    %."""
    assert sum(clip.word_errors for clip in measured.values()) <= 0.08 * sum(clip.ref_words for clip in measured.values())
    assert all(clip.mos > 3.5 for clip in measured.values())


def test_cut_speech_has_errors_and_loudness_does_not_matter(metric_models, clips, measured, voices):
    """Mistake: loudness is not normalized (20 dB change SIM by 0.09), or a cut clip has no word errors."""
    text, wave = next(iter(clips.items()))
    quiet, cut = metric_models.measure(wave * 0.05, RATE, text), metric_models.measure(wave[:len(wave) // 2], RATE, text)
    assert cut.word_errors >= measured[text].word_errors + 2
    assert quiet.embedding @ measured[text].embedding > 0.999
    assert abs(quiet.mos - measured[text].mos) < 0.1


def test_silence_around_speech_does_not_change_sim(metric_models, clips, measured):
    """Mistake: clips are not trimmed, and a model that waits before it speaks counts as another speaker."""
    text, wave = next(iter(clips.items()))
    silence = np.zeros(2 * RATE, np.float32)
    padded = metric_models.embed(np.concatenate([silence, wave, silence]), RATE)
    assert padded @ measured[text].embedding > 0.99


def test_another_voice_has_a_lower_sim(metric_models, clips, voices):
    """Mistake: a SIM that says nothing about the speaker."""
    text, wave = next(iter(clips.items()))
    others = [embedding for other, embedding in voices.items() if other != text]
    higher = metric_models.embed(audio.resample(wave, RATE, round(0.8 * RATE)), RATE)
    assert scoring.similarity(voices[text], others) > scoring.similarity(higher, others) + 0.15


def test_other_speakers_have_a_lower_sim_than_the_voice(metric_models, clips, tmp_path):
    """Mistake: a clip of the voice among the other speakers, a missing file that stops everything, a range that is upside
    down."""
    references = {text: metric_models.measure_reference(wave, RATE, text) for text, wave in [*clips.items()][:4]}
    paths = sorted((SAMPLE_VOICE.parent / "other_speakers").glob("*.flac"))
    other_speakers = scoring.other_speakers([*paths, tmp_path / "gone.flac"], metric_models)
    floor, ceiling = scoring.similarity_range(references, other_speakers)
    assert len(other_speakers) == len(paths) >= 3 and floor < 0.8 < 0.85 < ceiling


def test_noise_lowers_the_mos(metric_models, clips, measured):
    """Mistake: a MOS that is the same for every clip."""
    text, wave = next(iter(clips.items()))
    noise = np.random.default_rng(0).normal(0, rms(wave) / 10 ** 0.5, len(wave)).astype(np.float32)
    assert metric_models.measure(wave + noise, RATE, text).mos < measured[text].mos - 1.0


def rms(wave):
    return float(np.sqrt((wave ** 2).mean()))


@pytest.mark.parametrize(("samples", "failure"), [
    (None, "missing"), (np.zeros(0, np.float32), "empty"), (np.zeros(RATE, np.float32), "silent"),
    (np.full(RATE, np.nan, np.float32), "broken")])
def test_a_clip_without_sound_has_only_word_errors(metric_models, samples, failure):
    """Mistake: silence counts as correct, is dropped, or is sent to an ASR model that invents words."""
    clip = metric_models.measure(samples, RATE, "Four words are here.")
    assert (clip.ref_words, clip.word_errors, clip.failure, clip.embedding) == (4, 4, failure, None)


def test_missing_and_silent_files_have_different_reasons(tmp_path):
    """Mistake: an unreadable or silent sample stops the scoring of all others."""
    audio.write(tmp_path / "silent.flac", np.zeros(RATE, np.float32), RATE)
    (tmp_path / "text.flac").write_text("no audio")
    reasons = [metrics.unusable_reason(metrics.read(tmp_path / name), RATE) for name in ("silent.flac", "text.flac",
                                                                                         "none.flac")]
    assert reasons == ["silent", "broken", "missing"]


@installed
@pytest.mark.parametrize(("text", "transcript"), [
    ("It's here (really).", "It’s here, really!"), ("I can't; it is okay.", "I cannot. It is OK."),
    ("My number is four one five zero.", "My number is 4-1-5-0."), ("It starts at 3:30.", "It starts at 330"),
    ("It costs eighty five dollars.", "It costs $85."), ("On the third of October.", "on the 3rd of October"),
    ("We meet at eleven o'clock.", "We meet at 11:00."), ("Room ninety one or one?", "Room 91 or 1?"),
    ("Well... it is three point five, is it?", "Well, it is 3.5… Is it?")])
def test_spelling_does_not_count_as_an_error(text, transcript):
    """Mistake: a WER 13 points too high, from spelling alone; or words deleted because they are in brackets."""
    assert wer.edit_counts(text, transcript)[0] == 0 and wer.length(text)[0] >= 4


@installed
def test_word_errors_are_counted(metric_models):
    """Mistake: added words are free, or a text in brackets has no words at all."""
    assert wer.edit_counts("one two three four", "one two tree four five")[0] == 2
    assert wer.edit_counts("Hello there.", "hello there hello there hello there")[0] == 4
    assert wer.edit_counts("Hello there.", "")[0] == 2
    assert wer.normalize("(all of) [this] <counts>") == "all of this counts"


@installed
def test_cer_ignores_word_boundaries():
    """Mistake: "touchtone" for "touch tone" costs three characters, or one wrong character counts as much as a wrong
    word."""
    assert wer.edit_counts("touch tone phone", "touchtone phone") == (2, 0)
    assert wer.edit_counts("a cold wind", "a gold wind") == (1, 1)
    assert wer.length("It's (really) cold.") == (4, 14) and wer.edit_counts("Hello there.", "") == (2, 10)


@installed
def test_a_text_without_words_has_no_wer(metric_models, clips):
    """Mistake: "..." or "!" divides by zero, or every recognized word counts as an error."""
    wave = next(iter(clips.values()))
    clip, silent = metric_models.measure(wave, RATE, "... !"), metric_models.measure(wave * 0, RATE, "... !")
    assert (clip.ref_words, clip.word_errors, clip.ref_chars, clip.char_errors) == (0, None, 0, None)
    assert silent.failure == "silent" and silent.word_errors is None and clip.embedding is not None


@installed
def test_sound_without_words_is_a_named_failure(metric_models):
    """Mistake: hum or hiss passes as speech with some word errors."""
    hum = (0.2 * np.sin(np.arange(2 * RATE) * 2 * np.pi * 50 / RATE)).astype(np.float32)
    clip = metric_models.measure(hum, RATE, "Four words are here.")
    assert clip.word_errors >= 4 and (clip.failure == metrics.NO_WORDS) == (not wer.normalize(clip.transcript))


@installed
def test_pitch_rate_and_duration_are_those_of_the_voice(metric_models, clips, measured):
    """Mistake: silence around the voice counts as slow speech, or a higher or faster voice gets the same values."""
    text, wave = next(iter(clips.items()))
    clip = measured[text]
    assert 140 < clip.f0 < 260 and 1.5 < clip.speech_rate < 6 and clip.speech_seconds < len(wave) / RATE
    assert clip.speech_rate == pytest.approx(len(wer.normalize(clip.transcript).split()) / clip.speech_seconds)
    faster = metric_models.measure_reference(audio.resample(wave, RATE, round(0.8 * RATE)), RATE, text)
    assert faster.f0 == pytest.approx(clip.f0 / 0.8, rel=0.04)
    assert faster.speech_seconds == pytest.approx(0.8 * clip.speech_seconds, rel=0.04)
    padded = metric_models.measure_reference(np.concatenate([np.zeros(2 * RATE, np.float32), wave]), RATE, text)
    assert padded.speech_seconds == pytest.approx(clip.speech_seconds, abs=0.05)


@installed
def test_hiss_is_noisy_and_low_loudness_is_not(metric_models, clips, measured):
    """Mistake: another output of the network, the wrong sample rate, or a clip that counts as noisy because it is quiet."""
    text, wave = next(iter(clips.items()))
    hiss = np.random.default_rng(0).normal(0, rms(wave) / 10, len(wave)).astype(np.float32)
    ground_truth = [clip.noise_mos for clip in measured.values()]
    assert backends.is_noisy(metric_models.measure_reference(wave + hiss, RATE, text).noise_mos, ground_truth)
    assert backends.is_noisy(metric_models.measure_reference(wave * 0.05, RATE, text).noise_mos, ground_truth) is False
    assert backends.is_noisy(None, ground_truth) is None and backends.is_noisy(3.0, [None]) is None


@installed
def test_dnsmos_equals_its_reference_implementation(clips):
    """Mistake: other segments, hops or polynomials than those of speechmos, whose values the literature uses."""
    speechmos = pytest.importorskip("speechmos.dnsmos", reason="speechmos' own class needs librosa and requests")
    clip = metrics.trimmed(next(iter(clips.values())), RATE)
    for wave in (clip, np.tile(clip, 1 + 12 * RATE // len(clip))):
        assert backends.load_dnsmos(1)(wave) == pytest.approx(speechmos.run(wave, RATE)["bak_mos"], abs=1e-4)


@installed
def test_a_metric_that_fails_on_one_clip_is_named(metric_models, clips):
    """Mistake: an hour of scoring is lost to one clip, or the clip counts as the worst or is dropped without a message."""
    import dataclasses

    def broken(wave):
        raise RuntimeError("no kernel for this")

    text, wave = next(iter(clips.items()))
    failing = dataclasses.replace(metric_models, transcribe=broken, embed_speaker=lambda wave: np.zeros(3),
                                  predict_noise_mos=None)
    clip = failing.measure(wave, RATE, text)
    assert clip.word_errors is None and clip.embedding is None and clip.mos > 3 and not clip.failure
    assert set(clip.failed) == {"wer", "sim"}
    assert "Whisper" in clip.failed["wer"] and "RuntimeError: no kernel for this" in clip.failed["wer"]
    assert "Resemblyzer" in clip.failed["sim"] and "not a number" in clip.failed["sim"]


@installed
def test_scoring_leaves_no_stub_modules(metric_models, clips):
    """Mistake: a stub stays in place of torchaudio."""
    metric_models.embed(next(iter(clips.values())), RATE)
    assert "torchaudio" not in sys.modules


def test_missing_packages_are_named_with_the_command(monkeypatch):
    """Mistake: a ModuleNotFoundError, or a demo that ends without reporting that nothing was measured."""
    monkeypatch.setattr(backends, "PACKAGES", ("numpy", "no_such_package"))
    with pytest.raises(KitError, match="no_such_package.*pip install .*eval.*--no-deps"):
        metrics.load()
    assert metrics.load_available() == ""


@installed
def test_weights_that_are_not_the_tested_ones_are_refused(tmp_path, monkeypatch):
    """Mistake: another upload under the same name is used for scoring, or a half-written file is kept."""
    monkeypatch.setattr(transcribe, "CACHE", tmp_path / "whole")
    whole = transcribe.bundled_whisper()
    assert {path.name for path in whole.iterdir()} >= {"model.bin", "config.json", "tokenizer.json", "vocabulary.txt"}
    monkeypatch.setitem(transcribe.SHA256, transcribe.BUNDLED, "0" * 64)
    monkeypatch.setattr(transcribe, "CACHE", tmp_path / "other")
    with pytest.raises(KitError, match="are not the tested ones"):
        transcribe.bundled_whisper()
    assert not (tmp_path / "other").exists()
