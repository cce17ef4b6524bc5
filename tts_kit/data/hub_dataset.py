"""A dataset of the `datasets` library, from the hub or a folder, whose audio this kit reads itself."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tts_kit.data.table import MOST_ROWS, Row, plain
from tts_kit.errors import KitError, reason

WANTED = ("audio", "text")
OPTIONAL = ("source", "speaker_id", "session", "recording")


@dataclass(frozen=True)
class Cell:
    """The sound of one row: bytes in the dataset, or a file that it names."""
    dataset: object
    index: int
    roots: tuple[str, ...]
    """Folders in which its files may lie."""
    version: str

    def content(self) -> Path | bytes:
        found = self.dataset[self.index]["audio"] or {}
        if found.get("bytes"):
            return found["bytes"]
        named = found.get("path") or ""
        path = Path(os.path.realpath(os.path.join(self.roots[0], named)))
        if not named or "\0" in named or not any(path.is_relative_to(root) for root in self.roots):
            raise KitError(f"its audio is {named!r}; wanted bytes, or a file inside the dataset. Save the dataset again "
                          "with the audio embedded.")
        return path

    def stamp(self) -> str:
        return self.version


def rows(name: str, split: str) -> Iterator[Row]:
    """The rows of a hub dataset or a folder of one; columns that are not needed are named once and left alone."""
    import datasets
    from huggingface_hub.constants import HF_HUB_CACHE

    dataset = _load(datasets, name, split)
    _check_columns(name, dataset.column_names)
    if not 0 < len(dataset) <= MOST_ROWS:
        raise KitError(f"{name} has {len(dataset):,} rows; wanted 1 to {MOST_ROWS:,}. Choose another split.")
    try:
        sounds = dataset.select_columns("audio").cast_column("audio", datasets.Audio(decode=False))
    except (TypeError, ValueError, ImportError) as error:
        raise KitError(f"{name}: the column audio holds no encoded audio files ({reason(error)}). Save it as "
                      "datasets.Audio, with bytes or paths.") from error
    paths = sounds.flatten().select_columns("audio.path")
    cells = dataset.select_columns([column for column in ("text", *OPTIONAL) if column in dataset.column_names])
    homes = (name,) if os.path.isdir(name) else (datasets.config.HF_DATASETS_CACHE, HF_HUB_CACHE)
    roots, version = tuple(os.path.realpath(home) for home in homes), _version(dataset, name)
    for index, (cell, path) in enumerate(zip(cells, paths)):
        file = os.path.basename(path["audio.path"] or "") or f"clip_{index + 1:06d}"
        speaker = plain(cell.get("source")) or plain(cell.get("speaker_id"))
        yield Row(f"{name}:{split}", index + 1, file, plain(cell["text"]), speaker, plain(cell.get("session")) or plain(cell.get("recording")),
                  Cell(sounds, index, roots, version))


def _load(datasets, name: str, split: str):
    try:
        if any(os.path.isfile(os.path.join(name, mark)) for mark in ("state.json", "dataset_dict.json")):
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


def _check_columns(name: str, columns: list[str]) -> None:
    if missing := [column for column in WANTED if column not in columns]:
        raise KitError(f"{name} has the columns {', '.join(columns)}; {' and '.join(missing)} is missing. Wanted audio "
                      "and text, and optionally source or speaker_id, and recording. Rename them with "
                      "dataset.rename_column and save the dataset with save_to_disk.")
    if extra := [column for column in columns if column not in WANTED + OPTIONAL]:
        print(f"{name}: columns that are not needed were ignored: {', '.join(extra)}.")


def _version(dataset, name: str) -> str:
    """Names and sizes of the dataset's tables; the cache names a table after its content, a folder does not."""
    files = [Path(os.path.realpath(file["filename"])) for file in dataset.cache_files]
    own = [file.stat().st_mtime_ns for file in files if file.is_relative_to(os.path.realpath(name))]
    return repr(([(file.parts[-2:], file.stat().st_size) for file in files], own))
