"""A model judged from originals to goals, by an untrained toy and with clips of the bundled voice as Kokoro's."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sample_data.build import corpus, evaluate, evaluation_clips, goals
from sample_data.build.evaluate import UNSEEN, Wish
from tts_kit import audio, device
from tts_kit.evaluation import metrics
from tts_kit.io import read_rows
from tts_kit.run import SAMPLE_VOICE
from tts_kit.speech.voice import load_voice

VOICE = sorted(SAMPLE_VOICE.glob("*.flac"))
needs_judges = pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")


def say(text, speaker):
    """A clip of the bundled voice at a pitch that belongs to the speaker."""
    wave = audio.read(VOICE[len(text) % len(VOICE)], corpus.RATE)[:2 * corpus.RATE]
    return audio.resample(wave, corpus.RATE, corpus.RATE - 400 * (sum(speaker.name.encode()) % 11))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def wish(spread_toy, work):
    return Wish(Path(spread_toy), work=work, sentences=3, seeds=(5,), device="cpu", threads=1)


@pytest.fixture(scope="module")
def evaluated(wish):
    if not metrics.load_available():
        pytest.skip(f"judges are not installed: {metrics.INSTALL}")
    return evaluate.evaluate(wish, say)


def test_every_sentence_has_one_voice_and_the_reference_says_something_else(work):
    """Mistake: the clone hears the answer, or its reference is another speaker's."""
    clips = evaluation_clips.originals(work / "originals", say)
    cloned = evaluation_clips.references(work / "originals", say)
    assert len(clips) == len({item.text for item in clips}) == 50
    assert len({item.speaker for item in clips}) == 6 == len(cloned)
    for name, reference in cloned.items():
        assert reference.text not in {item.text for item in clips} and 4 <= len(reference.text.split()) <= 7
        assert reference.path.name.startswith(name)
    rows = evaluation_clips.plan(clips[:7], cloned, (1, 2), evaluate.STAGES)
    for row in rows:
        if "line" in row:
            assert (row["line"].references is not None) == ("clone" in row["arm"])
            assert row["line"].finetuned == row["arm"].startswith("finetuned")
            assert row["line"].references in (None, cloned[row["speaker"]])
    assert len({row["file"] for row in rows}) == len(rows) == 7 * (2 + 4 * 2)


def test_clips_are_made_once(wish, work):
    """Mistake: an hour is lost after a stop; or a clip of a sentence that has changed since is judged as the new one."""
    voice = load_voice(device.choose("cpu"), None, str(wish.model))
    clips, cloned = evaluation_clips.originals(work / "originals", say), evaluation_clips.references(work / "originals", say)
    planned = evaluation_clips.plan(clips[:1], cloned, (5,), ("codec", "base", "clone"))
    first = evaluation_clips.make(planned, work / "once", voice)
    stamps = {row["file"]: (work / "once" / row["file"]).stat().st_mtime_ns for row in first}
    assert evaluation_clips.make(planned, work / "once", voice) == first
    assert stamps == {row["file"]: (work / "once" / row["file"]).stat().st_mtime_ns for row in first}
    sounds = {row["arm"]: soundfile.read(work / "once" / row["file"])[0] for row in first}
    assert len(sounds["base"]) != len(sounds["clone"]) or np.abs(sounds["base"] - sounds["clone"]).max() > 1e-3
    changed = [item | {"text": "Other words."} for item in planned]
    assert {row["text"] for row in evaluation_clips.make(changed, work / "once", voice)} == {"Other words."}


@pytest.mark.slow
@needs_judges
def test_the_results_hold_what_was_asked_for(evaluated):
    """Mistake: an arm, a figure or a goal is left out; the goal table cannot be filled."""
    results, rows = evaluated
    group = results["groups"][UNSEEN]
    assert set(group["arms"]) == {"ground_truth", "codec", "base", "clone"} and group["sentences"] == 3
    for arm, known in group["arms"].items():
        assert {"wer", "sim", "sim_norm", "mos", "clips"} <= set(known)
        assert ("seconds a second" in known) == (arm in ("base", "clone"))
    assert [item["goal"].split(":")[0] for item in results["goals"]] == [goal.what.split(":")[0] for goal in goals.UNSEEN]
    assert len(rows) == 3 * 4 and {row["group"] for row in rows} == {UNSEEN}
    assert group["sim of other speakers"] < group["sim of the voice itself"]
    assert "goals reached" in evaluate.report(results)


@pytest.mark.slow
@needs_judges
def test_an_untrained_model_reaches_little(evaluated):
    """Mistake: goals that noise reaches, or that are reached the wrong way round."""
    reached = {item["goal"]: item for item in evaluated[0]["goals"]}
    missed = reached["clone: WER at most 20 %"]
    assert not missed["reached"] and missed["by"] == pytest.approx(0.2 - missed["seen"]["value"], abs=1e-3)


@pytest.mark.slow
@needs_judges
def test_the_command_writes_json_and_rows(wish, work, evaluated, monkeypatch, capsys):
    """Mistake: figures without the command, the machine and the versions they came from; clips judged again."""
    monkeypatch.setattr(evaluate, "evaluate", lambda asked: evaluated if asked.model == wish.model else None)
    out = work / "results" / "toy.json"
    assert evaluate.main(["--model", str(wish.model), "--out", str(out)]) == 0
    written = json.loads(out.read_text(encoding="utf-8"))
    assert written["command"].startswith("python -m sample_data.build.evaluate --model")
    assert written["machine"] and written["versions"]["torch"] and written["metrics"] and written["date"]
    assert len(read_rows(out.with_suffix(".jsonl"))) == 12
    assert "goal" in capsys.readouterr().out
    assert evaluate.main(["--model", str(wish.model), "--out", "toy.txt"]) == 1


def test_goals_are_judged_by_their_limits():
    """Mistake: "clearly above" by a mean whose interval holds 0, or a margin with the wrong sign."""
    sure = goals.Goal("", "clone", "sim", 0.0, other="base", is_sure=True)
    most = goals.Goal("", "clone", "wer", 0.2, True)
    assert not goals._judged(sure, {"value": 0.1, "low": -0.01, "high": 0.2})["reached"]
    assert goals._judged(sure, {"value": 0.1, "low": 0.01, "high": 0.2})["reached"]
    assert not goals._judged(sure, {"value": 0.1})["reached"]
    assert goals._judged(most, {"value": 0.2})["reached"] and goals._judged(most, {"value": 0.25})["by"] == -0.05
