"""Held-out clips from a source of their own (`--eval-source`)."""

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


def write_eval_clips(folder: Path, first: int = 50, count: int = 3, **more) -> Path:
    """Write a folder of clips that are not in the training source, each with a text of its own."""
    folder.mkdir(parents=True)
    rows = []
    for number in range(first, first + count):
        soundfile.write(folder / f"late_{number}.wav", voice(number), RATE)
        rows.append({"file_name": f"late_{number}.wav", "text": f"Held-out number {number}", **more})
    write_csv(folder, rows)
    return folder


def write_training_clips(folder: Path, **more) -> Path:
    """Write eight training clips."""
    write_csv(folder, [row | more for row in write_clips(folder)])
    return folder


def test_the_eval_source_is_held_out_and_all_else_is_training(tmp_path, run, capsys):
    """Mistake: a second share is held out as well, or clips of the evaluation source are trained on."""
    source, other = write_training_clips(tmp_path / "mine"), write_eval_clips(tmp_path / "late")
    utterances = prepare.prepare(source, run, Config(held_out=0.5), eval_source=other)
    assert [utterance.split for utterance in utterances] == ["train"] * 8 + ["held_out"] * 3
    assert [utterance.file for utterance in utterances[8:]] == ["late_50.wav", "late_51.wav", "late_52.wav"]
    assert len({utterance.id for utterance in utterances}) == 11
    assert all(utterance.audio.is_file() for utterance in utterances)
    output = capsys.readouterr().out
    assert "8 to train on; held out: 3 clips from 1 session." in output and "share their" not in output
    assert manifest.read(run.data) == utterances
    assert prepare.prepare(source, run, Config(held_out=0.5), eval_source=f"{other}/") == utterances


def test_rows_with_one_number_in_both_sources_stay_separate(tmp_path, run):
    """Mistake: row 1 of one table overwrites the clip of row 1 of the other, when both files have one name."""
    source, other = write_training_clips(tmp_path / "mine"), tmp_path / "late"
    (other / "clips").mkdir(parents=True)
    for number in (1, 2):
        soundfile.write(other / f"clips/tapeA_{number:03d}.wav", voice(60 + number), RATE)
    write_csv(other, [{"file_name": f"clips/tapeA_{number:03d}.wav", "text": f"Other {number}"} for number in (1, 2)])
    utterances = prepare.prepare(source, run, Config(), eval_source=other)
    clips = {utterance.audio.read_bytes() for utterance in utterances}
    assert len(clips) == len(utterances) == 10


def test_two_tables_in_one_folder(tmp_path, run):
    """Mistake: a user with two lists for one folder of clips has to move files."""
    folder = write_training_clips(tmp_path / "mine")
    write_eval_clips(folder / "more")
    rows = [{"file_name": f"more/late_{number}.wav", "text": f"Held-out number {number}"} for number in (50, 51)]
    write_csv(folder, rows, name="test.csv")
    utterances = prepare.prepare(folder, run, Config(), eval_source=folder / "test.csv")
    assert [utterance.split for utterance in utterances].count("held_out") == 2 and len(utterances) == 10


def check_refused(message: str, source: Path, run: Run, **more) -> None:
    """Check that nothing is written and that the error contains this message."""
    with pytest.raises(KitError, match=message):
        prepare.prepare(source, run, **{"config": Config(), **more})
    assert not run.data.exists()


def test_a_clip_in_both_sources_is_refused(tmp_path, run):
    """Mistake: the model is evaluated on a training clip."""
    source, other = write_training_clips(tmp_path / "mine"), write_eval_clips(tmp_path / "late")
    soundfile.write(other / "late_51.wav", voice(3), RATE)
    check_refused(r"held-out metadata.csv row 2: late_51.wav sounds exactly like clips/tapeA_003.wav of row 3", source, run,
                  eval_source=other)


@pytest.mark.parametrize("name", [".", "metadata.csv"])
def test_the_source_itself_is_refused(tmp_path, run, name):
    """Mistake: one folder is given twice, and every clip of it is reported."""
    source = write_training_clips(tmp_path / "mine")
    check_refused("is the source itself", source, run, eval_source=source / name)
    check_refused("is the source itself", source / "metadata.csv", run, eval_source=source / name)


@pytest.mark.parametrize(("count", "message"), [(1, "8 usable clips to train on and 1 held out; the minimum is 4 and 2")])
def test_too_few_held_out_clips_are_refused(tmp_path, run, count, message):
    """Mistake: a verdict from one sentence."""
    check_refused(message, write_training_clips(tmp_path / "mine"), run,
                  eval_source=write_eval_clips(tmp_path / "late", count=count))


@pytest.mark.parametrize(("training_fields", "eval_fields", "message"), [
    ({"source": "anna"}, {"source": "bert"}, "held-out metadata.csv names the speakers bert, and no clip of anna"),
    ({}, {"source": "bert"}, "names the speakers bert, and no clip of a speaker without name"),
    ({"source": "anna"}, {}, "held-out metadata.csv row 1: late_50.wav names no speaker"),
])
def test_held_out_clips_of_another_speaker_are_refused(tmp_path, run, training_fields, eval_fields, message):
    """Mistake: one voice is trained and another one evaluated."""
    check_refused(message, write_training_clips(tmp_path / "mine", **training_fields), run,
                  eval_source=write_eval_clips(tmp_path / "late", **eval_fields))


def test_the_training_source_decides_the_speaker(tmp_path, run, capsys):
    """Mistake: held-out clips of several speakers require a choice, although the training source has only one."""
    source = write_training_clips(tmp_path / "mine", source="anna")
    other = write_eval_clips(tmp_path / "late", source="anna")
    table = (other / "metadata.csv").read_text(encoding="utf-8")
    soundfile.write(other / "bert.wav", voice(70), RATE)
    (other / "metadata.csv").write_text(table + "bert.wav,Not hers,bert\n", encoding="utf-8")
    utterances = prepare.prepare(source, run, Config(), eval_source=other)
    assert "1 clips of other speakers are left out" in capsys.readouterr().out
    assert {(utterance.speaker, utterance.source) for utterance in utterances} == {("anna", "0")} and len(utterances) == 11


@pytest.mark.parametrize(("more", "message"), [
    ({"session": "tapeA"}, "3 of 3 held-out clips share their session with training clips (late_50.wav: tapeA)"),
    ({"text": "sentence number 5"}, "3 of 3 held-out clips share their text with training clips"),
])
def test_sessions_and_texts_shared_with_training_are_reported(tmp_path, run, capsys, more, message):
    """Mistake: neighbours of training clips, or their very sentences, improve the result, and nothing is printed."""
    other = write_eval_clips(tmp_path / "late", **more)
    prepare.prepare(write_training_clips(tmp_path / "mine"), run, Config(), eval_source=other)
    assert message in capsys.readouterr().out


@pytest.mark.parametrize("before", ["given", "shared"])
def test_another_eval_source_is_other_data(tmp_path, run, before):
    """Mistake: clips held out until now are trained on after a rerun, while the adapter keeps its old evaluation."""
    source, other = write_training_clips(tmp_path / "mine"), write_eval_clips(tmp_path / "late")
    arguments = [{"eval_source": other}, {}][::1 if before == "given" else -1]
    prepare.prepare(source, run, Config(), **arguments[0])
    content = contents(run.data)
    with pytest.raises(KitError, match="made with eval_source"):
        prepare.prepare(source, run, Config(), **arguments[1])
    assert contents(run.data) == content


def test_a_changed_held_out_clip_is_detected(tmp_path, run):
    """Mistake: only the training source is checked when the data is used again."""
    source, other = write_training_clips(tmp_path / "mine"), write_eval_clips(tmp_path / "late")
    prepare.prepare(source, run, Config(), eval_source=other)
    soundfile.write(other / "late_50.wav", voice(90), RATE)
    with pytest.raises(KitError, match="changed since"):
        prepare.prepare(source, run, Config(), eval_source=other)


def test_the_command_takes_a_share_or_a_source(tmp_path, monkeypatch, capsys):
    """Mistake: --held-out 0.3 is given with --eval-source and silently ignored, or the command does not pass it on."""
    monkeypatch.chdir(tmp_path)
    source, other = write_training_clips(tmp_path / "mine"), write_eval_clips(tmp_path / "late")
    arguments = ["prepare", str(source), "--run", "one", "--eval-source", str(other)]
    assert cli.main([*arguments, "--held-out", "0.3"]) == 1
    assert "give one of the two" in capsys.readouterr().err and not (tmp_path / "runs").exists()
    assert cli.main(arguments) == 0
    assert "held out: 3 clips" in capsys.readouterr().out


def test_without_an_eval_source_the_split_is_unchanged(tmp_path, run):
    """Mistake: other clips are held out where no evaluation source is given."""
    utterances = prepare.prepare(write_training_clips(tmp_path / "mine"), run, Config())
    assert sorted(utterance.split for utterance in utterances) == ["excluded"] * 2 + ["held_out"] * 2 + ["train"] * 4
    assert utterances == [dataclasses.replace(utterance) for utterance in manifest.read(run.data)]
