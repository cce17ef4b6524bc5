"""The adapter: what it covers, that it changes nothing else, and that it is the same after saving, merging, switching."""

import json
import shutil
import subprocess
import sys

import pytest
import torch
from conftest import make_clip
from test_generate import GREEDY, prompts
from transformers import CsmConfig, CsmForConditionalGeneration

from tts_kit import runtime
from tts_kit.model import generate, load, lora, loss, parcel
from tts_kit.pretrain import shape
from tts_kit.problem import Problem
from tts_kit.tuning import batches


@pytest.fixture
def tuned(loud_base):
    """The loud toy with an adapter that says something."""
    model = lora.attach(loud_base.model, 4, 8.0)
    shake(model)
    return model


def shake(model):
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data.normal_(0, 0.2, generator=torch.Generator().manual_seed(sum(name.encode())))


def codes(base, model=None):
    return [take.codes.tolist() for take in generate.takes(lora.bare(model or base.model), base.physics,
                                                           prompts(base, "One.", "Two, longer."), GREEDY, [0, 0], [8, 8])]


def test_census_on_the_full_size_by_the_meta_device():
    """Mistake: a list of names puts 2,097,152 dead parameters on the codec; the useful adapter has 26,935,296."""
    with torch.device("meta"):
        model = CsmForConditionalGeneration(CsmConfig())
    counts = lora.census(lora.attach(model, 32, 32.0))
    assert {part: (count["modules"], count["trainable"]) for part, count in counts.items()} == {
        "backbone": (16 * 7, 22_544_384), "depth": (4 * 7, 4_390_912), "codec": (0, 0)}
    assert sum(count["trainable"] for count in counts.values()) == 26_935_296


@pytest.mark.parametrize(("targets", "backbone", "depth"), [("backbone", 14, 0), ("depth", 0, 14), ("both", 14, 14)])
def test_presets(base, targets, backbone, depth):
    """Mistake: a preset that also reaches the other part, whose layers have the same names."""
    counts = lora.census(lora.attach(base.model, 4, 8.0, targets))
    assert (counts["backbone"]["modules"], counts["depth"]["modules"], counts["codec"]["modules"]) == (backbone, depth, 0)


def test_a_step_leaves_the_base_as_it_was(base):
    """Mistake: norms, heads or embeddings are trained along, and the saved adapter does not hold them."""
    model = lora.attach(base.model, 4, 8.0)
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    optimizer = torch.optim.AdamW([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    example = batches.write(make_clip("a", 6), base.writer)
    for _ in range(2):
        sums = loss.sums(lora.bare(model), batches.collate(
            [example], [torch.ones(example.scored_frames, dtype=torch.bool)], packing=True))
        (sums.backbone + sums.depth).backward()
        optimizer.step()
    changed = {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])}
    assert changed == {name for name in before if "lora_" in name}
    assert all(lora.moved(model).values())


def test_adapter_off_is_the_base_exactly(loud, loud_base, tuned):
    """Mistake: the base arm of a comparison still hears a little of the adapter."""
    plain = load.base(loud, runtime.choose("cpu"))
    with lora.speaking(tuned, tuned=False):
        assert codes(loud_base, tuned) == codes(plain)
    assert codes(loud_base, tuned) != codes(plain)


def test_strength_zero_is_the_base_and_one_the_adapter(loud, loud_base, tuned):
    """Mistake: the slider's ends are not what they say."""
    plain = load.base(loud, runtime.choose("cpu"))
    full = codes(loud_base, tuned)
    lora.set_strength(tuned, 0.0)
    assert codes(loud_base, tuned) == codes(plain)
    lora.set_strength(tuned, 1.0)
    assert codes(loud_base, tuned) == full != codes(plain)


def test_merged_is_unmerged(loud_base, tuned):
    """Mistake: merging scales the adapter wrongly and the exported voice is another one."""
    before = codes(loud_base, tuned)
    merged = lora.merge(tuned)
    assert not any("lora_" in name for name, _ in merged.named_parameters())
    assert codes(loud_base, merged) == before


def save_tuned(base, model, folder):
    lora.save(model, folder, base, "{}", {"speaker": "0"})


def test_saved_and_loaded_in_a_fresh_process_speaks_the_same(loud, loud_base, tuned, tmp_path):
    """Mistake: keys that do not fit are skipped in silence, and the loaded voice is the base ("on or off is identical")."""
    save_tuned(loud_base, tuned, tmp_path / "adapter")
    script = (
        "import json, sys; sys.path[:0] = ['tests']\n"
        "from tts_kit import runtime\nfrom tts_kit.model import load, lora\nfrom test_lora import codes\n"
        f"base = load.base({loud!r}, runtime.choose('cpu'))\n"
        f"print(json.dumps(codes(base, lora.load(base, {str(tmp_path / 'adapter')!r}))))\n")
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert out.returncode == 0, out.stderr
    assert json.loads(out.stdout.splitlines()[-1]) == codes(loud_base, tuned)


def test_an_adapter_for_another_base_is_refused(loud_base, tuned, tmp_path):
    """Mistake: an adapter is put on other weights and speaks noise."""
    save_tuned(loud_base, tuned, tmp_path / "adapter")
    other = load.base(str(shape.build("toy", tmp_path / "other", seed=7)), runtime.choose("cpu"))
    with pytest.raises(Problem, match=r"was trained for .*loud.*but .*other is loaded.*--base"):
        lora.load(other, tmp_path / "adapter")


def test_damaged_and_foreign_adapter_folders(loud, loud_base, tuned, tmp_path):
    """Mistake: a truncated file, a missing file or keys of another rank are loaded as far as they go."""
    save_tuned(loud_base, tuned, tmp_path / "adapter")
    with pytest.raises(Problem, match="not an adapter of this kit: adapter_model.safetensors is missing"):
        lora.read_voice(tmp_path)
    fresh = load.base(loud, runtime.choose("cpu"))
    for change, message in ((truncate, "damaged"), (other_targets, "disagree about")):
        copy = shutil.copytree(tmp_path / "adapter", tmp_path / change.__name__)
        change(copy)
        with pytest.raises(Problem, match=message):
            lora.load(fresh, copy)


def truncate(folder):
    path = folder / lora.WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])


def other_targets(folder):
    config = json.loads((folder / parcel.CONFIG).read_text())
    (folder / parcel.CONFIG).write_text(json.dumps(config | {"target_modules": lora.pattern("backbone")}))


def test_saving_again_replaces_whole_folders_only(loud_base, tuned, tmp_path):
    """Mistake: a failed save leaves a folder that is half old and half new."""
    save_tuned(loud_base, tuned, tmp_path / "adapter")
    before = (tmp_path / "adapter" / lora.WEIGHTS).read_bytes()
    with pytest.raises(TypeError):
        lora.save(tuned, tmp_path / "adapter", loud_base, "{}", {"speaker": object()})
    assert (tmp_path / "adapter" / lora.WEIGHTS).read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
