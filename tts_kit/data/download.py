"""Download the audio of a web page or file with yt-dlp, if it is installed; for speech that one has the right to use."""

import hashlib
import importlib.util
import logging
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit import io
from tts_kit.errors import KitError, reason

MAX_BYTES = 4 * 2 ** 30


def is_url(source: str | Path) -> bool:
    """Whether a source is an http or https address."""
    return str(source).lower().startswith(("http://", "https://"))


def fetch(url: str, folder: Path) -> Path:
    """Download the audio of one video or audio file to a folder of its own under `folder`, once."""
    own_folder = Path(folder) / f"web-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if own_folder.is_dir():
        return next(own_folder.iterdir())
    if not importlib.util.find_spec("yt_dlp"):
        raise KitError(f"{url} is a URL, and downloading needs yt-dlp, which is missing: pip install yt-dlp. Or download "
                       "it yourself and give the file.")
    print("Only use speech that you have the right to use.")
    with io.atomic_folder(own_folder) as staging, tqdm(desc="downloading", unit="B", unit_scale=True) as bar:
        _download(url, staging / own_folder.name, bar)
        files = [path for path in staging.iterdir() if path.stat().st_size]
        if len(files) != 1:
            raise KitError(f"{url} gave {len(files)} files; wanted the URL of one video or audio file of at most "
                           f"{MAX_BYTES // 2 ** 30} GB.")
    return next(own_folder.iterdir())


def _download(url: str, path: Path, bar: tqdm) -> None:
    import yt_dlp

    def update_bar(state: dict) -> None:
        bar.total = state.get("total_bytes") or bar.total
        bar.update((state.get("downloaded_bytes") or 0) - bar.n)

    logger = logging.getLogger("yt_dlp")
    logger.setLevel(logging.CRITICAL)  # errors arrive as exceptions
    options = {"format": "bestaudio/best", "outtmpl": {"default": f"{path}.%(ext)s"}, "noplaylist": True,
               "playlist_items": "1", "max_filesize": MAX_BYTES, "restrictfilenames": True, "quiet": True,
               "no_warnings": True, "noprogress": True, "progress_hooks": [update_bar], "cachedir": False,
               "logger": logger}
    try:
        with yt_dlp.YoutubeDL(options) as downloader:
            downloader.download([url])
    except yt_dlp.utils.YoutubeDLError as error:
        raise KitError(f"{url} cannot be downloaded ({reason(error).removeprefix('ERROR: ')}). Check it in a browser, "
                       "update yt-dlp (pip install -U yt-dlp), or download it yourself and give the file.") from error
