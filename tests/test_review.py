"""The review page: who may ask it, what it says, and how it behaves in a real browser."""

import contextlib
import html
import json
import re
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path

import pytest
import soundfile
from conftest import CUT_TEXTS, make_cuts

from tts_kit import io
from tts_kit.data import review, review_store, segment, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_edits import CHECKED, DROPPED, NEW
from tts_kit.data.review_store import ReviewStore
from tts_kit.errors import KitError

HOSTILE = '<img src=x onerror="window.hurt=1"></script><!--<script>window.hurt=1//'


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_cuts(tmp_path)


@contextlib.contextmanager
def running(folder: Path, port: int = 0):
    """A review of the folder, as a person starts it."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (requirements-dev.txt)")
    made = review.Review(ReviewStore(folder, "base"), f"Title {HOSTILE}", port)
    try:
        yield made
    finally:
        made.close()


def ask(made: review.Review, path: str, token: str | None = None, body: object = None) -> tuple[int, bytes, dict]:
    """Status, content and headers of an answer."""
    address = f"http://127.0.0.1:{made.port}/{path}"
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    request = urllib.request.Request(address, data, {"X-Token": made.token if token is None else token})
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            return answer.status, answer.read(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def state(folder: Path) -> dict:
    """What is on disk."""
    return {entry.id: (entry.text, entry.state) for entry in ReviewStore(folder, "base").entries}


def test_nobody_without_the_token(folder):
    """Mistake: any page in the browser, or anybody on the network, reads or changes the texts."""
    with running(folder) as made:
        edit = {"do": "drop", "id": "monday/00001", "seen": 0}
        for token in ("", "x", made.token[:-1], made.token + "x"):
            for path, body in (("clips", None), ("sound?id=monday/00001", None), ("edit", edit)):
                status, content, _ = ask(made, path, token, body)
                assert status == 403 and b"monday" not in content
            assert ask(made, f"?token={token}", token)[0] == 403
        assert ask(made, "clips")[0] == 200
        assert made._socket.getsockname()[0] == "127.0.0.1"
    assert state(folder)["monday/00001"][1] == NEW


def test_sound_of_clips_and_of_nothing_else(folder):
    """Mistake: an id that leads to another file of the machine."""
    (folder / "secret.flac").write_bytes((folder / "monday/clips/00001.flac").read_bytes())
    with running(folder) as made:
        status, content, _ = ask(made, "sound?id=monday/00002")
        samples, rate = soundfile.read(BytesIO(content))
        assert (status, rate, len(samples)) == (200, SAMPLE_RATE, round(2.5 * SAMPLE_RATE))
        for id in ("secret", "../secret", "monday/../secret", "monday/clips/00001.flac", "/etc/passwd", "%2e%2e%2fsecret"):
            assert ask(made, f"sound?id={id}")[0] == 400


def test_bad_requests_get_a_sentence_and_change_nothing(folder):
    """Mistake: a traceback, a hang, or half an edit."""
    with running(folder) as made:
        for body, status in ((b"{", 400), (b"[]", 400), (b"x" * (review.MOST_BYTES + 1), 400), ({"do": "drop"}, 409),
                             ({"do": "nothing", "id": "monday/00001", "seen": 0}, 400),
                             ({"do": "text", "id": "monday/00001", "seen": 9, "text": "x"}, 409)):
            seen, content, _ = ask(made, "edit", body=body)
            assert seen == status and json.loads(content)["problem"]
    assert not (folder / review_store.HISTORY).exists()


def test_the_page_needs_nothing_and_runs_nothing_foreign(folder):
    """Mistake: a script from a CDN, a title that is pasted as markup, or places of this machine in what is sent."""
    with running(folder) as made:
        status, content, headers = ask(made, f"?token={made.token}")
        text = content.decode()
        assert status == 200 and "<img" not in text and text.count("<script") == text.count("</script>") == 1
        markup = text.replace(html.escape(f"Title {HOSTILE}"), "")
        assert not re.search(r"https?:|//[a-z]|@import|<link|\b(src|href)=", markup)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy and "unsafe" not in policy
        assert str(folder) not in ask(made, "clips")[1].decode()


def test_a_port_in_use_is_named(folder):
    """Mistake: a traceback of the socket."""
    with running(folder) as made, pytest.raises(KitError, match=f"port {made.port} of this machine cannot be used"):
        review.Review(ReviewStore(folder, "base"), "", made.port)


@pytest.fixture
def desk(chromium, folder):
    """The page freshly opened; no test may leave an error in the console or ask anybody else."""
    place = folder / "monday" / transcribe.transcripts_path("base")
    rows = io.read_rows(place)
    io.write_rows(place, [rows[0], rows[1] | {"confidence": 0.4}, rows[2] | {"original_text": HOSTILE}, rows[3]])
    with running(folder) as made:
        chromium.look(1280, 800)
        chromium.open(made.address)
        chromium.wait("document.querySelectorAll('#list li').length === 8")
        chromium.wait("document.getElementById('player').readyState >= 2")
        yield chromium, made
        assert [each for each in chromium.complaints() if "409" not in json.dumps(each)] == []
        asked = {event["params"]["request"]["url"] for event in chromium.events
                 if event["method"] == "Network.requestWillBeSent"}
        assert all(url.startswith((f"http://127.0.0.1:{made.port}/", "blob:", "data:")) for url in asked)


def type_text(chromium, text: str) -> None:
    chromium.click("#text")
    chromium.run("document.getElementById('text').select()")
    chromium.call("Input.insertText", text=text)


def lines(chromium) -> list[str]:
    return chromium.run("[...document.querySelectorAll('#list li')].map(each => each.dataset.id)")


def test_the_most_suspicious_comes_first(desk):
    """Mistake: the list is in the order of the recording, and a person checks what needs no checking."""
    chromium, _ = desk
    assert lines(chromium)[0] == "monday/00002"
    assert chromium.run("document.getElementById('id').textContent") == "monday/00002"
    assert "40% sure" in chromium.run("document.getElementById('doubts').innerText")
    assert chromium.run("document.getElementById('text').value") == CUT_TEXTS[1]
    assert chromium.run("[...sound.peaks].filter(each => each > 0.1).length") > 150
    chromium.run("part.sort.value = 'place'; part.sort.dispatchEvent(new Event('input'))")
    assert lines(chromium)[0] == "monday/00001"


def test_a_correction_is_saved_and_the_next_clip_comes(desk, folder):
    """Mistake: what was typed is lost by a reload, or by going on before it was sent."""
    chromium, made = desk
    type_text(chromium, "The dog ran home.")
    chromium.press("Enter")
    chromium.wait("document.getElementById('id').textContent !== 'monday/00002'")
    assert state(folder)["monday/00002"] == ("The dog ran home.", CHECKED)
    assert "1 of 8 checked" in chromium.run("document.getElementById('count').textContent")
    chromium.open(made.address)
    chromium.wait("document.querySelectorAll('#list li').length === 7")
    assert "monday/00002" not in lines(chromium)


def test_typing_is_saved_without_a_key(desk, folder):
    """Mistake: a closed tab loses the last words; or a text counts as checked because it was touched."""
    chromium, _ = desk
    type_text(chromium, "The dog ran far away.")
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    assert state(folder)["monday/00002"] == ("The dog ran far away.", NEW)


def test_split_drop_merge_undo_by_keys(desk, folder):
    """Mistake: the text is split elsewhere than the sound, the wrong neighbour is merged, or undo forgets one of them."""
    chromium, made = desk
    chromium.click("#text")
    chromium.run("part.text.setSelectionRange(7, 7); part.player.currentTime = 1.5")
    chromium.wait("!part.player.seeking")
    chromium.press("b", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 9")
    assert [state(folder)[f"monday/00002{letter}"][0] for letter in "ab"] == ["The dog.", "ran away."]
    assert ReviewStore(folder, "base").wave("monday/00002a").size == round(1.5 * SAMPLE_RATE)
    chromium.press("d", control=True)
    chromium.wait("document.getElementById('state').textContent === 'dropped'")
    assert state(folder)["monday/00002a"][1] == DROPPED
    chromium.open(made.address)
    chromium.wait("document.querySelectorAll('#list li').length === 8")
    chromium.run("part.sort.value = 'place'; part.sort.dispatchEvent(new Event('input'))")
    chromium.click('#list li[data-id="monday/00003"]')
    chromium.wait("document.getElementById('id').textContent === 'monday/00003'")
    chromium.press("m", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 7")
    assert state(folder)["monday/00003"] == (f"{CUT_TEXTS[2]} {CUT_TEXTS[3]}", NEW)
    for _ in range(3):
        chromium.press("z", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 8 && clips.has('monday/00002')")
    assert {text for text, _ in state(folder).values()} == set(CUT_TEXTS)


def test_two_tabs_do_not_lose_an_edit(desk, folder):
    """Mistake: the second tab overwrites what the first one saved, unseen."""
    chromium, made = desk
    ask(made, "edit", body={"do": "text", "id": "monday/00002", "seen": 0, "text": "From the other tab."})
    type_text(chromium, "From this tab.")
    chromium.press("Enter")
    chromium.wait("document.getElementById('said').textContent.includes('changed elsewhere')")
    assert state(folder)["monday/00002"][0] == "From the other tab."
    chromium.click("#said button")
    chromium.wait("clips.get('monday/00002').text === 'From this tab.'")
    assert state(folder)["monday/00002"][0] == "From this tab."


def test_a_server_that_went_away_is_told_of_and_nothing_is_lost(desk, folder):
    """Mistake: the page goes on as if it saved."""
    chromium, made = desk
    type_text(chromium, "Saved before.")
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    made.close()
    type_text(chromium, "Typed after.")
    chromium.wait("document.getElementById('said').textContent.includes('does not answer')")
    assert chromium.run("document.getElementById('text').value") == "Typed after."
    assert state(folder)["monday/00002"][0] == "Saved before."
    chromium.run("typed = null")
    chromium.events.clear()


def test_hostile_texts_stay_text(desk):
    """Mistake: what a transcriber or a person wrote becomes markup."""
    chromium, _ = desk
    chromium.run("part.sort.value = 'place'; part.sort.dispatchEvent(new Event('input'))")
    chromium.click('#list li[data-id="monday/00003"]')
    chromium.wait("document.getElementById('heard').textContent.includes('<img')")
    type_text(chromium, HOSTILE)
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    assert chromium.run("window.hurt === undefined && !document.querySelector('#list img, #desk img')")


def test_the_page_is_part_of_the_kit():
    """Mistake: the page's files are missing where the kit is installed, or the review reads another recording's table."""
    content, _ = review.page("x")
    assert "</html>" in content and segment.PIECES == "pieces.jsonl"
