"""Audio files and waveforms: what is read, what is refused with which message, and what stays unchanged."""

import io
import struct

import numpy as np
import pytest
import soundfile

from tts_kit import audio
from tts_kit.errors import KitError

RATE = 24_000


def tone(seconds: float, rate: int = RATE, frequency: float = 220.0, amplitude: float = 0.3) -> np.ndarray:
    return (amplitude * np.sin(2 * np.pi * frequency * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


@pytest.mark.parametrize(("suffix", "subtype", "rate", "channels"), [
    (".wav", "PCM_16", 24_000, 1), (".wav", "PCM_24", 44_100, 2), (".wav", "FLOAT", 48_000, 1),
    (".flac", "PCM_24", 44_100, 2), (".mp3", "MPEG_LAYER_III", 44_100, 1), (".ogg", "VORBIS", 16_000, 2),
])
def test_common_formats_are_read(tmp_path, suffix, subtype, rate, channels):
    """Mistake: wrong pitch, length or level from another sample rate, another bit depth or a second channel."""
    path = tmp_path / f"clip{suffix}"
    soundfile.write(path, np.stack([tone(1.0, rate)] * channels, axis=1), rate, subtype=subtype)
    samples = audio.read(path, RATE)
    assert samples.dtype == np.float32 and samples.ndim == 1
    assert abs(len(samples) - RATE) <= 2
    assert audio.probe(path) == (rate, channels, 1.0)
    middle = samples[RATE // 4:3 * RATE // 4]
    assert np.abs(np.fft.rfft(middle)).argmax() * 2 == pytest.approx(220, abs=2)
    assert middle.max() == pytest.approx(0.3, abs=0.02)


def test_stereo_is_mixed_down(tmp_path):
    """Mistake: one channel is taken, and a speaker recorded on the other is lost."""
    path = tmp_path / "right.wav"
    soundfile.write(path, np.stack([np.zeros(RATE), tone(1.0)], axis=1), RATE)
    assert np.abs(audio.read(path, RATE)).max() == pytest.approx(0.15, abs=0.01)


def test_resampling_does_not_alias(tmp_path):
    """Mistake: decimation without a filter: 20 kHz comes back as a whistle at 4 kHz."""
    path = tmp_path / "high.wav"
    soundfile.write(path, tone(1.0, 48_000, 20_000) + tone(1.0, 48_000, 100, 0.05), 48_000)
    spectrum = np.abs(np.fft.rfft(audio.read(path, RATE)))
    assert spectrum[3_900:4_100].max() < 0.01 * spectrum[100]


def write_float(path, samples, rate=RATE):
    soundfile.write(path, np.asarray(samples, dtype=np.float32), rate, subtype="FLOAT")


@pytest.mark.parametrize(("write", "messages"), [
    (lambda path: None, ["missing", "Put it there"]),
    (lambda path: path.write_bytes(b""), ["empty (0 bytes)", "Copy it again"]),
    (lambda path: path.write_bytes(b"this is no sound" * 100), ["cannot be read as audio", "export it"]),
    (lambda path: path.mkdir(), ["missing"]),
    (lambda path: write_float(path, []), ["zero length", "Record it again"]),
    (lambda path: write_float(path, [0.1, np.nan] * RATE), ["not numbers (NaN", "Export it again"]),
    (lambda path: write_float(path, [0.1, np.inf] * RATE), ["not numbers (NaN", "Export it again"]),
    (lambda path: write_float(path, tone(1.0, amplitude=0.0009)), ["silent", "-60 dBFS", "Record it again"]),
    (lambda path: write_float(path, tone(1.0, 8_000), 8_000),
     ["8 kHz telephone audio has nothing above 4 kHz", "wanted 16 kHz or more", "original recording"]),
])
def test_bad_files_are_named_with_a_remedy(tmp_path, write, messages):
    """Mistake: a broken file becomes a training clip, or the error does not say what to do."""
    path = tmp_path / "clip.wav"
    write(path)
    with pytest.raises(KitError) as caught:
        audio.read(path, RATE)
    for message in (str(path), *messages):
        assert message in str(caught.value)


def test_a_truncated_file_is_refused():
    """Mistake: the end of a sentence is trained on a clip whose copy stopped half-way."""
    buffer = io.BytesIO()
    soundfile.write(buffer, np.random.default_rng(0).normal(0, 0.1, 10 * RATE), RATE, format="MP3")
    with pytest.raises(KitError, match="ends after"):
        audio.read(buffer.getvalue()[:len(buffer.getvalue()) // 3], RATE)


def test_a_long_file_is_refused_before_decoding(tmp_path, monkeypatch):
    """Mistake: hours of audio are decoded only to report that they are too long."""
    path = tmp_path / "lecture.wav"
    size = 3 * 3600 * RATE * 2
    with path.open("wb") as file:
        file.write(b"RIFF" + struct.pack("<I", 36 + size))
        file.write(b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, RATE, RATE * 2, 2, 16))
        file.write(b"data" + struct.pack("<I", size))
        file.truncate(44 + size)
    monkeypatch.setattr(soundfile.SoundFile, "read", lambda *_, **__: pytest.fail("decoded"))
    with pytest.raises(KitError) as caught:
        audio.read(path, RATE, max_seconds=30)
    assert str(caught.value) == f"{path} lasts 10800.0 s; the limit is 30 s. Split it or raise max_seconds."


def test_bytes_read_like_a_file(tmp_path):
    """Mistake: a second code path for embedded audio, with errors that cannot name it."""
    path = tmp_path / "clip.flac"
    soundfile.write(path, tone(1.0), RATE)
    assert np.array_equal(audio.read(path.read_bytes(), RATE), audio.read(path, RATE))
    with pytest.raises(KitError, match="row 3 of owner/voices cannot be read"):
        audio.read(b"nothing", RATE, name="row 3 of owner/voices")


@pytest.mark.parametrize("suffix", [".wav", ".flac"])
def test_writing_clips_instead_of_wrapping(tmp_path, suffix):
    """Mistake: a loud sample wraps round to the other sign, which is audible as a crack."""
    path = tmp_path / f"loud{suffix}"
    samples = tone(0.5, amplitude=2.0)
    audio.write(path, samples, RATE)
    stored, rate = soundfile.read(path)
    assert rate == RATE and soundfile.info(path).subtype == "PCM_16"
    assert np.abs(stored - np.clip(samples, -1, 1)).max() < 1e-4


def test_failed_writing_keeps_the_old_file(tmp_path):
    """Mistake: a good file is lost to samples that are not numbers, or to an unsupported format."""
    path = tmp_path / "clip.wav"
    audio.write(path, tone(0.5), RATE)
    before = path.read_bytes()
    with pytest.raises(KitError, match="NaN"):
        audio.write(path, np.array([0.1, np.nan], dtype=np.float32), RATE)
    with pytest.raises(KitError, match=".wav or .flac"):
        audio.write(tmp_path / "clip.mp3", tone(0.5), RATE)
    assert path.read_bytes() == before and [path.name for path in tmp_path.iterdir()] == ["clip.wav"]


@pytest.mark.parametrize(("rate", "stored_rate"), [(24_000, 24_000), (20_000, 22_050), (96_000, 48_000)])
def test_compressed_audio_keeps_its_duration(rate, stored_rate):
    """Mistake: MP3 is refused for an odd sample rate, played at the wrong speed because of it, or exceeds full scale."""
    content, mime = audio.encode_lossy(tone(1.0, rate, amplitude=2.0), rate)
    assert mime == "audio/mpeg" and len(content) < 30_000 and audio.probe(content)[0] == stored_rate
    decoded = audio.read(content, RATE)
    assert len(decoded) == pytest.approx(RATE, abs=200) and np.abs(decoded).max() < 1.5


def test_loudness_of_short_and_silent_clips():
    """Mistake: pyloudnorm refuses a clip under 0.4 s, or minus infinity becomes a huge gain."""
    assert audio.loudness(tone(0.1), RATE) == pytest.approx(audio.loudness(tone(2.0), RATE), abs=0.5)
    for silence in (np.zeros(RATE, dtype=np.float32), np.zeros(0, dtype=np.float32)):
        assert audio.loudness(silence, RATE) == -np.inf
        assert np.array_equal(audio.normalize_loudness(silence, RATE), silence)


def test_loudness_reaches_its_target_and_peaks_are_limited():
    """Mistake: clips of different loudness, or normalization that clips a peak."""
    assert audio.loudness(audio.normalize_loudness(tone(2.0, amplitude=0.02), RATE), RATE) == pytest.approx(-20, abs=0.1)
    click = tone(2.0, amplitude=0.01)
    click[RATE] = 0.5
    assert np.abs(audio.normalize_loudness(click, RATE)).max() == pytest.approx(10 ** (-1 / 20), abs=1e-4)


def test_trim_keeps_a_lead_and_a_fixed_tail():
    """Mistake: clips end at different distances from the speech, and the model never learns to stop."""
    hiss = np.random.default_rng(0).normal(0, 0.0005, 10 * RATE).astype(np.float32)
    for before, after in ((2.0, 3.0), (0.04, 0.1), (0.0, 0.0)):
        samples = np.concatenate([np.zeros(round(before * RATE)), tone(1.0), np.zeros(round(after * RATE))])
        trimmed = audio.trim(samples + hiss[:len(samples)], RATE)
        assert len(trimmed) / RATE == pytest.approx(min(before, 0.1) + 1.0 + 0.25, abs=0.041)
    assert not trimmed[-RATE // 5:].any()
    word = np.concatenate([np.zeros(10 * RATE), tone(0.4), np.zeros(10 * RATE)])
    assert len(audio.trim(word, RATE)) / RATE == pytest.approx(0.75, abs=0.041), "a word in long silence"


def test_trim_works_on_a_noisy_recording():
    """Mistake: a threshold below the recording's noise, so that nothing is trimmed."""
    noise = np.random.default_rng(0).normal(0, 0.003, 3 * RATE).astype(np.float32)
    noise[RATE:2 * RATE] += tone(1.0)
    assert len(audio.trim(noise, RATE)) / RATE == pytest.approx(1.35, abs=0.05)


def test_the_player_embeds_its_audio_and_escapes_its_label():
    """Mistake: a player that points to a file which is deleted later, or markup in a label."""
    page = audio.player(tone(0.5), RATE, label="<b>a & b</b>")._repr_html_()
    assert "data:audio/mpeg;base64," in page and "&lt;b&gt;a &amp; b&lt;/b&gt;" in page and "<b>" not in page


@pytest.mark.parametrize("seconds", [0.0, 0.01, 2.0])
def test_a_spectrogram_has_the_given_size_and_shows_the_pitch(seconds):
    """Mistake: an upside-down picture, or a crash on an empty or tiny clip."""
    from matplotlib.image import imread

    picture = imread(io.BytesIO(audio.spectrogram_png(tone(seconds, frequency=3_000), RATE, width=120, height=64)))
    assert picture.shape[:2] == (64, 120)
    if seconds == 2.0:
        brightest = 63 - picture[:, 60].argmax()
        mel = [np.log10(1 + frequency / 700) for frequency in (3_000, 12_000)]
        assert brightest == pytest.approx(64 * mel[0] / mel[1], abs=2)


def test_true_peaks_stay_below_the_limit():
    """Mistake: a limit that looks at samples only, so that a player clips between them."""
    tone = np.sin(np.pi / 2 * np.arange(4000) + np.pi / 4).astype(np.float32)  # no sample is at its peaks
    assert np.abs(tone).max() == pytest.approx(0.707, abs=1e-3)
    assert audio.true_peak(tone) == pytest.approx(1.0, abs=0.03)
    assert audio.true_peak(audio.amplify(tone, 5.0)) == pytest.approx(audio.MAX_TRUE_PEAK, abs=0.01)
    assert audio.true_peak(np.zeros(0, np.float32)) == 0.0
