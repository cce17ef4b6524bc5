"""The clips by which a small model is judged: Kokoro's own speech of the judged sentences, and the model's takes of them."""

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

REFERENCE_WORDS = range(4, 8)
"""Words of the clip that is cloned from."""
FIRST_OWN = 1001
"""Numbers of a voice's own clips where they say other sentences than the judged ones."""
Say = Callable[[str, voices.Speaker], np.ndarray]


@dataclass(frozen=True)
class Original:
    """A real clip."""
    text: str
    speaker: str
    path: Path


def originals(folder: Path, say: Say = corpus.utter) -> list[Original]:
    """Each judged sentence in its voice, voices in turn; spoken once by `say`, which gives (samples,) at 16 kHz."""
    speakers = voices.held_out()
    wanted = [(text, speakers[place % len(speakers)], _place(folder, text, speakers[place % len(speakers)]))
              for place, text in enumerate(sentences.evaluation_set().sentences)]
    return _spoken(wanted, say, "originals")


def references(folder: Path, say: Say = corpus.utter) -> dict[str, Reference]:
    """For each voice one clip to clone, which says a short sentence that is not judged."""
    short = [text for text in sentences.evaluation_set().bundled if len(sentences.words(text)) in REFERENCE_WORDS]
    wanted = [(text, speaker, _place(folder, text, speaker))
              for text, speaker in zip(short, voices.held_out())]
    return {each.speaker: Reference(each.path, each.text) for each in _spoken(wanted, say, "references")}


def own_clips(folder: Path, speaker: str) -> list[Original]:
    """The clips of a folder with metadata.csv, as originals of `speaker`."""
    table = Path(folder) / "metadata.csv"
    if not table.is_file():
        raise KitError(f"{table} is missing: wanted a folder of clips that the adapter never met. Give --held-out.")
    with table.open(encoding="utf-8", newline="") as file:
        return [Original(row["text"], speaker, Path(folder) / row["file_name"]) for row in csv.DictReader(file)]


def plan(clips: Sequence[Original], cloned: dict[str, Reference], seeds: Sequence[int], stages: Sequence[str],
         speaker: str = "", own: Sequence[Original] = ()) -> list[dict]:
    """The rows to be filled with clips; with `speaker` all takes are of that voice, its `own` clips the real ones."""
    rows = []
    real = [(FIRST_OWN + place, each) for place, each in enumerate(own)] or list(enumerate(clips, 1))
    for stage in stages:
        if stage in arms.GIVEN_ARMS:
            rows += [_row(stage, number, each.text, None, each.speaker, each.path) for number, each in real]
            continue
        info = arms.ARMS[stage]
        for number, each in enumerate(clips, 1):
            name = speaker or each.speaker
            rows += [_row(stage, number, each.text, seed, name, None) |
                     {"line": Request(each.text, seed, cloned[name] if info.reference else None,
                                      info.adapter)} for seed in seeds]
    return rows


def make(planned: Sequence[dict], folder: Path, voice: Voice) -> list[dict]:
    """The rows of `planned`, each with its clip in `folder`; clips and scores that are there already are kept."""
    path = folder / SCORES
    texts = {each["file"]: each["text"] for each in planned}
    done = {row["file"]: row for row in (read_rows(path) if path.exists() else [])
            if (folder / row["file"]).is_file() and texts.get(row["file"], row["text"]) == row["text"]}
    todo = [each for each in planned if each["file"] not in done]
    for row in _made(todo, folder, voice):
        done[row["file"]] = row
        write_rows(path, done.values())
    return [done[each["file"]] for each in planned]


def keep(folder: Path, rows: Sequence[dict]) -> None:
    """Put rows in place of those of the same clips; rows of clips that were not asked for this time stay."""
    path = folder / SCORES
    write_rows(path, ({row["file"]: row for row in read_rows(path)} | {row["file"]: row for row in rows}).values())


def digest(model: Path, voice: Voice) -> str:
    """Names a model's weights and how they are sampled, so that clips of two models are never mixed."""
    weights = sorted(Path(model).glob("*.safetensors"))
    if not weights:
        raise KitError(f"{model} holds no .safetensors; wanted the folder of a model as pretrain.language leaves it; "
                      "change --model.")
    found = hashlib.sha256(str(voice.sampling).encode())
    for path in weights:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def _row(arm: str, number: int, text: str, seed: int | None, speaker: str, path: Path | None) -> dict:
    name = f"{number:03d}" if seed is None else f"{number:03d}-{seed}"
    return {"arm": arm, "sentence": number, "text": text, "seed": seed, "speaker": speaker,
            "file": f"{arm}/{name}.flac", "path": path}


def _place(folder: Path, text: str, speaker: voices.Speaker) -> Path:
    return Path(folder) / f"{speaker.name}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.flac"


def _spoken(wanted: Sequence[tuple], say: Say, what: str) -> list[Original]:
    missing = [each for each in wanted if not each[2].is_file()]
    for text, speaker, path in tqdm(missing, desc=what, unit="clip", disable=not missing):
        audio.write(path, say(text, speaker), corpus.RATE)
    return [Original(text, speaker.name, path) for text, speaker, path in wanted]


def _made(todo: Sequence[dict], folder: Path, voice: Voice) -> Iterator[dict]:
    """Make the clip of each row and give the row as it is kept."""
    rate = voice.base.spec.sample_rate
    for row in (each for each in todo if each["path"]):
        samples = audio.read(row["path"], rate)
        if row["arm"] == "codec":
            samples = voice.base.codec.decode(voice.base.codec.encode([samples]))[0][:len(samples)]
        yield _kept(row, folder, samples, rate)
    spoken = [each for each in todo if "line" in each]
    for place, speech in speak.speak_requests([each["line"] for each in spoken], voice):
        yield _kept(spoken[place], folder, speech.samples, speech.sample_rate, ended_with_eos=speech.ended_with_eos,
                    wall_seconds=round(speech.wall_seconds, 3))


def _kept(row: dict, folder: Path, samples: np.ndarray, rate: int, **facts) -> dict:
    audio.write(folder / row["file"], samples, rate)
    return {name: value for name, value in row.items() if name not in ("path", "line")} | {
        "seconds": round(len(samples) / rate, 3), **facts}
