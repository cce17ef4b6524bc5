"""Generation evaluation: which step is selected and why, early stopping, and that evaluating leaves no trace."""

import csv
import dataclasses
import json
import re
import shutil
import zlib

import numpy as np
import pytest
import torch
from conftest import make_clip, spread_logits
from safetensors.torch import load_file, save
from test_training_finetune import CPU, adapter, same, with_codes
from transformers import TrainerCallback

from sample_data.build import sentences
from tts_kit import audio
from tts_kit.config import Config
from tts_kit.data import quality_flags
from tts_kit.errors import KitError
from tts_kit.evaluation import metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import read_rows, write_bytes, write_rows
from tts_kit.model import load, lora
from tts_kit.run import SAMPLE_HELD_OUT, SAMPLE_VOICE, TINY_CSM, Run
from tts_kit.tokens import cache
from tts_kit.training import callbacks, finetune, generation_eval

pytest.importorskip("scipy", reason="confidence intervals need scipy, which the extra `eval` installs")
installed = pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
SENTENCES = 12
SHORT = ("Go", "Sit", "Run", "Up", "Dig")


def step_rows(step, sim, word_errors=1, spread=0.03, failure=""):
    """Return rows of one step: ten words per sentence, `word_errors` of them (or a list) wrong; SIM with noise of its
    own."""
    noise = np.random.default_rng(step).normal(0, spread, SENTENCES)
    errors = word_errors if isinstance(word_errors, list) else [word_errors] * SENTENCES
    return [{"step": step, "sentence": number + 1, "text": f"Sentence {number + 1}.", "ref_words": 10, "failure": failure,
             "word_errors": errors[number], "sim": sim + noise[number] - noise.mean(), "transcript": "",
             "file": f"generation_eval/step-{step:06d}/{number + 1:02d}.flac", "ended_with_eos": True}
            for number in range(SENTENCES)]


def select(*steps, of=60):
    return generation_eval.select([row for rows in steps for row in rows], of)


def test_the_earliest_of_equal_steps_is_selected():
    """Mistake: the last step, or the best one by chance, is selected although an earlier one is as good."""
    selected = select(step_rows(0, 0.5), step_rows(20, 0.700), step_rows(40, 0.705), step_rows(60, 0.703))
    assert selected.step == 20
    assert selected.reason.startswith("Step 20 of 60 selected: SIM 0.70, WER 10% (as good within one standard error as step "
                                      "40, SIM 0.70, WER 10%, the best trade of voice and words, where 0.02 SIM weigh as "
                                      "much as 3 points of WER); base model: ")


def test_a_later_step_with_a_significantly_higher_sim_is_selected():
    """Mistake: everything counts as equal, and the least trained step is always selected."""
    selected = select(step_rows(0, 0.5), step_rows(20, 0.60), step_rows(40, 0.70), step_rows(60, 0.703))
    assert selected.step == 40
    assert selected.reason.endswith("; base model: SIM 0.50, WER 10%.")
    best = select(step_rows(0, 0.5), step_rows(20, 0.55), step_rows(40, 0.70))
    assert best.reason.startswith("Step 40 of 60 selected: SIM 0.70, WER 10% (the best trade of voice and words, ")


def test_an_earlier_step_with_a_higher_wer_is_not_selected():
    """Mistake: the earliest step with the same SIM is selected, although half of its words are wrong."""
    assert select(step_rows(20, 0.70, 5), step_rows(40, 0.70, 1)).step == 40
    small = [[row | {"ref_words": 100} for row in step_rows(step, 0.70, errors)] for step, errors in ((20, 3), (40, 1))]
    assert select(*small).step == 40  # below the tolerance that rules a step out, but above the standard error


def test_a_higher_sim_with_a_high_wer_is_not_selected():
    """Mistake: SIM alone decides, and a memorized voice is not intelligible."""
    selected = select(step_rows(0, 0.5), step_rows(20, 0.60), step_rows(40, 0.70), step_rows(60, 0.85, 6))
    assert selected.step == 40


def test_words_and_voice_are_traded():
    """Mistake: a little more voice is bought with many words, or many words are nothing: SIM decides alone, 0.94 with a
    third of the words wrong before 0.91 with fewer than a quarter."""
    rows = [[row | {"ref_words": 100} for row in step_rows(step, sim, errors)] for step, sim, errors in (
        (20, 0.91, 23), (60, 0.94, 33))]
    assert select(*rows).step == 20
    much_nearer = [row | {"sim": row["sim"] + 0.06} for row in rows[1]]
    assert select(rows[0], much_nearer).step == 60


def test_a_little_higher_wer_rules_no_step_out():
    """Mistake: the step with the lowest WER wins over one with a far higher SIM."""
    assert select(step_rows(20, 0.60, 1), step_rows(40, 0.75, [0, 3] * 6)).step == 40


def test_the_base_model_is_the_reference_and_never_selected():
    """Mistake: an adapter that changes nothing is saved as trained, or a useless training is reported as a success."""
    selected = select(step_rows(0, 0.71), step_rows(20, 0.70), step_rows(40, 0.70))
    assert selected.step == 20
    assert selected.reason.endswith("; base model: SIM 0.71, WER 10%, SIM not significantly lower.")
    worse = select(step_rows(0, 0.5, 0), step_rows(20, 0.70, 4))
    assert worse.reason.endswith("; base model: SIM 0.50, WER 0%, WER significantly lower.")


@pytest.mark.parametrize(("steps", "expected"), [
    ([step_rows(0, 0.5), step_rows(60, 0.4, 9)], (60, "as|best")),
    ([step_rows(0, 0.5)], (60, "no step could be evaluated")), ([], (60, "no step could be evaluated")),
    ([step_rows(0, 0.5), step_rows(20, 0, 10, 0, "silent"), step_rows(40, 0, 10, 0, "silent")],
     (40, "no step could be evaluated")),
    ([step_rows(20, 0, 10, 0, "silent"), step_rows(40, 0.3, 2)], (40, "as|best"))],
    ids=["one step", "base alone", "nothing", "all silent", "one silent"])
def test_little_or_nothing_to_select_from(steps, expected):
    """Mistake: a traceback after hours of training, or the first of many silent steps as the best."""
    selected = select(*steps)
    step, reason = expected
    assert selected.step == step and re.search(reason, selected.reason)


def test_patience_counts_evaluations_since_the_best():
    """Mistake: the training ends while it still improves, never ends, or counts the base model."""
    rows = [*step_rows(0, 0.9), *step_rows(10, 0.5), *step_rows(20, 0.7), *step_rows(30, 0.69), *step_rows(40, 0.69)]
    until = {step: [row for row in rows if row["step"] <= step] for step in (0, 10, 20, 30, 40)}
    for patience, expected in ((2, [False, False, False, False, True]), (1, [False, False, False, True, True])):
        assert [generation_eval.should_stop_early(until[step], patience) for step in until] == expected
    assert not generation_eval.should_stop_early(rows, 0)
    equal = [*step_rows(10, 0.5, spread=0), *step_rows(20, 0.5, spread=0)]
    assert generation_eval.should_stop_early(equal, 1), "an equal step is not better"


def test_the_sentences_are_in_no_comparison_and_in_no_data():
    """Mistake: steps are selected by the sentences that the result is evaluated with, or that were memorized."""
    lines = generation_eval.read_sentences([])
    assert 12 <= len(lines) <= 20 and len(set(lines)) == len(lines)
    assert not any(character.isdigit() for line in lines for character in line)
    bundled = [row["text"] for folder in (SAMPLE_VOICE, SAMPLE_HELD_OUT)
               for row in csv.DictReader((folder / "metadata.csv").open(encoding="utf-8"))]
    used = {quality_flags.words(text)
            for text in (*sentences.evaluation_set().sentences, *sentences.evaluation_set().bundled, *bundled)}
    assert not used & {quality_flags.words(line) for line in lines}
    clips = [make_clip("one", 5, lines[0].upper().rstrip(".") + "!", "held_out"), make_clip("two", 5, f'"{lines[3]}"')]
    assert generation_eval.read_sentences(clips) == [line for line in lines if line not in (lines[0], lines[3])]


def embed(wave):
    """Return a unit vector that depends on the samples alone."""
    spectrum = np.abs(np.fft.rfft(wave, 512))[:64] + 1e-6
    return spectrum / np.linalg.norm(spectrum)


def transcribe(wave):
    return " ".join(["the", "small", "dog", "near", "door"][zlib.crc32(wave.tobytes()) % 5:])


def patch_metrics(patch, folder) -> list:
    """Replace the metric models and sentences by fast ones; return the calls that generate samples."""
    (folder / "sentences.txt").write_text("".join(f"{word} on.\n" for word in SHORT))
    patch.setattr(generation_eval, "SENTENCES", folder / "sentences.txt")
    metric_models = MetricModels({"wer": "a test", "sim": "a test"}, transcribe, embed, None)
    patch.setattr(metrics, "load_available", lambda: metric_models.name)
    patch.setattr(metrics, "load", lambda: metric_models)
    calls, generate_samples = [], callbacks.generate_samples
    patch.setattr(callbacks, "generate_samples", lambda *args: calls.append(args) or generate_samples(*args))
    return calls


@pytest.fixture
def generated(monkeypatch, tmp_path):
    return patch_metrics(monkeypatch, tmp_path)


@pytest.fixture(scope="module")
def spread_config(spread_toy):
    return Config(base=spread_toy, rank=4, alpha=8, steps=6, warmup_steps=0, tokens_per_batch=150, depth_frame_fraction=1.0,
                  learning_rate=0.01, eval_steps=6, save_steps=3, sample_steps=0, generation_eval_steps=2)


@pytest.fixture(scope="module")
def evaluated(spread_config, tmp_path_factory):
    """A finished training with generation evaluation."""
    run = twelve_clips("evaluated", tmp_path_factory.mktemp("evaluated"))
    with pytest.MonkeyPatch.context() as patch:
        patch_metrics(patch, run.folder.parent)
        finetune.finetune(spread_config, run, CPU)
    return run


def twelve_clips(name, root) -> Run:
    """Twelve clips of different lengths, two of them held out."""
    clips = [make_clip(f"clip{number}", 5 + number, f"Text {number}.", "held_out" if number < 2 else "train")
             for number in range(12)]
    return with_codes(Run(name, root), clips)


class Interrupt(TrainerCallback):
    """Interrupts the training at one step, as a disconnect does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def losses(run):
    return [(row["step"], row["loss"]) for row in read_rows(run.training / callbacks.LOG_FILE) if "loss" in row]


def training_metrics(run):
    return json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]


@installed
def test_evaluation_keeps_every_step_and_does_not_change_the_training(evaluated, spread_config, tmp_path):
    """Mistake: evaluation draws from the training's random numbers, or the adapter saved as selected is the last one."""
    plain, run = twelve_clips("plain", tmp_path), evaluated
    finetune.finetune(spread_config.replace(generation_eval_steps=0), plain, CPU)
    assert losses(run) == losses(plain) and not (plain.training / generation_eval.FOLDER).exists()
    rows = read_rows(run.training / generation_eval.ROWS)
    assert [(row["step"], row["sentence"]) for row in rows] == [(step, number + 1) for step in (0, 2, 4, 6)
                                                                for number in range(len(SHORT))]
    assert all((run.training / row["file"]).is_file() for row in rows)
    selected = generation_eval.select(rows, 6)
    recorded = training_metrics(run)
    assert (recorded["selected_step"], recorded["selection_reason"]) == (selected.step, selected.reason)
    folder = run.training / generation_eval.FOLDER / f"step-{selected.step:06d}"
    same(adapter(run.adapter), adapter(folder))
    same(adapter(plain.adapter), adapter(folder.with_name("step-000006")))
    after, = [row for row in read_rows(run.training / callbacks.LOG_FILE)
              if row["step"] == selected.step and "eval_loss" in row]
    assert recorded["after"]["eval_loss"] == after["eval_loss"]
    assert (run.training / generation_eval.PLOT).read_bytes().startswith(b"\x89PNG")
    # the adapters of two steps differ; otherwise the comparisons above would show nothing
    first, last = (adapter(folder.with_name(f"step-00000{step}")) for step in (2, 6))
    assert any((first[name] != last[name]).any() for name in first)


@pytest.mark.slow
@installed
def test_an_interrupted_training_evaluates_the_same_and_nothing_twice(evaluated, spread_config, tmp_path, generated):
    """Mistake: steps are generated again after a disconnect, lost, or listed twice, and another step is selected."""
    run = twelve_clips("one", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(spread_config, run, CPU, [Interrupt(5)])  # evaluated at 4, resumes from 3
    table = run.training / generation_eval.ROWS
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith('{"step": 2')))
    shutil.rmtree(run.training / generation_eval.FOLDER / "step-000004")  # as a kill while it was generated leaves it
    finetune.finetune(spread_config, run, CPU)
    assert len(generated) == 5  # 0, 2, 4, and 4 again, 6
    assert read_rows(table) == read_rows(evaluated.training / generation_eval.ROWS)
    same(adapter(run.adapter), adapter(evaluated.adapter))
    for path in evaluated.training.glob("generation_eval/*/*.flac"):
        assert (run.training / path.relative_to(evaluated.training)).read_bytes() == path.read_bytes()


@installed
def test_the_evaluation_of_another_config_is_removed(spread_config, tmp_path, generated):
    """Mistake: a run without a checkpoint takes another config, and its old steps are listed with the new ones."""
    run = twelve_clips("one", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(spread_config.replace(rank=8), run, CPU, [Interrupt(1)])
    stale = run.training / generation_eval.FOLDER / "step-000009"
    shutil.copytree(stale.with_name("step-000000"), stale)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(spread_config, run, CPU, [Interrupt(1)])
    assert len(generated) == 2 and not stale.exists()


@installed
def test_patience_stops_the_training_early(spread_config, tmp_path, generated, capsys, monkeypatch):
    """Mistake: the training goes on to its end, or the step at which it stopped is kept."""
    calls = 2 * len(SHORT)  # one for each speaker model
    similarities = iter([0.3] * calls + [8.0] * calls + [0.6] * 99)
    monkeypatch.setattr(scoring, "similarity", lambda *args: next(similarities))
    run = twelve_clips("one", tmp_path)
    finetune.finetune(spread_config.replace(steps=20, early_stopping_patience=2), run, CPU)
    assert "Early stopping at step 6 of 20: no better step in the last 2 generation evaluations." in capsys.readouterr().out
    assert training_metrics(run)["selected_step"] == 2 and losses(run)[-1][0] == 6
    same(adapter(run.adapter), adapter(run.training / generation_eval.FOLDER / "step-000002"))


@pytest.mark.parametrize("missing", ["metric models", "sentences"])
def test_without_metric_models_or_sentences_the_last_step_is_kept(config, tmp_path, monkeypatch, capsys, missing):
    """Mistake: the training fails because they are missing, or does not report it."""
    run = twelve_clips("one", tmp_path)
    (tmp_path / "sentences.txt").write_text("Text 1.\nAnother one.\n")
    if missing == "sentences":
        monkeypatch.setattr(generation_eval, "SENTENCES", tmp_path / "sentences.txt")
    monkeypatch.setattr(metrics, "load_available", lambda: "a test" if missing == "sentences" else "")
    finetune.finetune(config.replace(steps=2, generation_eval_steps=2), run, CPU)
    out = capsys.readouterr().out
    assert out.count("No generation evaluation") == 1 and "The last step will be kept." in out.replace("\n", " ")
    assert (metrics.INSTALL in out) is (missing == "metric models")
    recorded = training_metrics(run)
    assert (recorded["selected_step"], recorded["selection_reason"][:13]) == (2, "The last step") and recorded["epochs"] > 0


def test_a_clip_on_which_a_metric_fails_counts_as_silent(config, base, tmp_path):
    """Mistake: None among the scores ends hours of training in a traceback."""
    def broken(wave):
        raise ValueError("no idea")

    run, clips = twelve_clips("one", tmp_path), [make_clip("a", 9)]
    folder = run.training / generation_eval.FOLDER / "step-000002"
    audio.write(folder / "01.flac", np.sin(np.arange(24_000) / 9).astype(np.float32) / 3, 24_000)
    write_rows(folder / generation_eval.GENERATED, [
        {"step": 2, "sentence": 1, "text": "Four words are here.", "file": "generation_eval/step-000002/01.flac",
         "ended_with_eos": True}])
    for number, functions in enumerate(((broken, embed), (transcribe, broken))):
        metric_models = MetricModels({"wer": f"test {number}"}, *functions, None)
        evaluation = generation_eval.GenerationEvalCallback(base, config, run, clips, metric_models)
        tone = np.sin(np.arange(24_000) / 9)
        evaluation.references = {"Hello there.": metric_models.measure_reference(tone, 24_000, "Hello there.")}
        evaluation.score()
        row, = evaluation.rows()
        assert "no idea" in str(row["metric_failed"])
        scores = generation_eval.step_scores([row])[2]
        assert scores.wer == {1: (4, 4)} or scores.sim == {1: (0, 1)}
        assert "no step could be evaluated" in generation_eval.select([row], 2).reason


def test_saved_weights_are_loaded_and_others_refused(base, tmp_path):
    """Mistake: a selected step is not loaded into the model, only in part, or from another adapter."""
    model = lora.add_lora(base.model, 4, 8)
    spread_logits(base)
    for weight in model.parameters():
        weight.data.add_(0.01) if weight.requires_grad else None
    before, path = lora.fingerprint(model), tmp_path / "saved.safetensors"
    lora.save_weights(model, path)
    for weight in model.parameters():
        weight.data.mul_(3) if weight.requires_grad else None
    assert lora.fingerprint(model) != before
    lora.load_weights(model, path)
    assert lora.fingerprint(model) == before
    saved = load_file(path)
    first = next(iter(saved))
    for change, message in (({first: torch.zeros(2, 3)}, r"is \[2, 3\]; wanted \[\d+, \d+\]"),
                            ({"more": torch.zeros(1)}, "more is .*; wanted nothing of that name")):
        write_bytes(path, save(saved | change))
        with pytest.raises(KitError, match=f"weights of another adapter: .*{message}.*same base, rank and targets"):
            lora.load_weights(model, path)
    path.write_bytes(b"nothing")
    with pytest.raises(KitError, match="damaged.*train again"):
        lora.load_weights(model, path)
    assert lora.fingerprint(model) == before


@pytest.mark.slow
@installed
def test_the_bundled_model_is_intelligible_and_similar(tmp_path):
    """Mistake: samples of a real model are noise, are scored in another order, or take minutes."""
    base = load.load_base(str(TINY_CSM), CPU)
    run = Run("real", tmp_path)
    config = Config(base=str(TINY_CSM), generation_eval_steps=1)
    files = sorted(SAMPLE_VOICE.glob("*.flac"))[:6]
    codes = base.codec.encode([audio.read(file, base.spec.sample_rate) for file in files])
    clips = [dataclasses.replace(make_clip(file.stem, 5, f"Text of {file.stem}."), codes=clip_codes)
             for file, clip_codes in zip(files, codes)]
    with_codes(run, clips)
    evaluation = generation_eval.build(base, config, run, cache.load_run(run))
    evaluation.sentences = evaluation.sentences[:4]
    evaluation._evaluate(0, lora.add_lora(base.model, 4, 8))
    rows = evaluation.rows()
    assert sum(row["word_errors"] for row in rows) < 0.6 * sum(row["ref_words"] for row in rows)
    assert 0.5 < np.mean([row["sim"] for row in rows]) < 0.95 and all(row["ended_with_eos"] for row in rows)
    voice = {text: clip.embedding for text, clip in evaluation.references.items()}
    _, ceiling = scoring.similarity_range(evaluation.references, list(voice.values()))
    assert ceiling > np.mean([row["sim"] for row in rows])
