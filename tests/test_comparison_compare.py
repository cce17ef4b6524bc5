"""Sentences in every arm, resumable, on one page; and the whole story by verbs."""

import dataclasses
import json
import shutil
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from tts_kit import cli, device, pipeline
from tts_kit.comparison import arms, compare, listening_test, synthesis, verdict
from tts_kit.comparison.synthesis import SCORES
from tts_kit.config import Config
from tts_kit.data import manifest
from tts_kit.errors import KitError
from tts_kit.evaluation import backends, metrics
from tts_kit.evaluation.metrics import MetricModels
from tts_kit.generation.sampling import Sampling
from tts_kit.io import read_rows
from tts_kit.run import SAMPLE_DATA, SAMPLE_VOICE, Run
from tts_kit.speech.voice import load_voice
from tts_kit.training import generation_eval

CPU = device.choose("cpu")
TOY_METRICS = MetricModels({"wer": "a toy", "sim": "a toy"}, lambda wave: "nothing but noise",
                           lambda wave: np.abs(np.fft.rfft(wave[:16_000])[:64]) + 1e-3, lambda wave: 3.0)
"""Whisper takes a quarter of a minute for each clip of an untrained model."""
needs_metrics = pytest.mark.skipif(bool(backends.missing_packages()), reason=f"metric models are not installed: "
                                                                             f"{metrics.INSTALL}")


def use_toy_metrics(monkeypatch):
    monkeypatch.setattr(metrics, "load_available", lambda: TOY_METRICS.name)
    monkeypatch.setattr(metrics, "load", lambda: TOY_METRICS)


@pytest.fixture(scope="module")
def finished(loud, tmp_path_factory):
    """All stages run once on fifteen clips of the bundled voice, by a toy whose speech depends on what it hears."""
    root = tmp_path_factory.mktemp("runs")
    source = root / "source"
    source.mkdir()
    rows = (SAMPLE_VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    some = [*rows[1:7], *rows[8:14], *rows[15:18]]  # of three recordings, the last the shortest
    for row in some:
        shutil.copy(SAMPLE_VOICE / row.split(",")[0], source)
    (source / "metadata.csv").write_text("\n".join([rows[0], *some]) + "\n", encoding="utf-8")
    config = Config(base=loud, rank=4, alpha=8, steps=3, warmup_steps=0, learning_rate=0.01, tokens_per_batch=400,
                    eval_steps=3, save_steps=3, sample_steps=0)
    run = Run("finished", root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not backends.missing_packages():
            use_toy_metrics(monkeypatch)
        page = pipeline.run_all(source, config, run, CPU, sentences=2, seeds=(1, 2))
    return run, config, source, page


@pytest.fixture(autouse=True)
def no_metric_models(finished, monkeypatch):
    """The run is scored once."""
    monkeypatch.setenv("TTS_KIT_METRICS", "none")


def test_every_arm_sentence_and_seed_is_there(finished):
    """Mistake: an arm, a seed or the ceiling is left out, or a row points to no clip."""
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


def test_the_arms_are_what_they_are_called(finished):
    """Mistake: base hears the reference, or tuned speaks without its adapter: two columns of the same clips."""
    run, _, _, _ = finished
    rows = read_rows(run.comparison / SCORES)
    content = {(row["sentence"], row["seed"], row["arm"]): (run.comparison / row["file"]).read_bytes() for row in rows}
    assert len(set(content.values())) == len(content)


def test_held_out_sentences_are_compared_and_the_reference_is_not_one(finished):
    """Mistake: the model is judged on sentences it was trained on, or hears the answer as its reference."""
    run, _, _, _ = finished
    utterances = manifest.read(run.data)
    held_out = {one.text for one in utterances if one.split == "held_out"}
    assert {row["text"] for row in read_rows(run.comparison / SCORES)} <= held_out
    assert synthesis.pick_references(utterances)[0].text not in held_out
    only_held_out_fits = [dataclasses.replace(one, seconds=6.0 if one.split == "held_out" else 1.0)
                          for one in utterances]
    assert synthesis.pick_references(only_held_out_fits)[0].text not in held_out
    assert not {one.text for one in synthesis.pick_references(only_held_out_fits, 3.0, 8)} & held_out


def test_a_comparison_can_be_extended_and_not_emptied(finished, tmp_path):
    """Mistake: more sentences or seeds mean to begin anew; or nothing at all is compared, with a traceback."""
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


def test_a_stopped_comparison_makes_only_what_is_missing(finished, monkeypatch):
    """Mistake: an hour of clips is made again after a disconnect, or a lost clip is never made again."""
    run, config, _, _ = finished
    before = {row["file"]: (run.comparison / row["file"]).stat().st_mtime_ns
              for row in read_rows(run.comparison / SCORES)}
    lost = "clips/finetuned/002-1.flac"
    content = soundfile.read(run.comparison / lost, dtype="int16")[0].astype(int)
    (run.comparison / lost).unlink()
    voice = load_voice(CPU, run.adapter, config.base)
    compare.compare(run, voice, 2, (1, 2))
    after = {name: (run.comparison / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == [lost]
    again = soundfile.read(run.comparison / lost, dtype="int16")[0]
    # same seed, same codes; decoded in another batch, a sample may round to its neighbour
    assert again.shape == content.shape and abs(again - content).max() <= 1


def test_a_comparison_with_other_settings_is_not_mixed_in(finished):
    """Mistake: clips of two temperatures stand side by side under one name."""
    run, config, _, _ = finished
    voice = load_voice(CPU, run.adapter, config.base)
    voice.sampling = Sampling(0.1, 0.1, 5)
    with pytest.raises(KitError, match="another temperature, another depth temperature, another top k.*Move that folder"):
        compare.compare(run, voice, 2, (1, 2))


@pytest.mark.parametrize(("text", "wanted"), [
    ("finetuned:strength=0.5,temperature=0.3", (True, False, "finetuned:strength=0.5,temperature=0.3")),
    ("finetuned+clone:references=3", (True, True, "finetuned+clone:references=3")), ("base", (False, False, "base")),
    ("clone:", (False, True, "clone")), ("tuned+clone:strength=2", (True, True, "finetuned+clone:strength=2"))])
def test_an_arm_is_what_is_written(text, wanted):
    """Mistake: a setting that is read and not applied, or one arm under two names."""
    arm = arms.parse(text)
    assert (arm.info.adapter, arm.info.reference, arm.name) == wanted


@pytest.mark.parametrize(("text", "message"), [
    ("tunned", "no arm 'tunned'.*base, clone, finetuned.*kokoro.*folder:NAME=PATH"),
    ("finetuned:loudness=3", "no setting 'loudness'"),
    ("clone:strength=0.5", "has no strength, which is a setting of finetuned and finetuned"),
    ("base:references=2", "has no references"),
    ("finetuned:strength=loud", "strength is 'loud'; wanted a number from 0 to 10"), ("clone:references=2.5", "an integer"),
    ("clone:references=9", "from 1 to 8"), ("finetuned:strength=1,strength=2", "sets strength twice"),
    ("finetuned:temperature=nan", "temperature is 'nan'"), ("../../etc/passwd", "there is no arm"),
    ("kokoro:strength=1", "there is no arm")])
def test_an_arm_that_cannot_be_is_named(text, message):
    """Mistake: a typing error that compares the usual settings with themselves, or a traceback."""
    with pytest.raises(KitError, match=message):
        compare.parse_arm(text)


def test_settings_have_an_effect_and_are_undone(finished, tmp_path):
    """Mistake: strength or an older checkpoint stays in the model for the arms after it, or is not heard at all."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter", "training"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    voice = load_voice(CPU, copy.adapter)
    kept = copy.training / "checkpoint-3" / "adapter_model.safetensors"
    assert kept.is_file()
    wanted = ("finetuned", "finetuned:strength=0", "base", "finetuned:strength=3", "finetuned:checkpoint=3", "clone",
              "clone:references=2", "clone:reference_seconds=1")
    compare.compare(copy, voice, 1, (1,), [*wanted[1:], wanted[0]], test_types=())
    clip = {row["arm"]: (copy.comparison / row["file"]).read_bytes() for row in read_rows(copy.comparison / SCORES)}
    assert clip["finetuned:strength=0"] == clip["base"] != clip["finetuned"] == clip["finetuned:checkpoint=3"]
    assert len({clip[arm] for arm in ("finetuned", "finetuned:strength=3", "base", "clone", "clone:references=2")}) == 5
    with pytest.raises(KitError, match="no adapter was saved at step 77 .*saved were those of steps 3"):
        compare.compare(copy, voice, 1, (1,), ["finetuned:checkpoint=77"], test_types=())


def test_a_sweep_uses_sentences_that_the_comparison_does_not_use(finished, monkeypatch, capsys):
    """Mistake: settings are tuned on the sentences or the recordings that score the result afterwards."""
    run, _, _, _ = finished
    voice = load_voice(CPU, run.adapter)
    page = compare.run_sweep(run, voice, {"strength": [0.5, 2.0]}, "finetuned", 2, (1,)).page
    rows = read_rows(run.folder / "sweep" / SCORES)
    assert page == run.folder / "sweep" / "index.html"
    assert [row["arm"] for row in rows] == ["finetuned", "finetuned:strength=0.5", "finetuned:strength=2"] * 2
    assert not {row["text"] for row in rows} & {one.text for one in manifest.read(run.data)}
    with pytest.raises(KitError, match="nothing to sweep"):
        compare.run_sweep(run, voice, {})
    texts = [row["text"] for row in rows[::3]]
    monkeypatch.setattr(generation_eval, "read_sentences", lambda utterances: texts)
    compare.run_sweep(run, voice, {"strength": [0.5, 0.5]}, "finetuned", 50, (1,))
    assert "50 sentences were asked for; there are 2" in capsys.readouterr().out


def test_clips_of_another_system_are_compared_and_a_missing_one_counts(finished, tmp_path):
    """Mistake: a system is judged on the sentences that it managed, or its files are touched."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    shutil.copy(next(run.comparison.glob("clips/ground_truth/001.flac")), theirs / "001.flac")
    voice = load_voice(CPU, copy.adapter)
    page = compare.compare(copy, voice, 2, (1,), ["finetuned", f"folder:them={theirs}"], test_types=()).page
    rows = [row for row in read_rows(copy.comparison / SCORES) if row["arm"] == "them"]
    assert [(row["sentence"], (copy.comparison / row["file"]).is_file()) for row in rows] == [(1, True), (2, False)]
    assert rows[1]["problem"] and "them" in page.read_text(encoding="utf-8")
    assert [path.name for path in theirs.iterdir()] == ["001.flac"]
    assert "the metric models are not installed" in page.read_text(encoding="utf-8")


@needs_metrics
def test_a_clip_that_another_system_lacks_is_a_failure(finished, tmp_path, monkeypatch):
    """Mistake: what a system could not say is dropped, and it wins by saying little."""
    use_toy_metrics(monkeypatch)
    (tmp_path / "theirs").mkdir()
    run, _, _, _ = finished
    shutil.copy(run.comparison / "clips/ground_truth/001.flac", tmp_path / "theirs")
    sentences = [synthesis.Sentence("Hello there."), synthesis.Sentence("Who is it?")]
    plan = synthesis.Plan(run, tmp_path / "out", sentences, (1,), [compare.parse_arm(f"folder:them={tmp_path / 'theirs'}")],
                      manifest.read(run.data))
    rows, lost = synthesis.synthesize(plan, load_voice(CPU, run.adapter))
    judged = compare.score(plan, rows, {one.text: one.audio for one in plan.utterances[:2]})
    assert lost == [] and [row["failure"] for row in judged] == ["", "missing"]
    assert judged[1]["word_errors"] == judged[1]["ref_words"] == 3 and judged[1]["sim"] == 0
    both = [*judged, *(row | {"arm": "finetuned"} for row in judged)]
    assert " ".join(verdict.decide(both, [("finetuned", "them")]).details).count("(missing)") == 2


def test_other_clips_of_a_system_are_not_taken_for_the_first_ones(finished, tmp_path):
    """Mistake: a clip that a system lacks now is judged as the one it gave before, takes that are gone stay, or what did not
    change is judged again."""
    run, _, _, _ = finished
    voice, real = load_voice(CPU, run.adapter), run.comparison / "clips" / "ground_truth"
    sentences, place = [synthesis.Sentence("Hello there."), synthesis.Sentence("Who is it?")], tmp_path / "out"
    for name, files in (("first", {"001.flac": "001", "002.flac": "002"}), ("last", {"001.flac": "001"}),
                        ("then", {"001-1.flac": "001", "001-2.flac": "002"})):
        (tmp_path / name).mkdir()
        for file, source in files.items():
            shutil.copy(real / f"{source}.flac", tmp_path / name / file)

    def taken(name):
        them = compare.parse_arm(f"folder:them={tmp_path / name}")
        return synthesis.synthesize(synthesis.Plan(run, place, sentences, (1,), [them], manifest.read(run.data)), voice)[0]

    synthesis.save_rows(place, [row | {"metrics": "these"} for row in taken("first")])
    assert [row.get("metrics") for row in taken("first")] == ["these", "these"]
    assert [(row["file"], "problem" in row) for row in taken("then")] == [
        ("clips/them/001-1.flac", False), ("clips/them/001-2.flac", False), ("clips/them/002-0.flac", True)]
    assert not (place / "clips/them/002-0.flac").exists()
    assert [row["file"] for row in taken("last")] == ["clips/them/001-0.flac", "clips/them/002-0.flac"]


def test_data_made_anew_is_not_judged_by_the_old_adapter(finished, tmp_path):
    """Mistake: `data` is run again with another split and `tokenize` is not, and what was learnt is held out now."""
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


def test_votes_are_counted_and_leave_the_test_as_it_is(finished, monkeypatch):
    """Mistake: who reads the first responses makes another listening test, and those that come later are refused."""
    run, config, _, _ = finished
    voice = load_voice(CPU, run.adapter, config.base)
    compare.compare(run, voice, 2, (1, 2), test_types=("ab",))
    key = (run.comparison / listening_test.KEY).read_bytes()
    page = compare.compare(run, voice, 2, (1, 2), responses=[run.folder / "nobody.json"]).page
    assert (run.comparison / listening_test.KEY).read_bytes() == key
    assert page.read_text(encoding="utf-8").count("there is no such file") == 1


@needs_metrics
def test_scoring_that_was_killed_before_the_memorization_check_goes_on(finished, monkeypatch):
    """Mistake: all clips are scored already, so nobody ever checks whether they repeat training sentences."""
    use_toy_metrics(monkeypatch)
    run = finished[0]
    training = [one for one in manifest.read(run.data) if one.split == manifest.TRAIN]
    monkeypatch.setattr(metrics, "load", lambda: pytest.fail("the clips were scored again"))
    monkeypatch.setattr(synthesis, "save_rows", lambda folder, rows: rows)
    row = {"arm": "finetuned", "sentence": 1, "seed": 1, "text": "Hello.", "transcript": training[0].text,
           "metrics": TOY_METRICS.name, "file": "none"}
    plan = synthesis.Plan(run, run.comparison, [], (1,), [], training)
    assert compare.score(plan, [row], {}) == [row | {"memorized": True, "training_text": training[0].text}]


def test_stages_run_again_change_nothing(finished, capsys):
    """Mistake: a notebook run twice makes everything twice."""
    run, config, source, _ = finished
    stamps = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}
    pipeline.run_all(source, config, run, CPU, 2, (1, 2))
    said = capsys.readouterr().out
    assert "used again" in said and "0 encoded" in said and "already trained" in said
    assert stamps == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}


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
    assert json.loads(dry) == {"trainable": 6144, "modules": {"backbone": 14, "depth": 14, "codec": 0},
                               "clips": 12, "steps": 2, "epochs": 2.0, "device": "cpu", "dtype": "float32",
                               "backend": "peft"}
    run_command("train", "--run", "one", *small)
    assert "hello.wav" in run_command("speak", "Hello you.", "--run", "one", "--out", "hello.wav")
    assert soundfile.info("hello.wav").samplerate == 24_000
    compared = run_command("compare", "--run", "one", "--sentences", "1", "--seeds", "1")
    *_, where, last = compared.splitlines()
    assert where.startswith("Open file:") and where.endswith("runs/one/comparison/index.html")
    assert last.startswith("In short: ") or "not measured" in last, "a sentence ends it"


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
def test_a_command_that_cannot_go_on_says_one_thing_and_fails(tmp_path, monkeypatch, capsys, arguments, message):
    """Mistake: a traceback, or exit status 0, for what a person can put right."""
    monkeypatch.chdir(tmp_path)
    assert cli.main(arguments) == 1
    assert message in capsys.readouterr().err


def test_the_module_is_a_command_line():
    """Mistake: python -m tts_kit ends with status 0 after an error, or shows a traceback."""
    out = subprocess.run([sys.executable, "-m", "tts_kit", "consent", "--run", "../etc"], capture_output=True, text=True,
                         cwd=SAMPLE_DATA.parent, check=False)
    assert out.returncode == 1 and "run name '../etc'" in out.stderr and "Traceback" not in out.stderr


def test_without_a_command_the_commands_are_shown(capsys):
    """Mistake: "the following arguments are required: verb", and no word of which there are."""
    assert cli.main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("doctor", "prepare", "tokenize", "train", "speak", "compare", "demo"))


def test_an_adapter_of_other_clips_is_not_judged_by_these(finished, tmp_path):
    """Mistake: data is made anew with other held-out clips, and the old adapter is judged on what it has learnt."""
    run, _, _, _ = finished
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    index = copy.codes / "index.jsonl"
    index.write_text(index.read_text().replace('"train"', '"held_out"', 1))
    with pytest.raises(KitError, match="was trained on other clips"):
        compare.compare(copy, load_voice(CPU, copy.adapter), 1, (1,))
