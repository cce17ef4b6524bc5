"""Packages of Debian and Ubuntu: fetched by apt without being installed, read as archives that nobody vouches for."""

import contextlib
import io
import lzma
import re
import shutil
import subprocess
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from tts_kit.errors import KitError
from tts_kit.io import explain_os_errors

LARGEST = 100_000_000
MOST_FILES = 10_000
BROKEN = (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError, OSError, ValueError)


def fetch(names: Sequence[str], folder: Path, by_hand: str) -> list[Path]:
    """The packages `names` in `folder`, one file each; `by_hand` is where a person gets them without apt."""
    if missing := [name for name in names if _found(name, folder) is None]:
        remedy = f"Fetch {' and '.join(missing)} from {by_hand} (the files end in _all.deb), put them into {folder}, "
        remedy += "and run the same command again."
        if not shutil.which("apt-get"):
            raise KitError(f"{' and '.join(missing)}: packages of Debian and Ubuntu, and apt-get is missing. {remedy}")
        with explain_os_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        done = subprocess.run(["apt-get", "download", *missing], cwd=folder, capture_output=True, text=True, check=False)
        if done.returncode or any(_found(name, folder) is None for name in missing):
            said = [line for line in done.stderr.splitlines() if line.startswith("E:")] or ["E: no reason given"]
            raise KitError(f"apt-get download {' '.join(missing)} failed ({said[0][2:].strip()}). Refresh its lists with "
                          f"`sudo apt-get update` and try again. {remedy[0].upper()}{remedy[1:]}")
    return [_found(name, folder) for name in names]


def files(package: Path, pattern: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of each plain file in `package` whose whole path matches; the name is the pattern's first group."""
    remedy = f"Delete {package} and run the same command again: it is fetched anew."
    seen = 0
    try:
        with _archive(package) as stream, tarfile.open(fileobj=stream, mode="r|*") as archive:
            for count, member in enumerate(archive):
                seen += max(0, member.size)
                if seen > LARGEST or count >= MOST_FILES:
                    raise KitError(f"{package} holds more than {LARGEST / 1e6:.0f} MB or {MOST_FILES:,} files; that is not "
                                  f"the package that was asked for. {remedy}")
                found = re.fullmatch(pattern, member.name)
                if found and member.isfile():
                    yield found[1], archive.extractfile(member).read()
    except BROKEN as error:
        raise KitError(f"{package} is no package that can be read ({error or type(error).__name__}). {remedy}") from error


def _found(name: str, folder: Path) -> Path | None:
    return next((path for path in sorted(folder.glob(f"{name}_*.deb")) if path.is_file()), None)


@contextlib.contextmanager
def _archive(package: Path) -> Iterator[BinaryIO]:
    """The packed files as one tar stream: by dpkg-deb, which knows every compression, or without it."""
    if not shutil.which("dpkg-deb"):
        yield io.BytesIO(_data(package))
        return
    command = ["dpkg-deb", "--fsys-tarfile", package]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        try:
            yield process.stdout
        finally:
            process.kill()


def _data(package: Path) -> bytes:
    """The part data.tar.* of an ar archive."""
    if package.stat().st_size > LARGEST:
        raise ValueError("too large")
    content = package.read_bytes()
    if content[:8] != b"!<arch>\n":
        raise ValueError("it does not begin as one")
    place = 8
    while place + 60 <= len(content):
        name, size = content[place:place + 16].decode("latin-1").strip(" /"), int(content[place + 48:place + 58])
        if size < 0:
            break
        if name.startswith("data.tar"):
            if name.endswith(".zst"):
                raise KitError(f"{package} is packed with zstd, which dpkg-deb unpacks, and dpkg-deb is missing. Take "
                              "Debian's package instead of Ubuntu's.")
            return content[place + 60:place + 60 + size]
        place += 60 + size + size % 2
    raise ValueError("it has no part data.tar")
