"""The blind test: what its page gives away, how it behaves in a real browser, and that votes come out as they were meant."""

import base64
import json
import re

import numpy as np
import pytest
from test_page import HOSTILE, RATE, voice

from tts_kit import audio, io
from tts_kit.comparison import listening_test, listening_test_analysis, listening_test_design, listening_test_responses
from tts_kit.errors import KitError

ARMS = ("ground_truth", "codec", "base", "clone", "finetuned", "finetuned+clone")
TEXTS = ("The lamps went out.", HOSTILE, "Where are the keys?", "Nobody is at home.")
ONE = (("finetuned", "clone"),)
LISTENER = """(chance, seed) => {
    begin();
    ballot.started = "now";
    ballot.listener = { name: "Ж\\u2028<b>\\ud800", headphones: "yes" };
    const random = () => (seed = seed * 48271 % 2147483647) / 2147483647;
    const scores = { ground_truth: 5, stranger: 1, finetuned: 3, clone: 3, "finetuned+clone": 3 };
    while (ballot.votes.length < queue.length) {
        const trial = queue[ballot.votes.length], clips = dealt(ballot.rater, trial);
        const [a, b] = clips.slice(-2).map(clip => arms[clip]), first = random() < chance;
        const better = a === b ? "=" : (a === "finetuned") === first || a === "finetuned+clone" ? "A" : "B";
        const wish = { ab: better, smos: String(scores[b] + (b === "finetuned" && first) + (b === "clone" && !first)) };
        vote(wish[trial.kind], clips.map(() => 1), 2.5);
    }
    return handedIn();
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
    return listening_test.write(rows(folder, 2), folder, strangers(folder), f"Voices {HOSTILE}", questions=ONE)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The usual test, in four sentences."""
    folder = tmp_path_factory.mktemp("larger")
    return listening_test.write(rows(folder), folder, strangers(folder), "Voices")


@pytest.fixture(scope="module")
def every_kind(tmp_path_factory):
    """A test of all parts there are."""
    folder = tmp_path_factory.mktemp("kinds")
    return listening_test.write(rows(folder, 2), folder, strangers(folder), "", questions=ONE, kinds=tuple(listening_test_design.TEST_TYPES))


@pytest.fixture
def browser(chromium, site):
    """The page freshly opened by somebody new; no test may leave an error in the console or a request to a network."""
    yield from opened(chromium, site)


def opened(chromium, page):
    chromium.look(1100, 800)
    chromium.open(page.as_uri())
    chromium.run("localStorage.clear()")
    chromium.open("about:blank")
    chromium.open(page.as_uri())
    yield chromium
    assert chromium.complaints() == []
    asked = {event["params"]["request"]["url"] for event in chromium.events
             if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in asked if not url.startswith(("data:", "blob:"))} <= {page.as_uri()}


def arms_of(page) -> dict:
    return {clip: facts["arm"] for clip, facts in json.loads((page.parent / listening_test.KEY).read_text())["clips"].items()}


def voted(chromium, page, chance: float, seeds) -> list:
    """Files of votes by listeners who prefer tuned as often as `chance` says, made by the page's own functions."""
    files = []
    for seed in seeds:
        text = chromium.run(f"(() => {{ const arms = {json.dumps(arms_of(page))}; "
                            f"return ({LISTENER})({chance}, {seed * 7919}); }})()")
        files.append(page.parent / f"votes-{chance}-{seed}.json")
        files[-1].write_text(text)
    return files


# ---- the file ----


def test_the_page_names_no_arm(larger):
    """Mistake: an arm's name, a file's name or the clips' order, by which a listener who looks knows what he hears."""
    text = re.sub(r"base64,[\w+/=]+|'sha256-[\w+/=]+'|base-uri", "", larger.read_text())
    assert not re.search(r"\b(finetuned|clone|codec|base|ground_truth|catch|identical|repeat)\b(?!:)", text.split('id="data">')[1].split(
        "</script>")[0]) and not re.search(r"tuned|ground_truth|clone|codec|clips/|\.flac", text)
    data = embedded(larger)
    listed = [trial["id"] for trial in data["trials"]]
    assert listed == sorted(listed) and list(data["clips"]) == sorted(data["clips"])
    firsts = {arms_of(larger)[trial["clips"][0]] for trial in data["trials"] if trial["kind"] == "ab"}
    assert {"clone", "finetuned", "finetuned+clone"} == firsts


def test_clips_are_equally_loud(larger):
    """Mistake: the louder arm sounds better; or one peaky clip that stays quieter than all others."""
    loud = [audio.loudness(audio.read(base64.b64decode(sound.split(";base64,")[1]), RATE), RATE)
            for sound in embedded(larger)["clips"].values()]
    assert len(loud) > 10 and max(loud) - min(loud) < 0.5


def test_the_plan_of_the_test(larger):
    """Mistake: a reference that says the same words, a missing catch trial, an anchor that is a reference too."""
    key = json.loads((larger.parent / listening_test.KEY).read_text())
    catches = [(trial["kind"], trial.get("catch")) for trial in key["trials"].values()]
    assert {each: catches.count(each) for each in set(catches)} == {
        ("ab", None): 8, ("ab", "identical"): 2, ("ab", "repeat"): 2, ("smos", None): 9, ("smos", "voice"): 2,
        ("smos", "stranger"): 2}
    for trial in key["trials"].values():
        assert key["clips"][trial["reference"]]["arm"] == "ground_truth"
        own, other = (key["clips"][clip]["text"] for clip in (trial["clips"][0], trial["reference"]))
        assert own != other and (trial["kind"] == "ab") == bool(trial["text"])


def test_the_same_test_twice_is_the_same(larger, tmp_path):
    """Mistake: chance without a seed, so that nobody can make the page again and the key no longer fits the votes."""
    again = listening_test.write(rows(tmp_path), tmp_path, strangers(tmp_path), "Voices")
    assert again.read_text() == larger.read_text()
    assert (tmp_path / listening_test.KEY).read_text() == (larger.parent / listening_test.KEY).read_text()
    assert embedded(listening_test.write(rows(tmp_path), tmp_path, strangers(tmp_path), "Voices", seed=1))["test"] != \
        embedded(larger)["test"]


def test_an_old_key_is_kept(tmp_path, capsys):
    """Mistake: a second test in the same folder overwrites the key of the first, whose votes are still on their way."""
    made = rows(tmp_path, 2)
    listening_test.write(made, tmp_path, strangers(tmp_path), "", questions=ONE)
    old = io.read_json(tmp_path / listening_test.KEY, "")
    listening_test.write(made, tmp_path, strangers(tmp_path), "", questions=ONE)
    assert not list(tmp_path.glob("blind-*.json"))
    listening_test.write(made, tmp_path, strangers(tmp_path), "", questions=ONE, seed=5)
    kept, = tmp_path.glob("blind-*.json")
    assert io.read_json(kept, "") == old and kept.name in capsys.readouterr().out


@pytest.mark.parametrize("change, why", [
    (dict(kinds=()), "make no test"), (dict(kinds=("mushra",)), "make no test"), (dict(questions=()), "make no test"),
    (dict(questions=(("finetuned", "finetuned"),)), "different arms"),
    (dict(questions=(("finetuned", "kokoro"),)), "no clips of kokoro"),
    (dict(strangers=[]), "another speaker"), (dict(strangers=["nowhere.flac"]), "missing"),
    (dict(rows=[{"arm": "finetuned", "sentence": "1", "text": "", "file": "x"}]), "sentence is '1'"),
    (dict(rows=[]), "none at all")])
def test_refusals(tmp_path, change, why):
    """Mistake: a KeyError, or a page on which nothing can be found out."""
    given = dict(rows=rows(tmp_path, 2), folder=tmp_path, strangers=strangers(tmp_path), title="") | change
    with pytest.raises(KitError, match=why):
        listening_test.write(**given)
    assert not (tmp_path / listening_test.PAGE).exists()


@pytest.mark.parametrize("file", ["../secret.flac", "/etc/passwd", "a\0b", "clips/link.flac"])
def test_files_stay_inside_the_folder(tmp_path, file):
    """Mistake: a page that carries any file of the machine."""
    folder = tmp_path / "comparison"
    made = rows(folder, 2)
    audio.write(tmp_path / "secret.flac", voice(0.5), RATE)
    (folder / "clips/link.flac").symlink_to(tmp_path / "secret.flac")
    next(row for row in made if row["arm"] == "finetuned")["file"] = file
    with pytest.raises(KitError, match="outside"):
        listening_test.write(made, folder, strangers(tmp_path), "", questions=ONE)


def test_a_broken_clip_costs_its_sentence_only(tmp_path, capsys):
    """Mistake: one silent clip and no test at all; or a sentence in which one arm is not heard."""
    made = rows(tmp_path, 3)
    broken = next(row for row in made if row["arm"] == "clone")
    audio.write(tmp_path / broken["file"], np.zeros(RATE, np.float32), RATE)
    listening_test.write(made, tmp_path, strangers(tmp_path), "", questions=ONE)
    heard = io.read_json(tmp_path / listening_test.KEY, "")["clips"].values()
    used = {clip["sentence"] for clip in heard if clip["arm"] == "finetuned"}
    assert used == {2, 3} and "silent" in capsys.readouterr().out
    only = [row for row in made if row["sentence"] == 1]
    with pytest.raises(KitError, match="0 sentences"):
        listening_test.write(only, tmp_path, strangers(tmp_path), "", questions=ONE)


def test_hostile_text_never_becomes_markup(site):
    """Mistake: a sentence that ends the script element, or a title that is pasted as HTML."""
    text = site.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert HOSTILE in {trial["text"] for trial in embedded(site)["trials"]}


# ---- the browser ----


def hear(browser) -> None:
    """One touch, after which all clips follow one another."""
    browser.run("player.defaultPlaybackRate = 4")
    browser.press(" ")
    browser.wait("!part.answers.disabled")


def test_a_listener_from_beginning_to_end(browser, site, tmp_path):
    """Mistake: a page that works for functions called by hand, but not for somebody who clicks, types and saves."""
    arms = arms_of(site)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#volume")
    browser.wait("player.currentTime > 0.05")
    browser.click("#name")
    for letter in "Zoe":
        browser.press(letter)
    browser.run("part.headphones.value = 'yes'")
    browser.click("#begin")
    for place in range(total := browser.run("queue.length")):
        assert browser.run("part.place.textContent") == f"{place + 1} of {total}"
        if place % 2:
            hear(browser)
        else:
            browser.run("player.defaultPlaybackRate = 4")
            for seat in range(1, browser.run("seats.length") + 1):
                assert browser.run("part.answers.disabled && part.next.disabled")
                browser.click(f".seat:nth-child({seat}) .disc")
                browser.wait(f"seats[{seat - 1}].heard && player.paused")
        heard = [arms[clip] for clip in browser.run("seats.map(seat => seat.clip)")]
        wish = {"stranger": 1, "clone": 2, "finetuned": 4, "ground_truth": 5}[heard[1]] if len(heard) == 2 else \
            2 if heard[1] == heard[2] else 1 if heard[1] == "finetuned" else 3
        assert browser.run("part.next.disabled")
        if place % 2:
            browser.press(str(wish))
            browser.press("Enter")
        else:
            browser.click(f"#answers label:nth-of-type({wish})")
            browser.click("#next")
    browser.click("#save")
    browser.wait("!part.another.hidden")
    for _ in range(100):
        if files := list(tmp_path.glob("votes-*.json")):
            break
        browser.run("new Promise(done => setTimeout(done, 50))")
    poll = listening_test_responses.read(files, site.parent)
    assert poll.refused == [] and files[0].read_text() == browser.run("part.votes.value")
    ballot, = poll.ballots
    assert ballot.listener == {"name": "Zoe", "headphones": "yes"} and ballot.failed == 0
    pairs, scores = (listening_test_responses.table([ballot], poll.key, kind, ONE[0]) for kind in ("ab", "smos"))
    assert pairs.tolist() == [[1, 1]] and scores.tolist() == [[2, 2]]
    assert all(vote["seconds"] > 0 and min(vote["plays"]) == 1 for vote in ballot.votes.values())


def test_nothing_can_be_answered_unheard(browser):
    """Mistake: keys that answer before the clips were heard, or a click through the whole test."""
    browser.click("#begin")
    for key in ("1", "Enter", "3", "Enter"):
        browser.press(key)
    assert browser.run("ballot.votes.length === 0 && chosen() === null")
    browser.press("r")
    browser.wait("player.currentTime > 0.05")
    browser.press("r")
    browser.wait("player.paused")
    assert browser.run("seats[0].heard") is False
    browser.press("r")
    browser.wait("seats[0].heard")
    assert browser.run("seats[0].plays === 1 && part.answers.disabled")


def test_it_goes_on_where_it_stopped(browser, site):
    """Mistake: a new order, or a new listener, after a reload in the middle; one listener's order for all."""
    browser.click("#begin")
    answer = "seats.forEach(seat => { seat.heard = true; seat.plays = 1; }); mark(); " \
             "part.answers.querySelector('input').click(); answer()"
    browser.run(f"for (let n = 0; n < 5; n++) {{ {answer} }}")
    seen = "JSON.stringify([ballot.rater, queue.map(trial => trial.id), queue.map(trial => dealt(ballot.rater, trial))])"
    before = browser.run(seen)
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run(seen) == before and browser.run("part.begin.textContent") == "Go on with question 6"
    browser.click("#begin")
    assert browser.run("part.place.textContent").startswith("6 of")
    orders = {browser.run(f"(() => {{ begin(); return {seen}.slice(20); }})()") for _ in range(5)}
    assert len(orders) == 5


def test_order_and_sides_are_fair(browser, larger):
    """Mistake: an arm that is mostly A, or mostly first; a repetition with the same sides, or right after the first."""
    browser.open(larger.as_uri())
    dealt = browser.run("""Array.from({ length: 200 }, () => { begin(); return [ballot.rater,
        queue.map(trial => [trial.id, dealt(ballot.rater, trial)])]; })""")
    browser.open("about:blank")
    browser.events.clear()
    key, first = io.read_json(larger.parent / listening_test.KEY, ""), []
    places = {name: [] for name in key["trials"]}
    for rater, order in dealt:
        clips = dict(order)
        assert all(clips[name] == listening_test_design.assign(key["test"], rater, trial) for name, trial in key["trials"].items())
        for place, (name, heard) in enumerate(order):
            trial = key["trials"][name]
            places[name].append(place)
            if trial.get("question") and not trial.get("catch"):
                first.append(key["clips"][heard[1]]["arm"] == "clone")
            if trial.get("catch") == "repeat":
                assert heard[1:] == clips[trial["pair"]][:0:-1]
                assert abs(place - [each for each, _ in order].index(trial["pair"])) > 1
    assert abs(np.mean(first) - 0.5) < 0.05
    of_pairs = [np.mean(places[name]) for name, trial in key["trials"].items() if trial["kind"] == "ab"]
    assert max(of_pairs) - min(of_pairs) < 2


@pytest.mark.parametrize("kept", ["null", "{", '{"rater":"../../x","votes":[]}', '{"rater":"0123456789abcdef","votes":[{}]}',
                                  '{"rater":"0123456789abcdef","votes":[null,1]}', "[1]"])
def test_spoilt_memory_begins_anew(browser, site, kept):
    """Mistake: a page that stays blank because something odd lies in the browser's storage."""
    browser.run(f"localStorage.setItem(KEPT, {json.dumps(kept)})")
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run("ballot.votes.length === 0 && !part.welcome.hidden && /^[0-9a-f]{16}$/.test(ballot.rater)")


def test_without_storage_it_says_so(chromium, site):
    """Mistake: a page that dies where a browser denies storage to files."""
    denied = chromium.call("Page.addScriptToEvaluateOnNewDocument", source="""Object.defineProperty(window, "localStorage",
        { get() { throw new DOMException("denied", "SecurityError"); } })""")["identifier"]
    try:
        chromium.open("about:blank")
        chromium.open(site.as_uri())
        assert "in one go" in chromium.run("part.said.textContent")
        chromium.click("#begin")
        hear(chromium)
        chromium.press("2")
        chromium.press("Enter")
        assert chromium.run("ballot.votes.length") == 1 and chromium.complaints() == []
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=denied)


def test_hostile_text_stays_text(browser):
    """Mistake: innerHTML somewhere between the data and the page."""
    browser.run("begin(); while (!queue[ballot.votes.length].text.includes('<')) vote('A', [1, 1, 1], 1)")
    browser.run("ask()")
    assert browser.run("[part.text.textContent, document.title]") == [HOSTILE, f"Voices {HOSTILE}"]
    assert browser.run("[document.images.length, document.scripts.length, typeof window.hurt]") == [0, 2, "undefined"]


@pytest.mark.parametrize("width, height", [(1100, 800), (390, 844), (320, 640)])
@pytest.mark.parametrize("kind", list(listening_test_design.TEST_TYPES))
def test_it_fits(chromium, every_kind, width, height, kind):
    """Mistake: a page that must be pushed sideways on a phone, whatever is asked."""
    for browser in opened(chromium, every_kind):
        browser.look(width, height)
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run(f"queue = queue.filter(trial => trial.kind === '{kind}'); ask()")
        assert browser.run("document.documentElement.scrollWidth") <= width
        boxes = browser.run("""[...document.querySelectorAll(".disc, #answers label")].map(
            each => each.getBoundingClientRect().right)""")
        assert max(boxes) <= width and len(boxes) > 3
        assert browser.run("""[...document.querySelectorAll('button, #answers label')].every(e => e.textContent
            || e.ariaLabel)""")


def test_dark_is_dark(browser):
    """Mistake: a white page at night."""
    shades = "['backgroundColor', 'color'].map(name => +getComputedStyle(document.body)[name].match(/\\d+/)[0])"
    browser.look(1100, 800, "dark")
    paper, ink = browser.run(shades)
    assert ink > paper + 150


# ---- from the page to the finding ----


def test_known_listeners_are_understood(chromium, larger):
    """Mistake: sides or arms mixed up on the way from the page to the sentence, so that the loser wins."""
    for browser in opened(chromium, larger):
        found = {chance: listening_test_analysis.analyse_files(voted(browser, larger, chance, range(1, 9)), larger.parent)
                 for chance in (0.95, 0.5, 0.05)}
    for chance, says in ((0.95, "wins"), (0.5, "no difference"), (0.05, "loses")):
        assert found[chance]["metric_models"] == 8 and not found[chance]["refused"] and not found[chance]["set aside"]
        pairs, scores = (next(each for each in found[chance]["questions"]
                              if each["kind"] == kind and each["arms"] == ["finetuned", "clone"]) for kind in ("ab", "smos"))
        assert pairs["says"] == says and abs(pairs["value"] - chance) < 0.15, chance
        assert abs(scores["value"] - (2 * chance - 1)) < 0.4, chance
    assert found[0.95]["headphones"] == 8 and found[0.95]["scores"]["stranger"]["value"] == 1


def test_an_edit_is_noticed(chromium, larger, tmp_path):
    """Mistake: votes that somebody changed by hand, and that count as they are."""
    for browser in opened(chromium, larger):
        file, = voted(browser, larger, 0.9, [3])
    text = file.read_text()
    assert text.isascii() and listening_test_responses.read([file], larger.parent).ballots[0].listener["name"] == "Ж\u2028<b>\ud800"
    (tmp_path / "edited.json").write_text(text.replace('"answer":"A"', '"answer":"B"', 1))
    (tmp_path / "formatted.json").write_text(json.dumps(json.loads(text), indent=2))
    poll = listening_test_responses.read([tmp_path], larger.parent)
    assert [each["file"] for each in poll.refused] == ["edited.json"] and "digest" in poll.refused[0]["why"]
    assert [each.file for each in poll.ballots] == ["formatted.json"]
