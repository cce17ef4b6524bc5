"""The adapter: which layers it covers, that it changes nothing else, and that saving and merging do not change it."""

import json
import shutil

import process
import pytest
import torch
from conftest import make_clip
from test_generation_engine import generate, prompts
from transformers import CsmConfig, CsmForConditionalGeneration

from sample_data.build import model_shapes
from tts_kit import device
from tts_kit.errors import KitError
from tts_kit.model import load, lora, loss
from tts_kit.training import dataset


@pytest.fixture
def finetuned(spread_base):
    """The toy with spread logits and an adapter of random weights."""
    model = lora.add_lora(spread_base.model, 4, 8.0)
    randomize_adapter(model)
    return model


def randomize_adapter(model):
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(sum(name.encode())))


def codes(base, adapter=None):
    return [generation.codes.tolist() for generation in generate(
        base, prompts(base, "One.", "Two, longer."), max_frames=8, adapter=adapter)]


def test_parameter_count_of_the_full_size_on_the_meta_device():
    """Mistake: a list of names puts 2,097,152 dead parameters on the codec; the useful adapter has 26,935,296."""
    with torch.device("meta"):
        model = CsmForConditionalGeneration(CsmConfig())
    counts = lora.count_parameters(lora.add_lora(model, 32, 32.0))
    assert {part: (count["modules"], count["trainable"]) for part, count in counts.items()} == {
        "backbone": (16 * 7, 22_544_384), "depth": (4 * 7, 4_390_912), "codec": (0, 0)}
    assert sum(count["trainable"] for count in counts.values()) == 26_935_296


@pytest.mark.parametrize(("targets", "backbone", "depth"), [("backbone", 14, 0), ("depth", 0, 14), ("both", 14, 14)])
def test_presets_cover_their_part_only(base, targets, backbone, depth):
    """Mistake: a preset that also covers the other part, whose layers have the same names."""
    counts = lora.count_parameters(lora.add_lora(base.model, 4, 8.0, targets))
    assert (counts["backbone"]["modules"], counts["depth"]["modules"], counts["codec"]["modules"]) == (backbone, depth, 0)


def test_a_step_leaves_the_base_unchanged(base):
    """Mistake: norms, heads or embeddings are trained too, and the saved adapter lacks them."""
    model = lora.add_lora(base.model, 4, 8.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    example = dataset.build_example(make_clip("a", 6), base.prompt_builder)
    for _ in range(2):
        sums = loss.loss_sums(lora.unwrap(model), dataset.collate(
            [example], [torch.ones(example.target_frames, dtype=torch.bool)], packing=True))
        (sums.backbone + sums.depth).backward()
        optimizer.step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert all(weight.any() for name, weight in model.named_parameters() if "lora_B" in name)


def test_adapter_off_is_the_base_exactly(spread_toy, spread_base, finetuned):
    """Mistake: the base arm of a comparison still has a part of the adapter."""
    plain = codes(load.load_base(spread_toy, device.choose("cpu")))
    assert codes(spread_base) == plain != codes(spread_base, lora.DEFAULT_ADAPTER)


def test_strength_zero_is_the_base_and_one_the_adapter(spread_base, finetuned):
    """Mistake: strength 0 or 1 is not what it is defined as."""
    trained = codes(spread_base, lora.DEFAULT_ADAPTER)
    lora.set_strength(finetuned, 0.0)
    assert codes(spread_base, lora.DEFAULT_ADAPTER) == codes(spread_base)
    lora.set_strength(finetuned, 1.0)
    assert codes(spread_base, lora.DEFAULT_ADAPTER) == trained != codes(spread_base)


def test_merging_does_not_change_the_codes(spread_base, finetuned):
    """Mistake: merging scales the adapter wrongly, and the exported voice is another one."""
    before = codes(spread_base, lora.DEFAULT_ADAPTER)
    merged = finetuned.merge_and_unload()
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert merged is spread_base.model and codes(spread_base) == before


def save(base, model, folder):
    lora.save(model, folder, base, "{}", {"speaker": "0"})


def test_saved_and_loaded_in_a_fresh_process_generates_the_same(spread_toy, spread_base, finetuned, tmp_path):
    """Mistake: keys that do not fit are skipped silently, and the loaded voice is the base."""
    save(spread_base, finetuned, tmp_path / "adapter")
    script = (
        "import json, sys; sys.path[:0] = ['tests']\n"
        "from tts_kit import device\nfrom tts_kit.model import load, lora\nfrom test_model_lora import codes\n"
        f"base = load.load_base({spread_toy!r}, device.choose('cpu'))\n"
        f"lora.load(base, {str(tmp_path / 'adapter')!r})\nprint(json.dumps(codes(base, lora.DEFAULT_ADAPTER)))\n")
    out = process.run(["-c", script])
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout.splitlines()[-1]) == codes(spread_base, lora.DEFAULT_ADAPTER)


def test_an_adapter_for_another_base_is_refused(spread_base, finetuned, tmp_path):
    """Mistake: an adapter is loaded into other weights and generates noise."""
    save(spread_base, finetuned, tmp_path / "adapter")
    other = load.load_base(str(model_shapes.build("toy", tmp_path / "other", seed=7)), device.choose("cpu"))
    with pytest.raises(KitError, match=r"was trained for .*spread.*but .*other is loaded.*--base"):
        lora.load(other, tmp_path / "adapter")


def test_damaged_and_foreign_adapter_folders_are_refused(spread_toy, spread_base, finetuned, tmp_path):
    """Mistake: a truncated file, a missing file or keys of another rank are loaded as far as possible."""
    save(spread_base, finetuned, tmp_path / "adapter")
    with pytest.raises(KitError, match="not an adapter of this kit: adapter_model.safetensors is missing"):
        lora.read_metadata(tmp_path)
    fresh = load.load_base(spread_toy, device.choose("cpu"))
    for change, message in ((truncate, "damaged"), (other_targets, "the weights of another adapter")):
        copy = shutil.copytree(tmp_path / "adapter", tmp_path / change.__name__)
        change(copy)
        with pytest.raises(KitError, match=message):
            lora.load(fresh, copy)


def truncate(folder):
    path = folder / lora.WEIGHTS_FILE
    path.write_bytes(path.read_bytes()[:-100])


def other_targets(folder):
    settings = json.loads((folder / lora.CONFIG_FILE).read_text())
    (folder / lora.CONFIG_FILE).write_text(json.dumps(settings | {"target_modules": lora.target_pattern("backbone")}))


def test_saving_again_replaces_complete_folders_only(spread_base, finetuned, tmp_path):
    """Mistake: a failed save leaves a folder that is half old and half new."""
    save(spread_base, finetuned, tmp_path / "adapter")
    before = (tmp_path / "adapter" / lora.WEIGHTS_FILE).read_bytes()
    with pytest.raises(TypeError):
        lora.save(finetuned, tmp_path / "adapter", spread_base, "{}", {"speaker": object()})
    assert (tmp_path / "adapter" / lora.WEIGHTS_FILE).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
