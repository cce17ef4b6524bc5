"""Who speaks in a table, and which one voice is learned."""

import difflib
from collections import defaultdict
from collections.abc import Sequence

from tqdm.auto import tqdm

from tts_kit import audio
from tts_kit.data.table import Row
from tts_kit.errors import KitError

LISTED = 20


def choose_speaker(rows: Sequence[Row], wanted: str) -> tuple[str, str]:
    """The name of the speaker to learn and the digits that stand for it; `wanted` may be empty where there is one."""
    names = sorted({row.speaker for row in rows if row.speaker})
    table = rows[0].table
    if not names and wanted:
        raise KitError(f"{table} names no speakers; --speaker asks for {wanted!r}. Leave --speaker out, or add a column "
                      "source.")
    if len(names) > 1 and not wanted:
        raise KitError(f"{table} has {len(names)} speakers: {_listed(rows)}. One voice is learned at a time: choose it "
                      "with --speaker NAME (recipe.speaker).")
    if wanted and wanted not in names:
        near = difflib.get_close_matches(wanted, names, 1) or names[:1]
        raise KitError(f"{table} has no speaker {wanted!r}; wanted one of {', '.join(names[:LISTED])}. "
                      f"Did you mean {near[0]!r}?")
    chosen = wanted or (names or [""])[0]
    return chosen, _source(chosen, names)


def rows_of_speaker(rows: Sequence[Row], speaker: str) -> list[Row]:
    """The rows of `speaker`, and those of nobody, which are somebody's mistake where others are named."""
    return [row for row in rows if row.speaker in (speaker, "")]


def _source(chosen: str, names: list[str]) -> str:
    """CSM was trained with digits as speakers: names that are digits stay, others are numbered in their order."""
    if all(name.isascii() and name.isdigit() for name in names):
        return chosen or "0"
    return str(names.index(chosen))


def _listed(rows: Sequence[Row]) -> str:
    """Speakers with clips and minutes, the longest first."""
    counts, seconds = defaultdict(int), defaultdict(float)
    for row in tqdm(rows, desc="measuring speakers", unit="clip", leave=False):
        if row.speaker:
            counts[row.speaker] += 1
            seconds[row.speaker] += _seconds(row)
    order = sorted(counts, key=lambda name: (-seconds[name], name))
    shown = [f"{name} ({counts[name]} clips, {seconds[name] / 60:.1f} minutes)" for name in order[:LISTED]]
    return ", ".join(shown) + f" and {len(order) - LISTED} more" * (len(order) > LISTED)


def _seconds(row: Row) -> float:
    try:
        return audio.probe(row.sound.content())[2] if row.sound else 0.0
    except KitError:  # a broken clip is reported once its speaker is chosen
        return 0.0
