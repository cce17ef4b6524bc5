"""From recordings without transcripts to a folder of clips with texts: segment, transcribe, review, export.

The exported folder has a `metadata.jsonl` and is read by `prepare` like any other source.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from tts_kit import audio, io, samples
from tts_kit.config import Config
from tts_kit.data import download, prepare, segment, sources, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.review import Review
from tts_kit.data.review_store import DROPPED, ReviewClip, ReviewStore
from tts_kit.data.transcribe import Transcriber
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError
from tts_kit.run import Run

AUDIO_SUFFIXES = {".wav", ".flac", ".mp3", ".ogg", ".opus", ".m4a", ".aac", ".wma", ".aiff", ".aif", ".mp4", ".m4v", ".mov",
                  ".mkv", ".webm", ".avi"}
TABLE_SUFFIXES = {".csv", ".jsonl", ".json", ".parquet", ".arrow", ".tsv"}
ASR_MODELS = "asr_models.json"  # in the folder of segmented recordings: the models whose transcripts are reviewed
DOWNLOADS = "downloads"
NO_SECOND_PASS = "none"  # as name of the second model: there is no second pass
TABLE = "metadata.jsonl"


def is_recording(source: str | Path) -> bool:
    """Whether a source has no transcripts and needs `ingest`: a URL, an audio or video file, or a folder of such files."""
    return download.is_url(source) or bool(list_recordings(source))


def ingest(source: str | Path, run: Run, device_config: DeviceConfig, asr_model: str = "", verify_asr_model: str = "",
           language: str = "", speaker: str = "") -> Path:
    """Segment and transcribe recordings; returns the folder of clips with texts, to be given to `prepare`.

    Without a `verify_asr_model` a smaller model than the first transcribes everything a second time."""
    files = find_recordings(source, run)
    if not files:
        raise KitError(f"{source} holds no recordings without transcripts. Give it to prepare as it is.")
    models = load_asr_models(device_config, asr_model, verify_asr_model, language)
    folder = export_reviewed(segment_and_transcribe(files, run, *models, language), run, speaker)
    print(f"Correct the texts: tts-kit review --run {run.name}")
    return folder


def find_recordings(source: str | Path, run: Run) -> list[Path]:
    """The recordings of a source, downloaded first if it is a URL; empty if it has transcripts."""
    return list_recordings(download.fetch(str(source), run.folder / DOWNLOADS) if download.is_url(source) else source)


def list_recordings(source: str | Path) -> list[Path]:
    """The audio files of a local source without transcripts, one file or a folder of them; empty if it has transcripts."""
    path = samples.RECORDING if source == "example:recording" else Path(source).expanduser()
    if path.is_file():
        return [] if path.suffix.lower() in TABLE_SUFFIXES else [path]
    if not path.is_dir():
        return []
    try:
        os.scandir(path).close()  # rglob passes over a folder that cannot be read
        if any((path / name).is_file() for name in sources.TABLES):
            return []
        files = sorted(file for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror}). Change its permissions, or copy it elsewhere.") from error
    if any(file.match(pattern) for file in files for pattern in sources.DATASET_FILES):
        return []
    recordings = [file for file in files if file.suffix.lower() in AUDIO_SUFFIXES]
    tables = [file for file in files if file.suffix.lower() in TABLE_SUFFIXES]
    if recordings and tables:
        raise KitError(f"{path} holds audio files and {tables[0].relative_to(path)}. If that has their transcripts, name it "
                       "metadata.csv and give its folder; if not, move it away, and the audio is transcribed.")
    return recordings


def load_asr_models(device_config: DeviceConfig, asr_model: str = "", verify_asr_model: str = "",
                    language: str = "") -> tuple[Transcriber, Transcriber | None]:
    """Load the ASR models of both passes; the second is None if it was switched off."""
    first = transcribe.load(asr_model, device_config)
    transcribe.check_language(language)
    if verify_asr_model == NO_SECOND_PASS:
        return first, None
    if verify_asr_model:
        return first, transcribe.load(verify_asr_model, device_config)
    return first, transcribe.second_pass_model(first, device_config)


def segment_and_transcribe(files: Sequence[Path], run: Run, first: Transcriber, second: Transcriber | None = None,
                           language: str = "") -> ReviewStore:
    """Segment new recordings and transcribe them with all earlier ones of the run; finished work is reused."""
    folders = segment_files(files, run)
    io.write_json(run.segments / ASR_MODELS, {"asr_model": first.name, "verify_asr_model": second.name if second else ""})
    for folder in folders:
        transcribe_segments(folder, first, second, language)
    return load_review(run)


def segment_files(files: Sequence[Path], run: Run) -> list[Path]:
    """Segment every usable recording and name the others; returns the folders of all recordings of the run."""
    failures = []
    for file in files:
        try:
            print(f"{file.name}: {segment.summary(segment.segment_recording(file, run.segments))}.")
        except KitError as error:
            failures.append(str(error))
            print(error)
    if len(failures) == len(files):
        raise KitError(f"none of {len(files)} recordings can be used. {failures[0]}")
    return segment.segment_folders(run.segments)


def transcribe_segments(folder: Path, first: Transcriber, second: Transcriber | None = None, language: str = "") -> None:
    """Embed the speakers and transcribe the clips of one recording; writes only inside its folder."""
    speaker_embedding.embed_folder(folder)
    transcripts = transcribe.transcribe(folder, first, language)
    if second:
        detected = transcripts[0].language if transcripts else ""
        transcribe.transcribe(folder, second, language or detected)


def asr_models(run: Run) -> tuple[str, str]:
    """The names of the models that transcribed a run's recordings; empty if it has none."""
    path = run.segments / ASR_MODELS
    if not path.is_file():
        return "", ""
    names = io.read_json(path, f"Run `tts-kit prepare RECORDING --run {run.name}` again.")
    return names["asr_model"], names["verify_asr_model"]


def load_review(run: Run) -> ReviewStore:
    """The clips and transcripts of a run's recordings, with all edits so far."""
    models = asr_models(run)
    if not models[0]:
        raise KitError(f"{run.segments} holds no transcribed recordings. Make them first: tts-kit prepare RECORDING "
                       f"--run {run.name}")
    return ReviewStore(run.segments, *models)


def serve_review(run: Run, config: Config, port: int = 0) -> None:
    """Serve the review page until Ctrl-C, then prepare the data again from the reviewed clips."""
    store = load_review(run)
    server = Review(store, run.name, port)
    print(f"Open {server.url}\nEvery edit is saved. Ctrl-C ends the review.")
    try:
        server.wait()
    except KeyboardInterrupt:
        server.close()
    prepare.prepare(export_reviewed(store, run, config.speaker), run, config, skip_bad=True,
                    eval_source=prepare.eval_source_of(run.data))


def export_reviewed(store: ReviewStore, run: Run, speaker: str = "") -> Path:
    """Write all clips that have a text and were not dropped to `run.reviewed`, with a table; replaces an older export."""
    clips = [clip for clip in store.clips if clip.state != DROPPED and clip.text]
    if not clips:
        raise KitError(f"no clip of {run.segments} has a text. Write some: tts-kit review --run {run.name}")
    with io.atomic_folder(run.reviewed) as staging:
        (staging / "clips").mkdir()
        io.write_rows(staging / TABLE, _export_clips(store, clips, staging, speaker))
    return run.reviewed


def _export_clips(store: ReviewStore, clips: Sequence[ReviewClip], folder: Path, speaker: str) -> Iterator[dict]:
    """Write the clips into `folder`; yields their rows of the table."""
    for clip in clips:
        name = f"clips/{clip.id.replace('/', '-')}.flac"
        [span, *more_spans] = clip.spans
        file = store.folder / span.file
        if more_spans or span.start > 0 or abs(audio.probe(file)[2] - span.end) >= 0.01:
            audio.write(folder / name, store.read_spans(clip.spans), SAMPLE_RATE)
        else:
            try:
                os.link(file, folder / name)  # no second copy of the bytes where the disk allows it
            except OSError:
                shutil.copy2(file, folder / name)
        row = {"file_name": name, "text": clip.text, "session": clip.recording}
        yield row | {"source": speaker} if speaker else row
