"""The listening test: what its page gives away, how it behaves in a real browser, and whether answers reach the results."""

import base64
import json
import re

import numpy as np
import pytest
from test_comparison_page import HOSTILE, RATE, voice

from tts_kit import audio, io
from tts_kit.comparison import listening_test
from tts_kit.comparison.listening_test import analysis
from tts_kit.comparison.listening_test.page import TEST_TYPES
from tts_kit.errors import KitError

ARMS = ("ground_truth", "codec", "base", "clone", "finetuned", "finetuned+clone")
TEXTS = ("The lamps went out.", HOSTILE, "Where are the keys?", "Nobody is at home.")
ONE = (("finetuned", "clone"),)
LISTENER = """(chance, seed) => {
    begin();
    response.started = "now";
    response.listener = { name: "Ж\\u2028<b>\\ud800", headphones: "yes" };
    const random = () => (seed = seed * 48271 % 2147483647) / 2147483647;
    const scores = { ground_truth: 5, other_speaker: 1, finetuned: 3, clone: 3, "finetuned+clone": 3 };
    while (response.answers.length < queue.length) {
        const trial = queue[response.answers.length], clips = inSides(response.rater, trial);
        const [a, b] = [clips[0], clips.at(-1)].map(clip => arms[clip]), first = random() < chance;
        const better = a === b ? "=" : (a === "finetuned") === first || a === "finetuned+clone" ? "A" : "B";
        const wish = { ab: better, smos: String(scores[b] + (b === "finetuned" && first) + (b === "clone" && !first)) };
        addAnswer(wish[trial.type], clips.map(() => 1), 2.5);
    }
    return responseFile();
}"""


def rows(folder, sentences=4, arms=ARMS, seconds=0.4) -> list[dict]:
    """Rows of a comparison and their clips on disk, the louder the later the arm."""
    made = []
    for number, text in enumerate(TEXTS[:sentences], 1):
        for place, arm in enumerate(arms):
            seed = None if arm in ("ground_truth", "codec") else 1
            file = f"clips/{arm}/{number:03}-{seed}.flac"
            samples = voice(seconds + 0.03 * place + 0.02 * number, amplitude=0.02 * 2 ** place)
            audio.write(folder / file, samples, RATE)
            made.append({"arm": arm, "sentence": number, "text": text, "seed": seed, "file": file})
    return made


def strangers(folder) -> list:
    for number in (1, 2):
        audio.write(folder / f"other-{number}.flac", voice(0.5 + number / 10)[::-1].copy(), RATE)
    return [folder / "other-1.flac", folder / "other-2.flac"]


def embedded(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A test of two parts about one pair of arms, in two sentences, one of them hostile."""
    folder = tmp_path_factory.mktemp("comparison")
    return listening_test.write(rows(folder, 2), folder, strangers(folder), f"Voices {HOSTILE}", pairs=ONE)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The usual test, in four sentences."""
    folder = tmp_path_factory.mktemp("larger")
    return listening_test.write(rows(folder), folder, strangers(folder), "Voices")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A test of all parts there are."""
    folder = tmp_path_factory.mktemp("kinds")
    return listening_test.write(rows(folder, 2), folder, strangers(folder), "", pairs=ONE,
                                test_types=tuple(TEST_TYPES))


@pytest.fixture
def browser(chromium, site):
    """The page freshly opened by somebody new; no test may leave an error in the console or a request to a network."""
    yield from opened(chromium, site)


def opened(chromium, page):
    chromium.set_viewport(1100, 800)
    chromium.open(page.as_uri())
    chromium.run("localStorage.clear()")
    chromium.open("about:blank")
    chromium.open(page.as_uri())
    yield chromium
    assert chromium.console_errors() == []
    asked = {event["params"]["request"]["url"] for event in chromium.events
             if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {page.as_uri()}


def arms_of(page) -> dict:
    return {clip: facts["arm"] for clip,
            facts in json.loads((page.parent / listening_test.KEY).read_text())["clips"].items()}


def voted(chromium, page, chance: float, seeds) -> list:
    """Files of votes by listeners who prefer tuned as often as `chance` says, made by the page's own functions."""
    files = []
    for seed in seeds:
        text = chromium.run(f"(() => {{ const arms = {json.dumps(arms_of(page))}; "
                            f"return ({LISTENER})({chance}, {seed * 7919}); }})()")
        files.append(page.parent / f"responses-{chance}-{seed}.json")
        files[-1].write_text(text)
    return files


# ---- the file ----


def test_the_page_names_no_arm(larger):
    """Mistake: an arm's name, a file's name or the clips' order, by which a listener who looks knows what he hears."""
    text = re.sub(r"base64,[\w+/=]+|'sha256-[\w+/=]+'|base-uri", "", larger.read_text())
    assert not re.search(r"\b(finetuned|clone|codec|base|ground_truth|catch|identical|anchor)\b(?!:)",
                         text.split('id="data">')[1].split(
        "</script>")[0]) and not re.search(r"tuned|ground_truth|clone|codec|clips/|\.flac", text)
    data = embedded(larger)
    listed = [trial["id"] for trial in data["trials"]]
    assert listed == sorted(listed) and list(data["clips"]) == sorted(data["clips"])
    firsts = {arms_of(larger)[trial["clips"][0]] for trial in data["trials"] if trial["type"] == "ab"}
    assert {"clone", "finetuned", "finetuned+clone"} == firsts


def test_clips_are_equally_loud(larger):
    """Mistake: the louder arm sounds better; or one peaky clip that stays quieter than all others."""
    loud = [audio.loudness(audio.read(base64.b64decode(sound.split(";base64,")[1]), RATE), RATE)
            for sound in embedded(larger)["clips"].values()]
    assert len(loud) > 10 and max(loud) - min(loud) < 0.5


def test_the_plan_of_the_test(larger):
    """Mistake: a reference that says the same words, a missing catch trial, an anchor that is a reference too."""
    key = json.loads((larger.parent / listening_test.KEY).read_text())
    catches = [(trial["type"], trial.get("catch")) for trial in key["trials"].values()]
    assert {kind: catches.count(kind) for kind in set(catches)} == {
        ("ab", None): 8, ("ab", "identical"): 2, ("smos", None): 9, ("smos", "anchor"): 4}
    for trial in key["trials"].values():
        assert key["clips"][trial["reference"]]["arm"] == "ground_truth"
        own, other = (key["clips"][clip]["text"] for clip in (trial["clips"][0], trial["reference"]))
        assert own != other and (trial["type"] == "ab") == bool(trial["text"])


def test_the_same_test_twice_is_the_same(larger, tmp_path):
    """Mistake: chance without a seed, so that nobody can make the page again and the key no longer fits the votes."""
    again = listening_test.write(rows(tmp_path), tmp_path, strangers(tmp_path), "Voices")
    assert again.read_text() == larger.read_text()
    assert (tmp_path / listening_test.KEY).read_text() == (larger.parent / listening_test.KEY).read_text()
    assert embedded(listening_test.write(rows(tmp_path), tmp_path, strangers(tmp_path), "Voices", seed=1))["test"] != \
        embedded(larger)["test"]


def test_an_old_key_is_kept(tmp_path):
    """Mistake: a second test in the same folder overwrites the key of the first, whose votes are still on their way."""
    made = rows(tmp_path, 2)
    listening_test.write(made, tmp_path, strangers(tmp_path), "", pairs=ONE)
    old = io.read_json(tmp_path / listening_test.KEY, "")
    listening_test.write(made, tmp_path, strangers(tmp_path), "", pairs=ONE)
    assert io.read_json(tmp_path / listening_test.KEY, "") == old and old["earlier"] == []
    listening_test.write(made, tmp_path, strangers(tmp_path), "", pairs=ONE, seed=5)
    del old["earlier"]
    assert io.read_json(tmp_path / listening_test.KEY, "")["earlier"] == [old]


@pytest.mark.parametrize("change, reason", [
    (dict(test_types=("mushra",)), "no test types mushra"), (dict(pairs=(("finetuned", "kokoro"),)), "has 0 sentences"),
    (dict(rows=[]), "has 0 sentences")])
def test_refusals(tmp_path, change, reason):
    """Mistake: a KeyError, or a page on which nothing can be found out."""
    given = dict(rows=rows(tmp_path, 2), folder=tmp_path, other_speakers=strangers(tmp_path), title="") | change
    with pytest.raises(KitError, match=reason):
        listening_test.write(**given)
    assert not (tmp_path / listening_test.PAGE).exists()


def test_files_stay_inside_the_folder(tmp_path, capsys):
    """Mistake: a page that carries any file of the machine."""
    folder = tmp_path / "comparison"
    made = rows(folder, 3)
    audio.write(tmp_path / "secret.flac", voice(0.5), RATE)
    (folder / "clips/link.flac").symlink_to(tmp_path / "secret.flac")
    outside = [row for row in made if row["arm"] == "finetuned"]
    outside[0]["file"], outside[1]["file"] = "../secret.flac", "clips/link.flac"
    listening_test.write(made, folder, strangers(tmp_path), "", pairs=ONE)
    clips = io.read_json(folder / listening_test.KEY, "")["clips"].values()
    assert {clip["sentence"] for clip in clips if clip["arm"] == "finetuned"} == {3}
    assert capsys.readouterr().out.count("lies outside") == 2


def test_a_broken_clip_costs_its_sentence_only(tmp_path, capsys):
    """Mistake: one silent clip and no test at all; or a sentence in which one arm is not heard."""
    made = rows(tmp_path, 3)
    broken = next(row for row in made if row["arm"] == "clone")
    audio.write(tmp_path / broken["file"], np.zeros(RATE, np.float32), RATE)
    listening_test.write(made, tmp_path, strangers(tmp_path), "", pairs=ONE)
    heard = io.read_json(tmp_path / listening_test.KEY, "")["clips"].values()
    used = {clip["sentence"] for clip in heard if clip["arm"] == "finetuned"}
    assert used == {2, 3} and "silent" in capsys.readouterr().out
    only = [row for row in made if row["sentence"] == 1]
    with pytest.raises(KitError, match="0 sentences"):
        listening_test.write(only, tmp_path, strangers(tmp_path), "", pairs=ONE)


def test_hostile_text_never_becomes_markup(site):
    """Mistake: a sentence that ends the script element, or a title that is pasted as HTML."""
    text = site.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert HOSTILE in {trial["text"] for trial in embedded(site)["trials"]}


# ---- the browser ----


def hear(browser) -> None:
    """One touch, after which all clips follow one another."""
    browser.run("player.audio.defaultPlaybackRate = 4")
    browser.press(" ")
    browser.wait("!ui.answers.disabled")


def test_a_listener_from_beginning_to_end(browser, site, tmp_path):
    """Mistake: a page that works for functions called by hand, but not for somebody who clicks, types and saves."""
    arms = arms_of(site)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#volume")
    browser.wait("player.audio.currentTime > 0.05")
    browser.click("#name")
    for letter in "Zoe":
        browser.press(letter)
    browser.run("ui.headphones.value = 'yes'")
    browser.click("#begin")
    for place in range(total := browser.run("queue.length")):
        assert browser.run("ui.position.textContent") == f"{place + 1} of {total}"
        if place % 2:
            hear(browser)
        else:
            browser.run("player.audio.defaultPlaybackRate = 4")
            for slot in range(1, browser.run("slots.length") + 1):
                assert browser.run("ui.answers.disabled && ui.next.disabled")
                browser.click(f".slot:nth-child({slot}) .disc")
                browser.wait(f"slots[{slot - 1}].heard && player.audio.paused")
        heard = [arms[clip] for clip in browser.run("slots.map(slot => slot.clip)")]
        wish = {"other_speaker": 1, "clone": 2, "finetuned": 4, "ground_truth": 5}[heard[1]] if len(heard) == 2 else \
            2 if heard[1] == heard[2] else 1 if heard[1] == "finetuned" else 3
        assert browser.run("ui.next.disabled")
        if place % 2:
            browser.press(str(wish))
            browser.press("Enter")
        else:
            browser.click(f"#answers label:nth-of-type({wish})")
            browser.click("#next")
    browser.click("#save")
    browser.wait("!ui.another.hidden")
    for _ in range(100):
        if files := list(tmp_path.glob("responses-*.json")):
            break
        browser.run("new Promise(done => setTimeout(done, 50))")
    key, read, rejected = analysis.read(files, site.parent)
    assert rejected == [] and files[0].read_text() == browser.run("ui.file.value")
    response, = read
    assert response.listener == {"name": "Zoe", "headphones": "yes"} and response.missed == 0
    pairs, scores = (analysis.pair_scores([response], key, test_type, ONE[0]) for test_type in ("ab", "smos"))
    assert pairs.tolist() == [[1, 1]] and scores.tolist() == [[2, 2]]
    assert all(answer["seconds"] > 0 and min(answer["plays"]) == 1 for answer in response.answers.values())


def test_nothing_can_be_answered_unheard(browser):
    """Mistake: keys that answer before the clips were heard, or a click through the whole test."""
    browser.click("#begin")
    for key in ("1", "Enter", "3", "Enter"):
        browser.press(key)
    assert browser.run("response.answers.length === 0 && chosen() === null")
    browser.press("r")
    browser.wait("player.audio.currentTime > 0.05")
    browser.press("r")
    browser.wait("player.audio.paused")
    assert browser.run("slots[0].heard") is False
    browser.press("r")
    browser.wait("slots[0].heard")
    assert browser.run("slots[0].plays === 1 && ui.answers.disabled")


def test_it_goes_on_where_it_stopped(browser, site):
    """Mistake: a new order, or a new listener, after a reload in the middle; one listener's order for all."""
    browser.click("#begin")
    answer = "slots.forEach(slot => { slot.heard = true; slot.plays = 1; }); mark(); " \
             "ui.answers.querySelector('input').click(); answer()"
    browser.run(f"for (let n = 0; n < 5; n++) {{ {answer} }}")
    seen = ("JSON.stringify([response.rater, queue.map(trial => trial.id), "
            "queue.map(trial => inSides(response.rater, trial))])")
    before = browser.run(seen)
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run(seen) == before and browser.run("ui.begin.textContent") == "Go on with question 6"
    browser.click("#begin")
    assert browser.run("ui.position.textContent").startswith("6 of")
    orders = {browser.run(f"(() => {{ begin(); return {seen}.slice(20); }})()") for _ in range(5)}
    assert len(orders) == 5


def test_order_and_sides_are_fair(browser, larger):
    """Mistake: an arm that is mostly A, or mostly first."""
    browser.open(larger.as_uri())
    listeners = browser.run("""Array.from({ length: 200 }, () => { begin();
        return queue.map(trial => [trial.id, inSides(response.rater, trial)]); })""")
    browser.open("about:blank")
    browser.events.clear()
    key, clone_is_a = io.read_json(larger.parent / listening_test.KEY, ""), []
    positions = {name: [] for name in key["trials"]}
    for order in listeners:
        for position, (name, clips) in enumerate(order):
            positions[name].append(position)
            if key["trials"][name].get("pair"):
                clone_is_a.append(key["clips"][clips[0]]["arm"] == "clone")
    assert abs(np.mean(clone_is_a) - 0.5) < 0.05
    of_pairs = [np.mean(positions[name]) for name, trial in key["trials"].items() if trial["type"] == "ab"]
    assert max(of_pairs) - min(of_pairs) < 2


@pytest.mark.parametrize("kept", ["null", "{", '{"rater":"../../x","answers":[]}',
                                  '{"rater":"0123456789abcdef","answers":[{}]}',
                                  '{"rater":"0123456789abcdef","answers":[null,1]}', "[1]"])
def test_spoilt_memory_begins_anew(browser, site, kept):
    """Mistake: a page that stays blank because something odd lies in the browser's storage."""
    browser.run(f"localStorage.setItem(STORED, {json.dumps(kept)})")
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run("response.answers.length === 0 && !ui.welcome.hidden && /^[0-9a-f]{16}$/.test(response.rater)")


def test_without_storage_it_says_so(chromium, site):
    """Mistake: a page that dies where a browser denies storage to files."""
    denied = chromium.call("Page.addScriptToEvaluateOnNewDocument", source="""Object.defineProperty(window, "localStorage",
        { get() { throw new DOMException("denied", "SecurityError"); } })""")["identifier"]
    try:
        chromium.open("about:blank")
        chromium.open(site.as_uri())
        assert "in one go" in chromium.run("ui.message.textContent")
        chromium.click("#begin")
        hear(chromium)
        chromium.press("2")
        chromium.press("Enter")
        assert chromium.run("response.answers.length") == 1 and chromium.console_errors() == []
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=denied)


def test_hostile_text_stays_text(browser):
    """Mistake: innerHTML somewhere between the data and the page."""
    browser.run("begin(); while (!queue[response.answers.length].text.includes('<')) addAnswer('A', [1, 1, 1], 1)")
    browser.run("ask()")
    assert browser.run("[ui.text.textContent, document.title]") == [HOSTILE, f"Voices {HOSTILE}"]
    assert browser.run("[document.images.length, document.scripts.length, typeof window.hurt]") == [0, 2, "undefined"]


@pytest.mark.parametrize("width, height", [(1100, 800), (390, 844), (320, 640)])
@pytest.mark.parametrize("kind", list(TEST_TYPES))
def test_it_fits(chromium, every_kind, width, height, kind):
    """Mistake: a page that must be pushed sideways on a phone, whatever is asked."""
    for browser in opened(chromium, every_kind):
        browser.set_viewport(width, height)
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run(f"queue = queue.filter(trial => trial.type === '{kind}'); ask()")
        assert browser.run("document.documentElement.scrollWidth") <= width
        boxes = browser.run("""[...document.querySelectorAll(".disc, #answers label")].map(
            each => each.getBoundingClientRect().right)""")
        assert max(boxes) <= width and len(boxes) > 3
        assert browser.run("""[...document.querySelectorAll('button, #answers label')].every(e => e.textContent
            || e.ariaLabel)""")


def test_dark_is_dark(browser):
    """Mistake: a white page at night."""
    shades = "['backgroundColor', 'color'].map(name => +getComputedStyle(document.body)[name].match(/\\d+/)[0])"
    browser.set_viewport(1100, 800, "dark")
    paper, ink = browser.run(shades)
    assert ink > paper + 150


# ---- from the page to the finding ----


def test_known_listeners_are_understood(chromium, larger):
    """Mistake: sides or arms mixed up on the way from the page to the sentence, so that the loser wins."""
    for browser in opened(chromium, larger):
        found = {chance: listening_test.analyze(voted(browser, larger, chance, range(1, 9)), larger.parent)
                 for chance in (0.95, 0.5, 0.05)}
    for chance, says in ((0.95, "wins"), (0.5, "no difference"), (0.05, "loses")):
        assert found[chance]["listeners"] == 8 and not found[chance]["rejected"] and not found[chance]["excluded"]
        pairs, scores = (next(each for each in found[chance]["comparisons"]
                              if each["type"] == kind and each["arms"] == ["finetuned", "clone"]) for kind in ("ab", "smos"))
        assert pairs["outcome"] == says and abs(pairs["value"] - chance) < 0.15, chance
        assert abs(scores["value"] - (2 * chance - 1)) < 0.4, chance
    assert found[0.95]["headphones"] == 8 and found[0.95]["smos"]["other_speaker"]["value"] == 1


def test_an_edit_is_noticed(chromium, larger, tmp_path):
    """Mistake: votes that somebody changed by hand, and that count as they are."""
    for browser in opened(chromium, larger):
        file, = voted(browser, larger, 0.9, [3])
    text = file.read_text()
    assert text.isascii() and analysis.read([file], larger.parent)[1][0].listener["name"] == "Ж\u2028<b>\ud800"
    (tmp_path / "edited.json").write_text(text.replace('"answer":"A"', '"answer":"B"', 1))
    (tmp_path / "formatted.json").write_text(json.dumps(json.loads(text), indent=2))
    _, read, rejected = analysis.read([tmp_path], larger.parent)
    assert [file["file"] for file in rejected] == ["edited.json"] and "digest" in rejected[0]["reason"]
    assert [response.file for response in read] == ["formatted.json"]
