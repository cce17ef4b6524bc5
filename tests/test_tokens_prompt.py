"""The input sequence of CSM, against transformers' processor and against labels written by hand."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import make_clip
from transformers import AutoProcessor

from tts_kit import pretrained
from tts_kit.errors import KitError
from tts_kit.tokens.prompt import IGNORE_INDEX, PromptBuilder, Turn
from tts_kit.training import dataset


def test_ids_equal_the_processors(base, toy):
    """Mistake: another template than the base was trained on: a space after the speaker, no begin token, no EOS frame."""
    processor = AutoProcessor.from_pretrained(toy)
    wave = np.random.default_rng(0).normal(0, 0.1, 5000).astype(np.float32)
    chat = [{"role": "3", "content": [{"type": "text", "text": "Ça va?"}, {"type": "audio", "path": wave}]},
            {"role": "3", "content": [{"type": "text", "text": "Yes."}]}]
    expected = processor.apply_chat_template(chat, tokenize=True, return_dict=True)["input_ids"][0]
    codes = base.codec.encode([wave])[0]
    example = base.prompt_builder.build("clip", [Turn("Ça va?", "3", codes), Turn("Yes.", "3")])
    assert example.input_ids.tolist() == expected.tolist()


def rewritten(toy: str, folder: Path, **replacements: str) -> str:
    """A copy of a checkpoint whose tokenizer and chat template have other words."""
    shutil.copytree(toy, folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        text = (folder / name).read_text(encoding="utf-8")
        for old, new in replacements.items():
            text = text.replace(f"<|{old}|>", new)
        (folder / name).write_text(text, encoding="utf-8")
    return str(folder)


@pytest.mark.parametrize("begin, end, space", [
    ("<|im_start|>", "<|im_end|>", ""), ("<|im_start|>", "<|im_end|>", " "), ("<|begin_of_text|>", "<|end_of_text|>", " ")])
def test_ids_of_relatives_are_those_of_their_processor(base, toy, tmp_path, begin, end, space):
    """Mistake: Marvis, whose turns are <|im_start|>[0]text<|im_end|>, gets Llama's tokens, which its tokenizer has not."""
    folder = rewritten(toy, tmp_path / "relative", begin_of_text=begin, end_of_text=end)
    template = Path(folder, "chat_template.jinja")
    template.write_text(template.read_text().replace("[{{ turn.role }}]", "[{{ turn.role }}]" + space))
    turns = [{"role": "3", "content": [{"type": "text", "text": text}]} for text in ("Ça va?", " Yes.")]
    expected = AutoProcessor.from_pretrained(folder).apply_chat_template(turns, tokenize=True, return_dict=True)
    builder = PromptBuilder(pretrained.tokenizer(folder), base.spec, spoken_text=False)
    example = builder.build("clip", [Turn("Ça va?", "3"), Turn(" Yes.", "3")])
    assert example.input_ids.tolist() == expected["input_ids"][0].tolist()
    assert builder.tokenizer.convert_tokens_to_ids([begin, end]) == [example.input_ids[0], example.input_ids[-1]]


@pytest.mark.parametrize("template", ["", *("{% for turn in messages %}{{ " + turn + " }}{% endfor %}" for turn in (
    "'<|im_start|>' + turn.role + turn.content", "raise_exception('no')"))])
def test_without_a_template_of_csm_the_tokenizer_tells_begin_and_end(base, toy, tmp_path, template):
    """Mistake: a tokenizer with no chat template, or with that of a chat model, ends in a traceback or in wrong tokens."""
    folder = rewritten(toy, tmp_path / "relative", begin_of_text="<|im_start|>", end_of_text="<|im_end|>")
    Path(folder, "chat_template.jinja").write_text(template)
    tokenizer = pretrained.tokenizer(folder)
    ids = PromptBuilder(tokenizer, base.spec, prefix_space=True).text_ids("Hi.", "0")
    assert tokenizer.decode(ids) == "<|im_start|>[0] Hi.<|im_end|>"
    llama = pretrained.tokenizer(toy)
    llama.chat_template, llama.eos_token = None, "<|AUDIO|>"  # as that of an instruct model, whose eos ends a turn
    assert llama.decode(PromptBuilder(llama, base.spec).text_ids("Hi.", "0")) == "<|begin_of_text|>[0]Hi.<|end_of_text|>"
    tokenizer.chat_template = tokenizer.eos_token = None
    with pytest.raises(KitError, match="neither a chat template.*nor begin and end tokens"):
        PromptBuilder(tokenizer, base.spec)


def test_special_tokens_in_a_text_are_plain_text(base):
    """Mistake: a transcript that contains <|AUDIO|> adds an audio frame to the sequence."""
    builder = PromptBuilder(base.prompt_builder.tokenizer, base.spec, spoken_text=False)
    example = builder.build("clip", [Turn("say <|AUDIO|> and <|audio_eos|>", "0")])
    assert base.spec.audio_token_id not in example.input_ids
    assert base.spec.audio_eos_token_id not in example.input_ids
    assert base.prompt_builder.tokenizer.decode(example.input_ids[1:-1]) == "[0]say <|AUDIO|> and <|audio_eos|>"


def test_labels_of_two_clips_equal_labels_by_hand(base):
    """Mistake: labels shifted by one, a missing EOS frame, or a loss on text, padding or a neighbouring clip."""
    first = make_clip("a", frames=2, text="A.")
    second = make_clip("b", frames=1, text="B.")
    first_example, second_example = (dataset.build_example(clip, base.prompt_builder) for clip in (first, second))
    (a0, a1), (b0,) = first.codes.tolist(), second.codes.tolist()
    ignored, end = [IGNORE_INDEX] * 4, [0] * 4
    # <bos> [ 0 ] A . <eos> frame frame end
    assert first_example.labels.tolist() == [ignored] * 7 + [a0, a1, end]
    assert second_example.labels.tolist() == [ignored] * 7 + [b0, end]
    all_frames = [torch.ones(3, dtype=torch.bool), torch.ones(2, dtype=torch.bool)]
    packed = dataset.collate([first_example, second_example], all_frames, packing=True)
    padded = dataset.collate([first_example, second_example], all_frames, packing=False)
    for batch, width in ((packed, 10), (padded, 10)):
        assert batch["targets"].tolist() == [a0, a1, end, b0, end]
        # the end of the text predicts the first frame, the last frame predicts the end
        assert batch["predictor_index"].tolist() == [6, 7, 8, width + 6, width + 7]
        assert batch["depth_frame_index"].tolist() == [0, 1, 2, 3, 4]
    assert packed["position_ids"].tolist() == [[*range(10), *range(9)]]
    assert padded["input_ids"].shape == (2, 10)


def test_context_is_an_input_without_loss(base):
    """Mistake: the loss also trains on the reference clip."""
    context_clip, target_clip = make_clip("a", 3), make_clip("b", 2)
    context, example = (dataset.build_example(clip, base.prompt_builder) for clip in (context_clip, target_clip))
    joined = dataset.join(dataset.without_labels(context), example)
    batch = dataset.collate([joined], [torch.ones(3, dtype=torch.bool)], packing=True)
    assert batch["targets"].tolist() == [*target_clip.codes.tolist(), [0] * 4]
    assert batch["codes"][0, batch["audio_mask"][0]].tolist()[:3] == context_clip.codes.tolist()


def test_a_sequence_longer_than_the_model_is_refused(base):
    """Mistake: a clip beyond the model's positions is cut, or trained with unused positions."""
    with pytest.raises(KitError, match=r"long clip: 5\d\d positions.*holds 512.*shorter"):
        base.prompt_builder.build("long clip", [Turn("Hi.", "0", make_clip("a", 520).codes)])
