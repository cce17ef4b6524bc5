"""The figures that README tells are those of the committed results; test_speed_table has those of speed."""

import json

import pytest
from test_house import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def read(name: str) -> dict:
    folder = ROOT / ("sample_data/tiny-csm" if name == "results" else "tests/benchmarks/results")
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def row(label: str) -> str:
    """What stands in README's second column, beside this label."""
    found = [line.split("|")[2].strip() for line in README.splitlines() if line.startswith(f"| {label} |")]
    assert len(found) == 1, f"{label}: {len(found)} rows of README"
    return found[0]


def shares(values) -> str:
    return ", ".join(f"{value * 100:.0f}" for value in values) + " %"


def test_the_demo_ends_as_it_did():
    """Mistake: a verdict in README that the demo no longer prints, or prettier than it was."""
    found = read("demo")
    seconds, printed = found["seconds"], found["printed"]
    table = next(number for number, line in enumerate(printed) if line.startswith("arm ")) - 1
    assert "\n".join(["```", *printed[table:], "```"]) in README
    assert f"{seconds // 60}:{seconds % 60:02} minutes" in README
    assert f"training {found['stages']['train']} seconds of them" in README


def test_recordings_are_cut_as_well_as_said():
    """Mistake: the cutting or the review got better or worse, and README tells of an older trial."""
    found = read("recordings")
    total, conditions = found["all"], found["conditions"]
    some = ("quiet room", "noise at 30 dB", "noise at 20 dB", "hum")
    lost, cut = "speech lost, %", "cut words per 100 cuts"
    rows = {
        "speech in no clip: quiet room, noise at 30 dB, at 20 dB, hum": [conditions[name][lost] for name in some],
        "cuts that touch an audible sound: the same, and noise at 10 dB":
            [conditions[name][cut] for name in (*some, "noise at 10 dB")]}
    for label, values in rows.items():
        assert row(label) == ", ".join(f"{value:g}" for value in values) + " %"
    assert row("clips with a second speaker that are pointed out; others pointed out by mistake") == (
        f"{total['of them suspected, %']} %; {total['clips without, suspected, %']} %")
    assert row("wrong words before the review") == f"{total['WER before review, %']} %"
    assert row("wrong transcripts among the most suspicious fifth") == (
        f"{total['of them in the most suspicious fifth, %']} % of {total['wrong transcripts']}")
    for label, names in (("cutting, comparing voices", ("cutting", "voices")),
                         ("writing down, hearing it again", ("writing down", "hearing it again"))):
        assert row(f"seconds for an hour: {label}") == ", ".join(str(total[f"seconds an hour, {name}"]) for name in names)
    assert row("memory for three hours") == f"{found['three hours']['most memory, MB']} MB"
    assert f"on {total['minutes']:.0f} minutes laid out" in README


def test_judges_are_as_good_as_said():
    """Mistake: another judge or another version, and README tells how far the old one could be trusted."""
    found = read("metrics")
    seen = {bound["what"]: bound["seen"] for bound in found["bounds"]}
    person, bundled, cut, looped, itself, other, over, noise = list(seen.values())[:8]
    assert row("wrong words of people and of the bundled voice") == f"{person * 100:.2f} %, {bundled * 100:.2f} %"
    assert row("wrong words more in clips that are cut, looped") == f"{cut * 100:.0f}, {looped * 100:.0f} points"
    assert row("similarity of a speaker to itself, of another speaker to it") == f"{itself:.2f}, {other:.2f}"
    assert row("naturalness of people over espeak-ng; lost by noise at 10 dB") == f"{over:.1f}; {noise:.1f}"
    spent = found["processor seconds for a clip"]
    assert row(f"processor seconds for a clip of {spent['length of a clip']:.1f} s: words, noise, naturalness, voice") == (
        ", ".join(f"{spent[name]:.2f}" for name in ("wer", "noise_mos", "mos", "sim")))


def test_the_verdict_errs_as_often_as_said():
    """Mistake: the verdict's rule was changed, and README promises the old one's rates."""
    cases = read("verdict_rates")["cases"]
    assert row(f"two systems that are the same are called a tie ({', '.join(str(case['sentences']) for case in cases)} "
               "sentences)") == shares(case["identical systems tie"] for case in cases)
    assert row("a gap of the size that the verdict says it can show is found") == shares(case["difference of that size detected"] for case in cases)
    assert row("which gap in similarity that is, for the same numbers") == ", ".join(
        f"{case['minimum detectable difference in sim']:.3f}" for case in cases)


def test_the_server_stood_what_is_said():
    """Mistake: a load run that lost an answer, or another load than README tells."""
    found = read("serve_load")
    assert not found["lost"] and not found["mixed up"]
    assert f"{found['requests']} requests of {found['clients']} clients were answered, none lost" in README


def test_the_bundled_model_is_as_good_as_said():
    """Mistake: another model was shipped, and README tells of the old one."""
    found = read("results")
    values = {goal["goal"]: goal["seen"]["value"] for goal in found["goals"]}
    told = README.partition("## The bundled model")[2].partition("\n## ")[0]
    assert f"but {values['clone: WER at most 20 %'] * 100:.0f} % of the words" in told
    assert f"its codec alone costs {values['codec: WER at most 10 %'] * 100:.0f} %" in told
    numbers = {6: "six", 7: "seven", 8: "eight", 9: "nine", 10: "ten"}
    assert f"Of ten goals it reaches {numbers[sum(goal['reached'] for goal in found['goals'])]}" in told
    assert len(found["goals"]) == 10 and len(found["seeds"]) == 3 and "50 sentences in three takes" in told


@pytest.mark.parametrize("name", ["demo", "recordings", "metrics", "verdict_rates", "serve_load", "results"])
def test_a_figure_names_its_origin(name):
    """Mistake: a measurement that nobody can repeat: no command, no machine, or no link from README."""
    found = read(name)
    assert found["command"] and found["machine"] and found["versions"] and f"/{name}.json)" in README
