"""From clips to scores and intervals, on cases whose result is known."""

import dataclasses

import numpy as np
import pytest
from scored_rows import rows_of, system

from tts_kit import audio
from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels

TRAINING = ("The train to Oslo is late again.", "Nobody has seen the black cat today.")


def test_wer_is_computed_over_all_words():
    """Mistake: the mean of each clip's WER, in which a short sentence counts as much as a long one."""
    rows = rows_of("finetuned", [[0.5]], [[2]], words=2, seeds=(1,)) + [
        row | {"sentence": 1} for row in rows_of("finetuned", [[0.5]], [[0]], words=18, seeds=(1,))]
    assert scoring.aggregate(rows)["wer"].value == pytest.approx(2 / 20)


def test_no_clip_is_compared_with_itself():
    """Mistake: a mean that contains the clip itself, or the recording of the same text, which gives every real clip a high
    SIM."""
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert scoring.similarity(east, [east, None, north]) == pytest.approx(2 ** -0.5)
    assert scoring.similarity(east, [None]) is None and scoring.similarity(None, [east]) == 0.0
    clips = {name: ClipMetrics(1, None, 1, None, name, "", embedding=voice) for name, voice in (("a", east), ("b", north))}
    assert scoring.similarity_range(clips, [east]) == (pytest.approx(2 ** -0.5), 0.0)


def test_the_bootstrap_is_paired():
    """Mistake: arms are resampled independently, and sentence difficulty hides a small significant difference."""
    similarities = np.linspace(0.3, 0.9, 12)[:, None] * np.ones((1, 2))
    estimate = scoring.differences(rows_of("finetuned", similarities + 0.01), rows_of("clone", similarities))["sim"]
    assert estimate.low > 0 and estimate.high - estimate.low < 0.001


def test_samples_of_a_sentence_are_resampled_together():
    """Mistake: samples are resampled one by one: a hundred samples of ten sentences count as a hundred sentences."""
    values = np.random.default_rng(0).normal(0.7, 0.1, (10, 1))
    few, many = (scoring.aggregate(rows_of("finetuned", values.repeat(samples, 1), seeds=range(samples)))["sim"]
                 for samples in (1, 10))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=1e-6)


def test_intervals_are_reproducible_and_infinite_for_too_few_sentences():
    """Mistake: the verdict changes when it is computed again, or two sentences prove something."""
    rows = rows_of("finetuned", system(np.random.default_rng(1), 8))
    assert scoring.aggregate(rows) == scoring.aggregate(rows)
    two = scoring.aggregate(rows_of("finetuned", [[0.2], [0.9]], seeds=(1,)))["sim"]
    assert two.low < 0 < two.high and two.value == pytest.approx(0.55)
    assert two.sentences < stats.MIN_SENTENCES


def test_sim_is_normalized_between_floor_and_ceiling():
    """Mistake: 0.87 is reported as good although another speaker gets 0.85, or the ceiling compares clips with
    themselves."""
    voice = {"a": np.array([1.0, 0.0]), "b": np.array([0.6, 0.8])}
    references = {text: ClipMetrics(1, None, 4, None, text, "", embedding=embedding) for text, embedding in voice.items()}
    floor, ceiling = scoring.similarity_range(references, [np.array([0.0, 1.0])])
    assert ceiling == pytest.approx(0.6) and floor == pytest.approx(0.4472, abs=1e-3)
    assert scoring.normalized_similarity(ceiling, floor, ceiling) == 1.0
    assert scoring.normalized_similarity(floor, floor, ceiling) == 0.0
    assert scoring.similarity_range({"a": references["a"]}, []) is None


def toy_metric_models(name):
    """Return metric models that recognize the right text in every clip, and the list of their ASR calls."""
    calls = []

    def transcribe(wave):
        calls.append(len(wave))
        return "hello there"

    return MetricModels({"wer": name}, transcribe, lambda wave: np.array([1.0, 0.0]), lambda wave: 4.0), calls


def reference_clip(text, pitch=200.0, pace=2.0, seconds=1.0, noise=4.0):
    """The measurements of a real clip."""
    return ClipMetrics(2, None, 10, None, text, "", embedding=np.array([1.0, 0.0]), f0=pitch, speech_rate=pace,
                       speech_seconds=seconds, noise_mos=noise)


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_scoring_resumes(tmp_path):
    """Mistake: all clips are scored again after an interruption, or one table has scores of two sets of metric models."""
    tone = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.3
    rows = []
    for number in range(3):
        audio.write(tmp_path / f"{number}.flac", tone * (number > 0), 16_000)
        rows.append({"arm": "base", "sentence": number, "text": "Hello there.", "seed": 1, "file": f"{number}.flac"})
    (metric_models, calls), saved = toy_metric_models("one"), []
    references = {"other": reference_clip("other")}
    scored = scoring.score_rows(rows, tmp_path, metric_models, references, saved.append)
    assert len(calls) == 2 and scored[0]["failure"] == "silent" and scored[0]["word_errors"] == 2
    assert [row["sim"] for row in scored] == [0.0, 1.0, 1.0] and saved[-1] == scored
    assert scoring.score_rows(scored, tmp_path, metric_models, references, saved.append) == scored and len(calls) == 2
    other, calls = toy_metric_models("another")
    assert {row["metrics"] for row in scoring.score_rows(scored, tmp_path, other, references, saved.append)} == {
        "WER: another"} and len(calls) == 2


def clips_of(folder, count=3):
    """Write tones of one second, 200 Hz; return their rows."""
    tone = (0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000)).astype(np.float32)
    rows = []
    for number in range(count):
        audio.write(folder / f"{number}.flac", tone, 16_000)
        rows.append({"arm": "finetuned", "sentence": number, "text": "Hello there.", "seed": 1, "file": f"{number}.flac"})
    return rows


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_duration_pitch_rate_and_noise_are_relative_to_ground_truth(tmp_path):
    """Mistake: inverted ratios, semitones without a sign, or a clip compared with a mean that contains it."""
    metric_models = dataclasses.replace(toy_metric_models("one")[0], predict_noise_mos=lambda wave: 3.0)
    references = {"Hello there.": reference_clip("Hello there.", seconds=0.5, pitch=900.0, noise=1.0),
                  "a": reference_clip("a", pitch=100.0), "b": reference_clip("b", pitch=100.0)}
    [row] = scoring.score_rows(clips_of(tmp_path, 1), tmp_path, metric_models, references, lambda rows: None)
    assert row["duration_ratio"] == pytest.approx(2.0, abs=0.1) and row["f0_difference"] == pytest.approx(12, abs=0.3)
    assert row["rate_ratio"] == pytest.approx(1.0, abs=0.05) and row["noisy"] is True and row["ref_chars"] == 10
    without_references = scoring.score_rows(clips_of(tmp_path, 1), tmp_path, metric_models, {}, lambda rows: None)[0]
    assert without_references["sim"] is None
    assert not {"duration_ratio", "f0_difference", "rate_ratio", "noisy"} & set(without_references)


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_a_missing_score_is_left_out_of_its_metric_and_named(tmp_path):
    """Mistake: a failed metric counts as the worst clip or as the best, costs the whole arm its score, or is not
    reported."""
    def failing_once(wave):
        failing_once.calls += 1
        if failing_once.calls == 2:
            raise RuntimeError("out of memory")
        return np.array([0.6, 0.8])

    failing_once.calls = 0
    rows = clips_of(tmp_path)
    rows[2]["text"] = "..."
    metric_models = dataclasses.replace(toy_metric_models("one")[0], embed_speaker=failing_once)
    scored = scoring.score_rows(rows, tmp_path, metric_models, {"x": reference_clip("x")}, lambda rows: None)
    assert [row["sim"] for row in scored] == [0.6, None, 0.6]
    scores = scoring.aggregate(scored)
    assert scores["sim"].sentences == 2 and scores["mos"].sentences == 3
    assert scores["wer"].sentences == 2 and scores["wer"].value == 0
    assert scoring.missing_scores(scored) == ["1.flac (sim: sim: RuntimeError: out of memory)",
                                              "2.flac (wer: its text has no words)"]
    assert scoring.failures(scored) == []


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_normalized_sim_is_added_to_scored_rows(tmp_path):
    """Mistake: rows that were scored before never get it, or a floor equal to the ceiling stops everything."""
    metric_models, calls = toy_metric_models("one")
    rows = clips_of(tmp_path, 1)
    scored = scoring.score_rows(rows, tmp_path, metric_models, {"x": reference_clip("x")}, lambda rows: None)
    saved = []
    [row] = scoring.score_rows(scored, tmp_path, metric_models, {}, saved.append, (0.5, 0.75))
    assert row["sim_norm"] == 2.0 and saved == [[row]] and len(calls) == 1
    assert "sim_norm" not in scoring.score_rows(scored, tmp_path, metric_models, {}, saved.append,
                                                (0.8, 0.8))[0]


def test_the_table_has_columns_for_measured_metrics_only():
    """Mistake: a table too wide to read, with empty columns, or one that hides what the first arm lacks."""
    rows = rows_of("ground_truth", [[0.9]], seeds=(None,)) + rows_of("finetuned", [[0.5]], seeds=(1,))
    small = scoring.table({arm: scoring.aggregate(arm_rows) for arm, arm_rows in scoring.group_by_arm(rows).items()})
    assert small[0] == ["arm", "WER", "SIM", "MOS", "EOS"]
    rows[1] |= {"ref_chars": 50, "char_errors": 5, "f0_difference": -1.25, "duration_ratio": 1.1, "rate_ratio": 0.9,
                "noisy": True,
                "memorized": False, "sim_norm": 0.4}
    full = scoring.table({arm: scoring.aggregate(arm_rows) for arm, arm_rows in scoring.group_by_arm(rows).items()})
    assert full[0] == ["arm", "WER", "CER", "SIM", "SIM norm.", "MOS", "noisy", "dur. ratio", "dF0 (st)", "rate ratio",
                       "EOS", "memorized"]
    assert full[1] == ["ground_truth", "0.0%", "-", "0.900", "-", "4.00", "-", "-", "-", "-", "100%", "-"]
    assert full[2][2:] == ["10.0%", "0.500", "0.40", "4.00", "100%", "1.10", "-1.2", "0.90", "100%", "0%"]
    lines = scoring.print_table(full).splitlines()
    assert len(lines) == 3 and lines[0].split()[:4] == ["arm", "WER", "CER", "SIM"] and len(set(map(len, lines))) == 1
    assert len(lines[0]) <= 112, "the width of a notebook"


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_scores_of_other_metric_models_are_removed(tmp_path):
    """Mistake: the second SIM of a set that is no longer used stays in the row and in the table."""
    rows = clips_of(tmp_path, 1)
    rows[0] |= {"metrics": "others", "sim_2": 0.9, "mos_2": 5.0, "metric_failed": {"wer": "?"}}
    [row] = scoring.score_rows(rows, tmp_path, toy_metric_models("one")[0], {}, lambda rows: None)
    assert not {"sim_2", "mos_2", "metric_failed"} & set(row) and row["metrics"] == "WER: one"


def transcribed(arm, text, transcript, seed=1):
    return {"arm": arm, "file": "clip.flac", "text": text, "transcript": transcript, "seed": seed, "sentence": 1}


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_a_training_sentence_instead_of_the_text_is_memorized():
    """Mistake: a model that repeats its training sentences is scored as the best voice of all; a recording, or a clip
    without words, counts as memorized."""
    rows = [transcribed("ground_truth", "A blue hat.", "The train to Oslo is late again.", seed=None),
            transcribed("finetuned", "Where is the small house?", "the train to oslo is very late again"),
            transcribed("finetuned", "Where is the small house?", "Where is the small mouse?"),
            transcribed("finetuned", "Where is the small house?", "a wind from elsewhere"),
            transcribed("finetuned", "Where is the small house?", "")]
    checked = scoring.check_memorization(rows, TRAINING)
    assert [checked_row.get("memorized") for checked_row in checked] == [None, True, False, False, None]
    assert checked[1]["training_text"] == TRAINING[0] and checked[0] == rows[0]
    assert not any(checked_row.get("memorized") for checked_row in scoring.check_memorization(rows, []))


@pytest.mark.skipif(not metrics.load_available(), reason=f"metric models are not installed: {metrics.INSTALL}")
def test_one_misrecognized_word_is_no_memorization():
    """Mistake: sentences of one pattern, where one wrong word gives another training sentence, count as memorized."""
    words = {text: text.lower().rstrip(".").split() for text in TRAINING}
    assert scoring.matched_training_text("The train to Oslo is late again.", "The train to Rome is late again.",
                                         words) == ""
    assert scoring.matched_training_text("The train to Oslo is late again.", "Please bring two green chairs.",
                                         words) == TRAINING[0]
    assert scoring.matched_training_text("Yes.", "No.", {"Yes.": ["yes"]}) == ""
