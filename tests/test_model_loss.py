"""The kit's loss and gradients against transformers' own forward, in float32."""

import op_counter
import pytest
import torch
from conftest import make_clip
from peft import LoraConfig, get_peft_model
from peft.tuners.lora import layer as peft_layer
from torch.utils._python_dispatch import TorchDispatchMode

from tts_kit import device
from tts_kit.model import embed, load, lora, loss
from tts_kit.training import dataset

CLIPS = [make_clip("a", 9, "One."), make_clip("b", 5, "Another one?"), make_clip("c", 12, "A third, longer one.")]


def everything(examples):
    return [torch.ones(example.target_frames, dtype=torch.bool) for example in examples]


def stock_loss(model, example):
    """Transformers' forward on one clip, from embeddings and three-dimensional labels."""
    embeds = torch.where(example.audio_mask[:, None], model.backbone_model.embed_tokens(example.codes[None])[0],
                         model.embed_text_tokens(example.input_ids))
    return model(inputs_embeds=embeds[None], labels=example.labels[None], use_cache=False)


def kit_means(model, batch):
    sums = loss.loss_sums(model, batch)
    return sums.backbone / sums.frames, sums.depth / sums.depth_frames / (len(sums.by_codebook) - 1)


def depth_logits(model, states, codes):
    return torch.bmm(loss.depth_hidden(model, states, codes), model.depth_decoder.codebooks_head.weight)


def test_loss_from_sound_is_the_loss_from_codes(base, stock, toy):
    """Mistake: codes, template or labels made beforehand differ from what transformers makes of the same sound."""
    import numpy as np
    from transformers import AutoProcessor

    wave = np.random.default_rng(1).normal(0, 0.1, 1920 * 6).astype(np.float32)
    chat = [{"role": "0", "content": [{"type": "text", "text": "Hi."}, {"type": "audio", "path": wave}]}]
    inputs = AutoProcessor.from_pretrained(toy).apply_chat_template(chat, tokenize=True, return_dict=True,
                                                                    processor_kwargs={"output_labels": True})
    theirs = stock(**inputs, use_cache=False)
    from tts_kit.tokens.prompt import Turn
    example = base.prompt_builder.build("clip", [Turn("Hi.", "0", base.codec.encode([wave])[0])])
    backbone, depth = kit_means(base.model, dataset.collate([example], everything([example]), packing=True))
    torch.testing.assert_close(backbone, theirs.backbone_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(depth, theirs.depth_decoder_loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_loss_and_gradients_equal_transformers(base, toy, packing):
    """Mistake: hidden state off by one, wrong head or table offset, depth weighed 31 times, clips that see each other."""
    ours = lora.add_lora(base.model, 4, 8.0)
    other = load.load_base(toy, device.choose("cpu"))
    theirs = lora.add_lora(other.model, 4, 8.0)
    for mine, their in zip(ours.parameters(), theirs.parameters()):
        if mine.requires_grad:
            mine.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(mine.numel()))
            their.data.copy_(mine.data)
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]
    backbone, depth = kit_means(lora.unwrap(ours), dataset.collate(examples, everything(examples), packing))
    (backbone + depth).backward()

    frames = sum(example.target_frames for example in examples)
    outputs = [(stock_loss(lora.unwrap(theirs), example), example.target_frames / frames) for example in examples]
    wanted_backbone = sum(out.backbone_loss * share for out, share in outputs)
    wanted_depth = sum(out.depth_decoder_loss * share for out, share in outputs)
    (wanted_backbone + wanted_depth).backward()

    torch.testing.assert_close(backbone, wanted_backbone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(depth, wanted_depth, rtol=1e-5, atol=1e-6)
    compared = 0
    for (name, mine), their in zip(ours.named_parameters(), theirs.parameters()):
        if mine.requires_grad:
            torch.testing.assert_close(mine.grad, their.grad, rtol=1e-4, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}")
            compared += mine.grad.abs().max() > 0
    assert compared == 2 * 4 * 7  # A and B of seven projections in two layers of two parts


def test_packed_clips_do_not_see_each_other(base):
    """Mistake: a cache or a full mask in the packed row lets a clip attend to its neighbour."""
    first, second = (dataset.build_example(clip, base.prompt_builder) for clip in CLIPS[:2])
    changed = dataset.build_example(make_clip("z", 9, "One."), base.prompt_builder)
    assert len(changed) == len(first)

    def second_loss(neighbour):
        mask = [torch.zeros(neighbour.target_frames, dtype=torch.bool), torch.ones(second.target_frames, dtype=torch.bool)]
        batch = dataset.collate([neighbour, second], mask, packing=True)
        keep = slice(neighbour.target_frames, None)
        batch |= {"predictor_index": batch["predictor_index"][keep], "targets": batch["targets"][keep],
                  "depth_frame_index": torch.arange(second.target_frames)}
        return kit_means(base.model, batch)

    assert [value.item() for value in second_loss(first)] == pytest.approx(
        [value.item() for value in second_loss(changed)], rel=1e-6)


def test_depth_loss_counts_only_the_chosen_frames(base):
    """Mistake: the sampled depth loss is divided by all frames and so weighs less at a smaller ratio."""
    example = dataset.build_example(CLIPS[0], base.prompt_builder)
    mask = torch.zeros(example.target_frames, dtype=torch.bool)
    mask[[2, 5]] = True
    chosen = loss.loss_sums(base.model, dataset.collate([example], [mask], packing=True))
    whole = dataset.collate([example], everything([example]), packing=True)
    hidden = base.model.backbone_model(inputs_embeds=embed.embed_inputs(base.model, whole),
                                       position_ids=whole["position_ids"],
                                       use_cache=False).last_hidden_state[0]
    logits = depth_logits(base.model, hidden[whole["predictor_index"]], whole["targets"])[:, [2, 5]]
    wanted = torch.nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1),
                                               whole["targets"][[2, 5], 1:].flatten(), reduction="sum")
    assert chosen.depth_frames == 2
    torch.testing.assert_close(chosen.depth, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 32])
def test_any_number_of_depth_frames(base, frames):
    """Mistake: transformers 5.17 fails on a pack of as many frames as there are codebooks."""
    codes = make_clip("a", frames).codes.long()
    states = torch.randn(frames, 32, generator=torch.Generator().manual_seed(0))
    together = depth_logits(base.model, states, codes)
    inputs = torch.nn.functional.pad(codes[:1], (1, 0))[:, :-1]
    first = base.model.depth_decoder(input_ids=inputs, backbone_last_hidden_state=states[:1], use_cache=False).logits[0]
    torch.testing.assert_close(together[:, 0], first, rtol=1e-5, atol=1e-6)


def test_no_cache_is_built_in_training(base, monkeypatch):
    """Mistake: use_cache left at the config's default builds key-value caches in every step and breaks packing."""
    from transformers import cache_utils

    made = []
    real = cache_utils.DynamicCache.__init__
    monkeypatch.setattr(cache_utils.DynamicCache, "__init__", lambda *a, **k: (made.append(1), real(*a, **k))[1])
    example = dataset.build_example(CLIPS[0], base.prompt_builder)
    loss.loss_sums(base.model, dataset.collate([example], everything([example]), packing=True))
    assert not made


@pytest.mark.parametrize("scale", [1.0, 2.0 ** 12])
def test_chunks_change_nothing(base, monkeypatch, scale):
    """Mistake: a chunk is left out, scored twice or weighed by its size, or the scale of float16 stays in the gradient."""
    model = lora.add_lora(base.model, 4, 8.0)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]
    batch, seen = dataset.collate(examples, everything(examples), packing=True), []
    for size in (1000, 4):
        monkeypatch.setitem(loss.CHUNK, "cpu", size)
        sums = loss.loss_sums(lora.unwrap(model), batch, scale)
        (sums.backbone + 3 * sums.depth).backward()
        learnt = [weight for weight in model.parameters() if weight.requires_grad]
        seen.append([sums.depth, sums.by_codebook, *(weight.grad for weight in learnt)])
        for weight in learnt:
            weight.grad = None
    plain = (torch.nn.functional.cross_entropy(logits.float(), said, reduction="sum") for logits, said in zip(
        depth_logits(base.model, *states_and_codes(base.model, batch)), batch["targets"][:, 1:].T))
    torch.testing.assert_close(seen[0][0], sum(plain), rtol=1e-5, atol=1e-5)
    for whole, parts in zip(*seen, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def states_and_codes(model, batch):
    hidden = model.backbone_model(inputs_embeds=embed.embed_inputs(model, batch), position_ids=batch["position_ids"],
                                  use_cache=False).last_hidden_state[0]
    return hidden[batch["predictor_index"]], batch["targets"]


def test_memory_of_the_depth_part_is_that_of_a_chunk(base):
    """Mistake: at ratio 1 every frame's activations are kept until the backward pass, 12 GB for eight clips of CSM-1B."""
    model = lora.add_lora(base.model, 4, 8.0)
    peaks = []
    for frames in (loss.CHUNK["cpu"], 8 * loss.CHUNK["cpu"]):
        states, codes = torch.zeros(frames, 32, requires_grad=True), make_clip("a", frames).codes.long()
        with op_counter.OpCounter([*model.parameters(), *model.buffers(), states, codes]) as ledger:
            loss.depth_loss(lora.unwrap(model), states, codes)[0].backward()
        peaks.append(ledger.peak)
    assert peaks[1] < 1.2 * peaks[0]


def test_lean_projections_are_pefts(base):
    """Mistake: scaling is lost, or a projection that PEFT was told to treat in another way is treated as a plain one."""
    model = lora.add_lora(base.model, 4, 12.0)
    leaner = [module for module in model.modules() if isinstance(module, lora.FusedLoraLinear)]
    assert len(leaner) == 28
    for weight in (weight for module in leaner for weight in module.lora_B.parameters()):
        weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))
    projection, generator = leaner[0], torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, projection.in_features, generator=generator).requires_grad_()
    seen = []
    for forward in (projection.forward, lambda x: peft_layer.Linear.forward(projection, x)):
        out = forward(x)
        seen.append([out, *torch.autograd.grad(out.square().sum(), [x, *projection.lora_A.parameters(),
                                                                    *projection.lora_B.parameters()])])
    for mine, theirs in zip(*seen, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-6)
    dropped = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], lora_dropout=0.5))
    assert not [module for module in lora.fuse_lora_layers(dropped).modules() if isinstance(module, lora.FusedLoraLinear)]


def test_sixteen_bit_training_multiplies_in_sixteen_bits(base):
    """Mistake: PEFT takes every input of a bf16 model to float32, and its products with it, at a tenth of the speed."""
    model = lora.add_lora(base.model.to(torch.bfloat16), 4, 8.0)
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]

    seen = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
                seen.update(each.dtype for each in args if isinstance(each, torch.Tensor) and each.numel() > 4096)
            return function(*args, **(kwargs or {}))

    with Products():
        with torch.autocast("cpu", torch.bfloat16):
            sums = loss.loss_sums(lora.unwrap(model), dataset.collate(examples, everything(examples), packing=True))
        (sums.backbone + sums.depth).backward()
    assert seen == {torch.bfloat16}
