"""Hours of synthetic speech: sentences in many voices, in shards of one FLAC and one table of what is said where.

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

from sample_data.build import kokoro, sentences, voices
from tts_kit import audio, io
from tts_kit.errors import KitError, report_errors

RATE = 16_000
SHARD = 100
SHARD_SECONDS = 285
"""A hundred sentences take this long, measured; how many shards make an hour must not depend on what was made."""
FASTEST, SLOWEST = 1.12, 0.9
IDENTITY = "corpus.json"
OUT = Path("runs/pretrain/corpus")
Speak = Callable[[str, Any, float], np.ndarray]
Cast = Sequence[Any]
"""Speakers: whatever has a name and is known to whoever speaks."""
Texts = Callable[[int], Iterator[str]]
"""A seed -> sentences without end."""


def make(folder: str | Path, hours: float, seed: int = 0, workers: int = 1,
         voices_folder: str | Path = voices.CACHE) -> Path:
    """About `hours` of Kokoro's speech in `folder`; whole shards that are already there are kept."""
    count = shards(hours, workers)
    kokoro.packages()[0].model_path()  # put together once, before several workers would
    known = voices.voices(voices_folder)
    styles = hashlib.sha256(b"".join(known[name].tobytes() for name in voices.NAMES)).hexdigest()[:16]
    speak = functools.partial(utter, voices_folder=str(voices_folder))
    return fill(folder, count, speak, seed, workers, f"kokoro {styles}")


def shards(hours: float, workers: int) -> int:
    """How many shards hold about so many hours."""
    if not 0 < hours <= 1000 or workers < 1:
        raise KitError(f"{hours:g} hours by {workers} workers; wanted more than 0 and at most 1000 hours, and 1 worker "
                      "or more. Change --hours or --workers.")
    return max(1, round(hours * 3600 / SHARD_SECONDS))


def fill(folder: str | Path, count: int, speak: Speak, seed: int = 0, workers: int = 1, source: str = "",
         cast: Cast = (), texts: Texts = sentences.generate) -> Path:
    """`count` shards in `folder`, spoken by `speak(text, speaker, speed)`, which gives (samples,) at 16 kHz."""
    folder = Path(folder)
    _claim(folder, seed, source, cast, texts)
    wanted = [shard for shard in range(count) if _samples(_table(folder, shard)) is None]
    print(f"{folder}: {count} shards of {SHARD} sentences, {count - len(wanted)} already there, {workers} at a time.")
    begin, seconds = time.monotonic(), 0.0
    with _mapped(functools.partial(_make_shard, folder, seed, speak, cast, texts), wanted, workers) as done:
        with tqdm(done, total=len(wanted), unit="shard", desc="speech", disable=not wanted) as bar:
            for each in bar:
                seconds += each
                bar.set_postfix(minutes=f"{seconds / 60:.0f}", real_time=f"{(time.monotonic() - begin) / seconds:.2f}")
    return folder


def read(folder: str | Path) -> Iterator[tuple[str, str, np.ndarray]]:
    """(speaker, text, (samples,) at 16 kHz) of every utterance, in the order they were planned."""
    tables = sorted(Path(folder).glob("shard_*.jsonl"))
    if not tables:
        raise KitError(f"{folder} holds no speech yet. Make it first: python -m sample_data.build.corpus --out {folder}")
    for table in tables:
        samples = _samples(table)
        if samples is None:
            raise KitError(f"{table} and its .flac do not fit together; one was cut short. Run the same "
                          f"python -m sample_data.build.corpus --out {folder} again: this shard alone is made anew.")
        for row in io.read_rows(table):
            yield row["speaker"], row["text"], samples[row["start"]:row["end"]]


def plan(seed: int, shard: int, cast: Cast = (), texts: Texts = sentences.generate) -> list[tuple[str, Any, float]]:
    """(sentence, speaker, speed) of each utterance of a shard; the speakers, Kokoro's unless a cast is given, take turns
    over the whole corpus."""
    some = itertools.islice(texts(seed), shard * SHARD, (shard + 1) * SHARD)
    chance = random.Random(f"{seed} {shard}")
    cast = cast or voices.speakers()
    order = random.Random(seed).sample(cast, len(cast))
    return [(text, order[number % len(order)], round(chance.uniform(SLOWEST, FASTEST), 3))
            for number, text in enumerate(some, shard * SHARD)]


def utter(text: str, speaker: voices.Speaker, speed: float = 1.0, voices_folder: str = str(voices.CACHE)) -> np.ndarray:
    """A sentence as the kit's own clips are: trimmed, -20 LUFS, (samples,) at 16 kHz."""
    style = voices.style(speaker, _voices(voices_folder))
    spoken = audio.trim(kokoro.engine().speak(text, style, speaker.accent, speed), kokoro.RATE)
    return audio.resample(audio.normalize_loudness(spoken, kokoro.RATE), kokoro.RATE, RATE)


def _make_shard(folder: Path, seed: int, speak: Speak, cast: Cast, texts: Texts, shard: int) -> float:
    """Write one shard, the table last; returns its seconds."""
    rows, clips, end = [], [], 0
    for text, speaker, speed in plan(seed, shard, cast, texts):
        clips.append(speak(text, speaker, speed))
        start, end = end, end + len(clips[-1])
        rows.append(dict(start=start, end=end, speaker=speaker.name, speed=speed, text=text))
    audio.write(_table(folder, shard).with_suffix(".flac"), np.concatenate(clips), RATE)
    io.write_rows(_table(folder, shard), rows)
    return end / RATE


@contextlib.contextmanager
def _mapped(task: functools.partial, wanted: list[int], workers: int) -> Iterator[Iterator[float]]:
    """`task` of each shard, `workers` at a time, in this process where one worker is enough."""
    if min(workers, len(wanted)) <= 1:
        yield map(task, wanted)
        return
    # fork would copy a process that may already hold threads
    with multiprocessing.get_context("spawn").Pool(min(workers, len(wanted))) as pool:
        yield pool.imap_unordered(task, wanted)


def _claim(folder: Path, seed: int, source: str, cast: Cast, texts: Texts) -> None:
    """Say in the folder what its shards are made of, and refuse one that is made of something else."""
    planned = repr([plan(seed, shard, cast, texts) for shard in range(3)]).encode()
    ours = dict(rate=RATE, seed=seed, sentences_per_shard=SHARD, source=source,
                plan=hashlib.sha256(planned).hexdigest()[:16])
    path = folder / IDENTITY
    if path.is_file() and (theirs := json.loads(path.read_text(encoding="utf-8"))) != ours:
        other = ", ".join(name for name in ours if theirs.get(name) != ours[name])
        raise KitError(f"{folder} was begun with another {other}; its shards and new ones would not belong together. "
                      "Choose another --out, or delete the folder.")
    io.write_json(path, ours)


def _table(folder: Path, shard: int) -> Path:
    return folder / f"shard_{shard:04d}.jsonl"


def _samples(table: Path) -> np.ndarray | None:
    """The samples of a whole shard, None where it is missing or audio and table do not fit."""
    if not table.is_file():
        return None
    try:
        rows = io.read_rows(table)
        samples = audio.read(table.with_suffix(".flac"), RATE)
    except KitError:
        return None
    return samples if len(rows) == SHARD and rows[-1]["end"] == len(samples) else None


@functools.cache
def _voices(folder: str) -> dict[str, np.ndarray]:
    return voices.voices(folder)


@report_errors
def main(arguments: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m sample_data.build.corpus", description=__doc__.split("\n")[0])
    parser.add_argument("--hours", type=float, default=5.0, help="about how much speech (default 5)")
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder (default {OUT})")
    parser.add_argument("--seed", type=int, default=0, help="another seed says other sentences (default 0)")
    parser.add_argument("--workers", type=int, default=1, help="processes, each on one thread (default 1)")
    parser.add_argument("--voices", type=Path, default=voices.CACHE, help="Kokoro's voices (default: fetched by npm)")
    options = parser.parse_args(arguments)
    make(options.out, options.hours, options.seed, options.workers, options.voices)


if __name__ == "__main__":
    sys.exit(main())
