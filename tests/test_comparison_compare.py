"""The comparison of all arms: complete, resumable, on one page; and the whole pipeline by commands."""

import dataclasses
import functools
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import sample_clips
import soundfile
from test_speech_voice import change

from sample_data.build.sentences import evaluation_set
from tests.benchmarks import finetuning
from tts_kit import cli, device, pipeline
from tts_kit.comparison import arms, compare, listening_test, recommend, synthesis, verdict
from tts_kit.comparison.synthesis import SCORES
from tts_kit.config import Config
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics, scoring
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.export import card, release
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_rows, write_rows
from tts_kit.model import lora
from tts_kit.run import SAMPLE_DATA, Run, lock
from tts_kit.speech import best_of, speak
from tts_kit.speech.voice import load_voice
from tts_kit.tokens import cache
from tts_kit.training import generation_eval

CPU = device.choose("cpu")
TOY_METRICS = MetricModels({"wer": "a toy", "sim": "a toy"}, lambda wave: "nothing but noise",
                           lambda wave: np.abs(np.fft.rfft(wave[:16_000])[:64]) + 1e-3, lambda wave: 3.0)
"""Replaces the real metric models: Whisper needs 15 s for a clip of an untrained model."""
needs_metrics = pytest.mark.skipif(bool(backends.missing_packages()),
                                   reason=f"metric models are not installed: {metrics.INSTALL}")


def use_toy_metrics(monkeypatch):
    monkeypatch.setattr(metrics, "load_available", lambda: TOY_METRICS.name)
    monkeypatch.setattr(metrics, "load", lambda: TOY_METRICS)


@pytest.fixture(scope="module")
def finished(spread_toy, tmp_path_factory):
    """All stages run once on fifteen clips of the bundled voice, with a toy model whose output depends on its input."""
    root = tmp_path_factory.mktemp("runs")
    source = root / "source"
    sample_clips.copy(source, [*range(1, 7), *range(8, 14), *range(15, 18)])  # of three recordings, the last the shortest
    config = Config(base=spread_toy, rank=4, alpha=8, steps=3, warmup_steps=0, learning_rate=0.01, tokens_per_batch=400,
                    eval_steps=3, save_steps=3, sample_steps=0)
    run = Run("finished", root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not backends.missing_packages():
            use_toy_metrics(monkeypatch)
        page = pipeline.run_all(source, config, run, CPU, sentences=2, seeds=(1, 2))
    return run, config, source, page


@pytest.fixture(autouse=True)
def no_metric_models(finished, monkeypatch):
    """The clips are scored only once, in `finished`."""
    monkeypatch.setenv("TTS_KIT_METRICS", "none")


def test_sim_has_one_scale_in_training_and_comparison(finished, base):
    """Mistake: training measures SIM against clips as the codec decodes them, 0.94 where the comparison has 0.71, or against
    the held-out recordings, to which a selected step would be nearer by chance."""
    run, config, _, _ = finished
    evaluation = generation_eval.GenerationEvalCallback(base, config, run, cache.load_run(run), TOY_METRICS)
    training = {one.text: one.audio for one in manifest.read(run.data) if one.split == "train"}
    assert set(evaluation.references) == set(training)
    recordings = scoring.measure_references(training, TOY_METRICS)
    assert all(np.array_equal(reference.embedding, recordings[text].embedding)
               for text, reference in evaluation.references.items())


def test_every_arm_sentence_and_seed_is_scored(finished):
    """Mistake: an arm, a seed or the upper bound is left out, or a row points to no clip."""
    run, _, _, page = finished
    rows = read_rows(run.comparison / SCORES)
    counted = {arm: sum(row["arm"] == arm for row in rows) for arm in arms.ARMS}
    assert counted == {"ground_truth": 2, "codec": 2, "base": 4, "clone": 4, "finetuned": 4, "finetuned+clone": 4}
    for row in rows:
        assert soundfile.info(run.comparison / row["file"]).duration == pytest.approx(row["seconds"], abs=0.01)
        if row["arm"] in arms.GENERATED_ARMS:
            assert isinstance(row["ended_with_eos"], bool) and row["wall_seconds"] > 0 and row["attempts"] == 1
            assert backends.missing_packages() or (row["metrics"] == TOY_METRICS.name and row["memorized"] is False)
    assert page == run.comparison / "index.html" and "finetuned+clone" in page.read_text(encoding="utf-8")


def test_every_arm_differs(finished):
    """Mistake: base gets the reference, or finetuned speaks without its adapter: two columns with the same clips."""
    run, _, _, _ = finished
    rows = read_rows(run.comparison / SCORES)
    content = {(row["sentence"], row["seed"], row["arm"]): (run.comparison / row["file"]).read_bytes() for row in rows}
    assert len(set(content.values())) == len(content)


def test_held_out_sentences_are_compared_and_the_reference_is_none_of_them(finished):
    """Mistake: the model is evaluated on sentences it was trained on, or gets the answer as its reference."""
    run, _, _, _ = finished
    utterances = manifest.read(run.data)
    held_out = {utterance.text for utterance in utterances if utterance.split == "held_out"}
    assert {row["text"] for row in read_rows(run.comparison / SCORES)} <= held_out
    assert synthesis.pick_references(utterances)[0].text not in held_out
    only_held_out_fits = [dataclasses.replace(utterance, seconds=6.0 if utterance.split == "held_out" else 1.0)
                          for utterance in utterances]
    assert synthesis.pick_references(only_held_out_fits)[0].text not in held_out
    assert not {utterance.text for utterance in synthesis.pick_references(only_held_out_fits, 3.0, 8)} & held_out


def test_a_comparison_can_be_extended_and_not_emptied(finished, tmp_path):
    """Mistake: more sentences or seeds start the comparison again, or an empty comparison ends in a traceback."""
    run, _, _, _ = finished
    voice = load_voice(CPU, run.adapter)
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    for sentences, seeds in ((1, (1, 1)), (2, (2,))):
        page = compare.compare(copy, voice, sentences, seeds).page
    spoken = [(row["sentence"], row["seed"]) for row in read_rows(copy.comparison / SCORES) if row["arm"] == "base"]
    assert spoken == [(1, 1), (1, 2), (2, 2)]
    assert "<dd dir=\"auto\">1, 2</dd>" in page.read_text(encoding="utf-8")
    with pytest.raises(KitError, match="leave nothing to compare"):
        compare.compare(copy, voice, 0, (1,))


def test_a_stopped_comparison_generates_only_missing_clips(finished, monkeypatch):
    """Mistake: an hour of clips is generated again after a disconnect, or a lost clip is never generated again."""
    run, config, _, _ = finished
    before = {row["file"]: (run.comparison / row["file"]).stat().st_mtime_ns
              for row in read_rows(run.comparison / SCORES)}
    lost = "clips/finetuned/002-1.flac"
    original = soundfile.read(run.comparison / lost, dtype="int16")[0].astype(int)
    (run.comparison / lost).unlink()
    voice = load_voice(CPU, run.adapter, config.base)
    compare.compare(run, voice, 2, (1, 2))
    after = {name: (run.comparison / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == [lost]
    regenerated = soundfile.read(run.comparison / lost, dtype="int16")[0]
    # same seed, same codes; decoded in another batch, a sample may round to its neighbour
    assert regenerated.shape == original.shape and abs(regenerated - original).max() <= 1


def test_clips_of_other_settings_are_not_mixed(finished):
    """Mistake: clips of two temperatures are compared under one name."""
    run, config, _, _ = finished
    voice = load_voice(CPU, run.adapter, config.base)
    voice.sampling = Sampling(0.1, 0.1, 5)
    with pytest.raises(KitError, match="another temperature, another depth temperature, another top k.*Move that folder"):
        compare.compare(run, voice, 2, (1, 2))


@pytest.mark.parametrize(("text", "expected"), [
    ("finetuned:strength=0.5,temperature=0.3", (True, False, "finetuned:strength=0.5,temperature=0.3")),
    ("finetuned+clone:references=3", (True, True, "finetuned+clone:references=3")), ("base", (False, False, "base")),
    ("clone:", (False, True, "clone")), ("tuned+clone:strength=2", (True, True, "finetuned+clone:strength=2"))])
def test_arms_are_parsed(text, expected):
    """Mistake: a setting is parsed and not applied, or one arm has two names."""
    arm = arms.parse(text)
    assert (arm.info.adapter, arm.info.reference, arm.name) == expected


@pytest.mark.parametrize(("text", "message"), [
    ("tunned", "no arm 'tunned'.*base, clone, finetuned.*kokoro.*folder:NAME=PATH"),
    ("finetuned:loudness=3", "no setting 'loudness'"),
    ("clone:strength=0.5", "has no strength, which is a setting of finetuned and finetuned"),
    ("base:references=2", "has no references"),
    ("finetuned:strength=loud", "strength is 'loud'; wanted a number from 0 to 10"), ("clone:references=2.5", "an integer"),
    ("clone:references=9", "from 1 to 8"), ("finetuned:strength=1,strength=2", "sets strength twice"),
    ("finetuned:temperature=nan", "temperature is 'nan'"), ("../../etc/passwd", "there is no arm"),
    ("kokoro:strength=1", "there is no arm")])
def test_an_invalid_arm_is_named(text, message):
    """Mistake: a typing error compares the default settings with themselves, or ends in a traceback."""
    with pytest.raises(KitError, match=message):
        compare.parse_arm(text)


def test_settings_have_an_effect_and_are_undone(finished, tmp_path):
    """Mistake: strength or an older checkpoint stays in the model for the arms after it, or has no effect at all."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter", "training"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    voice = load_voice(CPU, copy.adapter)
    checkpoint = copy.training / "checkpoint-3" / "adapter_model.safetensors"
    assert checkpoint.is_file()
    names = ("finetuned", "finetuned:strength=0", "base", "finetuned:strength=3", "finetuned:checkpoint=3", "clone",
             "clone:references=2", "clone:reference_seconds=1")
    compare.compare(copy, voice, 1, (1,), [*names[1:], names[0]], test_types=())
    content = {row["arm"]: (copy.comparison / row["file"]).read_bytes() for row in read_rows(copy.comparison / SCORES)}
    assert content["finetuned:strength=0"] == content["base"] != content["finetuned"] == content["finetuned:checkpoint=3"]
    assert len({content[arm] for arm in ("finetuned", "finetuned:strength=3", "base", "clone", "clone:references=2")}) == 5
    with pytest.raises(KitError, match="no adapter was saved at step 77 .*saved were those of steps 3"):
        compare.compare(copy, voice, 1, (1,), ["finetuned:checkpoint=77"], test_types=())


def test_a_sweep_uses_other_sentences_than_the_comparison(finished, monkeypatch, capsys):
    """Mistake: settings are chosen on the sentences or the recordings that later evaluate the result."""
    run, _, _, _ = finished
    voice = load_voice(CPU, run.adapter)
    page = compare.run_sweep(run, voice, {"strength": [0.5, 2.0]}, "finetuned", 2, (1,)).page
    rows = read_rows(run.folder / "sweep" / SCORES)
    assert page == run.folder / "sweep" / "index.html"
    assert [row["arm"] for row in rows] == ["finetuned", "finetuned:strength=0.5", "finetuned:strength=2"] * 2
    assert not {row["text"] for row in rows} & {utterance.text for utterance in manifest.read(run.data)}
    with pytest.raises(KitError, match="nothing to sweep"):
        compare.run_sweep(run, voice, {})
    texts = [row["text"] for row in rows[::3]]
    monkeypatch.setattr(generation_eval, "read_sentences", lambda utterances: texts)
    compare.run_sweep(run, voice, {"strength": [0.5, 0.5]}, "finetuned", 50, (1,))
    assert "50 sentences were asked for; there are 2" in capsys.readouterr().out


def codes(speech):
    return [generation.codes.tolist() for generation in speech.generations]


def scores_if_best(better, rows, key, step_scores=generation_eval.step_scores):
    """Score rows as if one arm had no word error and the others many."""
    return step_scores([row | {"word_errors": 5 * (row[key] != better), "sim": 0.5} for row in rows], key)


def set_errors(folder, arm, is_new, word_errors):
    """Change the word errors of an arm's takes that chose the settings, or of its new ones."""
    rows = read_rows(folder / SCORES)
    changed = {"word_errors": word_errors, "sim": 0.5}
    write_rows(folder / SCORES, [row | changed if (row["arm"], row["seed"] > recommend.NEW_TAKES) == (arm, is_new) else row
                                 for row in rows])


@needs_metrics
def test_the_best_settings_are_kept_with_the_adapter(finished, tmp_path, monkeypatch, capsys):
    """Mistake: settings are chosen on what the comparison uses, by other takes than their own, or kept although new takes
    say otherwise; an interrupted search begins again; the adapter's voice, its card or an option does not know them."""
    use_toy_metrics(monkeypatch)
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter", "comparison"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    change(copy.comparison, "inputs.json", adapter=str(copy.adapter))
    voice, folder, arm = load_voice(CPU, copy.adapter), copy.folder / "recommend", "finetuned:guidance=3"
    monkeypatch.setattr(recommend, "GRID", {"guidance": (3.0,)})
    with monkeypatch.context() as without_pages:
        without_pages.setattr(recommend._Search, "show", lambda search: None)
        recommend.recommend(copy, voice, 3, (1,))
        for name in ("finetuned", arm):
            set_errors(folder, name, False, 0 if name == arm else 5)
        recommend.recommend(copy, voice, 3, (1,))  # which makes the new takes
        made = {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")}
        texts = {row["text"] for row in read_rows(folder / SCORES)}
        assert len(made) == 12 and len(texts) == 3 and not texts & {one.text for one in manifest.read(run.data)}
        for name in ("finetuned", arm):
            set_errors(folder, name, True, 5 if name == arm else 0)
        result = recommend.recommend(copy, voice, 3, (1,))
    assert result.settings == {} and "did not confirm" in result.reason and voice.sampling.guidance == 1
    assert lora.read_metadata(copy.adapter)["recommended"] == {}
    for name in ("finetuned", arm):
        set_errors(folder, name, True, 0 if name == arm else 5)
    voice.sampling = dataclasses.replace(voice.sampling, guidance=2.0)  # as if recommended earlier; not measured against
    result = recommend.recommend(copy, voice, 3, (1,))
    assert result.settings == {"guidance": 3.0} == lora.read_metadata(copy.adapter)["recommended"]["settings"]
    assert result.reason.startswith("guidance 3: SIM 0.50, WER 0%; the voice's own settings: SIM 0.50, WER")
    assert "on new takes of 3 sentences." in result.reason and "95 % CI -" in result.reason
    assert voice.sampling.guidance == 3 == load_voice(CPU, copy.adapter).sampling.guidance and result.page.is_file()
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*.flac")} == made
    released = release.export(copy, tmp_path / "out", watermarked=False)
    assert f"{result.reason.split(';')[0]};" in (released / card.FILE).read_text(encoding="utf-8")
    assert f"{copy.comparison} was made with other settings" in capsys.readouterr().out
    with pytest.raises(KitError, match="a comparison with another guidance. Move"):
        compare.compare(copy, voice)


@needs_metrics
def test_a_reference_that_helps_is_kept_with_the_adapter(finished, tmp_path, monkeypatch):
    """Mistake: a recommended clip does not reach who speaks, or an export; it reaches the base, or arms without one; or it
    stays when it is not recommended any more."""
    use_toy_metrics(monkeypatch)
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    voice, folder, arm = load_voice(CPU, copy.adapter), copy.folder / "recommend", "finetuned+clone"
    plain, of_base = (codes(speak.speak("One.", voice, finetuned=finetuned)) for finetuned in (True, False))
    monkeypatch.setattr(recommend, "GRID", {"reference": (1.0,)})
    for better in (arm, "finetuned"):
        monkeypatch.setattr(generation_eval, "step_scores", functools.partial(scores_if_best, better))
        result = recommend.recommend(copy, voice, 3, (1,))
        if better == arm:
            assert result.settings == {"reference": 1.0} and result.reason.startswith("a reference clip: ")
            [clip] = synthesis.pick_references(manifest.read(copy.data))
            expected = codes(speak.speak("One.", voice, clip))
            assert expected != plain
            merged = release.export(copy, tmp_path / "merged", merge=True, watermarked=False)
            for source in (copy.adapter, release.export(copy, tmp_path / "out", watermarked=False), merged):
                other = load_voice(CPU, source, "" if source == merged else voice.base.name)
                assert codes(speak.speak("One.", other)) == expected
                assert source == merged or codes(speak.speak("One.", other, finetuned=False)) == of_base
            with synthesis.apply_settings(arms.parse("finetuned"), voice, copy) as adjusted:
                assert codes(speak.speak("One.", adjusted)) == plain
    assert result.settings == {} and not list(copy.adapter.glob("reference*"))
    assert codes(speak.speak("One.", voice)) == codes(speak.speak("One.", load_voice(CPU, copy.adapter))) == plain
    assert {row["arm"] for row in read_rows(folder / SCORES)} == {"finetuned", arm}


@needs_metrics
def test_the_benchmark_speaks_sentences_that_chose_nothing(finished, tmp_path, monkeypatch):
    """Mistake: the benchmark is of sentences that chose the settings, or compares the recommended ones with themselves."""
    use_toy_metrics(monkeypatch)
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    clip = next(one.audio for one in manifest.read(run.data))
    monkeypatch.setattr(finetuning.voice_runs, "make", lambda *_: copy)
    monkeypatch.setattr(finetuning.voice_runs, "recordings", lambda run, voice, texts: [
        synthesis.Sentence(text, clip) for text in texts])
    monkeypatch.setattr(finetuning.finetune, "finetune", lambda *_: copy.adapter)
    monkeypatch.setattr(recommend, "recommend", lambda *_: recommend.Recommendation({"guidance": 3.0}, "", tmp_path))
    rows, recommendation = finetuning.speak_all(tmp_path, "copy", 2, [1])
    assert {row["text"] for row in rows} == {*evaluation_set().sentences[:2]}
    files = {arm: {row["file"] for row in rows if row["arm"] == arm} for arm in {row["arm"] for row in rows}}
    assert files["recommended"] == files["finetuned:guidance=3"] and not files["recommended"] & files["finetuned"]
    assert set(files) == {"ground_truth", "codec", *finetuning.ARMS, "finetuned:guidance=3", "recommended"}
    assert recommendation["settings"] == {"guidance": 3.0} and set(recommendation["worth"]) == {"finetuned", "recommended"}


@pytest.mark.parametrize(("arguments", "message"), [
    (("--recommend", "--guidance", "2"), "leave --guidance out"), (("--recommend", "--arms", "base"), "leave --arms out"),
    (("--recommend", "--sweep", "strength=1,2"), "leave --sweep out"),
    (("--responses", "x.json", "--recommend"), "and --recommend out"), (("--recommend",), "metric models are not installed"),
    (("--recommend", "--sentences", "2"), "at least 3 sentences")])
def test_a_recommendation_that_cannot_be_made_is_refused(finished, monkeypatch, capsys, arguments, message):
    """Mistake: an option is ignored, settings are chosen by two sentences, or without metrics by chance."""
    run, _, _, _ = finished
    monkeypatch.chdir(run.folder.parent.parent)
    (run.folder.parent.parent / "runs").exists() or (run.folder.parent.parent / "runs").symlink_to(run.folder.parent)
    if "--sentences" in arguments:
        use_toy_metrics(monkeypatch)
    before = (run.adapter / lora.METADATA_FILE).read_bytes()
    assert cli.main(["compare", "--run", run.name, *arguments]) == 1
    assert message in capsys.readouterr().err and (run.adapter / lora.METADATA_FILE).read_bytes() == before


def test_an_arm_says_which_models_chose_its_takes(finished, tmp_path, monkeypatch):
    """Mistake: the network that measures WER also chose the takes, or nobody can see which one did."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    models = best_of.ChoiceModels(lambda takes, text: [0.5] * len(takes), TOY_METRICS.embed)
    monkeypatch.setattr(best_of, "load_models", lambda: models)
    result = compare.compare(copy, load_voice(CPU, copy.adapter), 1, (1,), ["finetuned:best_of=2"], test_types=())
    assert [(row["attempts"], row["choice"].split(":")[0][-4:]) for row in result.rows if "choice" in row] == [(2, "of 2")]
    assert "takes are chosen by Whisper tiny.en int8 and Resemblyzer" in result.page.read_text(encoding="utf-8")


def test_clips_of_another_system_are_compared_and_a_missing_one_counts(finished, tmp_path):
    """Mistake: a system is evaluated only on the sentences it could speak, or its files are modified."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(next(run.comparison.glob("clips/ground_truth/001.flac")), folder / "001.flac")
    voice = load_voice(CPU, copy.adapter)
    page = compare.compare(copy, voice, 2, (1,), ["finetuned", f"folder:them={folder}"], test_types=()).page
    rows = [row for row in read_rows(copy.comparison / SCORES) if row["arm"] == "them"]
    assert [(row["sentence"], (copy.comparison / row["file"]).is_file()) for row in rows] == [(1, True), (2, False)]
    assert rows[1]["problem"] and "them" in page.read_text(encoding="utf-8")
    assert [path.name for path in folder.iterdir()] == ["001.flac"]
    assert "the metric models are not installed" in page.read_text(encoding="utf-8")


@needs_metrics
def test_a_clip_that_another_system_lacks_is_a_failure(finished, tmp_path, monkeypatch):
    """Mistake: sentences that a system could not speak are dropped, and it wins by speaking few."""
    use_toy_metrics(monkeypatch)
    (tmp_path / "theirs").mkdir()
    run, _, _, _ = finished
    shutil.copy(run.comparison / "clips/ground_truth/001.flac", tmp_path / "theirs")
    sentences = [synthesis.Sentence("Hello there."), synthesis.Sentence("Who is it?")]
    plan = synthesis.Plan(run, tmp_path / "out", sentences, (1,), [compare.parse_arm(f"folder:them={tmp_path / 'theirs'}")],
                          manifest.read(run.data))
    rows, lost = synthesis.synthesize(plan, load_voice(CPU, run.adapter))
    scored = compare.score(plan, rows, {utterance.text: utterance.audio for utterance in plan.utterances[:2]})
    assert lost == [] and [row["failure"] for row in scored] == ["", "missing"]
    assert scored[1]["word_errors"] == scored[1]["ref_words"] == 3 and scored[1]["sim"] == 0
    both_arms = [*scored, *(row | {"arm": "finetuned"} for row in scored)]
    assert " ".join(verdict.decide(both_arms, [("finetuned", "them")]).details).count("(missing)") == 2


def test_replaced_clips_of_a_system_are_imported_again(finished, tmp_path):
    """Mistake: a clip that a system lacks now is scored as the one it gave before, deleted samples stay, or unchanged clips
    are scored again."""
    run, _, _, _ = finished
    voice, source_folder = load_voice(CPU, run.adapter), run.comparison / "clips" / "ground_truth"
    sentences, folder = [synthesis.Sentence("Hello there."), synthesis.Sentence("Who is it?")], tmp_path / "out"
    for name, files in (("first", {"001.flac": "001", "002.flac": "002"}), ("last", {"001.flac": "001"}),
                        ("then", {"001-1.flac": "001", "001-2.flac": "002"})):
        (tmp_path / name).mkdir()
        for file, number in files.items():
            shutil.copy(source_folder / f"{number}.flac", tmp_path / name / file)

    def import_clips(name):
        arm = compare.parse_arm(f"folder:them={tmp_path / name}")
        return synthesis.synthesize(synthesis.Plan(run, folder, sentences, (1,), [arm], manifest.read(run.data)), voice)[0]

    synthesis.save_rows(folder, [row | {"metrics": "these"} for row in import_clips("first")])
    assert [row.get("metrics") for row in import_clips("first")] == ["these", "these"]
    assert [(row["file"], "problem" in row) for row in import_clips("then")] == [
        ("clips/them/001-1.flac", False), ("clips/them/001-2.flac", False), ("clips/them/002-0.flac", True)]
    assert not (folder / "clips/them/002-0.flac").exists()
    assert [row["file"] for row in import_clips("last")] == ["clips/them/001-0.flac", "clips/them/002-0.flac"]


def test_new_data_is_not_compared_with_an_old_adapter(finished, tmp_path):
    """Mistake: `prepare` is run again with another split and `tokenize` is not, and training clips are now held out."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    manifest = copy.data / "manifest.jsonl"
    manifest.write_text(manifest.read_text().replace('"train"', '"held_out"', 1))
    voice = load_voice(CPU, copy.adapter)
    with pytest.raises(KitError, match="other clips than .*data and .* hold now"):
        compare.compare(copy, voice, 1, (1,))
    shutil.rmtree(copy.codes)
    with pytest.raises(KitError, match="`tts-kit tokenize` again"):
        compare.compare(copy, voice, 1, (1,))


def test_responses_are_counted_and_the_test_stays_the_same(finished, monkeypatch):
    """Mistake: reading the first responses creates another listening test, and later responses are refused."""
    run, config, _, _ = finished
    voice = load_voice(CPU, run.adapter, config.base)
    compare.compare(run, voice, 2, (1, 2), test_types=("ab",))
    key = (run.comparison / listening_test.KEY).read_bytes()
    page = compare.count_responses(run, [run.folder / "nobody.json"]).page
    assert (run.comparison / listening_test.KEY).read_bytes() == key
    assert page.read_text(encoding="utf-8").count("there is no such file") == 1


def test_a_comparison_remembers_its_size_and_responses_are_only_counted(finished, tmp_path, monkeypatch):
    """Mistake: whoever counts responses of a demo with two seeds gets clips of a third one, and another table."""
    run, config, _, _ = finished
    copy = Run("copy", tmp_path)
    shutil.copytree(run.folder, copy.folder)
    assert compare.read_settings(copy) == {"sentences": 2, "seeds": [1, 2], "arms": [*arms.GENERATED_ARMS]}
    before = {row["file"] for row in read_rows(run.comparison / SCORES)}
    with monkeypatch.context() as patches:
        for module, name in ((synthesis, "synthesize"), (compare, "score"), (compare, "load_available")):
            patches.setattr(module, name, lambda *_: pytest.fail("clips were made or scored"), raising=False)
        page = compare.count_responses(copy, [copy.folder / "nobody.json"]).page
    assert page.read_text(encoding="utf-8").count("there is no such file") == 1
    assert "<dd dir=\"auto\">1, 2</dd>" in page.read_text(encoding="utf-8")
    compare.compare(run, load_voice(CPU, run.adapter, config.base), test_types=())
    assert {row["file"] for row in read_rows(run.comparison / SCORES)} == before
    shutil.rmtree(copy.comparison)
    with pytest.raises(KitError, match="holds no comparison, to which responses could belong"):
        compare.count_responses(copy, [copy.folder / "nobody.json"])


def test_a_second_comparison_of_a_run_is_refused(finished):
    """Mistake: two comparisons of one run write the same clips and scores at once."""
    run, config, _, _ = finished
    voice = load_voice(CPU, run.adapter, config.base)
    with lock(run.comparison), pytest.raises(KitError, match="comparison is in use by another process"):
        compare.compare(run, voice, 2, (1, 2))


@needs_metrics
def test_killed_scoring_resumes_with_the_memorization_check(finished, monkeypatch):
    """Mistake: all clips are scored already, and nothing checks whether they repeat training sentences."""
    use_toy_metrics(monkeypatch)
    run = finished[0]
    training = [utterance for utterance in manifest.read(run.data) if utterance.split == manifest.TRAIN]
    monkeypatch.setattr(metrics, "load", lambda: pytest.fail("the clips were scored again"))
    monkeypatch.setattr(synthesis, "save_rows", lambda folder, rows: rows)
    row = {"arm": "finetuned", "sentence": 1, "seed": 1, "text": "Hello.", "transcript": training[0].text,
           "metrics": TOY_METRICS.name, "file": "none"}
    plan = synthesis.Plan(run, run.comparison, [], (1,), [], training)
    assert compare.score(plan, [row], {}) == [row | {"memorized": True, "training_text": training[0].text}]


def test_a_second_run_changes_nothing(finished, capsys):
    """Mistake: a notebook that is run twice repeats all the work."""
    run, config, source, _ = finished
    modified = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}
    pipeline.run_all(source, config, run, CPU, 2, (1, 2))
    output = capsys.readouterr().out
    assert "used again" in output and "0 encoded" in output and "already trained" in output
    assert modified == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}


def test_commands_from_data_to_comparison(finished, toy, tmp_path, monkeypatch, capsys):
    """Mistake: a command has logic of its own, forgets the base given before, or prints more than its JSON."""
    _, _, source, _ = finished
    monkeypatch.chdir(tmp_path)

    def run_command(*arguments):
        capsys.readouterr()
        assert cli.main(arguments) == 0, capsys.readouterr().err
        return capsys.readouterr().out

    small = ("--rank", "4", "--steps", "2", "--eval-steps", "2", "--sample-steps", "0", "--learning-rate", "0.01",
             "--warmup-steps", "0")
    run_command("prepare", str(source), "--run", "one")
    run_command("tokenize", "--run", "one", "--base", toy)
    dry = run_command("train", "--run", "one", "--dry-run", "--json", *small)
    dry = json.loads(dry)
    assert {name: part["modules"] for name, part in dry.pop("parts").items()} == {"backbone": 14, "depth": 14, "codec": 0}
    assert dry == {"trainable": 6144, "clips": 12, "steps": 2, "epochs": 2.0, "device": "cpu", "dtype": "float32",
                   "backend": "peft"}
    run_command("train", "--run", "one", *small)
    assert "hello.wav" in run_command("speak", "Hello you.", "--run", "one", "--out", "hello.wav")
    assert soundfile.info("hello.wav").samplerate == 24_000
    compared = run_command("compare", "--run", "one", "--sentences", "1", "--seeds", "1")
    *_, location, last, following = compared.splitlines()
    assert following == 'Next: tts-kit speak "Hello there." --run one'
    assert location.startswith("Open file:") and location.endswith("runs/one/comparison/index.html")
    assert last.startswith("Voice: ") or "not measured" in last, "a sentence ends it"


@pytest.mark.parametrize(("arguments", "message"), [
    (("train", "--run", "none"), "holds neither data nor codes"),
    (("tokenize", "--run", "../etc"), "run name '../etc'"),
    (("prepare", "no-such-folder"), "no-such-folder"),
    (("train", "--rank", "0"), "rank is 0; it must be above 0"),
    (("speak", "Hi.", "--run", "none", "--no-adapter", "--base", "tpy"), "tpy is no folder here, and no hub id"),
    (("speak", "Hi.", "--reference", "a.wav"), "give --reference FILE and --reference-text TEXT"),
    (("compare", "--run", "none", "--base", "nowhere"), "nothing was trained there yet"),
    (("speak", "Hi.", "--run", "typo"), "nothing was trained there yet"),
])
def test_a_user_error_is_one_message_and_status_1(tmp_path, monkeypatch, capsys, arguments, message):
    """Mistake: a traceback, or exit status 0, for an error that the user can correct."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_the_module_is_a_command_line():
    """Mistake: python -m tts_kit ends with status 0 after an error, or shows a traceback."""
    out = subprocess.run([sys.executable, "-m", "tts_kit", "consent", "--run", "../etc"], capture_output=True, text=True,
                         cwd=SAMPLE_DATA.parent, check=False)
    assert out.returncode == 1 and "run name '../etc'" in out.stderr and "Traceback" not in out.stderr


def test_without_a_command_the_commands_are_listed(capsys):
    """Mistake: "the following arguments are required: command", without a list of the commands."""
    assert cli.main([]) == 2
    output = capsys.readouterr().out
    assert all(name in output for name in ("doctor", "prepare", "tokenize", "train", "speak", "compare", "demo"))


def test_an_adapter_trained_on_other_clips_is_refused(finished, tmp_path):
    """Mistake: data is prepared again with other held-out clips, and the old adapter is evaluated on its training clips."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    index = copy.codes / "index.jsonl"
    index.write_text(index.read_text().replace('"train"', '"held_out"', 1))
    with pytest.raises(KitError, match="was trained on other clips"):
        compare.compare(copy, load_voice(CPU, copy.adapter), 1, (1,))
