"""A table beside audio files, metadata.csv or JSON lines, read row by row."""

import csv
import difflib
import io
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from tts_kit.data import manifest
from tts_kit.errors import KitError

COLUMNS = ("file_name", "audio", "text", "source", "speaker_id", "session", "recording")
OTHER_NAMES = {"sentence": "text", "transcript": "text", "transcription": "text", "speaker": "source", "path": "file_name",
               "file": "file_name"}
MOST_ROWS = 1_000_000
MOST_BYTES = 1 << 30
LONGEST_CELL = 100_000


class AudioSource(Protocol):
    """Where a row's audio lies."""

    def content(self) -> Path | bytes:
        """What `tts_kit.audio.read` takes."""

    def stamp(self) -> str:
        """Another one when the audio is another."""


@dataclass(frozen=True)
class Row:
    table: str
    """What errors call the table."""
    number: int
    """From 1; the header does not count."""
    file: str
    """The audio's name as given."""
    text: str = ""
    speaker: str = ""
    session: str = ""
    sound: AudioSource | None = None
    problem: str = ""
    """Why this row cannot be used, if that was seen while reading it."""
    held_out: bool = False
    """Given to judge by, not to learn from."""


@dataclass(frozen=True)
class AudioFile:
    """A sound that is a file of its own."""
    path: Path

    def content(self) -> Path:
        return self.path

    def stamp(self) -> str:
        try:
            status = self.path.stat()
        except OSError:
            return "missing"
        return f"{status.st_size} {status.st_mtime_ns}"


def rows(path: Path) -> Iterator[Row]:
    """The rows of a .csv (with , or |) or .jsonl file beside its audio; a broken row says so in `problem`."""
    content = _text(path)
    records = _json_records(path, content) if path.suffix.lower() == ".jsonl" else _csv_records(path, content)
    number = 0
    for number, record in enumerate(records, 1):
        if number > MOST_ROWS:
            raise KitError(f"{path.name} has more than {MOST_ROWS:,} rows, which is the limit. Split it.")
        yield _row(path, number, record)
    if number == 0:
        raise KitError(f"{path.name} has no rows. Wanted one for each clip, with file_name and text.")


def plain(value: object) -> str:
    """A cell as text; nothing is an empty one."""
    return "" if value is None else str(value).strip()


def _text(path: Path) -> str:
    if (size := path.stat().st_size) > MOST_BYTES:
        raise KitError(f"{path.name} has {size / 1e9:.1f} GB; the limit is {MOST_BYTES / 1e9:.1f} GB. Split it.")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise KitError(f"{path.name} line {line} is not UTF-8 (byte 0x{content[error.start]:02X}). Save the table as "
                      "UTF-8; spreadsheets call it 'CSV UTF-8'.") from error


def _row(path: Path, number: int, record: dict | str) -> Row:
    """A record as a row; a record that is a sentence says what is wrong with it."""
    if isinstance(record, str):
        return Row(path.name, number, "", problem=record)
    cells = {name: plain(value) for name, value in record.items()}
    file = cells.get("file_name") or cells.get("audio", "")
    problem, audio = "", None
    if long := [name for name, value in cells.items() if len(value) > LONGEST_CELL]:
        problem = f"{long[0]} has {len(cells[long[0]])} characters; the limit is {LONGEST_CELL}. Shorten it."
    elif not file:
        problem = "no file name; wanted one in file_name. Fill it in, or remove the row."
    elif (audio := manifest.resolve_inside(path.parent, file)) is None:
        problem = f"{file!r} leads outside the folder of {path.name}; wanted a file inside it. Copy the file there."
    return Row(path.name, number, file, cells.get("text", ""), cells.get("source") or cells.get("speaker_id", ""),
               cells.get("session") or cells.get("recording", ""), AudioFile(audio) if audio else None, problem)


def _check_columns(table: str, columns: Sequence[str]) -> None:
    """Refuse columns nobody reads, and a table without those that everybody needs."""
    if len(columns) == 1 and (other := next((mark for mark in (";", "\t") if mark in columns[0]), None)):
        raise KitError(f"{table} is separated by {other!r}; wanted , or | between the columns. Save it as comma-separated.")
    if columns and not set(columns) & {*COLUMNS, *OTHER_NAMES, "filename"}:
        raise KitError(f"{table} begins with {', '.join(columns)[:60]!r}, which names no column. Put a first line above it: "
                      "file_name,text (and source, recording if there are any), in the order of the cells.")
    if strange := [name for name in columns if name not in COLUMNS]:
        named = [f"{name[:40]!r}{_nearest(name)}" for name in strange]
        raise KitError(f"{table} has unknown columns: {', '.join(named)}. Accepted: file_name or audio, text, source or "
                      "speaker_id, recording; the first line must name them. Rename or remove the others.")
    if twice := [name for name in columns if columns.count(name) > 1]:
        raise KitError(f"{table} has the column {twice[0]!r} twice. Remove one.")
    for one, other in (("file_name", "audio"), ("source", "speaker_id"), ("session", "recording")):
        if one in columns and other in columns:
            raise KitError(f"{table} has both {one!r} and {other!r}, which mean the same. Remove one.")
    if "text" not in columns or not {"file_name", "audio"} & set(columns):
        raise KitError(f"{table} has the columns {', '.join(columns) or '(none)'}; wanted at least file_name and text. "
                      "Add what is missing.")


def _nearest(name: str) -> str:
    near = [OTHER_NAMES[name.lower()]] if name.lower() in OTHER_NAMES else difflib.get_close_matches(name, COLUMNS, 1)
    return f" (did you mean {near[0]!r}?)" if near else ""


def _csv_records(path: Path, content: str) -> Iterator[dict | str]:
    lines = iter(_csv_lines(path, content))
    columns = [name.strip() for name in next(lines, [])]
    _check_columns(path.name, columns)
    for cells in lines:
        if len(cells) == len(columns):
            yield dict(zip(columns, cells))
        else:
            yield (f"{len(cells)} cells; the header names {len(columns)} columns. Put text that contains the delimiter "
                   "in double quotes.")


def _csv_lines(path: Path, content: str) -> list[list[str]]:
    """The cells of each line that is not blank."""
    delimiter = "|" if "|" in content.lstrip().partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    lines, last = [], 0
    try:
        for cells in reader:
            lines.append(cells)
            last = reader.line_num
        literal = delimiter == "|" and any("\n" in cell for cells in lines for cell in cells)
    except csv.Error as error:
        if delimiter == ",":
            raise KitError(f"{path.name} line {last + 1} is not well-formed CSV ({error}). Close every double quote, "
                          "and write one inside a quoted cell twice.") from error
        literal = True
    if literal:  # | tables are often written without quoting: a quotation mark is then part of the text
        lines = [line.rstrip("\r").split("|") for line in content.split("\n")]
    return [cells for cells in lines if any(cell.strip() for cell in cells)]


def _json_records(path: Path, content: str) -> Iterator[dict | str]:
    known: set[str] = set()
    for number, line in enumerate((line for line in content.split("\n") if line.strip()), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"not JSON ({error}). Wanted one object a line: {{\"file_name\": ..., \"text\": ...}}."
            continue
        if not isinstance(record, dict) or any(isinstance(value, list | dict) for value in record.values()):
            yield "not an object of plain values. Wanted {\"file_name\": ..., \"text\": ...}."
            continue
        if not set(record) <= known:
            _check_columns(f"{path.name} row {number}", list(record))
            known |= set(record)
        yield record
