"""The watermark of synthetic speech: equal to Perth's, detected again, inaudible, and loaded without unpickling."""

import io
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from tts_kit import audio, watermark
from tts_kit.cli import main
from tts_kit.errors import KitError
from tts_kit.io import read_json
from tts_kit.run import SAMPLE_DATA, TINY_CSM

RATE = 24_000
VOICE = SAMPLE_DATA / "held_out" / "later01_01.flac"


@pytest.fixture(scope="module")
def speech():
    """A clip of the bundled voice."""
    return audio.read(VOICE, RATE)


@pytest.fixture(scope="module")
def marked(speech):
    return watermark.apply(speech, RATE)


def decibels(before: np.ndarray, after: np.ndarray) -> float:
    """Return the level of the speech above that of the change, in dB."""
    return 10 * np.log10((before.astype(np.float64) ** 2).sum() / ((after - before).astype(np.float64) ** 2).sum())


def high_frequencies(wave: np.ndarray) -> np.ndarray:
    """Return the wave without frequencies below 2.2 kHz."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    return np.fft.irfft(np.where(np.fft.rfftfreq(len(wave), 1 / RATE) > 2_200, spectrum, 0), len(wave))


def test_the_watermark_is_detected_in_marked_speech_only(speech, marked):
    """Mistake: a detector that detects a watermark everywhere, or nowhere."""
    other_speakers = [audio.read(path, RATE) for path in sorted((SAMPLE_DATA / "other_speakers").glob("*.flac"))]
    assert watermark.detect(marked, RATE) > 0.9
    assert max(watermark.detect(wave, RATE) for wave in [speech, *other_speakers]) < 0.1
    assert min(watermark.detect(watermark.apply(wave, RATE), RATE) for wave in other_speakers) > 0.9


def test_the_watermark_is_quiet_and_below_two_kilohertz(speech, marked):
    """Mistake: speech is resampled for the watermark and loses high frequencies, its length or its alignment."""
    assert marked.dtype == np.float32 and marked.shape == speech.shape and np.abs(marked).max() <= 1
    assert decibels(speech, marked) > 13, "the watermark is far below the speech"
    assert decibels(high_frequencies(speech), high_frequencies(marked)) > 30, "and only where Perth puts it"
    np.testing.assert_array_equal(watermark.apply(speech, RATE), marked)


def test_the_watermark_equals_perths(speech, marked, monkeypatch):
    """Mistake: the kit's copy of the network adds something else, which other detectors of Perth do not detect."""
    for package in ("yaml", "scipy"):
        pytest.importorskip(package, reason=f"Perth's own code needs {package}")
    _without_torchaudio(monkeypatch)
    from perth.perth_net.perth_net_implicit.perth_watermarker import PerthImplicitWatermarker

    perth = PerthImplicitWatermarker()
    wave = audio.resample(speech, RATE, watermark.SAMPLE_RATE)
    with torch.inference_mode():
        expected = perth.apply_watermark(wave, watermark.SAMPLE_RATE)
        marked_wave = watermark.apply(wave, watermark.SAMPLE_RATE)[:len(expected)]
        resampled = audio.resample(marked, RATE, watermark.SAMPLE_RATE)
        assert float(perth.get_watermark(resampled, watermark.SAMPLE_RATE, round=False)) > 0.9
    np.testing.assert_allclose(marked_wave, expected, atol=1e-5)


def _without_torchaudio(monkeypatch) -> None:
    """Replace the modules that Perth imports and that are not needed here: torchaudio, whose spectrogram is
    torch.stft, setuptools' pkg_resources and librosa."""
    class Spectrogram(torch.nn.Module):
        def __init__(self, n_fft, win_length, hop_length, window_fn, **_):
            super().__init__()
            self.stft_options = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
            self.register_buffer("window", window_fn(win_length))

        def forward(self, wave):
            return torch.stft(wave, **self.stft_options, window=self.window, return_complex=True)

    class InverseSpectrogram(Spectrogram):
        def forward(self, spectra):
            return torch.istft(spectra, **self.stft_options, window=self.window)

    class TimeStretch(torch.nn.Module):
        def __init__(self, n_freq, hop_length):
            super().__init__()
            self.register_buffer("phase_advance", torch.zeros(n_freq, 1))

    transforms = types.ModuleType("torchaudio.transforms")
    transforms.Spectrogram, transforms.InverseSpectrogram, transforms.TimeStretch = (
        Spectrogram, InverseSpectrogram, TimeStretch)
    pkg_resources = types.ModuleType("pkg_resources")
    folder = watermark.importlib.metadata.distribution(watermark.PACKAGE).locate_file("perth/perth_net/pretrained")
    pkg_resources.resource_filename = lambda *_: str(folder)
    librosa = types.ModuleType("librosa")
    librosa.resample = None
    for name in [name for name in sys.modules if name.split(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in (("torchaudio", types.ModuleType("torchaudio")), ("torchaudio.transforms", transforms),
                         ("pkg_resources", pkg_resources), ("librosa", librosa)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("damage", ["mp3", "16 kHz", "8 kHz", "16 bits", "quieter", "a second of it"])
def test_the_watermark_survives_the_listed_changes(speech, marked, damage):
    """Mistake: a watermark that is lost with the first upload, or that is detected in everything afterwards."""
    def apply_damage(wave):
        if damage == "mp3":
            return soundfile.read(io.BytesIO(audio.encode_lossy(wave, RATE, 0.4)[0]), dtype="float32")[0]
        if damage.endswith("kHz"):
            rate = int(damage.split()[0]) * 1_000
            return audio.resample(audio.resample(wave, RATE, rate), rate, RATE)
        return {"16 bits": (wave * 32767).round() / 32767, "quieter": wave * 0.1,
                "a second of it": wave[RATE // 2:3 * RATE // 2]}[damage]

    assert watermark.detect(apply_damage(marked), RATE) > 0.5 > 0.2 > watermark.detect(apply_damage(speech), RATE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_every_sample_rate_can_be_marked(speech, rate):
    """Mistake: only the model's sample rate works, or at another one the watermark is at another pitch."""
    wave = audio.resample(speech, RATE, rate)
    marked_wave = watermark.apply(wave, rate)
    assert marked_wave.shape == wave.shape and watermark.detect(marked_wave, rate) > 0.9


@pytest.mark.parametrize(("rate", "chunk"), [(24_000, 1_920), (24_000, 5_000), (24_000, 1), (22_050, 3_333)])
def test_a_stream_gets_the_watermark_of_the_whole(speech, rate, chunk):
    """Mistake: a click, a gap or another watermark where two chunks meet."""
    wave = audio.resample(speech, RATE, rate)[:2 * rate]
    if chunk == 1:
        wave = wave[:rate // 2]
    chunks = [wave[start:start + chunk] for start in range(0, len(wave), chunk)]
    marked_chunks = list(watermark.apply_stream(iter(chunks), rate))
    np.testing.assert_allclose(np.concatenate(marked_chunks), watermark.apply(wave, rate), atol=1e-5)
    assert len(marked_chunks) > 1


def test_the_delay_of_a_stream_is_a_quarter_of_a_second(speech):
    """Mistake: a stream is held back until it is complete."""
    consumed = []
    marked_stream = watermark.apply_stream((consumed.append(part) or part for part in np.array_split(speech, 40)), RATE)
    first = next(marked_stream)
    assert len(first) and sum(map(len, consumed)) / RATE < watermark.CONTEXT_SECONDS + 0.25


def test_memory_does_not_grow_with_the_speech(speech, monkeypatch):
    """Mistake: the spectra of an hour are in memory at once."""
    lengths, apply_to = [], watermark._apply_to
    monkeypatch.setattr(watermark, "_apply_to",
                        lambda samples, *rest: lengths.append(len(samples)) or apply_to(samples, *rest))
    long = np.tile(speech, 9)
    marked_wave = watermark.apply(long, RATE)
    assert len(lengths) > 2 and max(lengths) <= (watermark.BLOCK_SECONDS + 3 * watermark.CONTEXT_SECONDS) * RATE
    in_one = apply_to(long, RATE, 0, len(long))
    np.testing.assert_allclose(marked_wave, in_one, atol=1e-4)
    partly_marked = np.concatenate([long, marked_wave[:8 * RATE], long])
    assert watermark.detect(partly_marked, RATE) > 0.5, "a marked part is detected in the whole"


def test_empty_silent_and_short_waves_are_handled(speech):
    """Mistake: NaN, a crash or a detected watermark in silence."""
    for silence in (np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(30 * RATE, np.float32)):
        np.testing.assert_array_equal(watermark.apply(silence, RATE), silence)
        assert watermark.detect(silence, RATE) == 0.0
    for count in (1, 7, 240, RATE // 20):
        marked_wave = watermark.apply(speech[RATE:RATE + count], RATE)
        assert marked_wave.shape == (count,) and np.isfinite(marked_wave).all()
        assert 0 <= watermark.detect(marked_wave, RATE) <= 1
    clipped = np.sign(speech) * np.minimum(1, np.abs(speech) * 20)
    assert np.abs(watermark.apply(clipped, RATE)).max() <= 1
    padded = np.concatenate([np.zeros(15 * RATE, np.float32), speech, np.zeros(15 * RATE, np.float32)])
    assert watermark.detect(watermark.apply(padded, RATE), RATE) > 0.9, "silence around speech does not hide the watermark"


@pytest.mark.parametrize("samples", [np.full(100, np.nan), np.zeros((2, 100))])
def test_invalid_waves_are_refused(samples):
    """Mistake: two channels are marked as if they were two thousand short clips, or NaN is passed on."""
    with pytest.raises(KitError, match="finite numbers"):
        watermark.apply(samples, RATE)


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def tampered(tmp_path, monkeypatch):
    """Perth's weights file, replaced by one with a pickle that would run code."""
    original = watermark.importlib.metadata.distribution(watermark.PACKAGE).locate_file(watermark.WEIGHTS)
    path = tmp_path / "perth.pth.tar"
    with zipfile.ZipFile(original) as whole, zipfile.ZipFile(path, "w") as other:
        for name in whole.namelist():
            content = pickle.dumps(Bomb(tmp_path / "exploded")) if name.endswith("data.pkl") else whole.read(name)
            other.writestr(name, content)
    distribution = types.SimpleNamespace(locate_file=lambda _: path)
    monkeypatch.setattr(watermark.importlib.metadata, "distribution", lambda _: distribution)
    watermark.network.cache_clear()
    yield path
    watermark.network.cache_clear()


def test_changed_weights_are_not_opened(tampered, tmp_path):
    """Mistake: whoever changes the weights file runs code on this machine."""
    torch.load(tampered, weights_only=False).close()
    (tmp_path / "exploded").unlink()  # so the pickle would run if it were read
    with pytest.raises(KitError, match="another SHA-256.*was not opened"):
        watermark.network()
    assert not (tmp_path / "exploded").exists()


def test_the_pickle_is_never_read(tampered, tmp_path, monkeypatch, speech):
    """Mistake: the digest matches, and something is unpickled nevertheless."""
    monkeypatch.setattr(watermark, "SHA256", watermark.hashlib.sha256(tampered.read_bytes()).hexdigest())
    assert watermark.detect(watermark.apply(speech, RATE), RATE) > 0.9
    assert not (tmp_path / "exploded").exists()


def test_a_missing_package_is_reported_before_speaking(monkeypatch, capsys, toy, tmp_path):
    """Mistake: minutes of speech are lost because it cannot be watermarked."""
    def missing(name):
        raise watermark.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(watermark.importlib.metadata, "distribution", missing)
    monkeypatch.chdir(tmp_path)
    watermark.network.cache_clear()
    assert main(["speak", "Hello.", "--no-adapter", "--base", "nowhere/no-model"]) == 1
    errors = capsys.readouterr().err
    assert "pip install --no-deps resemble-perth" in errors and "--no-watermark" in errors


def test_human_speech_is_not_reported_as_synthetic(monkeypatch, tmp_path, capsys):
    """Mistake: a second of human speech, for which the network's score can be higher than for marked speech in noise."""
    assert [watermark.min_score(seconds) for seconds in (1.0, 2.9, 3.0, 99)] == [0.8, 0.8, 0.5, 0.5]
    monkeypatch.setattr(watermark, "detect", lambda *_: 0.7)
    for seconds in (1, 4):
        audio.write(tmp_path / f"{seconds}.wav", np.zeros(seconds * RATE, np.float32), RATE)
    assert [main(["detect-watermark", str(tmp_path / f"{seconds}.wav")]) for seconds in (1, 4)] == [1, 0]
    assert "1.wav: no watermark found (score 0.70 of 1)" in capsys.readouterr().out


def test_the_end_of_a_long_file_is_not_scored_alone(monkeypatch, tmp_path):
    """Mistake: an hour of human speech is reported as synthetic because of its last 0.2 seconds."""
    lengths, score = [], watermark._score
    monkeypatch.setattr(watermark, "_score",
                        lambda samples, rate: lengths.append(len(samples) / rate) or score(samples, rate))
    noise = np.random.default_rng(0).normal(0, 0.1, round(20.2 * 16_000)).astype(np.float32)
    audio.write(tmp_path / "long.wav", noise, 16_000)
    file_score, is_marked = watermark.detect_file(tmp_path / "long.wav")
    assert min(lengths) >= watermark.BLOCK_SECONDS / 2 and sum(lengths) == pytest.approx(20.2)
    assert file_score < 0.5 and not is_marked


def test_m4a_and_streamed_wav_are_read(marked, tmp_path, capsys):
    """Mistake: common files, M4A and WAV whose header has no length, cannot be checked."""
    av = pytest.importorskip("av", reason="M4A needs PyAV (tts-kit[audio])")
    with av.open(str(tmp_path / "call.m4a"), "w", format="ipod") as out:
        stream = out.add_stream("aac", rate=RATE, layout="mono", bit_rate=64_000)
        resampler = av.AudioResampler(format="fltp", layout="mono", rate=RATE, frame_size=stream.frame_size or 0)
        frame = av.AudioFrame.from_ndarray((marked * 32767).astype(np.int16)[None], "s16", "mono")
        frame.sample_rate = RATE
        for part in (frame, None):
            for ready in resampler.resample(part):
                out.mux(stream.encode(ready))
        out.mux(stream.encode(None))
    whole, unknown_length = audio.encode(marked, RATE, "wav"), b"\xff" * 4
    (tmp_path / "live.wav").write_bytes(whole[:4] + unknown_length + whole[8:40] + unknown_length + whole[44:])
    assert main(["detect-watermark", str(tmp_path / "call.m4a"), str(tmp_path / "live.wav")]) == 0
    assert capsys.readouterr().out.count("watermarked as synthetic speech") == 2


def test_the_exit_status_is_the_result(speech, marked, tmp_path, capsys):
    """Mistake: a script cannot tell marked from unmarked or from unreadable, or one bad file hides the others."""
    audio.write(tmp_path / "marked.wav", marked, RATE)
    audio.write(tmp_path / "plain.flac", speech, RATE)
    soundfile.write(tmp_path / "telephone.wav", audio.resample(marked, RATE, 8_000), 8_000)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    files = {path.stem: str(path) for path in tmp_path.iterdir()}
    assert main(["detect-watermark", files["marked"], files["telephone"]]) == 0
    assert main(["detect-watermark", files["marked"], files["plain"]]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in lines] == ["watermarked", "watermarked", "watermarked", "no"]
    assert "does not prove that a person spoke" in lines[-1]
    assert main(["detect-watermark", files["text"], str(tmp_path / "none.wav"), files["marked"]]) == 2
    output = capsys.readouterr()
    assert "text.wav cannot be read" in output.err and "none.wav is missing" in output.err and "watermarked as" in output.out
    assert main(["detect-watermark", files["nan"]]) == 2
    assert "nan.wav holds samples that are not numbers" in capsys.readouterr().err


def test_the_command_marks_speech_by_default(tmp_path, monkeypatch, capsys):
    """Mistake: speech is written without a watermark, or the watermark changes what is spoken."""
    monkeypatch.chdir(tmp_path)
    arguments = ["speak", "The dog ran away.", "--no-adapter", "--base", str(TINY_CSM), "--device", "cpu"]
    assert main([*arguments, "--out", "marked.wav"]) == 0
    assert "No watermark" not in capsys.readouterr().out
    assert main([*arguments, "--no-watermark", "--out", "plain.wav"]) == 0
    assert "No watermark, as requested" in capsys.readouterr().out
    marked_wave, plain = (audio.read(name, RATE) for name in ("marked.wav", "plain.wav"))
    assert watermark.detect_file("marked.wav")[0] > 0.9 and watermark.detect_file("plain.wav")[0] < 0.1
    assert len(marked_wave) == len(plain) and decibels(plain, marked_wave) > 10
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["marked.wav", "plain.wav"]


def test_the_readme_matches_the_measurements():
    """Mistake: figures in the benchmarks' README that no committed file has, or that were measured with other thresholds."""
    pytest.importorskip("av", reason="the benchmark needs PyAV (tts-kit[audio])")
    from tests.benchmarks import watermark as benchmark

    result = read_json(benchmark.RESULTS, "Measure again.")
    assert benchmark.block(result) in Path(benchmark.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert list(result["sure from"].values()) == [watermark.MIN_SCORE, watermark.MIN_SCORE_SHORT]
