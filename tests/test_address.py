"""Sound from an address, fetched by yt-dlp from a server of the test's own."""

import functools
import http.server
import importlib.util
import threading

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.data import download
from tts_kit.errors import KitError

needs_loader = pytest.mark.skipif(not importlib.util.find_spec("yt_dlp"), reason="yt-dlp is not installed "
                                  "(requirements-recordings.txt)")


@pytest.fixture
def server(tmp_path):
    """(address, folder) of a web server that counts what is asked of it."""
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as made:
        threading.Thread(target=made.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{made.server_port}", folder, asked
        made.shutdown()


@needs_loader
def test_a_sound_is_fetched_once_and_kept_under_a_name_of_ours(server, tmp_path):
    """Mistake: a server that chooses the file's name, or an hour fetched again at every run."""
    site, folder, asked = server
    tone = np.sin(np.arange(48_000) / 10).astype(np.float32) * 0.3
    audio.write(folder / "talk.wav", tone, 24_000)
    found = download.fetch(f"{site}/talk.wav?name=../../evil", tmp_path / "downloads")
    assert found.parent.parent == tmp_path / "downloads" and found.name.startswith("web-") and found.suffix == ".wav"
    assert np.allclose(audio.read(found, 24_000), tone, atol=1e-4)
    count = len(asked)
    assert download.fetch(f"{site}/talk.wav?name=../../evil", tmp_path / "downloads") == found
    assert len(asked) == count


@needs_loader
@pytest.mark.parametrize("name, content", [("page.html", b"<p>No sound here.</p>"), ("gone.wav", None)])
def test_an_address_without_sound_is_told_in_one_line(server, tmp_path, name, content):
    """Mistake: a traceback of yt-dlp, or a page kept as if it were a recording."""
    site, folder, _ = server
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(KitError, match="cannot be fetched") as told:
        download.fetch(f"{site}/{name}", tmp_path / "downloads")
    assert "\n" not in str(told.value)
    assert not list((tmp_path / "downloads").glob("*"))


def test_without_the_loader_it_is_said_what_to_install(tmp_path, monkeypatch):
    """Mistake: an ImportError for those who only have files."""
    monkeypatch.setattr(download.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="pip install yt-dlp"):
        download.fetch("https://example.org/talk", tmp_path)
    assert download.is_url("HTTPS://example.org/talk") and not download.is_url("owner/name")
