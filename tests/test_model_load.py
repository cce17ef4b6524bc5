"""Loading a base: the embedding tie that transformers loses, and checkpoints that are incomplete or of another kind."""

import json
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CsmForConditionalGeneration

from sample_data.build import model_shapes
from tts_kit import device, pretrained
from tts_kit.errors import KitError
from tts_kit.model import attention, load

CPU = device.choose("cpu")


def copy_with(toy: str, folder: Path, change) -> str:
    """A copy of the toy with changed weights on disk."""
    shutil.copytree(toy, folder)
    weights = load_file(folder / "model.safetensors")
    weights = {name: weight.clone() for name, weight in weights.items()}
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return str(folder)


def tables(model):
    return model.backbone_model.embed_tokens.embed_audio_tokens.weight, model.depth_decoder.model.embed_tokens.weight


def test_audio_tables_are_tied_after_load_and_after_reload(base, toy, tmp_path):
    """Mistake: transformers 5.0 to 5.20 leave the backbone's audio table random, and every prediction is noise."""
    saved = load_file(Path(toy) / "model.safetensors")
    assert load.BACKBONE_TABLE not in saved, "the toy must be saved as transformers saves it, with one table"
    backbone, depth = tables(base.model)
    assert backbone is depth
    assert torch.equal(depth, saved[load.DEPTH_TABLE])
    base.model.codec_model = base.codec.model
    reloaded = load.load_base(str(model_shapes.save(base.model, tmp_path / "reloaded", "toy")), CPU)
    assert torch.equal(tables(reloaded.model)[0], depth) and tables(reloaded.model)[0] is tables(reloaded.model)[1]


def test_tables_that_transformers_has_tied_stay_as_they_are(base, monkeypatch):
    """Mistake: transformers 5.21 and later tie the tables, and the kit compares 134 million numbers with themselves."""
    monkeypatch.setattr(torch, "equal", None)
    table = tables(base.model)[0]
    load.tie(base.model, set(), "toy")
    assert tables(base.model)[0] is tables(base.model)[1] is table


def test_either_table_alone_is_enough(toy, tmp_path):
    """Mistake: only one direction of the tie is repaired."""
    def swap(weights):
        weights[load.BACKBONE_TABLE] = weights.pop(load.DEPTH_TABLE)

    model = load.load_base(copy_with(toy, tmp_path / "swapped", swap), CPU).model
    assert tables(model)[0] is tables(model)[1]
    assert torch.equal(tables(model)[0], load_file(Path(toy) / "model.safetensors")[load.DEPTH_TABLE])


def test_a_checkpoint_without_any_audio_table_is_refused(toy, tmp_path):
    """Mistake: a random table is accepted silently."""
    folder = copy_with(toy, tmp_path / "none", lambda weights: weights.pop(load.DEPTH_TABLE))
    with pytest.raises(KitError, match="lacks 2 weights, among them backbone_model.embed_tokens.*download"):
        load.load_base(folder, CPU)


def test_tables_that_differ_are_refused(toy, tmp_path):
    """Mistake: a checkpoint saved after a broken load is used with its random table."""
    def differ(weights):
        weights[load.BACKBONE_TABLE] = weights[load.DEPTH_TABLE] + 1

    with pytest.raises(KitError, match="they differ.*original checkpoint"):
        load.load_base(copy_with(toy, tmp_path / "differ", differ), CPU)


def test_a_base_without_depth_decoder_is_refused(toy, tmp_path):
    """Mistake: a random depth decoder is fine-tuned for hours."""
    def cut(weights):
        for name in [name for name in weights if name.startswith("depth_decoder.model.layers")]:
            del weights[name]

    with pytest.raises(KitError, match=r"lacks \d+ weights, among them depth_decoder.model.layers.*download"):
        load.load_base(copy_with(toy, tmp_path / "cut", cut), CPU)


def test_an_incomplete_codec_is_refused(toy, tmp_path):
    """Mistake: a random layer in the codec turns every clip into noise codes."""
    def cut(weights):
        del weights["codec_model.encoder.layers.0.conv.weight"]

    with pytest.raises(KitError, match="lacks 1 of the codec's weights"):
        load.load_base(copy_with(toy, tmp_path / "cut", cut), CPU)


def test_another_architecture_is_named(toy, tmp_path):
    """Mistake: a Llama folder fails deep inside with a missing attribute."""
    shutil.copytree(toy, tmp_path / "llama")
    (tmp_path / "llama" / "config.json").write_text(json.dumps({"model_type": "llama"}))
    with pytest.raises(KitError, match="'llama' model; this kit fine-tunes CSM"):
        load.load_base(str(tmp_path / "llama"), CPU)


@pytest.mark.parametrize("name", ["no/such-model", "nowhere", "runs/../../etc"])
def test_a_missing_base_is_named(name):
    """Mistake: a page of the hub's traceback instead of what was looked for and what to do."""
    with pytest.raises(KitError, match="(?s)" + name + ".*(could not be read|was found neither|is no folder here)"):
        load.load_base(name, CPU)


def test_pickled_weights_are_not_opened(toy, tmp_path):
    """Mistake: a checkpoint with pytorch_model.bin runs code when it is loaded."""
    shutil.copytree(toy, tmp_path / "pickle")
    weights = load_file(tmp_path / "pickle" / "model.safetensors")
    (tmp_path / "pickle" / "model.safetensors").unlink()
    torch.save(weights, tmp_path / "pickle" / "pytorch_model.bin")
    with pytest.raises(KitError, match="safetensors"):
        load.load_base(str(tmp_path / "pickle"), CPU)


def test_the_codec_stays_in_float32_with_a_16_bit_model(toy):
    """Mistake: loading in bf16 rounds the codec's weights, and the codes change."""
    half = load.load_base(toy, device.DeviceConfig("cpu", torch.bfloat16, ""))
    assert half.model.dtype == torch.bfloat16
    assert {weight.dtype for weight in half.codec.model.parameters()} == {torch.float32}
    assert half.codec.fingerprint() == load.load_base(toy, CPU).codec.fingerprint()


def test_the_fingerprint_does_not_depend_on_the_dtype(toy, tmp_path):
    """Mistake: an adapter trained in bf16 is refused on a float16 card, or one for other weights is accepted."""
    names = {load.load_base(toy, device.DeviceConfig("cpu", dtype, "")).fingerprint
             for dtype in (torch.float32, torch.bfloat16, torch.float16)}
    assert len(names) == 1
    name = "depth_decoder.model.layers.0.mlp.up_proj.weight"
    other = copy_with(toy, tmp_path / "other", lambda weights: weights.update({name: -weights[name]}))
    assert load.load_base(other, CPU).fingerprint not in names


@pytest.mark.parametrize("damage", ["truncated", "another shape"])
def test_damaged_weights_are_named(toy, tmp_path, damage):
    """Mistake: half a download ends in a traceback of safetensors or of torch."""
    message = "damaged could not be read"
    def widen(weights):
        weights["lm_head.weight"] = torch.zeros(7, 7)

    folder = copy_with(toy, tmp_path / "damaged", widen if damage == "another shape" else lambda weights: None)
    if damage == "truncated":
        file = Path(folder) / "model.safetensors"
        file.write_bytes(file.read_bytes()[:5000])
        message = "damaged or incompletely downloaded: 5,000 bytes"
    with pytest.raises(KitError, match=message):
        load.load_base(folder, CPU)


def test_unsloth_without_a_gpu_is_refused_with_an_alternative():
    """Mistake: `import unsloth` raises NotImplementedError."""
    with pytest.raises(KitError, match="needs an NVIDIA GPU.*'peft' runs everywhere"):
        load.choose_backend("unsloth", CPU)
    assert load.choose_backend("auto", CPU)[0] == "peft"


def test_unsloth_keeps_rope_and_gets_the_attention_of_packed_clips(toy, monkeypatch):
    """Mistake: RoPE's frequencies are rounded to 16 bits with the weights, which turns position 1000 by another angle; or
    packed clips get a mask of the row's length squared."""
    def from_pretrained(name, auto_model, **_):  # as unsloth does: float32, some projections in float16
        model = auto_model.from_pretrained(name)
        load.tie(model, {load.BACKBONE_TABLE}, name)
        model.lm_head.half()
        return model, None

    monkeypatch.setitem(sys.modules, "unsloth", SimpleNamespace(FastModel=SimpleNamespace(from_pretrained=from_pretrained)))
    loaded = load.load_base(toy, device.DeviceConfig("cpu", torch.float16, ""), backend="unsloth").model
    reference = CsmForConditionalGeneration.from_pretrained(toy)
    for decoder, name in ((loaded.backbone_model, "backbone_model"), (loaded.depth_decoder.model, "depth_decoder.model")):
        frequencies = decoder.rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32
        assert torch.equal(frequencies, reference.get_submodule(name).rotary_emb.inv_freq)
    projections = [weight for name, weight in loaded.named_parameters() if name.endswith("_proj.weight")]
    assert {weight.dtype for weight in (*projections, loaded.lm_head.weight)} == {torch.float16}
    assert loaded.config._attn_implementation == attention.NAME


def test_the_toy_is_read_by_plain_transformers(toy):
    """Mistake: a folder that only the kit can read."""
    with pretrained.explain_load_errors(toy):
        assert CsmForConditionalGeneration.from_pretrained(toy).config.num_codebooks == 4
