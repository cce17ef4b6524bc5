"""Audio from a URL, downloaded by yt-dlp from a server of the test's own."""

import functools
import http.server
import importlib.util
import threading

import numpy as np
import pytest

from tts_kit import audio
from tts_kit.data import ingest
from tts_kit.errors import KitError

needs_yt_dlp = pytest.mark.skipif(not importlib.util.find_spec("yt_dlp"),
                                  reason="yt-dlp is not installed: pip install yt-dlp")


@pytest.fixture
def server(tmp_path):
    """URL, folder and list of requested paths of a web server."""
    requests = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self):
            requests.append(self.path)
            super().do_GET()

        def log_message(self, *_):
            pass

    folder = tmp_path / "web"
    folder.mkdir()
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=folder)) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", folder, requests
        server.shutdown()


@needs_yt_dlp
def test_audio_is_downloaded_once_under_a_safe_name(server, tmp_path):
    """Mistake: the server chooses the file's name, or an hour is downloaded again in every run."""
    site, folder, requests = server
    tone = np.sin(np.arange(48_000) / 10).astype(np.float32) * 0.3
    audio.write(folder / "talk.wav", tone, 24_000)
    file = ingest.download(f"{site}/talk.wav?name=../../evil", tmp_path / "downloads")
    assert file.parent.parent == tmp_path / "downloads" and file.name.startswith("web-") and file.suffix == ".wav"
    assert np.allclose(audio.read(file, 24_000), tone, atol=1e-4)
    count = len(requests)
    assert ingest.download(f"{site}/talk.wav?name=../../evil", tmp_path / "downloads") == file
    assert len(requests) == count


@needs_yt_dlp
@pytest.mark.parametrize("name, content", [("page.html", b"<p>No sound here.</p>"), ("gone.wav", None)])
def test_a_url_without_audio_is_refused_in_one_line(server, tmp_path, name, content):
    """Mistake: a traceback of yt-dlp, or a web page stored as a recording."""
    site, folder, _ = server
    if content is not None:
        (folder / name).write_bytes(content)
    with pytest.raises(KitError, match="cannot be downloaded") as caught:
        ingest.download(f"{site}/{name}", tmp_path / "downloads")
    assert "\n" not in str(caught.value)
    assert not list((tmp_path / "downloads").glob("*"))


def test_without_yt_dlp_the_error_says_what_to_install(tmp_path, monkeypatch):
    """Mistake: an ImportError for those who only have files."""
    monkeypatch.setattr(ingest.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(KitError, match="pip install yt-dlp"):
        ingest.download("https://example.org/talk", tmp_path)
    assert ingest.is_url("HTTPS://example.org/talk") and not ingest.is_url("owner/name")
