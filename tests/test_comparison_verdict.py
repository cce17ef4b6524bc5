"""The verdict and its plots, on simulated scores whose true differences are known."""

import numpy as np
import pytest
from scored_rows import outcome, rows_of, system

from tts_kit.comparison import plots, verdict
from tts_kit.evaluation import metrics, scoring, stats


def test_many_comparisons_are_corrected():
    """Mistake: of twenty identical settings one is called better, because one of them is always highest by chance."""
    false_differences = 0
    for trial in range(40):
        rng = np.random.default_rng(trial)
        rows = [row for arm in ("usual", *map(str, range(20))) for row in rows_of(arm, system(rng, 10))]
        comparisons = verdict.compare_arms(rows, [(str(number), "usual") for number in range(20)])
        false_differences += any(comparison.outcome != verdict.TIE for comparison in comparisons)
    assert false_differences <= 6
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and stats.holm([]) == []


def test_the_minimum_detectable_difference_is_detected():
    """Mistake: a power that is claimed and not reached: "10 sentences can show 0.02" where they show it in a third of the
    cases."""
    differences = []
    for trial in range(30):
        rng = np.random.default_rng([1, trial])
        estimate = scoring.differences(rows_of("one", system(rng, 10)), rows_of("other", system(rng, 10)))["sim"]
        differences.append(estimate.minimum_detectable_difference(2))
        assert estimate.required_sentences(differences[-1], 2) == 10
        assert estimate.required_sentences(differences[-1] / 2, 2) == pytest.approx(40, abs=1)
    difference = float(np.sqrt(np.mean(np.square(differences))))
    outcomes = []
    for trial in range(60):
        rng = np.random.default_rng([2, trial])
        outcomes.append(outcome(rows_of("one", system(rng, 10, difference)), rows_of("other", system(rng, 10))))
    assert 0.6 < outcomes.count(verdict.HIGHER_SIM) / 60 < 0.95


def test_a_tie_is_explained():
    """Mistake: a tie that reads like equality, where so few sentences could not have shown anything."""
    text = four_arm_verdict(finetuned=0.2, clone=0.2, both=0.2)
    assert "minimum detectable difference (80 % power) 0.0" in text and "points WER" in text
    assert "To resolve the ties: about" in text and "listening test" in text
    assert "resolve" not in four_arm_verdict(finetuned=0.5, clone=0.3, both=0.6)


@pytest.mark.parametrize("sentences", [4, 10])
def test_identical_systems_tie(sentences):
    """Mistake: a winner by chance; with few sentences a plain bootstrap declares one in a sixth of the cases."""
    outcomes = []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        one, other = (rows_of(arm, system(rng, sentences)) for arm in ("finetuned", "clone"))
        outcomes.append(outcome(one, other))
    assert outcomes.count(verdict.TIE) >= 93


def test_a_clear_difference_is_detected():
    """Mistake: intervals so wide that nothing ever wins, or a difference with the wrong sign."""
    for trial in range(10):
        rng = np.random.default_rng(trial)
        better, worse = rows_of("finetuned", system(rng, 10, 0.1)), rows_of("base", system(rng, 10))
        assert outcome(better, worse) == verdict.HIGHER_SIM
        assert outcome(worse, better) == verdict.LOWER_SIM


def test_a_tradeoff_is_reported_from_both_sides():
    """Mistake: the arm that is nearer to the voice is reported as a trade-off, and the far more intelligible one as a
    loss."""
    rng, wrong = np.random.default_rng(5), np.full((10, 2), 4)
    similar, intelligible = rows_of("near", system(rng, 10, 0.1), wrong), rows_of("clear", system(rng, 10))
    assert outcome(similar, intelligible) == verdict.HIGHER_SIM_AND_WER
    assert outcome(intelligible, similar) == verdict.LOWER_SIM_AND_WER
    assert "but further from the voice" in verdict.decide(similar + intelligible, [("clear", "near")]).headline


def test_more_comparisons_detect_less():
    """Mistake: twenty corrected comparisons are reported with the detectable difference of a single one."""
    rows = [row for number in range(20) for row in rows_of(str(number), system(np.random.default_rng(number), 10))]
    single, multiple = (details_text(verdict.decide(rows, [(str(number), "0") for number in numbers]))
                        for numbers in ([1], range(1, 20)))
    detectable = [float(text.split("(80 % power) ")[1].split()[0]) for text in (single, multiple)]
    assert detectable[1] > 1.2 * detectable[0]


def test_other_systems_are_compared_with_the_existing_arms():
    """Mistake: clone against another system, without the fine-tune, is "nothing to compare", or samples are miscounted."""
    rows = rows_of("clone", np.full((4, 2), 0.5)) + rows_of("kokoro", np.full((4, 1), 0.4), seeds=(0,))
    assert verdict.pairs_of(rows)[-1] == ("clone", "kokoro")
    assert "with 1 to 2 samples each" in details_text(verdict.decide(rows))


def details_text(decision):
    return "\n".join(decision.details)


def four_arm_verdict(finetuned, clone, both, base=0.0, wrong=0, headline=False):
    """The verdict on four arms with these gains in SIM; `wrong` of ten words are wrong in each finetuned sample."""
    rng = np.random.default_rng(3)
    gains = {"base": base, "clone": clone, "finetuned": finetuned, "finetuned+clone": both}
    rows = []
    for arm, gain in gains.items():
        word_errors = np.full((10, 2), wrong) if arm == "finetuned" else None
        rows += rows_of(arm, system(rng, 10, gain), word_errors)
    decision = verdict.decide(rows)
    return decision.headline if headline else details_text(decision)


def test_the_headline_agrees_with_the_details():
    """Mistake: a headline that is better than the evidence above it."""
    assert four_arm_verdict(finetuned=0.2, clone=0.2, both=0.3, headline=True) == (
        "In short: fine-tuning beats the base model and ties with cloning; fine-tuning with a reference beats cloning.")
    assert four_arm_verdict(finetuned=0.1, clone=0.2, both=0.2, wrong=4, headline=True) == (
        "In short: fine-tuning is nearer to the voice than the base model but less intelligible and loses to cloning; "
        "fine-tuning with a reference ties with cloning.")
    assert verdict.decide(rows_of("ground_truth", np.zeros((3, 2)))).headline == ""


def test_wins_ties_and_losses_are_reported():
    """Mistake: a tie is reported as a win, a loss is left out, or a higher similarity hides word errors."""
    text = four_arm_verdict(finetuned=0.2, clone=0.2, both=0.3)
    assert "fine-tuned model sounds more like the voice than the base model" in text
    assert "Tie: no significant difference" in text
    assert "with the reference clip sounds more like the voice than zero-shot" in text
    assert "sounds less like the voice than zero-shot cloning" in four_arm_verdict(finetuned=0.1, clone=0.2, both=0.2)
    assert "than the base model, but makes more word errors" in four_arm_verdict(finetuned=0.2, clone=0.2, both=0.2, wrong=4)
    assert "makes more word errors" in four_arm_verdict(finetuned=0.0, clone=0.0, both=0.0, wrong=4)
    assert "10 sentences with 2 samples each" in text and "95 % CI" in text and "p < 0.001" in text


def test_missing_scores_and_silent_clips_are_reported():
    """Mistake: no verdict where nothing was measured looks like a tie; silent clips are dropped without a message."""
    rows = rows_of("finetuned", system(np.random.default_rng(0), 4)) + rows_of("base", system(np.random.default_rng(1), 4))
    rows[0] |= {"failure": "silent", "word_errors": 10, "sim": 0.0}
    assert "1 clip without speech, counted as all words wrong: finetuned0-1 (silent)" in details_text(verdict.decide(rows))
    unscored = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
    decision = verdict.decide(unscored)
    assert "not measured" in decision.headline and metrics.INSTALL in decision.headline and not decision.details
    assert scoring.table(decision.figures)[1][1:4] == ["-", "-", "-"]


def test_plots_show_the_measured_values():
    """Mistake: an arm that was not measured is drawn at 0, a difference has the wrong sign, or nothing is drawn."""
    rows = [row for arm, gain in (("ground_truth", 0.2), ("base", 0.0), ("finetuned", 0.1)) for row in
            rows_of(arm, np.full((5, 2), 0.5 + gain))]
    figure = plots.plot_arms(verdict.decide(rows))
    assert sorted(text.get_text() for text in figure.axes[0].texts) == ["base", "finetuned", "ground_truth"]
    panels = plots.plot_differences(verdict.decide(rows)).axes
    assert panels[0].containers[0].lines[0].get_xdata()[0] == pytest.approx(0.1)
    assert len(panels) == 2 and [label.get_text() for label in panels[0].get_yticklabels()] == ["finetuned - base"]
    assert all(content.startswith(b"\x89PNG") and text for content, text in plots.plot(verdict.decide(rows)))
    unscored = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
    assert plots.plot(verdict.decide(unscored)) == []


def test_no_wer_interval_is_drawn_below_zero():
    """Mistake: an arm with one word error seems to have a negative WER."""
    figure = plots.plot_arms(verdict.decide(rows_of("base", np.full((5, 2), 0.5), [[1, 1], *[[0, 0]] * 4])))
    segments = [segment for lines in figure.axes[0].containers[0].lines[2] for segment in lines.get_segments()]
    assert np.min([segment[:, 0] for segment in segments]) == 0 < np.max([segment[:, 0] for segment in segments])


def test_memorized_clips_are_no_win():
    """Mistake: an arm that repeats its training clips sounds exactly like the voice, and wins."""
    rows = [row | {"memorized": row["arm"] == "finetuned" and row["sentence"] < 5}
            for arm, gain in (("base", 0.0), ("finetuned", 0.2))
            for row in rows_of(arm, system(np.random.default_rng(1), 10, gain))]
    assert verdict.decide(rows).headline == (
        "In short: fine-tuning beats the base model; but 50% of the clips of fine-tuning repeat training clips.")
    assert "10 clips memorized: nearly a training clip, and no new speech" in details_text(verdict.decide(rows))


def test_unintelligible_arms_are_reported():
    """Mistake: similarities of noise are reported as a tie between two good voices."""
    values = system(np.random.default_rng(0), 5)
    noise = [rows_of(arm, values, np.full(values.shape, 9)) for arm in ("base", "finetuned")]
    assert "could not be understood" in details_text(verdict.decide(noise[0] + noise[1]))
    clear = [rows_of(arm, values) for arm in ("base", "finetuned")]
    assert "could not be understood" not in details_text(verdict.decide(clear[0] + clear[1]))
