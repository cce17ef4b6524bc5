"""The verdict and its plots, on scores whose truth is known."""

import numpy as np
import pytest
from scored_rows import outcome, rows_of, system

from tts_kit.comparison import plots, verdict
from tts_kit.evaluation import metrics, scoring, stats


def test_many_arms_have_to_be_surer_than_three_questions():
    """Mistake: of twenty settings that are all the same one is called better, because somebody is always the luckiest."""
    lucky = 0
    for trial in range(40):
        chance = np.random.default_rng(trial)
        rows = [row for arm in ("usual", *map(str, range(20))) for row in rows_of(arm, system(chance, 10))]
        comparisons = verdict.compare_arms(rows, [(str(number), "usual") for number in range(20)])
        lucky += any(one.outcome != verdict.TIE for one in comparisons)
    assert lucky <= 6
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06]) and stats.holm([]) == []


def test_the_gap_that_can_be_shown_is_shown():
    """Mistake: a power that is promised and not kept: "10 sentences can show 0.02" where they find it every third time."""
    gaps = []
    for trial in range(30):
        chance = np.random.default_rng([1, trial])
        found = scoring.differences(rows_of("one", system(chance, 10)), rows_of("other", system(chance, 10)))["sim"]
        gaps.append(found.minimum_detectable_difference(2))
        assert found.required_sentences(gaps[-1], 2) == 10
        assert found.required_sentences(gaps[-1] / 2, 2) == pytest.approx(40, abs=1)
    gap = float(np.sqrt(np.mean(np.square(gaps))))
    kinds = []
    for trial in range(60):
        chance = np.random.default_rng([2, trial])
        kinds.append(outcome(rows_of("one", system(chance, 10, gap)), rows_of("other", system(chance, 10))))
    assert 0.6 < kinds.count(verdict.HIGHER_SIM) / 60 < 0.95


def test_a_verdict_says_what_it_could_see_and_what_would_settle_a_tie():
    """Mistake: a tie that sounds like equality, where so few sentences could not have shown anything."""
    said = told(finetuned=0.2, clone=0.2, both=0.2)
    assert "minimum detectable difference (80 % power) 0.0" in said and "points WER" in said
    assert "To resolve the ties: about" in said and "listening test" in said
    assert "resolve" not in told(finetuned=0.5, clone=0.3, both=0.6)


@pytest.mark.parametrize("sentences", [4, 10])
def test_identical_systems_tie(sentences):
    """Mistake: a winner is declared by luck; with few sentences a plain bootstrap does so every sixth time."""
    kinds = []
    for trial in range(100):
        chance = np.random.default_rng(trial)
        one, other = (rows_of(arm, system(chance, sentences)) for arm in ("finetuned", "clone"))
        kinds.append(outcome(one, other))
    assert kinds.count(verdict.TIE) >= 93


def test_a_clear_gap_is_found():
    """Mistake: intervals so wide that nothing ever wins, or the sign of the difference turned round."""
    for trial in range(10):
        chance = np.random.default_rng(trial)
        better, worse = rows_of("finetuned", system(chance, 10, 0.1)), rows_of("base", system(chance, 10))
        assert outcome(better, worse) == verdict.HIGHER_SIM
        assert outcome(worse, better) == verdict.LOWER_SIM


def test_a_voice_lost_for_words_is_a_trade_from_both_sides():
    """Mistake: the arm whose voice is nearer is said to trade, and the one that reads far better is said to lose."""
    chance, wrong = np.random.default_rng(5), np.full((10, 2), 4)
    near, clear = rows_of("near", system(chance, 10, 0.1), wrong), rows_of("clear", system(chance, 10))
    assert outcome(near, clear) == verdict.HIGHER_SIM_AND_WER
    assert outcome(clear, near) == verdict.LOWER_SIM_AND_WER
    assert "but further from the voice" in verdict.decide(near + clear, [("clear", "near")]).headline


def test_what_is_asked_more_shows_less():
    """Mistake: twenty settings that have to be sure together are promised the gap that one question alone can show."""
    rows = [row for number in range(20) for row in rows_of(str(number), system(np.random.default_rng(number), 10))]
    alone, together = (text_of(verdict.decide(rows, [(str(number), "0") for number in numbers]))
                       for numbers in ([1], range(1, 20)))
    shown = [float(said.split("(80 % power) ")[1].split()[0]) for said in (alone, together)]
    assert shown[1] > 1.2 * shown[0]


def test_other_systems_are_compared_with_what_is_there():
    """Mistake: clone against another system, without the fine-tune, is "nothing to compare"; or takes are miscounted."""
    rows = rows_of("clone", np.full((4, 2), 0.5)) + rows_of("kokoro", np.full((4, 1), 0.4), seeds=(0,))
    assert verdict.pairs_of(rows)[-1] == ("clone", "kokoro")
    assert "with 1 to 2 samples each" in text_of(verdict.decide(rows))


def text_of(decision):
    return "\n".join(decision.details)


def told(finetuned, clone, both, base=0.0, wrong=0, headline=False):
    """The verdict on four arms with these gains; `wrong` words of ten in each tuned take."""
    chance = np.random.default_rng(3)
    gains = {"base": base, "clone": clone, "finetuned": finetuned, "finetuned+clone": both}
    rows = []
    for arm, gain in gains.items():
        lost = np.full((10, 2), wrong) if arm == "finetuned" else None
        rows += rows_of(arm, system(chance, 10, gain), lost)
    decision = verdict.decide(rows)
    return decision.headline if headline else text_of(decision)


def test_the_headline_says_the_same_in_short():
    """Mistake: a last sentence that is kinder than the evidence above it."""
    assert told(finetuned=0.2, clone=0.2, both=0.3, headline=True) == (
        "In short: fine-tuning beats the base model and ties with cloning; fine-tuning with a reference beats cloning.")
    assert told(finetuned=0.1, clone=0.2, both=0.2, wrong=4, headline=True) == (
        "In short: fine-tuning is nearer to the voice than the base model but less intelligible and loses to cloning; "
        "fine-tuning with a reference ties with cloning.")
    assert verdict.decide(rows_of("ground_truth", np.zeros((3, 2)))).headline == ""


def test_the_verdict_says_wins_ties_and_loses():
    """Mistake: a tie is sold as a win, a loss is not said, or a nearer voice hides lost words."""
    said = told(finetuned=0.2, clone=0.2, both=0.3)
    assert "fine-tuned model sounds more like the voice than the base model" in said
    assert "Tie: no significant difference" in said
    assert "with the reference clip sounds more like the voice than zero-shot" in said
    assert "sounds less like the voice than zero-shot cloning" in told(finetuned=0.1, clone=0.2, both=0.2)
    assert "than the base model, but makes more word errors" in told(finetuned=0.2, clone=0.2, both=0.2, wrong=4)
    assert "makes more word errors" in told(finetuned=0.0, clone=0.0, both=0.0, wrong=4)
    assert "10 sentences with 2 samples each" in said and "95 % CI" in said and "p < 0.001" in said


def test_unmeasured_and_unheard_are_said():
    """Mistake: no verdict where nothing was measured looks like a tie; silent clips are dropped without a word."""
    rows = rows_of("finetuned", system(np.random.default_rng(0), 4)) + rows_of("base", system(np.random.default_rng(1), 4))
    rows[0] |= {"failure": "silent", "word_errors": 10, "sim": 0.0}
    assert "1 clip without speech, counted as all words wrong: finetuned0-1 (silent)" in text_of(verdict.decide(rows))
    unscored = [{name: value for name, value in row.items() if name != "metrics"} for row in rows]
    decision = verdict.decide(unscored)
    assert "not measured" in decision.headline and metrics.INSTALL in decision.headline and not decision.details
    assert scoring.table(decision.figures)[1][1:4] == ["-", "-", "-"]


def test_pictures_show_what_was_measured():
    """Mistake: an arm that was not measured stands at 0, a difference has the wrong sign, or nothing is drawn."""
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


def test_no_interval_is_drawn_below_no_words():
    """Mistake: an arm that is wrong in one word seems to be right in more than all."""
    figure = plots.plot_arms(verdict.decide(rows_of("base", np.full((5, 2), 0.5), [[1, 1], *[[0, 0]] * 4])))
    drawn = [segment for lines in figure.axes[0].containers[0].lines[2] for segment in lines.get_segments()]
    assert np.min([segment[:, 0] for segment in drawn]) == 0 < np.max([segment[:, 0] for segment in drawn])


def test_what_was_learnt_by_heart_is_no_victory():
    """Mistake: an arm that says its training clips again sounds exactly like the voice, and wins."""
    rows = [row | {"memorized": row["arm"] == "finetuned" and row["sentence"] < 5}
            for arm, gain in (("base", 0.0), ("finetuned", 0.2))
            for row in rows_of(arm, system(np.random.default_rng(1), 10, gain))]
    assert verdict.decide(rows).headline == (
        "In short: fine-tuning beats the base model; but 50% of the clips of fine-tuning repeat training clips.")
    assert "10 clips memorized: nearly a training clip, and no new speech" in text_of(verdict.decide(rows))


def test_noise_is_called_noise():
    """Mistake: similarities of noise are told as a tie between two good voices."""
    values = system(np.random.default_rng(0), 5)
    noise = [rows_of(arm, values, np.full(values.shape, 9)) for arm in ("base", "finetuned")]
    assert "could not be understood" in text_of(verdict.decide(noise[0] + noise[1]))
    clear = [rows_of(arm, values) for arm in ("base", "finetuned")]
    assert "could not be understood" not in text_of(verdict.decide(clear[0] + clear[1]))
