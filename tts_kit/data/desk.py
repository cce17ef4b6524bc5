"""A run's desk: recordings are cut and written down on it, a person puts the texts right, and clips with texts leave it.

In go sound files without transcripts; out comes a folder with `metadata.jsonl`, which is read like any other.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tts_kit import audio, run
from tts_kit.data import address, intake, recording, review, sources, transcribe, voices
from tts_kit.data.draft import Draft
from tts_kit.data.edits import DROPPED, Entry
from tts_kit.data.transcribe import Transcriber
from tts_kit.data.utterance import RATE
from tts_kit.problem import Problem
from tts_kit.recipe import Recipe
from tts_kit.run import Run
from tts_kit.runtime import Runtime

SOUND = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".mp4", ".m4v", ".mov", ".mkv",
         ".webm", ".avi"}
NOT_SOUND = {".csv", ".jsonl", ".json", ".parquet", ".arrow", ".tsv"}
SETTINGS = "desk.json"
DOWNLOADS = "downloads"
NOBODY = "none"
"""In place of a second transcriber: nothing is heard twice."""
TABLE = "metadata.jsonl"


def recordings(source: str | Path) -> list[Path]:
    """The sound files of a source that brings no transcripts: one file, or a folder of them; else none."""
    path = Path(source).expanduser()
    if path.is_file():
        return [] if path.suffix.lower() in NOT_SOUND else [path]
    if not path.is_dir():
        return []
    try:
        os.scandir(path).close()
        if any((path / name).is_file() for name in sources.TABLES):
            return []
        files = sorted(each for each in path.rglob("*") if each.is_file())
    except OSError as error:
        raise Problem(f"{path} cannot be read ({error.strerror}). Change its permissions, or copy it elsewhere.") from error
    if any(each.match(pattern) for each in files for pattern in sources.DATASET_FILES):
        return []
    found = [each for each in files if each.suffix.lower() in SOUND]
    tables = [each for each in files if each.suffix.lower() in NOT_SOUND]
    if found and tables:
        raise Problem(f"{path} holds sound files, and {tables[0].relative_to(path)} beside them. If that has their "
                      "transcripts, call it metadata.csv and give its folder; if not, move it away, and they are taken as "
                      "recordings to be written down.")
    return found


def take_in(source: str | Path, place: Run, runtime: Runtime, transcriber: str = "", second: str = "",
            language: str = "", speaker: str = "") -> str | Path:
    """The source itself where it has transcripts; of recordings, on disk or at an address, the folder of their clips with
    what was written down.

    Without the name of a `second` transcriber a smaller one than the first hears everything once more."""
    source, files = find(source, place)
    if not files:
        return source
    folder = clear(lay(files, place, *transcribers(runtime, transcriber, second, language), language), place, speaker)
    print(f"Put the texts right: python -m tts_kit review --run {place.name}")
    return folder


def find(source: str | Path, place: Run) -> tuple[str | Path, list[Path]]:
    """The source, fetched if it is an address, and its sound files; none where it has transcripts."""
    if address.is_address(source):
        source = address.fetch(str(source), place.folder / DOWNLOADS)
    return source, recordings(source)


def transcribers(runtime: Runtime, first: str = "", second: str = "",
                 language: str = "") -> tuple[Transcriber, Transcriber | None]:
    """Who writes down what is said, and who hears it once more."""
    loaded = transcribe.load(first, runtime)
    transcribe.check_language(language)
    if second == NOBODY:
        return loaded, None
    return loaded, transcribe.load(second, runtime) if second else transcribe.doubter(loaded, runtime)


def lay(files: Sequence[Path], place: Run, first: Transcriber, second: Transcriber | None = None,
        language: str = "") -> Draft:
    """Cut every recording that can be and write it down, with those of earlier times; what was done before is used again,
    what cannot be done is named."""
    folders = cut(files, place)
    run.write_json(place.cuts / SETTINGS, {"transcriber": first.name, "second": second.name if second else ""})
    for folder in folders:
        hear(folder, first, second, language)
    return again(place)


def cut(files: Sequence[Path], place: Run) -> list[Path]:
    """Cut every recording that can be; the folders of all that were, now or before."""
    failed = []
    for file in files:
        try:
            print(f"{file.name}: {recording.summary(recording.cut(file, place.cuts))}.")
        except Problem as problem:
            failed.append(str(problem))
            print(problem)
    if len(failed) == len(files):
        raise Problem(f"none of {len(files)} recordings can be used. {failed[0]}")
    return recording.places(place.cuts)


def hear(folder: Path, first: Transcriber, second: Transcriber | None = None, language: str = "") -> None:
    """Write down one cut recording, and tell its voices apart; touches nothing outside its folder."""
    voices.listen(folder)
    heard = transcribe.transcribe(folder, first, language)
    if second:
        transcribe.transcribe(folder, second, language or next((each.language for each in heard), ""))


def again(place: Run) -> Draft:
    """The draft of a run whose recordings were cut before."""
    path = place.cuts / SETTINGS
    if not path.is_file():
        raise Problem(f"{place.cuts} holds no cut recordings. Make them first: python -m tts_kit data RECORDING --run "
                      f"{place.name}")
    told = run.read_json(path, f"Run `python -m tts_kit data RECORDING --run {place.name}` again.")
    return Draft(place.cuts, told["transcriber"], told["second"])


def page(draft: Draft, place: Run, port: int = 0) -> review.Review:
    """The review page of a run, open until it is closed."""
    return review.Review(draft, f"Review: {place.name}", port)


def sit(place: Run, recipe: Recipe, port: int = 0) -> None:
    """The review page until Ctrl-C; the data are then made again, of what the person left."""
    draft = again(place)
    shown = page(draft, place, port)
    print(f"Open {shown.address}\nEvery edit is saved. Ctrl-C ends the review.")
    try:
        shown.wait()
    except KeyboardInterrupt:
        shown.close()
    intake.prepare(clear(draft, place, recipe.speaker), place, recipe, skip_bad=True,
                   held_out_from=intake.held_out_from(place.data))


def clear(draft: Draft, place: Run, speaker: str = "") -> Path:
    """What was not dropped and has a text, as a folder with a table; an older one is replaced, as it can be made again."""
    kept = [entry for entry in draft.entries if entry.state != DROPPED and entry.text]
    if not kept:
        raise Problem(f"no clip of {place.cuts} has a text. Write some: python -m tts_kit review --run {place.name}")
    with run.writing_folder(place.reviewed) as beside:
        run.write_rows(beside / TABLE, _rows(draft, kept, beside, speaker))
    return place.reviewed


def _rows(draft: Draft, kept: Sequence[Entry], folder: Path, speaker: str) -> Iterator[dict]:
    for entry in kept:
        file = f"clips/{entry.id.replace('/', '-')}.flac"
        (folder / file).parent.mkdir(exist_ok=True)
        [part, *others] = entry.parts
        if others or not _is_whole(draft.folder / part.file, part):
            audio.write(folder / file, draft.wave_of(entry.parts), RATE)
        else:
            _copy(draft.folder / part.file, folder / file)
        named = {"source": speaker} if speaker else {}
        yield {"file_name": file, "text": entry.text, "recording": entry.recording} | named


def _is_whole(path: Path, part) -> bool:
    return part.begin == 0 and abs(audio.probe(path)[2] - part.end) < 0.01


def _copy(path: Path, copy: Path) -> None:
    """The same file under another name, without its bytes twice where the disk allows it."""
    try:
        os.link(path, copy)
    except OSError:
        shutil.copy2(path, copy)
