"""Several voices on one base: none changes another, and broken, foreign or missing adapters are refused by name."""

import os
import shutil
import subprocess
import sys
import threading

import hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from test_generation_engine import GREEDY, prompts

from tts_kit import device
from tts_kit.comparison import arms, synthesis
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import read_json, write_json
from tts_kit.model import load, lora
from tts_kit.speech import speak
from tts_kit.speech.voice import Voice, add_adapter, load_voice, load_voices

CPU = device.choose("cpu", "float32")
SPEAKER = "3"


def codes(voice, finetuned=True):
    with voice.acquire_engine(finetuned) as engine:
        return [generation.codes.tolist() for generation in engine.generate(
            prompts(voice.base, "One.", "Two, longer."), GREEDY, [0, 0], [8, 8])]


def make_adapter(base_path, folder, seed, targets="both", rank=4, scale=0.2):
    """Save an adapter with random weights; return it as a voice."""
    base = load.load_base(base_path, CPU)
    model = lora.add_lora(base.model, rank, 8.0, targets)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, scale, generator=torch.Generator().manual_seed(sum(name.encode()) + seed))
    lora.save(model, folder, base, Config(base=base_path).to_json(), {"speaker": SPEAKER})
    return Voice(base, model)


@pytest.fixture(scope="module")
def adapters(spread_toy, tmp_path_factory):
    """The folder of three adapters for one base, one of another rank and of the backbone alone; and the codes of each."""
    root = tmp_path_factory.mktemp("voices")
    expected = {"a": codes(make_adapter(spread_toy, root / "a", 1)),
                "b": codes(make_adapter(spread_toy, root / "b", 2, "backbone", 2)),
                "c": codes(make_adapter(spread_toy, root / "c", 3))}
    return root, expected


def test_voices_share_a_base_and_keep_their_codes(spread_toy, adapters):
    """Mistake: after a switch a voice keeps a part of the one before it, or the base has a part of an adapter."""
    root, expected = adapters
    plain = load.load_base(spread_toy, CPU)
    expected = expected | {"base": codes(Voice(plain, plain.model))}
    voices = load_voices(CPU, {"base": spread_toy, "b": root / "b", "a": str(root / "a"), "c": root / "c"})
    assert len({id(voice.base) for voice in voices.values()}) == 1
    assert len({str(voice_codes) for voice_codes in expected.values()}) == 4
    for name in ("base", "a", "b", "a", "c", "base", "b", "c", "a"):
        assert codes(voices[name]) == expected[name], name
    assert codes(voices["a"], finetuned=False) == expected["base"] and codes(voices["a"]) == expected["a"]
    assert voices["a"].speaker == SPEAKER and voices["base"].speaker == "0" and not voices["base"].is_finetuned
    assert not any(weight.requires_grad for weight in voices["a"].model.parameters())


def test_a_used_base_accepts_an_adapter(spread_toy, adapters):
    """Mistake: the engine of the bare model is kept, and an adapter that is added later has no effect."""
    root, expected = adapters
    voice = load_voice(CPU, base=spread_toy)
    before = codes(voice)
    assert codes(add_adapter(voice, root / "a")) == expected["a"] != before
    assert codes(voice) == before


def test_a_later_adapter_is_used_and_fused(adapters):
    """Mistake: weights that were added after the first sentence are not used, or are computed by PEFT's slow layers."""
    root, expected = adapters
    first = load_voice(CPU, root / "b")
    assert codes(first) == expected["b"]
    later = add_adapter(first, root / "a")
    assert codes(later) == expected["a"]
    layers = [module for module in later.model.modules() if isinstance(module, lora.LoraLayer)]
    assert len(layers) == 28 and all(type(layer) is lora.FusedLoraLinear for layer in layers)
    assert codes(later) == expected["a"] and codes(first) == expected["b"]


def test_a_voice_invalidates_its_engine(adapters):
    """Mistake: a strength or a training checkpoint is set, and the engine generates with the weights from before."""
    root, expected = adapters
    voice = load_voice(CPU, root / "a")
    assert codes(voice) == expected["a"]
    voice.load_weights(root / "c" / lora.WEIGHTS_FILE)
    assert codes(voice) == expected["c"]
    voice.set_strength(0.0)
    assert codes(voice) == codes(voice, finetuned=False)
    voice.set_strength(1.0)
    voice.load_weights(root / "a" / lora.WEIGHTS_FILE)
    assert codes(voice) == expected["a"]


def test_strength_belongs_to_one_voice(adapters):
    """Mistake: the strength of one voice changes all of them."""
    root, expected = adapters
    voices = load_voices(CPU, {"a": root / "a", "c": root / "c"})
    voices["c"].set_strength(0.0)
    assert codes(voices["a"]) == expected["a"] and codes(voices["c"]) == codes(voices["a"], finetuned=False)
    voices["c"].set_strength(1.0)
    assert codes(voices["c"]) == expected["c"]


@pytest.mark.parametrize("other", ["a", "c"])
def test_voices_that_share_a_base_are_never_mixed(adapters, other):
    """Mistake: a voice that starts while another one is generating changes its weights, without an error."""
    root, expected = adapters
    voices = load_voices(CPU, {"a": root / "a", "c": root / "c"})
    speech_stream = speak.stream_speech("One.", voices["a"])
    next(speech_stream)
    with pytest.raises(KitError, match="still generating something else"):
        codes(voices[other])
    speech_stream.close()
    assert codes(voices[other]) == expected[other]
    results = []

    def talk(name):
        for _ in range(5):
            try:
                results.append((name, codes(voices[name])))
            except KitError:
                results.append((name, expected[name]))

    threads = [threading.Thread(target=talk, args=name) for name in "acac"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 20 and all(generated == expected[name] for name, generated in results)


def test_voices_of_different_bases_are_separate(spread_toy, toy, adapters):
    """Mistake: an adapter is loaded into whichever base came first."""
    voices = load_voices(CPU, {"a": adapters[0] / "a", "base": toy, "spread": spread_toy})
    assert voices["a"].base is voices["spread"].base is not voices["base"].base


def test_a_refused_adapter_changes_no_other(adapters, tmp_path):
    """Mistake: a part of a broken adapter stays in the model and changes every voice."""
    root, expected = adapters
    voice = load_voice(CPU, root / "a")
    assert codes(voice) == expected["a"]
    for damage, message in REFUSED.values():
        folder = shutil.copytree(root / "c", tmp_path / damage.__name__)
        damage(folder)
        with pytest.raises(KitError, match=message):
            add_adapter(voice, folder)
    assert codes(voice) == expected["a"] and list(voice.model.peft_config) == [lora.DEFAULT_ADAPTER]


@pytest.mark.parametrize("field, value", [
    ("init_lora_weights", "pissa"), ("megatron_config", {"anything": 1}), ("layers_to_transform", [0]),
    ("lora_dropout", 0.5), ("trainable_token_indices", [1]), ("target_modules", ".*"), ("target_modules", ["q_proj"])])
def test_unsupported_settings_never_reach_the_base(adapters, tmp_path, field, value):
    """Mistake: PEFT applies a foreign config: it modifies weights that other voices use, imports a module that is named
    there, or ends in a traceback half-way."""
    root, expected = adapters
    voice = load_voice(CPU, root / "a")
    folder = shutil.copytree(root / "c", tmp_path / "c")
    change(folder, lora.CONFIG_FILE, **{field: value})
    with pytest.raises(KitError, match=f"adapter_config.json has {field} .*plain LoRA only"):
        add_adapter(voice, folder)
    assert codes(voice) == expected["a"] and list(voice.model.peft_config) == [lora.DEFAULT_ADAPTER]


def test_a_refused_adapter_does_not_wrap_the_base(spread_toy, adapters, tmp_path):
    """Mistake: an adapter without some layers is detected only when it is in the model already."""
    voice = load_voice(CPU, base=spread_toy)
    folder = shutil.copytree(adapters[0] / "c", tmp_path / "c")
    remove_layers(folder)
    with pytest.raises(KitError, match="the weights of another adapter"):
        add_adapter(voice, folder)
    assert not any(isinstance(module, lora.LoraLayer) for module in voice.base.model.modules())


def test_recommended_settings_are_the_voices_defaults(adapters, tmp_path):
    """Mistake: what was measured to be best is kept and not used, or reaches a voice on the same base; or a comparison arm
    leaves the adapter at another strength."""
    root, expected = adapters
    folder = shutil.copytree(root / "a", tmp_path / "a")
    change(folder, lora.METADATA_FILE, recommended={"settings": {"strength": 0.0, "guidance": 2, "temperature": 0.4}})
    for voice in (load_voice(CPU, folder), load_voices(CPU, {"c": root / "c", "a": folder})["a"]):
        assert (voice.sampling.guidance, voice.sampling.temperature, voice.strength) == (2, 0.4, 0)
        assert voice.sampling.depth_temperature == load_voice(CPU, root / "a").sampling.depth_temperature
        assert codes(voice) == codes(voice, finetuned=False) != expected["a"]
        with synthesis.apply_settings(arms.parse("finetuned:strength=1"), voice, None) as adjusted:
            assert codes(adjusted) == expected["a"]
        assert codes(voice) == codes(voice, finetuned=False) and voice.strength == 0


@pytest.mark.parametrize("recommended", [
    [], 5, {"settings": []}, {"settings": {"guidance": 5.1}}, {"settings": {"guidance": float("nan")}},
    {"settings": {"strength": -0.1}}, {"settings": {"top_k": 5}}, {"settings": {"temperature": "0.4"}}, {"reason": "x"},
    {"settings": {"strength": True}}], ids=str)
def test_recommended_settings_from_elsewhere_are_checked(adapters, tmp_path, recommended):
    """Mistake: an adapter from the hub sets what nobody could, or ends in a traceback."""
    folder = shutil.copytree(adapters[0] / "a", tmp_path / "a")
    change(folder, lora.METADATA_FILE, recommended=recommended)
    with pytest.raises(KitError, match="recommends .*; wanted strength from 0 to 10, guidance from 0 to 5, temperature"):
        load_voice(CPU, folder)


@pytest.mark.parametrize("reference", [5, ["x"], "A clip that is not there."], ids=str)
def test_a_recommended_reference_from_elsewhere_is_checked(adapters, tmp_path, reference):
    """Mistake: an adapter from the hub without its clip, or with another type of transcript, ends in a traceback."""
    folder = shutil.copytree(adapters[0] / "a", tmp_path / "a")
    change(folder, lora.METADATA_FILE, recommended={"settings": {}, "reference": reference})
    with pytest.raises(KitError, match="the reference"):
        load_voice(CPU, folder)


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_must_be_finite(adapters, strength):
    """Mistake: a voice of NaN weights is merged and exported."""
    with pytest.raises(KitError, match="must be a finite number"):
        lora.set_strength(load_voice(CPU, adapters[0] / "a").model, strength)


def truncate(folder):
    path = folder / lora.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def make_pointer(folder):
    (folder / lora.WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 134\n")


def make_pickle(folder):
    (folder / lora.WEIGHTS_FILE).rename(folder / "adapter_model.bin")


def change(folder, file, **fields):
    write_json(folder / file, read_json(folder / file, "") | fields)


def change_rank(folder):
    change(folder, lora.CONFIG_FILE, r=8)


def use_dora(folder):
    change(folder, lora.CONFIG_FILE, use_dora=True)


def remove_layers(folder):
    weights = load_file(folder / lora.WEIGHTS_FILE)
    save_file({name: weight for name, weight in weights.items() if "depth" not in name}, folder / lora.WEIGHTS_FILE)


def change_width(folder):
    weights = load_file(folder / lora.WEIGHTS_FILE)
    name = next(name for name in weights if "depth" in name and "lora_A" in name)
    save_file(weights | {name: weights[name][:, 1:].contiguous()}, folder / lora.WEIGHTS_FILE)


REFUSED = {case[0].__name__: case for case in (
    (truncate, r"incompletely downloaded: [\d,]+ bytes"), (make_pointer, "git lfs pull"),
    (make_pickle, r"as a pickle \(adapter_model.bin\).*Wanted: safetensors"),
    (change_rank, r"lora_A.weight is \[4, \d+\]; wanted \[8, \d+\]"), (use_dora, "use_dora True; wanted False"),
    (remove_layers, "the weights of another adapter: .*depth"),
    (change_width, r"the weights of another adapter: .*lora_A.weight is \[4, 31\]; wanted \[4, 32\]"))}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_adapters_are_refused_by_name(adapters, tmp_path, name):
    """Mistake: an incomplete file, a pickle or another kind of adapter is loaded as far as possible."""
    damage, message = REFUSED[name]
    folder = shutil.copytree(adapters[0] / "a", tmp_path / "copy")
    damage(folder)
    with pytest.raises(KitError, match=message):
        load_voice(CPU, folder)


def test_a_base_of_pickles_is_refused_by_name(toy, tmp_path):
    """Mistake: the weights of a base are unpickled, or are reported as missing although they are in the folder."""
    folder = shutil.copytree(toy, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(KitError, match=r"as a pickle \(pytorch_model.bin\)"):
        load_voice(CPU, str(folder))


@pytest.mark.parametrize("content, message", [
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"", r"incompletely downloaded: 0 bytes")])
def test_an_incomplete_base_is_named(toy, tmp_path, content, message):
    """Mistake: "header too large", where only a git-lfs pointer was cloned."""
    folder = shutil.copytree(toy, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(KitError, match=message):
        load_voice(CPU, str(folder))


def test_adapters_are_downloaded_or_refused_with_a_reason(adapters, tmp_path):
    """Mistake: a pickle is downloaded, or a gated repository, a wrong name or a hub that is down end in a traceback."""
    shutil.copytree(adapters[0] / "a", tmp_path / "hub" / "voice")
    make_pickle(shutil.copytree(adapters[0] / "a", tmp_path / "hub" / "pickled"))
    script = (
        "import sys\nfrom tts_kit.speech.voice import find_adapter\nfrom tts_kit.errors import KitError\n"
        "for name in map(str.strip, sys.stdin):\n    try:\n"
        "        print(sorted(path.name for path in find_adapter(name).iterdir()), flush=True)\n"
        "    except KitError as error:\n        print(error, flush=True)\n")
    with hub.serve_hub(tmp_path / "hub") as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": "",
                       "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        process = subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True, env=os.environ | environment)
        process.stdin.write("me/voice\nme/pickled\nme/gated\nme/nobody\n")
        process.stdin.flush()
        fetched, pickled, gated, nobody = (process.stdout.readline().rstrip("\n") for _ in range(4))
    without_hub, errors = process.communicate("me/other\n", timeout=900)
    assert process.returncode == 0, errors
    assert fetched == str(sorted([lora.WEIGHTS_FILE, lora.CONFIG_FILE, lora.METADATA_FILE, "config.json"]))
    assert "me/pickled has its weights as a pickle (adapter_model.bin)" in pickled
    assert "pickled/adapter_model.bin" not in server.downloaded
    assert "is gated" in gated and "hf auth login" in gated
    assert "neither as a folder nor on the hub" in nobody and "if it is private" in nobody
    assert "me/other is not on this machine" in without_hub and "the hub does not answer" in without_hub
