"""From clips to figures, intervals and the verdict, on cases whose answer is known."""

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.comparison import arms, verdict
from tts_kit.judging import intervals, judges, scores
from tts_kit.judging.judges import Judges
from tts_kit.problem import Problem

pytest.importorskip("scipy", reason="intervals need scipy, which requirements-judges.txt installs")


def rows_of(arm, similarities, wrong=None, words=10, seeds=(1, 2)):
    """Scored rows of one arm: similarities (sentences, seeds), wrong words alike."""
    similarities = np.asarray(similarities, dtype=float)
    wrong = np.zeros(similarities.shape) if wrong is None else np.asarray(wrong)
    return [{"arm": arm, "sentence": number, "text": f"sentence {number}", "seed": seed, "file": f"{arm}{number}-{seed}",
             "similarity": similarities[number, place], "wrong_words": int(wrong[number, place]), "words": words,
             "naturalness": 4.0, "stopped": True, "failure": "", "judged": "these", "seconds": 2.0}
            for number in range(len(similarities)) for place, seed in enumerate(seeds)]


def system(chance, sentences, gain=0.0, seeds=2):
    """Similarities of one system: hard sentences are hard for every system, the rest is luck."""
    hard = np.random.default_rng(99).normal(0.7, 0.04, (sentences, 1))
    return hard + gain + chance.normal(0, 0.03, (sentences, seeds))


def test_words_are_counted_over_all_clips():
    """Mistake: the mean of each clip's share, in which a short sentence counts as much as a long one."""
    rows = rows_of("tuned", [[0.5]], [[2]], words=2, seeds=(1,)) + [
        row | {"sentence": 1} for row in rows_of("tuned", [[0.5]], [[0]], words=18, seeds=(1,))]
    assert scores.figures(rows)["wrong words"].value == pytest.approx(2 / 20)


def test_no_clip_is_compared_with_itself():
    """Mistake: a mean that contains the clip, or the recording of its own words, which makes every real clip a good one."""
    east, north = np.array([1.0, 0.0]), np.array([0.0, 1.0])
    assert scores.similarity(east, {"a": east, "b": north}, "a") == 0.0
    assert scores.similarity(east, {"a": east, "b": north}, "c") == pytest.approx(2 ** -0.5)
    assert scores.similarity(east, {"a": east}, "a") is None
    assert scores.similarity(None, {"a": east, "b": north}, "a") == 0.0


@pytest.mark.parametrize("sentences", [4, 10])
def test_identical_systems_tie(sentences):
    """Mistake: a winner is declared by luck; with few sentences a plain bootstrap does so every sixth time."""
    kinds = []
    for trial in range(100):
        chance = np.random.default_rng(trial)
        one, other = (rows_of(arm, system(chance, sentences)) for arm in ("tuned", "clone"))
        kinds.append(verdict.compare(one, other))
    assert kinds.count(verdict.TIES) >= 91


def test_a_clear_gap_is_found():
    """Mistake: intervals so wide that nothing ever wins, or the sign of the difference turned round."""
    for trial in range(10):
        chance = np.random.default_rng(trial)
        better, worse = rows_of("tuned", system(chance, 10, 0.1)), rows_of("base", system(chance, 10))
        assert verdict.compare(better, worse) == verdict.WINS
        assert verdict.compare(worse, better) == verdict.LOSES


def test_the_same_sentences_are_drawn_for_both():
    """Mistake: arms drawn apart: what is hard for both then hides a small sure difference."""
    hard = np.linspace(0.3, 0.9, 12)[:, None] * np.ones((1, 2))
    found = scores.differences(rows_of("tuned", hard + 0.01), rows_of("clone", hard))["similarity"]
    assert found.above and found.high - found.low < 0.001


def test_takes_of_a_sentence_are_drawn_together():
    """Mistake: takes are drawn one by one: a hundred takes of ten sentences are taken for a hundred sentences."""
    values = np.random.default_rng(0).normal(0.7, 0.1, (10, 1))
    few, many = (scores.figures(rows_of("tuned", values.repeat(takes, 1), seeds=range(takes)))["similarity"]
                 for takes in (1, 10))
    assert many.high - many.low == pytest.approx(few.high - few.low, rel=1e-6)


def test_intervals_are_the_same_each_time_and_infinite_for_too_few():
    """Mistake: the verdict changes when it is computed again; or two sentences prove something."""
    rows = rows_of("tuned", system(np.random.default_rng(1), 8))
    assert scores.figures(rows) == scores.figures(rows)
    two = scores.figures(rows_of("tuned", [[0.2], [0.9]], seeds=(1,)))["similarity"]
    assert not two.above and not two.below and two.value == pytest.approx(0.55)
    assert two.sentences < intervals.FEWEST


def test_floor_and_ceiling_make_figures_comparable():
    """Mistake: 0.87 is reported as good although a stranger gets 0.85; or the ceiling compares clips with themselves."""
    voice = {"a": np.array([1.0, 0.0]), "b": np.array([0.6, 0.8])}
    floor, ceiling = scores.floor([np.array([0.0, 1.0])], voice), scores.ceiling(voice)
    assert ceiling == pytest.approx(0.6) and floor == pytest.approx(0.4472, abs=1e-3)
    assert scores.normalised(ceiling, floor, ceiling) == 1.0 and scores.normalised(floor, floor, ceiling) == 0.0
    with pytest.raises(Problem, match="strangers are as like"):
        scores.normalised(0.5, 0.6, 0.6)
    with pytest.raises(Problem, match="two or more"):
        scores.ceiling({"a": voice["a"]})


def told(tuned, clone, both, base=0.0, wrong=0, how=verdict.verdict):
    """The verdict on four arms with these gains; `wrong` words of ten in each tuned take."""
    chance = np.random.default_rng(3)
    gains = {"base": base, "clone": clone, "tuned": tuned, "tuned+clone": both}
    rows = []
    for arm, gain in gains.items():
        lost = np.full((10, 2), wrong) if arm == "tuned" else None
        rows += rows_of(arm, system(chance, 10, gain), lost)
    return how(rows)


def test_the_headline_says_the_same_in_short():
    """Mistake: a last sentence that is kinder than the evidence above it."""
    assert told(tuned=0.2, clone=0.2, both=0.3, how=verdict.headline) == (
        "In short: fine-tuning beats the model as it was and ties with cloning; doing both beats cloning.")
    assert told(tuned=0.1, clone=0.2, both=0.2, wrong=4, how=verdict.headline) == (
        "In short: fine-tuning is nearer to the voice than the model as it was at the cost of words and loses to "
        "cloning; doing both ties with cloning.")
    assert verdict.headline(rows_of("real", np.zeros((3, 2)))) == ""


def test_the_verdict_says_wins_ties_and_loses():
    """Mistake: a tie is sold as a win, a loss is not said, or a nearer voice hides lost words."""
    said = told(tuned=0.2, clone=0.2, both=0.3)
    assert "fine-tuned model sounds more like the voice than the model as it was" in said
    assert "it is a tie" in said.lower() and "reference clip together sounds more like the voice than cloning" in said
    assert "sounds less like the voice than cloning" in told(tuned=0.1, clone=0.2, both=0.2)
    assert "than the model as it was, but gets more words wrong" in told(tuned=0.2, clone=0.2, both=0.2, wrong=4)
    assert "gets more words wrong" in told(tuned=0.0, clone=0.0, both=0.0, wrong=4)
    assert "10 sentences with 2 takes each" in said


def test_unmeasured_and_unheard_are_said():
    """Mistake: no verdict where nothing was measured looks like a tie; silent clips are dropped without a word."""
    rows = rows_of("tuned", system(np.random.default_rng(0), 4)) + rows_of("base", system(np.random.default_rng(1), 4))
    rows[0] |= {"failure": "silent", "wrong_words": 10, "similarity": 0.0}
    assert "1 clip without anything to hear, counted as all wrong: tuned0-1 (silent)" in verdict.verdict(rows)
    unscored = [{name: value for name, value in row.items() if name != "judged"} for row in rows]
    [said] = arms.summary(unscored)
    assert "not measured" in said and "make judges" in said
    assert scores.table(unscored)[1][1:4] == ["-", "-", "-"]


def a_judge(name):
    """Judges that hear the clip's own text wherever there is sound, and count how often they are asked."""
    asked = []

    def transcribe(wave):
        asked.append(len(wave))
        return "hello there"

    return Judges({"words": name}, transcribe, lambda wave: np.array([1.0, 0.0]), lambda wave: 4.0, 1), asked


@pytest.mark.skipif(not judges.present(), reason=f"judges are not installed: {judges.INSTALL}")
def test_judging_goes_on_where_it_stopped(tmp_path):
    """Mistake: everything is judged again after a stop, or scores of two judges stand in one table."""
    tone = np.sin(np.arange(16_000) / 20).astype(np.float32) * 0.3
    rows = []
    for number in range(3):
        audio.write(tmp_path / f"{number}.flac", tone * (number > 0), 16_000)
        rows.append({"arm": "base", "sentence": number, "text": "Hello there.", "seed": 1, "file": f"{number}.flac"})
    (listeners, asked), saved = a_judge("one"), []
    references = {"other": np.array([1.0, 0.0])}
    judged = scores.judge(rows, tmp_path, listeners, lambda row: references, saved.append)
    assert len(asked) == 2 and judged[0]["failure"] == "silent" and judged[0]["wrong_words"] == 2
    assert [row["similarity"] for row in judged] == [0.0, 1.0, 1.0] and saved[-1] == judged
    assert scores.judge(judged, tmp_path, listeners, lambda row: references, saved.append) == judged and len(asked) == 2
    other, asked = a_judge("another")
    assert {row["judged"] for row in scores.judge(judged, tmp_path, other, lambda row: references, saved.append)} == {
        "words by another"} and len(asked) == 2


def test_noise_is_called_noise():
    """Mistake: similarities of noise are told as a tie between two good voices."""
    values = system(np.random.default_rng(0), 5)
    noise = [rows_of(arm, values, np.full(values.shape, 9)) for arm in ("base", "tuned")]
    assert "of noise, no voice can be told" in verdict.verdict(noise[0] + noise[1])
    clear = [rows_of(arm, values) for arm in ("base", "tuned")]
    assert "noise" not in verdict.verdict(clear[0] + clear[1])
