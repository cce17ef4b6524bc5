"""The inference engine against transformers' `generate`, and its own rules about EOS, limits, seeds and stale weights."""

import pytest
import torch
from conftest import make_clip, spread_logits
from torch.utils._python_dispatch import TorchDispatchMode

from tts_kit import device
from tts_kit.generation import engine
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling, draw_gumbel_noise, sample_token
from tts_kit.model import load, lora
from tts_kit.tokens.prompt import Turn

GREEDY = Sampling(temperature=0, depth_temperature=0)


def prompts(base, *texts):
    context = Turn("A reference.", "0", make_clip("ref", 6).codes, in_loss=False)
    return [base.prompt_builder.build(text, [context, Turn(text, "0")] if number % 2 else [Turn(text, "0")])
            for number, text in enumerate(texts)]


def generate(base, prompts, sampling=GREEDY, seeds=None, max_frames=12, adapter=None):
    """Generate with a fresh engine, which cannot have stale weights."""
    return InferenceEngine(base.model, base.spec, adapter).generate(
        prompts, sampling, seeds or [0] * len(prompts), [max_frames] * len(prompts))


def stock_codes(stock, base, prompt, frames):
    """Return the codes of transformers' greedy `generate`, with the ids suppressed that are no codes, as in the kit."""
    no_codes = list(range(base.spec.codebook_size, stock.config.vocab_size))
    embeds = torch.where(prompt.audio_mask[:, None], stock.backbone_model.embed_tokens(prompt.codes[None])[0],
                         stock.embed_text_tokens(prompt.input_ids))
    out = stock.generate(inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         do_sample=False, depth_decoder_do_sample=False, max_new_tokens=frames, suppress_tokens=no_codes,
                         depth_decoder_suppress_tokens=no_codes)
    return out[0]


def test_greedy_codes_equal_transformers_for_one_and_for_a_batch(base, stock):
    """Mistake: a wrong position, head, table offset, mask or padding side, visible in the first differing code."""
    spread_logits(base, stock)
    batch = prompts(base, "Hello.", "A much longer line of text than the others.", "Why not?")
    for prompt, batched in zip(batch, generate(base, batch)):
        single, = generate(base, [prompt])
        expected = stock_codes(stock, base, prompt, 12)
        assert len(expected) == 12 and len(expected.unique()) > 3
        assert single.codes.tolist() == expected.tolist()
        assert batched.codes.tolist() == expected.tolist()


def test_stops_at_the_eos_frame_and_leaves_it_out(base):
    """Mistake: the EOS frame is decoded into a click, or EOS is reported as reaching the limit."""
    base.model.lm_head.weight.data.zero_()  # all logits equal: greedy takes code 0 everywhere, which is the EOS frame
    base.model.depth_decoder.codebooks_head.weight.data.zero_()
    generation, = generate(base, prompts(base, "Hi."), max_frames=9)
    assert generation.ended_with_eos and generation.codes.shape == (0, 4)
    assert not generation.is_complete  # it has no frames


def test_the_last_codebook_does_not_decide_the_end(base):
    """Mistake: a stop decided by 31 codebooks and a cut by 32 disagree, and frames after the end are decoded."""
    frame = torch.tensor([[0, 0, 0, 7], [0, 0, 7, 0], [7, 0, 0, 0]])
    assert engine.is_eos_frame(frame).tolist() == [True, False, False]


def test_a_limit_ends_a_generation_without_eos(base):
    """Mistake: a sentence without EOS runs on for ever, or is cut at its neighbour's limit."""
    spread_logits(base)
    short, long = InferenceEngine(base.model, base.spec).generate(prompts(base, "One.", "Two."), GREEDY, [0, 0], [3, 7])
    assert (len(short.codes), len(long.codes)) == (3, 7)
    assert not short.ended_with_eos and not long.ended_with_eos


def test_ids_that_are_no_codes_are_never_sampled(base):
    """Mistake: ids 2048 to 2050 are sampled and crash the codec with an index error."""
    no_code = base.spec.codebook_size
    for head in (base.model.lm_head.weight.data, base.model.depth_decoder.codebooks_head.weight.data.transpose(1, 2)):
        head[..., no_code, :], head[..., no_code + 1, :] = 100.0, -100.0  # one of the two is always the likeliest
    for sampling in (GREEDY, Sampling(1.0, 1.0, 50)):
        generation, = generate(base, prompts(base, "Hi."), sampling, [1], 4)
        assert len(generation.codes) == 4 and generation.codes.max() < no_code


def test_a_seed_gives_the_same_alone_and_in_a_batch(base):
    """Mistake: seeds are shared by the batch, so a clip of the comparison cannot be generated again by itself."""
    spread_logits(base)
    batch, sampling = prompts(base, "One.", "Two, but longer.", "Three?"), Sampling(0.9, 0.9, 8)
    batched = generate(base, batch, sampling, [11, 12, 13], 6)[1]
    single, = generate(base, batch[1:2], sampling, [12], 6)
    other_seed, = generate(base, batch[1:2], sampling, [99], 6)
    assert single.codes.tolist() == batched.codes.tolist() != other_seed.codes.tolist()


def test_sampling_follows_the_softmax_of_the_top_candidates(base):
    """Mistake: temperature or top-k is applied wrongly; detected by counting 4000 draws."""
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0] + [-50.0] * (base.spec.codebook_size - 4))
    noise = torch.ones(4000, 1, 2)
    draw_gumbel_noise(noise, [torch.Generator().manual_seed(seed) for seed in range(4000)])
    sampled = sample_token(logits.repeat(4000, 1), 2.0, noise[:, 0])
    expected = torch.tensor([1.0, 0.5]).softmax(0)
    assert set(sampled.tolist()) == {0, 1}
    assert (sampled == 0).float().mean().item() == pytest.approx(expected[0].item(), abs=0.03)


def test_an_engine_reloads_changed_weights(spread_base):
    """Mistake: all samples of a training are generated with the weights of the first, or a strength or a merge has no
    effect, and no test notices: conftest's `engines_are_fresh` fails a test whose engine is stale."""
    model = lora.add_lora(spread_base.model, 4, 8.0)
    prompt = prompts(spread_base, "One.")
    inference = InferenceEngine(spread_base.model, spread_base.spec, lora.DEFAULT_ADAPTER)

    def codes():
        return inference.generate(prompt, GREEDY, [0], [6])[0].codes.tolist()

    lora_b = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    optimizer, untrained = torch.optim.AdamW(lora_b, lr=0.5, fused=True), codes()
    for weight in lora_b:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    optimizer.step()
    with pytest.raises(pytest.fail.Exception, match="`invalidate` was not called"):
        codes()
    inference.invalidate()
    trained = codes()
    assert trained != untrained
    lora.set_strength(model, 0.0)
    inference.invalidate()
    assert codes() == untrained
    lora.set_strength(model, 1.0)
    model.merge_and_unload()
    inference.load_adapter(None)
    assert codes() == trained
    with pytest.raises(AssertionError, match="no adapter 'default'"):  # it was merged; the base would be silently generated
        inference.load_adapter(lora.DEFAULT_ADAPTER)
        codes()


class Calls(TorchDispatchMode):
    """Counts the operations of a frame, and how often the host waits for a result."""

    def __init__(self):
        super().__init__()
        self.calls, self.waits = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        self.waits += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_a_frame_needs_few_calls_and_no_wait(spread_base, stock):
    """Mistake: a frame makes the host wait, or is thousands of small operations, as in transformers."""
    batch, frames = prompts(spread_base, "One.", "Two, but longer."), []
    stream = InferenceEngine(spread_base.model, spread_base.spec).stream(batch, Sampling(), [1, 2], 12)
    next(stream)
    with Calls() as kit:
        frames += [next(stream) for _ in range(10)]
    spread_logits(stock)
    with Calls() as transformers:
        stock_codes(stock, spread_base, batch[0], 10)
    assert kit.waits == 0 and len(frames) == 10
    assert 2 * kit.calls < transformers.calls


def test_a_stream_ends_at_its_limit(spread_base):
    """Mistake: keys and values are written beyond the cache, or a stream gives a frame too few."""
    frames = list(InferenceEngine(spread_base.model, spread_base.spec).stream(prompts(spread_base, "One."), GREEDY, [0], 7))
    generation, = generate(spread_base, prompts(spread_base, "One."), max_frames=7)
    assert torch.cat(frames).tolist() == generation.codes.tolist() and len(frames) == 7


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU, and torch sees none")
def test_a_captured_graph_generates_the_same_codes(spread_toy):
    """Mistake: a graph replays with the first sentence's positions, mask or noise."""
    bases = load.load_base(spread_toy, device.choose("cpu")), load.load_base(spread_toy, device.choose("cuda", "float32"))
    cpu, gpu = (InferenceEngine(base.model, base.spec) for base in bases)
    for texts in (["One."], ["One.", "Two, but longer."], ["Another one."]):
        for sampling in (GREEDY, Sampling(0.9, 0.9, 8)):
            results = [[generation.codes.tolist() for generation in inference.generate(
                prompts(bases[0], *texts), sampling, [5] * len(texts), [20] * len(texts))]
                for inference in ((cpu, gpu) if sampling is GREEDY else (gpu, gpu))]
            assert results[0] == results[1]
