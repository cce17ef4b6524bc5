"""From clips to rows with scores, and from rows to the figures of each arm."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from tts_kit.judging import intervals, judges
from tts_kit.judging.intervals import Estimate
from tts_kit.judging.judges import Judges
from tts_kit.problem import Problem

JUDGED = "judged"
"""The field that names the judges of a row."""
FEWEST_REFERENCES = 5
MOST_REFERENCES = 50
SAVE_EVERY = 10
References = Mapping[str, np.ndarray]
"""What a real clip says, one sentence -> its voice (256,)."""


def listen(clips: Mapping[str, Path], listeners: Judges) -> References:
    """The voices of real clips by their sentences; those the similarity is measured against."""
    some = list(clips.items())[:MOST_REFERENCES]
    bar = tqdm(some, desc="real voice", unit="clip", disable=len(some) < 4)
    return {text: listeners.embed(judges.read(path), judges.RATE) for text, path in bar}


def similarity(voice: np.ndarray | None, references: References, text: str) -> float | None:
    """Cosine to the mean of the real clips of other sentences, so that no clip is compared with itself or its own words.

    A clip without sound is like nobody: 0. None where there is no other sentence to compare with.
    """
    others = [each for said, each in references.items() if said != text]
    if not others:
        return None
    if voice is None:
        return 0.0
    mean = np.mean(others, axis=0)
    return float(voice @ mean / np.linalg.norm(mean))


def judge(rows: Sequence[dict], folder: Path, listeners: Judges, references: Callable[[dict], References],
          save: Callable[[list[dict]], None]) -> list[dict]:
    """The rows with scores; those that this set of judges has scored stay as they are. `save` is called now and then."""
    rows = list(rows)
    wanted = [number for number, row in enumerate(rows) if row.get(JUDGED) != listeners.name]
    for count, number in enumerate(tqdm(wanted, desc="judging", unit="clip", disable=len(wanted) < 4), 1):
        rows[number] = rows[number] | _score(rows[number], folder, listeners, references(rows[number]))
        if count % SAVE_EVERY == 0 or count == len(wanted):
            save(rows)
    return rows


def _score(row: dict, folder: Path, listeners: Judges, references: References) -> dict:
    found = listeners.judge(judges.read(folder / row["file"]), judges.RATE, row["text"])
    alike = similarity(found.embedding, references, row["text"])
    return {"heard": found.heard, "words": found.words, "wrong_words": found.wrong_words,
            "similarity": None if alike is None else round(alike, 4), "naturalness": round(found.naturalness, 3),
            "failure": found.failure, JUDGED: listeners.name}


def measures(rows: Sequence[dict]) -> Iterator[tuple[str, intervals.Parts]]:
    """(name, sums and counts by sentence) of all that can be said of one arm."""
    if all(JUDGED in row for row in rows):
        yield "wrong words", intervals.parts(rows, "wrong_words", "words")
        if all(row["similarity"] is not None for row in rows):
            yield "similarity", intervals.parts(rows, "similarity")
        yield "naturalness", intervals.parts(rows, "naturalness")
    if all(row.get("stopped") is not None for row in rows):
        yield "ended", intervals.parts(rows, "stopped")


def figures(rows: Sequence[dict]) -> dict[str, Estimate]:
    """Name -> figure of one arm, over all its sentences and takes: words are counted over all clips, not clip by clip."""
    return {name: intervals.ratio(parts) for name, parts in measures(rows)}


def differences(one: Sequence[dict], other: Sequence[dict]) -> dict[str, Estimate]:
    """Name -> figure of `one` less that of `other`, sentence by sentence; only what was measured of both."""
    theirs = dict(measures(other))
    return {name: intervals.difference(parts, theirs[name]) for name, parts in measures(one) if name in theirs}


def by_arm(rows: Sequence[dict]) -> dict[str, list[dict]]:
    """Arm -> its rows, arms in the order in which they come."""
    gathered = {}
    for row in rows:
        gathered.setdefault(row["arm"], []).append(row)
    return gathered


def failures(rows: Sequence[dict]) -> list[str]:
    """The clips that count as wholly wrong because nothing could be heard, each with its reason."""
    return [f"{row['file']} ({row['failure']})" for row in rows if row.get("failure")]


def floor(voices: Sequence[np.ndarray], references: References) -> float:
    """Mean similarity of other speakers' clips to this voice: what a stranger gets."""
    if not voices:
        raise Problem("no clips of other speakers were given; the floor of similarity is what strangers get. Give some.")
    return float(np.mean([similarity(voice, references, "") for voice in voices]))


def ceiling(references: References) -> float:
    """Mean similarity of each real clip to the others of its voice: what the voice itself gets."""
    if len(references) < 2:
        raise Problem(f"{len(references)} real clip of the voice; wanted two or more, to see how alike they are.")
    return float(np.mean([similarity(voice, references, text) for text, voice in references.items()]))


def normalised(value: float, floor: float, ceiling: float) -> float:
    """0 for a stranger, 1 for the voice itself; so that figures of two judges can be compared."""
    if ceiling <= floor:
        raise Problem(f"strangers are as like the voice ({floor:.3f}) as it is to itself ({ceiling:.3f}); wanted them less "
                      "alike. The real clips are of several voices, or the strangers are no strangers: look at both.")
    return (value - floor) / (ceiling - floor)


def table(rows: Sequence[dict]) -> list[list[str]]:
    """The figures of every arm as text, names of the columns first; '-' where something was not measured."""
    listed = [["arm", "wrong words", "similarity", "naturalness", "ended by itself"]]
    for arm, mine in by_arm(rows).items():
        found = figures(mine)
        written = {"wrong words": "{:.1%}", "similarity": "{:.3f}", "naturalness": "{:.2f}", "ended": "{:.0%}"}
        listed.append([arm, *(pattern.format(found[name].value) if name in found else "-"
                              for name, pattern in written.items())])
    return listed


def print_table(listed: Sequence[Sequence[str]]) -> str:
    """`table` in columns of equal width, for a terminal."""
    widths = [max(map(len, column)) for column in zip(*listed)]
    return "\n".join("  ".join(cell.ljust(width) if place == 0 else cell.rjust(width)
                               for place, (cell, width) in enumerate(zip(line, widths))) for line in listed)
