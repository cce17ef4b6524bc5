"""What a person can do to a clip and its text: which edits are allowed, and what a history of them adds up to."""

import dataclasses
from dataclasses import dataclass

from tts_kit import text
from tts_kit.data import quality_flags
from tts_kit.data.quality_flags import Flag
from tts_kit.errors import KitError

NEW, CHECKED, DROPPED = "new", "checked", "dropped"
SHORTEST = 0.3
"""Seconds of the shortest part that a split may leave."""


@dataclass(frozen=True)
class Span:
    """A stretch of a clip on disk."""
    file: str
    """Under the folder of the cut recordings."""
    begin: float
    end: float


@dataclass(frozen=True)
class ReviewClip:
    """One clip of the dataset to be."""
    id: str
    recording: str
    parts: tuple[Span, ...]
    text: str
    heard: str
    """What the transcriber wrote."""
    doubts: tuple[Flag, ...] = ()
    state: str = NEW
    revision: int = 0
    """Number of the last edit that changed it."""

    @property
    def seconds(self) -> float:
        return sum(part.end - part.begin for part in self.parts)

    @property
    def suspicion(self) -> float:
        return quality_flags.combined_score(self.doubts)


class EditConflict(KitError):
    """An edit was made looking at an older state of its entry; `now` is how it stands, None where it is gone."""

    def __init__(self, message: str, now: ReviewClip | None = None):
        super().__init__(message)
        self.now = now


def replay(first: dict[str, ReviewClip], edits: list[dict]) -> dict[str, ReviewClip]:
    """The entries that a history adds up to."""
    standing: list[int] = []
    undone: dict[str, int] = {}
    for number, edit in enumerate(edits, 1):
        if edit["do"] != "undo":
            standing.append(number)
        elif standing:
            taken = edits[standing.pop() - 1]
            undone |= dict.fromkeys((taken["id"], taken.get("other", taken["id"])), number)
    now = dict(first)
    for number in standing:
        now = _done(now, edits[number - 1], number)
    for id, number in undone.items():
        if id in now and now[id].revision < number:
            now[id] = dataclasses.replace(now[id], revision=number)
    return now


def _done(now: dict[str, ReviewClip], edit: dict, number: int) -> dict[str, ReviewClip]:
    """The entries after one edit; the order stays, halves stand where the whole stood."""
    entry = now[edit["id"]]
    match edit["do"]:
        case "text":
            state = CHECKED if edit["checked"] else entry.state
            new = [dataclasses.replace(entry, text=edit["text"], state=state, revision=number)]
        case "check" | "drop" | "restore":
            state = {"check": CHECKED, "drop": DROPPED, "restore": NEW}[edit["do"]]
            new = [dataclasses.replace(entry, state=state, revision=number)]
        case "split":
            new = [dataclasses.replace(entry, id=f"{entry.id}{letter}", parts=parts, text=words, revision=number)
                   for letter, parts, words in zip("ab", _halves(entry.parts, edit["at"]), edit["texts"])]
        case "merge":
            other = now[edit["other"]]
            new = [dataclasses.replace(entry, parts=entry.parts + other.parts, text=f"{entry.text} {other.text}".strip(),
                                       heard=f"{entry.heard} {other.heard}", doubts=entry.doubts + other.doubts, state=NEW,
                                       revision=number)]
    after: dict[str, ReviewClip] = {}
    for id, each in now.items():
        if id == entry.id:
            after |= {one.id: one for one in new}
        elif edit["do"] != "merge" or id != edit["other"]:
            after[id] = each
    return after


def _halves(parts: tuple[Span, ...], at: float) -> tuple[tuple[Span, ...], tuple[Span, ...]]:
    """Parts before and after `at` seconds."""
    before, after, passed = [], [], 0.0
    for part in parts:
        place = part.begin + at - passed
        passed += part.end - part.begin
        if place > part.begin:
            before.append(dataclasses.replace(part, end=min(part.end, place)))
        if place < part.end:
            after.append(dataclasses.replace(part, begin=max(part.begin, place)))
    return tuple(before), tuple(after)


def validate(asked: dict, now: dict[str, ReviewClip]) -> dict:
    """The edit as the history keeps it, or a Problem: it comes from a page, and a page can say anything."""
    if asked.get("do") == "undo":
        return {"do": "undo"}
    entry = _seen(asked, "id", "seen", now)
    edit = {"do": asked.get("do"), "id": entry.id}
    match edit["do"]:
        case "text":
            return edit | {"text": _text(asked.get("text")), "checked": asked.get("checked", True) is True}
        case "check" | "drop" | "restore":
            if edit["do"] == "check" and not entry.text:
                raise KitError(f"{entry.id} has no text yet. Write what is said, or drop it.")
            return edit
        case "split":
            at, texts = asked.get("at"), asked.get("texts")
            if not isinstance(at, int | float) or not SHORTEST <= at <= entry.seconds - SHORTEST:
                raise KitError(f"{entry.id} lasts {entry.seconds:.2f} s; wanted a place to split it that leaves "
                              f"{SHORTEST:g} s on each side. Move the cursor.")
            if not isinstance(texts, list) or len(texts) != 2:
                raise KitError("wanted two texts, one of each half. Reload the page.")
            return edit | {"at": round(float(at), 3), "texts": [_text(each) for each in texts]}
        case "merge":
            other = _seen(asked, "other", "seen_other", now)
            order = list(now)
            if order.index(other.id) != order.index(entry.id) + 1 or other.recording != entry.recording:
                raise KitError(f"{other.id} does not follow {entry.id} in the recording; only neighbours can be merged.")
            return edit | {"other": other.id}
    raise KitError(f"{str(asked.get('do'))[:60]!r} is no edit; wanted text, check, drop, restore, split, merge or undo. "
                  "Reload the page.")


def _seen(asked: dict, name: str, revision: str, now: dict[str, ReviewClip]) -> ReviewClip:
    """The entry that an edit names, if it still is what the editor saw."""
    entry = now.get(asked.get(name)) if isinstance(asked.get(name), str) else None
    if entry is None:
        raise EditConflict(f"there is no clip {str(asked.get(name))[:60]!r} any more: it was split or merged elsewhere.")
    if asked.get(revision) != entry.revision:
        raise EditConflict(f"{entry.id} was changed elsewhere in the meantime. Its text now: {entry.text}", entry)
    return entry


def _text(said: object) -> str:
    if not isinstance(said, str) or len(said) > 2000:
        raise KitError("wanted a text of at most 2000 characters. Shorten it.")
    return text.normalize(said)
