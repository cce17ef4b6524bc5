"""Metric models from the hub: their wiring with small networks of the same kinds, and what happens without a hub."""

import json

import numpy as np
import pytest
import torch

from tts_kit import audio
from tts_kit.data import transcribe
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics
from tts_kit.run import SAMPLE_VOICE

pytestmark = [pytest.mark.skipif(bool(backends.missing_packages()),
                                 reason=f"metric models are not installed: {metrics.INSTALL}"),
              # torch warns of its older ONNX export, which needs no additional package
              pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
              pytest.mark.filterwarnings("ignore:.*TorchScript-based ONNX export:DeprecationWarning")]
CLIP = sorted(SAMPLE_VOICE.glob("*.flac"))[0]


@pytest.fixture(scope="module")
def wave():
    return metrics.trimmed(metrics.read(CLIP), metrics.SAMPLE_RATE)


def exported(network, names, inputs, path):
    """A torch module as an ONNX file with a free second axis."""
    pytest.importorskip("onnx", reason="onnx, which the extra `dev` installs, writes the small networks")
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
        outputs = self.network(input_values)
        return outputs.logits, outputs.embeddings


class Level(torch.nn.Module):
    """Replaces UTMOS: (1, samples) -> (1,)."""

    def forward(self, wave):
        return 3.0 + wave.abs().mean(dim=1)


def test_wavlm_equals_the_class_of_transformers(tmp_path, wave):
    """Mistake: the classifier's logits in place of the embedding, or a wrong normalization of the clip."""
    module = XVector()
    path = exported(module, ["logits", "embeddings"], {"input_values": torch.randn(1, 24_000)}, tmp_path / "model.onnx")
    for is_normalised in (False, True):
        (tmp_path / "settings.json").write_text(json.dumps({"do_normalize": is_normalised}))
        inputs = (wave - wave.mean()) / np.sqrt(wave.var() + 1e-7) if is_normalised else wave
        with torch.inference_mode():
            expected = module.network(torch.from_numpy(inputs)[None]).embeddings[0].numpy()
        embedding = backends.load_wavlm(path, tmp_path / "settings.json", 1)(wave)
        assert embedding.shape == (24,) and np.allclose(embedding, expected, atol=1e-3 * np.abs(expected).max())


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A cache as the hub's client keeps it, with small networks, and Whisper base in place of the large one."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    whisper = transcribe.bundled_whisper()
    files = tuple(path.name for path in whisper.iterdir())
    monkeypatch.setattr(backends, "HUB_MODELS", ((*backends.HUB_WHISPER[:2], files), *backends.HUB_MODELS[1:]))
    folders = {}
    for name, revision, _ in backends.HUB_MODELS:
        commit = revision if revision != "main" else "5" * 40
        repository = tmp_path / f"models--{name.replace('/', '--')}"
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(commit)
        folders[name] = repository / "snapshots" / commit
        folders[name].mkdir(parents=True)
    for path in whisper.iterdir():
        (folders[backends.HUB_WHISPER[0]] / path.name).symlink_to(path)
    wavlm = folders[backends.HUB_WAVLM[0]]
    exported(XVector(), ["logits", "embeddings"], {"input_values": torch.randn(1, 24_000)}, wavlm / "onnx" / "model.onnx")
    (wavlm / "preprocessor_config.json").write_text("{}")
    exported(Level(), ["mos"], {"wave": torch.randn(1, 24_000)}, folders[backends.HUB_UTMOS[0]] / backends.HUB_UTMOS[2][0])
    backends.load_hub.cache_clear()
    yield folders
    backends.load_hub.cache_clear()


def test_cached_weights_are_used_and_named(hub, capsys, monkeypatch):
    """Mistake: cached weights are requested from the hub, or results do not name the weights."""
    models = metrics.load(1)
    assert models.name == metrics.load_available() and "The set from the hub" in capsys.readouterr().out
    assert "WavLM base plus SV 839012c" in models.name and "UTMOS22 strong 5555555" in models.name
    assert "large-v3-turbo int8" in models.name and "DNSMOS" in models.name and "SIM: Resemblyzer" in models.name
    text = next(line.split(",", 1)[1].rsplit(",", 2)[0] for line in (
        SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines() if line.startswith(CLIP.name))
    clip = models.measure(audio.read(CLIP, metrics.SAMPLE_RATE), metrics.SAMPLE_RATE, text)
    assert clip.failed == {} and clip.ref_words > 3 and clip.word_errors <= 1
    assert clip.embedding.shape == (256,) and clip.embedding_2.shape == (24,)
    assert clip.mos > 3.3 and 3.0 < clip.mos_2 < 3.3 and clip.noise_mos > 2
    monkeypatch.setenv(metrics.SETTING, "bundled")
    assert "sim_2" not in metrics.load(1).names


def test_without_a_hub_the_bundled_set_is_used_and_reported(tmp_path, monkeypatch, capsys):
    """Mistake: a traceback of the network client in the middle of a comparison, minutes of retries, or a silent change of
    models."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # as HF_HUB_OFFLINE=1 does: no request is sent
    models = metrics.load(1)
    printed = capsys.readouterr().out
    assert "WavLM" not in models.name and "bundled set" in printed and "the hub cannot be reached" in printed
    assert metrics.load_available() == models.name
    monkeypatch.setenv(metrics.SETTING, "hub")
    assert metrics.load_available() == ""
    with pytest.raises(KitError, match="models from the hub were asked for.*ask for auto"):
        metrics.load(1)


def test_a_wrong_setting_is_named(monkeypatch, capsys):
    """Mistake: another set of models is loaded than requested, or a misspelled setting is taken for auto."""
    monkeypatch.setenv("TTS_KIT_METRICS", "hubb")
    with pytest.raises(KitError, match="'hubb' is no set of metric models; wanted one of auto, hub, bundled"):
        metrics.load_available()
    monkeypatch.setenv("TTS_KIT_METRICS", "bundled")
    assert metrics.load(1).names["sim"].startswith("Resemblyzer") and "as asked" in capsys.readouterr().out
