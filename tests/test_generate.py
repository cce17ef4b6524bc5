"""The kit's generation against transformers' `generate`, and its own rules about ends, limits and seeds."""

import pytest
import torch
from conftest import make_clip, spread_logits

from tts_kit.model import generate
from tts_kit.model.generate import Sampling
from tts_kit.tokens.prompt import Turn

GREEDY = Sampling(temperature=0, depth_temperature=0)


def prompts(base, *texts):
    context = Turn("A reference.", "0", make_clip("ref", 6).codes, scored=False)
    return [base.writer.write(text, [context, Turn(text, "0")] if number % 2 else [Turn(text, "0")])
            for number, text in enumerate(texts)]


def stock_codes(stock, base, prompt, frames):
    """Transformers' greedy generate, forbidden the words that are no codes, as the kit is."""
    words = list(range(base.physics.codebook_size, stock.config.vocab_size))
    embeds = torch.where(prompt.is_frame[:, None], stock.backbone_model.embed_tokens(prompt.codes[None])[0],
                         stock.embed_text_tokens(prompt.ids))
    out = stock.generate(inputs_embeds=embeds[None], attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                         do_sample=False, depth_decoder_do_sample=False, max_new_tokens=frames, suppress_tokens=words,
                         depth_decoder_suppress_tokens=words)
    return out[0]


def test_greedy_codes_equal_transformers_for_one_and_for_a_batch(base, stock):
    """Mistake: wrong position, head, table offset, mask or padding side, visible in the first differing code."""
    spread_logits(base, stock)
    asked = prompts(base, "Hello.", "A much longer line of text than the others.", "Why not?")
    together = generate.takes(base.model, base.physics, asked, GREEDY, [0, 0, 0], [12, 12, 12])
    for prompt, batched in zip(asked, together):
        alone = generate.takes(base.model, base.physics, [prompt], GREEDY, [0], [12])[0]
        wanted = stock_codes(stock, base, prompt, 12)
        assert len(wanted) == 12 and len(wanted.unique()) > 3
        assert alone.codes.tolist() == wanted.tolist()
        assert batched.codes.tolist() == wanted.tolist()


def test_stops_at_the_end_frame_and_leaves_it_out(base):
    """Mistake: the end frame is decoded into a click, or a stop is reported as running to the limit."""
    base.model.lm_head.weight.data.zero_()  # all logits equal: greedy takes code 0 everywhere, which is the end frame
    base.model.depth_decoder.codebooks_head.weight.data.zero_()
    take, = generate.takes(base.model, base.physics, prompts(base, "Hi."), GREEDY, [0], [9])
    assert take.stopped and take.codes.shape == (0, 4)


def test_the_last_codebook_does_not_decide_the_end(base):
    """Mistake: a stop by 31 codebooks and a cut by 32 disagree, and everything after the end is decoded."""
    frame = torch.tensor([[0, 0, 0, 7], [0, 0, 7, 0], [7, 0, 0, 0]])
    assert generate.is_end(frame).tolist() == [True, False, False]


def test_a_limit_ends_a_take_that_does_not_stop(base, stock):
    """Mistake: one runaway sentence in a batch runs on for ever or is cut at its neighbour's limit."""
    spread_logits(base)
    short, long = generate.takes(base.model, base.physics, prompts(base, "One.", "Two."), GREEDY, [0, 0], [3, 7])
    assert (len(short.codes), len(long.codes)) == (3, 7)
    assert not short.stopped and not long.stopped


def test_words_that_are_no_codes_are_never_chosen(base):
    """Mistake: ids 2048 to 2050 are sampled and crash the codec with an index error."""
    logits = torch.zeros(2, base.physics.codebook_size + 3)
    logits[:, base.physics.codebook_size:] = 100.0
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    for temperature in (0.0, 1.0):
        chosen = generate.choose(logits, base.physics, temperature, 50, generators)
        assert chosen.max() < base.physics.codebook_size


def test_a_seed_says_the_same_alone_and_in_company(base):
    """Mistake: seeds are shared by the batch, so a clip of the comparison cannot be made again by itself."""
    spread_logits(base)
    asked, sampling = prompts(base, "One.", "Two, but longer.", "Three?"), Sampling(0.9, 0.9, 8)
    together = generate.takes(base.model, base.physics, asked, sampling, [11, 12, 13], [6, 6, 6])
    alone = generate.takes(base.model, base.physics, asked[1:2], sampling, [12], [6])[0]
    again = generate.takes(base.model, base.physics, asked[1:2], sampling, [99], [6])[0]
    assert alone.codes.tolist() == together[1].codes.tolist()
    assert alone.codes.tolist() != again.codes.tolist()


def test_sampling_follows_the_softmax_of_the_top_candidates(base):
    """Mistake: temperature or top-k applied wrongly; seen by counting 4000 draws."""
    logits = torch.tensor([2.0, 1.0, 0.0, -9.0] + [-50.0] * (base.physics.codebook_size - 4))
    generators = [torch.Generator().manual_seed(seed) for seed in range(4000)]
    drawn = generate.choose(logits.repeat(4000, 1), base.physics, 2.0, 2, generators)
    wanted = torch.tensor([1.0, 0.5]).softmax(0)
    assert set(drawn.tolist()) == {0, 1}
    assert (drawn == 0).float().mean().item() == pytest.approx(wanted[0].item(), abs=0.03)
