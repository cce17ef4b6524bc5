"""The listening test: what its page reveals, how it behaves in a real browser, and whether answers reach the results."""

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
ONE_PAIR = (("finetuned", "clone"),)
LISTENER = """(preference, seed) => {
    begin();
    response.started = "now";
    response.listener = { name: "Ж\\u2028<b>\\ud800", headphones: "yes" };
    const random = () => (seed = seed * 48271 % 2147483647) / 2147483647;
    const scores = { ground_truth: 5, other_speaker: 1, finetuned: 3, clone: 3, "finetuned+clone": 3 };
    while (response.answers.length < queue.length) {
        const trial = queue[response.answers.length], clips = inSides(response.rater, trial);
        const [a, b] = [clips[0], clips.at(-1)].map(clip => arms[clip]), first = random() < preference;
        const better = a === b ? "=" : (a === "finetuned") === first || a === "finetuned+clone" ? "A" : "B";
        const answers = { ab: better, smos: String(scores[b] + (b === "finetuned" && first) + (b === "clone" && !first)) };
        addAnswer(answers[trial.type], clips.map(() => 1), 2.5);
    }
    return responseFile();
}"""


def rows(folder, sentences=4, arms=ARMS, seconds=0.4) -> list[dict]:
    """Rows of a comparison and their clips on disk; later arms are louder."""
    clip_rows = []
    for number, text in enumerate(TEXTS[:sentences], 1):
        for arm_index, arm in enumerate(arms):
            seed = None if arm in ("ground_truth", "codec") else 1
            file = f"clips/{arm}/{number:03}-{seed}.flac"
            samples = voice(seconds + 0.03 * arm_index + 0.02 * number, amplitude=0.02 * 2 ** arm_index)
            audio.write(folder / file, samples, RATE)
            clip_rows.append({"arm": arm, "sentence": number, "text": text, "seed": seed, "file": file})
    return clip_rows


def other_speakers(folder) -> list:
    for number in (1, 2):
        audio.write(folder / f"other-{number}.flac", voice(0.5 + number / 10)[::-1].copy(), RATE)
    return [folder / "other-1.flac", folder / "other-2.flac"]


def embedded(page) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.DOTALL)[1])


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """A test of two types with one pair of arms, in two sentences, one of them hostile."""
    folder = tmp_path_factory.mktemp("comparison")
    return listening_test.write(rows(folder, 2), folder, other_speakers(folder), f"Voices {HOSTILE}", pairs=ONE_PAIR)


@pytest.fixture(scope="module")
def larger(tmp_path_factory):
    """The default test, in four sentences."""
    folder = tmp_path_factory.mktemp("larger")
    return listening_test.write(rows(folder), folder, other_speakers(folder), "Voices")


@pytest.fixture(scope="module")
def all_types(tmp_path_factory):
    """A test with all types of trials."""
    folder = tmp_path_factory.mktemp("kinds")
    return listening_test.write(rows(folder, 2), folder, other_speakers(folder), "", pairs=ONE_PAIR,
                                test_types=tuple(TEST_TYPES))


@pytest.fixture
def browser(chromium, site):
    """The page freshly opened by a new listener; no test may leave an error in the console or a network request."""
    yield from open_page(chromium, site)


def open_page(chromium, page):
    chromium.set_viewport(1100, 800)
    chromium.open(page.as_uri())
    chromium.run("localStorage.clear()")
    chromium.open("about:blank")
    chromium.open(page.as_uri())
    yield chromium
    assert chromium.console_errors() == []
    urls = {event["params"]["request"]["url"] for event in chromium.events
            if event["method"] == "Network.requestWillBeSent"}
    assert {url for url in urls if not url.startswith(("data:", "blob:"))} <= {page.as_uri()}


def arms_of(page) -> dict:
    return {clip: facts["arm"] for clip,
            facts in json.loads((page.parent / listening_test.KEY).read_text())["clips"].items()}


def write_responses(chromium, page, preference: float, seeds) -> list:
    """Write response files of listeners who prefer finetuned with this probability, with the page's own functions."""
    files = []
    for seed in seeds:
        # the listener's id, on which the order of the trials depends, from the seed instead of at random
        text = chromium.run(f"(() => {{ crypto.getRandomValues = array => array.fill({seed}); "
                            f"const arms = {json.dumps(arms_of(page))}; "
                            f"return ({LISTENER})({preference}, {seed * 7919}); }})()")
        files.append(page.parent / f"responses-{preference}-{seed}.json")
        files[-1].write_text(text)
    return files


# ---- the file ----


def test_the_page_names_no_arm(larger):
    """Mistake: the page reveals an arm's name, a file's name or the order of the clips."""
    text = re.sub(r"base64,[\w+/=]+|'sha256-[\w+/=]+'|base-uri", "", larger.read_text())
    assert not re.search(r"\b(finetuned|clone|codec|base|ground_truth|catch|identical|anchor)\b(?!:)",
                         text.split('id="data">')[1].split(
        "</script>")[0]) and not re.search(r"tuned|ground_truth|clone|codec|clips/|\.flac", text)
    data = embedded(larger)
    trial_ids = [trial["id"] for trial in data["trials"]]
    assert trial_ids == sorted(trial_ids) and list(data["clips"]) == sorted(data["clips"])
    firsts = {arms_of(larger)[trial["clips"][0]] for trial in data["trials"] if trial["type"] == "ab"}
    assert {"clone", "finetuned", "finetuned+clone"} == firsts


def test_clips_are_equally_loud(larger):
    """Mistake: the louder arm sounds better, or a clip with high peaks stays quieter than all others."""
    loudness = [audio.loudness(audio.read(base64.b64decode(sound.split(";base64,")[1]), RATE), RATE)
                for sound in embedded(larger)["clips"].values()]
    assert len(loudness) > 10 and max(loudness) - min(loudness) < 0.5


def test_the_test_has_the_planned_trials(larger):
    """Mistake: a reference with the same words, a missing catch trial, an anchor that is also a reference."""
    key = json.loads((larger.parent / listening_test.KEY).read_text())
    catches = [(trial["type"], trial.get("catch")) for trial in key["trials"].values()]
    assert {trial_kind: catches.count(trial_kind) for trial_kind in set(catches)} == {
        ("ab", None): 8, ("ab", "identical"): 2, ("smos", None): 9, ("smos", "anchor"): 4}
    for trial in key["trials"].values():
        assert key["clips"][trial["reference"]]["arm"] == "ground_truth"
        clip_text, reference_text = (key["clips"][clip]["text"] for clip in (trial["clips"][0], trial["reference"]))
        assert clip_text != reference_text and (trial["type"] == "ab") == bool(trial["text"])


def test_the_test_is_reproducible(larger, tmp_path):
    """Mistake: randomness without a seed: the page cannot be made again, and the key no longer fits the responses."""
    second_page = listening_test.write(rows(tmp_path), tmp_path, other_speakers(tmp_path), "Voices")
    assert second_page.read_text() == larger.read_text()
    assert (tmp_path / listening_test.KEY).read_text() == (larger.parent / listening_test.KEY).read_text()
    assert embedded(listening_test.write(rows(tmp_path), tmp_path, other_speakers(tmp_path), "Voices", seed=1))["test"] != \
        embedded(larger)["test"]


def test_an_old_key_is_kept(tmp_path):
    """Mistake: a second test in the same folder overwrites the key of the first, whose responses are not yet in."""
    clip_rows = rows(tmp_path, 2)
    listening_test.write(clip_rows, tmp_path, other_speakers(tmp_path), "", pairs=ONE_PAIR)
    old = io.read_json(tmp_path / listening_test.KEY, "")
    listening_test.write(clip_rows, tmp_path, other_speakers(tmp_path), "", pairs=ONE_PAIR)
    assert io.read_json(tmp_path / listening_test.KEY, "") == old and old["earlier"] == []
    listening_test.write(clip_rows, tmp_path, other_speakers(tmp_path), "", pairs=ONE_PAIR, seed=5)
    del old["earlier"]
    assert io.read_json(tmp_path / listening_test.KEY, "")["earlier"] == [old]


@pytest.mark.parametrize("change, reason", [
    (dict(test_types=("mushra",)), "no test types mushra"), (dict(pairs=(("finetuned", "kokoro"),)), "has 0 sentences"),
    (dict(rows=[]), "has 0 sentences")])
def test_unusable_arguments_are_refused(tmp_path, change, reason):
    """Mistake: a KeyError, or a page from which nothing can be concluded."""
    arguments = dict(rows=rows(tmp_path, 2), folder=tmp_path, other_speakers=other_speakers(tmp_path), title="") | change
    with pytest.raises(KitError, match=reason):
        listening_test.write(**arguments)
    assert not (tmp_path / listening_test.PAGE).exists()


def test_files_stay_inside_the_folder(tmp_path, capsys):
    """Mistake: the page contains any file of the machine."""
    folder = tmp_path / "comparison"
    clip_rows = rows(folder, 3)
    audio.write(tmp_path / "secret.flac", voice(0.5), RATE)
    (folder / "clips/link.flac").symlink_to(tmp_path / "secret.flac")
    outside = [row for row in clip_rows if row["arm"] == "finetuned"]
    outside[0]["file"], outside[1]["file"] = "../secret.flac", "clips/link.flac"
    listening_test.write(clip_rows, folder, other_speakers(tmp_path), "", pairs=ONE_PAIR)
    clips = io.read_json(folder / listening_test.KEY, "")["clips"].values()
    assert {clip["sentence"] for clip in clips if clip["arm"] == "finetuned"} == {3}
    assert capsys.readouterr().out.count("lies outside") == 2


def test_a_broken_clip_costs_its_sentence_only(tmp_path, capsys):
    """Mistake: one silent clip prevents the whole test, or a sentence lacks one of the arms."""
    clip_rows = rows(tmp_path, 3)
    broken = next(row for row in clip_rows if row["arm"] == "clone")
    audio.write(tmp_path / broken["file"], np.zeros(RATE, np.float32), RATE)
    listening_test.write(clip_rows, tmp_path, other_speakers(tmp_path), "", pairs=ONE_PAIR)
    clips = io.read_json(tmp_path / listening_test.KEY, "")["clips"].values()
    used = {clip["sentence"] for clip in clips if clip["arm"] == "finetuned"}
    assert used == {2, 3} and "silent" in capsys.readouterr().out
    only = [row for row in clip_rows if row["sentence"] == 1]
    with pytest.raises(KitError, match="0 sentences"):
        listening_test.write(only, tmp_path, other_speakers(tmp_path), "", pairs=ONE_PAIR)


def test_hostile_text_is_escaped_in_the_file(site):
    """Mistake: a sentence ends the script element, or a title is inserted as HTML."""
    text = site.read_text()
    assert text.count("<script") == text.count("</script>") == 2 and "<img" not in text and "\u2028" not in text
    assert HOSTILE in {trial["text"] for trial in embedded(site)["trials"]}


# ---- the browser ----


def play_all(browser) -> None:
    """Press one key, after which all clips play one after another."""
    browser.run("player.audio.defaultPlaybackRate = 4")
    browser.press(" ")
    browser.wait("!ui.answers.disabled")


def test_a_listener_completes_the_test(browser, site, tmp_path):
    """Mistake: the page works for functions called by a test, but not for somebody who clicks, types and saves."""
    arms = arms_of(site)
    browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    browser.click("#volume")
    browser.wait("player.audio.currentTime > 0.05")
    browser.click("#name")
    for letter in "Zoe":
        browser.press(letter)
    browser.run("ui.headphones.value = 'yes'")
    browser.click("#begin")
    for trial_index in range(total := browser.run("queue.length")):
        assert browser.run("ui.position.textContent") == f"{trial_index + 1} of {total}"
        if trial_index % 2:
            play_all(browser)
        else:
            browser.run("player.audio.defaultPlaybackRate = 4")
            for slot in range(1, browser.run("slots.length") + 1):
                assert browser.run("ui.answers.disabled && ui.next.disabled")
                browser.click(f".slot:nth-child({slot}) .disc")
                browser.wait(f"slots[{slot - 1}].heard && player.audio.paused")
        trial_arms = [arms[clip] for clip in browser.run("slots.map(slot => slot.clip)")]
        if len(trial_arms) == 2:
            choice = {"other_speaker": 1, "clone": 2, "finetuned": 4, "ground_truth": 5}[trial_arms[1]]
        else:
            choice = 2 if trial_arms[1] == trial_arms[2] else 1 if trial_arms[1] == "finetuned" else 3
        assert browser.run("ui.next.disabled")
        if trial_index % 2:
            browser.press(str(choice))
            browser.press("Enter")
        else:
            browser.click(f"#answers label:nth-of-type({choice})")
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
    pairs, scores = (analysis.pair_scores([response], key, test_type, ONE_PAIR[0]) for test_type in ("ab", "smos"))
    assert pairs.tolist() == [[1, 1]] and scores.tolist() == [[2, 2]]
    assert all(answer["seconds"] > 0 and min(answer["plays"]) == 1 for answer in response.answers.values())


def test_no_answer_before_all_clips_were_played(browser):
    """Mistake: keys answer before the clips were played, or one can click through the whole test."""
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


def test_the_test_continues_after_a_reload(browser, site):
    """Mistake: a new order, or a new listener, after a reload in the middle; one order for all listeners."""
    browser.click("#begin")
    answer = "slots.forEach(slot => { slot.heard = true; slot.plays = 1; }); mark(); " \
             "ui.answers.querySelector('input').click(); answer()"
    browser.run(f"for (let n = 0; n < 5; n++) {{ {answer} }}")
    state = ("JSON.stringify([response.rater, queue.map(trial => trial.id), "
             "queue.map(trial => inSides(response.rater, trial))])")
    before = browser.run(state)
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run(state) == before and browser.run("ui.begin.textContent") == "Go on with question 6"
    browser.click("#begin")
    assert browser.run("ui.position.textContent").startswith("6 of")
    orders = {browser.run(f"(() => {{ begin(); return {state}.slice(20); }})()") for _ in range(5)}
    assert len(orders) == 5


def test_order_and_sides_are_balanced(browser, larger):
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


@pytest.mark.parametrize("stored", ["null", "{", '{"rater":"../../x","answers":[]}',
                                    '{"rater":"0123456789abcdef","answers":[{}]}',
                                    '{"rater":"0123456789abcdef","answers":[null,1]}', "[1]"])
def test_invalid_storage_is_ignored(browser, site, stored):
    """Mistake: the page stays blank because of invalid data in the browser's storage."""
    browser.run(f"localStorage.setItem(STORED, {json.dumps(stored)})")
    browser.open("about:blank")
    browser.open(site.as_uri())
    assert browser.run("response.answers.length === 0 && !ui.welcome.hidden && /^[0-9a-f]{16}$/.test(response.rater)")


def test_missing_storage_is_reported(chromium, site):
    """Mistake: the page does not work where a browser denies storage to files."""
    denied = chromium.call("Page.addScriptToEvaluateOnNewDocument", source="""Object.defineProperty(window, "localStorage",
        { get() { throw new DOMException("denied", "SecurityError"); } })""")["identifier"]
    try:
        chromium.open("about:blank")
        chromium.open(site.as_uri())
        assert "in one go" in chromium.run("ui.message.textContent")
        chromium.click("#begin")
        play_all(chromium)
        chromium.press("2")
        chromium.press("Enter")
        assert chromium.run("response.answers.length") == 1 and chromium.console_errors() == []
    finally:
        chromium.call("Page.removeScriptToEvaluateOnNewDocument", identifier=denied)


def test_hostile_text_is_displayed_as_text(browser):
    """Mistake: innerHTML somewhere between the data and the page."""
    browser.run("begin(); while (!queue[response.answers.length].text.includes('<')) addAnswer('A', [1, 1, 1], 1)")
    browser.run("ask()")
    assert browser.run("[ui.text.textContent, document.title]") == [HOSTILE, f"Voices {HOSTILE}"]
    assert browser.run("[document.images.length, document.scripts.length, typeof window.hurt]") == [0, 2, "undefined"]


@pytest.mark.parametrize("width, height", [(1100, 800), (390, 844), (320, 640)])
@pytest.mark.parametrize("test_type", list(TEST_TYPES))
def test_the_page_fits_the_screen(chromium, all_types, width, height, test_type):
    """Mistake: the page scrolls sideways on a phone, for one of the test types."""
    for browser in open_page(chromium, all_types):
        browser.set_viewport(width, height)
        assert browser.run("document.documentElement.scrollWidth") <= width
        browser.run(f"queue = queue.filter(trial => trial.type === '{test_type}'); ask()")
        assert browser.run("document.documentElement.scrollWidth") <= width
        boxes = browser.run("""[...document.querySelectorAll(".disc, #answers label")].map(
            element => element.getBoundingClientRect().right)""")
        assert max(boxes) <= width and len(boxes) > 3
        assert browser.run("""[...document.querySelectorAll('button, #answers label')].every(e => e.textContent
            || e.ariaLabel)""")


def test_the_dark_scheme_is_dark(browser):
    """Mistake: a white page in the dark scheme."""
    shades = "['backgroundColor', 'color'].map(name => +getComputedStyle(document.body)[name].match(/\\d+/)[0])"
    browser.set_viewport(1100, 800, "dark")
    background, text = browser.run(shades)
    assert text > background + 150


# ---- from the page to the results ----


def test_simulated_preferences_reach_the_results(chromium, larger):
    """Mistake: sides or arms are swapped on the way from the page to the verdict, so that the loser wins."""
    for browser in open_page(chromium, larger):
        results = {
            preference: listening_test.analyze(write_responses(browser, larger, preference, range(1, 9)), larger.parent)
            for preference in (0.95, 0.5, 0.05)}
    for preference, outcome in ((0.95, "wins"), (0.5, "no difference"), (0.05, "loses")):
        result = results[preference]
        assert result["listeners"] == 8 and not result["rejected"] and not result["excluded"]
        pairs, scores = (next(comparison for comparison in result["comparisons"]
                              if comparison["type"] == test_type and comparison["arms"] == ["finetuned", "clone"])
                         for test_type in ("ab", "smos"))
        assert pairs["outcome"] == outcome and abs(pairs["value"] - preference) < 0.15, preference
        assert abs(scores["value"] - (2 * preference - 1)) < 0.4, preference
    assert results[0.95]["headphones"] == 8 and results[0.95]["smos"]["other_speaker"]["value"] == 1


def test_edited_responses_are_rejected(chromium, larger, tmp_path):
    """Mistake: responses that somebody changed by hand count as they are."""
    for browser in open_page(chromium, larger):
        file, = write_responses(browser, larger, 0.9, [3])
    text = file.read_text()
    assert text.isascii() and analysis.read([file], larger.parent)[1][0].listener["name"] == "Ж\u2028<b>\ud800"
    (tmp_path / "edited.json").write_text(text.replace('"answer":"A"', '"answer":"B"', 1))
    (tmp_path / "formatted.json").write_text(json.dumps(json.loads(text), indent=2))
    _, read, rejected = analysis.read([tmp_path], larger.parent)
    assert [file["file"] for file in rejected] == ["edited.json"] and "digest" in rejected[0]["reason"]
    assert [response.file for response in read] == ["formatted.json"]
