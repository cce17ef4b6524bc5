"""`doctor --plan`: its formula against the counted training step, and its estimates for GPUs."""

import dataclasses
import itertools

import op_counter
import pytest
import torch
from conftest import make_clip
from test_training_finetune import with_codes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves

from sample_data.build import model_shapes
from tts_kit import cli, pretrained
from tts_kit.config import Config, save_config
from tts_kit.doctor import plan
from tts_kit.doctor.plan import Plan
from tts_kit.errors import KitError
from tts_kit.model import load, lora, loss
from tts_kit.pretrained import ModelSpec
from tts_kit.run import Run
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import dataset


@pytest.fixture(scope="module")
def csm_1b(tmp_path_factory):
    """A folder with the config and tokenizer of CSM-1B's shape, without weights."""
    folder = tmp_path_factory.mktemp("models") / "csm-1b"
    model_shapes.config("csm-1b").save_pretrained(folder)
    model_shapes.tokenizer("csm-1b").save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def example_plan(csm_1b):
    return Plan(Config(base=csm_1b))


@pytest.fixture
def run(tmp_path):
    """Twelve clips of different lengths, two of them held out."""
    return with_codes(Run("one", tmp_path), [
        make_clip(f"clip{number}", 20 + number, "Four words are here.", "held_out" if number < 2 else "train")
        for number in range(12)])


def make_batch(folder: str, clips: int, fraction: float) -> dict:
    """Packed clips of ten seconds: 44 positions of text and 126 frames, the last of which ends the clip."""
    spec = ModelSpec.of(pretrained.config(folder))
    builder = PromptBuilder(pretrained.tokenizer(folder), spec)
    examples = [dataset.build_example(make_clip("x", 125, "x" * 39, books=spec.num_codebooks), builder)] * clips
    return dataset.collate(examples, dataset.sample_depth_frames(examples, fraction, 0), True)


@pytest.mark.slow
@pytest.mark.parametrize(("clips", "fraction", "checkpointing"), [(8, 1 / 16, False), (4, 1.0, False), (8, 1 / 16, True)])
def test_the_formula_matches_the_counted_step(csm_1b, clips, fraction, checkpointing):
    """Mistake: the training step was changed, and the constants of the plan are those of the old one."""
    config = Config(base=csm_1b, depth_frame_fraction=fraction)
    batch = make_batch(csm_1b, clips, fraction)
    counted = op_counter.count_step(op_counter.meta_model(config, checkpointing), batch)
    planned, positions = Plan(config), batch["input_ids"].numel()
    planned.frame_share = len(batch["targets"]) / positions
    assert planned.activation_bytes(positions, checkpointing) == pytest.approx(counted.peak, rel=0.1)
    cost = plan.CHECKPOINTING_COST if checkpointing else 1
    arithmetic = plan.Gpu("", 1, 1 / plan.PEAK_SHARE, 1e12, 1)
    assert planned.step_seconds(positions, arithmetic, checkpointing) * 1e12 == pytest.approx(counted.flops, rel=0.06)
    launches = planned.step_seconds(positions, plan.Gpu("", 1, 1e9, 1e12, 1)) * cost / plan.LAUNCH_SECONDS
    assert launches == pytest.approx(counted.launches, rel=0.2)


def test_gpus_are_ordered_by_memory_and_speed(example_plan):
    """Mistake: the small GPU gets the large batch, the fast one the long time, or the costs use another GPU's price."""
    rows = {row.gpu.name: row for row in example_plan.rows}
    assert [*rows] == [gpu.name for gpu in plan.GPUS]
    assert rows["T4"].max_batch < rows["L4"].max_batch < rows["A100 40 GB"].max_batch < rows["H200"].max_batch
    assert rows["T4"].step_seconds > rows["A100 80 GB"].step_seconds > rows["H100"].step_seconds > 0.02
    for row in example_plan.rows:
        assert row.dollars == pytest.approx(row.minutes / 60 * row.gpu.price)
        assert not row.checkpointing
        assert row.memory < plan.FILL * row.gpu.memory


def test_memory_counts_the_weights_that_generate_samples(example_plan):
    """Mistake: a plan runs out of memory at the first sample, because generation holds merged copies of the weights."""
    # CSM-1B's weights without codec, the adapter's 27 million parameters, and 2.17 GB of merged layers and 0.13 of heads
    training = 2 * 1.5528e9 + 16 * 26.9353e6 + plan.CUDA_BYTES
    positions = 256  # of two sentences: keys and values of 16 layers with 8 heads of 64 numbers in 16 bits
    caches = 2 * positions * 2 * 16 * 8 * 64 * 2
    assert example_plan.fixed_bytes() == pytest.approx(training + 2.17e9 + 0.13e9 + caches, rel=0.002)
    offloaded = Plan(example_plan.config.replace(offload_text_embeddings=True))
    assert example_plan.fixed_bytes() - offloaded.fixed_bytes() == pytest.approx(2 * 262.7e6, rel=0.001)
    silent = Plan(example_plan.config.replace(sample_steps=0))
    assert silent.fixed_bytes() == pytest.approx(training, rel=0.002)
    evaluated = Plan(example_plan.config.replace(generation_eval_steps=50))
    assert evaluated.fixed_bytes() - example_plan.fixed_bytes() == pytest.approx(5 * caches, rel=0.02), "twelve sentences"


def test_a_t4_holds_embeddings_and_norms_in_float32(example_plan):
    """Mistake: a batch planned for a T4 as if all weights were in 16 bits, which float16 does not allow."""
    extra = example_plan.fixed_bytes(bf16=False) - example_plan.fixed_bytes()
    assert extra == pytest.approx(2 * (262.7e6 + 134.4e6), rel=0.002)  # text and audio embeddings of CSM-1B
    model = load.without_weights(example_plan.config.base).half()
    model.codec_model = None
    load.tie(model, {load.BACKBONE_TABLE}, "")
    load.keep_residual_in_float32(model)
    assert extra == pytest.approx(2 * sum(weight.numel() for weight in model.parameters() if weight.dtype == torch.float32),
                                  rel=0.01)
    offloaded = Plan(example_plan.config.replace(offload_text_embeddings=True))
    assert offloaded.fixed_bytes(bf16=False) - offloaded.fixed_bytes() == pytest.approx(2 * 134.4e6, rel=0.002)
    t4, = (gpu for gpu in plan.GPUS if gpu.name == "T4")
    assert [gpu.name for gpu in plan.GPUS if not gpu.bf16] == ["T4"]
    rows = [example_plan._plan(dataclasses.replace(t4, bf16=bf16)) for bf16 in (False, True)]
    assert rows[0].memory - rows[1].memory == pytest.approx(extra / 1e9) and rows[0].max_batch < rows[1].max_batch


def test_memory_is_saved_only_where_needed(example_plan):
    """Mistake: all GPUs train slowly because one is small, or a GPU is excluded on which checkpointing would suffice."""
    def row(bytes_needed: float) -> plan.Row | None:
        gpu = dataclasses.replace(plan.GPUS[0], memory=bytes_needed / 1e9 / plan.FILL)
        return example_plan._plan(gpu)

    longest = example_plan.longest
    fixed = example_plan.fixed_bytes(plan.GPUS[0].bf16)
    needed, least = (fixed + example_plan.activation_bytes(longest, checkpointing) for checkpointing in (False, True))
    assert row(least + 1e7).checkpointing and row(needed - 1e7).checkpointing and row(3e9) is None
    small = row(needed + 1e9)
    assert small.accumulation > 1 and small.micro_batch * small.accumulation >= 1400 and small.micro_batch <= small.max_batch
    assert (f"--tokens-per-batch {small.micro_batch} --gradient-accumulation-steps {small.accumulation}"
            in plan.train_command(example_plan, small))


def test_memory_savings_have_the_order_of_the_readme(example_plan):
    """Mistake: the training step was changed, and doctor/README.md lists first what hardly saves memory now."""
    def memory(planned: Plan = example_plan, checkpointing: bool = False, positions: int = 1400) -> float:
        return planned.fixed_bytes() + planned.activation_bytes(positions, checkpointing)

    offloaded = Plan(example_plan.config.replace(offload_text_embeddings=True))
    options = [memory(checkpointing=True), memory(positions=700), memory(offloaded), memory()]
    assert options == sorted(options)


def test_the_clips_of_the_run_are_planned_for(config, run):
    """Mistake: a plan for clips of another length, or for more than the run has."""
    planned = Plan(config.replace(tokens_per_batch=100_000), run)
    builder = PromptBuilder(pretrained.tokenizer(config.base), planned.spec)
    clips = [clip for clip in plan.cache.load_run(run) if clip.split == "train"]
    assert planned.lengths == [len(dataset.build_example(clip, builder)) for clip in clips]
    assert planned.seconds == pytest.approx(sum(range(22, 32)) / 12.5)
    assert planned.rows[0].max_batch == planned.total == sum(planned.lengths) and planned.rows[0].accumulation == 1
    assert f"{planned.total:,} positions" in plan.format_plan(run, **dataclasses.asdict(config))
    assert Plan(config.replace(context_probability=0.5), run).clip == pytest.approx(1.5 * planned.clip)


def test_the_command_line_prints_the_table(toy, capsys):
    """Mistake: the command does not print the plan, or the table breaks in a narrow window."""
    assert cli.main(["doctor", "--plan", "--base", toy, "--rank", "4", "--depth-frame-fraction", "0.5"]) == 0
    text = capsys.readouterr().out
    table = text.split("\n\n")[0].splitlines()
    assert len(table) == 1 + len(plan.GPUS) and table[1].startswith("T4 ")
    assert "Example, as no --run was given: 600 clips of 6 s" in text and "rank 4, depth frame fraction 0.5" in text
    assert "prices of late 2025, which may have changed" in " ".join(text.split())
    assert f"--run NAME --base {toy} --rank 4 --depth-frame-fraction 0.5" in text
    assert max(len(line) for line in text.splitlines() if toy not in line) <= 100
    assert cli.main(["doctor", "--rank", "4"]) == 1
    assert "--rank is an option of --plan" in capsys.readouterr().err


def test_a_run_without_clips_is_refused(toy, tmp_path, monkeypatch):
    """Mistake: an empty run gets the plan of the example."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="neither data nor codes"):
        plan.format_plan(Run("empty"), base=toy)


@pytest.mark.parametrize("base", ["sesame/csm-1b", "unsloth/csm-1b"])
def test_csm_1b_is_planned_for_without_the_hub(base, csm_1b, example_plan, monkeypatch):
    """Mistake: whoever decides about a GPU needs access to a gated model for a file of 2 KB."""
    monkeypatch.setattr(pretrained, "config", lambda *_: pytest.fail("the hub was asked"))
    monkeypatch.setattr(pretrained, "tokenizer", lambda *_: pytest.fail("the hub was asked"))
    planned = Plan(Config(base=base))
    assert planned.trainable == 26_935_296 and planned.frozen == example_plan.frozen
    assert planned.spec.num_codebooks == 32 and len(planned.rows) == len(plan.GPUS)
    # the tokenizer of the example has a token for every byte
    assert planned.total < example_plan.total and planned.steps == 294
    assert "Text: 4 characters a token" in plan.format_plan(base=base)


def test_the_stored_config_is_planned_for(config, run):
    """Mistake: the plan ignores the run's stored config."""
    save_config(run, config.replace(rank=2))
    assert "rank 2," in plan.format_plan(run)
    assert "rank 3," in plan.format_plan(run, rank=3)


# the counter itself

def test_the_counted_peak_is_that_of_torchs_allocator(base, config, run):
    """Mistake: bytes are counted that are never allocated, or allocated bytes are not counted."""
    model = lora.unwrap(lora.add_lora(base.model, 4, 8)).train()
    clips = [clip for clip in plan.cache.load_run(run) if clip.split == "train"]
    batch = dataset.MicroBatchDataset(clips, PromptBuilder(pretrained.tokenizer(config.base), base.spec), config)[0]
    existing = [*model.parameters(), *model.buffers(), *tree_leaves(batch)]
    with sdpa_kernel(SDPBackend.MATH), op_counter.OpCounter(existing) as counter:
        sums = loss.loss_sums(model, batch)
        (sums.backbone + sums.depth).backward()
    model.zero_grad(set_to_none=True)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, sdpa_kernel(SDPBackend.MATH):
        sums = loss.loss_sums(model, batch)
        (sums.backbone + sums.depth).backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    allocated = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    assert max(allocated) == pytest.approx(counter.peak, rel=0.01)


def test_memory_is_counted_as_long_as_autograd_holds_it():
    """Mistake: tensors that only autograd keeps for the backward pass are counted as free, or freed ones are still
    counted."""
    weight = torch.zeros(100, 100, device="meta", requires_grad=True)
    with op_counter.OpCounter([weight]) as counter:
        total = (weight.T * 2).sin().sum()  # sin keeps its input: 40,000 bytes that no name holds
        assert counter.launches == 3  # a transpose is a view
        assert 40_000 <= counter.allocated < 50_000 and counter.peak >= 80_000
        total.backward()
    del total
    weight.grad = None
    assert counter.allocated == 0
