"""Which clips are in which step, and which of their frames train the depth decoder."""

from collections import Counter

import pytest
import torch
from conftest import make_clip

from tts_kit.training import dataset
from tts_kit.training.dataset import MicroBatchDataset

CLIPS = [make_clip(f"clip{number}", 4 + number * 3 % 17, "A few words." if number % 2 else "Words.") for number in range(20)]


def steps(base, config, **changes):
    return MicroBatchDataset(CLIPS, base.prompt_builder, config.replace(**changes))


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_every_clip_once_per_epoch_and_batches_within_the_budget(base, config, packing):
    """Mistake: clips are lost or doubled by bucketing, or a batch exceeds the planned memory."""
    plan = steps(base, config, steps=40, packing=packing)
    names, index = [], 0
    while len(names) < len(CLIPS):
        batch = plan[index]
        assert batch["input_ids"].numel() <= config.tokens_per_batch
        names += batch["clip_ids"]
        index += 1
    assert index < len(CLIPS) / 2, "several clips share a batch"
    assert Counter(names) == Counter(clip.id for clip in CLIPS)


def test_epochs_differ_in_order_and_one_seed_gives_one_order(base, config):
    """Mistake: the same batches in the same order in every epoch, or another order after a resume."""
    plan = steps(base, config, steps=40)
    same_seed, other_seed = steps(base, config, steps=40), steps(base, config, steps=40, seed=1)
    assert plan.plan == same_seed.plan != other_seed.plan
    per_epoch = round(len(plan) / plan.epochs)
    assert plan.plan[:per_epoch] != plan.plan[per_epoch:2 * per_epoch]


def test_depth_frames_are_resampled_and_always_contain_eos(base, config):
    """Mistake: one subset for all epochs, or an EOS frame that is seldom trained, so that the voice never stops."""
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS[:4]]
    draws = [torch.cat(dataset.sample_depth_frames(examples, 1 / 4, seed)) for seed in range(200)]
    assert len({tuple(draw.tolist()) for draw in draws}) > 190
    lengths = torch.tensor([example.target_frames for example in examples])
    ends = lengths.cumsum(0) - 1
    share = torch.stack(draws).float().mean(0)
    assert (share[ends] == 1).all()
    is_not_end = torch.ones(len(share), dtype=torch.bool)
    is_not_end[ends] = False
    assert share[is_not_end].mean().item() == pytest.approx(1 / 4, abs=0.02)
    assert share[is_not_end].min() > 0.1
    assert torch.equal(draws[3], torch.cat(dataset.sample_depth_frames(examples, 1 / 4, 3)))
    single_clip = MicroBatchDataset([make_clip("only", 40)], base.prompt_builder,
                                    config.replace(steps=9, depth_frame_fraction=1 / 4))
    assert len({tuple(single_clip[step]["depth_frame_index"].tolist()) for step in range(9)}) == 9


def test_accumulated_micro_batches_are_parts_of_one_step(base, config):
    """Mistake: each micro-batch is averaged by itself, so that short ones weigh more than long ones."""
    plan = steps(base, config, steps=3, gradient_accumulation_steps=4, depth_frame_fraction=1 / 4)
    parts = [plan[index] for index in range(4, 8)]
    frames = {(part["frames_in_step"], part["depth_frames_in_step"]) for part in parts}
    assert frames == {(sum(len(part["targets"]) for part in parts), sum(len(part["depth_frame_index"]) for part in parts))}


def test_context_is_another_clip_without_loss(base, config):
    """Mistake: a clip is its own context, and the model learns to copy."""
    plan = steps(base, config, steps=60, context_probability=0.5, tokens_per_batch=300)
    items = [item for batch in plan.plan for item in batch]
    with_context = [item for item in items if item[1] is not None]
    assert 0.35 < len(with_context) / len(items) < 0.65
    assert all(clip != context for clip, context in with_context)
    clip, context = with_context[0]
    example = plan.example((clip, context))
    assert example.target_frames == len(CLIPS[clip].codes) + 1
    assert len(example) == len(plan.examples[clip]) + len(plan.examples[context])


def test_context_is_of_the_same_speaker(base, config):
    """Mistake: with several speakers in the data a voice is cloned from another speaker's clip."""
    clips = [make_clip(f"clip{number}", 6, speaker="ab"[number % 2]) for number in range(10)] + [
        make_clip("lonely", 6, speaker="c")]
    plan = MicroBatchDataset(clips, base.prompt_builder,
                             config.replace(steps=60, context_probability=1.0, tokens_per_batch=300))
    items = [item for batch in plan.plan for item in batch]
    assert all(clips[clip].speaker == clips[context].speaker for clip, context in items if context is not None)
    assert {clips[clip].id for clip, context in items if context is None} == {"lonely"}


def test_dropped_texts_change_nothing_else(base, config):
    """Mistake: the share without text is another, resuming draws it anew, or the clips of the steps change."""
    on, off = (steps(base, config, steps=40, tokens_per_batch=300, condition_dropout=share) for share in (0.25, 0.0))
    assert on.plan == off.plan and off.examples_without_text == []
    dropped, total = 0, 0
    for index in range(len(on)):
        one, again, other = on[index], on[index], off[index]
        assert torch.equal(one["input_ids"], again["input_ids"])
        assert one["clip_ids"] == other["clip_ids"] and torch.equal(one["targets"], other["targets"])
        assert torch.equal(one["depth_frame_index"], other["depth_frame_index"])
        dropped += other["input_ids"].shape[1] - one["input_ids"].shape[1]
        text_ids = {clip.id: len(base.prompt_builder.text_ids(clip.text, clip.source)) for clip in CLIPS}
        total += sum(text_ids[name] - len(base.prompt_builder.text_ids("", CLIPS[0].source)) for name in one["clip_ids"])
    assert 0.15 < dropped / total < 0.35


def test_a_clip_longer_than_the_budget_is_a_batch_of_its_own(base, config):
    """Mistake: an endless loop or an empty batch when one clip is larger than the budget."""
    plan = MicroBatchDataset([*CLIPS[:3], make_clip("long", 200)], base.prompt_builder, config.replace(steps=8))
    assert ["long"] in [plan[index]["clip_ids"] for index in range(len(plan))]
    assert all(plan.plan)
