"""The review: which transcripts are doubted, and that no edit of a person is ever lost, doubled or made unseen."""

import dataclasses
import json
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import CUT_TEXTS as TEXTS
from conftest import make_cuts

from tts_kit import io
from tts_kit.data import quality_flags, review_store, segment, transcribe
from tts_kit.data.manifest import SAMPLE_RATE
from tts_kit.data.quality_flags import ClipFeatures
from tts_kit.data.review_edits import CHECKED, DROPPED, NEW, EditConflict
from tts_kit.data.review_store import ReviewStore
from tts_kit.errors import KitError


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_cuts(tmp_path)


def state(some: ReviewStore) -> dict:
    return {entry.id: (entry.text, entry.state, entry.parts) for entry in some.entries}


def look(some: ReviewStore, id: str, **edit) -> list:
    """An edit by somebody who sees the entry as it is."""
    now = {entry.id: entry for entry in some.entries}
    seen = {"seen_other": now[edit["other"]].revision} if "other" in edit else {}
    return some.edit({"id": id, "seen": now[id].revision} | seen | edit)


def test_the_draft_is_what_was_cut_and_heard(folder):
    """Mistake: rejected pieces among the clips, or texts of one recording beside clips of another."""
    entries = ReviewStore(folder, "base").entries
    assert [entry.text for entry in entries] == list(TEXTS)
    assert [entry.id for entry in entries][3:5] == ["monday/00004", "tuesday/00001"]
    assert {entry.state for entry in entries} == {NEW} and not any(entry.revision for entry in entries)


def test_edits_add_up(folder):
    """Mistake: an edit that changes another entry, or one that is forgotten when the process ends."""
    some = ReviewStore(folder, "base")
    look(some, "monday/00001", do="text", text="He lost  two “wooden” chairs")
    look(some, "monday/00002", do="check")
    look(some, "monday/00003", do="drop")
    look(some, "tuesday/00001", do="drop")
    look(some, "tuesday/00001", do="restore")
    told = state(some)
    assert told["monday/00001"][:2] == ('He lost two "wooden" chairs.', CHECKED)
    assert [told[f"monday/0000{number}"][1] for number in (2, 3, 4)] == [CHECKED, DROPPED, NEW]
    assert told["tuesday/00001"][:2] == (TEXTS[4], NEW)
    assert state(ReviewStore(folder, "base")) == told


def test_a_split_and_a_merge_lose_no_sound(folder):
    """Mistake: halves that overlap or miss samples, neighbours that change places, or a merge across recordings."""
    some = ReviewStore(folder, "base")
    whole = some.wave("monday/00002")
    look(some, "monday/00002", do="split", at=1.1, texts=["The dog", "ran away."])
    assert [entry.id for entry in some.entries][:4] == ["monday/00001", "monday/00002a", "monday/00002b", "monday/00003"]
    halves = [some.wave(f"monday/00002{letter}") for letter in "ab"]
    assert len(halves[0]) == round(1.1 * SAMPLE_RATE) and np.array_equal(np.concatenate(halves), whole)
    look(some, "monday/00002b", do="merge", other="monday/00003")
    merged = next(entry for entry in some.entries if entry.id == "monday/00002b")
    assert merged.text == "ran away. Who is that girl?" and merged.state == NEW
    assert np.array_equal(some.wave("monday/00002b"), np.concatenate([halves[1], some.wave_of(merged.parts[1:])]))
    look(some, "monday/00002b", do="split", at=2.0, texts=["one", "two"])
    assert sum(entry.seconds for entry in some.entries) == pytest.approx(2 * (2 + 2.5 + 3 + 3.5))
    with pytest.raises(KitError, match="only neighbours can be merged"):
        look(some, "monday/00004", do="merge", other="tuesday/00001")
    with pytest.raises(KitError, match="only neighbours can be merged"):
        look(some, "monday/00001", do="merge", other="monday/00004")


def test_undo_takes_back_one_edit_after_the_other(folder):
    """Mistake: undo of an undo, an undo that leaves half of a split, or one that lets an old page overwrite."""
    some = ReviewStore(folder, "base")
    states = [state(some)]
    look(some, "monday/00001", do="text", text="Other words.")
    states.append(state(some))
    look(some, "monday/00001", do="split", at=1.0, texts=["Other", "words"])
    states.append(state(some))
    look(some, "monday/00001b", do="merge", other="monday/00002")
    for wanted in states[::-1]:
        some.edit({"do": "undo"})
        assert state(some) == wanted == state(ReviewStore(folder, "base"))
    some.edit({"do": "undo"})
    assert state(some) == states[0]
    with pytest.raises(EditConflict):
        some.edit({"do": "drop", "id": "monday/00002", "seen": 0})  # as it was before the merge and its undoing


def test_two_tabs_do_not_lose_an_edit(folder):
    """Mistake: the last tab wins, whatever it saw."""
    one, other = ReviewStore(folder, "base"), ReviewStore(folder, "base")
    one.edit({"do": "text", "id": "monday/00001", "seen": 0, "text": "First tab."})
    with pytest.raises(EditConflict, match="Its text now: First tab"):
        other.edit({"do": "text", "id": "monday/00001", "seen": 0, "text": "Second tab."})
    other.edit({"do": "text", "id": "monday/00002", "seen": 0, "text": "Second tab."})
    assert state(one) == state(other) and state(one)["monday/00001"][0] == "First tab."
    with pytest.raises(EditConflict):
        one.edit({"do": "text", "id": "nobody", "seen": 0, "text": "x"})


def test_what_a_killed_process_left_half_written_is_no_edit(folder):
    """Mistake: a broken last line makes the whole review unreadable, or is continued by the next edit."""
    some = ReviewStore(folder, "base")
    look(some, "monday/00001", do="text", text="Kept.")
    with open(folder / review_store.HISTORY, "ab") as file:
        file.write(b'{"do": "text", "id": "monday/0000')
    again = ReviewStore(folder, "base")
    assert state(again)["monday/00001"][0] == "Kept."
    look(again, "monday/00002", do="drop")
    assert [json.loads(line)["do"] for line in (folder / review_store.HISTORY).read_text().splitlines()] == ["text", "drop"]


@pytest.mark.parametrize("edit, said", [
    ({"do": "text", "text": "  "}, "text is empty"), ({"do": "text", "text": 7}, "at most 2000"),
    ({"do": "text", "text": "x" * 2001}, "at most 2000"), ({"do": "text", "text": "a\u202eb"}, "nobody can speak"),
    ({"do": "split", "at": 0.1, "texts": ["a", "b"]}, "on each side"), ({"do": "split", "at": "1"}, "on each side"),
    ({"do": "split", "at": float("nan"), "texts": ["a", "b"]}, "on each side"),
    ({"do": "split", "at": 1.0, "texts": ["a"]}, "two texts"), ({"do": "rm -rf"}, "is no edit"), ({}, "is no edit"),
    ({"do": "merge", "other": "monday/00009", "seen_other": 0}, "no clip 'monday/00009'"),
    ({"do": "merge", "other": ["x"], "seen_other": 0}, "no clip")])
def test_a_page_can_say_anything(folder, edit, said):
    """Mistake: a request that is no edit ends up in the history, and the review cannot be opened again."""
    some = ReviewStore(folder, "base")
    with pytest.raises(KitError, match=said):
        some.edit({"id": "monday/00001", "seen": 0} | edit)
    assert not (folder / review_store.HISTORY).exists() and state(some) == state(ReviewStore(folder, "base"))


def test_clips_cut_anew_do_not_take_an_old_review(folder):
    """Mistake: corrections of one cutting put on clips of another."""
    look(ReviewStore(folder, "base"), "monday/00004", do="text", text="Mine.")
    place = folder / "monday"
    io.write_rows(place / segment.PIECES, io.read_rows(place / segment.PIECES)[:3])
    with pytest.raises(KitError, match=r"tells of a clip 'monday/00004' that is not there"):
        ReviewStore(folder, "base")


def test_as_many_clips_of_another_recording_are_not_the_same_clips(folder):
    """Mistake: a recording moved away and cut anew, after which old corrections stand under new sounds, as checked."""
    look(ReviewStore(folder, "base"), "monday/00001", do="text", text="Mine.")
    place = folder / "monday" / segment.PIECES
    _, *rows = io.read_rows(place)
    io.write_rows(place, [{"recording": "monday", "bytes": 7}, *rows])
    with pytest.raises(KitError, match="tells of other clips than monday holds now"):
        ReviewStore(folder, "base")
    (folder / review_store.HISTORY).unlink()
    (folder / review_store.SUBJECT).unlink()
    assert ReviewStore(folder, "base").entries[0].text == TEXTS[0]


def test_writing_down_that_was_interrupted_is_told_of(folder):
    """Mistake: a traceback where a transcription was stopped half-way."""
    place = folder / "tuesday" / transcribe.transcripts_path("base")
    io.write_rows(place, io.read_rows(place)[:2])
    with pytest.raises(KitError, match=r"00003.flac has not been written down yet"):
        ReviewStore(folder, "base")


def clips(count: int = 20) -> list[ClipFeatures]:
    """Ordinary clips, of one voice, each with words of its own."""
    chance = np.random.default_rng(3)
    voices = chance.normal([10, 0, 0, 0], 0.5, (count, 3, 4))
    return [ClipFeatures(f"These are ordinary words of clip {'abcdefghijklmnopqrstuvwxyz'[number]}.", 2.4, 0.95, None,
                     f"these are ordinary words of clip {'abcdefghijklmnopqrstuvwxyz'[number]}",
                     voices[number] / np.linalg.norm(voices[number], axis=-1, keepdims=True)) for number in range(count)]


@pytest.mark.parametrize("change, reason", [
    ({"confidence": 0.5}, "50% sure"), ({"second_text": "Those were ordinary birds of clip f"}, "heard again as"),
    ({"text": "Yes.", "second_text": None}, "few letters"), ({"seconds": 0.9}, "many letters"), ({"edge": 6.0}, "word cut"),
    ({"text": "These are ordinary words & 12 % of clip.", "second_text": None}, "written, not spoken: % & 1 2"),
    ({"text": "", "second_text": ""}, "nothing was understood"), ({"voice": np.eye(4)[[0, 0, 1]]}, "somebody else"),
    ({"text": "These are ordinary words of clip a.", "second_text": None}, "same words 2 times")])
def test_each_doubt_puts_its_clip_on_top(change, reason):
    """Mistake: a reason that is computed and never counts, or one that ordinary clips are accused of as well."""
    some = clips()
    some[5] = dataclasses.replace(some[5], **change)
    found = quality_flags.flag_clips(some)
    assert any(reason in doubt.reason for doubt in found[5]), found[5]
    order = sorted(range(20), key=lambda number: -quality_flags.combined_score(found[number]))
    assert 5 in order[:2]
    assert quality_flags.combined_score(found[8]) < 0.1


def test_doubts_add_up_and_stay_below_certainty():
    """Mistake: ten small doubts sort above one that is nearly certain, or a sum above one."""
    some = [quality_flags.Flag("", weight) for weight in (0.2, 0.5)]
    assert quality_flags.combined_score(some) == pytest.approx(0.6) and quality_flags.combined_score([]) == 0


def test_distance_counts_words_not_letters():
    """Mistake: case and commas count as another word."""
    assert quality_flags.word_edit_distance("He lost, two chairs.", "he lost two chairs") == 0
    assert quality_flags.word_edit_distance("one two three four", "one three four") == 0.25
    assert quality_flags.word_edit_distance("", "one") == 1 and quality_flags.word_edit_distance("", "") == 0
    chance = random.Random(1)
    for _ in range(50):
        one, other = (" ".join(chance.choices("abc", k=chance.randrange(6))) for _ in range(2))
        assert quality_flags.word_edit_distance(one, other) == pytest.approx(quality_flags.word_edit_distance(other, one))


def test_few_clips_say_nothing_about_what_is_usual():
    """Mistake: with three clips one of them is always the outlier."""
    some = clips(4)
    some[0] = dataclasses.replace(some[0], seconds=0.8)
    assert quality_flags.combined_score(quality_flags.flag_clips(some)[0]) < 0.1
