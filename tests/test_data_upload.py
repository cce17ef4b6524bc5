"""The upload page of the first notebook: where files go, who may send them, and how it behaves in a real browser."""

import threading
import urllib.error
import urllib.parse
import urllib.request

import pytest

from tts_kit.data import upload
from tts_kit.errors import KitError

pytest.importorskip("uvicorn", reason="uvicorn is not installed (the extra `dev`)")


@pytest.fixture
def page(tmp_path):
    page = upload.Upload(tmp_path / "uploads")
    yield page
    page.server.close()


def send(page, name: str, content: bytes = b"sound", token: str | None = None) -> str:
    url = f"http://127.0.0.1:{page.server.port}/file?name={urllib.parse.quote(name)}"
    request = urllib.request.Request(url, content, {"X-Token": page.server.token if token is None else token})
    try:
        return urllib.request.urlopen(request, timeout=20).read().decode()
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


@pytest.mark.parametrize(("name", "expected"), [
    ("talk.wav", "talk.wav"), ("../../etc/cron.wav", "cron.wav"),
    ("C:\\Users\\me\\My talk.MP3", "My talk.mp3"), ("/tmp/x.flac", "x.flac"),
    ("..wav", "file.wav"), ("a\0b<i>.wav", "a_b_i.wav"), ("metadata.csv", "metadata.csv"), ("Größe.ogg", "Größe.ogg")])
def test_files_stay_in_their_folder(tmp_path, name, expected):
    """Mistake: a name from a browser leads out of the folder, or to a hidden file."""
    assert upload.free_path(tmp_path, name) == tmp_path / expected


@pytest.mark.parametrize("name", ["run.sh", "noend", "", ".bashrc", "x.ipynb", ".wav"])
def test_other_files_are_refused(tmp_path, name):
    """Mistake: a program is put next to the data."""
    with pytest.raises(KitError, match="is no audio and no table"):
        upload.free_path(tmp_path, name)


def test_nothing_is_replaced_and_no_limit_passed(page, monkeypatch):
    """Mistake: a second recording replaces the first, a huge file fills the disk, or half a file stays."""
    assert [send(page, "recording.webm", content) for content in (b"one", b"two")] == [
        '{"name":"recording.webm"}', '{"name":"recording-2.webm"}']
    monkeypatch.setattr(upload, "MAX_BYTES", 1000)
    assert "larger than" in send(page, "long.wav", bytes(5000))
    assert {path.name: path.read_bytes() for path in page.folder.iterdir()} == {
        "recording.webm": b"one", "recording-2.webm": b"two"}


def test_only_the_notebook_may_send(page):
    """Mistake: any page in the browser can put files on this machine, or end the wait."""
    assert "403" in send(page, "talk.wav", token="other") and "wrong token" in send(page, "talk.wav", token="")
    assert not page.folder.exists() and not page.is_done


def test_files_are_dropped_recorded_and_waited_for(page, chromium, capsys):
    """Mistake: a dropped file is opened instead of sent, a recording is lost, or the next cell does not wait for Done."""
    results = []
    thread = threading.Thread(target=lambda: results.append(page.wait()), daemon=True)
    thread.start()
    chromium.set_viewport(800, 260)
    chromium.open(f"http://127.0.0.1:{page.server.port}/?token={page.server.token}")
    assert chromium.run("ui.done.disabled")
    chromium.run("""(() => { const transfer = new DataTransfer();
        for (const name of ["talk.wav", "run.sh"]) transfer.items.add(new File(["sound"], name));
        ui.drop.dispatchEvent(new DragEvent("drop", { dataTransfer: transfer, cancelable: true, bubbles: true })); })()""")
    chromium.wait("!ui.done.disabled")
    texts = chromium.run("[...document.querySelectorAll('li')].map(item => item.textContent)")
    assert texts[0] == "talk.wav, 0.0 MB" and "run.sh: not taken. 'run.sh' is no audio" in texts[1]
    chromium.run("""navigator.mediaDevices.getUserMedia = async () => {
        const context = new AudioContext(), target = context.createMediaStreamDestination();
        const tone = context.createOscillator();
        tone.connect(target); tone.start();
        return target.stream; }""")  # a machine without a microphone
    chromium.click("#record")
    chromium.wait("ui.record.textContent === 'Stop' && recorder.state === 'recording'")
    assert chromium.run("new Promise(done => setTimeout(() => done(ui.done.disabled), 400))") and not results
    chromium.click("#record")
    chromium.wait("document.querySelectorAll('li').length === 3 && !ui.done.disabled")
    chromium.click("#done")
    thread.join(20)
    assert results == [page.folder]
    assert sorted(path.name for path in page.folder.iterdir()) == ["recording.webm", "talk.wav"]
    assert (page.folder / "recording.webm").stat().st_size > 300
    chromium.events.clear()
