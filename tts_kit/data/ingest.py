"""A run's desk: recordings are cut and written down on it, a person puts the texts right, and clips with texts leave it.

In go sound files without transcripts; out comes a folder with `metadata.jsonl`, which is read like any other.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tts_kit import audio, io
from tts_kit.config import Config
from tts_kit.data import download, prepare, review, segment, sources, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review_edits import DROPPED, ReviewClip
from tts_kit.data.review_store import ReviewStore
from tts_kit.data.transcribe import Transcriber
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.run import Run

SOUND = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".mp4", ".m4v", ".mov", ".mkv",
         ".webm", ".avi"}
NOT_SOUND = {".csv", ".jsonl", ".json", ".parquet", ".arrow", ".tsv"}
SETTINGS = "desk.json"
DOWNLOADS = "downloads"
NOBODY = "none"
"""In place of a second transcriber: nothing is heard twice."""
TABLE = "metadata.jsonl"


def list_recordings(source: str | Path) -> list[Path]:
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
        raise KitError(f"{path} cannot be read ({error.strerror}). Change its permissions, or copy it elsewhere.") from error
    if any(each.match(pattern) for each in files for pattern in sources.DATASET_FILES):
        return []
    found = [each for each in files if each.suffix.lower() in SOUND]
    tables = [each for each in files if each.suffix.lower() in NOT_SOUND]
    if found and tables:
        raise KitError(f"{path} holds sound files, and {tables[0].relative_to(path)} beside them. If that has their "
                      "transcripts, call it metadata.csv and give its folder; if not, move it away, and they are taken as "
                      "recordings to be written down.")
    return found


def ingest(source: str | Path, place: Run, device_config: DeviceConfig, transcriber: str = "", second: str = "",
            language: str = "", speaker: str = "") -> str | Path:
    """The source itself where it has transcripts; of recordings, on disk or at an address, the folder of their clips with
    what was written down.

    Without the name of a `second` transcriber a smaller one than the first hears everything once more."""
    source, files = find_recordings(source, place)
    if not files:
        return source
    folder = export_reviewed(segment_and_transcribe(files, place, *load_asr_models(device_config, transcriber, second, language), language), place, speaker)
    print(f"Put the texts right: tts-kit review --run {place.name}")
    return folder


def find_recordings(source: str | Path, place: Run) -> tuple[str | Path, list[Path]]:
    """The source, fetched if it is an address, and its sound files; none where it has transcripts."""
    if download.is_url(source):
        source = download.fetch(str(source), place.folder / DOWNLOADS)
    return source, list_recordings(source)


def load_asr_models(device_config: DeviceConfig, first: str = "", second: str = "",
                 language: str = "") -> tuple[Transcriber, Transcriber | None]:
    """Who writes down what is said, and who hears it once more."""
    loaded = transcribe.load(first, device_config)
    transcribe.check_language(language)
    if second == NOBODY:
        return loaded, None
    return loaded, transcribe.load(second, device_config) if second else transcribe.second_pass_model(loaded, device_config)


def segment_and_transcribe(files: Sequence[Path], place: Run, first: Transcriber, second: Transcriber | None = None,
        language: str = "") -> ReviewStore:
    """Cut every recording that can be and write it down, with those of earlier times; what was done before is used again,
    what cannot be done is named."""
    folders = segment_files(files, place)
    io.write_json(place.segments / SETTINGS, {"transcriber": first.name, "second": second.name if second else ""})
    for folder in folders:
        transcribe_segments(folder, first, second, language)
    return load_review(place)


def segment_files(files: Sequence[Path], place: Run) -> list[Path]:
    """Cut every recording that can be; the folders of all that were, now or before."""
    failed = []
    for file in files:
        try:
            print(f"{file.name}: {segment.summary(segment.segment_recording(file, place.segments))}.")
        except KitError as problem:
            failed.append(str(problem))
            print(problem)
    if len(failed) == len(files):
        raise KitError(f"none of {len(files)} recordings can be used. {failed[0]}")
    return segment.segment_folders(place.segments)


def transcribe_segments(folder: Path, first: Transcriber, second: Transcriber | None = None, language: str = "") -> None:
    """Write down one cut recording, and tell its voices apart; touches nothing outside its folder."""
    speaker_embedding.embed_folder(folder)
    heard = transcribe.transcribe(folder, first, language)
    if second:
        transcribe.transcribe(folder, second, language or next((each.language for each in heard), ""))


def load_review(place: Run) -> ReviewStore:
    """The draft of a run whose recordings were cut before."""
    path = place.segments / SETTINGS
    if not path.is_file():
        raise KitError(f"{place.segments} holds no cut recordings. Make them first: tts-kit prepare RECORDING --run "
                      f"{place.name}")
    told = io.read_json(path, f"Run `tts-kit prepare RECORDING --run {place.name}` again.")
    return ReviewStore(place.segments, told["transcriber"], told["second"])


def open_review(draft: ReviewStore, place: Run, port: int = 0) -> review.Review:
    """The review page of a run, open until it is closed."""
    return review.Review(draft, f"Review: {place.name}", port)


def serve_review(place: Run, config: Config, port: int = 0) -> None:
    """The review page until Ctrl-C; the data are then made again, of what the person left."""
    draft = load_review(place)
    shown = open_review(draft, place, port)
    print(f"Open {shown.address}\nEvery edit is saved. Ctrl-C ends the review.")
    try:
        shown.wait()
    except KeyboardInterrupt:
        shown.close()
    prepare.prepare(export_reviewed(draft, place, config.speaker), place, config, skip_bad=True,
                   held_out_from=prepare.held_out_source(place.data))


def export_reviewed(draft: ReviewStore, place: Run, speaker: str = "") -> Path:
    """What was not dropped and has a text, as a folder with a table; an older one is replaced, as it can be made again."""
    kept = [entry for entry in draft.entries if entry.state != DROPPED and entry.text]
    if not kept:
        raise KitError(f"no clip of {place.segments} has a text. Write some: tts-kit review --run {place.name}")
    with io.atomic_folder(place.reviewed) as beside:
        io.write_rows(beside / TABLE, _rows(draft, kept, beside, speaker))
    return place.reviewed


def _rows(draft: ReviewStore, kept: Sequence[ReviewClip], folder: Path, speaker: str) -> Iterator[dict]:
    for entry in kept:
        file = f"clips/{entry.id.replace('/', '-')}.flac"
        (folder / file).parent.mkdir(exist_ok=True)
        [part, *others] = entry.parts
        if others or not _is_whole(draft.folder / part.file, part):
            audio.write(folder / file, draft.wave_of(entry.parts), SAMPLE_RATE)
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
