"""Classifier-free guidance against a loop written with transformers' own forward passes."""

from dataclasses import replace

import pytest
import torch
from conftest import make_clip, spread_logits

from tts_kit import cli
from tts_kit.comparison import arms
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.generation.engine import InferenceEngine
from tts_kit.generation.sampling import Sampling, guided_prompt
from tts_kit.model import lora
from tts_kit.tokens.prompt import Turn
from tts_kit.training import callbacks

GREEDY = Sampling(temperature=0, depth_temperature=0)
GUIDED = replace(GREEDY, guidance=2.5, reference_guidance=1.5, depth_guidance=0.5)


def prompts(base, sampling, *texts):
    context = Turn("A reference.", "0", make_clip("ref", 6).codes, in_loss=False)
    return [guided_prompt(base.prompt_builder, text, [context], Turn(text, "0"), sampling) for text in texts]


def generate(base, batch, sampling, seeds=None, max_frames=8):
    return [generation.codes.tolist() for generation in InferenceEngine(base.model, base.spec).generate(
        batch, sampling, seeds or [0] * len(batch), [max_frames] * len(batch))]


@torch.no_grad()
def guided_codes(stock, base, prompt, sampling, frames):
    """Return greedy codes (frames, codebooks) from whole forward passes: conditional, without text, without context."""
    rows = [torch.where(row.audio_mask[:, None], stock.backbone_model.embed_tokens(row.codes[None])[0],
                        stock.embed_text_tokens(row.input_ids)) for row in (prompt, *prompt.unconditional)]
    scales, share, size = (sampling.guidance, sampling.reference_guidance), sampling.depth_guidance, base.spec.codebook_size

    def choose(logits, share):
        conditional, without_text, without_context = logits[:, :size]
        return int((conditional + share * ((scales[0] - 1) * (conditional - without_text)
                                           + (scales[1] - 1) * (conditional - without_context))).argmax())

    codes = []
    for _ in range(frames):
        states = torch.stack([stock.backbone_model(inputs_embeds=row[None]).last_hidden_state[0, -1] for row in rows])
        frame = [choose(stock.lm_head(states), 1.0)]
        while len(frame) < base.spec.num_codebooks:
            ids = torch.tensor([[0, *frame]]).repeat(len(rows), 1)
            logits = stock.depth_decoder(input_ids=ids, backbone_last_hidden_state=states).logits[:, -1]
            frame.append(choose(logits, share))
        codes.append(frame)
        embedded = stock.backbone_model.embed_tokens(torch.tensor([[frame]]))[0]
        rows = [torch.cat([row, embedded]) for row in rows]
    return codes


@pytest.mark.parametrize("changes", [{}, {"depth_guidance": 0.0}, {"depth_guidance": 1.0}])
def test_guided_codes_equal_forward_passes_of_transformers(base, stock, changes):
    """Mistake: a row is guided by its neighbour's, a scale has the wrong sign or goes to the wrong codebooks, or a row of
    unconditional prompts gets other codes than the conditional one."""
    spread_logits(base, stock)
    sampling = replace(GUIDED, **changes)
    batch = prompts(base, sampling, "Hello.", "A much longer line of text than the other.")
    expected = [guided_codes(stock, base, prompt, sampling, 8) for prompt in batch]
    assert generate(base, batch, sampling) == expected
    assert expected != generate(base, prompts(base, GREEDY, "Hello.", "A much longer line of text than the other."), GREEDY)
    assert expected[:1] == generate(base, batch[:1], sampling)


def test_a_scale_of_one_adds_no_rows(spread_base):
    """Mistake: guidance that is off costs time, or changes codes."""
    off = replace(GREEDY, guidance=1.0, reference_guidance=1.0, depth_guidance=1.0)
    plain = prompts(spread_base, off, "Hello.")
    assert plain[0].unconditional == () and off.guidance_scales == off.depth_guidance_scales == ()
    assert generate(spread_base, plain, off) == generate(spread_base, plain, GREEDY)


def test_only_the_kind_in_use_adds_rows(spread_base):
    """Mistake: the prompt without text still contains it, or the one without context still has the reference."""
    builder = spread_base.prompt_builder
    text, = prompts(spread_base, replace(GREEDY, guidance=2.0), "Hello.")
    context, = prompts(spread_base, replace(GREEDY, reference_guidance=2.0), "Hello.")
    without_text, without_context = *text.unconditional, *context.unconditional
    assert without_text.input_ids.tolist() == [*text.input_ids[:-len(builder.text_ids("Hello.", "0"))].tolist(),
                                               *builder.text_ids("", "0")]
    assert without_context.input_ids.tolist() == builder.text_ids("Hello.", "0")
    assert without_text.audio_mask.any() and not without_context.audio_mask.any()


def test_a_seed_gives_the_same_alone_and_in_a_guided_batch(spread_base):
    """Mistake: rows of unconditional prompts draw random numbers, so a batch changes what a seed gives."""
    sampling = replace(GUIDED, temperature=0.9, depth_temperature=0.9, top_k=8)
    batch = prompts(spread_base, sampling, "One.", "Two, but longer.", "Three?")
    batched = generate(spread_base, batch, sampling, [11, 12, 13])
    alone, other_seed = (generate(spread_base, batch[1:2], sampling, [seed]) for seed in (12, 5))
    assert alone == batched[1:2] != other_seed


def test_prompts_without_unconditional_ones_are_refused(spread_base):
    """Mistake: a scale is set, the prompts were built without it, and guidance silently does nothing."""
    with pytest.raises(AssertionError, match="0 unconditional prompts for 1 guidance scales"):
        generate(spread_base, prompts(spread_base, GREEDY, "Hi."), replace(GREEDY, guidance=2.0))


def test_checkpoints_are_evaluated_with_the_configs_guidance(spread_base):
    """Mistake: a training keeps the checkpoint that is best without guidance, and the voice speaks with it."""
    def samples(**settings):
        config = Config(temperature=0.0, depth_temperature=0.0, **settings)
        return [wave.tobytes() for wave, _ in callbacks.generate_samples(spread_base, config, "0", ["Hello."])]

    lora.add_lora(spread_base.model, 4, 8)
    assert samples(guidance=3.0) != samples() == samples(guidance=1.0)


@pytest.mark.parametrize(("arguments", "message"), [
    (("--guidance", "-0.1"), "guidance is -0.1; it must be at least 0"),
    (("--guidance", "5.1"), "guidance is 5.1; it must be at most 5"), (("--guidance", "nan"), "guidance is nan"),
    (("--reference-guidance", "9"), "reference_guidance is 9.0; it must be at most 5"),
    (("--depth-guidance", "1.5"), "depth_guidance is 1.5; it must be at most 1")])
def test_guidance_out_of_range_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys, arguments, message):
    """Mistake: a scale that only makes noise is taken, or refused after a minute of loading."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(["speak", "Hi.", "--run", "none", *arguments]) == 1
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("setting", ["guidance=-0.1", "guidance=5.1", "depth_guidance=2", "reference_guidance=2"])
def test_an_arms_guidance_out_of_range_is_refused(setting):
    """Mistake: an arm with a scale that is ignored, or one by a reference that the arm does not have."""
    with pytest.raises(KitError, match=setting.partition("=")[0]):
        arms.parse(f"finetuned:{setting}")
