"""The evaluation of an untrained toy, from ground truth to goals, with the bundled voice in place of Kokoro's."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from sample_data.build import corpus, evaluate, evaluation_clips, goals, sentences
from sample_data.build.evaluate import OPEN, UNSEEN, EvaluationConfig
from tts_kit import audio, device
from tts_kit.comparison import arms
from tts_kit.evaluation import metrics
from tts_kit.io import read_rows
from tts_kit.run import SAMPLE_VOICE
from tts_kit.speech.voice import load_voice

VOICE = sorted(SAMPLE_VOICE.glob("*.flac"))
needs_metrics = pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are missing: {metrics.INSTALL}")


def synthesize(text, speaker):
    """Return a clip of the bundled voice, resampled to a pitch that depends on the speaker."""
    wave = audio.read(VOICE[len(text) % len(VOICE)], corpus.RATE)[:2 * corpus.RATE]
    return audio.resample(wave, corpus.RATE, corpus.RATE - 400 * (sum(speaker.name.encode()) % 11))


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def config(spread_toy, work):
    return EvaluationConfig(Path(spread_toy), work=work, sentences=2, seeds=(5,), device="cpu", threads=1)


@pytest.fixture(scope="module")
def evaluated(config):
    """The results of one sentence of each of two voices; SIM needs a second recording of each voice.

    These two have different pitches in `synthesize`."""
    if not metrics.load_available():
        pytest.skip(f"metric models are missing: {metrics.INSTALL}")
    whole = sentences.evaluation_set()
    small = dataclasses.replace(whole, sentences=whole.sentences[:4], voices=whole.voices[2:4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sentences, "evaluation_set", lambda: small)
        return evaluate.evaluate(config, synthesize)


def test_each_sentence_has_one_voice_and_references_have_other_texts(work):
    """Mistake: the reference contains the sentence to generate, or is another speaker's."""
    clips = evaluation_clips.ground_truth(work / "originals", synthesize)
    references = evaluation_clips.reference_clips(work / "originals", synthesize)
    assert len(clips) == len({clip.text for clip in clips}) == 50
    assert len({clip.speaker for clip in clips}) == 6 == len(references)
    for name, reference in references.items():
        assert reference.text not in {clip.text for clip in clips} and 4 <= len(reference.text.split()) <= 7
        assert reference.path.name.startswith(name)
    rows = evaluation_clips.plan_rows(clips[:7], references, (1, 2), arms.ARMS)
    for row in rows:
        if "request" in row:
            assert (row["request"].references is not None) == ("clone" in row["arm"])
            assert row["request"].finetuned == row["arm"].startswith("finetuned")
            assert row["request"].references in (None, references[row["speaker"]])
    assert len({row["file"] for row in rows}) == len(rows) == 7 * (2 + 4 * 2)


def test_clips_are_made_once(config, work):
    """Mistake: an hour is lost by an interruption; or the clip of an old sentence is evaluated as the new one."""
    voice = load_voice(device.choose("cpu"), None, str(config.model))
    clips = evaluation_clips.ground_truth(work / "originals", synthesize)
    references = evaluation_clips.reference_clips(work / "originals", synthesize)
    planned = evaluation_clips.plan_rows(clips[:1], references, (5,), ("codec", "base", "clone"))
    first = evaluation_clips.make_clips(planned, work / "once", voice)
    times = {row["file"]: (work / "once" / row["file"]).stat().st_mtime_ns for row in first}
    assert evaluation_clips.make_clips(planned, work / "once", voice) == first
    assert times == {row["file"]: (work / "once" / row["file"]).stat().st_mtime_ns for row in first}
    sounds = {row["arm"]: soundfile.read(work / "once" / row["file"])[0] for row in first}
    assert len(sounds["base"]) != len(sounds["clone"]) or np.abs(sounds["base"] - sounds["clone"]).max() > 1e-3
    changed = [row | {"text": "Other words."} for row in planned]
    assert {row["text"] for row in evaluation_clips.make_clips(changed, work / "once", voice)} == {"Other words."}


@pytest.mark.slow
@needs_metrics
def test_the_results_are_complete(evaluated):
    """Mistake: an arm, a metric or a goal is missing."""
    results, rows = evaluated
    group = results["groups"][UNSEEN]
    assert set(group["arms"]) == {"ground_truth", "codec", "first codebook", "base", "clone"} and group["sentences"] == 2
    assert set(results["groups"][OPEN]["arms"]) == {"ground_truth", "base", "clone"}
    for arm, values in group["arms"].items():
        assert {"wer", "sim", "sim_norm", "mos", "clips"} <= set(values)
        assert ("rtf" in values) == (arm in ("base", "clone"))
    assert [goal["goal"] for goal in results["goals"]] == [goal.description for goal in (*goals.UNSEEN, *goals.OPEN)]
    assert [row["group"] for row in rows] == 10 * [UNSEEN] + 6 * [OPEN]
    assert {row["text"] for row in rows if row["group"] == OPEN} == {*sentences.evaluation_set().open_sentences[:2]}
    assert group["sim of other speakers"] < group["sim of the voice itself"]
    assert "goals reached" in evaluate.report(results)


@pytest.mark.slow
@needs_metrics
def test_an_untrained_model_misses_its_goals(evaluated):
    """Mistake: goals that noise reaches, or a limit with the wrong sign."""
    results = {goal["goal"]: goal for goal in evaluated[0]["goals"]}
    wer = results["clone: WER at most 15 %"]
    assert not wer["reached"] and wer["margin"] == pytest.approx(0.15 - wer["measured"]["value"], abs=1e-3)


@pytest.mark.slow
@needs_metrics
def test_the_command_writes_json_and_rows(config, work, evaluated, monkeypatch, capsys):
    """Mistake: figures without the command, the machine and the versions."""
    monkeypatch.setattr(evaluate, "evaluate", lambda parsed: evaluated if parsed.model == config.model else None)
    out = work / "results" / "toy.json"
    assert evaluate.main(["--model", str(config.model), "--out", str(out)]) == 0
    results = json.loads(out.read_text(encoding="utf-8"))
    assert results["command"].startswith("python -m sample_data.build.evaluate --model")
    assert results["machine"] and results["versions"]["torch"] and results["metrics"] and results["date"]
    assert len(read_rows(out.with_suffix(".jsonl"))) == 16
    assert "goal" in capsys.readouterr().out
    assert evaluate.main(["--model", str(config.model), "--out", "toy.txt"]) == 1


def test_goals_are_checked_by_their_limits():
    """Mistake: "significantly above" by a mean whose interval contains 0, or a margin with the wrong sign."""
    significant = goals.Goal("", "clone", "sim", 0.0, other_arm="base", whole_interval=True)
    maximum = goals.Goal("", "clone", "wer", 0.2, True)
    assert not goals._check_value(significant, {"value": 0.1, "low": -0.01, "high": 0.2})["reached"]
    assert goals._check_value(significant, {"value": 0.1, "low": 0.01, "high": 0.2})["reached"]
    assert not goals._check_value(significant, {"value": 0.1})["reached"]
    assert goals._check_value(maximum, {"value": 0.2})["reached"]
    assert goals._check_value(maximum, {"value": 0.25})["margin"] == -0.05
