"""Every page at four widths, in light and in dark: nothing scrolls sideways, no word is broken, everything has a name."""

import csv
import shutil

import pytest
from conftest import make_segments

from tts_kit.comparison import compare, listening_test, plots, verdict
from tts_kit.comparison import page as comparison_page
from tts_kit.comparison.arms import ARMS
from tts_kit.config import Config
from tts_kit.data import prepare, report, review
from tts_kit.data.review import ReviewStore
from tts_kit.evaluation import scoring
from tts_kit.run import OTHER_SPEAKERS, SAMPLE_VOICE, Run

WIDTHS = (390, 768, 1024, 1440)
SCORES = {"sim": 0.71, "sim_norm": 0.3, "mos": 3.2, "ref_words": 9, "word_errors": 2, "ref_chars": 40, "char_errors": 6,
          "noisy": False, "duration_ratio": 1.1, "f0_difference": -6.7, "rate_ratio": 0.9, "memorized": False, "failure": "",
          "transcript": "Something entirely different was transcribed here", scoring.METRICS: "WER: a, SIM: b, MOS: c"}


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """Name -> address of each page, with all columns, lists, plots and texts that it can have."""
    folder = tmp_path_factory.mktemp("comparison")
    with open(SAMPLE_VOICE / "metadata.csv", encoding="utf-8") as file:
        table = list(csv.DictReader(file))[:12]
    rows = [{"arm": arm, "sentence": number, "text": row["text"], "seed": seed, "file": row["file_name"], "seconds": 2.5,
             "ended_with_eos": None if seed is None else seed == 1, "wall_seconds": 0.5, "attempts": 1} | SCORES
            for number, row in enumerate(table[:4], 1) for arm in ARMS
            for seed in ((None,) if arm in ("ground_truth", "codec") else (1, 2))]
    for row in table:
        shutil.copy(SAMPLE_VOICE / row["file_name"], folder)
    decision = verdict.decide(rows)
    headings = scoring.table(decision.figures)
    legend = compare.explain(headings[0], rows[0][scoring.METRICS]) | compare.CLIP_LEGEND
    descriptions = {name: info.description for name, info in ARMS.items()}
    comparison = comparison_page.write(
        folder / "index.html", rows, "tts_kit: emma", decision.headline, descriptions, compare.CLIP_COLUMNS,
        compare.SORT_COLUMNS, decision.details, headings, legend, plots.plot(decision), {"machine": "a desk"})
    test = listening_test.write(rows, folder, sorted(OTHER_SPEAKERS.glob("*.flac")), "tts_kit: emma",
                                test_types=("ab", "smos"), pairs=[("finetuned", "clone")])
    source = tmp_path_factory.mktemp("clips")
    for row in table:
        shutil.copy(SAMPLE_VOICE / row["file_name"], source)
    lines = ["file_name,text", *(f'{row["file_name"]},"{row["text"]}"' for row in table)]
    (source / "metadata.csv").write_text("\n".join(lines))
    run = Run("emma", tmp_path_factory.mktemp("runs"))
    prepare.prepare(source, run, Config())
    addresses = {"comparison": comparison.as_uri(), "listening test": test.as_uri(),
                 "report": report.write(run, report.analyse(run)).as_uri()}
    segments = make_segments(tmp_path_factory.mktemp("segments"))
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `dev`)")
    server = review.serve(ReviewStore(segments, "base"), "emma")
    yield addresses | {"review": server.url}
    server.close()


READY = {"review": "document.querySelectorAll('#list li').length > 0",
         "listening test": "!document.getElementById('welcome').hidden"}


@pytest.mark.parametrize("name", ["comparison", "listening test", "report", "review"])
def test_pages_fit_every_screen(chromium, pages, name):
    """Mistake: a table that is set letter by letter on a phone, a page that scrolls sideways on a tablet, a box that scrolls
    in the page, or a player without a name for who cannot see it."""
    for scheme in ("light", "dark"):
        for width in WIDTHS:
            chromium.set_viewport(width, 900, scheme)
            chromium.open(pages[name])
            chromium.wait(READY.get(name, "true"))
            chromium.assert_fits(width)
            if name == "listening test":
                chromium.run("document.getElementById('begin').click()")
                chromium.wait("!document.getElementById('trial').hidden")
                chromium.assert_fits(width)
                chromium.run("localStorage.clear()")
            boxes = chromium.run("""[...document.querySelectorAll("body, body *")].filter(element =>
                element.scrollHeight > element.clientHeight + 1 && element.clientHeight
                && /auto|scroll/.test(getComputedStyle(element).overflowY)).map(element => element.id)""")
            assert set(boxes) <= {"list", "editor"}, boxes
            assert chromium.run("""[...document.querySelectorAll("audio[controls], button, input, select, img")].every(
                element => element.ariaLabel || element.alt || element.textContent.trim() || element.labels?.length)""")
            assert chromium.console_errors() == []


def test_every_column_is_explained(chromium, pages):
    """Mistake: a heading such as rate ratio that nobody can look up, or a clip without the words that were heard in it."""
    chromium.set_viewport(1440, 900)
    chromium.open(pages["comparison"])
    titles = chromium.run("[...document.querySelectorAll('.figures th[scope=col]')].slice(1).map(e => e.title)")
    assert len(titles) == 11 and all(titles)
    assert chromium.run("[...document.querySelectorAll('.values dt:not(.warning)')].every(e => e.title)")
    assert chromium.run("[...document.querySelectorAll('#grid tbody td')].every(e => e.querySelector('q')?.textContent)")


def test_plots_follow_the_dark_scheme(chromium, pages):
    """Mistake: a white plot on a dark page, or grey ink that can hardly be read there."""
    for name in ("comparison", "report"):
        chromium.set_viewport(1440, 900, "dark")
        chromium.open(pages[name])
        style = chromium.run("(s => [s.filter, s.mixBlendMode])(getComputedStyle(document.querySelector('.plots img')))")
        assert style == ["invert(1) hue-rotate(180deg)", "screen"]
