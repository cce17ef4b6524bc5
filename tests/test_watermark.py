"""The mark of machine-made speech: it is Perth's, it is found again, it costs little, and nothing is unpickled for it."""

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
    """From the speech down to what was added."""
    return 10 * np.log10((before.astype(np.float64) ** 2).sum() / ((after - before).astype(np.float64) ** 2).sum())


def highs(wave: np.ndarray) -> np.ndarray:
    """The same without what is below 2.2 kHz."""
    spectrum = np.fft.rfft(wave.astype(np.float64))
    return np.fft.irfft(np.where(np.fft.rfftfreq(len(wave), 1 / RATE) > 2_200, spectrum, 0), len(wave))


def test_it_is_found_in_marked_speech_and_not_in_unmarked(speech, marked):
    """Mistake: a detector that says yes, or no, to everything."""
    others = [audio.read(path, RATE) for path in sorted((SAMPLE_DATA / "strangers").glob("*.flac"))]
    assert watermark.detect(marked, RATE) > 0.9
    assert max(watermark.detect(wave, RATE) for wave in [speech, *others]) < 0.1
    assert min(watermark.detect(watermark.apply(wave, RATE), RATE) for wave in others) > 0.9


def test_it_is_quiet_below_two_kilohertz_and_nothing_above(speech, marked):
    """Mistake: speech goes through a resampler and loses its highs, its length or its samples' places for a mark."""
    assert marked.dtype == np.float32 and marked.shape == speech.shape and np.abs(marked).max() <= 1
    assert decibels(speech, marked) > 13, "the mark lies deep under the speech"
    assert decibels(highs(speech), highs(marked)) > 30, "and only where Perth puts it"
    np.testing.assert_array_equal(watermark.apply(speech, RATE), marked)


def test_it_is_perths_own_mark(speech, marked, monkeypatch):
    """Mistake: our copy of the network adds something else, which no other detector of Perth marks would find."""
    for package in ("yaml", "scipy"):
        pytest.importorskip(package, reason=f"Perth's own code needs {package}")
    _without_torchaudio(monkeypatch)
    from perth.perth_net.perth_net_implicit.perth_watermarker import PerthImplicitWatermarker

    theirs = PerthImplicitWatermarker()
    wave = audio.resample(speech, RATE, watermark.SAMPLE_RATE)
    with torch.inference_mode():
        wanted = theirs.apply_watermark(wave, watermark.SAMPLE_RATE)
        seen = watermark.apply(wave, watermark.SAMPLE_RATE)[:len(wanted)]
        resampled = audio.resample(marked, RATE, watermark.SAMPLE_RATE)
        assert float(theirs.get_watermark(resampled, watermark.SAMPLE_RATE, round=False)) > 0.9
    np.testing.assert_allclose(seen, wanted, atol=1e-5)


def _without_torchaudio(monkeypatch) -> None:
    """Perth imports torchaudio's spectrogram, which is torch.stft, setuptools' way to name a folder, and librosa to
    resample, which nothing here needs."""
    class Spectrogram(torch.nn.Module):
        def __init__(self, n_fft, win_length, hop_length, window_fn, **_):
            super().__init__()
            self.how = dict(n_fft=n_fft, hop_length=hop_length, win_length=win_length)
            self.register_buffer("window", window_fn(win_length))

        def forward(self, wave):
            return torch.stft(wave, **self.how, window=self.window, return_complex=True)

    class InverseSpectrogram(Spectrogram):
        def forward(self, spectra):
            return torch.istft(spectra, **self.how, window=self.window)

    class TimeStretch(torch.nn.Module):
        def __init__(self, n_freq, hop_length):
            super().__init__()
            self.register_buffer("phase_advance", torch.zeros(n_freq, 1))

    transforms = types.ModuleType("torchaudio.transforms")
    transforms.Spectrogram, transforms.InverseSpectrogram, transforms.TimeStretch = (
        Spectrogram, InverseSpectrogram, TimeStretch)
    named = types.ModuleType("pkg_resources")
    folder = watermark.importlib.metadata.distribution(watermark.PACKAGE).locate_file("perth/perth_net/pretrained")
    named.resource_filename = lambda *_: str(folder)
    slow = types.ModuleType("librosa")
    slow.resample = None
    for name in [name for name in sys.modules if name.split(".")[0] == "perth"]:
        monkeypatch.delitem(sys.modules, name)
    for name, module in (("torchaudio", types.ModuleType("torchaudio")), ("torchaudio.transforms", transforms),
                         ("pkg_resources", named), ("librosa", slow)):
        monkeypatch.setitem(sys.modules, name, module)


@pytest.mark.parametrize("damage", ["mp3", "16 kHz", "8 kHz", "16 bits", "quieter", "a second of it"])
def test_it_survives_what_the_table_says(speech, marked, damage):
    """Mistake: a mark that is gone with the first upload, or that is found after it in everything."""
    def done(wave):
        if damage == "mp3":
            return soundfile.read(io.BytesIO(audio.encode_lossy(wave, RATE, 0.4)[0]), dtype="float32")[0]
        if damage.endswith("kHz"):
            rate = int(damage.split()[0]) * 1_000
            return audio.resample(audio.resample(wave, RATE, rate), rate, RATE)
        return {"16 bits": (wave * 32767).round() / 32767, "quieter": wave * 0.1,
                "a second of it": wave[RATE // 2:3 * RATE // 2]}[damage]

    assert watermark.detect(done(marked), RATE) > 0.5 > 0.2 > watermark.detect(done(speech), RATE)


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 24_000, 44_100, 48_000])
def test_every_rate_can_be_marked(speech, rate):
    """Mistake: only the model's rate works, or another one gets the mark at another pitch."""
    wave = audio.resample(speech, RATE, rate)
    done = watermark.apply(wave, rate)
    assert done.shape == wave.shape and watermark.detect(done, rate) > 0.9


@pytest.mark.parametrize(("rate", "chunk"), [(24_000, 1_920), (24_000, 5_000), (24_000, 1), (22_050, 3_333)])
def test_a_stream_gets_the_mark_of_the_whole(speech, rate, chunk):
    """Mistake: a click, a gap or another mark wherever two chunks meet."""
    wave = audio.resample(speech, RATE, rate)[:2 * rate]
    if chunk == 1:
        wave = wave[:rate // 2]
    chunks = [wave[start:start + chunk] for start in range(0, len(wave), chunk)]
    made = list(watermark.apply_stream(iter(chunks), rate))
    np.testing.assert_allclose(np.concatenate(made), watermark.apply(wave, rate), atol=1e-5)
    assert len(made) > 1


def test_a_stream_waits_for_a_quarter_of_a_second_only(speech):
    """Mistake: streamed speech is held back until all of it is there."""
    given = []
    flow = watermark.apply_stream((given.append(part) or part for part in np.array_split(speech, 40)), RATE)
    first = next(flow)
    assert len(first) and sum(map(len, given)) / RATE < watermark.CONTEXT_SECONDS + 0.25


def test_long_speech_needs_no_more_memory(speech, monkeypatch):
    """Mistake: the spectra of an hour at once."""
    lengths, real = [], watermark._apply_to
    monkeypatch.setattr(watermark, "_apply_to", lambda heard, *rest: lengths.append(len(heard)) or real(heard, *rest))
    long = np.tile(speech, 9)
    done = watermark.apply(long, RATE)
    assert len(lengths) > 2 and max(lengths) <= (watermark.BLOCK_SECONDS + 3 * watermark.CONTEXT_SECONDS) * RATE
    in_one = real(long, RATE, 0, len(long))
    np.testing.assert_allclose(done, in_one, atol=1e-4)
    assert watermark.detect(np.concatenate([long, done[:8 * RATE], long]), RATE) > 0.5, "a marked part is found in the whole"


def test_nothing_silence_and_little(speech):
    """Mistake: not a number, a crash or a mark out of nothing."""
    for silence in (np.zeros(0, np.float32), np.zeros(1, np.float32), np.zeros(30 * RATE, np.float32)):
        np.testing.assert_array_equal(watermark.apply(silence, RATE), silence)
        assert watermark.detect(silence, RATE) == 0.0
    for count in (1, 7, 240, RATE // 20):
        done = watermark.apply(speech[RATE:RATE + count], RATE)
        assert done.shape == (count,) and np.isfinite(done).all() and 0 <= watermark.detect(done, RATE) <= 1
    loud = np.sign(speech) * np.minimum(1, np.abs(speech) * 20)
    assert np.abs(watermark.apply(loud, RATE)).max() <= 1
    padded = np.concatenate([np.zeros(15 * RATE, np.float32), speech, np.zeros(15 * RATE, np.float32)])
    assert watermark.detect(watermark.apply(padded, RATE), RATE) > 0.9, "silence around speech hides nothing"


@pytest.mark.parametrize("samples", [np.full(100, np.nan), np.zeros((2, 100))])
def test_what_is_no_wave_is_refused(samples):
    """Mistake: two channels are marked as if they were two thousand short clips, or NaN is passed on."""
    with pytest.raises(KitError, match="finite numbers"):
        watermark.apply(samples, RATE)


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (open, (str(self.path), "w"))


@pytest.fixture
def tampered(tmp_path, monkeypatch):
    """Perth's file with a pickle that would run code, in place of the real one."""
    real = watermark.importlib.metadata.distribution(watermark.PACKAGE).locate_file(watermark.WEIGHTS)
    path = tmp_path / "perth.pth.tar"
    with zipfile.ZipFile(real) as whole, zipfile.ZipFile(path, "w") as other:
        for name in whole.namelist():
            spoiled = pickle.dumps(Bomb(tmp_path / "exploded")) if name.endswith("data.pkl") else whole.read(name)
            other.writestr(name, spoiled)
    place = types.SimpleNamespace(locate_file=lambda _: path)
    monkeypatch.setattr(watermark.importlib.metadata, "distribution", lambda _: place)
    watermark.network.cache_clear()
    yield path
    watermark.network.cache_clear()


def test_weights_that_were_changed_are_not_opened(tampered, tmp_path):
    """Mistake: whoever changes the file of weights runs code on this machine."""
    torch.load(tampered, weights_only=False).close()
    (tmp_path / "exploded").unlink()  # so the pickle goes off where it is read
    with pytest.raises(KitError, match="another SHA-256.*was not opened"):
        watermark.network()
    assert not (tmp_path / "exploded").exists()


def test_the_pickle_inside_is_never_read(tampered, tmp_path, monkeypatch, speech):
    """Mistake: the sum is right, and yet something is unpickled."""
    monkeypatch.setattr(watermark, "SHA256", watermark.hashlib.sha256(tampered.read_bytes()).hexdigest())
    assert watermark.detect(watermark.apply(speech, RATE), RATE) > 0.9
    assert not (tmp_path / "exploded").exists()


def test_without_the_package_the_remedy_is_named_before_anything_is_said(monkeypatch, capsys, toy, tmp_path):
    """Mistake: minutes of speech are lost because it cannot be marked."""
    def missing(name):
        raise watermark.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(watermark.importlib.metadata, "distribution", missing)
    monkeypatch.chdir(tmp_path)
    watermark.network.cache_clear()
    assert main(["speak", "Hello.", "--no-adapter", "--base", "nowhere/no-model"]) == 1
    told = capsys.readouterr().err
    assert "pip install --no-deps resemble-perth" in told and "--no-watermark" in told


def test_what_a_person_says_is_not_taken_for_a_machines(monkeypatch, tmp_path, capsys):
    """Mistake: a second of a person's speech, of which the network can be surer than of marked speech in noise."""
    assert [watermark.min_score(seconds) for seconds in (1.0, 2.9, 3.0, 99)] == [0.8, 0.8, 0.5, 0.5]
    monkeypatch.setattr(watermark, "detect", lambda *_: 0.7)
    for seconds in (1, 4):
        audio.write(tmp_path / f"{seconds}.wav", np.zeros(seconds * RATE, np.float32), RATE)
    assert [main(["detect-watermark", str(tmp_path / f"{seconds}.wav")]) for seconds in (1, 4)] == [1, 0]
    assert "1.wav: no watermark found (score 0.70 of 1)" in capsys.readouterr().out


def test_the_last_moment_of_a_long_file_is_not_judged_alone(monkeypatch, tmp_path):
    """Mistake: an hour of a person's speech is called a machine's for its last 0.2 seconds."""
    lengths, real = [], watermark._score
    monkeypatch.setattr(watermark, "_score",
                        lambda samples, rate: lengths.append(len(samples) / rate) or real(samples, rate))
    noise = np.random.default_rng(0).normal(0, 0.1, round(20.2 * 16_000)).astype(np.float32)
    audio.write(tmp_path / "long.wav", noise, 16_000)
    sure, enough = watermark.detect_file(tmp_path / "long.wav")
    assert min(lengths) >= watermark.BLOCK_SECONDS / 2 and sum(lengths) == pytest.approx(20.2) and sure < 0.5 and not enough


def test_phones_recordings_and_streams_are_read(marked, tmp_path, capsys):
    """Mistake: what people are sent, M4A and WAV whose header announces no length, cannot be looked at."""
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
    whole, unknown = audio.encode(marked, RATE, "wav"), b"\xff" * 4
    (tmp_path / "live.wav").write_bytes(whole[:4] + unknown + whole[8:40] + unknown + whole[44:])
    assert main(["detect-watermark", str(tmp_path / "call.m4a"), str(tmp_path / "live.wav")]) == 0
    assert capsys.readouterr().out.count("watermarked as synthetic speech") == 2


def test_the_verb_detects_and_its_status_tells(speech, marked, tmp_path, capsys):
    """Mistake: a script cannot tell marked from unmarked or from unreadable, or one bad file hides the others."""
    audio.write(tmp_path / "marked.wav", marked, RATE)
    audio.write(tmp_path / "plain.flac", speech, RATE)
    soundfile.write(tmp_path / "telephone.wav", audio.resample(marked, RATE, 8_000), 8_000)
    (tmp_path / "text.wav").write_text("no sound")
    soundfile.write(tmp_path / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    files = {path.stem: str(path) for path in tmp_path.iterdir()}
    assert main(["detect-watermark", files["marked"], files["telephone"]]) == 0
    assert main(["detect-watermark", files["marked"], files["plain"]]) == 1
    said = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[1].split(" ")[0] for line in said] == ["watermarked", "watermarked", "watermarked", "no"]
    assert "does not prove that a person spoke" in said[-1]
    assert main(["detect-watermark", files["text"], str(tmp_path / "none.wav"), files["marked"]]) == 2
    told = capsys.readouterr()
    assert "text.wav cannot be read" in told.err and "none.wav is missing" in told.err and "watermarked as" in told.out
    assert main(["detect-watermark", files["nan"]]) == 2
    assert "nan.wav holds samples that are not numbers" in capsys.readouterr().err


@pytest.mark.parametrize("stream", [[], ["--stream"]])
def test_the_verb_marks_what_it_says_unless_told_otherwise(stream, tmp_path, monkeypatch, capsys):
    """Mistake: speech leaves the house unmarked, or the mark changes what is said."""
    monkeypatch.chdir(tmp_path)
    given = ["speak", "The dog ran away.", "--no-adapter", "--base", str(TINY_CSM), "--device", "cpu", *stream]
    assert main([*given, "--out", "marked.wav"]) == 0
    assert "No watermark" not in capsys.readouterr().out
    assert main([*given, "--no-watermark", "--out", "plain.wav"]) == 0
    assert "No watermark, as requested" in capsys.readouterr().out
    done, plain = (audio.read(name, RATE) for name in ("marked.wav", "plain.wav"))
    assert watermark.detect_file("marked.wav")[0] > 0.9 and watermark.detect_file("plain.wav")[0] < 0.1
    assert len(done) == len(plain) and decibels(plain, done) > 10
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["marked.wav", "plain.wav"]


def test_the_readme_says_what_was_measured():
    """Mistake: figures in the benchmarks' README that no committed file has, or that were measured with other limits."""
    pytest.importorskip("av", reason="the benchmark needs PyAV (tts-kit[audio])")
    from tests.benchmarks import watermark as bench

    found = read_json(bench.RESULTS, "Measure again.")
    assert bench.block(found) in Path(bench.__file__).with_name("README.md").read_text(encoding="utf-8")
    assert list(found["sure from"].values()) == [watermark.MIN_SCORE, watermark.MIN_SCORE_SHORT]
