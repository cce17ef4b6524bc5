"""An address on the web -> a sound file on disk, by yt-dlp where it is installed; for speech that one may use."""

import hashlib
import importlib.util
from pathlib import Path

from tqdm.auto import tqdm

from tts_kit import io
from tts_kit.errors import KitError, reason

SCHEMES = ("http://", "https://")
LARGEST = 4 * 2 ** 30
"""Bytes of one file."""


def is_url(source: str | Path) -> bool:
    return str(source).lower().startswith(SCHEMES)


def fetch(address: str, folder: Path) -> Path:
    """The sound of one video or sound file, in a folder of its own under `folder`; fetched once."""
    place = Path(folder) / f"web-{hashlib.sha256(address.encode()).hexdigest()[:12]}"
    if place.is_dir():
        return next(place.iterdir())
    if not importlib.util.find_spec("yt_dlp"):
        raise KitError(f"{address} is an address, and fetching needs yt-dlp, which is missing: pip install yt-dlp. Or fetch "
                      "it yourself and give the file.")
    print("Only use speech that you have the right to use.")
    with io.atomic_folder(place) as beside, tqdm(desc="fetching", unit="B", unit_scale=True) as bar:
        _download(address, beside / place.name, bar)
        files = [path for path in beside.iterdir() if path.stat().st_size]
        if len(files) != 1:
            raise KitError(f"{address} gave {len(files)} files; wanted the address of one video or sound file, of "
                          f"{LARGEST // 2 ** 30} GB at most.")
    return next(place.iterdir())


def _download(address: str, path: Path, bar: tqdm) -> None:
    import yt_dlp

    def tell(state: dict) -> None:
        bar.total = state.get("total_bytes") or bar.total
        bar.update((state.get("downloaded_bytes") or 0) - bar.n)

    options = {"format": "bestaudio/best", "outtmpl": {"default": f"{path}.%(ext)s"}, "noplaylist": True,
               "playlist_items": "1", "max_filesize": LARGEST, "restrictfilenames": True, "quiet": True, "no_warnings": True,
               "noprogress": True, "progress_hooks": [tell], "cachedir": False, "logger": _Silent()}
    try:
        with yt_dlp.YoutubeDL(options) as loader:
            loader.download([address])
    except yt_dlp.utils.YoutubeDLError as error:
        raise KitError(f"{address} cannot be fetched ({reason(error).removeprefix('ERROR: ')}). Check it in a browser, "
                      "update yt-dlp (pip install -U yt-dlp), or fetch it yourself and give the file.") from error


class _Silent:
    """Errors arrive as exceptions; nothing else is news."""

    def debug(self, _message):
        pass

    info = warning = error = debug
