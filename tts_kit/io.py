"""Reading and writing files: atomic files and folders, JSON and JSON lines, errors that say what to do."""

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from tts_kit.errors import DISK_FULL, KitError

MAX_TEXT_BYTES = 1_000_000  # of a text file that a user writes


@contextlib.contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path`, renamed at the end: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.chmod(temporary, 0o644)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise


def write_bytes(path: Path, content: bytes) -> None:
    """The whole file or the old one."""
    with atomic_file(path) as file:
        file.write(content)


def write_text(path: Path, text: str) -> None:
    write_bytes(path, text.encode("utf-8"))


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def write_rows(path: Path, rows: Iterable[dict]) -> None:
    """One JSON object a line."""
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict]:
    """Rows of a JSON-lines file; a broken line is named."""
    rows = []
    # split, not splitlines: a text may hold U+2028, which is no end of a row
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").split("\n"), 1):
        if not line:
            continue
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError as error:
            raise KitError(f"{path} line {number} is not JSON ({error.msg}). Repair the line, or remove the file and "
                          "run the stage again.") from error
    return rows


def read_json(path: Path, remedy: str) -> dict:
    """One JSON object from a file; a file that is none is named, with what to do."""
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise KitError(f"{path} cannot be read as JSON ({error}). {remedy}") from error
    if not isinstance(value, dict):
        raise KitError(f"{path} holds no JSON object. {remedy}")
    return value


def read_text(path: Path, name: str) -> str:
    """The text of a UTF-8 file, with or without a byte order mark; `name` is used in error messages."""
    try:
        with open(path, "rb") as file:
            content = file.read(MAX_TEXT_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise KitError(f"{name} cannot be read: {error.strerror}. Give a text file.") from error
    except UnicodeDecodeError as error:
        raise KitError(f"{name} is not UTF-8 text (byte {error.start + 1}). Save it as UTF-8.") from error
    if len(content) > MAX_TEXT_BYTES:
        raise KitError(f"{name} is larger than {MAX_TEXT_BYTES / 1e6:g} MB. Keep what is needed.")
    return text


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """A folder filled beside `path` and moved there when the block ends well; what stood there is replaced then."""
    path = Path(path)
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        _clear_leftovers(path)
        staging = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.new."))
    old = path.with_name(f".{path.name}.old")
    try:
        with explain_os_errors(path):
            yield staging
        staging.chmod(0o755)
        if path.exists():
            path.rename(old)
        staging.rename(path)
    except BaseException:
        if old.exists() and not path.exists():
            old.rename(path)
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(old, ignore_errors=True)


def check_replaceable(folder: Path, sign: str) -> None:
    """A folder that will be replaced as a whole has to be one of its kind, which the file `sign` shows, or empty."""
    folder = Path(folder)
    if folder.exists() and not (folder / sign).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise KitError(f"{folder} is there and holds something else: no {sign}. All of it would be replaced; choose another "
                      "--out.")


def _clear_leftovers(path: Path) -> None:
    """Put back what a kill between two renames left aside, and remove what it left unfinished."""
    old = path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    for leftover in (old, *path.parent.glob(f".{path.name}.new.*")):
        shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into a sentence that says what is safe and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors and torch report an OSError as a class of their own, with the number or the words only in the text
        full = getattr(error, "errno", None) in DISK_FULL or any(
            f"os error {number})" in str(error) or os.strerror(number) in str(error) for number in DISK_FULL)
        if full:
            free = shutil.disk_usage(next(folder for folder in Path(path).absolute().parents if folder.exists())).free
            raise KitError(f"{path} could not be written: the disk is full ({free / 1e9:.1f} GB free). What was there "
                          "before is untouched. Free some space and run the same command again.") from error
        if isinstance(error, OSError) and error.errno:
            raise KitError(f"{path} could not be written: {os.strerror(error.errno)} ({error.filename or path}). Choose a "
                          "place where this user may write, or move what stands in the way.") from error
        raise
