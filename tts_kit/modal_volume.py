"""A run's folder on a volume in the cloud: what lies here is put there, and what was made there is brought here."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import modal
from modal.volume import FileEntryType
from tqdm.auto import tqdm

from tts_kit.errors import KitError
from tts_kit.io import atomic_file, atomic_folder, read_json, write_json
from tts_kit.run import CONSENT, Run

NOT_DOWNLOADED = ("source", "downloads", "cuts")
"""Parts of a run that are not brought here; nor are checkpoints."""
BROUGHT = "cloud.json"
"""In a run's folder here: every file that came from a volume, by its SHA-256, so that it may be brought again."""


def upload(volume: modal.Volume, source: str, run: Run) -> str:
    """Put a file or folder of this machine on the volume, once; what a container is to read, which of other sources is the
    source itself."""
    path, place = Path(source).expanduser().resolve(), f"{run.name}/source"
    if not path.exists():
        return source
    if there := _listed(volume, place):
        print(f"{there[0]} is on the volume already and is used again; another source needs another --run.")
        return f"runs/{there[0]}"
    with volume.batch_upload() as batch:
        (batch.put_directory if path.is_dir() else batch.put_file)(path, f"/{place}/{path.name}")
    return f"runs/{place}/{path.name}"


def download(volume: modal.Volume, run: Run) -> int:
    """Copy a run's results here, each folder as a whole or not at all; returns how many files."""
    files = _files(volume, run)
    check_local_changes(run, {file.parts[1] for file in files})
    parts = defaultdict(list)
    for file in files:
        parts[file.parts[1]].append(file)
    with tqdm(total=len(files), desc="bringing", unit="file") as bar:
        for part, inside in sorted(parts.items()):
            digests = _bring_part(volume, run, part, inside, bar)
            digests |= {name: digest for name, digest in _brought(run).items() if PurePosixPath(name).parts[0] != part}
            write_json(run.folder / BROUGHT, dict(sorted(digests.items())))
    return len(files)


def check_local_changes(run: Run, coming: Iterable[str] = ()) -> None:
    """What was made or changed on this machine is not replaced; `coming` stand directly in the run's folder."""
    brought = _brought(run)
    folders = {PurePosixPath(name).parts[0] for name in brought}.union(coming)
    for path in sorted(run.folder.rglob("*")):
        inside = path.relative_to(run.folder)
        # the adapter's copy of a consent that was recorded here; the run's own stays
        memorized = inside == Path(run.adapter.name, CONSENT)
        if path.is_dir() or inside.name == BROUGHT or memorized or any(part.startswith(".") for part in inside.parts):
            continue
        comes = not brought or inside.parts[0] in folders
        if comes and brought.get(inside.as_posix()) != hashlib.sha256(path.read_bytes()).hexdigest():
            raise KitError(f"{path} was made or changed on this machine, and what comes from the cloud would replace it. "
                          f"Choose another --run, or move {run.folder} away.")


def _bring_part(volume: modal.Volume, run: Run, part: str, files: list[PurePosixPath], bar: tqdm) -> dict[str, str]:
    """One folder of a run, or a file beside them, as a whole; the digests of its files."""
    digests = {}
    if files[0].parts[1:] == (part,):
        with atomic_file(run.folder / part) as copy:
            return {part: _read(volume, files[0], copy, bar)}
    with atomic_folder(run.folder / part) as beside:
        for file in files:
            to = beside.joinpath(*file.parts[2:])
            to.parent.mkdir(parents=True, exist_ok=True)
            with open(to, "wb") as copy:
                digests[PurePosixPath(*file.parts[1:]).as_posix()] = _read(volume, file, copy, bar)
    return digests


def _brought(run: Run) -> dict[str, str]:
    """What came from a volume: names of files, and their digests then."""
    path = run.folder / BROUGHT
    return read_json(path, f"Move {run.folder} away, and bring it again.") if path.exists() else {}


def _files(volume: modal.Volume, run: Run) -> list[PurePosixPath]:
    """The files to bring, as NAME/FOLDER/..."""
    found = [PurePosixPath(entry.path.lstrip("/")) for entry in volume.iterdir(f"/{run.name}", recursive=True)
             if entry.type == FileEntryType.FILE]
    return [file for file in found if file.parts[1] not in NOT_DOWNLOADED
            and not any(part.startswith((".", "checkpoint-")) for part in file.parts[1:])]


def _listed(volume: modal.Volume, folder: str) -> list[str]:
    """What stands in a folder of the volume, nothing where there is none yet."""
    try:
        return [each.path.lstrip("/") for each in volume.iterdir(f"/{folder}", recursive=False)]
    except (FileNotFoundError, modal.exception.NotFoundError):
        return []


def _read(volume: modal.Volume, file: PurePosixPath, into: BinaryIO, bar: tqdm) -> str:
    """Copy a file; returns its digest."""
    digest = hashlib.sha256()
    for chunk in volume.read_file(file.as_posix()):
        into.write(chunk)
        digest.update(chunk)
    bar.update()
    return digest.hexdigest()
