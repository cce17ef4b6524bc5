"""A run's folder on a volume in the cloud: what lies here is put there, and what was made there is brought here."""

from collections import defaultdict
from pathlib import Path, PurePosixPath

import modal
from modal.volume import FileEntryType
from tqdm.auto import tqdm

from tts_kit.problem import Problem
from tts_kit.run import Run, write_json, writing_file, writing_folder

STAYS = ("source", "downloads", "cuts")
"""Parts of a run that are not brought here; nor are checkpoints."""
BROUGHT = "cloud.json"
"""In a run's folder here: it came from a volume, so that it may be brought again."""


def put(volume: modal.Volume, source: str, run: Run) -> str:
    """Put a file or folder of this machine on the volume, once; what a container is to read, which of other sources is the
    source itself."""
    path, place = Path(source).expanduser(), f"{run.name}/source"
    if not path.exists():
        return source
    there = (run.folder / "source" / path.name).as_posix()
    if any(PurePosixPath(each.path).name == "source" for each in _listed(volume, run)):
        print(f"{place} is on the volume already and is used again; another source needs another --run.")
        return there
    with volume.batch_upload() as batch:
        (batch.put_directory if path.is_dir() else batch.put_file)(path, f"/{place}/{path.name}")
    return there


def bring(volume: modal.Volume, run: Run) -> int:
    """Copy a run's results here, each folder as a whole or not at all; returns how many files."""
    refuse_own(run)
    parts = defaultdict(list)
    for file in _files(volume, run):
        parts[file.parts[1] if len(file.parts) > 2 else ""].append(file)
    write_json(run.folder / BROUGHT, {"brought": run.name})
    with tqdm(total=sum(map(len, parts.values())), desc="bringing", unit="file") as bar:
        for part, files in sorted(parts.items()):
            if not part:
                for file in files:
                    with writing_file(run.folder / file.name) as copy:
                        _read(volume, file, copy, bar)
                continue
            with writing_folder(run.folder / part) as beside:
                for file in files:
                    to = beside.joinpath(*file.parts[2:])
                    to.parent.mkdir(parents=True, exist_ok=True)
                    with open(to, "wb") as copy:
                        _read(volume, file, copy, bar)
    return bar.n


def refuse_own(run: Run) -> None:
    """A run that was made on this machine is not replaced by one from elsewhere."""
    if run.folder.exists() and any(run.folder.iterdir()) and not (run.folder / BROUGHT).is_file():
        raise Problem(f"{run.folder} was made on this machine, and what is brought from the cloud would replace it. Choose "
                      "another --run, or move it away.")


def _files(volume: modal.Volume, run: Run) -> list[PurePosixPath]:
    """The files to bring, as NAME/FOLDER/..."""
    found = [PurePosixPath(entry.path.lstrip("/")) for entry in volume.iterdir(f"/{run.name}", recursive=True)
             if entry.type == FileEntryType.FILE]
    return [file for file in found if file.parts[1] not in STAYS
            and not any(part.startswith((".", "checkpoint-")) for part in file.parts[1:])]


def _listed(volume: modal.Volume, run: Run) -> list:
    """What stands directly in the run's folder on the volume, nothing where there is none yet."""
    try:
        return [*volume.iterdir(f"/{run.name}", recursive=False)]
    except (FileNotFoundError, modal.exception.NotFoundError):
        return []


def _read(volume: modal.Volume, file: PurePosixPath, into, bar: tqdm) -> None:
    for chunk in volume.read_file(file.as_posix()):
        into.write(chunk)
    bar.update()
