"""Make the clips that a small model is evaluated on: ground truth by Kokoro, and the model's clips of the same sentences."""

import csv
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from sample_data.build import corpus, sentences, voices
from tts_kit import audio
from tts_kit.comparison import arms
from tts_kit.comparison.synthesis import SCORES
from tts_kit.errors import KitError
from tts_kit.io import read_rows, write_rows
from tts_kit.speech import speak
from tts_kit.speech.speak import Request
from tts_kit.speech.voice import Reference, Voice

FIRST_CODEBOOK = "first codebook"
DECODED_CODEBOOKS = {"codec": None, FIRST_CODEBOOK: 1}  # arm -> codebooks that recordings are decoded from; None: all
REFERENCE_WORDS = range(4, 8)  # allowed numbers of words in a reference clip
FIRST_RECORDED_NUMBER = 1001
"""Number of the first recording of a voice that has recordings of other sentences than the evaluated ones."""
Synthesize = Callable[[str, voices.Speaker], np.ndarray]  # (text, speaker) -> (samples,) at 16 kHz


@dataclass(frozen=True)
class GroundTruth:
    """A clip that the model did not generate."""
    text: str
    speaker: str
    path: Path


def ground_truth(folder: Path, synthesize: Synthesize = corpus.synthesize_kokoro,
                 texts: Sequence[str] = ()) -> list[GroundTruth]:
    """Return a clip of each sentence, by default of the evaluation set, the voices in turn; synthesizes missing ones."""
    speakers, texts = voices.held_out_speakers(), texts or sentences.evaluation_set().sentences
    planned = [(text, speakers[index % len(speakers)], clip_path(folder, text, speakers[index % len(speakers)].name))
               for index, text in enumerate(texts)]
    return _synthesize_missing(planned, synthesize, "ground truth")


def reference_clips(folder: Path, synthesize: Synthesize = corpus.synthesize_kokoro) -> dict[str, Reference]:
    """Return a reference clip of each voice, a short sentence that is not evaluated; synthesizes missing ones."""
    short = [text for text in sentences.evaluation_set().bundled if len(sentences.words(text)) in REFERENCE_WORDS]
    planned = [(text, speaker, clip_path(folder, text, speaker.name))
               for text, speaker in zip(short, voices.held_out_speakers())]
    return {clip.speaker: Reference(clip.path, clip.text)
            for clip in _synthesize_missing(planned, synthesize, "references")}


def recorded_clips(folder: Path, speaker: str) -> list[GroundTruth]:
    """Return the clips of a folder with metadata.csv as ground truth of `speaker`."""
    table = Path(folder) / "metadata.csv"
    if not table.is_file():
        raise KitError(f"{table} is missing. Give a folder of clips that the adapter was not trained on to --held-out.")
    with table.open(encoding="utf-8", newline="") as file:
        return [GroundTruth(row["text"], speaker, Path(folder) / row["file_name"]) for row in csv.DictReader(file)]


def plan_rows(clips: Sequence[GroundTruth], references: dict[str, Reference], seeds: Sequence[int], arm_names: Sequence[str],
              speaker: str = "", recorded: Sequence[GroundTruth] = ()) -> list[dict]:
    """Return the rows of the clips to make; with `speaker`, all are of that voice, and `recorded` is its ground truth."""
    rows = []
    real_clips = ([(FIRST_RECORDED_NUMBER + index, clip) for index, clip in enumerate(recorded)]
                  or list(enumerate(clips, 1)))
    for arm in arm_names:
        if arm in (*arms.GIVEN_ARMS, FIRST_CODEBOOK):
            rows += [_row(arm, number, clip.text, None, clip.speaker, clip.path) for number, clip in real_clips]
            continue
        info = arms.ARMS[arm]
        for number, clip in enumerate(clips, 1):
            name = speaker or clip.speaker
            rows += [_row(arm, number, clip.text, seed, name, None) |
                     {"request": Request(clip.text, seed, references[name] if info.reference else None,
                                         info.adapter)} for seed in seeds]
    return rows


def make_clips(planned: Sequence[dict], folder: Path, voice: Voice) -> list[dict]:
    """Write the clip of each planned row to `folder`; returns the rows. Existing clips and their scores are kept."""
    path = folder / SCORES
    texts = {row["file"]: row["text"] for row in planned}
    complete = {row["file"]: row for row in (read_rows(path) if path.exists() else [])
                if (folder / row["file"]).is_file() and texts.get(row["file"], row["text"]) == row["text"]}
    missing = [row for row in planned if row["file"] not in complete]
    for row in _generate(missing, folder, voice):
        complete[row["file"]] = row
        write_rows(path, complete.values())
    return [complete[row["file"]] for row in planned]


def save_rows(folder: Path, rows: Sequence[dict]) -> None:
    """Replace the saved rows of the same clips; rows of clips that are not among `rows` stay."""
    path = folder / SCORES
    write_rows(path, ({row["file"]: row for row in read_rows(path)} | {row["file"]: row for row in rows}).values())


def model_digest(model: Path, voice: Voice) -> str:
    """Return a digest of a model's weights and sampling settings, so that clips of two models are never mixed."""
    weights = sorted(Path(model).glob("*.safetensors"))
    if not weights:
        raise KitError(f"{model} holds no .safetensors. Give the folder of a model that "
                       "python -m sample_data.build.csm_training trained to --model.")
    digest = hashlib.sha256(str(voice.sampling).encode())
    for path in weights:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _row(arm: str, number: int, text: str, seed: int | None, speaker: str, path: Path | None) -> dict:
    name = f"{number:03d}" if seed is None else f"{number:03d}-{seed}"
    return {"arm": arm, "sentence": number, "text": text, "seed": seed, "speaker": speaker,
            "file": f"{arm}/{name}.flac", "path": path}


def clip_path(folder: Path, text: str, speaker: str) -> Path:
    """Return where the clip of a sentence in a voice belongs."""
    return Path(folder) / f"{speaker}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.flac"


def _synthesize_missing(planned: Sequence[tuple], synthesize: Synthesize, description: str) -> list[GroundTruth]:
    missing = [clip for clip in planned if not clip[2].is_file()]
    for text, speaker, path in tqdm(missing, desc=description, unit="clip", disable=not missing):
        audio.write(path, synthesize(text, speaker), corpus.RATE)
    return [GroundTruth(text, speaker.name, path) for text, speaker, path in planned]


def _generate(rows: Sequence[dict], folder: Path, voice: Voice) -> Iterator[dict]:
    """Write the clip of each row and yield the row to save."""
    rate = voice.base.spec.sample_rate
    for row in (row for row in rows if row["path"]):
        samples = audio.read(row["path"], rate)
        if row["arm"] in DECODED_CODEBOOKS:
            codes = voice.base.codec.encode([samples])
            samples = voice.base.codec.decode(codes, DECODED_CODEBOOKS[row["arm"]])[0][:len(samples)]
        yield _write_clip(row, folder, samples, rate)
    requested = [row for row in rows if "request" in row]
    for index, speech in speak.speak_requests([row["request"] for row in requested], voice):
        yield _write_clip(requested[index], folder, speech.samples, speech.sample_rate,
                          ended_with_eos=speech.ended_with_eos, wall_seconds=round(speech.wall_seconds, 3))


def _write_clip(row: dict, folder: Path, samples: np.ndarray, rate: int, **facts) -> dict:
    """Write the clip of a row; returns the row to save."""
    audio.write(folder / row["file"], samples, rate)
    return {name: value for name, value in row.items() if name not in ("path", "request")} | {
        "seconds": round(len(samples) / rate, 3), **facts}
