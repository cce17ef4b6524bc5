"""The online judges: their wiring with small networks of the same kinds, and what happens where no hub answers."""

import hashlib
import json

import numpy as np
import pytest
import torch

from tts_kit import audio, samples
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import bundled, hub_models, metrics

pytestmark = [pytest.mark.skipif(bool(bundled.missing()), reason=f"judges are not installed: {metrics.INSTALL}"),
              # torch warns of its older way to write ONNX, which needs no package more
              pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
              pytest.mark.filterwarnings("ignore:.*TorchScript-based ONNX export:DeprecationWarning")]
needs_packages = pytest.mark.skipif(bool(hub_models.missing()), reason=f"not installed (requirements-judges-online.txt): "
                                    f"{', '.join(hub_models.missing())}")
CLIP = sorted(samples.VOICE.glob("*.flac"))[0]


@pytest.fixture(scope="module")
def wave():
    return metrics.prepared(metrics.read(CLIP), metrics.SAMPLE_RATE)


def exported(network, names, inputs, path):
    """A torch module as an ONNX file with a free second axis."""
    pytest.importorskip("onnx", reason="onnx, which requirements-dev.txt installs, writes the small networks")
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.onnx.export(network.eval(), tuple(inputs.values()), str(path), input_names=list(inputs), output_names=names,
                      dynamic_axes={name: {1: "time"} for name in inputs}, dynamo=False, opset_version=17)
    return path


class XVector(torch.nn.Module):
    """transformers' own class, small and untrained, with the outputs that its exports have."""

    def __init__(self):
        from transformers import WavLMConfig, WavLMForXVector

        super().__init__()
        torch.manual_seed(0)
        self.network = WavLMForXVector(WavLMConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64, conv_dim=(16,) * 7,
            tdnn_dim=(32, 32, 32, 32, 96), xvector_output_dim=24, num_conv_pos_embeddings=16,
            num_conv_pos_embedding_groups=2, num_buckets=32)).eval()

    def forward(self, input_values):
        found = self.network(input_values)
        return found.logits, found.embeddings


class Mean(torch.nn.Module):
    """Stands for ECAPA: (1, frames, 80) -> (1, 80), so that what it is given can be looked at."""

    def forward(self, feats):
        return feats.mean(dim=1) + feats.std(dim=1)


class Level(torch.nn.Module):
    """Stands for UTMOS: (1, samples) -> (1,)."""

    def forward(self, wave):
        return 3.0 + wave.abs().mean(dim=1)


def test_wavlm_hears_what_transformers_own_class_hears(tmp_path, wave):
    """Mistake: the classifier's logits in place of the voice, a clip normalised that should not be, the other way round."""
    module = XVector()
    path = exported(module, ["logits", "embeddings"], {"input_values": torch.randn(1, 24_000)}, tmp_path / "model.onnx")
    for is_normalised in (False, True):
        (tmp_path / "settings.json").write_text(json.dumps({"do_normalize": is_normalised}))
        given = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if is_normalised else wave
        with torch.inference_mode():
            wanted = module.network(torch.from_numpy(given)[None]).embeddings[0].numpy()
        seen = hub_models.wavlm(path, tmp_path / "settings.json", 1)(wave)
        assert seen.shape == (24,) and np.allclose(seen, wanted, atol=1e-3 * np.abs(wanted).max())


@needs_packages
def test_spectra_are_those_of_speech_at_16_kilohertz(wave):
    """Mistake: amplitudes of 1 where the network learnt 16-bit ones, frames of another length, means left in."""
    found = hub_models.spectra(wave)
    assert found.shape == (1 + (len(wave) - 400) // 160, 80) and found.dtype == np.float32
    assert np.abs(found.mean(axis=0)).max() < 1e-3 and 1 < found.std() < 5
    tone = (0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 1000 / 16_000)).astype(np.float32)
    hiss = np.random.default_rng(0).normal(0, 0.001, 16_000).astype(np.float32)
    rise = hub_models.spectra(np.concatenate([hiss, tone + hiss]))[120:].mean(axis=0)
    # 80 bands even in mel from 20 Hz to 8 kHz: 1 kHz lies in the 28th
    assert abs(int(rise.argmax()) - 27) <= 2
    silence = np.zeros(metrics.SAMPLE_RATE, np.float32)
    assert np.array_equal(hub_models.spectra(wave), found) and np.abs(hub_models.spectra(np.concatenate([wave, silence]))).max() < 20


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as the hub's client keeps it, with small networks, and Whisper base in the place of the large one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for weights in (hub_models.TURBO, hub_models.ECAPA, hub_models.WAVLM, hub_models.UTMOS):
        commit = weights.revision if weights.revision != "main" else "5" * 40
        repository = tmp_path / f"models--{weights.place.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
    folders = {weights.place: next((tmp_path / f"models--{weights.place.replace('/', '--')}").glob("snapshots/*"))
               for weights in (hub_models.TURBO, hub_models.ECAPA, hub_models.WAVLM, hub_models.UTMOS)}
    network = exported(Mean(), ["embs"], {"feats": torch.randn(1, 50, 80)},
                       folders[hub_models.ECAPA.place] / hub_models.ECAPA.files[0])
    exported(XVector(), ["logits", "embeddings"], {"input_values": torch.randn(1, 24_000)},
             folders[hub_models.WAVLM.place] / "onnx" / "model.onnx")
    (folders[hub_models.WAVLM.place] / "preprocessor_config.json").write_text("{}")
    exported(Level(), ["mos"], {"wave": torch.randn(1, 24_000)}, folders[hub_models.UTMOS.place] / hub_models.UTMOS.files[0])
    spoken = transcribe.bundled_whisper()
    for name in ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt"):
        (folders[hub_models.TURBO.place] / name).symlink_to(spoken / name)
    digest = hashlib.sha256(network.read_bytes()).hexdigest()
    monkeypatch.setattr(hub_models, "ECAPA", hub_models.Weights(*list(vars(hub_models.ECAPA).values())[:4], digest))
    monkeypatch.setattr(hub_models, "TURBO", hub_models.Weights(*list(vars(hub_models.TURBO).values())[:3],
                                                        ("model.bin", "config.json", "tokenizer.json", "vocabulary.txt")))
    hub_models.load.cache_clear()
    yield folders
    hub_models.load.cache_clear()


@needs_packages
def test_weights_that_are_here_are_judged_with_under_their_own_names(hub, wave, capsys):
    """Mistake: the hub is asked for what is here, a judge stands in another's place, or results do not say which weights."""
    metric_models = metrics.load(1, "cpu")
    assert metric_models.name == metrics.load_available("cpu") and "The online set" in capsys.readouterr().out
    assert "WavLM base plus SV 839012c" in metric_models.name and "UTMOS22 strong 5555555" in metric_models.name
    assert "large-v3-turbo int8" in metric_models.name and "DNSMOS" in metric_models.name and "Resemblyzer" not in metric_models.name
    text = next(line.split(",", 1)[1].rsplit(",", 2)[0] for line in (
        samples.VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines() if line.startswith(CLIP.name))
    found = metric_models.judge(audio.read(CLIP, metrics.SAMPLE_RATE), metrics.SAMPLE_RATE, text)
    assert found.failed == {} and found.ref_words > 3 and found.word_errors <= 1
    assert found.embedding.shape == (80,) and found.embedding_2.shape == (24,)
    assert found.mos > 3.3 and 3.0 < found.mos_2 < 3.3 and found.noise_mos > 2
    assert metrics.load(1, "cpu", "offline").names["sim"].startswith("Resemblyzer")


@needs_packages
def test_a_network_that_is_not_the_tested_one_is_refused(hub, capsys):
    """Mistake: half a download, or another upload under the same name, becomes the judge."""
    path = hub[hub_models.ECAPA.place] / hub_models.ECAPA.files[0]
    path.write_bytes(path.read_bytes() + b"0")
    with pytest.raises(KitError, match="is not the tested network.*Delete it"):
        metrics.load(1, "cpu", "online")
    assert "Resemblyzer" in metrics.load(1, "cpu").name and "not the tested network" in capsys.readouterr().out


@needs_packages
def test_where_no_hub_answers_the_offline_set_is_taken_and_that_is_said(tmp_path, monkeypatch, capsys):
    """Mistake: a stack trace of the net in the middle of a comparison, minutes of retries, or a silent change of judges."""
    from huggingface_hub import constants, errors

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 does: no address is asked
    assert issubclass(errors.OfflineModeIsEnabled, Exception)
    metric_models = metrics.load(1, "cpu")
    said = capsys.readouterr().out
    assert "Resemblyzer" in metric_models.name and "offline set" in said and "no hub gives them" in said
    assert metrics.load_available("cpu") == metric_models.name and metrics.load_available("cpu", "online") == ""
    with pytest.raises(KitError, match="online judges were asked for.*requirements-judges-online.txt"):
        metrics.load(1, "cpu", "online")


def test_missing_packages_and_wishes_are_named(monkeypatch, capsys):
    """Mistake: the online judges are asked for and others come, or a wish with a slip in it is taken for auto."""
    monkeypatch.setattr(hub_models, "PACKAGES", ("numpy", "no_such_judge"))
    assert "no_such_judge" in hub_models.lacking("cpu")
    assert "no_such_judge" not in metrics.load_available("cpu") and "Resemblyzer" in metrics.load(1, "cpu").name
    assert "not installed (no_such_judge)" in capsys.readouterr().out
    monkeypatch.setenv("TTS_KIT_JUDGES", "onlin")
    with pytest.raises(KitError, match="'onlin' is no set of judges; wanted one of auto, online, offline"):
        metrics.load_available()
    monkeypatch.setenv("TTS_KIT_JUDGES", "offline")
    assert metrics.load(1).names["sim"].startswith("Resemblyzer") and "as asked" in capsys.readouterr().out
