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


def all_frames(examples):
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


def test_loss_from_audio_equals_loss_from_codes(base, stock, toy):
    """Mistake: precomputed codes, template or labels differ from what transformers makes of the same audio."""
    import numpy as np
    from transformers import AutoProcessor

    wave = np.random.default_rng(1).normal(0, 0.1, 1920 * 6).astype(np.float32)
    chat = [{"role": "0", "content": [{"type": "text", "text": "Hi."}, {"type": "audio", "path": wave}]}]
    inputs = AutoProcessor.from_pretrained(toy).apply_chat_template(chat, tokenize=True, return_dict=True,
                                                                    processor_kwargs={"output_labels": True})
    stock_outputs = stock(**inputs, use_cache=False)
    from tts_kit.tokens.prompt import Turn
    example = base.prompt_builder.build("clip", [Turn("Hi.", "0", base.codec.encode([wave])[0])])
    backbone, depth = kit_means(base.model, dataset.collate([example], all_frames([example]), packing=True))
    torch.testing.assert_close(backbone, stock_outputs.backbone_loss, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(depth, stock_outputs.depth_decoder_loss, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("packing", [True, False], ids=["packed", "padded"])
def test_loss_and_gradients_equal_transformers(base, toy, packing):
    """Mistake: a hidden state off by one, a wrong head or table offset, depth weighed 31 times, clips that attend to each
    other."""
    kit_model = lora.add_lora(base.model, 4, 8.0)
    stock_base = load.load_base(toy, device.choose("cpu"))
    stock_model = lora.add_lora(stock_base.model, 4, 8.0)
    for kit_weight, stock_weight in zip(kit_model.parameters(), stock_model.parameters()):
        if kit_weight.requires_grad:
            kit_weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(kit_weight.numel()))
            stock_weight.data.copy_(kit_weight.data)
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]
    backbone, depth = kit_means(lora.unwrap(kit_model), dataset.collate(examples, all_frames(examples), packing))
    (backbone + depth).backward()

    frames = sum(example.target_frames for example in examples)
    outputs = [(stock_loss(lora.unwrap(stock_model), example), example.target_frames / frames) for example in examples]
    expected_backbone = sum(out.backbone_loss * share for out, share in outputs)
    expected_depth = sum(out.depth_decoder_loss * share for out, share in outputs)
    (expected_backbone + expected_depth).backward()

    torch.testing.assert_close(backbone, expected_backbone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(depth, expected_depth, rtol=1e-5, atol=1e-6)
    compared = 0
    for (name, kit_weight), stock_weight in zip(kit_model.named_parameters(), stock_model.parameters()):
        if kit_weight.requires_grad:
            torch.testing.assert_close(kit_weight.grad, stock_weight.grad, rtol=1e-4, atol=1e-6,
                                       msg=lambda message, name=name: f"{name}: {message}")
            compared += kit_weight.grad.abs().max() > 0
    assert compared == 2 * 4 * 7  # A and B of seven projections in two layers of two parts


def test_packed_clips_do_not_attend_to_each_other(base):
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


def test_the_depth_loss_is_a_mean_over_the_sampled_frames(base):
    """Mistake: the sampled depth loss is divided by all frames and weighs less at a smaller fraction."""
    example = dataset.build_example(CLIPS[0], base.prompt_builder)
    mask = torch.zeros(example.target_frames, dtype=torch.bool)
    mask[[2, 5]] = True
    sums = loss.loss_sums(base.model, dataset.collate([example], [mask], packing=True))
    whole = dataset.collate([example], all_frames([example]), packing=True)
    hidden = base.model.backbone_model(inputs_embeds=embed.embed_inputs(base.model, whole),
                                       position_ids=whole["position_ids"],
                                       use_cache=False).last_hidden_state[0]
    logits = depth_logits(base.model, hidden[whole["predictor_index"]], whole["targets"])[:, [2, 5]]
    expected = torch.nn.functional.cross_entropy(logits.transpose(0, 1).flatten(0, 1),
                                                 whole["targets"][[2, 5], 1:].flatten(), reduction="sum")
    assert sums.depth_frames == 2
    torch.testing.assert_close(sums.depth, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("frames", [1, 3, 4, 5, 32])
def test_any_number_of_depth_frames_is_accepted(base, frames):
    """Mistake: transformers 5.17 fails on a pack of as many frames as there are codebooks."""
    codes = make_clip("a", frames).codes.long()
    states = torch.randn(frames, 32, generator=torch.Generator().manual_seed(0))
    batched = depth_logits(base.model, states, codes)
    inputs = torch.nn.functional.pad(codes[:1], (1, 0))[:, :-1]
    single = base.model.depth_decoder(input_ids=inputs, backbone_last_hidden_state=states[:1], use_cache=False).logits[0]
    torch.testing.assert_close(batched[:, 0], single, rtol=1e-5, atol=1e-6)


def test_no_cache_is_built_in_training(base, monkeypatch):
    """Mistake: use_cache left at the config's default builds key-value caches in every step and breaks packing."""
    from transformers import cache_utils

    caches = []
    init = cache_utils.DynamicCache.__init__
    monkeypatch.setattr(cache_utils.DynamicCache, "__init__", lambda *a, **k: (caches.append(1), init(*a, **k))[1])
    example = dataset.build_example(CLIPS[0], base.prompt_builder)
    loss.loss_sums(base.model, dataset.collate([example], all_frames([example]), packing=True))
    assert not caches


@pytest.mark.parametrize("scale", [1.0, 2.0 ** 12])
def test_chunks_change_neither_loss_nor_gradients(base, monkeypatch, scale):
    """Mistake: a chunk is left out, scored twice or weighed by its size, or the scale of float16 stays in the gradient."""
    model = lora.add_lora(base.model, 4, 8.0)
    for name, weight in model.named_parameters():
        if weight.requires_grad:
            weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]
    batch, results = dataset.collate(examples, all_frames(examples), packing=True), []
    for size in (1000, 4):
        monkeypatch.setitem(loss.CHUNK, "cpu", size)
        sums = loss.loss_sums(lora.unwrap(model), batch, scale)
        (sums.backbone + 3 * sums.depth).backward()
        trainable = [weight for weight in model.parameters() if weight.requires_grad]
        results.append([sums.depth, sums.by_codebook, *(weight.grad for weight in trainable)])
        for weight in trainable:
            weight.grad = None
    plain = (torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum") for logits, targets in zip(
        depth_logits(base.model, *states_and_codes(base.model, batch)), batch["targets"][:, 1:].T))
    torch.testing.assert_close(results[0][0], sum(plain), rtol=1e-5, atol=1e-5)
    for whole, parts in zip(*results, strict=True):
        torch.testing.assert_close(whole, parts, rtol=1e-5, atol=1e-6)


def states_and_codes(model, batch):
    hidden = model.backbone_model(inputs_embeds=embed.embed_inputs(model, batch), position_ids=batch["position_ids"],
                                  use_cache=False).last_hidden_state[0]
    return hidden[batch["predictor_index"]], batch["targets"]


def test_memory_of_the_depth_loss_is_that_of_a_chunk(base):
    """Mistake: at fraction 1 every frame's activations are kept until the backward pass, 12 GB for eight clips of CSM-1B."""
    model = lora.add_lora(base.model, 4, 8.0)
    peaks = []
    for frames in (loss.CHUNK["cpu"], 8 * loss.CHUNK["cpu"]):
        states, codes = torch.zeros(frames, 32, requires_grad=True), make_clip("a", frames).codes.long()
        with op_counter.OpCounter([*model.parameters(), *model.buffers(), states, codes]) as counter:
            loss.depth_loss(lora.unwrap(model), states, codes)[0].backward()
        peaks.append(counter.peak)
    assert peaks[1] < 1.2 * peaks[0]


def test_fused_projections_equal_pefts(base):
    """Mistake: the scaling is lost, or a projection with another PEFT setting is computed as a plain one."""
    model = lora.add_lora(base.model, 4, 12.0)
    fused = [module for module in model.modules() if isinstance(module, lora.FusedLoraLinear)]
    assert len(fused) == 28
    for weight in (weight for module in fused for weight in module.lora_B.parameters()):
        weight.data.normal_(0, 0.1, generator=torch.Generator().manual_seed(weight.numel()))
    projection, generator = fused[0], torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, projection.in_features, generator=generator).requires_grad_()
    results = []
    for forward in (projection.forward, lambda x: peft_layer.Linear.forward(projection, x)):
        out = forward(x)
        results.append([out, *torch.autograd.grad(out.square().sum(), [x, *projection.lora_A.parameters(),
                                                                       *projection.lora_B.parameters()])])
    for kit_value, peft_value in zip(*results, strict=True):
        torch.testing.assert_close(kit_value, peft_value, rtol=1e-5, atol=1e-6)
    dropped = get_peft_model(torch.nn.Sequential(torch.nn.Linear(4, 4)), LoraConfig(target_modules=["0"], lora_dropout=0.5))
    assert not [module for module in lora.fuse_lora_layers(dropped).modules() if isinstance(module, lora.FusedLoraLinear)]


def test_sixteen_bit_training_multiplies_in_sixteen_bits(base):
    """Mistake: PEFT converts every input of a bf16 model to float32, and its products with it, at a tenth of the speed."""
    model = lora.add_lora(base.model.to(torch.bfloat16), 4, 8.0)
    examples = [dataset.build_example(clip, base.prompt_builder) for clip in CLIPS]

    dtypes = set()

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if function.overloadpacket in (torch.ops.aten.mm, torch.ops.aten.bmm, torch.ops.aten.addmm):
                dtypes.update(tensor.dtype for tensor in args if isinstance(tensor, torch.Tensor) and tensor.numel() > 4096)
            return function(*args, **(kwargs or {}))

    with Products():
        with torch.autocast("cpu", torch.bfloat16):
            sums = loss.loss_sums(lora.unwrap(model), dataset.collate(examples, all_frames(examples), packing=True))
        (sums.backbone + sums.depth).backward()
    assert dtypes == {torch.bfloat16}
