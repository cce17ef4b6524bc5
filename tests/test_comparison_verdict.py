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
        false_differences += any(is_decided((comparison.voice, comparison.words)) for comparison in comparisons)
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
        outcomes.append(outcome(rows_of("one", system(rng, 10, difference)), rows_of("other", system(rng, 10)))[0])
    assert 0.6 < outcomes.count(verdict.HIGHER_SIM) / 60 < 0.95


def test_a_tie_is_explained():
    """Mistake: a tie that reads like equality, where so few sentences could not have shown anything."""
    text = four_arm_verdict(finetuned=0.2, clone=0.2, both=0.2)
    assert "minimum detectable difference (80 % power) 0.0" in text and "points WER" in text
    assert "To resolve what is open: about" in text and "listening test" in text
    assert "resolve" not in four_arm_verdict(finetuned=0.5, clone=0.3, both=0.6)


@pytest.mark.parametrize("sentences", [4, 10])
def test_identical_systems_tie(sentences):
    """Mistake: a winner by chance; with few sentences a plain bootstrap declares one in a sixth of the cases."""
    outcomes = []
    for trial in range(100):
        rng = np.random.default_rng(trial)
        one, other = (rows_of(arm, system(rng, sentences)) for arm in ("finetuned", "clone"))
        outcomes.append(outcome(one, other))
    assert sum(map(is_decided, outcomes)) <= 7


def test_a_clear_difference_is_detected():
    """Mistake: intervals so wide that nothing ever wins, or a difference with the wrong sign."""
    for trial in range(10):
        rng = np.random.default_rng(trial)
        better, worse = rows_of("finetuned", system(rng, 10, 0.1)), rows_of("base", system(rng, 10))
        assert outcome(better, worse)[0] == verdict.HIGHER_SIM
        assert outcome(worse, better)[0] == verdict.LOWER_SIM


def test_a_tradeoff_is_reported_from_both_sides():
    """Mistake: the arm that is nearer to the voice is reported as a trade-off, and the far more intelligible one as a
    loss."""
    rng, wrong = np.random.default_rng(5), np.full((10, 2), 4)
    similar, intelligible = rows_of("near", system(rng, 10, 0.1), wrong), rows_of("clear", system(rng, 10))
    assert outcome(similar, intelligible) == (verdict.HIGHER_SIM, verdict.HIGHER_WER)
    assert outcome(intelligible, similar) == (verdict.LOWER_SIM, verdict.LOWER_WER)
    assert verdict.decide(similar + intelligible, [("clear", "near")]).headline == (
        "Voice: clear loses to near. Words: clear has fewer errors than near.")


def test_an_interval_excludes_zero_exactly_where_something_is_decided():
    """Mistake: "a tie" above an interval that excludes 0, or a difference whose interval contains it: an interval for one
    test under a decision corrected for several."""
    close, undecided_rises = 0, 0
    for trial in range(60):
        rng = np.random.default_rng([4, trial])
        wrong = rng.binomial(10, 0.2 + 0.2 * (trial % 3 == 0), (10, 2))
        rows = rows_of("one", system(rng, 10, 0.025), wrong)
        rows += rows_of("other", system(rng, 10), rng.binomial(10, 0.2, (10, 2)))
        comparison, = verdict.compare_arms(rows, [("one", "other")])
        (low, high), (low_wer, high_wer) = comparison.intervals["sim"], comparison.intervals["wer"]
        assert (comparison.voice != verdict.TIE) == (low > 0 or high < 0) == (comparison.p_values["sim"] < verdict.ALPHA)
        is_changed = comparison.words in (verdict.HIGHER_WER, verdict.LOWER_WER)
        assert is_changed == (comparison.p_values["wer"] < verdict.ALPHA)
        assert is_changed == (low_wer > verdict.WER_MARGIN or high_wer < 0)
        sentence = verdict.decide(rows, [("one", "other")]).details[0]
        assert ("voice: a tie" in sentence) == (low <= 0 <= high), sentence
        unadjusted = comparison.differences["sim"].interval(verdict.ALPHA)
        close += (unadjusted[0] > 0) != (low > 0)
        undecided_rises += low_wer > 0 and not is_changed
    assert close and undecided_rises, "no case in which the correction matters"


def test_words_are_no_worse_only_within_the_margin():
    """Mistake: words that nobody could tell apart are called equal, however many of them may be lost."""
    few, many = np.zeros((10, 2)), np.zeros((60, 2))
    few[::3, 0] = 2
    many[::30, 0] = 1
    values = np.full((60, 2), 0.5)
    assert outcome(rows_of("a", values[:10], few), rows_of("b", values[:10]))[1] == verdict.UNDECIDED
    assert outcome(rows_of("a", values, many), rows_of("b", values))[1] == verdict.NO_HIGHER_WER


def is_decided(outcomes) -> bool:
    voice, words = outcomes
    return voice != verdict.TIE or words in (verdict.HIGHER_WER, verdict.LOWER_WER)


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
        "Voice: fine-tuning beats the base model and ties with cloning; fine-tuning with a reference beats cloning. Words: "
        "fine-tuning is no worse than the base model and is no worse than cloning; fine-tuning with a reference is no worse "
        "than cloning.")
    assert four_arm_verdict(finetuned=0.1, clone=0.2, both=0.2, wrong=4, headline=True) == (
        "Voice: fine-tuning beats the base model and loses to cloning; fine-tuning with a reference ties with cloning. "
        "Words: fine-tuning has more errors than the base model and has more errors than cloning; fine-tuning with a "
        "reference is no worse than cloning.")
    assert verdict.decide(rows_of("ground_truth", np.zeros((3, 2)))).headline == ""


def test_wins_ties_and_losses_are_reported():
    """Mistake: a tie is reported as a win, a loss is left out, or a higher similarity hides word errors."""
    text = four_arm_verdict(finetuned=0.2, clone=0.2, both=0.3)
    assert "The fine-tuned model against the base model; voice: nearer (SIM" in text
    assert "The fine-tuned model against zero-shot cloning; voice: a tie (SIM" in text
    assert "ine-tuning with the reference clip against zero-shot cloning; voice: nearer" in text
    assert "against zero-shot cloning; voice: further away" in four_arm_verdict(finetuned=0.1, clone=0.2, both=0.2)
    text_of_loss = four_arm_verdict(finetuned=0.2, clone=0.2, both=0.2, wrong=4)
    assert "words: more errors (WER 40% vs 0%, difference +40 points, CI" in text_of_loss
    assert "p < 0.001 of a rise above 3 points)." in text_of_loss
    assert "words: no more errors" in text
    assert "10 sentences with 2 samples each" in text and ", CI +0.1" in text and "p < 0.001" in text


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
        "Voice: fine-tuning beats the base model. Words: fine-tuning is no worse than the base model. But 50% of the "
        "clips of fine-tuning repeat training clips.")
    assert "10 clips memorized: nearly a training clip, and no new speech" in details_text(verdict.decide(rows))


def test_unintelligible_arms_are_reported():
    """Mistake: similarities of noise are reported as a tie between two good voices."""
    values = system(np.random.default_rng(0), 5)
    noise = [rows_of(arm, values, np.full(values.shape, 9)) for arm in ("base", "finetuned")]
    assert "could not be understood" in details_text(verdict.decide(noise[0] + noise[1]))
    clear = [rows_of(arm, values) for arm in ("base", "finetuned")]
    assert "could not be understood" not in details_text(verdict.decide(clear[0] + clear[1]))
