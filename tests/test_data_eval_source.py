"""Held-out clips that come from a source of their own."""

import dataclasses
from pathlib import Path

import pytest
import soundfile
from test_data_prepare import RATE, contents, voice, write_clips, write_csv

from tts_kit import cli
from tts_kit.config import Config
from tts_kit.data import manifest, prepare
from tts_kit.errors import KitError
from tts_kit.run import Run


@pytest.fixture
def run(tmp_path):
    return Run("voice", tmp_path / "runs")


def judged(folder: Path, first: int = 50, count: int = 3, **more) -> Path:
    """A folder of other clips than those to learn, each with a text of its own."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(first, first + count):
        soundfile.write(folder / f"late_{number}.wav", voice(number), RATE)
        rows.append({"file_name": f"late_{number}.wav", "text": f"Judged number {number}", **more})
    write_csv(folder, rows)
    return folder


def learned(folder: Path, **more) -> Path:
    """Eight clips to learn."""
    write_csv(folder, [row | more for row in write_clips(folder)])
    return folder


def test_what_is_given_is_held_out_and_all_else_is_learned(tmp_path, run, capsys):
    """Mistake: a second share is held out beside what was given, or one that was given is learned."""
    source, other = learned(tmp_path / "mine"), judged(tmp_path / "late")
    utterances = prepare.prepare(source, run, Config(held_out=0.5), eval_source=other)
    assert [each.split for each in utterances] == ["train"] * 8 + ["held_out"] * 3
    assert [each.file for each in utterances[8:]] == ["late_50.wav", "late_51.wav", "late_52.wav"]
    assert len({each.id for each in utterances}) == 11 and all(each.audio.is_file() for each in utterances)
    said = capsys.readouterr().out
    assert "8 to train on; held out: 3 clips from 1 session." in said and "share their" not in said
    assert manifest.read(run.data) == utterances
    assert prepare.prepare(source, run, Config(held_out=0.5), eval_source=f"{other}/") == utterances


def test_rows_of_both_with_one_number_stay_apart(tmp_path, run):
    """Mistake: row 1 of one table overwrites the clip of row 1 of the other, when both files have one name."""
    source, other = learned(tmp_path / "mine"), tmp_path / "late"
    (other / "clips").mkdir(parents=True)
    for number in (1, 2):
        soundfile.write(other / f"clips/tapeA_{number:03d}.wav", voice(60 + number), RATE)
    write_csv(other, [{"file_name": f"clips/tapeA_{number:03d}.wav", "text": f"Other {number}"} for number in (1, 2)])
    utterances = prepare.prepare(source, run, Config(), eval_source=other)
    clips = {each.audio.read_bytes() for each in utterances}
    assert len(clips) == len(utterances) == 10


def test_two_tables_in_one_folder(tmp_path, run):
    """Mistake: who has a list of test clips beside the list of the others has to move files."""
    folder = learned(tmp_path / "mine")
    judged(folder / "more")
    rows = [{"file_name": f"more/late_{number}.wav", "text": f"Judged number {number}"} for number in (50, 51)]
    write_csv(folder, rows, name="test.csv")
    utterances = prepare.prepare(folder, run, Config(), eval_source=folder / "test.csv")
    assert [each.split for each in utterances].count("held_out") == 2 and len(utterances) == 10


def refused(said: str, source: Path, run: Run, **more) -> None:
    """Nothing is written, and the message says this."""
    with pytest.raises(KitError, match=said):
        prepare.prepare(source, run, **{"config": Config(), **more})
    assert not run.data.exists()


def test_a_clip_in_both_is_refused(tmp_path, run):
    """Mistake: the model is judged by what it learned."""
    source, other = learned(tmp_path / "mine"), judged(tmp_path / "late")
    soundfile.write(other / "late_51.wav", voice(3), RATE)
    refused(r"held-out metadata.csv row 2: late_51.wav sounds exactly like clips/tapeA_003.wav of row 3", source, run,
            eval_source=other)


@pytest.mark.parametrize("name", [".", "metadata.csv"])
def test_the_source_itself_is_no_other_source(tmp_path, run, name):
    """Mistake: one folder given twice, and a complaint about every clip of it."""
    source = learned(tmp_path / "mine")
    refused("is the source itself", source, run, eval_source=source / name)
    refused("is the source itself", source / "metadata.csv", run, eval_source=source / name)


@pytest.mark.parametrize(("count", "said"), [(1, "8 usable clips to train on and 1 held out; the minimum is 4 and 2")])
def test_too_few_are_refused(tmp_path, run, count, said):
    """Mistake: a verdict from one sentence."""
    refused(said, learned(tmp_path / "mine"), run, eval_source=judged(tmp_path / "late", count=count))


@pytest.mark.parametrize(("mine", "theirs", "said"), [
    ({"source": "anna"}, {"source": "bert"}, "held-out metadata.csv names the speakers bert, and no clip of anna"),
    ({}, {"source": "bert"}, "names the speakers bert, and no clip of a speaker without name"),
    ({"source": "anna"}, {}, "held-out metadata.csv row 1: late_50.wav names no speaker"),
])
def test_another_speaker_does_not_judge(tmp_path, run, mine, theirs, said):
    """Mistake: one voice is learned and another one is listened to."""
    refused(said, learned(tmp_path / "mine", **mine), run, eval_source=judged(tmp_path / "late", **theirs))


def test_the_speaker_is_chosen_where_one_learns(tmp_path, run, capsys):
    """Mistake: held-out clips of several speakers make the only speaker of the source a question."""
    source, other = learned(tmp_path / "mine", source="anna"), judged(tmp_path / "late", source="anna")
    table = (other / "metadata.csv").read_text(encoding="utf-8")
    soundfile.write(other / "bert.wav", voice(70), RATE)
    (other / "metadata.csv").write_text(table + "bert.wav,Not hers,bert\n", encoding="utf-8")
    utterances = prepare.prepare(source, run, Config(), eval_source=other)
    assert "1 clips of other speakers are left out" in capsys.readouterr().out
    assert {(each.speaker, each.source) for each in utterances} == {("anna", "0")} and len(utterances) == 11


@pytest.mark.parametrize(("more", "said"), [
    ({"session": "tapeA"}, "3 of 3 held-out clips share their session with training clips (late_50.wav: tapeA)"),
    ({"text": "sentence number 5"}, "3 of 3 held-out clips share their text with training clips"),
])
def test_what_training_hears_of_the_judged_is_said(tmp_path, run, capsys, more, said):
    """Mistake: neighbours of training clips, or their very sentences, make the result look better, and nobody says so."""
    other = judged(tmp_path / "late", **more)
    prepare.prepare(learned(tmp_path / "mine"), run, Config(), eval_source=other)
    assert said in capsys.readouterr().out


@pytest.mark.parametrize("before", ["given", "shared"])
def test_held_out_clips_belong_to_the_data(tmp_path, run, before):
    """Mistake: clips held out until now are learned after a rerun, while the adapter keeps its old judgement."""
    source, other = learned(tmp_path / "mine"), judged(tmp_path / "late")
    ways = [{"eval_source": other}, {}][::1 if before == "given" else -1]
    prepare.prepare(source, run, Config(), **ways[0])
    kept = contents(run.data)
    with pytest.raises(KitError, match="made with eval_source"):
        prepare.prepare(source, run, Config(), **ways[1])
    assert contents(run.data) == kept


def test_a_changed_held_out_clip_is_seen(tmp_path, run):
    """Mistake: only the source is looked at when the data is used again."""
    source, other = learned(tmp_path / "mine"), judged(tmp_path / "late")
    prepare.prepare(source, run, Config(), eval_source=other)
    soundfile.write(other / "late_50.wav", voice(90), RATE)
    with pytest.raises(KitError, match="changed since"):
        prepare.prepare(source, run, Config(), eval_source=other)


def test_the_verb_takes_a_share_or_a_source(tmp_path, monkeypatch, capsys):
    """Mistake: --held-out 0.3 is given beside --eval-source and silently means nothing; or the verb forgets to pass it."""
    monkeypatch.chdir(tmp_path)
    source, other = learned(tmp_path / "mine"), judged(tmp_path / "late")
    both = ["prepare", str(source), "--run", "one", "--eval-source", str(other)]
    assert cli.main([*both, "--held-out", "0.3"]) == 1
    assert "give one of the two" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert cli.main(both) == 0
    assert "held out: 3 clips" in capsys.readouterr().out


def test_splitting_by_itself_stays_as_it_was(tmp_path, run):
    """Mistake: the new way changes what is held out where nothing was given."""
    utterances = prepare.prepare(learned(tmp_path / "mine"), run, Config())
    assert sorted(each.split for each in utterances) == ["excluded"] * 2 + ["held_out"] * 2 + ["train"] * 4
    assert utterances == [dataclasses.replace(each) for each in manifest.read(run.data)]
