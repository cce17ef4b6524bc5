"""Lessons of the notebooks: what they show equals what codec, scoring and verdict compute."""

import json
import re

import numpy as np
import pytest
import torch
from conftest import make_clip
from scored_rows import rows_of

from tts_kit import TINY_CSM, audio, io, lessons
from tts_kit.comparison import verdict
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.errors import KitError
from tts_kit.evaluation import scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.model import lora
from tts_kit.run import SAMPLE_DATA
from tts_kit.tokens import codec as codecs
from tts_kit.tokens.prompt import PromptBuilder
from tts_kit.training import dataset

TOY_METRICS = MetricModels({"wer": "a toy", "sim": "a toy"}, lambda wave: f"hello {np.abs(wave).max() > 0.5}",
                           lambda wave: np.abs(np.fft.rfft(wave[:16_000], 16_000)[:64]) + 1e-3, None)


@pytest.fixture(scope="module")
def codec():
    """The bundled codec, whose codebooks are trained."""
    return codecs.load(str(TINY_CSM))


@pytest.fixture(scope="module")
def wave(codec):
    return audio.read(next(iter(sorted((SAMPLE_DATA / "held_out").glob("*.flac")))), codec.spec.sample_rate)[:32_000]


def test_energy_left_falls_to_what_decoding_all_codebooks_leaves(codec, wave):
    """Mistake: residuals of other codes than the codec's, a quantizer that continues the other one, or a curve that falls
    although the vectors are added up wrongly."""
    latents, quantizer = [], codec.model.quantizer
    encode = quantizer.encode
    quantizer.encode = lambda embeddings, *args: latents.append(embeddings) or encode(embeddings, *args)
    try:
        first, others = lessons.residual_energy(codec, [wave, wave[:16_000]])
    finally:
        del quantizer.encode
    assert len(first) == 2 and len(others) == codec.spec.num_codebooks
    for shares in (first, others):
        assert shares[0] == 1 and (np.diff(shares) < 0).all()
    codes = codec.encode([wave, wave[:16_000]])
    with torch.inference_mode():
        for shares, part, rows in ((first, quantizer.semantic_residual_vector_quantizer, slice(0, 1)),
                                   (others, quantizer.acoustic_residual_vector_quantizer, slice(1, None))):
            left = total = 0.0
            for latent, clip in zip(latents, codes):
                inputs, projection = part.input_proj(latent), part.output_proj
                part.output_proj = None  # transformers' own sum of the vectors
                quantized = part.decode(clip.T[rows][None].long())
                part.output_proj = projection
                left, total = left + float((inputs - quantized).square().sum()), total + float(inputs.square().sum())
            assert shares[-1] == pytest.approx(left / total, rel=1e-3)


def test_swapped_codebooks():
    """Mistake: the players of the swap are exchanged, or a codebook comes from the wrong clip."""
    one, other = make_clip("one", 9).codes, make_clip("other", 7).codes
    swapped = lessons.swap(one, other)
    assert torch.equal(swapped[:, 0], one[:7, 0]) and torch.equal(swapped[:, 1:], other[:, 1:])


def test_the_slider_holds_every_waveform_and_escapes():
    """Mistake: a label ends the attribute, audio comes from another address, or a level is missing."""
    waves = [np.full(4_000, level / 10, np.float32) for level in range(1, 5)]
    page = lessons.slider(waves, 16_000, [f'{number} "><script>alert(1)</script>' for number in range(4)]).data
    sources = re.findall(r'data-src="(data:audio/mpeg;base64,[^"]+)"', page)
    assert len(set(sources)) == 4 and f'<audio controls src="{sources[-1]}"' in page
    assert "<script" not in page and "http" not in page
    assert 'max="4"' in page and 'value="4"' in page


def test_the_slider_switches_at_the_same_position(chromium, tmp_path):
    """Mistake: the slider does nothing, begins again at 0, or cannot be used by keyboard."""
    waves = [np.sin(np.arange(48_000) * level / 20).astype(np.float32) / 2 for level in (1, 2, 3)]
    path = tmp_path / "slider.html"
    path.write_text(f"<!doctype html><meta charset=utf-8><body>{lessons.slider(waves, 16_000, ['a', 'b', 'c']).data}")
    chromium.open(path.as_uri())
    chromium.wait("document.querySelector('audio').readyState > 0")
    chromium.run("document.querySelector('audio').currentTime = 1.5; document.querySelector('input').focus()")
    chromium.press("ArrowLeft")
    chromium.wait("document.querySelector('audio').readyState > 0")
    state = chromium.run("[document.querySelector('output').textContent, document.querySelector('audio').currentTime, "
                         "document.querySelector('audio').src === document.querySelectorAll('option')[1].dataset.src]")
    assert state == ["b", 1.5, True]
    assert chromium.console_errors() == []


def test_words_and_voice_of_the_codebooks_are_those_of_the_decoded_clips(base, tmp_path, monkeypatch):
    """Mistake: a row of the table was decoded from other codebooks than it says, or compared with its own recording."""
    codec, texts = base.codec, ("hello true", "hello false", "hello there")
    noise = np.random.default_rng(0)
    recordings = {}
    for text in texts:
        recordings[text] = tmp_path / f"{text}.wav"
        audio.write(recordings[text], noise.normal(0, 0.1, 24_000).astype(np.float32), SAMPLE_RATE)
    clips = [make_clip(text, 10 + index, text, books=codec.spec.num_codebooks) for index, text in enumerate(texts[:2])]
    decoded = []
    monkeypatch.setattr(codec, "decode", lambda codes, number=None: decoded.append((codes, number)) or [
        noise.normal(0, 0.05 * (number or 9), 24_000).astype(np.float32).clip(-1, 1) for _ in codes])
    saved = []
    monkeypatch.setattr(audio, "write", lambda path, samples, rate, write=audio.write: (
        saved.append((path.name, samples)), write(path, samples, rate))[1])
    arms = lessons.measure_codebooks(codec, clips, recordings, TOY_METRICS)
    monkeypatch.undo()
    count = codec.spec.num_codebooks
    assert [number for _, number in decoded] == [1, 2, count, None] * 2
    assert torch.equal(decoded[3][0][0][:, 1:], clips[0].codes[:, 1:].to(decoded[3][0][0].dtype))
    assert torch.equal(decoded[3][0][1][:, 0], clips[0].codes[:, 0].to(decoded[3][0][1].dtype))
    names = [lessons.RECORDING, *(f"the first {number} of {count} codebooks" for number in (1, 2, count)),
             lessons.SWAPPED_FIRST, lessons.SWAPPED_OTHERS]
    assert list(arms) == names and len(saved) == 2 * len(names)
    references = scoring.measure_references(recordings, TOY_METRICS)
    for path, samples in saved:
        audio.write(tmp_path / path, samples, codec.spec.sample_rate)
    for position, name in enumerate(names):
        rows = scoring.score_rows([{"text": clip.text, "sentence": index, "file": saved[index * len(names) + position][0]}
                                   for index, clip in enumerate(clips)], tmp_path, TOY_METRICS, references, lambda _: None)
        assert arms[name]["wer"].value == sum(row["word_errors"] for row in rows) / 4
        assert arms[name]["sim"].value == pytest.approx(np.mean([row["sim"] for row in rows]))
    table = lessons.codebook_table(arms)
    assert [line.split("  ")[0] for line in table.splitlines()] == ["decoded from", *names]
    assert f"{arms[names[1]]['wer'].value:.1%}" in table.splitlines()[2]


def test_the_sequence_shows_text_frames_and_labels(base, monkeypatch):
    """Mistake: a dollar sign is read as a formula, or labels appear at the text."""
    figures = []
    monkeypatch.setattr(lessons, "_image", lambda figure, description: figures.append(figure))
    builder = PromptBuilder(base.prompt_builder.tokenizer, base.spec, spoken_text=False)
    example = dataset.build_example(make_clip("a", 6, "It costs $5 or $6."), builder)
    lessons.plot_sequence(example, builder.tokenizer)
    figure, = figures
    figure.canvas.draw()
    inputs, labels = (axis.images[0].get_array() for axis in figure.axes)
    text = len(example) - 7
    assert labels.mask[:, :text].all() and not labels.mask[:, text:].any()
    assert inputs.mask[:, :text].all() and (inputs[:, -1] == 0).all()
    ticks = [label.get_text() for label in figure.axes[0].get_xticklabels()]
    assert "$" in "".join(ticks[:text]) and ticks[text:] == ["frame 0", "EOS"]


def test_the_losses_are_plotted_as_logged(tmp_path, monkeypatch):
    """Mistake: the logarithm of a loss instead of its perplexity, or a step twice."""
    figures = []
    monkeypatch.setattr(lessons, "_image", lambda figure, description: figures.append(figure))
    rows = [{"step": step, "eval_loss": 3.0, "eval_backbone_loss": 2.0 - step / 10, "eval_depth_loss": 4.0,
             "eval_loss_by_codebook": [2.0 - step / 10, 4.0, 4.0]} for step in (0, 5, 10)]
    io.write_rows(tmp_path / "log.jsonl", [*rows[:1], {"step": 1, "loss": 9.0}, *rows[1:]])
    lessons.plot_perplexity(tmp_path / "log.jsonl", 512)
    course, codebooks = figures[0].axes
    assert course.lines[0].get_ydata() == pytest.approx(np.exp([2.0, 1.5, 1.0]))
    assert [list(line.get_ydata()) for line in codebooks.lines] == [[2, 4, 4], [1, 4, 4]]
    io.write_rows(tmp_path / "log.jsonl", [{"step": 1, "loss": 9.0}])
    with pytest.raises(KitError, match="no held-out loss yet"):
        lessons.plot_perplexity(tmp_path / "log.jsonl", 512)


def test_the_lora_table_counts_the_model_at_hand(base):
    """Mistake: a share of the wrong total, or the figures of CSM-1B for every model."""
    parts = lora.count_parameters(lora.add_lora(base.model, 4, 8, "both"))
    _, *lines = lessons.lora_table(parts).splitlines()
    assert [line.split()[:2] for line in lines] == [["backbone", "14"], ["depth", "14"], ["codec", "0"], ["together", "28"]]
    added, parameters = (sum(part[name] for part in parts.values()) for name in ("trainable", "parameters"))
    assert lines[-1].split()[2:] == [f"{parameters:,}", f"{added:,}", f"{added / parameters:.2%}"]


def test_the_difference_table_shows_the_deciding_intervals():
    """Mistake: other intervals than those that decide, or a traceback where nothing was measured."""
    generator = np.random.default_rng(3)
    rows = [row for arm, gain in (("clone", 0.0), ("finetuned", 0.1)) for row in rows_of(
        arm, 0.6 + gain + generator.normal(0, 0.01, (12, 2)), generator.integers(0, 3, (12, 2)))]
    result = verdict.decide(rows)
    one, = result.comparisons
    _, sim, wer = lessons.difference_table(result).splitlines()
    low, high = one.intervals["sim"]
    assert f"{low:+.2f} to {high:+.2f}" in sim and one.voice in sim and one.words in wer
    assert f"{100 * one.differences['wer'].value:+.0f}" in wer
    unscored = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
    assert lessons.difference_table(verdict.decide(unscored)) == verdict.UNMEASURED
    assert json.dumps(lessons.difference_table(verdict.decide(rows[:2])))
