"""The benchmark of fine-tuning: goals are decided by paired differences over all voices."""

from tests.benchmarks import finetuning
from tts_kit.evaluation import scoring


def rows(errors: dict[str, float], sims: dict[str, float]) -> list[dict]:
    """Return rows of all arms, 20 sentences of ten words in two voices."""
    scored = []
    for arm in (*finetuning.ARMS, finetuning.RECOMMENDED):
        for number in range(40):
            wrong = 10 * errors.get(arm, 0.3)
            scored.append({"arm": arm, "sentence": f"{'ab'[number % 2]} {number}", "seed": 1, "file": f"{arm}-{number}",
                           "ref_words": 10, "word_errors": wrong + number % 3 - 1, "mos": 2.0, "ended_with_eos": True,
                           "sim": sims.get(arm, 0.7) + 0.01 * (number % 3), scoring.METRICS: "models"})
    return scored


def summarize(errors=(), sims=(), worth=(0.5, 0.6)) -> dict:
    recommendations = {"a": {"settings": {"guidance": 2.0}, "worth": dict(zip(("finetuned", "recommended"), worth))},
                       "b": {"settings": {}, "worth": {"finetuned": 0.5, "recommended": 0.5}}}
    return finetuning.summarize(rows(dict(errors), dict(sims)), recommendations)


def test_each_goal_is_decided_by_its_own_difference():
    """Mistake: a goal that is reached whatever was measured, or that looks at another arm."""
    nothing = summarize()
    assert list(nothing["goals"].values()) == [False, True, True, False, False]
    won = summarize({"recommended": 0.32, "base:guidance=2": 0.2, "clone:best_of=4": 0.15}, {"recommended": 0.75})
    assert list(won["goals"].values()) == [True, True, False, True, True]
    lost = summarize({"recommended": 0.4, "clone:guidance=2": 0.2}, {"recommended": 0.6, "clone:guidance=2": 0.6})
    assert list(lost["goals"].values()) == [False, False, False, False, False]
    assert won["against the same arm without"]["clone:best_of=4"]["relative wer"] < -0.4


def test_only_voices_with_recommended_settings_count():
    """Mistake: a voice that keeps its own settings counts as one that the recommendation did not help."""
    better, worse = summarize(worth=(0.5, 0.6)), summarize(worth=(0.6, 0.5))
    assert better["voices with recommended settings"] == worse["voices with recommended settings"] == 1
    assert better["of which better than the default"] == 1 and worse["of which better than the default"] == 0
