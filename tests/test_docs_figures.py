"""The figures in the READMEs are those of the committed results; test_speed_table has those of speed."""

import json
import re

import pytest
from test_house import ROOT

README = "\n".join(path.read_text(encoding="utf-8") for path in [
    ROOT / "README.md", *sorted(ROOT.glob("tts_kit/*/README.md")), *sorted(ROOT.glob("tests/**/README.md"))])


def read(name: str) -> dict:
    return json.loads((ROOT / f"tests/benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def measured(label: str) -> str:
    """The second column of the row with this label."""
    cells = [line.split("|")[2].strip() for line in README.splitlines() if line.startswith(f"| {label} |")]
    assert len(cells) == 1, f"{label}: {len(cells)} rows"
    return cells[0]


def shares(values) -> str:
    return ", ".join(f"{value * 100:.0f}" for value in values) + " %"


def test_the_demo_ends_as_it_did():
    """Mistake: a verdict in README that the demo no longer prints, or prettier than it was."""
    printed = read("demo")["printed"]
    assert all(line in printed for line in re.findall(r"(?m)^In short: .*$", README))


def test_recordings_are_segmented_as_well_as_said():
    """Mistake: the segmentation or the flags got better or worse, and the README tells of an older trial."""
    found = read("recordings")
    total, conditions = found["all"], found["conditions"]
    names, lost, cut = ("quiet room", "noise at 30 dB", "noise at 20 dB", "hum"), "speech lost, %", "cut words per 100 cuts"
    rows = {"speech in no clip: quiet room, noise at 30 dB, at 20 dB, hum": [conditions[name][lost] for name in names],
            "cuts that touch an audible sound: the same, and noise at 10 dB":
                [conditions[name][cut] for name in (*names, "noise at 10 dB")]}
    for label, values in rows.items():
        assert measured(label) == ", ".join(f"{value:g}" for value in values) + " %"
    assert measured("clips with a second speaker that are flagged; others flagged by mistake") == (
        f"{total['of them suspected, %']} %; {total['clips without, suspected, %']} %")
    assert measured("WER before the review") == f"{total['WER before review, %']} %"
    assert measured("wrong transcripts among the fifth flagged most") == (
        f"{total['of them in the most suspicious fifth, %']} % of {total['wrong transcripts']}")
    for label, keys in (("segmentation, speaker embeddings", ("cutting", "voices")),
                        ("transcription, second transcription", ("writing down", "hearing it again"))):
        assert measured(f"seconds for an hour: {label}") == ", ".join(str(total[f"seconds an hour, {key}"]) for key in keys)
    assert measured("memory for three hours") == f"{found['three hours']['most memory, MB']} MB"
    assert f"on {total['minutes']:.0f} minutes laid out" in README


def test_metric_models_are_as_good_as_said():
    """Mistake: another metric model or another version, and the README tells how far the old one could be trusted."""
    found = read("metrics")
    person, bundled, cut, looped, itself, other, over, noise = [bound["seen"] for bound in found["bounds"]][:8]
    assert measured("WER of human recordings and of the bundled voice") == f"{person * 100:.2f} %, {bundled * 100:.2f} %"
    assert measured("additional WER of clips that are cut, looped") == f"{cut * 100:.0f}, {looped * 100:.0f} points"
    assert measured("SIM of a speaker to itself, of another speaker to it") == f"{itself:.2f}, {other:.2f}"
    assert measured("MOS of people over espeak-ng; lost by noise at 10 dB") == f"{over:.1f}; {noise:.1f}"
    spent = found["processor seconds for a clip"]
    assert measured(f"CPU seconds for a clip of {spent['length of a clip']:.1f} s: WER, DNSMOS, MOS, SIM") == (
        ", ".join(f"{spent[name]:.2f}" for name in ("wer", "noise_mos", "mos", "sim")))


def test_the_verdict_errs_as_often_as_said():
    """Mistake: the verdict's rule was changed, and the README promises the old one's rates."""
    cases = read("verdict_rates")["cases"]
    counts = ", ".join(str(case["sentences"]) for case in cases)
    assert measured(f"identical systems that tie ({counts} sentences)") == shares(
        case["identical systems tie"] for case in cases)
    assert measured("a difference of the minimum detectable size is found") == shares(
        case["difference of that size detected"] for case in cases)
    assert measured("that difference in SIM, for the same numbers") == ", ".join(
        f"{case['minimum detectable difference in sim']:.3f}" for case in cases)


def test_the_server_stood_what_is_said():
    """Mistake: a load run that lost an answer, or another load than the README tells."""
    found = read("serve_load")
    assert not found["lost"] and not found["mixed up"]
    assert f"{found['requests']} requests of {found['clients']} clients were answered, none lost" in README


@pytest.mark.parametrize("name", ["recordings", "metrics", "verdict_rates", "serve_load"])
def test_a_figure_names_its_origin(name):
    """Mistake: a measurement that nobody can repeat: no command, no machine, or no link from a README."""
    found = read(name)
    assert found["command"] and found["machine"] and found["versions"] and f"/{name}.json)" in README
