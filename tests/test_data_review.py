"""The review page: access, responses, and how it behaves in a real browser."""

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
from conftest import SEGMENT_TEXTS, make_segments

from tts_kit import io
from tts_kit.data import review, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review import CHECKED, DROPPED, NEW, ReviewStore
from tts_kit.errors import KitError

HOSTILE = '<img src=x onerror="window.hurt=1"></script><!--<script>window.hurt=1//'


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_segments(tmp_path)


@contextlib.contextmanager
def running(folder: Path, port: int = 0):
    """A review server for the folder."""
    pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `dev`)")
    server = review.serve(ReviewStore(folder, "base"), HOSTILE, port)
    try:
        yield server
    finally:
        server.close()


def request(server, path: str, token: str | None = None, body: object = None) -> tuple[int, bytes, dict]:
    """Status, content and headers of a response."""
    url = f"http://127.0.0.1:{server.port}/{path}"
    data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    prepared = urllib.request.Request(url, data, {"X-Token": server.token if token is None else token})
    try:
        with urllib.request.urlopen(prepared, timeout=300) as response:
            return response.status, response.read(), dict(response.headers)
    except urllib.error.HTTPError as error:
        return error.code, error.read(), dict(error.headers)


def state(folder: Path) -> dict:
    """Return the text and state of each clip on disk."""
    return {clip.id: (clip.text, clip.state) for clip in ReviewStore(folder, "base").clips}


def test_requests_without_the_token_are_refused(folder):
    """Mistake: any page in the browser, or anybody on the network, can read or change the texts."""
    with running(folder) as server:
        edit = {"action": "drop", "id": "monday/00001"}
        for token in ("", "x", server.token[:-1], server.token + "x"):
            for path, body in (("clips", None), ("audio?id=monday/00001", None), ("edit", edit)):
                status, content, _ = request(server, path, token, body)
                assert status == 403 and b"monday" not in content
            assert request(server, f"?token={token}", token)[0] == 403
        assert request(server, "clips")[0] == 200
        assert server.socket.getsockname()[0] == "127.0.0.1"
    assert state(folder)["monday/00001"][1] == NEW


def test_only_audio_of_clips_is_served(folder):
    """Mistake: an id leads to another file of the machine."""
    (folder / "secret.flac").write_bytes((folder / "monday/clips/00001.flac").read_bytes())
    with running(folder) as server:
        status, content, _ = request(server, "audio?id=monday/00002")
        samples, rate = soundfile.read(BytesIO(content))
        assert (status, rate, len(samples)) == (200, SAMPLE_RATE, round(2.5 * SAMPLE_RATE))
        for id in ("secret", "../secret", "monday/../secret", "monday/clips/00001.flac", "/etc/passwd", "%2e%2e%2fsecret"):
            assert request(server, f"audio?id={id}")[0] == 400


def test_bad_requests_get_a_message_and_change_nothing(folder):
    """Mistake: a traceback, a hang, or half an edit."""
    with running(folder) as server:
        for body, status in ((b"{", 400), (b"[]", 400), (b"x" * (review.MAX_BODY_BYTES + 1), 400), ({"action": "drop"}, 400),
                             ({"action": "nothing", "id": "monday/00001"}, 400),
                             ({"action": "text", "id": "monday/00009", "text": "x"}, 400)):
            response_status, content, _ = request(server, "edit", body=body)
            assert response_status == status and json.loads(content)["error"]
    assert not (folder / review.HISTORY).exists()


def test_the_page_loads_and_runs_nothing_foreign(folder):
    """Mistake: a script from a CDN, a title inserted as markup, or paths of this machine in a response."""
    with running(folder) as server:
        status, content, headers = request(server, f"?token={server.token}")
        text = content.decode()
        assert status == 200 and "<img" not in text and text.count("<script") == text.count("</script>") == 1
        markup = text.replace(html.escape(f"Review: {HOSTILE}"), "")
        assert not re.search(r"https?:|//[a-z]|@import|<link|\b(src|href)=", markup)
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; ") and "script-src 'sha256-" in policy and "unsafe" not in policy
        assert str(folder) not in request(server, "clips")[1].decode()


def test_a_port_in_use_is_named(folder):
    """Mistake: a traceback of the socket."""
    with running(folder) as server, pytest.raises(KitError, match="cannot be used: .*in use"):
        review.serve(ReviewStore(folder, "base"), "", server.port)


@pytest.fixture
def page(chromium, folder):
    """The page freshly opened; no test may leave an error in the console or send a request elsewhere."""
    table = folder / "monday" / transcribe.transcripts_file("base")
    rows = io.read_rows(table)
    io.write_rows(table, [rows[0], rows[1] | {"confidence": 0.4}, rows[2] | {"original_text": HOSTILE}, rows[3]])
    with running(folder) as server:
        chromium.set_viewport(1280, 800)
        chromium.open(server.url)
        chromium.wait("document.querySelectorAll('#list li').length === 8")
        chromium.wait("document.getElementById('player').readyState >= 2")
        yield chromium, server
        assert chromium.console_errors() == []
        urls = {event["params"]["request"]["url"] for event in chromium.events
                if event["method"] == "Network.requestWillBeSent"}
        assert all(url.startswith((f"http://127.0.0.1:{server.port}/", "blob:", "data:")) for url in urls)


def type_text(chromium, text: str) -> None:
    chromium.click("#text")
    chromium.run("document.getElementById('text').select()")
    chromium.call("Input.insertText", text=text)


def lines(chromium) -> list[str]:
    return chromium.run("[...document.querySelectorAll('#list li')].map(item => item.dataset.id)")


def test_the_most_suspicious_clip_comes_first(page):
    """Mistake: the list is in the order of the recording, and a person checks clips that need no check."""
    chromium, _ = page
    assert lines(chromium)[0] == "monday/00002"
    assert chromium.run("document.getElementById('id').textContent") == "monday/00002"
    assert "ASR confidence 40%" in chromium.run("document.getElementById('flags').innerText")
    assert chromium.run("document.getElementById('text').value") == SEGMENT_TEXTS[1]
    assert chromium.run("[...waveform.peaks].filter(peak => peak > 0.1).length") > 150
    chromium.run("ui.sort.value = 'position'; ui.sort.dispatchEvent(new Event('input'))")
    assert lines(chromium)[0] == "monday/00001"


def test_a_correction_is_saved_and_the_next_clip_is_shown(page, folder):
    """Mistake: typed text is lost by a reload, or by opening the next clip before it was sent."""
    chromium, server = page
    type_text(chromium, "The dog ran home.")
    chromium.press("Enter")
    chromium.wait("document.getElementById('id').textContent !== 'monday/00002'")
    assert state(folder)["monday/00002"] == ("The dog ran home.", CHECKED)
    assert "1 of 8 checked" in chromium.run("document.getElementById('count').textContent")
    chromium.open(server.url)
    chromium.wait("document.querySelectorAll('#list li').length === 7")
    assert "monday/00002" not in lines(chromium)


def test_typing_is_saved_without_a_key(page, folder):
    """Mistake: a closed tab loses the last words, or a text counts as checked because it was edited."""
    chromium, _ = page
    type_text(chromium, "The dog ran far away.")
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    assert state(folder)["monday/00002"] == ("The dog ran far away.", NEW)


def test_a_split_finds_its_place_in_the_text(page, folder):
    """Mistake: the text is cut in a word or at a cursor that nobody placed, or only a tooltip says where it will be cut."""
    chromium, _ = page
    halves = "[ui.halves.hidden, ui.before.textContent, ui.after.textContent]"
    assert chromium.run("ui.halves.hidden"), "nothing is split at the beginning"
    chromium.click("#wave", across=0.5)
    chromium.wait("!ui.player.seeking && !ui.halves.hidden")
    assert chromium.run(halves) == [False, "The dog", "ran away."]
    chromium.click("#text")
    for _ in range(20):
        chromium.press("ArrowLeft")
    for _ in range(4):
        chromium.press("ArrowRight")
    assert chromium.run(halves) == [False, "The", "dog ran away."]
    chromium.press("b", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 9")
    assert [state(folder)[f"monday/00002{letter}"][0] for letter in "ab"] == ["The.", "dog ran away."]
    chromium.wait("ui.text.value === 'The.' && ui.player.readyState >= 2")
    chromium.run("split()")
    chromium.wait("ui.message.textContent.includes('One word cannot be split')")


def test_the_arrows_move_by_words_in_the_text(page):
    """Mistake: Ctrl-Left in the text field moves the audio, as it does nowhere else in a browser."""
    chromium, _ = page
    chromium.click("#wave", across=0.5)
    chromium.wait("!ui.player.seeking && ui.player.currentTime > 1")
    before = chromium.run("ui.player.currentTime")
    chromium.click("#text")
    chromium.press("ArrowLeft", control=True)
    assert chromium.run("ui.player.currentTime") == before
    chromium.press(",", control=True)
    assert chromium.run("ui.player.currentTime") == pytest.approx(before - 1, abs=0.01)


def test_the_second_pass_is_taken_over_by_a_button(chromium, folder):
    """Mistake: what the second model wrote, often right, has to be typed again."""
    rows = io.read_rows(folder / "monday" / transcribe.transcripts_file("base"))
    rows[1] |= {"text": "The dog ran far away."}
    io.write_rows(folder / "monday" / transcribe.transcripts_file("second"), rows)
    store = ReviewStore(folder, "base", "second")
    assert [clip.second for clip in store.clips[:4]] == ["", "The dog ran far away.", "", ""]
    server = review.serve(store, "anna")
    chromium.open(server.url)
    chromium.wait("ui.id.textContent === 'monday/00002'")
    chromium.click("#take_second")
    chromium.wait("ui.saved.textContent === 'saved'")
    server.close()
    assert state(folder)["monday/00002"] == ("The dog ran far away.", NEW)


def test_a_page_goes_on_after_a_restart(page, folder):
    """Mistake: the review is started again, the open page has the wrong address or token, and what was typed is lost."""
    chromium, server = page
    server.close()
    type_text(chromium, "Typed while nobody answered.")
    chromium.wait("ui.message.textContent.includes('does not answer')")
    assert (folder / review.SESSION).stat().st_mode & 0o077 == 0, "the token is for this user alone"
    with running(folder) as again:
        assert again.url == server.url
        chromium.wait("ui.saved.textContent === 'saved'")
    assert state(folder)["monday/00002"][0] == "Typed while nobody answered."
    chromium.events.clear()


def test_split_drop_merge_undo_by_keys(page, folder):
    """Mistake: text and audio are split at different places, the wrong neighbour is merged, or undo is incomplete."""
    chromium, server = page
    chromium.click("#text")
    chromium.run("ui.text.setSelectionRange(7, 7); ui.player.currentTime = 1.5")
    chromium.wait("!ui.player.seeking")
    chromium.press("b", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 9")
    assert [state(folder)[f"monday/00002{letter}"][0] for letter in "ab"] == ["The dog.", "ran away."]
    assert ReviewStore(folder, "base").read_audio("monday/00002a").size == round(1.5 * SAMPLE_RATE)
    chromium.press("d", control=True)
    chromium.wait("document.getElementById('state').textContent === 'dropped'")
    assert state(folder)["monday/00002a"][1] == DROPPED
    chromium.open(server.url)
    chromium.wait("document.querySelectorAll('#list li').length === 8")
    chromium.run("ui.sort.value = 'position'; ui.sort.dispatchEvent(new Event('input'))")
    chromium.click('#list li[data-id="monday/00003"]')
    chromium.wait("document.getElementById('id').textContent === 'monday/00003'")
    chromium.press("m", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 7")
    assert state(folder)["monday/00003"] == (f"{SEGMENT_TEXTS[2]} {SEGMENT_TEXTS[3]}", NEW)
    for _ in range(3):
        chromium.press("z", control=True)
    chromium.wait("document.querySelectorAll('#list li').length === 8 && clips.has('monday/00002')")
    assert {text for text, _ in state(folder).values()} == set(SEGMENT_TEXTS)


def test_a_stopped_server_is_reported_and_nothing_is_lost(page, folder):
    """Mistake: the page goes on as if it saved."""
    chromium, server = page
    type_text(chromium, "Saved before.")
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    server.close()
    type_text(chromium, "Typed after.")
    chromium.wait("document.getElementById('message').textContent.includes('does not answer')")
    assert chromium.run("document.getElementById('text').value") == "Typed after."
    assert state(folder)["monday/00002"][0] == "Saved before."
    chromium.run("typed = null")
    chromium.events.clear()


def test_hostile_texts_are_displayed_as_text(page):
    """Mistake: a text of the ASR model or of a person becomes markup."""
    chromium, _ = page
    chromium.run("ui.sort.value = 'position'; ui.sort.dispatchEvent(new Event('input'))")
    chromium.click('#list li[data-id="monday/00003"]')
    chromium.wait("document.getElementById('transcript').textContent.includes('<img')")
    type_text(chromium, HOSTILE)
    chromium.wait("document.getElementById('saved').textContent === 'saved'")
    assert chromium.run("window.hurt === undefined && !document.querySelector('#list img, #editor img')")
