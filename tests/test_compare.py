"""Sentences in every arm, resumable, on one page; and the whole story by verbs."""

import dataclasses
import json
import shutil
import subprocess
import sys

import pytest
import soundfile

from tts_kit import __main__ as verbs
from tts_kit import data, runtime, story
from tts_kit.comparison import arms
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run, read_rows
from tts_kit.speech import speak

CPU = runtime.choose("cpu")


@pytest.fixture(scope="module")
def told(loud, tmp_path_factory):
    """The whole story told once on fifteen clips of the bundled voice, by a toy whose speech depends on what it hears."""
    root = tmp_path_factory.mktemp("runs")
    source = root / "source"
    source.mkdir()
    rows = (story.VOICE / "metadata.csv").read_text(encoding="utf-8").splitlines()
    some = [*rows[1:7], *rows[8:14], *rows[15:18]]  # of three recordings, the last the shortest
    for row in some:
        shutil.copy(story.VOICE / row.split(",")[0], source)
    (source / "metadata.csv").write_text("\n".join([rows[0], *some]) + "\n", encoding="utf-8")
    recipe = Recipe(base=loud, rank=4, alpha=8, steps=3, warmup_steps=0, learning_rate=0.01, tokens_per_batch=400,
                    evaluate_every=3, save_every=3, sample_every=0)
    run = Run("told", root)
    page = story.tell(source, recipe, run, CPU, sentences=2, seeds=(1, 2))
    return run, recipe, source, page


def test_every_arm_sentence_and_seed_is_there(told):
    """Mistake: an arm, a seed or the ceiling is left out, or a row points to no clip."""
    run, _, _, page = told
    rows = read_rows(run.comparison / arms.SCORES)
    counted = {arm: sum(row["arm"] == arm for row in rows) for arm in (*arms.GIVEN, *arms.SPOKEN)}
    assert counted == {"real": 2, "codec": 2, "base": 4, "clone": 4, "tuned": 4, "tuned+clone": 4}
    for row in rows:
        assert soundfile.info(run.comparison / row["file"]).duration == pytest.approx(row["seconds"], abs=0.01)
        if row["arm"] in arms.SPOKEN:
            assert isinstance(row["stopped"], bool) and row["wall_seconds"] > 0 and row["takes"] == 1
    assert page == run.comparison / "index.html" and "tuned+clone" in page.read_text(encoding="utf-8")


def test_the_arms_are_what_they_are_called(told):
    """Mistake: base hears the reference, or tuned speaks without its adapter: two columns of the same clips."""
    run, _, _, _ = told
    rows = read_rows(run.comparison / arms.SCORES)
    clips = {(row["sentence"], row["seed"], row["arm"]): (run.comparison / row["file"]).read_bytes() for row in rows}
    assert len(set(clips.values())) == len(clips)


def test_held_out_sentences_are_compared_and_the_reference_is_not_one(told):
    """Mistake: the model is judged on sentences it was trained on, or hears the answer as its reference."""
    run, _, _, _ = told
    utterances = data.read(run.data)
    held_out = {each.text for each in utterances if each.split == "held_out"}
    assert {row["text"] for row in read_rows(run.comparison / arms.SCORES)} <= held_out
    assert arms.pick_reference(utterances).text not in held_out
    only_held_out_fits = [dataclasses.replace(each, seconds=6.0 if each.split == "held_out" else 1.0)
                          for each in utterances]
    assert arms.pick_reference(only_held_out_fits).text not in held_out


def test_a_comparison_can_be_extended_and_not_emptied(told, tmp_path):
    """Mistake: more sentences or seeds mean to begin anew; or nothing at all is compared, with a traceback."""
    run, _, _, _ = told
    voice = speak.load_voice(CPU, run.adapter)
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    for sentences, seeds in ((1, (1, 1)), (2, (2,))):
        page = arms.compare(copy, voice, sentences, seeds)
    spoken = [(row["sentence"], row["seed"]) for row in read_rows(copy.comparison / arms.SCORES) if row["arm"] == "base"]
    assert spoken == [(1, 1), (1, 2), (2, 2)]
    assert "<dd dir=\"auto\">1, 2</dd>" in page.read_text(encoding="utf-8")
    with pytest.raises(Problem, match="leave nothing to compare"):
        arms.compare(copy, voice, 0, (1,))


def test_a_stopped_comparison_makes_only_what_is_missing(told, monkeypatch):
    """Mistake: an hour of clips is made again after a disconnect, or a lost clip is never made again."""
    run, recipe, _, _ = told
    before = {row["file"]: (run.comparison / row["file"]).stat().st_mtime_ns
              for row in read_rows(run.comparison / arms.SCORES)}
    lost = "clips/tuned/002-1.flac"
    content = soundfile.read(run.comparison / lost, dtype="int16")[0].astype(int)
    (run.comparison / lost).unlink()
    voice = speak.load_voice(CPU, run.adapter, recipe.base)
    arms.compare(run, voice, 2, (1, 2))
    after = {name: (run.comparison / name).stat().st_mtime_ns for name in before}
    assert [name for name in before if before[name] != after[name]] == [lost]
    again = soundfile.read(run.comparison / lost, dtype="int16")[0]
    # same seed, same codes; decoded in another batch, a sample may round to its neighbour
    assert again.shape == content.shape and abs(again - content).max() <= 1


def test_a_comparison_with_other_settings_is_not_mixed_in(told):
    """Mistake: clips of two temperatures stand side by side under one name."""
    run, recipe, _, _ = told
    voice = speak.load_voice(CPU, run.adapter, recipe.base)
    voice.sampling = speak.Sampling(0.1, 0.1, 5)
    with pytest.raises(Problem, match="another temperature, another depth temperature, another top k.*Move that folder"):
        arms.compare(run, voice, 2, (1, 2))


def test_stages_run_again_change_nothing(told, capsys):
    """Mistake: a notebook run twice makes everything twice."""
    run, recipe, source, _ = told
    stamps = {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}
    story.tell(source, recipe, run, CPU, 2, (1, 2))
    said = capsys.readouterr().out
    assert "used again" in said and "0 encoded" in said and "already trained" in said
    assert stamps == {path: path.stat().st_mtime_ns for path in run.folder.rglob("*.flac")}


def verb(folder, *arguments):
    return subprocess.run([sys.executable, "-m", "tts_kit", *arguments], cwd=folder, capture_output=True, text=True,
                          check=False)


@pytest.fixture
def workplace(tmp_path):
    """A folder from which the verbs can be called."""
    (tmp_path / "tts_kit").symlink_to(story.SAMPLES.parent / "tts_kit")
    return tmp_path


def test_verbs_from_data_to_comparison(told, workplace, toy):
    """Mistake: a verb has logic of its own, forgets the base given before, or prints more than its JSON."""
    _, _, source, _ = told
    small = ("--rank", "4", "--steps", "2", "--evaluate-every", "2", "--sample-every", "0", "--learning-rate", "0.01",
             "--warmup-steps", "0")
    assert verb(workplace, "data", str(source), "--run", "one").returncode == 0
    assert verb(workplace, "tokenize", "--run", "one", "--base", toy).returncode == 0
    dry = verb(workplace, "train", "--run", "one", "--dry-run", "--json", *small)
    assert json.loads(dry.stdout) == {"trainable": 6144, "modules": {"backbone": 14, "depth": 14, "codec": 0},
                                      "clips": 12, "steps": 2, "device": "cpu", "dtype": "float32", "engine": "plain"}
    trained = verb(workplace, "train", "--run", "one", *small)
    assert trained.returncode == 0, trained.stderr
    spoken = verb(workplace, "speak", "Hello you.", "--run", "one", "--out", "hello.wav")
    assert "hello.wav" in spoken.stdout and soundfile.info(workplace / "hello.wav").samplerate == 24_000, spoken.stderr
    compared = verb(workplace, "compare", "--run", "one", "--sentences", "1", "--seeds", "1")
    *_, where, last = compared.stdout.splitlines()
    assert where.startswith("Open file:") and where.endswith("runs/one/comparison/index.html"), compared.stderr
    assert last.startswith("In short: ") or "not measured" in last, "a sentence ends it"


@pytest.mark.parametrize(("arguments", "message"), [
    (("train", "--run", "none"), "holds neither data nor codes"),
    (("tokenize", "--run", "../etc"), "run name '../etc'"),
    (("data", "no-such-folder"), "no-such-folder"),
    (("train", "--rank", "0"), "rank is 0; it must be a number above 0"),
    (("speak", "Hi.", "--run", "none", "--untuned", "--base", "tpy"), "tpy is no folder here, and no hub id"),
    (("speak", "Hi.", "--reference", "a.wav"), "give --reference FILE and --reference-text TEXT"),
    (("compare", "--run", "none", "--base", "nowhere"), "nothing was trained there yet"),
    (("speak", "Hi.", "--run", "typo"), "nothing was trained there yet"),
])
def test_a_verb_that_cannot_go_on_says_one_thing_and_fails(workplace, arguments, message):
    """Mistake: a traceback, or exit status 0, for what a person can put right."""
    out = verb(workplace, *arguments)
    assert out.returncode == 1
    assert message in out.stderr and "Traceback" not in out.stderr


def test_without_a_verb_the_verbs_are_shown(capsys):
    """Mistake: "the following arguments are required: verb", and no word of which there are."""
    assert verbs.main([]) == 2
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("doctor", "data", "tokenize", "train", "speak", "compare", "demo"))


def test_an_adapter_of_other_clips_is_not_judged_by_these(told, tmp_path):
    """Mistake: data is made anew with other held-out clips, and the old adapter is judged on what it has learnt."""
    run, _, _, _ = told
    copy = Run("copy", tmp_path)
    for stage in ("data", "codes", "adapter"):
        shutil.copytree(getattr(run, stage), getattr(copy, stage))
    index = copy.codes / "index.jsonl"
    index.write_text(index.read_text().replace('"train"', '"held_out"', 1))
    with pytest.raises(Problem, match="was trained on other clips"):
        arms.compare(copy, speak.load_voice(CPU, copy.adapter), 1, (1,))


def test_every_recipe_field_is_an_option_of_some_verb_with_its_explanation():
    """Mistake: a field that can only be changed by editing code, or an option that explains nothing."""
    actions = {action.dest: action for sub in verbs.parser()._subparsers._group_actions[0].choices.values()
               for action in sub._actions}
    for field in dataclasses.fields(Recipe):
        assert len(actions[field.name].help) > 20, field.name
