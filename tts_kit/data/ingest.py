"""From recordings without transcripts to a folder of clips with texts: segment, transcribe, review, export.

The exported folder has a `metadata.jsonl` and is read by `prepare` like any other source."""

import hashlib
import importlib.util
import logging
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from tts_kit import audio, io
from tts_kit.config import Config
from tts_kit.data import prepare, review, segment, sources, speaker_embedding, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.device import DeviceConfig
from tts_kit.errors import KitError, reason
from tts_kit.progress import tqdm
from tts_kit.run import SAMPLE_RECORDING, Run, read_inputs

DATA_SUFFIXES = {*sources.TABLE_SUFFIXES, ".json", ".parquet", ".arrow"}  # of files that may hold transcripts
ASR_MODELS = "asr_models.json"  # in the folder of segmented recordings: the models whose transcripts are reviewed
MAX_BYTES = 4 * 2 ** 30  # of a download
TABLE = "metadata.jsonl"


def is_url(source: str | Path) -> bool:
    """Whether a source is an http or https address."""
    return str(source).lower().startswith(("http://", "https://"))


def is_recording(source: str | Path) -> bool:
    """Whether a source has no transcripts and needs `ingest`: a URL, an audio or video file, or a folder of such files."""
    return is_url(source) or bool(list_recordings(source))


def ingest(source: str | Path, run: Run, device_config: DeviceConfig, asr_model: str = "", verify_asr_model: str = "",
           language: str = "", speaker: str = "") -> Path:
    """Segment and transcribe recordings; returns the folder of clips with texts, to be given to `prepare`.

    Without a `verify_asr_model` a smaller model than the first transcribes everything a second time; "none": none does."""
    if not (files := list_recordings(download(str(source), run.folder / "downloads") if is_url(source) else source)):
        raise KitError(f"{source} holds no recordings without transcripts. Give it to prepare as it is.")
    if Path(source).is_dir():
        print(f"{source} has no metadata.csv, .jsonl, .list or dataset, and no .txt or .lab beside the audio: its "
              f"{len(files)} files are taken for recordings without transcripts.")
    first, second = transcribe.load(asr_model, device_config), None
    transcribe.check_language(language)
    if verify_asr_model != "none":
        second = (transcribe.load(verify_asr_model, device_config) if verify_asr_model else
                  transcribe.second_pass_model(first, device_config))
    folder = export_reviewed(segment_and_transcribe(files, run, first, second, language), run, speaker)
    print(f"Correct the texts: tts-kit review --run {run.name}")
    return folder


def list_recordings(source: str | Path) -> list[Path]:
    """The audio files of a local source without transcripts, one file or a folder of them; empty if it has transcripts."""
    path = SAMPLE_RECORDING if source == "example:recording" else Path(source).expanduser()
    if path.is_file():
        return [] if path.suffix.lower() in DATA_SUFFIXES else [path]
    if not path.is_dir():
        return []
    try:
        os.scandir(path).close()  # rglob passes over a folder that cannot be read
        files = [] if sources.table(path) else sorted(file for file in path.rglob("*") if file.is_file())
    except OSError as error:
        raise KitError(f"{path} cannot be read ({error.strerror}). Change its permissions, or copy it elsewhere.") from error
    recordings = [file for file in files if file.suffix.lower() in sources.AUDIO_SUFFIXES]
    if any(map(sources.transcript_file, recordings)) or any(
            file.match(pattern) for file in files for pattern in sources.DATASET_FILES):
        return []
    tables = [file for file in files if file.suffix.lower() in DATA_SUFFIXES - {".txt"}]
    if recordings and tables:
        raise KitError(f"{path} holds audio files and {tables[0].relative_to(path)}. If that has their transcripts, give "
                       "it, or name it metadata.csv and give its folder; if not, move it away: the audio is transcribed.")
    return recordings


def download(url: str, folder: Path) -> Path:
    """Download the audio of one video or audio file to a folder of its own under `folder`, once."""
    own_folder = Path(folder) / f"web-{hashlib.sha256(url.encode()).hexdigest()[:12]}"
    if own_folder.is_dir():
        return next(own_folder.iterdir())
    if not importlib.util.find_spec("yt_dlp"):
        raise KitError(f"{url} is a URL, and downloading needs yt-dlp: pip install yt-dlp. Or give a file.")
    import yt_dlp

    print("Only use speech that you have the right to use.")
    logger = logging.getLogger("yt_dlp")
    logger.setLevel(logging.CRITICAL)  # errors arrive as exceptions
    with io.atomic_folder(own_folder) as staging, tqdm(desc="downloading", unit="B", unit_scale=True) as bar:
        def update_bar(state: dict) -> None:
            bar.total = state.get("total_bytes") or bar.total
            bar.update((state.get("downloaded_bytes") or 0) - bar.n)

        options = {"format": "bestaudio/best", "outtmpl": {"default": f"{staging / own_folder.name}.%(ext)s"},
                   "noplaylist": True, "playlist_items": "1", "max_filesize": MAX_BYTES, "restrictfilenames": True,
                   "quiet": True, "no_warnings": True, "noprogress": True, "progress_hooks": [update_bar],
                   "cachedir": False, "logger": logger}
        try:
            with yt_dlp.YoutubeDL(options) as downloader:
                downloader.download([url])
        except yt_dlp.utils.YoutubeDLError as error:
            raise KitError(f"{url} cannot be downloaded ({reason(error).removeprefix('ERROR: ')}). Check it in a browser, "
                           "update yt-dlp (pip install -U yt-dlp), or download it yourself and give the file.") from error
        files = [path for path in staging.iterdir() if path.stat().st_size]
        if len(files) != 1:
            raise KitError(f"{url} gave {len(files)} files; wanted one audio or video of at most {MAX_BYTES // 2 ** 30} GB.")
    return next(own_folder.iterdir())


def segment_and_transcribe(files: Sequence[Path], run: Run, first: transcribe.Transcriber,
                           second: transcribe.Transcriber | None = None, language: str = "") -> review.ReviewStore:
    """Segment new recordings, naming those that cannot be used, and transcribe them with all earlier ones of the run."""
    failures = []
    for file in files:
        try:
            print(f"{file.name}: {segment.summary(segment.segment_recording(file, run.segments))}.")
        except KitError as error:
            failures.append(str(error))
            print(error)
    if len(failures) == len(files):
        raise KitError(f"none of {len(files)} recordings can be used. {failures[0]}")
    io.write_json(run.segments / ASR_MODELS, {"asr_model": first.name, "verify_asr_model": second.name if second else ""})
    for folder in segment.segment_folders(run.segments):
        speaker_embedding.embed_folder(folder)
        transcripts = transcribe.transcribe(folder, first, language)
        detected = language or (transcripts[0].language if transcripts else "")
        if second and second.language not in ("", detected):
            print(f"There is no second pass in {detected!r}: {second.name} knows {second.language!r} alone.")
        elif second:
            transcribe.transcribe(folder, second, detected)
    return load_review(run)


def asr_models(run: Run) -> dict[str, str]:
    """The names of the models that transcribed a run's recordings; empty if it has none."""
    path = run.segments / ASR_MODELS
    return io.read_json(path, f"Run `tts-kit prepare RECORDING --run {run.name}` again.") if path.is_file() else {}


def languages(run: Run) -> list[str]:
    """The languages that a run's recordings were transcribed in."""
    model = asr_models(run).get("asr_model", "")
    transcripts = [transcript for folder in segment.segment_folders(run.segments)
                   for transcript in transcribe.read_transcripts(folder, model).values()]
    return sorted({transcript.language for transcript in transcripts} - {""})


def load_review(run: Run) -> review.ReviewStore:
    """The clips and transcripts of a run's recordings, with all edits so far."""
    if not (models := asr_models(run)):
        raise KitError(f"{run.segments} holds no transcribed recordings. Run tts-kit prepare RECORDING --run {run.name}")
    return review.ReviewStore(run.segments, **models)


def serve_review(run: Run, config: Config, port: int = 0) -> None:
    """Serve the review page until Ctrl-C, then prepare the data again from the reviewed clips."""
    store = load_review(run)
    server = review.serve(store, run.name, port)
    print(f"Open {server.url}\nEvery edit is saved. Ctrl-C ends the review.")
    try:
        while server.thread.is_alive():
            server.thread.join(1)
    except KeyboardInterrupt:
        server.close()
    prepare.prepare(export_reviewed(store, run, config.speaker), run, config, skip_bad=True,
                    eval_source=read_inputs(run.data).get("eval_source", ""))


def export_reviewed(store: review.ReviewStore, run: Run, speaker: str = "") -> Path:
    """Write all clips that have a text and were not dropped to `run.reviewed`, with a table; replaces an older export."""
    clips = [clip for clip in store.clips if clip.state != review.DROPPED and clip.text]
    if not clips:
        raise KitError(f"no clip of {run.segments} has a text. Write some: tts-kit review --run {run.name}")
    rows = []
    with io.atomic_folder(run.reviewed) as staging:
        (staging / "clips").mkdir()
        for clip in clips:
            name, file = f"clips/{clip.id.replace('/', '-')}.flac", store.folder / clip.spans[0].file
            if len(clip.spans) == 1 and clip.id.endswith(file.stem):  # neither merged nor split
                shutil.copy2(file, staging / name)  # with its time, by which `prepare` sees that it is the same
            else:
                audio.write(staging / name, store.read_spans(clip.spans), SAMPLE_RATE)
            row = {"file_name": name, "text": clip.text, "session": clip.recording}
            rows.append(row | {"source": speaker} if speaker else row)
        io.write_rows(staging / TABLE, rows)
    return run.reviewed
