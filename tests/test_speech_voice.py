"""Many voices on one base: each stays itself, and what is broken, strange or out of reach is refused by name."""

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
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.io import read_json, write_json
from tts_kit.model import load, lora
from tts_kit.speech import stream
from tts_kit.speech.voice import Voice, add_adapter, load_voice, load_voices

CPU = device.choose("cpu", "float32")
SPEAKER = "3"


def codes(voice, finetuned=True):
    with voice.acquire_engine(finetuned) as engine:
        return [generation.codes.tolist() for generation in engine.generate(
            prompts(voice.base, "One.", "Two, longer."), GREEDY, [0, 0], [8, 8])]


def make_adapter(place, folder, seed, targets="both", rank=4, scale=0.2):
    """An adapter with weights of chance, as a voice."""
    base = load.load_base(place, CPU)
    model = lora.add_lora(base.model, rank, 8.0, targets)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, scale, generator=torch.Generator().manual_seed(sum(name.encode()) + seed))
    lora.save(model, folder, base, Config(base=place).to_json(), {"speaker": SPEAKER})
    return Voice(base, model)


@pytest.fixture(scope="module")
def three(spread_toy, tmp_path_factory):
    """Three adapters for one base, one of another rank and of the backbone alone; and what each says."""
    root = tmp_path_factory.mktemp("voices")
    said = {"a": codes(make_adapter(spread_toy, root / "a", 1)),
            "b": codes(make_adapter(spread_toy, root / "b", 2, "backbone", 2)),
            "c": codes(make_adapter(spread_toy, root / "c", 3))}
    return root, said


def test_voices_share_a_base_and_stay_themselves(spread_toy, three):
    """Mistake: after a switch a voice keeps something of the one before it, or the base of the adapters beside it."""
    root, said = three
    plain = load.load_base(spread_toy, CPU)
    said = said | {"base": codes(Voice(plain, plain.model))}
    made = load_voices(CPU, {"base": spread_toy, "b": root / "b", "a": str(root / "a"), "c": root / "c"})
    assert len({id(voice.base) for voice in made.values()}) == 1 and len({str(each) for each in said.values()}) == 4
    for name in ("base", "a", "b", "a", "c", "base", "b", "c", "a"):
        assert codes(made[name]) == said[name], name
    assert codes(made["a"], finetuned=False) == said["base"] and codes(made["a"]) == said["a"]
    assert made["a"].speaker == SPEAKER and made["base"].speaker == "0" and not made["base"].is_finetuned
    assert not any(weight.requires_grad for weight in made["a"].model.parameters())


def test_a_base_that_has_spoken_takes_an_adapter_on(spread_toy, three):
    """Mistake: what a bare model speaks with is kept, and the adapter that came later is never heard."""
    root, said = three
    voice = load_voice(CPU, base=spread_toy)
    before = codes(voice)
    assert codes(add_adapter(voice, root / "a")) == said["a"] != before
    assert codes(voice) == before


def test_a_later_adapter_is_followed_in_place_and_computed_lean(three):
    """Mistake: weights that came after the first sentence are not watched, or go PEFT's slow way."""
    root, said = three
    first = load_voice(CPU, root / "b")
    assert codes(first) == said["b"]
    later = add_adapter(first, root / "a")
    assert codes(later) == said["a"]
    layers = [module for module in later.model.modules() if isinstance(module, lora.LoraLayer)]
    assert len(layers) == 28 and all(type(layer) is lora.FusedLoraLinear for layer in layers)
    assert codes(later) == said["a"] and codes(first) == said["b"]


def test_a_voice_tells_its_engine_when_its_weights_change(three):
    """Mistake: a strength or a checkpoint of the training is set, and the engine generates with the weights from before."""
    root, said = three
    voice = load_voice(CPU, root / "a")
    assert codes(voice) == said["a"]
    voice.load_weights(root / "c" / lora.WEIGHTS_FILE)
    assert codes(voice) == said["c"]
    voice.set_strength(0.0)
    assert codes(voice) == codes(voice, finetuned=False)
    voice.set_strength(1.0)
    voice.load_weights(root / "a" / lora.WEIGHTS_FILE)
    assert codes(voice) == said["a"]


def test_strength_is_each_voices_own(three):
    """Mistake: the slider of one voice turns all of them."""
    root, said = three
    made = load_voices(CPU, {"a": root / "a", "c": root / "c"})
    made["c"].set_strength(0.0)
    assert codes(made["a"]) == said["a"] and codes(made["c"]) == codes(made["a"], finetuned=False)
    made["c"].set_strength(1.0)
    assert codes(made["c"]) == said["c"]


@pytest.mark.parametrize("others", ["a", "c"])
def test_voices_that_share_a_base_are_never_mixed(three, others):
    """Mistake: a voice that begins while another still speaks changes the weights under it, and nobody is told."""
    root, said = three
    made = load_voices(CPU, {"a": root / "a", "c": root / "c"})
    flow = stream.SpeechStream("One.", made["a"])
    next(flow)
    with pytest.raises(KitError, match="still generating something else"):
        codes(made[others])
    flow.close()
    assert codes(made[others]) == said[others]
    told = []

    def talk(name):
        for _ in range(5):
            try:
                told.append((name, codes(made[name])))
            except KitError:
                told.append((name, said[name]))

    threads = [threading.Thread(target=talk, args=name) for name in "acac"]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert len(told) == 20 and all(heard == said[name] for name, heard in told)


def test_voices_of_different_bases_are_loaded_apart(spread_toy, toy, three):
    """Mistake: an adapter is put on whatever base came first."""
    made = load_voices(CPU, {"a": three[0] / "a", "base": toy, "spread": spread_toy})
    assert made["a"].base is made["spread"].base is not made["base"].base


def test_a_refused_adapter_leaves_the_others_as_they_were(three, tmp_path):
    """Mistake: half of a broken adapter stays in the model, and everybody sounds of it."""
    root, said = three
    voice = load_voice(CPU, root / "a")
    assert codes(voice) == said["a"]
    for spoil, message in REFUSED.values():
        folder = shutil.copytree(root / "c", tmp_path / spoil.__name__)
        spoil(folder)
        with pytest.raises(KitError, match=message):
            add_adapter(voice, folder)
    assert codes(voice) == said["a"] and list(voice.model.peft_config) == [lora.DEFAULT_ADAPTER]


@pytest.mark.parametrize("field, value", [
    ("init_lora_weights", "pissa"), ("megatron_config", {"anything": 1}), ("layers_to_transform", [0]),
    ("lora_dropout", 0.5), ("trainable_token_indices", [1]), ("target_modules", ".*"), ("target_modules", ["q_proj"])])
def test_strange_settings_never_reach_the_base(three, tmp_path, field, value):
    """Mistake: PEFT does what a stranger's file asks for: takes a part out of weights that other voices speak with,
    imports what is named there, or ends in a traceback with half of it done."""
    root, said = three
    voice = load_voice(CPU, root / "a")
    folder = shutil.copytree(root / "c", tmp_path / "c")
    change(folder, lora.CONFIG_FILE, **{field: value})
    with pytest.raises(KitError, match=f"adapter_config.json has {field} .*plain LoRA only"):
        add_adapter(voice, folder)
    assert codes(voice) == said["a"] and list(voice.model.peft_config) == [lora.DEFAULT_ADAPTER]


def test_a_base_alone_is_not_wrapped_for_what_is_refused(spread_toy, three, tmp_path):
    """Mistake: an adapter that lacks layers is found out when it is in the model already."""
    voice = load_voice(CPU, base=spread_toy)
    folder = shutil.copytree(three[0] / "c", tmp_path / "c")
    lost_layers(folder)
    with pytest.raises(KitError, match="the weights of another adapter"):
        add_adapter(voice, folder)
    assert not any(isinstance(module, lora.LoraLayer) for module in voice.base.model.modules())


@pytest.mark.parametrize("strength", [float("nan"), float("inf")])
def test_strength_is_a_number(three, strength):
    """Mistake: a voice of nothing but NaN, merged and given away."""
    with pytest.raises(KitError, match="must be a finite number"):
        lora.set_strength(load_voice(CPU, three[0] / "a").model, strength)


def cut_short(folder):
    path = folder / lora.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def make_pointer(folder):
    (folder / lora.WEIGHTS_FILE).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 134\n")


def make_pickle(folder):
    (folder / lora.WEIGHTS_FILE).rename(folder / "adapter_model.bin")


def change(folder, file, **fields):
    write_json(folder / file, read_json(folder / file, "") | fields)


def other_rank(folder):
    change(folder, lora.CONFIG_FILE, r=8)


def other_kind(folder):
    change(folder, lora.CONFIG_FILE, use_dora=True)


def lost_layers(folder):
    weights = load_file(folder / lora.WEIGHTS_FILE)
    save_file({name: weight for name, weight in weights.items() if "depth" not in name}, folder / lora.WEIGHTS_FILE)


def other_width(folder):
    weights = load_file(folder / lora.WEIGHTS_FILE)
    name = next(name for name in weights if "depth" in name and "lora_A" in name)
    save_file(weights | {name: weights[name][:, 1:].contiguous()}, folder / lora.WEIGHTS_FILE)


REFUSED = {each[0].__name__: each for each in (
    (cut_short, r"incompletely downloaded: [\d,]+ bytes"), (make_pointer, "git lfs pull"),
    (make_pickle, r"as a pickle \(adapter_model.bin\).*Wanted: safetensors"),
    (other_rank, r"lora_A.weight is \[4, \d+\]; wanted \[8, \d+\]"), (other_kind, "use_dora True; wanted False"),
    (lost_layers, "the weights of another adapter: .*depth"),
    (other_width, r"the weights of another adapter: .*lora_A.weight is \[4, 31\]; wanted \[4, 32\]"))}


@pytest.mark.parametrize("name", REFUSED)
def test_broken_adapters_are_refused_by_name(three, tmp_path, name):
    """Mistake: a file that is half there, a pickle or another kind of adapter is loaded as far as it goes."""
    spoil, message = REFUSED[name]
    folder = shutil.copytree(three[0] / "a", tmp_path / "copy")
    spoil(folder)
    with pytest.raises(KitError, match=message):
        load_voice(CPU, folder)


def test_a_base_of_pickles_is_refused_by_name(toy, tmp_path):
    """Mistake: the weights of a base are unpickled, or are said to be missing where they lie."""
    folder = shutil.copytree(toy, tmp_path / "copy")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(KitError, match=r"as a pickle \(pytorch_model.bin\)"):
        load_voice(CPU, str(folder))


@pytest.mark.parametrize("content, message", [
    (b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (b"", r"incompletely downloaded: 0 bytes")])
def test_a_base_that_is_half_there_is_named(toy, tmp_path, content, message):
    """Mistake: "header too large", where only a pointer was cloned."""
    folder = shutil.copytree(toy, tmp_path / "copy")
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(KitError, match=message):
        load_voice(CPU, str(folder))


def test_adapters_come_from_the_hub_or_are_refused_clearly(three, tmp_path):
    """Mistake: a pickle is fetched, or a gate, a wrong name or a hub that is down end in a traceback."""
    shutil.copytree(three[0] / "a", tmp_path / "hub" / "voice")
    make_pickle(shutil.copytree(three[0] / "a", tmp_path / "hub" / "pickled"))
    script = (
        "import sys\nfrom tts_kit.speech.voice import find_adapter\nfrom tts_kit.errors import KitError\n"
        "for name in sys.argv[1:]:\n    try:\n        print(sorted(path.name for path in find_adapter(name).iterdir()))\n"
        "    except KitError as problem:\n        print(problem)\n")
    with hub.serve_hub(tmp_path / "hub") as server:
        own = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(tmp_path), "HF_TOKEN": "",
               "HF_HUB_DISABLE_XET": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1"}
        names = ["me/voice", "me/pickled", "me/gated", "me/nobody"]
        ran = subprocess.run([sys.executable, "-c", script, *names], capture_output=True, text=True, check=False,
                             env=os.environ | own)
    assert ran.returncode == 0, ran.stderr
    fetched, pickled, gated, nobody = ran.stdout.splitlines()[-4:]
    assert fetched == str(sorted([lora.WEIGHTS_FILE, lora.CONFIG_FILE, lora.METADATA_FILE, "config.json"]))
    assert "me/pickled has its weights as a pickle (adapter_model.bin)" in pickled
    assert "pickled/adapter_model.bin" not in server.downloaded
    assert "is gated" in gated and "hf auth login" in gated
    assert "neither as a folder nor on the hub" in nobody and "if it is private" in nobody
    ran = subprocess.run([sys.executable, "-c", script, "me/other"], capture_output=True, text=True, check=False,
                         env=os.environ | own)
    assert "me/other is not on this machine" in ran.stdout and "the hub does not answer" in ran.stdout, ran.stderr
