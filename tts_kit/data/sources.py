"""Finding out what a SOURCE is: a folder or table on this machine, or a dataset of the hub."""

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path

from tts_kit.data import hub_dataset, table
from tts_kit.data.table import Row
from tts_kit.errors import KitError

TABLES = ("metadata.csv", "metadata.jsonl")
DATASET_FILES = ("*.parquet", "*.arrow")


def identity(source: str) -> str:
    """One name for one source: its full path, or OWNER/NAME:SPLIT."""
    path, split = _parts(source)
    return os.path.realpath(path) + f":{split}" * (_table(path) is None) if path.exists() else f"{path}:{split}"


def rows(source: str) -> Iterator[Row]:
    """Rows of a folder with metadata.csv, of a .csv or .jsonl file, or of a dataset: a folder or OWNER/NAME[:SPLIT]."""
    path, split = _parts(source)
    if found := _table(path):
        return table.rows(found)
    if path.is_dir() and not any(next(path.rglob(pattern), None) for pattern in DATASET_FILES):
        raise KitError(f"{path} has no metadata.csv. Wanted one beside the audio, with a first line file_name,text and "
                      "a line for each clip; or a dataset saved with save_to_disk or as parquet.")
    if path.is_file():
        raise KitError(f"{path} is neither .csv nor .jsonl. Give the table, or the folder that holds metadata.csv.")
    if not path.exists() and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path)):
        raise KitError(f"{source}: no such file or folder, and not the name of a hub dataset (OWNER/NAME or "
                      "OWNER/NAME:SPLIT). Check the spelling.")
    return hub_dataset.rows(str(path), split)


def held_out(source: str, learned: str) -> Iterator[Row]:
    """The rows of a second source, if one is given, marked to judge by; `learned` is the source to learn from."""
    if not source:
        return
    if _place(source) == _place(learned):
        raise KitError(f"{source} is the source itself; wanted other clips to judge by than those to learn from. Name a "
                      "source with these alone, or leave --eval-source out: then a share of the clips is held out.")
    for row in rows(source):
        yield dataclasses.replace(row, held_out=True, table=f"held-out {row.table}")


def _place(source: str) -> str:
    found = _table(_parts(source)[0])
    return os.path.realpath(found) if found else identity(source)


def _parts(source: str) -> tuple[Path, str]:
    path, split = Path(source).expanduser(), "train"
    if not path.exists() and ":" in source:
        name, _, split = source.rpartition(":")
        path = Path(name).expanduser()
    return path, split


def _table(path: Path) -> Path | None:
    if path.is_file() and path.suffix.lower() in (".csv", ".jsonl"):
        return path
    return next((path / name for name in TABLES if (path / name).is_file()), None)
