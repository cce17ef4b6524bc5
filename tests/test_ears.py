"""Choosing a step by ear: what judges heard of each, which is kept and why, and that listening leaves no trace."""

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
from test_training import CPU, adapter, same, with_codes
from transformers import TrainerCallback

from sample_data.build import sentences
from tts_kit import audio, samples
from tts_kit.config import Config
from tts_kit.errors import KitError
from tts_kit.evaluation import metrics as judges
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.io import read_rows, write_bytes
from tts_kit.model import load, lora
from tts_kit.run import Run
from tts_kit.tokens import cache
from tts_kit.training import callbacks, checkpoint_selection, finetune, generation_eval, grid

pytest.importorskip("scipy", reason="intervals need scipy, which requirements-judges.txt installs")
installed = pytest.mark.skipif(not judges.load_available(), reason=f"judges are not installed: {judges.INSTALL}")
SENTENCES = 12
SHORT = ("Go", "Sit", "Run", "Up", "Dig")
HOSTILE = '<img src=x onerror="window.hurt=1">\u2028</script><!--<script>'


def heard(step, similarity, wrong=1, spread=0.03, failure=""):
    """Rows of one step: ten words a sentence, `wrong` of them (or a list) not understood; luck of its own at each step."""
    luck = np.random.default_rng(step).normal(0, spread, SENTENCES)
    each = wrong if isinstance(wrong, list) else [wrong] * SENTENCES
    return [{"step": step, "sentence": number + 1, "text": f"Sentence {number + 1}.", "ref_words": 10, "failure": failure,
             "word_errors": each[number], "sim": similarity + luck[number] - luck.mean(),
             "file": f"ears/step-{step:06d}/{number + 1:02d}.flac", "transcript": "", "ended_with_eos": True, "seconds": 1.0}
            for number in range(SENTENCES)]


def chosen(*steps, of=60):
    return checkpoint_selection.select([row for rows in steps for row in rows], of)


def test_of_equals_the_earliest_is_kept():
    """Mistake: the last or the luckiest step is kept though an earlier one is as good."""
    found = chosen(heard(0, 0.5), heard(20, 0.700), heard(40, 0.705), heard(60, 0.703))
    assert (found.step, found.by) == (20, "ears")
    assert found.why.startswith("Step 20 of 60 is kept: similarity 0.70 against 0.70 at step 40, which may be luck; "
                                "10% wrong words against 10%.")


def test_a_later_step_that_is_surely_nearer_is_kept():
    """Mistake: everything counts as equal, and the least trained step is always kept."""
    found = chosen(heard(0, 0.5), heard(20, 0.60), heard(40, 0.70), heard(60, 0.703))
    assert found.step == 40
    assert found.why.endswith("The base has similarity 0.50, 10% wrong words.")
    alone = chosen(heard(0, 0.5), heard(20, 0.55), heard(40, 0.70))
    assert alone.why.startswith("Step 40 of 60 is kept, the most like the voice: similarity 0.70, 10% wrong words.")


def test_an_earlier_step_that_surely_reads_worse_is_not_kept():
    """Mistake: the earliest step as near in voice, half of whose words nobody understands yet."""
    assert chosen(heard(20, 0.70, wrong=5), heard(40, 0.70, wrong=1)).step == 40
    little = [[row | {"ref_words": 100} for row in heard(step, 0.70, wrong)] for step, wrong in ((20, 3), (40, 1))]
    assert chosen(*little).step == 40  # too little to be left out at once, but sure


def test_a_nearer_voice_with_ruined_words_is_not_kept():
    """Mistake: similarity alone: the voice learnt by heart says nothing that can be understood."""
    found = chosen(heard(0, 0.5), heard(20, 0.60), heard(40, 0.70), heard(60, 0.85, wrong=6))
    assert found.step == 40
    assert "Step 60 is more like it, but surely reads worse (similarity 0.85, 60% wrong words)." in found.why


def test_a_word_more_or_less_by_luck_rules_nobody_out():
    """Mistake: the step with the fewest wrong words wins over a voice that is surely nearer."""
    lucky = [0, 3] * 6
    assert chosen(heard(20, 0.60, wrong=1), heard(40, 0.75, wrong=lucky)).step == 40


def test_the_base_is_a_yardstick_and_never_kept():
    """Mistake: an adapter that does nothing is saved as trained, or a training in vain is praised."""
    found = chosen(heard(0, 0.71), heard(20, 0.70), heard(40, 0.70))
    assert found.step == 20
    assert "It is not surely more like the voice than the base (similarity 0.71, 10% wrong words)." in found.why
    worse = chosen(heard(0, 0.5, wrong=0), heard(20, 0.70, wrong=4))
    assert worse.why.endswith("The base has similarity 0.50, 0% wrong words, and surely reads better.")


@pytest.mark.parametrize(("steps", "wanted"), [
    ([heard(0, 0.5), heard(60, 0.4, wrong=9)], (60, "ears")),
    ([heard(0, 0.5)], (60, "last step")), ([], (60, "last step")),
    ([heard(0, 0.5), heard(20, 0, 10, 0, "silent"), heard(40, 0, 10, 0, "silent")], (40, "last step")),
    ([heard(20, 0, 10, 0, "silent"), heard(40, 0.3, 2)], (40, "ears"))],
    ids=["one step", "base alone", "nothing", "all silent", "one silent"])
def test_little_or_nothing_to_choose_from(steps, wanted):
    """Mistake: a traceback after hours of training, or the first of many silent steps as the best."""
    found = chosen(*steps)
    assert (found.step, found.by) == wanted and found.why


def test_patience_counts_listens_since_the_best():
    """Mistake: the training ends while it still gets better, never ends, or counts the base."""
    rows = [*heard(0, 0.9), *heard(10, 0.5), *heard(20, 0.7), *heard(30, 0.69), *heard(40, 0.69)]
    until = {step: [row for row in rows if row["step"] <= step] for step in (0, 10, 20, 30, 40)}
    assert [checkpoint_selection.should_stop_early(until[step], 2) for step in until] == [False, False, False, False, True]
    assert [checkpoint_selection.should_stop_early(until[step], 1) for step in until] == [False, False, False, True, True]
    assert not checkpoint_selection.should_stop_early(rows, 0)
    assert checkpoint_selection.should_stop_early([*heard(10, 0.5, spread=0), *heard(20, 0.5, spread=0)], 1), "the same again is not better"


def test_the_sentences_are_of_no_report_and_of_no_judging():
    """Mistake: steps are chosen by the sentences that the result is judged by, or that were learnt by heart."""
    bare = generation_eval.read_sentences([])
    assert 12 <= len(bare) <= 20 and len(set(bare)) == len(bare)
    assert not any(character.isdigit() for line in bare for character in line)
    bundled = [row["text"] for place in (samples.VOICE, samples.SAMPLE_DATA / "held_out")
               for row in csv.DictReader((place / "metadata.csv").open(encoding="utf-8"))]
    taken = {generation_eval._bare(each) for each in (*sentences.judging().sentences, *sentences.judging().bundled, *bundled)}
    assert not taken & {generation_eval._bare(line) for line in bare}
    said = [make_clip("one", 5, bare[0].upper().rstrip(".") + "!", "held_out"), make_clip("two", 5, f'"{bare[3]}"')]
    assert generation_eval.read_sentences(said) == [line for line in bare if line not in (bare[0], bare[3])]


def by_ear(wave):
    """A direction and some words that follow from the sound alone."""
    spectrum = np.abs(np.fft.rfft(wave, 512))[:64] + 1e-6
    return spectrum / np.linalg.norm(spectrum)


def some_words(wave):
    return " ".join(["the", "small", "dog", "near", "door"][zlib.crc32(wave.tobytes()) % 5:])


@pytest.fixture
def metric_models(monkeypatch, tmp_path):
    """Judges and sentences that cost nothing in place of the real ones; counts what is said."""
    (tmp_path / "sentences.txt").write_text("".join(f"{word} on.\n" for word in SHORT))
    monkeypatch.setattr(generation_eval, "SENTENCES", tmp_path / "sentences.txt")
    made = MetricModels({"wer": "a test", "sim": "a test"}, some_words, by_ear, None)
    monkeypatch.setattr(judges, "load_available", lambda: made.name)
    monkeypatch.setattr(judges, "load", lambda: made)
    calls, say = [], callbacks.generate_samples
    monkeypatch.setattr(callbacks, "generate_samples", lambda *told: calls.append(told) or say(*told))
    return calls


@pytest.fixture
def loud_recipe(config, loud):
    return config.replace(base=loud, steps=6, save_steps=3, eval_steps=6, learning_rate=0.01, generation_eval_steps=2)


def of_clips(name, root) -> Run:
    """Twelve clips of different lengths, two of them held out."""
    clips = [make_clip(f"clip{number}", 5 + number, f"Text {number}.", "held_out" if number < 2 else "train")
             for number in range(12)]
    return with_codes(Run(name, root), clips)


class Interrupt(TrainerCallback):
    """As a disconnect at one step does."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        if state.global_step == self.step:
            raise KeyboardInterrupt


def losses(run):
    return [(row["step"], row["loss"]) for row in read_rows(run.training / callbacks.RECORD) if "loss" in row]


@installed
def test_listening_keeps_every_step_and_leaves_no_trace_in_the_losses(loud_recipe, tmp_path, metric_models, capsys):
    """Mistake: listening draws from the training's chance; or what is saved as chosen is the last step after all."""
    deaf, run = of_clips("deaf", tmp_path), of_clips("one", tmp_path)
    finetune.finetune(loud_recipe.replace(generation_eval_steps=0), deaf, CPU)
    finetune.finetune(loud_recipe, run, CPU)
    assert losses(run) == losses(deaf) and not (deaf.training / generation_eval.FOLDER).exists()
    rows = read_rows(run.training / generation_eval.ROWS)
    assert [(row["step"], row["sentence"]) for row in rows] == [(step, number + 1) for step in (0, 2, 4, 6)
                                                                for number in range(len(SHORT))]
    assert all((run.training / row["file"]).is_file() for row in rows)
    metrics = json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]
    choice = checkpoint_selection.select(rows, 6)
    assert (metrics["chosen_step"], metrics["chosen_by"]) == (choice.step, "ears") and choice.why in capsys.readouterr().out
    kept = run.training / generation_eval.FOLDER / f"step-{choice.step:06d}"
    same(adapter(run.adapter), adapter(kept))
    same(adapter(deaf.adapter), adapter(kept.with_name("step-000006")))
    after, = [row for row in read_rows(run.training / callbacks.RECORD) if row["step"] == choice.step and "eval_loss" in row]
    assert metrics["after"]["eval_loss"] == after["eval_loss"]
    assert (run.training / "ears.png").read_bytes().startswith(b"\x89PNG")
    # another step is another adapter, or all this would say nothing
    first, last = (adapter(kept.with_name(f"step-00000{step}")) for step in (2, 6))
    assert any((first[name] != last[name]).any() for name in first)


@installed
def test_an_interrupted_training_hears_the_same_and_says_nothing_twice(loud_recipe, tmp_path, metric_models):
    """Mistake: steps are said again after a disconnect, lost, or listed twice, and another step is kept."""
    whole, run = of_clips("whole", tmp_path), of_clips("one", tmp_path)
    finetune.finetune(loud_recipe, whole, CPU)
    metric_models.clear()
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(loud_recipe, run, CPU, [Interrupt(5)])  # heard at 4, resumed from 3
    table = run.training / generation_eval.ROWS
    table.write_text("".join(line for line in table.read_text().splitlines(True) if not line.startswith('{"step": 2')))
    shutil.rmtree(run.training / generation_eval.FOLDER / "step-000004")  # as a kill while it was said leaves it
    finetune.finetune(loud_recipe, run, CPU)
    assert len(metric_models) == 5  # 0, 2, 4, and 4 again, 6
    assert read_rows(table) == read_rows(whole.training / generation_eval.ROWS)
    same(adapter(run.adapter), adapter(whole.adapter))
    for place in whole.training.glob("ears/*/*.flac"):
        assert (run.training / place.relative_to(whole.training)).read_bytes() == place.read_bytes()


@installed
def test_what_was_heard_of_another_recipe_is_not_mixed_in(loud_recipe, tmp_path, metric_models):
    """Mistake: a run that had no checkpoint yet takes another recipe, and the steps of the old one stand beside the new."""
    run = of_clips("one", tmp_path)
    with pytest.raises(KeyboardInterrupt):
        finetune.finetune(loud_recipe.replace(rank=8), run, CPU, [Interrupt(2)])
    old = (run.training / generation_eval.FOLDER / "step-000000" / "01.flac").stat().st_mtime_ns
    finetune.finetune(loud_recipe, run, CPU)
    assert (run.training / generation_eval.FOLDER / "step-000000" / "01.flac").stat().st_mtime_ns != old


@installed
def test_patience_ends_the_training_early(loud_recipe, tmp_path, metric_models, capsys, monkeypatch):
    """Mistake: the training goes on to its end, or what is kept then is the step at which it stopped."""
    likeness = iter([0.3] * len(SHORT) + [0.8] * len(SHORT) + [0.6] * 99)
    monkeypatch.setattr(generation_eval.GenerationEvalCallback, "_likeness", lambda self, found: next(likeness))
    run = of_clips("one", tmp_path)
    finetune.finetune(loud_recipe.replace(steps=20, early_stopping_patience=2), run, CPU)
    assert "The training ends at step 6 of 20: 2 listens without a better step." in capsys.readouterr().out
    metrics = json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]
    assert metrics["chosen_step"] == 2 and losses(run)[-1][0] == 6
    same(adapter(run.adapter), adapter(run.training / generation_eval.FOLDER / "step-000002"))


@pytest.mark.parametrize("missing", ["judges", "sentences"])
def test_where_nobody_can_listen_the_last_step_is_kept(config, tmp_path, monkeypatch, capsys, missing):
    """Mistake: the training fails for want of judges, or passes over it in silence."""
    run = of_clips("one", tmp_path)
    if missing == "judges":
        monkeypatch.setattr(judges, "load_available", lambda: "")
    else:
        few = tmp_path / "sentences.txt"
        few.write_text("Text 1.\nAnother one.\n")
        monkeypatch.setattr(generation_eval, "SENTENCES", few)
        monkeypatch.setattr(judges, "load_available", lambda: "a test")
    finetune.finetune(config.replace(generation_eval_steps=2), run, CPU)
    said = capsys.readouterr().out
    assert said.count("Nobody can listen to the training") == 1 and "The last step will be kept." in said
    assert (judges.INSTALL in said) is (missing == "judges")
    metrics = json.loads((run.adapter / lora.METADATA_FILE).read_text())["metrics"]
    assert (metrics["chosen_step"], metrics["chosen_by"]) == (4, "last step") and metrics["passes"] > 0


def test_a_clip_that_a_judge_breaks_down_on_counts_as_one_without_sound(config, base, tmp_path):
    """Mistake: None among the figures ends a training of hours in a traceback."""
    def broken(wave):
        raise ValueError("no idea")

    run, clips = of_clips("one", tmp_path), [make_clip("a", 9)]
    audio.write(run.training / "a.flac", np.sin(np.arange(24_000) / 9).astype(np.float32) / 3, 24_000)
    row = {"step": 2, "sentence": 1, "text": "Four words are here.", "file": "a.flac", "ended_with_eos": True}
    for transcribe, embed_speaker in ((broken, by_ear), (some_words, broken)):
        listener = generation_eval.GenerationEvalCallback(base, config, run, clips, MetricModels({}, transcribe, embed_speaker, None))
        listener._centre = np.ones(64) / 8
        found = listener._judge(row)
        assert "no idea" in found["failure"] and isinstance(found["word_errors"], int)
        assert found["word_errors"] == 4 or found["sim"] == 0


def test_kept_weights_are_put_back_and_others_refused(base, tmp_path):
    """Mistake: a chosen step is loaded beside the model, in part, or out of another adapter."""
    model = lora.add_lora(base.model, 4, 8)
    spread_logits(base)
    for weight in model.parameters():
        weight.data.add_(0.01) if weight.requires_grad else None
    before, path = lora.fingerprint(model), tmp_path / "kept.safetensors"
    lora.save_weights(model, path)
    for weight in model.parameters():
        weight.data.mul_(3) if weight.requires_grad else None
    assert lora.fingerprint(model) != before
    lora.load_weights(model, path)
    assert lora.fingerprint(model) == before
    kept = load_file(path)
    first = next(iter(kept))
    for wrong, message in (({first: torch.zeros(2, 3)}, r"is \(2, 3\) there and \(\d+, \d+\) in the model"),
                           ({"more": torch.zeros(1)}, "more is .* there and missing in the model")):
        write_bytes(path, save(kept | wrong))
        with pytest.raises(KitError, match=f"kept of another adapter: .*{message}.*same base, rank and targets"):
            lora.load_weights(model, path)
    path.write_bytes(b"nothing")
    with pytest.raises(KitError, match="cannot be read as weights of an adapter"):
        lora.load_weights(model, path)
    assert lora.fingerprint(model) == before


def test_the_bundled_model_is_heard_and_its_voice_told_from_another(tmp_path):
    """Mistake: what is said, kept and judged of a real model is noise, in another order, or takes minutes."""
    if not judges.load_available():
        pytest.skip(f"judges are not installed: {judges.INSTALL}")
    base = load.load_base(str(samples.TINY_CSM), CPU)
    run = Run("real", tmp_path)
    config = Config(base=str(samples.TINY_CSM), generation_eval_steps=1)
    files = sorted(samples.VOICE.glob("*.flac"))[:6]
    codes = base.codec.encode([audio.read(file, base.spec.sample_rate) for file in files])
    clips = [dataclasses.replace(make_clip(file.stem, 5), codes=one) for file, one in zip(files, codes)]
    with_codes(run, clips)
    listener = generation_eval.build(base, config, run, cache.load_run(run))
    listener.sentences = listener.sentences[:4]
    listener.listen(0, base.model)
    rows = listener.rows()
    assert sum(row["word_errors"] for row in rows) < 0.6 * sum(row["ref_words"] for row in rows)
    assert 0.5 < np.mean([row["sim"] for row in rows]) < 0.95 and all(row["ended_with_eos"] for row in rows)
    real = [float(listener.metric_models.embed(wave, base.spec.sample_rate) @ listener._centre) for wave in listener._real()]
    assert min(real) > np.mean([row["sim"] for row in rows])


@pytest.fixture
def page(tmp_path):
    """Two sentences at three steps; one clip is missing, and one text hostile."""
    rows = [row for step in (0, 20, 40) for row in heard(step, 0.5 + step / 100)[:3]]
    for row in rows:
        tone = np.sin(np.arange(24_000 * (2 if row["step"] else 1)) / 9).astype(np.float32) / 3
        audio.write(tmp_path / row["file"], tone, 24_000)
        row |= {"text": HOSTILE, "transcript": HOSTILE} if row["sentence"] == 2 else {}
    (tmp_path / rows[-1]["file"]).unlink()
    return grid.write(rows, tmp_path, f"Title {HOSTILE}", "Step 20 of 40 is kept.", 20)


def test_the_page_needs_nothing_else(page):
    """Mistake: text of the data becomes markup, or a script or sound is fetched from elsewhere."""
    text = page.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert "Content-Security-Policy" in text and "default-src &#x27;none" not in text
    markup = re.sub(r"base64,[\w+/=]+", "", text)
    assert not re.search(r"https?:|@import|<link|\b(src|href)=\"", markup)
    assert str(page.parent) not in text


def test_the_page_plays_every_step(page, chromium):
    """Mistake: a grid that plays nothing, marks another step, or cannot be used by keys."""
    chromium.look(1280, 800)
    chromium.open(page.as_uri())
    names = chromium.run("[...document.querySelectorAll('thead th b')].map(e => e.textContent)")
    assert names == ["base", "step 20", "step 40"]
    assert chromium.run("document.querySelector('thead .kept').innerText").startswith("step 20 kept\nsimilarity 0.72 (")
    assert chromium.run("[...document.querySelectorAll('tbody tr')].map(e => e.cells.length)") == [4, 4, 4]
    assert chromium.run("document.querySelector('tbody em').textContent") == "missing"
    assert chromium.run("document.querySelectorAll('tbody th p')[1].textContent") == HOSTILE
    assert chromium.run("typeof window.hurt") == "undefined"
    chromium.click("tbody tr:nth-child(1) td:nth-child(2) button")
    chromium.wait("player.currentTime > 0 && Math.abs(player.duration - 1) < 0.15")
    chromium.press("ArrowRight")
    chromium.press("ArrowDown")
    chromium.press(" ")
    chromium.wait("player.currentTime > 0 && Math.abs(player.duration - 2) < 0.15")
    assert chromium.run("[...document.querySelectorAll('.playing')].map(e => e.ariaLabel)") == ["Pause step 20, sentence 2"]
    chromium.press(" ")
    chromium.wait("player.paused && !document.querySelector('.playing')")
    assert chromium.run("document.documentElement.scrollWidth") <= 1280
    assert chromium.complaints() == []
