"""The kit's generation against transformers' `generate`, and its own rules about ends, limits and seeds."""

import pytest
import torch
from conftest import make_clip, spread_logits
from torch.utils._python_dispatch import TorchDispatchMode

from tts_kit import device
from tts_kit.generation import fused_decoder, generate
from tts_kit.generation.sampling import GumbelNoise, Sampling, sample_token
from tts_kit.model import load, lora
from tts_kit.tokens.prompt import Turn

GREEDY = Sampling(temperature=0, depth_temperature=0)


def prompts(base, *texts):
    context = Turn("A reference.", "0", make_clip("ref", 6).codes, in_loss=False)
    return [base.prompt_builder.build(text, [context, Turn(text, "0")] if number % 2 else [Turn(text, "0")])
            for number, text in enumerate(texts)]


def stock_codes(stock, base, prompt, frames):
    """Transformers' greedy generate, forbidden the words that are no codes, as the kit is."""
    words = list(range(base.spec.codebook_size, stock.config.vocab_size))
    embeds = torch.where(prompt.audio_mask[:, None], stock.backbone_model.embed_tokens(prompt.codes[None])[0],
                         stock.embed_text_tokens(prompt.input_ids))
    out = stock.generate(inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         do_sample=False, depth_decoder_do_sample=False, max_new_tokens=frames, suppress_tokens=words,
                         depth_decoder_suppress_tokens=words)
    return out[0]


def test_greedy_codes_equal_transformers_for_one_and_for_a_batch(base, stock):
    """Mistake: wrong position, head, table offset, mask or padding side, visible in the first differing code."""
    spread_logits(base, stock)
    asked = prompts(base, "Hello.", "A much longer line of text than the others.", "Why not?")
    together = generate.generate(base.model, base.spec, asked, GREEDY, [0, 0, 0], [12, 12, 12])
    for prompt, batched in zip(asked, together):
        alone = generate.generate(base.model, base.spec, [prompt], GREEDY, [0], [12])[0]
        wanted = stock_codes(stock, base, prompt, 12)
        assert len(wanted) == 12 and len(wanted.unique()) > 3
        assert alone.codes.tolist() == wanted.tolist()
        assert batched.codes.tolist() == wanted.tolist()


def test_stops_at_the_end_frame_and_leaves_it_out(base):
    """Mistake: the end frame is decoded into a click, or a stop is reported as running to the limit."""
    base.model.lm_head.weight.data.zero_()  # all logits equal: greedy takes code 0 everywhere, which is the end frame
    base.model.depth_decoder.codebooks_head.weight.data.zero_()
    take, = generate.generate(base.model, base.spec, prompts(base, "Hi."), GREEDY, [0], [9])
    assert take.ended_with_eos and take.codes.shape == (0, 4)


def test_the_last_codebook_does_not_decide_the_end(base):
    """Mistake: a stop by 31 codebooks and a cut by 32 disagree, and everything after the end is decoded."""
    frame = torch.tensor([[0, 0, 0, 7], [0, 0, 7, 0], [7, 0, 0, 0]])
    assert generate.is_eos_frame(frame).tolist() == [True, False, False]


def test_a_limit_ends_a_take_that_does_not_stop(base, stock):
    """Mistake: one runaway sentence in a batch runs on for ever or is cut at its neighbour's limit."""
    spread_logits(base)
    short, long = generate.generate(base.model, base.spec, prompts(base, "One.", "Two."), GREEDY, [0, 0], [3, 7])
    assert (len(short.codes), len(long.codes)) == (3, 7)
    assert not short.ended_with_eos and not long.ended_with_eos


def test_words_that_are_no_codes_are_never_chosen(base):
    """Mistake: ids 2048 to 2050 are sampled and crash the codec with an index error."""
    strange = base.spec.codebook_size
    for head in (base.model.lm_head.weight.data, base.model.depth_decoder.codebooks_head.weight.data.transpose(1, 2)):
        head[..., strange, :], head[..., strange + 1, :] = 100.0, -100.0  # one of the two is always the likeliest
    for sampling in (GREEDY, Sampling(1.0, 1.0, 50)):
        take, = generate.generate(base.model, base.spec, prompts(base, "Hi."), sampling, [1], [4])
        assert len(take.codes) == 4 and take.codes.max() < strange


def test_a_seed_says_the_same_alone_and_in_company(base):
    """Mistake: seeds are shared by the batch, so a clip of the comparison cannot be made again by itself."""
    spread_logits(base)
    asked, sampling = prompts(base, "One.", "Two, but longer.", "Three?"), Sampling(0.9, 0.9, 8)
    together = generate.generate(base.model, base.spec, asked, sampling, [11, 12, 13], [6, 6, 6])
    alone = generate.generate(base.model, base.spec, asked[1:2], sampling, [12], [6])[0]
    again = generate.generate(base.model, base.spec, asked[1:2], sampling, [99], [6])[0]
    assert alone.codes.tolist() == together[1].codes.tolist()
    assert alone.codes.tolist() != again.codes.tolist()


def test_sampling_follows_the_softmax_of_the_top_candidates(base):
    """Mistake: temperature or top-k applied wrongly; seen by counting 4000 draws."""
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0] + [-50.0] * (base.spec.codebook_size - 4))
    luck = GumbelNoise(range(4000), torch.ones(4000, 1, 2))
    luck.draw()
    drawn = sample_token(logits.repeat(4000, 1), 2.0, luck.numbers[:, 0])
    wanted = torch.tensor([1.0, 0.5]).softmax(0)
    assert set(drawn.tolist()) == {0, 1}
    assert (drawn == 0).float().mean().item() == pytest.approx(wanted[0].item(), abs=0.03)


def test_what_is_learnt_between_two_sentences_is_heard(loud_base):
    """Mistake: speaking keeps a copy of the weights from before, and every sample of a training sounds like the first."""
    model = lora.add_lora(loud_base.model, 4, 8.0)
    asked = prompts(loud_base, "One.")

    def said():
        return generate.generate(lora.unwrap(model), loud_base.spec, asked, GREEDY, [0], [6])[0].codes.tolist()

    learnt = [weight for name, weight in model.named_parameters() if "lora_B" in name]
    optimizer, before = torch.optim.AdamW(learnt, lr=0.5, fused=True), said()
    for weight in learnt:
        weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    optimizer.step()
    after = said()
    assert after != before
    with torch.no_grad():
        for weight in learnt:
            weight.zero_()
    assert said() == before


class Calls(TorchDispatchMode):
    """Counts what a frame asks of the device, and how often the host waits for an answer."""

    def __init__(self):
        super().__init__()
        self.calls, self.waits = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.calls += 1
        self.waits += function in (torch.ops.aten._local_scalar_dense.default, torch.ops.aten.nonzero.default)
        return function(*args, **(kwargs or {}))


def test_a_frame_is_few_calls_and_no_wait(loud_base, stock):
    """Mistake: a frame asks the host for a number, or is thousands of small calls again, as in transformers."""
    asked, frames = prompts(loud_base, "One.", "Two, but longer."), []
    stream = generate.stream(loud_base.model, loud_base.spec, asked, Sampling(), [1, 2], 12)
    next(stream)
    with Calls() as ours:
        frames += [next(stream) for _ in range(10)]
    spread_logits(stock)
    with Calls() as theirs:
        stock_codes(stock, loud_base, asked[0], 10)
    assert ours.waits == 0 and len(frames) == 10
    assert 2 * ours.calls < theirs.calls


def test_a_stream_ends_where_it_was_told(loud_base):
    """Mistake: keys and values are written beyond their places, or a stream gives a frame too few."""
    frames = list(generate.stream(loud_base.model, loud_base.spec, prompts(loud_base, "One."), GREEDY, [0], 7))
    take, = generate.generate(loud_base.model, loud_base.spec, prompts(loud_base, "One."), GREEDY, [0], [7])
    assert torch.cat(frames).tolist() == take.codes.tolist() and len(frames) == 7


@pytest.mark.parametrize("rows", [1, fused_decoder.FEW + 1])
def test_eight_bits_are_near_the_real_weights(rows):
    """Mistake: a scale for the wrong row, or rounding that is no rounding; 8 bits err by less than 2 % here."""
    projections = [torch.nn.Linear(64, 48, bias=False), torch.nn.Linear(64, 16, bias=False)]
    projections[1].weight.data *= 100
    norm = torch.nn.RMSNorm(64)
    norm.weight.data.uniform_(0.5, 2)
    x = torch.randn(rows, 64, generator=torch.Generator().manual_seed(0))
    wanted, seen = fused_decoder.Dense(projections, norm)(x), fused_decoder.Rounded(projections, norm)(x)
    for part in (slice(0, 48), slice(48, None)):
        error = (seen[:, part] - wanted[:, part]).norm() / wanted[:, part].norm()
        assert 0 < error < 0.02


def test_speaking_with_eight_bits(loud_base):
    """Mistake: the 8-bit weights are asked for and the others are used, or the two share a copy."""
    asked = prompts(loud_base, "One.", "Two, but longer.")
    plain, rounded, again = ([take.codes.tolist() for take in generate.generate(
        loud_base.model, loud_base.spec, asked, GREEDY, [0, 0], [12, 12], int8)] for int8 in (False, True, False))
    assert plain == again != rounded


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need an NVIDIA GPU, and torch sees none")
def test_a_recorded_frame_is_the_frame(loud):
    """Mistake: a graph replays with the first sentence's positions, mask or luck."""
    here = load.load_base(loud, device.choose("cpu")), load.load_base(loud, device.choose("cuda", "float32"))
    for texts in (["One."], ["One.", "Two, but longer."], ["Another one."]):
        for sampling in (GREEDY, Sampling(0.9, 0.9, 8)):
            said = []
            for base in here if sampling is GREEDY else [here[1]] * 2:
                said.append([take.codes.tolist() for take in generate.generate(
                    base.model, base.spec, prompts(base, *texts), sampling, [5] * len(texts), [20] * len(texts))])
            assert said[0] == said[1]
