"""The listening page: what its file holds, and how it behaves in a real browser."""

import base64
import html
import json
import os
import re

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.comparison import page
from tts_kit.comparison.arms import ARMS
from tts_kit.run import SAMPLE_VOICE

RATE = 24_000
SECONDS = {None: 0.8, 1: 1.6, 2: 1.1}
DESCRIPTIONS = {name: info.description for name, info in ARMS.items()}
COLUMNS, SORT_COLUMNS = {"sim": "SIM", "wer": "WER"}, {"seconds": "seconds"}
HOSTILE = '<img src=x onerror="window.hurt=1">\u2028"\'</script><!--<script>window.hurt=1//'
TEXTS = ["The lamps along the river went out.", HOSTILE, "Where are the keys?"]


def voice(seconds: float, amplitude: float = 0.2) -> np.ndarray:
    """A signal with harmonics, syllables and breath, (samples,)."""
    times = np.arange(int(seconds * RATE)) / RATE
    tone = sum(np.sin(2 * np.pi * k * (130 * times + 3 * np.sin(4 * times))) / k for k in range(1, 30))
    breath = np.random.default_rng(0).standard_normal(len(times))
    return (amplitude * (tone + 0.2 * breath) * (0.55 + 0.45 * np.sin(20 * times)) / 2).astype(np.float32)


def row(folder, arm="base", sentence=1, seed=1, **changes) -> dict:
    """A row of scores.jsonl and its clip on disk."""
    file = f"clips/{arm}/{sentence:03}-{seed}.flac"
    audio.write(folder / file, voice(SECONDS[seed]), RATE)
    return {"arm": arm, "sentence": sentence, "text": TEXTS[sentence - 1], "seed": seed, "file": file,
            "seconds": SECONDS[seed], "ended_with_eos": None, "wall_seconds": 0.5, "takes": 1} | changes


def write(rows, folder, title="A page", lead="Nothing was scored.", **parts) -> str:
    parts = {"facts": {"machine": "a desk"}, "sort_columns": SORT_COLUMNS} | parts
    return page.write(folder / "index.html", rows, title, lead, DESCRIPTIONS, COLUMNS, **parts).read_text()


def embedded(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def clips_of(text: str) -> list[dict]:
    return [clip for sentence in embedded(text)["sentences"] for clip in sentence["clips"]]


def test_headline_details_and_legend_are_in_this_order(tmp_path):
    """Mistake: the verdict is lost in a block of figures, or its text is taken for markup."""
    text = write([row(tmp_path)], tmp_path, lead="In short: <it> won.", details=["Because <b>so</b>."],
                 table=[["arm", "WER"], ["base", "5 %"]], legend={"WER": "word <error> rate"})
    assert '<p class="lead" dir="auto">In short: &lt;it&gt; won.</p>' in text
    assert '<ul class="details"><li dir="auto">Because &lt;b&gt;so&lt;/b&gt;.</li></ul>' in text
    assert "<tr><th scope=\"row\">base</th><td>5 %</td></tr>" in text
    assert "<dt>WER</dt><dd dir=\"auto\">word &lt;error&gt; rate</dd>" in text


def test_twenty_sentences_in_six_arms_fit_in_an_email(tmp_path):
    """Mistake: a page of 30 MB that no mailbox accepts; measured on ten seconds of real speech per clip."""
    samples = np.concatenate([audio.read(path, RATE) for path in sorted(SAMPLE_VOICE.glob("*.flac"))[:5]])[:10 * RATE]
    rows = [row(tmp_path, arm=arm) for arm in ARMS]
    for clip_row in rows:
        audio.write(tmp_path / clip_row["file"], samples, RATE)
    size = len(write(rows, tmp_path))
    for clip_row in rows[1:]:
        (tmp_path / clip_row["file"]).unlink()
    clip_bytes = (size - len(write(rows, tmp_path))) / (len(ARMS) - 1)
    assert clip_bytes > 50e3 and 20 * len(ARMS) * clip_bytes < 15e6 - 100e3


def test_plots_and_descriptions_of_arms_are_on_the_page(tmp_path):
    """Mistake: a plot without alternative text, or a column without an explanation."""
    text = write([row(tmp_path), row(tmp_path, arm="codec")], tmp_path, plots=[(b"\x89PNG", '"quoted" <words>')])
    assert 'src="data:image/png;base64,iVBORw=="' in text and "&quot;quoted&quot; &lt;words&gt;" in text
    assert [arm["meaning"] for arm in embedded(text)["arms"]] == [DESCRIPTIONS["codec"], DESCRIPTIONS["base"]]


@pytest.mark.parametrize("file", ["../secret.flac", "clips/../../secret.flac", "/etc/passwd", "clips/link.flac", "a\0b"])
def test_files_stay_inside_the_folder(tmp_path, file):
    """Mistake: a row's file is joined to the folder unchecked, and a page can contain any file of the machine."""
    audio.write(tmp_path / "secret.flac", voice(0.5), RATE)
    folder = tmp_path / "comparison"
    good = row(folder)
    (folder / "clips/link.flac").symlink_to(tmp_path / "secret.flac")
    text = write([good, good | {"seed": 2, "file": file}], folder)
    inside, outside = clips_of(text)
    assert inside["sound"] and "sound" not in outside and "lies outside the page's folder" in outside["problem"]
    assert str(folder) not in text


def test_arms_have_their_order_and_unmeasured_columns_are_left_out(tmp_path):
    """Mistake: columns in order of appearance; an empty column; a seed that the browser rounds."""
    rows = [row(tmp_path, "other", sim=0.25), row(tmp_path, "finetuned+clone") | {"seed": 2 ** 60},
            row(tmp_path, "ground_truth", seed=None, sim=0.5), row(tmp_path, "codec", seed=None)]
    data = embedded(write(rows, tmp_path))
    assert [arm["name"] for arm in data["arms"]] == ["ground_truth", "codec", "finetuned+clone", "other"]
    assert data["columns"] == [{"heading": "SIM", "in_cell": True, "meaning": ""},
                               {"heading": "seconds", "in_cell": False, "meaning": ""}]
    assert [(clip["values"], clip["seed"]) for clip in data["sentences"][0]["clips"]] == [
        ([0.25, SECONDS[1]], "1"), ([None, SECONDS[1]], str(2 ** 60)), ([0.5, SECONDS[None]], None),
        ([None, SECONDS[None]], None)]


def test_missing_and_silent_clips_do_not_stop_the_page(tmp_path, capsys):
    """Mistake: one lost file among hundreds and no page at all, or a page that names folders of this machine."""
    rows = [row(tmp_path), row(tmp_path, seed=2), row(tmp_path, "finetuned"), row(tmp_path, "clone")]
    (tmp_path / rows[1]["file"]).unlink()
    audio.write(tmp_path / rows[2]["file"], np.zeros(RATE, np.float32), RATE)
    (tmp_path / rows[3]["file"]).write_bytes(b"not audio")
    text = write(rows, tmp_path)
    playable, missing, silent, broken = clips_of(text)
    assert playable["sound"] and "is missing" in missing["problem"]
    assert "silent" in silent["problem"] and "cannot be read" in broken["problem"]
    assert "3 of 4 clips" in capsys.readouterr().out and str(tmp_path) not in text


def test_clips_are_equally_loud_mp3(tmp_path):
    """Mistake: clips are embedded as they are, so that the louder arm sounds better."""
    rows = [row(tmp_path), row(tmp_path, "finetuned")]
    audio.write(tmp_path / rows[0]["file"], voice(1.5, amplitude=0.01), RATE)
    audio.write(tmp_path / rows[1]["file"], voice(1.5, amplitude=0.4), RATE)
    levels = []
    for clip in clips_of(write(rows, tmp_path)):
        kind, content = clip["sound"].split(";base64,")
        assert kind == "data:audio/mpeg" and clip["picture"].startswith("data:image/png;base64,iVBOR")
        levels.append(audio.loudness(audio.read(base64.b64decode(content), RATE), RATE))
    assert abs(levels[0] - levels[1]) < 0.5


def test_a_whole_comparison_stays_small(tmp_path):
    """Mistake: WAV or large pictures inside the page: 20 sentences x 6 arms x 4 s must stay under 15 MB."""
    rows = [row(tmp_path, arm) for arm in ARMS]
    for clip_row in rows:
        audio.write(tmp_path / clip_row["file"], voice(4), RATE)
    clips = clips_of(write(rows, tmp_path))
    assert 20 * len(json.dumps(clips)) < 15_000_000 and len(clips) == 6


def test_the_page_is_replaced_atomically_and_needs_no_network(tmp_path):
    """Mistake: the old page is overwritten while it is read; a font, script or style from the network."""
    (tmp_path / "index.html").write_text("the old page")
    os.link(tmp_path / "index.html", tmp_path / "reader")
    text = write([row(tmp_path)], tmp_path)
    assert (tmp_path / "reader").read_text() == "the old page"
    markup = re.sub(r"(base64,|'sha256-)[\w+/=]+", "", text)
    assert not re.search(r"https?:|//[a-z]|@import|@font-face|<link|\b(src|href)=", markup)
    policy = html.unescape(re.search(r'Content-Security-Policy" content="(.*?)"', text)[1])
    rules = dict(rule.split(" ", 1) for rule in policy.split("; "))
    assert all(rules.pop(name).startswith("'sha256-") for name in ("script-src", "style-src"))
    assert rules == {"default-src": "'none'", "media-src": "data:", "img-src": "data:", "base-uri": "'none'",
                     "form-action": "'none'"}


def test_hostile_text_is_escaped_in_the_file(tmp_path):
    """Mistake: a text from the data ends the script element, or a fact is inserted as HTML."""
    rows = [row(tmp_path, sentence=2, text=HOSTILE + "\ud800")]
    text = write(rows, tmp_path, HOSTILE, HOSTILE, facts={HOSTILE: {HOSTILE: None}}, details=[HOSTILE],
                 legend={HOSTILE: HOSTILE}, table=[[HOSTILE]] * 2)
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert embedded(text)["sentences"][0]["text"] == HOSTILE + "\ud800"


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Three sentences, one of them hostile, in seven arms; generated ones with two seeds; one clip is missing."""
    folder = tmp_path_factory.mktemp("comparison")
    rows = [row(folder, arm, sentence, seed, wer=sentence / 10, ended_with_eos=seed != 2 if seed else None)
            for sentence in (1, 2, 3) for arm in ARMS
            for seed in ((None,) if arm in ("ground_truth", "codec") else (1, 2) if sentence == 1 else (1,))]
    rows.append(row(folder, "base", 3, 2) | {"arm": f"arm {HOSTILE}", HOSTILE: 7, "__proto__": 3, "transcript": HOSTILE,
                                             "word_errors": 1})
    next(item for item in rows if item["arm"] == "clone" and item["sentence"] == 3)["file"] = "clips/nowhere.flac"
    return page.write(folder / "index.html", rows, f"Title {HOSTILE}", f"Sentence {HOSTILE}", DESCRIPTIONS,
                      {"wer": "WER", HOSTILE: HOSTILE, "__proto__": "__proto__"}, SORT_COLUMNS,
                      facts={f"fact {HOSTILE}": HOSTILE})


@pytest.fixture
def browser(chromium, site):
    """The page freshly opened; no test may leave an error in the console or a request to a network."""
    chromium.set_viewport(1280, 800)
    chromium.open(site.as_uri())
    yield chromium
    assert chromium.console_errors() == []
    urls = {event["params"]["request"]["url"] for event in chromium.events
            if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith("data:")} <= {site.as_uri()}


def test_every_cell_is_present(browser):
    """Mistake: a sentence, an arm or an absent clip without a cell, so that columns do not line up."""
    assert browser.run("[...document.querySelectorAll('.names th')].map(e => e.textContent)")[:7] == ["sentence", *ARMS]
    assert browser.run("[...document.querySelectorAll('tbody tr')].map(e => e.cells.length)") == [8, 8, 8]
    assert browser.run("document.querySelectorAll('.play').length") == 3 * 6 - 1 + 1
    absent = browser.run("[...document.querySelectorAll('.absence')].map(e => e.textContent)")
    assert absent[:2] == ["no clip", "no clip"] and "is missing" in absent[2]
    assert "the upper bound" in browser.run("document.querySelector('.meanings').innerText")
    totals = browser.run("""[...document.querySelectorAll("tfoot tr")].map(
        row => [...row.cells].slice(0, 7).map(cell => cell.lastChild.data))""")
    assert ["no EOS", "–", "–", "1 of 4", "1 of 4", "1 of 4", "1 of 4"] in totals
    assert ["mean WER", *["0.20"] * 2, *["0.17"] * 4] in totals


def test_only_one_clip_plays_at_a_time(browser):
    """Mistake: a button shows a pause sign while no audio is decoded, or two clips play at once."""
    browser.click("tbody tr:nth-child(1) td:nth-child(2) .play")
    browser.wait("player.audio.readyState >= 2 && player.audio.currentTime > 0.05")
    assert browser.run("player.audio.error === null && Math.abs(player.audio.duration - 0.8) < 0.15")
    assert browser.run("document.querySelector('.playing').style.getPropertyValue('--progress') > 0")
    browser.click("tbody tr:nth-child(1) td:nth-child(4) .play")
    browser.wait("document.querySelector('.playing')?.cellIndex === 3 && player.audio.currentTime > 0.05")
    assert browser.run("['audio', '.playing'].map(selector => document.querySelectorAll(selector).length)") == [1, 1]
    assert browser.run("document.querySelector('.playing .play').ariaLabel").startswith("Pause base, sentence 1")
    browser.click(".playing .play")
    browser.wait("player.audio.paused && !document.querySelector('.playing')")


def test_all_clips_of_a_sentence_play_in_turn(browser):
    """Mistake: the row stops after its first clip, skips an arm, or goes on after another clip was chosen."""
    browser.run("""window.begun = []; player.audio.addEventListener("play", () => begun.push(player.clip.arm));
        player.audio.addEventListener("playing", () => {
            if (player.audio.currentTime < 0.1) player.audio.currentTime = player.audio.duration - 0.05; })""")
    browser.click("tbody tr:nth-child(3) .all")
    browser.wait("player.audio.paused && begun.length === 6")
    assert browser.run("begun")[:5] == ["ground_truth", "codec", "base", "finetuned", "finetuned+clone"]
    browser.click("tbody tr:nth-child(3) .all")
    browser.click("tbody tr:nth-child(3) td:nth-child(6) .play")
    browser.wait("player.audio.paused && begun.at(-1) === 'finetuned'")
    assert browser.run("queue") == []


def test_another_arm_begins_where_the_last_one_was(browser):
    """Mistake: two voices can be compared from the beginning only, or the position is kept unasked."""
    browser.run("player.audio.addEventListener('playing', () => { window.began = player.audio.currentTime; })")
    for kept in (False, True):
        browser.click("tbody tr:nth-child(1) td:nth-child(4) .picture", across=0.5)
        browser.wait("window.began > 0.7")
        if kept:
            browser.click("#keep")
        browser.click("tbody tr:nth-child(1) td:nth-child(5) .play")
        browser.wait(f"player.clip.arm === 'clone' && window.began {'> 0.7' if kept else '< 0.3'}")
        browser.click(".playing .play")


def test_a_click_on_the_spectrogram_seeks(browser):
    """Mistake: seeking before the length is known, which starts every clip at zero."""
    browser.run("player.audio.addEventListener('playing', () => { window.began = player.audio.currentTime; })")
    browser.click("tbody tr:nth-child(3) td:nth-child(2) .picture", across=0.75)
    browser.wait("window.began > 0.55 && window.began < 0.75")
    browser.wait("player.audio.ended && !document.querySelector('.playing')")


def test_the_seed_switch_changes_the_clip(browser):
    """Mistake: another seed is selected, but the old clip plays."""
    browser.click("tbody tr:nth-child(1) td:nth-child(6) .play")
    browser.wait("Math.abs(player.audio.duration - 1.6) < 0.15 && player.audio.currentTime > 0")
    assert browser.run("document.querySelectorAll('tr:nth-child(1) .warning').length") == 0
    browser.click("tbody tr:nth-child(1) .seeds button:nth-of-type(2)")
    browser.wait("Math.abs(player.audio.duration - 1.1) < 0.15 && player.audio.currentTime > 0")
    assert browser.run("document.querySelectorAll('tr:nth-child(1) .warning').length") == 4
    pressed = "[...document.querySelectorAll('tbody .seeds button')].map(e => e.ariaPressed)"
    assert browser.run(pressed) == ["false", "true"]


def test_filter_and_sort(browser):
    """Mistake: rows stay when no word matches; a hidden row goes on playing; numbers are sorted as text."""
    numbers = "[...document.querySelectorAll('tbody tr:not([hidden]) .number')].map(e => e.textContent).join()"
    browser.click("tbody tr:nth-child(1) td:nth-child(4) .play")
    browser.wait("player.audio.currentTime > 0")
    browser.click("#filter")
    browser.call("Input.insertText", text="KEYS the")
    assert browser.run(numbers) == "3" and "1 of 3" in browser.run("document.querySelector('#count').textContent")
    assert browser.run("player.audio.paused && !player.audio.ended")
    browser.call("Input.insertText", text="zzz")
    assert browser.run(numbers) == "" and browser.run("!document.querySelector('#nothing').hidden")
    browser.press("Escape")
    assert browser.run(numbers) == "1,2,3"
    browser.click("#direction")
    assert browser.run(numbers) == "3,2,1"
    browser.run("column.value = page.columns.findIndex(item => item.heading === 'seconds'); arm.value = 4; applySort()")
    assert browser.run(numbers) == "2,3,1"


def test_the_keyboard_controls_the_page(browser):
    """Mistake: a page that only a mouse can use."""
    focused = """(cell => cell && [cell.parentElement.rowIndex - 1, cell.cellIndex])(
        document.activeElement.closest("td"))"""
    browser.run("document.querySelector('#direction').focus()")
    for _ in range(9):
        if browser.run(focused) != [1, 1]:
            browser.press("Tab")
    assert browser.run(focused) == [1, 1]
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown", "ArrowRight", "ArrowUp", "ArrowUp"):
        browser.press(key)
    assert browser.run(focused) == [1, 4]
    browser.press("2")
    browser.press(" ")
    browser.wait("player.audio.currentTime > 0 && Math.abs(player.audio.duration - 1.1) < 0.15")
    browser.press(" ")
    browser.wait("player.audio.paused")
    expected = browser.run("Math.min(player.audio.currentTime + 0.5, player.audio.duration)")
    browser.press("ArrowRight", shift=True)
    assert browser.run("player.audio.currentTime") == pytest.approx(expected, abs=0.01)
    browser.press("/")
    assert browser.run("document.activeElement.id") == "filter"
    assert browser.run("[...document.querySelectorAll('button')].every(e => e.textContent || e.ariaLabel)")


def test_hostile_text_is_displayed_as_text(browser):
    """Mistake: innerHTML somewhere between the data and the page."""
    assert browser.run("document.querySelectorAll('tbody th p')[1].textContent") == HOSTILE
    assert browser.run("[document.querySelector('h1').textContent, document.title]") == [f"Title {HOSTILE}"] * 2
    assert browser.run("[...document.querySelectorAll('.facts dd')].map(e => e.textContent)") == [HOSTILE]
    assert browser.run("document.querySelectorAll('.names th')[7].textContent") == f"arm {HOSTILE}"
    assert browser.run("[document.images.length, document.scripts.length]") == [0, 2]
    assert browser.run("typeof window.hurt") == "undefined"


def test_the_policy_blocks_injected_markup(browser):
    """Mistake: a policy that lets an injected handler run or a picture send a request."""
    broken = browser.run("""new Promise(done => {
        const seen = new Set();
        document.addEventListener("securitypolicyviolation", event => {
            seen.add(event.effectiveDirective);
            if (seen.size === 3) done([...seen].sort().join());
        });
        document.body.insertAdjacentHTML("beforeend", '<p onclick="window.hurt=1" style="color:red">');
        new Image().src = "http://127.0.0.1:9/";
    })""")
    assert broken == "img-src,script-src-attr,style-src-attr"
    browser.events.clear()


@pytest.mark.parametrize("width, height", [(1280, 800), (390, 844)])
def test_the_page_fits_the_screen(browser, width, height):
    """Mistake: a page that scrolls sideways on a laptop or a phone, or whose header scrolls away."""
    browser.run("document.querySelectorAll('tr > :nth-child(8)').forEach(e => e.remove())")
    browser.set_viewport(width, height)
    browser.run("fold()")
    assert browser.run("document.documentElement.scrollWidth") <= width
    browser.run("document.querySelectorAll('.sentence')[1].lastElementChild.scrollIntoView({block: 'start'})")
    sticky = ".sentence:nth-child(2) th" if width < 500 else ".names th"
    tops = browser.run(f"[...document.querySelectorAll('{sticky}')].map(element => element.getBoundingClientRect().top)")
    assert browser.run("scrollY") > 300 and tops == pytest.approx([0] * len(tops), abs=1)


def test_the_dark_scheme_is_dark(browser):
    """Mistake: a white page in the dark scheme, or text that stays dark on a dark page."""
    shades = "['backgroundColor', 'color'].map(name => +getComputedStyle(document.body)[name].match(/\\d+/)[0])"
    background, text = browser.run(shades)
    browser.set_viewport(1280, 800, "dark")
    dark_background, dark_text = browser.run(shades)
    assert background > text + 150 and dark_text > dark_background + 150
