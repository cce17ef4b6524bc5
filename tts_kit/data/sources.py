"""Rows of a SOURCE of clips with transcripts: a table next to audio files, audio files with a text each, or a dataset.

Besides tables with a header, those without one are read that other tools write: LJSpeech's and Piper's metadata.csv,
GPT-SoVITS's .list, VITS's file lists."""

import contextlib
import csv
import dataclasses
import io
import json
import os
import re
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath

from tts_kit.data import manifest
from tts_kit.errors import KitError, reason

TABLES = ("metadata.csv", "metadata.jsonl", "metadata.tsv", "metadata.txt")
TABLE_SUFFIXES = (".csv", ".jsonl", ".tsv", ".txt", ".list")
TRANSCRIPT_SUFFIXES = (".normalized.txt", ".txt", ".lab")  # of a text beside its audio file
AUDIO_SUFFIXES = (".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".mp4", ".m4v", ".mov",
                  ".mkv", ".webm", ".avi")
MAX_TEXT_BYTES = 100_000
DATASET_FILES = ("*.parquet", "*.arrow")
COLUMNS = {"file": ("audio", "file_name", "filename", "file", "path", "audio_file", "audio_filepath", "wav_file"),
           "text": ("text", "sentence", "transcript", "transcription"),
           "speaker": ("source", "speaker_id", "speaker", "speaker_name"), "session": ("session", "recording")}
"""Field of a Row -> column names that stand for it; the first that a table has is read."""


@dataclass(frozen=True)
class Row:
    """One row of an input table: a clip and its text, not checked yet."""
    table: str  # the table's name in error messages
    number: int  # from 1; the header does not count
    file: str  # the audio's name as given
    text: str = ""
    speaker: str = ""
    session: str = ""
    audio: Callable[[], Path | bytes] | None = dataclasses.field(default=None, repr=False)
    """Returns what `tts_kit.audio.read` takes."""
    version: str = ""  # changes when the audio changes
    problem: str = ""  # why this row cannot be used, if that was found while reading the table
    held_out: bool = False  # from a source of held-out clips


def rows(source: str) -> Iterator[Row]:
    """Return the rows of a table, of a folder that holds one or a text beside each audio file, or of a dataset: its folder
    or OWNER/NAME[:SPLIT]."""
    path, split = _split_source(source)
    if found := table(path):
        return _table_rows(found)
    if path.is_dir() and not any(next(path.rglob(pattern), None) for pattern in DATASET_FILES):
        return _folder_rows(path)
    if path.is_file():
        raise KitError(f"{path} is no table ({', '.join(TABLE_SUFFIXES)}). Give the table, or the folder that holds "
                       "metadata.csv.")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise KitError(f"{source}: no such file or folder, and no hub dataset (OWNER/NAME:SPLIT). Check the spelling.")
    return _dataset_rows(str(path), split)


def held_out_rows(eval_source: str, source: str) -> Iterator[Row]:
    """Yield the rows of a source of held-out clips, if one is given."""
    if not eval_source:
        return
    one, other = (table(_split_source(name)[0]) for name in (eval_source, source))
    if identity(eval_source) == identity(source) or (one and other and one.samefile(other)):
        raise KitError(f"{eval_source} is the source itself; wanted other clips to evaluate on than those to train on. Name "
                       "a source with these alone, or leave --eval-source out: then a share of the clips is held out.")
    for row in rows(eval_source):
        yield dataclasses.replace(row, held_out=True, table=f"held-out {row.table}")


def identity(source: str) -> str:
    """Return one name for one source: its full path, or OWNER/NAME:SPLIT."""
    path, split = _split_source(source)
    return os.path.realpath(path) + f":{split}" * (table(path) is None) if path.exists() else f"{path}:{split}"


def _split_source(source: str) -> tuple[Path, str]:
    """Return path or hub name, and split."""
    path, split = Path(source).expanduser(), "train"
    if not path.exists() and ":" in source:
        name, _, split = source.rpartition(":")
        path = Path(name).expanduser()
    return path, split


def table(path: Path) -> Path | None:
    """Return the table that a path is or that its folder holds; None if there is none."""
    if path.is_file():
        return path if path.suffix.lower() in TABLE_SUFFIXES else None
    lists = sorted(path.glob("*.list"))
    return next((path / name for name in TABLES if (path / name).is_file()), lists[0] if len(lists) == 1 else None)


def transcript_file(path: Path) -> Path | None:
    """Return the file beside an audio file that holds its text."""
    return next((file for suffix in TRANSCRIPT_SUFFIXES if (file := path.with_suffix(suffix)).is_file()), None)


def _folder_rows(folder: Path) -> Iterator[Row]:
    """Yield every audio file of a folder, with the text beside it."""
    files = sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES and file.is_file())
    if not any(map(transcript_file, files)):
        raise KitError(f"{folder} has no metadata.csv, and no audio file with a .txt or .lab of its name. Wanted one of the "
                       "two; metadata.csv begins with file_name,text.")
    print(f"{folder} has no metadata.csv: the text of each audio file is read from the .txt or .lab of its name.")
    for number, path in enumerate(files, 1):
        name, transcript, text, problem = path.relative_to(folder).as_posix(), transcript_file(path), "", ""
        if transcript is None:
            problem = f"{name} has no .txt or .lab of its name. Write one, or move the clip away."
        elif not all(manifest.resolve_inside(folder, str(file.relative_to(folder))) for file in (path, transcript)):
            problem = f"{name} or its text is a link out of {folder.name}. Copy the file there."
        else:
            try:
                text = _decode(transcript.name, transcript.read_bytes()[:MAX_TEXT_BYTES])
            except KitError as error:
                problem = str(error)
        yield Row(folder.name, number, name, " ".join(text.split()), audio=lambda path=path: path, version=_version(path),
                  problem=problem)


def _version(path: Path) -> str:
    with contextlib.suppress(OSError):
        return f"{path.stat().st_size} {path.stat().st_mtime_ns}"
    return "missing"


def _decode(name: str, content: bytes) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[:error.start].count(b"\n") + 1
        raise KitError(f"{name} line {line} is not UTF-8 (byte 0x{content[error.start]:02X}). Save it as UTF-8, "
                       "which spreadsheets call 'CSV UTF-8'.") from error


def _find_audio(folder: Path, name: str, by_name: bool) -> Path | None:
    """Return the audio that a cell names, also without LJSpeech's wavs/ and .wav, and by its last part alone, if asked for;
    else the path as it is given, or None if that leads outside."""
    names = [name, f"wavs/{name}"]
    if by_name:  # .list files hold paths of the machine that wrote them
        last = PureWindowsPath(name).name
        names += [last, f"wavs/{last}"]
    paths = (manifest.resolve_inside(folder, other + suffix) for other in names for suffix in ("", *AUDIO_SUFFIXES[:5]))
    return next((path for path in paths if path and os.path.isfile(path)), manifest.resolve_inside(folder, name))


def _table_rows(path: Path) -> Iterator[Row]:
    text = _decode(path.name, path.read_bytes())
    names, records, has_header = ((*_json_records(text), True) if path.suffix.lower() == ".jsonl" else
                                  _csv_records(path, text))
    columns = _match_columns(path.name, names)
    if not records:
        raise KitError(f"{path.name} has no rows. Wanted one for each clip.")
    for number, record in enumerate(records, 1):
        if isinstance(record, str):
            yield Row(path.name, number, "", problem=record)
            continue
        cells = {field: _text(record.get(name)) for field, name in columns.items()}
        audio, problem = _find_audio(path.parent, cells["file"], not has_header), ""
        if not cells["file"]:
            problem = "no file name; wanted one in file_name. Fill it in, or remove the row."
        elif audio is None:
            problem = (f"{cells['file']!r} leads outside the folder of {path.name}; wanted a file inside it. Copy the file "
                       "there.")
        elif not has_header:
            cells["file"] = Path(os.path.relpath(audio, path.parent)).as_posix()
        version = _version(audio) if audio else "missing"
        yield Row(path.name, number, **cells, audio=lambda audio=audio: audio, version=version, problem=problem)


def _text(value: object) -> str:
    return "" if value is None else str(value).strip()


def _match_columns(table: str, names: Sequence[str]) -> dict[str, str]:
    """Return the column of each field of a Row; columns that nothing reads are named."""
    columns = {field: next(name for name in accepted if name in names) for field, accepted in COLUMNS.items()
               if set(accepted) & set(names)}
    if missing := [name for field, name in (("file", "file_name"), ("text", "text")) if field not in columns]:
        raise KitError(f"{table} has the columns {', '.join(names)[:200] or '(none)'}; {' and '.join(missing)} is missing. "
                       "The first line of a table must name its columns, file_name,text and, if there are any, "
                       "source,session (dataset.rename_column renames those of a dataset), or begin with the name of an "
                       "audio file that is there, as LJSpeech's and GPT-SoVITS's tables do.")
    if len(set(names)) < len(names):
        raise KitError(f"{table} has a column twice: {', '.join(names)[:200]}. Remove one.")
    if ignored := [name for name in names if name not in columns.values()]:
        print(f"{table}: columns that are not needed are ignored: {', '.join(ignored)[:200]}.")
    return columns


def _csv_records(path: Path, text: str) -> tuple[list[str], list[dict | str], bool]:
    """Return the columns, each row that is not blank as a dict, or the reason why it cannot be read, and whether the first
    line names the columns."""
    first_line = text.lstrip().partition("\n")[0]
    delimiter = next((mark for mark in "|\t" if mark in first_line), None) or min(
        ";,", key=lambda mark: first_line.find(mark) % (len(first_line) + 1))
    is_quoted = delimiter in ";,"  # the others are often written without quoting: a quotation mark is then part of the text
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True,
                        quoting=csv.QUOTE_MINIMAL if is_quoted else csv.QUOTE_NONE)
    lines, last_line = [], 0
    try:
        for cells in reader:
            lines.append(cells if is_quoted else list(map(_unquote, cells)))
            last_line = reader.line_num
    except csv.Error as error:
        raise KitError(f"{path.name} line {last_line + 1} is not well-formed CSV ({error}). Close every double quote, "
                       "and write one inside a quoted cell twice.") from error
    lines = [cells for cells in lines if any(cell.strip() for cell in cells)] or [[]]
    names, rows = [name.strip() for name in lines[0]], lines[1:]
    has_header = bool({name for accepted in COLUMNS.values() for name in accepted} & set(names))
    audio = None if has_header or len(names) < 2 else _find_audio(path.parent, names[0], by_name=True)
    if audio and os.path.isfile(audio):
        names, rows = _headless_columns(path.name, lines), lines
    else:
        has_header = True
    expected = f"the {'header names' if has_header else 'table has'} {len(names)} columns"
    return names, [dict(zip(names, cells)) if len(cells) == len(names) else
                   f"{len(cells)} cells; {expected}. Put text that contains the delimiter in double quotes."
                   for cells in rows], has_header


def _headless_columns(table: str, rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the columns of a table without a header, as the tools that write such tables order them; print them."""
    width = statistics.mode(map(len, rows))
    columns = list(zip(*(row for row in rows if len(row) == width)))
    speakers = [not any(re.search(r"\s", cell.strip()) for cell in column) and len(set(column)) <= max(1, len(column) // 2)
                for column in columns]
    if width == 2:
        names = ["file_name", "text"]
    elif width == 3:  # VITS and Piper name the speaker; LJSpeech ends with the text in which numbers are words
        names = ["file_name", "speaker", "text"] if speakers[1] else ["file_name", "text", "speaker"] if speakers[2] else [
            "file_name", "text as written", "text"]
    elif width == 4 and speakers[1] and speakers[2]:
        names = ["file_name", "speaker", "language", "text"]
    else:
        raise KitError(f"{table} has no header, and {width} columns that no known tool writes. Begin it with a line that "
                       "names its columns: file_name,text and, if there are any, source,session.")
    print(f"{table} has no header; its columns are taken for {', '.join(names)}.")
    return names


def _unquote(cell: str) -> str:
    """Return a cell without the quotes around it, if those inside are doubled."""
    match = re.fullmatch(r'"((?:[^"]|"")*)"', cell)
    return match[1].replace('""', '"') if match else cell


def _json_records(text: str) -> tuple[list[str], list[dict | str]]:
    """Return the keys of all rows, and each row as a dict, or the reason why it cannot be read."""
    records: list[dict | str] = []
    for line in filter(str.strip, text.split("\n")):
        try:
            record = json.loads(line)
            is_plain = isinstance(record, dict) and not any(isinstance(value, list | dict) for value in record.values())
            records.append(record if is_plain else 'not an object of plain values. Wanted {"file_name": ..., "text": ...}.')
        except (ValueError, RecursionError) as error:
            records.append(f'not JSON ({error}). Wanted one object a line: {{"file_name": ..., "text": ...}}.')
    return list(dict.fromkeys(key for record in records if isinstance(record, dict) for key in record)), records


# Datasets, whose audio `datasets` does not decode: tts_kit.audio reads it


def _dataset_rows(name: str, split: str) -> Iterator[Row]:
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    dataset = _load_dataset(datasets, name, split)
    columns = _match_columns(name, dataset.column_names)
    if not len(dataset):
        raise KitError(f"{name} has no rows. Choose another split.")
    audio_column = columns.pop("file")
    try:
        encoded = dataset.select_columns(audio_column).cast_column(audio_column, datasets.Audio(decode=False))
    except (TypeError, ValueError, ImportError) as error:
        raise KitError(f"{name}: the column {audio_column} holds no encoded audio files ({reason(error)}). Save it as "
                       "datasets.Audio, with bytes or paths.") from error
    is_folder = os.path.isdir(name)
    folders = (name,) if is_folder else (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    folders = [os.path.realpath(folder) for folder in folders]
    # the cache names a table after its content and may be made again, a folder does neither
    tables = [Path(os.path.realpath(file["filename"])) for file in dataset.cache_files]
    version = repr([(path.parts[-2:], path.stat().st_size, path.is_relative_to(folders[0]) and is_folder
                     and path.stat().st_mtime_ns) for path in tables])
    paths = encoded.flatten().select_columns(f"{audio_column}.path")
    for index, (cells, path) in enumerate(zip(dataset.select_columns(list(columns.values())), paths)):
        file = os.path.basename(path[f"{audio_column}.path"] or "") or f"clip_{index + 1:06d}"
        yield Row(f"{name}:{split}", index + 1, file, **{field: _text(cells[column]) for field, column in columns.items()},
                  audio=lambda index=index: _encoded_audio(encoded[index][audio_column] or {}, folders), version=version)


def _load_dataset(datasets, name: str, split: str):
    try:
        if any(os.path.isfile(os.path.join(name, file)) for file in ("state.json", "dataset_dict.json")):
            saved = datasets.load_from_disk(name)
            return (saved if isinstance(saved, datasets.DatasetDict) else {"train": saved})[split]
        return datasets.load_dataset(name, split=split)
    except (OSError, ValueError, KeyError, RuntimeError, datasets.exceptions.DatasetsError) as error:
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
        raise KitError(f"its audio is {name!r}; wanted bytes, or a file inside the dataset. Embed the audio in it.")
    return path
