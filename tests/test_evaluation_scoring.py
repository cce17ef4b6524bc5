"""From clips to figures, intervals and the verdict, on cases whose answer is known."""

import dataclasses

import numpy as np
import pytest
from scored_rows import rows_of, system

from tts_kit import audio
from tts_kit.evaluation import metrics, scoring, stats
from tts_kit.evaluation.metrics import ClipMetrics, MetricModels


def test_words_are_counted_over_all_clips():
    """Mistake: the mean of each clip's share, in which a short sentence counts as much as a long one."""
    rows = rows_of("finetuned", [[0.5]], [[2]], words=2, seeds=(1,)) + [
        row | {"sentence": 1} for row in rows_of("finetuned", [[0.5]], [[0]], words=18, seeds=(1,))]
    assert scoring.aggregate(rows)["wer"].value == pytest.approx(2 / 20)


def test_no_clip_is_compared_with_itself():
    """Mistake: a mean that contains the clip, or the recording of its own words, which makes every real clip a good one."""
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert scoring.similarity(east, {"a": east, "b": north}, "a") == 0.0
    assert scoring.similarity(east, {"a": east, "b": north}, "c") == pytest.approx(2 ** -0.5)
    assert scoring.similarity(east, {"a": east}, "a") is None
    assert scoring.similarity(None, {"a": east, "b": north}, "a") == 0.0


def test_the_same_sentences_are_drawn_for_both():
    """Mistake: arms drawn apart: what is hard for both then hides a small sure difference."""
    hard = np.linspace(0.3, 0.9, 12)[:, None] * np.ones((1, 2))
    found = scoring.differences(rows_of("finetuned", hard + 0.01), rows_of("clone", hard))["sim"]
    assert found.low > 0 and found.high - found.low < 0.001


def test_takes_of_a_sentence_are_drawn_together():
    """Mistake: takes are drawn one by one: a hundred takes of ten sentences are taken for a hundred sentences."""
    values = np.random.default_rng(0).normal(0.7, 0.1, (10, 1))
    few, many = (scoring.aggregate(rows_of("finetuned", values.repeat(takes, 1), seeds=range(takes)))["sim"]
                 for takes in (1, 10))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=1e-6)


def test_intervals_are_the_same_each_time_and_infinite_for_too_few():
    """Mistake: the verdict changes when it is computed again; or two sentences prove something."""
    rows = rows_of("finetuned", system(np.random.default_rng(1), 8))
    assert scoring.aggregate(rows) == scoring.aggregate(rows)
    two = scoring.aggregate(rows_of("finetuned", [[0.2], [0.9]], seeds=(1,)))["sim"]
    assert two.low < 0 < two.high and two.value == pytest.approx(0.55)
    assert two.sentences < stats.MIN_SENTENCES


def test_floor_and_ceiling_make_figures_comparable():
    """Mistake: 0.87 is reported as good although a stranger gets 0.85; or the ceiling compares clips with themselves."""
    voice = {"a": np.array([1.0, 0.0]), "b": np.array([0.6, 0.8])}
    known = {text: ClipMetrics(1, None, 4, None, text, "", embedding=each) for text, each in voice.items()}
    floor, ceiling = scoring.similarity_range(known, [np.array([0.0, 1.0])])
    assert ceiling == pytest.approx(0.6) and floor == pytest.approx(0.4472, abs=1e-3)
    assert scoring.normalized_similarity(ceiling, floor, ceiling) == 1.0
    assert scoring.normalized_similarity(floor, floor, ceiling) == 0.0
    assert scoring.similarity_range({"a": known["a"]}, []) is None


def a_judge(name):
    """Judges that hear the clip's own text wherever there is sound, and count how often they are asked."""
    asked = []

    def transcribe(wave):
        asked.append(len(wave))
        return "hello there"

    return MetricModels({"wer": name}, transcribe, lambda wave: np.array([1.0, 0.0]), lambda wave: 4.0), asked


def a_real(text, pitch=200.0, pace=2.0, seconds=1.0, noise=4.0):
    """What is known of a real clip."""
    return ClipMetrics(2, None, 10, None, text, "", embedding=np.array([1.0, 0.0]), f0=pitch, speech_rate=pace,
                       speech_seconds=seconds, noise_mos=noise)


@pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
def test_judging_goes_on_where_it_stopped(tmp_path):
    """Mistake: everything is judged again after a stop, or scores of two judges stand in one table."""
    tone = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.3
    rows = []
    for number in range(3):
        audio.write(tmp_path / f"{number}.flac", tone * (number > 0), 16_000)
        rows.append({"arm": "base", "sentence": number, "text": "Hello there.", "seed": 1, "file": f"{number}.flac"})
    (metric_models, asked), saved = a_judge("one"), []
    references = {"other": a_real("other")}
    judged = scoring.score_rows(rows, tmp_path, metric_models, references, saved.append)
    assert len(asked) == 2 and judged[0]["failure"] == "silent" and judged[0]["word_errors"] == 2
    assert [row["sim"] for row in judged] == [0.0, 1.0, 1.0] and saved[-1] == judged
    assert scoring.score_rows(judged, tmp_path, metric_models, references, saved.append) == judged and len(asked) == 2
    other, asked = a_judge("another")
    assert {row["metrics"] for row in scoring.score_rows(judged, tmp_path, other, references, saved.append)} == {
        "WER: another"} and len(asked) == 2


def clips_of(folder, count=3):
    """Rows whose clips are tones of one second, 200 Hz."""
    tone = (0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 200 / 16_000)).astype(np.float32)
    rows = []
    for number in range(count):
        audio.write(folder / f"{number}.flac", tone, 16_000)
        rows.append({"arm": "finetuned", "sentence": number, "text": "Hello there.", "seed": 1, "file": f"{number}.flac"})
    return rows


@pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
def test_length_pitch_pace_and_noise_are_told_against_the_real_clips(tmp_path):
    """Mistake: ratios the wrong way up, semitones without a sign, or a clip compared with the mean that holds itself."""
    metric_models = dataclasses.replace(a_judge("one")[0], predict_noise_mos=lambda wave: 3.0)
    real = {"Hello there.": a_real("Hello there.", seconds=0.5, pitch=900.0, noise=1.0), "a": a_real("a", pitch=100.0),
            "b": a_real("b", pitch=100.0)}
    [row] = scoring.score_rows(clips_of(tmp_path, 1), tmp_path, metric_models, real, lambda rows: None)
    assert row["duration_ratio"] == pytest.approx(2.0, abs=0.1) and row["f0_difference"] == pytest.approx(12, abs=0.3)
    assert row["rate_ratio"] == pytest.approx(1.0, abs=0.05) and row["noisy"] is True and row["ref_chars"] == 10
    alone = scoring.score_rows(clips_of(tmp_path, 1), tmp_path, metric_models, {}, lambda rows: None)[0]
    assert alone["sim"] is None and not {"duration_ratio", "f0_difference", "rate_ratio", "noisy"} & set(alone)


@pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
def test_a_clip_without_a_score_is_left_out_of_that_measure_alone_and_named(tmp_path):
    """Mistake: a judge's mishap counts as the worst clip or as the best, costs the whole arm its figure, or is not told."""
    def moody(wave):
        moody.asked += 1
        if moody.asked == 2:
            raise RuntimeError("out of memory")
        return np.array([0.6, 0.8])

    moody.asked = 0
    rows = clips_of(tmp_path)
    rows[2]["text"] = "..."
    metric_models = dataclasses.replace(a_judge("one")[0], embed_speaker=moody)
    judged = scoring.score_rows(rows, tmp_path, metric_models, {"x": a_real("x")}, lambda rows: None)
    assert [row["sim"] for row in judged] == [0.6, None, 0.6]
    found = scoring.aggregate(judged)
    assert found["sim"].sentences == 2 and found["mos"].sentences == 3
    assert found["wer"].sentences == 2 and found["wer"].value == 0
    assert scoring.missing_scores(judged) == ["1.flac (sim: sim: RuntimeError: out of memory)",
                                       "2.flac (wer: its text has no words)"]
    assert scoring.failures(judged) == []


@pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
def test_similarity_is_put_between_strangers_and_the_voice_itself(tmp_path):
    """Mistake: rows that were judged before never get it, or a voice that strangers are as like as itself stops all."""
    metric_models, asked = a_judge("one")
    rows = clips_of(tmp_path, 1)
    judged = scoring.score_rows(rows, tmp_path, metric_models, {"x": a_real("x")}, lambda rows: None)
    saved = []
    [row] = scoring.score_rows(judged, tmp_path, metric_models, {}, saved.append, (0.5, 0.75))
    assert row["sim_norm"] == 2.0 and saved == [[row]] and len(asked) == 1
    assert "sim_norm" not in scoring.score_rows(judged, tmp_path, metric_models, {}, saved.append,
                                            (0.8, 0.8))[0]


def test_the_table_has_a_column_for_what_was_measured_only():
    """Mistake: a table too wide to read, full of columns without a figure; or one that hides what the first arm lacks."""
    rows = rows_of("ground_truth", [[0.9]], seeds=(None,)) + rows_of("finetuned", [[0.5]], seeds=(1,))
    plain = scoring.table({arm: scoring.aggregate(of_arm) for arm, of_arm in scoring.group_by_arm(rows).items()})
    assert plain[0] == ["arm", "WER", "SIM", "MOS", "EOS"]
    rows[1] |= {"ref_chars": 50, "char_errors": 5, "f0_difference": -1.25, "duration_ratio": 1.1, "rate_ratio": 0.9,
                "noisy": True,
                "memorized": False, "sim_norm": 0.4}
    full = scoring.table({arm: scoring.aggregate(of_arm) for arm, of_arm in scoring.group_by_arm(rows).items()})
    assert full[0] == ["arm", "WER", "CER", "SIM", "SIM norm.", "MOS", "noisy", "dur. ratio", "dF0 (st)", "rate ratio",
                       "EOS", "memorised"]
    assert full[1] == ["ground_truth", "0.0%", "-", "0.900", "-", "4.00", "-", "-", "-", "-", "100%", "-"]
    assert full[2][2:] == ["10.0%", "0.500", "0.40", "4.00", "100%", "1.10", "-1.2", "0.90", "100%", "0%"]
    shown = scoring.print_table(full).splitlines()
    assert len(shown) == 3 and shown[0].split()[:4] == ["arm", "WER", "CER", "SIM"] and len(set(map(len, shown))) == 1
    assert len(shown[0]) <= 112, "what a page of a notebook holds"


@pytest.mark.skipif(not metrics.load_available(), reason=f"judges are not installed: {metrics.INSTALL}")
def test_scores_of_another_set_leave_nothing_behind(tmp_path):
    """Mistake: the second opinion of a set that is gone stays in the row and in the table."""
    rows = clips_of(tmp_path, 1)
    rows[0] |= {"metrics": "others", "sim_2": 0.9, "mos_2": 5.0, "metric_failed": {"wer": "?"}}
    [row] = scoring.score_rows(rows, tmp_path, a_judge("one")[0], {}, lambda rows: None)
    assert not {"sim_2", "mos_2", "metric_failed"} & set(row) and row["metrics"] == "WER: one"
