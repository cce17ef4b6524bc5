"""Rows of a SOURCE of clips with transcripts: a table next to audio files, or a dataset from the hub or a folder."""

import csv
import dataclasses
import difflib
import io
import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tts_kit.data import manifest
from tts_kit.errors import KitError, reason

TABLES = ("metadata.csv", "metadata.jsonl")
DATASET_FILES = ("*.parquet", "*.arrow")
COLUMNS = ("file_name", "audio", "text", "source", "speaker_id", "session", "recording")
SYNONYMS = (("file_name", "audio"), ("source", "speaker_id"), ("session", "recording"))
SUGGESTIONS = {"sentence": "text", "transcript": "text", "transcription": "text", "speaker": "source", "path": "file_name",
               "file": "file_name"}
MAX_ROWS = 1_000_000
MAX_TABLE_BYTES = 1 << 30
MAX_CELL_CHARACTERS = 100_000


@dataclass(frozen=True)
class Row:
    """One row of an input table: a clip and its text, not checked yet."""
    table: str
    """The table's name in error messages."""
    number: int
    """From 1; the header does not count."""
    file: str
    """The audio's name as given."""
    text: str = ""
    speaker: str = ""
    session: str = ""
    audio: Callable[[], Path | bytes] | None = None
    """Returns what `tts_kit.audio.read` takes."""
    version: str = ""
    """Changes when the audio changes."""
    problem: str = ""
    """Why this row cannot be used, if that was found while reading the table."""
    held_out: bool = False
    """From a source of held-out clips."""


def rows(source: str) -> Iterator[Row]:
    """Yield the rows of a folder with metadata.csv, a .csv or .jsonl file, a dataset's folder, or OWNER/NAME[:SPLIT]."""
    path, split = _split_source(source)
    if table := _table(path):
        yield from _table_rows(table)
        return
    if path.is_dir() and not any(next(path.rglob(pattern), None) for pattern in DATASET_FILES):
        raise KitError(f"{path} has no metadata.csv. Wanted one next to the audio, with a first line file_name,text and "
                       "a line for each clip; or a dataset saved with save_to_disk or as parquet.")
    if path.is_file():
        raise KitError(f"{path} is neither .csv nor .jsonl. Give the table, or the folder that holds metadata.csv.")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise KitError(f"{source}: no such file or folder, and not the name of a hub dataset (OWNER/NAME or "
                       "OWNER/NAME:SPLIT). Check the spelling.")
    yield from _dataset_rows(str(path), split)


def held_out_rows(eval_source: str, source: str) -> Iterator[Row]:
    """Yield the rows of a source of held-out clips, if one is given."""
    if not eval_source:
        return
    one, other = (_table(_split_source(name)[0]) for name in (eval_source, source))
    if identity(eval_source) == identity(source) or (one and other and one.samefile(other)):
        raise KitError(f"{eval_source} is the source itself; wanted other clips to evaluate on than those to train on. Name "
                       "a source with these alone, or leave --eval-source out: then a share of the clips is held out.")
    for row in rows(eval_source):
        yield dataclasses.replace(row, held_out=True, table=f"held-out {row.table}")


def identity(source: str) -> str:
    """Return one name for one source: its full path, or OWNER/NAME:SPLIT."""
    path, split = _split_source(source)
    return os.path.realpath(path) + f":{split}" * (_table(path) is None) if path.exists() else f"{path}:{split}"


def _split_source(source: str) -> tuple[Path, str]:
    """Return path or hub name, and split."""
    path, split = Path(source).expanduser(), "train"
    if not path.exists() and ":" in source:
        name, _, split = source.rpartition(":")
        path = Path(name).expanduser()
    return path, split


def _table(path: Path) -> Path | None:
    if path.is_file() and path.suffix.lower() in (".csv", ".jsonl"):
        return path
    return next((path / name for name in TABLES if (path / name).is_file()), None)


# Tables


def _table_rows(path: Path) -> Iterator[Row]:
    content = _table_text(path)
    records = _json_records(path, content) if path.suffix.lower() == ".jsonl" else _csv_records(path, content)
    number = 0
    for number, record in enumerate(records, 1):
        if number > MAX_ROWS:
            raise KitError(f"{path.name} has more than {MAX_ROWS:,} rows, which is the limit. Split it.")
        yield _table_row(path, number, record)
    if number == 0:
        raise KitError(f"{path.name} has no rows. Wanted one for each clip, with file_name and text.")


def _table_text(path: Path) -> str:
    if (size := path.stat().st_size) > MAX_TABLE_BYTES:
        raise KitError(f"{path.name} has {size / 1e9:.1f} GB; the limit is {MAX_TABLE_BYTES / 1e9:.1f} GB. Split it.")
    content = path.read_bytes()
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise KitError(f"{path.name} line {line} is not UTF-8 (byte 0x{content[error.start]:02X}). Save the table as "
                       "UTF-8; spreadsheets call it 'CSV UTF-8'.") from error


def _table_row(path: Path, number: int, record: dict | str) -> Row:
    """Return a record as a row; a record that is a string is the reason why there is none."""
    if isinstance(record, str):
        return Row(path.name, number, "", problem=record)
    cells = {name: _text(value) for name, value in record.items()}
    file = cells.get("file_name") or cells.get("audio", "")
    problem, version, audio = "", "", None
    if too_long := [name for name, value in cells.items() if len(value) > MAX_CELL_CHARACTERS]:
        problem = (f"{too_long[0]} has {len(cells[too_long[0]])} characters; the limit is {MAX_CELL_CHARACTERS}. "
                   "Shorten it.")
    elif not file:
        problem = "no file name; wanted one in file_name. Fill it in, or remove the row."
    elif (audio := manifest.resolve_inside(path.parent, file)) is None:
        problem = f"{file!r} leads outside the folder of {path.name}; wanted a file inside it. Copy the file there."
    if audio:
        try:
            version = f"{audio.stat().st_size} {audio.stat().st_mtime_ns}"
        except OSError:
            version = "missing"
    return Row(path.name, number, file, cells.get("text", ""), cells.get("source") or cells.get("speaker_id", ""),
               cells.get("session") or cells.get("recording", ""), (lambda: audio) if audio else None, version, problem)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _check_columns(table: str, columns: Sequence[str]) -> None:
    """Refuse columns that nothing reads, and a table without those that are needed."""
    if len(columns) == 1 and (separator := next((mark for mark in (";", "\t") if mark in columns[0]), None)):
        raise KitError(f"{table} is separated by {separator!r}; wanted , or | between the columns. Save it as "
                       "comma-separated.")
    if columns and not set(columns) & {*COLUMNS, *SUGGESTIONS, "filename"}:
        raise KitError(f"{table} begins with {', '.join(columns)[:60]!r}, which names no column. Put a first line above it: "
                       "file_name,text (and source, session if there are any), in the order of the cells.")
    if unknown := [name for name in columns if name not in COLUMNS]:
        raise KitError(f"{table} has unknown columns: {', '.join(map(_suggest, unknown))}. Accepted: file_name or audio, "
                       "text, source or speaker_id, session or recording; the first line must name them. Rename or remove "
                       "the others.")
    if repeated := [name for name in columns if columns.count(name) > 1]:
        raise KitError(f"{table} has the column {repeated[0]!r} twice. Remove one.")
    for one, other in SYNONYMS:
        if one in columns and other in columns:
            raise KitError(f"{table} has both {one!r} and {other!r}, which mean the same. Remove one.")
    if "text" not in columns or not {"file_name", "audio"} & set(columns):
        raise KitError(f"{table} has the columns {', '.join(columns) or '(none)'}; wanted at least file_name and text. "
                       "Add what is missing.")


def _suggest(name: str) -> str:
    near = [SUGGESTIONS[name.lower()]] if name.lower() in SUGGESTIONS else difflib.get_close_matches(name, COLUMNS, 1)
    return f"{name[:40]!r}" + (f" (did you mean {near[0]!r}?)" if near else "")


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
    """Return the cells of each line that is not blank."""
    delimiter = "|" if "|" in content.lstrip().partition("\n")[0] else ","
    reader = csv.reader(io.StringIO(content, newline=""), delimiter=delimiter, strict=True)
    lines, last_line = [], 0
    try:
        for cells in reader:
            lines.append(cells)
            last_line = reader.line_num
        unquoted = delimiter == "|" and any("\n" in cell for cells in lines for cell in cells)
    except csv.Error as error:
        if delimiter == ",":
            raise KitError(f"{path.name} line {last_line + 1} is not well-formed CSV ({error}). Close every double quote, "
                           "and write one inside a quoted cell twice.") from error
        unquoted = True
    if unquoted:  # | tables are often written without quoting: a quotation mark is then part of the text
        lines = [line.rstrip("\r").split("|") for line in content.split("\n")]
    return [cells for cells in lines if any(cell.strip() for cell in cells)]


def _json_records(path: Path, content: str) -> Iterator[dict | str]:
    checked: set[str] = set()
    for number, line in enumerate((line for line in content.split("\n") if line.strip()), 1):
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield f"not JSON ({error}). Wanted one object a line: {{\"file_name\": ..., \"text\": ...}}."
            continue
        if not isinstance(record, dict) or any(isinstance(value, list | dict) for value in record.values()):
            yield "not an object of plain values. Wanted {\"file_name\": ..., \"text\": ...}."
            continue
        if not set(record) <= checked:
            _check_columns(f"{path.name} row {number}", list(record))
            checked |= set(record)
        yield record


# Datasets, whose audio `datasets` does not decode: tts_kit.audio reads it


def _dataset_rows(name: str, split: str) -> Iterator[Row]:
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    dataset = _load_dataset(datasets, name, split)
    columns = dataset.column_names
    if missing := [column for column in ("audio", "text") if column not in columns]:
        raise KitError(f"{name} has the columns {', '.join(columns)}; {' and '.join(missing)} is missing. Wanted audio "
                       "and text, and optionally source or speaker_id, and session. Rename them with "
                       "dataset.rename_column and save the dataset with save_to_disk.")
    if ignored := [column for column in columns if column not in COLUMNS]:
        print(f"{name}: columns that are not needed were ignored: {', '.join(ignored)}.")
    if not 0 < len(dataset) <= MAX_ROWS:
        raise KitError(f"{name} has {len(dataset):,} rows; wanted 1 to {MAX_ROWS:,}. Choose another split.")
    try:
        encoded = dataset.select_columns("audio").cast_column("audio", datasets.Audio(decode=False))
    except (TypeError, ValueError, ImportError) as error:
        raise KitError(f"{name}: the column audio holds no encoded audio files ({reason(error)}). Save it as "
                       "datasets.Audio, with bytes or paths.") from error
    paths = encoded.flatten().select_columns("audio.path")
    cells = dataset.select_columns([column for column in COLUMNS if column in columns and column != "audio"])
    folders = (name,) if os.path.isdir(name) else (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    folders, version = [os.path.realpath(folder) for folder in folders], _dataset_version(dataset, name)
    for index, (cell, path) in enumerate(zip(cells, paths)):
        file = os.path.basename(path["audio.path"] or "") or f"clip_{index + 1:06d}"
        yield Row(f"{name}:{split}", index + 1, file, _text(cell["text"]),
                  _text(cell.get("source")) or _text(cell.get("speaker_id")),
                  _text(cell.get("session")) or _text(cell.get("recording")),
                  lambda index=index: _encoded_audio(encoded[index]["audio"] or {}, folders), version)


def _load_dataset(datasets, name: str, split: str):
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            splits = saved if isinstance(saved, datasets.DatasetDict) else {"train": saved}
            if split not in splits:
                raise ValueError(f"its splits are {', '.join(splits)}")
            return splits[split]
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise KitError(f"{name} (split {split}) could not be opened as a dataset: {reason(error)}. Check the "
                       "spelling of OWNER/NAME:SPLIT, the network and `hf auth login`, or give a folder with "
                       "metadata.csv.") from error


def _encoded_audio(cell: dict, folders: Sequence[str]) -> Path | bytes:
    """Return the bytes in a dataset's audio cell, or the file that it names inside one of `folders`."""
    if cell.get("bytes"):
        return cell["bytes"]
    name = cell.get("path") or ""
    path = Path(os.path.realpath(os.path.join(folders[0], name)))
    if not name or "\0" in name or not any(path.is_relative_to(folder) for folder in folders):
        raise KitError(f"its audio is {name!r}; wanted bytes, or a file inside the dataset. Save the dataset again "
                       "with the audio embedded.")
    return path


def _dataset_version(dataset, name: str) -> str:
    """Return names and sizes of the dataset's tables; the cache names a table after its content, a folder does not."""
    files = [Path(os.path.realpath(file["filename"])) for file in dataset.cache_files]
    modified = [file.stat().st_mtime_ns for file in files if file.is_relative_to(os.path.realpath(name))]
    return repr(([(file.parts[-2:], file.stat().st_size) for file in files], modified))
