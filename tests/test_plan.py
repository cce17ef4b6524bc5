"""The planner: what a training would need on cards that nobody here has, counted without computing anything."""

import dataclasses
import itertools
import math

import pytest
import torch
from conftest import make_clip
from test_training import with_codes
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.profiler import ProfilerActivity, profile
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from sample_data.build import shape
from tts_kit import cli, pretrained
from tts_kit.config import Config, save_config
from tts_kit.doctor import gpus, measured_speed, memory_model, plan, step_cost
from tts_kit.errors import KitError
from tts_kit.io import write_json, write_text
from tts_kit.model import lora, loss
from tts_kit.run import Run
from tts_kit.spec import ModelSpec
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import dataset


@pytest.fixture(scope="module")
def billion(tmp_path_factory):
    """A folder of CSM-1B's configuration and a tokenizer, without weights."""
    folder = tmp_path_factory.mktemp("models") / "csm-1b"
    shape.config("csm-1b").save_pretrained(folder)
    shape.tokenizer("csm-1b").save_pretrained(folder)
    return str(folder)


@pytest.fixture
def run(tmp_path):
    """Twelve clips of different lengths, two of them held out."""
    return with_codes(Run("one", tmp_path), [
        make_clip(f"clip{number}", 20 + number, "Four words are here.", "held_out" if number < 2 else "train")
        for number in range(12)])


def batch(folder: str, clips: int, ratio: float) -> dict:
    """Packed clips of ten seconds: 44 positions of text and 126 frames, the last of which ends it."""
    spec = ModelSpec.of(pretrained.config(folder))
    prompt_builder = PromptBuilder(pretrained.tokenizer(folder), spec)
    examples = [dataset.build_example(make_clip("x", 125, "x" * 39, books=spec.num_codebooks), prompt_builder)] * clips
    return dataset.collate(examples, dataset.sample_depth_frames(examples, ratio, 0), True)


def ledger_of(model, made: dict) -> tuple[step_cost.OpCounter, int]:
    """A step with attention spelled out, as every device can; and what torch's own counter says of it."""
    known = [*model.parameters(), *model.buffers(), *tree_leaves(made)]
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, step_cost.OpCounter(known) as ledger:
        sums = loss.loss_sums(model, made)
        (sums.backbone + sums.depth).backward()
    model.zero_grad(set_to_none=True)
    return ledger, counter.get_total_flops()


def finished(run: Run, config: Config, machine: str, **metrics) -> None:
    """As if the run had been trained with this recipe on that machine."""
    write_text(run.adapter / "config.json", config.to_json())
    write_json(run.adapter / lora.METADATA_FILE, {"metrics": {"machine": machine, "steps": config.steps, **metrics}})


def test_nothing_is_computed_and_yet_everything_is_counted(base, config, run, monkeypatch):
    """Mistake: the meta device takes another path than a real one, so that the plan counts a step nobody runs."""
    monkeypatch.setattr(loss, "CHUNK", {"cpu": 99, "gpu": 99})  # as many frames at once on every device
    made = memory_model.training_data(config, run).steps[0]
    real = lora.unwrap(lora.add_lora(base.model, 4, 8)).train()
    imagined = step_cost.network(config).float()
    on_meta = tree_map_only(torch.Tensor, lambda each: each.to("meta"), made)
    (here, theirs), (there, also_theirs) = ledger_of(real, made), ledger_of(imagined, on_meta)
    flops = [sum(each * count for (each, _), count in ledger.work.items()) for ledger in (here, there)]
    assert flops[0] == flops[1] == theirs == also_theirs > 0
    assert there.work.total() == pytest.approx(here.work.total(), rel=0.02)
    assert there.peak == pytest.approx(here.peak, rel=0.02)


def test_the_peak_is_that_of_torchs_allocator(base, config, run):
    """Mistake: bytes are counted that nobody asks for, or asked for that nobody counts."""
    model, made = lora.unwrap(lora.add_lora(base.model, 4, 8)).train(), memory_model.training_data(config, run).steps[0]
    ledger, _ = ledger_of(model, made)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler, sdpa_kernel(SDPBackend.MATH):
        sums = loss.loss_sums(model, made)
        (sums.backbone + sums.depth).backward()
    events = sorted(profiler.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    asked = itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]")
    assert max(asked) == pytest.approx(ledger.peak, rel=0.01)


def test_memory_is_counted_as_long_as_somebody_holds_it():
    """Mistake: what only autograd keeps for the backward pass is taken for free, or what is freed is counted on."""
    weight = torch.zeros(100, 100, device="meta", requires_grad=True)
    with step_cost.OpCounter([weight]) as ledger:
        kept = (weight.T * 2).sin().sum()  # sin keeps what it was given: 40,000 bytes that no name holds
        assert ledger.work.total() == 3  # to transpose is to look in another way
        assert 40_000 <= ledger.now < 50_000 and ledger.peak >= 80_000
        kept.backward()
    del kept
    weight.grad = None
    assert ledger.now == 0


@pytest.fixture(scope="module")
def model(billion):
    return step_cost.network(Config(base=billion))


def test_arithmetic_is_that_of_csm_1b(model, billion):
    """Mistake: a count of operations that has nothing to do with the network: its parameters say how many there must be."""
    for ratio in (1 / 16, 1.0):
        made = batch(billion, 8, ratio)
        positions, depth = made["input_ids"].numel(), len(made["depth_frame_index"])
        # 1.966 and 7.386 GFLOP are two a weight; attention comes on top: scores and sums, in each of the 16 layers
        attention = 16 * 4 * positions * 170 * 2048
        forward = 1.966e9 * positions + 7.386e9 * depth
        adapter = 2 * (22.544e6 * positions + 4.391e6 * 32 * depth)
        assert step_cost.step(model, made, learns=False).flops == pytest.approx(forward + adapter + attention, rel=0.03)
        # backward: as much again for what flows back, twice as much where weights learn; attention is made anew as well
        assert step_cost.step(model, made).flops == pytest.approx(2 * forward + 3 * adapter + 3.5 * attention, rel=0.04)


def test_memory_grows_with_the_batch(model, billion):
    """Mistake: a batch that was planned for one card and does not fit, because growth was guessed; or the scores of every
    attention head are taken for memory, as the meta device would have them and no card does."""
    peaks = [step_cost.step(model, batch(billion, clips, 1 / 16)).peak for clips in (4, 8, 12)]
    assert peaks[2] - peaks[1] == pytest.approx(peaks[1] - peaks[0], rel=0.05)
    saving = step_cost.network(Config(base=billion), gradient_checkpointing=True)
    assert step_cost.step(saving, batch(billion, 8, 1 / 16)).peak < peaks[1] / 3


@pytest.fixture(scope="module")
def made(billion):
    return plan.Plan(Config(base=billion))


def test_cards_differ_as_they_must(made):
    """Mistake: the small card gets the big batch, the fast one the long hours, the dollars another card's price."""
    rows = {row.name: row for row in made.rows}
    assert [row.name for row in made.rows] == [card.name for card in gpus.GPUS]
    assert rows["T4"].fits < rows["L4"].fits < rows["A100 40 GB"].fits < rows["H200"].fits
    assert rows["T4"].seconds > rows["A100 80 GB"].seconds > rows["H100"].seconds
    for row in made.rows:
        assert row.dollars == pytest.approx(row.minutes / 60 * row.card.price)
        assert row.source == "computed" and not row.way.gradient_checkpointing and not row.way.text_off
        assert row.memory < 0.9 * row.card.memory
        assert row.seconds >= made.ladder(False).rungs[0].training.launches * step_cost.LAUNCH
    # the weights of CSM-1B without codec and the adapter's 27 million parameters, 16 bytes each
    assert made.weights(plan.MemoryOption()) == pytest.approx(2 * 1.5528e9 + 16 * 26.9353e6 + plan.CONTEXT, rel=0.002)


def test_memory_is_saved_only_where_it_must_be(made):
    """Mistake: everybody trains slowly because one card is small; or a card is given up that a slower way would serve."""
    needed = made.weights(plan.MemoryOption()) + made.ladder(False).rungs[0].peak
    little = dataclasses.replace(gpus.GPUS[0], memory=(needed - 3e8) / 1e9 / plan.FILL)
    least = made.weights(plan.MemoryOption(True, True)) + made.ladder(True).rungs[0].peak
    less = dataclasses.replace(little, memory=(least + 1e7) / 1e9 / plan.FILL)
    assert made._row(little, None).way == plan.MemoryOption(text_off=True)
    assert made._row(less, None).way.gradient_checkpointing
    assert made._row(dataclasses.replace(little, memory=3), None) is None
    smaller = dataclasses.replace(little, memory=(needed + 1e9) / 1e9 / plan.FILL)
    row = made._row(smaller, None)
    assert row.gradient_accumulation_steps > 1 and row.micro * row.gradient_accumulation_steps >= 1400 and row.micro <= row.fits
    assert f"--tokens-per-batch {row.micro} --gradient-accumulation-steps {row.gradient_accumulation_steps}" in plan.command(made, row)


def test_what_was_measured_wins_and_is_named(config, run):
    """Mistake: a guess is printed although the run itself took its time on that very card."""
    finished(run, config, "AMD EPYC, 8 cores, 54 GB, Tesla T4", seconds_since_start_or_resume=100.0)
    made = plan.Plan(config, run)
    row = next(row for row in made.rows if row.name == "T4")
    assert row.source == "measured" and row.seconds == 25.0
    assert row.minutes == pytest.approx(plan.LOADING + 100 / 60)
    assert {each.source for each in made.rows if each is not row} == {"computed"}
    text = " ".join(plan.format_plan(run, **dataclasses.asdict(config)).split())
    assert "took 100 s on AMD EPYC" in text and "never measured on such a card" in text


def test_a_machine_that_is_no_card_has_its_own_row(config, run):
    """Mistake: the laptop's own time is lost, or gets the price of a card."""
    finished(run, config, "Intel(R) Xeon(R) Processor, 2 cores, 25 GB", seconds_since_start_or_resume=50.0,
             steps_since_start_or_resume=2)
    row = plan.Plan(config, run).rows[-1]
    assert (row.name, row.source, row.seconds, row.dollars) == ("Intel Xeon Processor", "measured", 25.0, None)


def test_another_recipes_time_is_no_measure(config, run):
    """Mistake: seconds of small batches are printed for large ones."""
    finished(run, config.replace(tokens_per_batch=75), "Tesla T4", seconds_since_start_or_resume=100.0)
    found, said = measured_speed.for_run(run, config)
    assert found is None and "tokens_per_batch 75" in said
    assert measured_speed.for_run(run, config.replace(tokens_per_batch=75, steps=9, learning_rate=1.0))[0]
    assert measured_speed.for_run(Run("two", run.folder.parent), config)[0] is None


@pytest.mark.parametrize("packing", [True, False])
def test_the_clips_of_the_run_are_planned_for(config, run, packing):
    """Mistake: a plan for clips of another length, or for more than there are."""
    voice = memory_model.training_data(config.replace(packing=packing, context_probability=0.5), run)
    assert len(voice.clips) == 10 and len(voice.held_out) == 2
    assert voice.seconds == pytest.approx(sum(range(22, 32)) / 12.5)
    for size in (voice.longest, 150, 400):
        examples = voice.filled(size)
        assert max(map(len, examples)) == voice.longest
        laid = dataset.collate(examples, dataset.sample_depth_frames(examples, 1.0, 0), packing)
        assert size - voice.longest < laid["input_ids"].numel() <= size


def test_no_batch_is_larger_than_the_clips(config, run):
    """Mistake: a plan for two thousand clips where there are ten."""
    made = plan.Plan(config.replace(tokens_per_batch=100_000), run)
    assert made.rows[0].fits == made.voice.whole == pytest.approx(10 * made.voice.of_clip, abs=1)
    assert made.rows[0].gradient_accumulation_steps == 1 and "all clips" in plan._table(made)[1]


def test_the_verb_prints_the_table(toy, capsys):
    """Mistake: the plan is there, but the command line does not lead to it, or the table breaks in a narrow window."""
    assert cli.main(["doctor", "--plan", "--base", toy, "--rank", "4", "--depth-frame-fraction", "0.5"]) == 0
    said = capsys.readouterr().out
    table = said.split("\n\n")[0].splitlines()
    assert len(table) == 1 + len(gpus.GPUS) and all(line.endswith("computed") for line in table[1:])
    assert "Example, as no --run was given: 600 clips of 6 s" in said and "rank 4, depth ratio 0.5" in said
    assert "prices of late 2025, which may have changed" in " ".join(said.split())
    assert f"--run NAME --base {toy} --rank 4 --depth-frame-fraction 0.5" in said
    assert max(len(line) for line in said.splitlines() if toy not in line) <= 100
    assert cli.main(["doctor", "--rank", "4"]) == 1
    assert "--rank says for what to plan" in capsys.readouterr().err


def test_a_plan_needs_clips_or_none_to_be_named(toy, tmp_path, monkeypatch):
    """Mistake: a run that is empty is planned for as if it were the example."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(KitError, match="neither data nor codes"):
        plan.format_plan(Run("empty"), base=toy)


def test_bytes_and_operations_become_seconds():
    """Mistake: a step without arithmetic that takes no time, or arithmetic that waits for nothing."""
    card = gpus.Gpu("any", "any", 10, 100, 1000, 1.0)
    step = step_cost.StepCost(1, 0, step_cost.Counter({(10**12, 0): 2, (0, 10**9): 3}))
    assert step.busy(card) == pytest.approx(2 * 1e12 / (1e14 * step_cost.OF_PEAK) + 3 * 1e9 / (1e12 * step_cost.OF_BANDWIDTH))
    assert step.flops == 2 * 10**12 and step.launches == 5
    assert gpus.match("Intel, 12 cores, 83 GB, NVIDIA A100-SXM4-40GB").name == "A100 40 GB"
    assert gpus.match("AMD, 8 cores, 54 GB, NVIDIA L40S") is None
    assert math.isclose(gpus.match("NVIDIA H100 80GB HBM3").memory, 85)


def test_the_recipe_of_the_run_is_planned_for(config, run):
    """Mistake: the plan forgets what the run was told before."""
    save_config(run, config.replace(rank=2))
    assert "rank 2," in plan.format_plan(run)
    assert "rank 3," in plan.format_plan(run, rank=3)
