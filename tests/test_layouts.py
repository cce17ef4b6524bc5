"""Every layout in which CSM checkpoints are published: the same logits, codes and adapters as from transformers' own."""

import json
import math
import shutil
import sys
import types
from pathlib import Path

import huggingface_hub
import pytest
import torch
from conftest import spread_logits
from safetensors.torch import load_file, save_file
from test_speech_voice import codes, make_adapter
from transformers import CsmConfig, MimiModel

from sample_data.build import model_shapes
from tts_kit import cli, device, layouts, pretrained
from tts_kit.config import Config
from tts_kit.doctor import checks
from tts_kit.errors import KitError
from tts_kit.export import card, release
from tts_kit.io import read_json, write_json
from tts_kit.model import load
from tts_kit.run import Run
from tts_kit.speech.voice import load_voice, load_voices
from tts_kit.tokens import codec
from tts_kit.tokens.prompt import Turn

CPU = device.choose("cpu", "float32")
NAMES = {  # in transformers' layout: in the original one, as Sesame's and Miso's code builds its modules
    "embed_text_tokens.weight": "text_embeddings.weight",
    "backbone_model.embed_tokens.embed_audio_tokens.weight": "audio_embeddings.weight",
    "lm_head.weight": "codebook0_head.weight", "depth_decoder.codebooks_head.weight": "audio_head",
    "depth_decoder.model.inputs_embeds_projector.weight": "projection.weight"}
LAYER_NAMES = {"input_layernorm.weight": "sa_norm.scale", "post_attention_layernorm.weight": "mlp_norm.scale",
               "self_attn.q_proj.weight": "attn.q_proj.weight", "self_attn.k_proj.weight": "attn.k_proj.weight",
               "self_attn.v_proj.weight": "attn.v_proj.weight", "self_attn.o_proj.weight": "attn.output_proj.weight",
               "mlp.gate_proj.weight": "mlp.w1.weight", "mlp.down_proj.weight": "mlp.w2.weight",
               "mlp.up_proj.weight": "mlp.w3.weight"}
PARTS = {"backbone_model": "backbone", "depth_decoder.model": "decoder"}
NAMES |= {f"{part}.norm.weight": f"{original}.norm.scale" for part, original in PARTS.items()}
NAMES |= {f"{part}.layers.{layer}.{name}": f"{original}.layers.{layer}.{original_name}" for part, original in PARTS.items()
          for layer in (0, 1) for name, original_name in LAYER_NAMES.items()}
FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "processor_config.json")


def original_weights(model) -> dict[str, torch.Tensor]:
    """The weights as the original code would have saved them: rows 2i and 2i + 1 of a head are rotated together."""
    weights = {}
    for name, weight in model.state_dict().items():
        if name in NAMES:
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                half = model.config.head_dim // 2
                first = [row - row % (2 * half) for row in range(len(weight))]
                order = [start + (row - start) // 2 + half * (row % 2) for row, start in enumerate(first)]
                weight = weight[order]
            weights[NAMES[name]] = weight.detach().clone()
    assert len(weights) == len(NAMES)
    return weights


def write_original(hf: str, folder: Path, config: bool = True, tokenizer: bool = True) -> str:
    """Write a checkpoint in the original layout, with its codec in a folder."""
    model = load.load_base(hf, CPU)
    folder.mkdir()
    save_file(original_weights(model.model), folder / "model.safetensors")
    MimiModel.save_pretrained(model.codec.model, folder / "codec")
    for name in FILES * tokenizer + ("config.json",) * config:
        shutil.copy(Path(hf) / name, folder)
    return str(folder)


@pytest.fixture(scope="module")
def original(spread_toy, tmp_path_factory):
    """The spread toy in the original layout."""
    return write_original(spread_toy, tmp_path_factory.mktemp("original") / "model")


@pytest.fixture
def two_formats(spread_toy, original, tmp_path):
    """The spread toy as sesame/csm-1b is on the hub: both layouts in one folder, the config names one."""
    folder = tmp_path / "both"
    shutil.copytree(spread_toy, folder)
    weights = load_file(folder / "model.safetensors")
    shards = {f"transformers-0000{number}-of-00002.safetensors": sorted(weights)[number - 1::2] for number in (1, 2)}
    for file, names in shards.items():
        save_file({name: weights[name] for name in names}, folder / file, metadata={"format": "pt"})
    write_json(folder / "transformers.safetensors.index.json", {
        "metadata": {}, "weight_map": {name: file for file, names in shards.items() for name in names}})
    shutil.copy(Path(original) / "model.safetensors", folder)
    settings = read_json(folder / "config.json", "")
    write_json(folder / "config.json", settings | {"transformers_weights": "transformers.safetensors.index.json"})
    return folder


def rms_norm(x, scale):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * scale


def rotate(x, theta, scaled):
    """RoPE of Llama 3 in the original form, as a product of complex numbers; (heads, T, head_dim)."""
    frequencies = theta ** -(torch.arange(0, x.shape[-1], 2).double() / x.shape[-1])
    if scaled:  # factor 32, low and high frequency factors 1 and 4, 8192 positions of the old model
        wavelengths = 2 * math.pi / frequencies
        smooth = (8192 / wavelengths - 1) / (4 - 1)
        medium = (1 - smooth) * frequencies / 32 + smooth * frequencies
        frequencies = torch.where(wavelengths > 8192, frequencies / 32, torch.where(wavelengths < 8192 / 4, frequencies,
                                                                                    medium))
    angles = torch.outer(torch.arange(x.shape[1]).double(), frequencies)
    pairs = torch.view_as_complex(x.double().unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(2).float()


def original_decoder(weights, part, x, config, scaled=False):
    """A decoder of the original layout, written out; (T, H)."""
    for layer in range(config.num_hidden_layers):
        name = f"{part}.layers.{layer}"
        h = rms_norm(x, weights[f"{name}.sa_norm.scale"])
        q, k, v = ((h @ weights[f"{name}.attn.{letter}_proj.weight"].T).unflatten(-1, (-1, config.head_dim)).transpose(0, 1)
                   for letter in "qkv")
        q, k = (rotate(heads, config.rope_parameters["rope_theta"], scaled) for heads in (q, k))
        k, v = (heads.repeat_interleave(len(q) // len(heads), 0) for heads in (k, v))
        mask = torch.full((len(x), len(x)), -torch.inf).triu(1)
        scores = q @ k.transpose(1, 2) / config.head_dim ** 0.5 + mask
        x = x + (scores.softmax(-1) @ v).transpose(0, 1).flatten(1) @ weights[f"{name}.attn.output_proj.weight"].T
        h = rms_norm(x, weights[f"{name}.mlp_norm.scale"])
        gate, up = (h @ weights[f"{name}.mlp.{letter}.weight"].T for letter in ("w1", "w3"))
        x = x + (torch.nn.functional.silu(gate) * up) @ weights[f"{name}.mlp.w2.weight"].T
    return rms_norm(x, weights[f"{part}.norm.scale"])


def original_logits(weights, config, text_ids, frame, scaled=False):
    """Logits of codebook 0 after the text, and of the other codebooks of a frame, from original weights."""
    h = original_decoder(weights, "backbone", weights["text_embeddings.weight"][text_ids], config, scaled)
    embeds = weights["audio_embeddings.weight"][frame[:-1] + torch.arange(len(frame) - 1) * config.vocab_size]
    depth = torch.cat([h[-1:], embeds]) @ weights["projection.weight"].T
    depth = original_decoder(weights, "decoder", depth, config.depth_decoder_config, scaled)
    return h @ weights["codebook0_head.weight"].T, torch.einsum("kh,khv->kv", depth[1:], weights["audio_head"])


@torch.no_grad()
def loaded_logits(model, text_ids, frame):
    """The same from a loaded model, by transformers' own forward."""
    h = model.backbone_model(inputs_embeds=model.embed_text_tokens(text_ids)[None]).last_hidden_state
    depth = model.depth_decoder(input_ids=torch.cat([frame.new_zeros(1), frame[:-1]])[None],
                                backbone_last_hidden_state=h[:, -1])
    return model.lm_head(h)[0], depth.logits[0]


def check_logits(folder, scaled=False):
    model, weights = load.load_base(folder, CPU).model, load_file(Path(folder) / "model.safetensors")
    text_ids, frame = torch.arange(40, 60), torch.tensor([5, 1, 30, 7])
    for actual, expected in zip(loaded_logits(model, text_ids, frame),
                                original_logits(weights, model.config, text_ids, frame, scaled)):
        assert expected.std() > 0.1
        torch.testing.assert_close(actual, expected, atol=1e-4, rtol=1e-4)


def test_two_formats_in_one_folder_are_one_model(spread_toy, two_formats, tmp_path, capsys):
    """Mistake: of sesame/csm-1b, which holds two formats, the codec is read from the file that has none, the doctor asks for
    the wrong files, or adapters of its mirrors are refused."""
    single, both = load.load_base(spread_toy, CPU), load.load_base(str(two_formats), CPU)
    assert both.fingerprint == single.fingerprint and both.codec.fingerprint() == single.codec.fingerprint()
    assert checks.check_local_model(two_formats).status == "ok"
    expected = codes(make_adapter(spread_toy, tmp_path / "adapter", 1))
    assert codes(load_voice(CPU, tmp_path / "adapter", base=str(two_formats))) == expected
    for name, base in (("one", spread_toy), ("two", str(two_formats))):
        release.write_merged(tmp_path / "adapter", tmp_path / name, base)
    assert "transformers_weights" not in (tmp_path / "two" / "config.json").read_text()
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    (two_formats / "transformers-00002-of-00002.safetensors").unlink()
    assert "lacks transformers-00002" in checks.check_local_model(two_formats).detail


def test_a_copy_with_the_original_half_alone_is_loaded(spread_toy, two_formats, original):
    """Mistake: an original fine-tune beside Sesame's config.json is looked for in files that are not there."""
    for path in two_formats.glob("transformers*"):
        path.unlink()
    shutil.copytree(Path(original) / "codec", two_formats / "codec")
    assert load.load_base(str(two_formats), CPU).fingerprint == load.load_base(spread_toy, CPU).fingerprint
    assert checks.check_local_model(two_formats).status == "ok"


def test_original_weights_compute_as_the_original_code(original):
    """Mistake: queries and keys in the order of the other RoPE, or two names swapped: speech that is almost right."""
    check_logits(original)


def test_the_original_layout_is_the_same_model(spread_toy, original, tmp_path):
    """Mistake: another fingerprint, so that adapters are refused; another codec; another prompt; another result."""
    one, other = load.load_base(spread_toy, CPU), load.load_base(original, CPU)
    for name, weight in one.model.state_dict().items():
        assert torch.equal(weight, other.model.state_dict()[name]), name
    assert other.fingerprint == one.fingerprint and other.codec.fingerprint() == one.codec.fingerprint()
    assert other.prompt_builder.text_ids("Hi.", "0") == one.prompt_builder.text_ids("Hi.", "0")
    tables = [other.model.get_parameter(name) for name in (load.BACKBONE_TABLE, load.DEPTH_TABLE)]
    assert tables[0] is tables[1]
    expected = codes(make_adapter(original, tmp_path / "adapter", 1))
    assert codes(load_voice(CPU, tmp_path / "adapter", base=spread_toy)) == expected
    assert codes(load_voice(CPU, original)) == codes(load_voice(CPU, spread_toy)) != expected
    half = load.load_base(original, device.DeviceConfig("cpu", torch.bfloat16, ""))
    assert half.model.dtype == torch.bfloat16 and half.fingerprint == one.fingerprint


@pytest.fixture
def llama_vocabulary(tmp_path, monkeypatch):
    """The folder of a toy in the original layout with Llama 3's vocabulary and RoPE and known sizes, without a config."""
    monkeypatch.setitem(layouts.FLAVORS, (32, 64), ("toy", 8))
    monkeypatch.setitem(layouts.FLAVORS, (16, 32), ("toy", 8))
    settings = model_shapes.config("toy").to_dict()
    settings |= {"text_vocab_size": 128256, "audio_token_id": 128002, "audio_eos_token_id": 128003}
    monkeypatch.setattr(model_shapes, "config", lambda _: CsmConfig(**settings))
    model = model_shapes.untrained("toy")
    spread_logits(model)
    base = str(model_shapes.save(model, tmp_path / "llama", "toy"))
    return Path(write_original(base, tmp_path / "original", config=False, tokenizer=False))


def test_a_config_is_read_off_the_shapes(llama_vocabulary):
    """Mistake: weights without a config are refused, or computed with other heads or another RoPE than by the original."""
    for name in FILES[:3]:
        shutil.copy(llama_vocabulary.parent / "llama" / name, llama_vocabulary)
    model_config = pretrained.config(str(llama_vocabulary))
    assert model_config.num_attention_heads == 4 and model_config.depth_decoder_config.num_key_value_heads == 1
    assert model_config.codec_config.num_filters == 4, "the codec of the folder has its own config"
    check_logits(str(llama_vocabulary), scaled=True)
    assert checks.check_local_model(llama_vocabulary).status == "ok"


def test_weights_alone_take_tokenizer_and_codec_from_the_hub(llama_vocabulary):
    """Mistake: MisoTTS, one file of weights, is called an adapter or incomplete, or its missing parts are not named."""
    shutil.rmtree(llama_vocabulary / "codec")
    base = str(llama_vocabulary)
    assert pretrained.tokenizer_source(base) == ("unsloth/csm-1b", "")
    with pytest.raises(KitError, match="kyutai/mimi is not on this machine|kyutai/mimi could not be read"):
        codec.load(base)
    check = checks.check_local_model(llama_vocabulary)
    assert check.status == "ok" and "original layout" in check.detail
    with pytest.raises(KitError, match="kyutai/mimi"):
        load_voice(CPU, base)


def cached(home: Path, repository: str, folder: str | Path) -> None:
    """Put a folder into the cache of the hub, as if it had been downloaded."""
    cache = home / "hub" / f"models--{repository.replace('/', '--')}"
    shutil.copytree(folder, cache / "snapshots" / ("a" * 40))
    (cache / "refs").mkdir()
    (cache / "refs" / "main").write_text("a" * 40)


def test_both_layouts_from_the_hub(spread_toy, two_formats, llama_vocabulary, tmp_path, monkeypatch):
    """Mistake: what works with a folder does not with a hub id: the wrong file of two formats, a config or tokenizer that is
    not there, a codec that is not fetched."""
    home, llama = tmp_path / "home", str(llama_vocabulary.parent / "llama")
    cached(home, "sesame/csm-1b", two_formats)
    cached(home, "kyutai/mimi", llama_vocabulary / "codec")
    shutil.rmtree(llama_vocabulary / "codec")
    cached(home, "miso/weights", llama_vocabulary)
    cached(home, "unsloth/csm-1b", llama)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(home / "hub"))
    for name, folder in (("sesame/csm-1b", spread_toy), ("miso/weights", llama)):
        base, expected = load_voice(CPU, name).base, load.load_base(folder, CPU)
        assert base.fingerprint == expected.fingerprint and base.codec.fingerprint() == expected.codec.fingerprint()
        assert base.prompt_builder.text_ids("Hi.", "0") == expected.prompt_builder.text_ids("Hi.", "0")
        assert base.revision == "a" * 40 and checks.check_hub_model(name).status == "ok"


@pytest.mark.parametrize("sizes, expected", [
    # the published sizes: hidden, kv width, intermediate, layers of backbone and depth decoder
    (((2048, 512, 8192, 16), (1024, 256, 8192, 4)), ((32, 8, 64), (8, 2, 128))),  # CSM-1B
    (((4096, 1024, 14336, 32), (1536, 384, 6912, 8)), ((32, 8, 128), (24, 6, 64))),  # MisoTTS
    (((1536, 384, 8192, 6), (1024, 256, 4096, 4)), None),  # Marvis, whose vocabulary is not Llama's
])
def test_published_sizes(sizes, expected):
    """Mistake: heads of the wrong width, which shapes do not tell: with 384 rows of keys MisoTTS has 6 and Marvis 3."""
    shapes = {"text_embeddings.weight": [128256 if expected else 49152, sizes[0][0]], "audio_head": [31, sizes[1][0], 2051]}
    for part, (hidden, kv_width, intermediate, count) in zip(("backbone", "decoder"), sizes):
        shapes[f"{part}.norm.scale"] = [hidden]
        for layer in range(count):
            name = f"{part}.layers.{layer}"
            shapes |= {f"{name}.sa_norm.scale": [hidden], f"{name}.mlp.w1.weight": [intermediate, hidden],
                       f"{name}.attn.q_proj.weight": [hidden, hidden], f"{name}.attn.k_proj.weight": [kv_width, hidden]}
    if expected is None:
        with pytest.raises(KitError, match="49152 text tokens.*config.json"):
            layouts.config_from_shapes(shapes, {}, "marvis")
        return
    config = layouts.config_from_shapes(shapes, {}, "base")
    for part, (heads, kv_heads, head_dim), (hidden, _, intermediate, count) in zip(
            (config, config.depth_decoder_config), expected, sizes):
        assert (part.num_attention_heads, part.num_key_value_heads, part.head_dim) == (heads, kv_heads, head_dim)
        assert (part.hidden_size, part.intermediate_size, part.num_hidden_layers) == (hidden, intermediate, count)
    assert (config.num_codebooks, config.vocab_size, config.codec_config.num_quantizers) == (32, 2051, 32)
    assert config.depth_decoder_config.max_position_embeddings == 33
    assert config.depth_decoder_config.backbone_hidden_size == sizes[0][0]


def test_unknown_sizes_are_refused_with_the_way_out(original, tmp_path):
    """Mistake: heads of a guessed width."""
    folder = tmp_path / "unknown"
    shutil.copytree(original, folder)
    (folder / "config.json").unlink()
    shapes = {name: [*weight.shape] for name, weight in load_file(folder / "model.safetensors").items()}
    with pytest.raises(KitError, match="text tokens.*Put a config.json of transformers' CsmConfig"):
        pretrained.config(str(folder))
    with pytest.raises(KitError, match="unknown sizes 32 and 64: whether it has heads of 64 or 128.*Put a config.json"):
        layouts.config_from_shapes(shapes | {"text_embeddings.weight": [128256, 32]}, {}, "base")


def test_pickles_of_the_original_code_are_refused(spread_toy, tmp_path):
    """Mistake: a fine-tune saved as model_merged.pt is opened, or its user reads of a config.json that is missing."""
    (tmp_path / "model_merged.pt").write_bytes(b"pickle")
    with pytest.raises(KitError, match=r"as a pickle \(model_merged.pt\).*Wanted: safetensors.*save_file"):
        load.load_base(str(tmp_path), CPU)


def test_unsloth_refuses_the_original_layout(original, monkeypatch):
    """Mistake: unsloth fails in the middle of a load, at names that it does not know."""
    monkeypatch.setitem(sys.modules, "unsloth", types.SimpleNamespace(FastModel=None))
    with pytest.raises(KitError, match="original layout.*--backend peft"):
        load.load_base(original, CPU, backend="unsloth")


def test_an_original_export_is_the_merged_voice(spread_toy, original, tmp_path, monkeypatch):
    """Mistake: a fine-tune that MLX or candle users load is off by its RoPE, has a codec, or cannot be read by the kit."""
    run = Run("tiny", tmp_path / "runs")
    make_adapter(spread_toy, run.adapter, 1)
    write_json(run.adapter / "config.json", read_json(run.adapter / "config.json", "") | {"prefix_space": True})
    monkeypatch.chdir(tmp_path)
    assert cli.main(["export", "--run", "tiny", "--merged", "--no-watermark", "--layout", "original"]) == 0
    out, plain = run.folder / "release" / "original", release.export(run, merge=True, watermarked=False)
    expected = original_weights(load.load_base(str(plain), CPU).model)
    weights = load_file(out / "model.safetensors")
    assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    settings = read_json(out / "config.json", "")
    assert settings["model_type"] == "csm" and settings["audio_num_codebooks"] == 4 and settings["audio_vocab_size"] == 35
    text = (out / card.FILE).read_text(encoding="utf-8")
    assert "kyutai/mimi" in text and "from transformers" not in text and "library_name" not in text
    assert '"text": " It is raining' in (plain / card.FILE).read_text(encoding="utf-8"), "the prompt of the training"
    shutil.copytree(Path(original) / "codec", out / "codec")
    assert codes(load_voice(CPU, out)) == codes(load_voice(CPU, plain)) == codes(load_voice(CPU, run.adapter))
    assert release.export(run, merge=True, base=original, watermarked=False, out=tmp_path / "again")
    again, first = (load.load_base(str(folder), CPU) for folder in (tmp_path / "again", plain))
    for one, other in ((again.model, first.model), (again.codec.model, first.codec.model)):
        weights, expected = one.state_dict(), other.state_dict()
        assert weights.keys() == expected.keys() and all(torch.equal(weights[name], expected[name]) for name in expected)
    with pytest.raises(KitError, match="only merged weights can have the original one. Give --merged too"):
        release.export(run, layout="original")


def test_flavors_are_named_as_sesame_does():
    """Mistake: a config.json that candle or mlx-audio cannot read."""
    fields = layouts.flavor_fields(model_shapes.config("csm-1b"))
    assert fields == {"text_vocab_size": 128256, "audio_vocab_size": 2051, "audio_num_codebooks": 32,
                      "backbone_flavor": "llama-1B", "decoder_flavor": "llama-100M"}


def test_tables_of_their_own_have_no_original_layout(base, tmp_path):
    """Mistake: of two different audio embeddings one is lost in the export."""
    model = load.untie(base.model)
    model.depth_decoder.model.embed_tokens.weight.data += 1
    with pytest.raises(KitError, match="an audio embedding each"):
        release.write_original(model, tmp_path / "out")


def test_the_prefix_space_stays_with_the_voice(spread_toy, tmp_path):
    """Mistake: a voice trained on `[0] text` is asked with `[0]text`, or changes the prompts of others on the same base."""
    make_adapter(spread_toy, tmp_path / "spaced", 1)
    write_json(tmp_path / "spaced" / "config.json", json.loads(Config(base=spread_toy, prefix_space=True).to_json()))
    make_adapter(spread_toy, tmp_path / "plain", 2)
    voices = load_voices(CPU, {"spaced": tmp_path / "spaced", "plain": tmp_path / "plain", "base": spread_toy})
    release.write_merged(tmp_path / "spaced", tmp_path / "merged", spread_toy)
    voices["merged"] = load_voice(CPU, tmp_path / "merged")
    prompts = {name: voice.base.prompt_builder.build("p", [Turn("Hi.", "0")]).input_ids for name, voice in voices.items()}
    texts = {name: voices[name].base.prompt_builder.tokenizer.decode(ids[1:-1]) for name, ids in prompts.items()}
    assert texts == {"spaced": "[0] Hi.", "merged": "[0] Hi.", "plain": "[0]Hi.", "base": "[0]Hi."}
    assert codes(voices["plain"]) == codes(load_voice(CPU, tmp_path / "plain"))
    builder = load.load_base(spread_toy, CPU, prefix_space=True).prompt_builder
    assert builder.text_ids("Hi.", "0") == prompts["spaced"].tolist()
