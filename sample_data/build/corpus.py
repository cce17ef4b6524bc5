"""Synthesize hours of speech in many voices, in shards of one FLAC file and one table of its sentences.

    python -m sample_data.build.corpus --hours 5 --out runs/pretrain/corpus --workers 2
"""

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import multiprocessing
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from sample_data.build import kokoro, open_text, sentences, voices
from tts_kit import audio, io
from tts_kit.errors import KitError, report_errors

RATE = 16_000
SENTENCES_PER_SHARD = 100
SHARD_SECONDS = 285
"""Measured length of a shard; a constant, because the number of shards must not depend on those that exist."""
MAX_SPEED, MIN_SPEED = 1.12, 0.9
SETTINGS_FILE = "corpus.json"
OUT = Path("runs/pretrain/corpus")
Synthesize = Callable[[str, Any, float], np.ndarray]  # (text, speaker, speed) -> (samples,) at 16 kHz
Speakers = Sequence[Any]  # objects with a name that a `Synthesize` accepts as speakers
SentenceSource = Callable[[int], Iterator[str]]  # seed -> an endless iterator of sentences


def make(folder: str | Path, hours: float, seed: int = 0, workers: int = 1,
         voices_folder: str | Path = voices.CACHE) -> Path:
    """Synthesize about `hours` of Kokoro's speech into `folder`; complete shards are kept."""
    count = shard_count(hours, workers)
    kokoro.split_model()  # once, before several workers need it
    voice_styles = voices.load_styles(voices_folder)
    styles_digest = hashlib.sha256(b"".join(voice_styles[name].tobytes() for name in voices.NAMES)).hexdigest()[:16]
    synthesize = functools.partial(synthesize_kokoro, voices_folder=str(voices_folder))
    return make_shards(folder, count, synthesize, seed, workers, f"kokoro {styles_digest}",
                       sentence_source=open_text.generate)


def shard_count(hours: float, workers: int) -> int:
    """Return how many shards hold about `hours` of speech."""
    if not 0 < hours <= 1000 or workers < 1:
        raise KitError(f"{hours:g} hours with {workers} workers; hours must be more than 0 and at most 1000, workers 1 or "
                      "more. Change --hours or --workers.")
    return max(1, round(hours * 3600 / SHARD_SECONDS))


def make_shards(folder: str | Path, count: int, synthesize: Synthesize, seed: int = 0, workers: int = 1, source: str = "",
                speakers: Speakers = (), sentence_source: SentenceSource = sentences.generate) -> Path:
    """Write `count` shards to `folder`; complete ones are kept. `source` names the synthesizer."""
    folder = Path(folder)
    _check_settings(folder, seed, source, speakers, sentence_source)
    missing = [shard for shard in range(count) if _read_samples(_table_path(folder, shard)) is None]
    print(f"{folder}: {count} shards of {SENTENCES_PER_SHARD} sentences, {count - len(missing)} exist, {workers} at a time.")
    begin, seconds = time.monotonic(), 0.0
    task = functools.partial(_make_shard, folder, seed, synthesize, speakers, sentence_source)
    with _parallel_map(task, missing, workers) as results:
        with tqdm(results, total=len(missing), unit="shard", desc="speech", disable=not missing) as bar:
            for shard_seconds in bar:
                seconds += shard_seconds
                bar.set_postfix(minutes=f"{seconds / 60:.0f}", real_time=f"{(time.monotonic() - begin) / seconds:.2f}")
    return folder


def read(folder: str | Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """Yield (speaker, text, (samples,) at 16 kHz) of each utterance, in the order of the plan."""
    tables = sorted(Path(folder).glob("shard_*.jsonl"))
    if not tables:
        raise KitError(f"{folder} holds no speech yet. Make it first: python -m sample_data.build.corpus --out {folder}")
    for table in tables:
        samples = _read_samples(table)
        if samples is None:
            raise KitError(f"{table} and its .flac do not match; one of them is incomplete. Run the same "
                          f"python -m sample_data.build.corpus --out {folder} again: only this shard is made anew.")
        for row in io.read_rows(table):
            yield row["speaker"], row["text"], samples[row["start"]:row["end"]]


def plan_shard(seed: int, shard: int, speakers: Speakers = (),
               sentence_source: SentenceSource = sentences.generate) -> list[tuple[str, Any, float]]:
    """Return (sentence, speaker, speed) of each utterance of a shard.

    The speakers, Kokoro's if none are given, take turns over the whole corpus."""
    texts = itertools.islice(sentence_source(seed), shard * SENTENCES_PER_SHARD, (shard + 1) * SENTENCES_PER_SHARD)
    rng = random.Random(f"{seed} {shard}")
    speakers = speakers or voices.training_speakers()
    order = random.Random(seed).sample(speakers, len(speakers))
    return [(text, order[index % len(order)], round(rng.uniform(MIN_SPEED, MAX_SPEED), 3))
            for index, text in enumerate(texts, shard * SENTENCES_PER_SHARD)]


def synthesize_kokoro(text: str, speaker: voices.Speaker, speed: float = 1.0,
                      voices_folder: str = str(voices.CACHE)) -> np.ndarray:
    """Synthesize a sentence and prepare it as the kit prepares clips: trimmed, -20 LUFS, (samples,) at 16 kHz."""
    style = voices.speaker_style(speaker, _styles(voices_folder))
    spoken = audio.trim(kokoro.engine().synthesize(text, style, speaker.accent, speed), kokoro.RATE)
    return audio.resample(audio.normalize_loudness(spoken, kokoro.RATE), kokoro.RATE, RATE)


def _make_shard(folder: Path, seed: int, synthesize: Synthesize, speakers: Speakers, sentence_source: SentenceSource,
                shard: int) -> float:
    """Write one shard, its table last; returns its seconds."""
    rows, clips, end = [], [], 0
    for text, speaker, speed in plan_shard(seed, shard, speakers, sentence_source):
        clips.append(synthesize(text, speaker, speed))
        start, end = end, end + len(clips[-1])
        rows.append(dict(start=start, end=end, speaker=speaker.name, speed=speed, text=text))
    audio.write(_table_path(folder, shard).with_suffix(".flac"), np.concatenate(clips), RATE)
    io.write_rows(_table_path(folder, shard), rows)
    return end / RATE


@contextlib.contextmanager
def _parallel_map(task: functools.partial, shards: list[int], workers: int) -> Iterator[Iterator[float]]:
    """Map `task` over shards, `workers` at a time; in this process if there is one worker or one shard."""
    if min(workers, len(shards)) <= 1:
        yield map(task, shards)
        return
    # fork would copy a process that may already have threads
    with multiprocessing.get_context("spawn").Pool(min(workers, len(shards))) as pool:
        yield pool.imap_unordered(task, shards)


def _check_settings(folder: Path, seed: int, source: str, speakers: Speakers, sentence_source: SentenceSource) -> None:
    """Write the settings of the shards to the folder; raise an error if it was started with others."""
    planned = repr([plan_shard(seed, shard, speakers, sentence_source) for shard in range(3)]).encode()
    settings = dict(rate=RATE, seed=seed, sentences_per_shard=SENTENCES_PER_SHARD, source=source,
                    plan=hashlib.sha256(planned).hexdigest()[:16])
    path = folder / SETTINGS_FILE
    if path.is_file() and (saved := json.loads(path.read_text(encoding="utf-8"))) != settings:
        different = ", ".join(name for name in settings if saved.get(name) != settings[name])
        raise KitError(f"{folder} was started with another {different}; new shards would not match the existing ones. "
                      "Choose another --out, or delete the folder.")
    io.write_json(path, settings)


def _table_path(folder: Path, shard: int) -> Path:
    return folder / f"shard_{shard:04d}.jsonl"


def _read_samples(table: Path) -> np.ndarray | None:
    """Read the samples of a complete shard; None if it is missing or audio and table do not match."""
    if not table.is_file():
        return None
    try:
        rows = io.read_rows(table)
        samples = audio.read(table.with_suffix(".flac"), RATE)
    except KitError:
        return None
    return samples if len(rows) == SENTENCES_PER_SHARD and rows[-1]["end"] == len(samples) else None


@functools.cache
def _styles(folder: str) -> dict[str, np.ndarray]:
    return voices.load_styles(folder)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    options = parser().parse_args(arguments)
    make(options.out, options.hours, options.seed, options.workers, options.voices)


def parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    top = argparse.ArgumentParser(prog="python -m sample_data.build.corpus", description=__doc__.split("\n")[0])
    top.add_argument("--hours", type=float, default=5.0, help="about how much speech (default 5)")
    top.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    top.add_argument("--seed", type=int, default=0, help="another seed gives other sentences (default 0)")
    top.add_argument("--workers", type=int, default=1, help="processes, each with one thread (default 1)")
    top.add_argument("--voices", type=Path, default=voices.CACHE, help="Kokoro's voices (default: downloaded with npm)")
    return top


if __name__ == "__main__":
    sys.exit(main())
