"""One run's folder on disk, and writing that is whole or not at all."""

import contextlib
import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tts_kit.problem import Problem

FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


class Run:
    """The folders of one run: each stage reads one and writes the next."""

    def __init__(self, name: str, root: str | Path = "runs"):
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", name):
            raise Problem(f"run name {name!r}: wanted 1 to 64 letters, digits, '.', '_' or '-', beginning with a letter "
                          "or digit. Choose another name.")
        self.name = name
        self.folder = Path(root) / name
        self.data = self.folder / "data"
        self.codes = self.folder / "codes"
        self.training = self.folder / "training"
        self.adapter = self.folder / "adapter"
        self.comparison = self.folder / "comparison"


def write_bytes(path: Path, content: bytes) -> None:
    """Write beside, then rename: a reader sees the old file or the new one, never half of it."""
    path = Path(path)
    with saying_when_full(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(beside, 0o644)
            os.replace(beside, path)
        except BaseException:
            Path(beside).unlink(missing_ok=True)
            raise


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
            raise Problem(f"{path} line {number} is not JSON ({error.msg}). Repair the line, or remove the file and "
                          "run the stage again.") from error
    return rows


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """A folder filled beside `path` and moved there when the block ends well; what stood there is replaced then."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    for leftover in path.parent.glob(f".{path.name}.*"):  # of a write that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    beside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    old = beside.with_name(beside.name + ".old")
    try:
        with saying_when_full(path):
            yield beside
        beside.chmod(0o755)
        if path.exists():
            path.rename(old)
        beside.rename(path)
    except BaseException:
        shutil.rmtree(beside, ignore_errors=True)
        raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


@contextlib.contextmanager
def saying_when_full(path: Path) -> Iterator[None]:
    """Turn the kernel's refusal to write into a sentence that says what is safe and what to do."""
    try:
        yield
    except Exception as error:
        # safetensors reports an OSError as its own class, with the number only in the text
        full = getattr(error, "errno", None) in FULL or any(f"os error {number})" in str(error) for number in FULL)
        if not full:
            raise
        free = shutil.disk_usage(Path(path).parent if Path(path).parent.exists() else Path.cwd()).free
        raise Problem(f"{path} could not be written: the disk is full ({free / 1e9:.1f} GB free). What was there before "
                      "is untouched. Free some space and run the same command again.") from error
