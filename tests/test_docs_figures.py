"""The figures in the READMEs are those of the committed results; test_speed_table has those of speed."""

import json
import re

import pytest
from test_house import ROOT

README = "\n".join(path.read_text(encoding="utf-8") for path in [
    ROOT / "README.md", *sorted(ROOT.glob("tts_kit/*/README.md")), *sorted(ROOT.glob("tests/**/README.md"))])


def read_result(name: str) -> dict:
    return json.loads((ROOT / f"tests/benchmarks/results/{name}.json").read_text(encoding="utf-8"))


def table_value(label: str) -> str:
    """Return the second column of the README row with this label."""
    cells = [line.split("|")[2].strip() for line in README.splitlines() if line.startswith(f"| {label} |")]
    assert len(cells) == 1, f"{label}: {len(cells)} rows"
    return cells[0]


def percentages(values) -> str:
    return ", ".join(f"{value * 100:.0f}" for value in values) + " %"


def test_the_demo_verdict_matches():
    """Mistake: the README has a verdict that the demo did not print."""
    printed = read_result("demo")["printed"]
    block = re.search(r"<!-- demo -->(.*)<!-- /demo -->", README, re.DOTALL)[1]
    headline, = re.findall(r"(?m)^Voice: .*$", block)
    assert headline in printed
    table = {row[0]: (row[1], row[3]) for row in map(str.split, printed) if len(row) > 5 and row[1].endswith("%")}
    arms = re.findall(r"(?m)^\| (\S+) \| (\S+%) \| (\S+) \|$", block)
    assert len(arms) == 4 and all(table[arm] == (wer, sim) for arm, wer, sim in arms)
    assert "WER {} and SIM {}.".format(*table["codec"]) in block


def test_time_and_size_on_the_first_screen_match():
    """Mistake: the README promises a smaller install or a shorter demo than was measured."""
    assert f"[{read_result('install_size')['GB']} GB](tests/benchmarks/results/install_size.json)" in README
    assert f"[{read_result('demo')['seconds'] / 60:.0f} minutes](tests/benchmarks/results/demo.json)" in README


def test_the_segmentation_figures_match():
    """Mistake: the segmentation or the flags have changed, and the README has figures of an older benchmark."""
    result = read_result("recordings")
    total, conditions = result["all"], result["conditions"]
    names, cut_words = ("quiet room", "noise at 30 dB", "noise at 20 dB", "hum"), "cut words per 100 cuts"
    rows = {"speech in no clip: quiet room, noise at 30 dB, at 20 dB, hum":
                [conditions[name]["speech lost, %"] for name in names],
            "cuts that touch an audible sound: the same, and noise at 10 dB":
                [conditions[name][cut_words] for name in (*names, "noise at 10 dB")]}
    for label, values in rows.items():
        assert table_value(label) == ", ".join(f"{value:g}" for value in values) + " %"
    assert table_value("clips with a second speaker that are flagged; others flagged by mistake") == (
        f"{total['of them flagged, %']} %; {total['other clips flagged, %']} %")
    assert table_value("WER before the review") == f"{total['WER before review, %']} %"
    assert table_value("wrong transcripts among the fifth flagged most") == (
        f"{total['of them in the fifth flagged most, %']} % of {total['wrong transcripts']}")
    for label, keys in (("segmentation, speaker embeddings", ("segmentation", "speaker embeddings")),
                        ("transcription, second transcription", ("transcription", "second transcription"))):
        seconds = [str(total[f"seconds an hour, {key}"]) for key in keys]
        assert table_value(f"seconds for an hour: {label}") == ", ".join(seconds)
    assert table_value("memory for three hours") == f"{result['three hours']['peak memory, MB']} MB"
    assert f"on {total['minutes']:.0f} minutes laid out" in README


def test_the_metric_model_figures_match():
    """Mistake: the metric models have changed, and the README has figures of the old ones."""
    result = read_result("metrics")
    human, bundled, cut, looped, same_sim, other_sim, mos_gain, mos_loss = [bound["seen"] for bound in result["bounds"][:8]]
    assert table_value("WER of human recordings and of the bundled voice") == f"{human * 100:.2f} %, {bundled * 100:.2f} %"
    assert table_value("additional WER of clips that are cut, looped") == f"{cut * 100:.0f}, {looped * 100:.0f} points"
    assert table_value("SIM of a speaker to itself, of another speaker to it") == f"{same_sim:.2f}, {other_sim:.2f}"
    assert table_value("MOS of people over espeak-ng; lost by noise at 10 dB") == f"{mos_gain:.1f}; {mos_loss:.1f}"
    seconds = result["processor seconds for a clip"]
    assert table_value(f"CPU seconds for a clip of {seconds['length of a clip']:.1f} s: WER, DNSMOS, MOS, SIM") == (
        ", ".join(f"{seconds[name]:.2f}" for name in ("wer", "noise_mos", "mos", "sim")))


def test_the_verdict_rates_match():
    """Mistake: the verdict's rule has changed, and the README has the rates of the old one."""
    cases = read_result("verdict_rates")["cases"]
    counts = ", ".join(str(case["sentences"]) for case in cases)
    assert table_value(f"identical systems that tie ({counts} sentences)") == percentages(
        case["identical systems tie"] for case in cases)
    assert table_value("a difference of the minimum detectable size is found") == percentages(
        case["difference of that size detected"] for case in cases)
    assert table_value("that difference in SIM, for the same numbers") == ", ".join(
        f"{case['minimum detectable difference in sim']:.3f}" for case in cases)


def test_the_server_load_figures_match():
    """Mistake: the load test lost an answer, or the README has the figures of another load test."""
    result = read_result("serve_load")
    assert not result["lost"] and not result["mixed up"]
    assert f"{result['requests']} requests of {result['clients']} clients were answered, none lost" in README


@pytest.mark.parametrize("name", ["recordings", "metrics", "verdict_rates", "serve_load"])
def test_results_name_their_command_and_machine(name):
    """Mistake: a measurement that cannot be repeated: no command, no machine, or no link from a README."""
    result = read_result(name)
    assert result["command"] and result["machine"] and result["versions"] and f"/{name}.json)" in README
